//! What is known of one repository while it is taken over: its revisions, whether they are whole, and what is wrong with what they need.

use std::collections::HashMap;

use super::layout::{Odd, blob_path, words};
use crate::content::Flaw;
use crate::oci::Digest;

/// Revisions of one repository that are taken over; each costs about 150 bytes of memory while the repository is worked on.
pub(super) const REVISIONS_MAX: usize = 500_000;
/// Images that are named where something that they need is left out; of more the number is told.
const NAMED_MAX: usize = 5;
/// Things that one revision needs and that are wrong, as far as they are remembered for its tags.
const FLAWS_MAX: usize = 8;

/// A manifest of the repository.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// It is a revision here now.
    pub(super) taken: bool,
    /// It can be run: all of it is here, or of an index at least one platform.
    pub(super) whole: bool,
    /// Some of it was not here before.
    pub(super) fresh: bool,
    /// An index lists it.
    pub(super) is_child: bool,
    /// A tag points at it or did.
    pub(super) is_tagged: bool,
    /// It, and all that it needs and that is here.
    pub(super) bytes: u64,
    /// What it needs and what is wrong.
    pub(super) flaws: Vec<Digest>,
}

/// Something that is wrong, and who needs it.
#[derive(Debug)]
struct Trouble {
    flaw: Flaw,
    /// The revision that was found to need it.
    revision: Digest,
    images: Vec<String>,
    more: u64,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) revisions: HashMap<Digest, Known>,
    troubles: HashMap<Digest, Trouble>,
}

impl Known {
    /// It needs something that is wrong.
    pub(super) fn note_flaw(&mut self, digest: Digest) {
        if self.flaws.len() < FLAWS_MAX && !self.flaws.contains(&digest) {
            self.flaws.push(digest);
        }
    }
}

impl Book {
    pub(super) fn note_trouble(&mut self, digest: Digest, flaw: Flaw, revision: Digest) {
        let fresh = || Trouble { flaw, revision, images: Vec::new(), more: 0 };
        self.troubles.entry(digest).or_insert_with(fresh);
    }

    pub(super) fn is_trouble(&self, digest: &Digest) -> bool {
        self.troubles.contains_key(digest)
    }

    /// An image, under the name that people know, needs what is wrong with its revision; the words for the first of it.
    pub(super) fn name_flaws(&mut self, revision: &Digest, image: &str) -> Option<String> {
        let flaws = self.revisions.get(revision).map(|known| known.flaws.clone());
        let mut first = None;
        for digest in flaws.unwrap_or_default() {
            let Some(trouble) = self.troubles.get_mut(&digest) else {
                continue;
            };
            if trouble.images.len() < NAMED_MAX {
                trouble.images.push(image.to_owned());
            } else {
                trouble.more += 1;
            }
            first.get_or_insert_with(|| format!("{digest}: {}", words(&trouble.flaw)));
        }
        first
    }

    /// What is wrong, in the order of its names, with the images that need it.
    pub(super) fn troubles(&mut self, repository: &str) -> Vec<(Digest, Odd)> {
        let mut troubles: Vec<_> = self.troubles.drain().collect();
        troubles.sort_unstable_by_key(|(digest, _)| *digest);
        let odd = |(digest, trouble): (Digest, Trouble)| {
            let Trouble { flaw, revision, mut images, more } = trouble;
            if images.is_empty() {
                images.push(format!("{repository}@{revision}"));
            }
            let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
            let reason = format!("{}; needed by {}{rest}", words(&flaw), images.join(", "));
            (digest, Odd { what: blob_path(&digest).display().to_string(), reason })
        };
        troubles.into_iter().map(odd).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_with_the_images_that_need_it() {
        let [bad, one, other] = [b"bad", b"one", b"two"].map(|text| Digest::sha256_of(text));
        let mut book = Book::default();
        let mut known = Known::default();
        known.note_flaw(bad);
        known.note_flaw(bad);
        assert_eq!(known.flaws, [bad]);
        book.revisions.insert(one, known);
        book.note_trouble(bad, Flaw::Damaged, one);
        book.note_trouble(bad, Flaw::Missing, other);
        assert!(book.is_trouble(&bad) && !book.is_trouble(&one));
        for tag in 0..7 {
            let words = book.name_flaws(&one, &format!("r/n:{tag}")).unwrap();
            assert!(words.starts_with("sha256:") && words.contains("damaged"), "{words}");
        }
        assert_eq!(book.name_flaws(&other, "r/n:x"), None);
        let told = book.troubles("r/n");
        assert_eq!(told.len(), 1);
        let Odd { what, reason } = &told[0].1;
        assert!(what.ends_with("/data"), "{what}");
        assert!(
            reason.ends_with("needed by r/n:0, r/n:1, r/n:2, r/n:3, r/n:4 and 2 more"),
            "{reason}"
        );
        book.note_trouble(bad, Flaw::Missing, one);
        let told = book.troubles("r/n");
        assert!(told[0].1.reason.ends_with(&format!("needed by r/n@{one}")));
    }
}
