//! The corpus of `Range` and of manifests, and what must hold for every input made from it.

use proptest::prelude::*;

use crate::corpus as reader;

use super::{Manifest, RANGES_PER_REQUEST_MAX, RangeSpec, parse_range};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn ranges_of_the_corpus() {
    reader::walk("range", |bytes| match parse_range(&text(bytes)) {
        Ok(Some(_)) => "ok",
        Ok(None) => "skip",
        Err(_) => "no",
    });
}

#[test]
fn manifests_of_the_corpus() {
    reader::walk("manifest", |bytes| reader::accepted(Manifest::parse(bytes, None).is_ok()));
}

/// A range as a client writes it.
fn written(specs: &[RangeSpec]) -> String {
    let one = |spec: &RangeSpec| match spec {
        RangeSpec::Closed { first, last } => format!("{first}-{last}"),
        RangeSpec::From(first) => format!("{first}-"),
        RangeSpec::Suffix(count) => format!("-{count}"),
    };
    format!("bytes={}", specs.iter().map(one).collect::<Vec<_>>().join(","))
}

proptest! {
    #[test]
    fn ranges_are_bounded_and_come_back(bytes in reader::mutated("range"), size in any::<u64>()) {
        if let Ok(Some(specs)) = parse_range(&text(&bytes)) {
            prop_assert!((1..=RANGES_PER_REQUEST_MAX).contains(&specs.len()));
            prop_assert_eq!(parse_range(&written(&specs)), Ok(Some(specs.clone())));
            for range in specs.iter().filter_map(|spec| spec.resolve(size).ok()) {
                prop_assert!(range.start < range.end && range.end <= size);
                let end = format!("/{size}");
                prop_assert!(range.content_range(size).ends_with(&end));
            }
        }
    }

    #[test]
    fn manifests_are_bounded(bytes in reader::mutated("manifest"), typed in any::<bool>()) {
        let content_type = typed.then_some("application/vnd.oci.image.index.v1+json");
        if let Ok(manifest) = Manifest::parse(&bytes, content_type) {
            // The shortest child is longer than this.
            prop_assert!(manifest.children.len() * 64 <= bytes.len());
            prop_assert!(manifest.media_type.as_str().bytes().all(|byte| (0x20..0x7f).contains(&byte)));
            let again = Manifest::parse(&bytes, Some(manifest.media_type.as_str()));
            prop_assert_eq!(again.map(|again| again.children), Ok(manifest.children));
        }
    }
}
