//! The corpus of configuration files, and what must hold for every file made from it.

use std::path::Path;

use proptest::prelude::*;

use crate::corpus as reader;

use super::{Config, ConfigErrors, Sources, document};

fn load(bytes: &[u8]) -> Option<Result<Config, ConfigErrors>> {
    // What is no text is refused before it is parsed.
    let text = std::str::from_utf8(bytes).ok()?;
    Some(Config::assemble(&Sources::default(), document::parse(Path::new("roadstead.toml"), text)))
}

#[test]
fn files_of_the_corpus() {
    reader::walk("config", |bytes| {
        reader::accepted(load(bytes).is_some_and(|loaded| loaded.is_ok()))
    });
}

#[test]
fn one_registry_in_two_spellings_is_a_mistake_that_names_both_lines() {
    let text = "[upstream.\"ghcr.io\"]\nlibrary = true\n[upstream.\"GHCR.io\"]\nlibrary = false\n";
    let refusal = load(text.as_bytes()).and_then(Result::err).map(|errors| errors.to_string());
    let refusal = refusal.unwrap_or_default();
    assert!(
        refusal.contains("roadstead.toml:3") && refusal.contains("roadstead.toml:1"),
        "{refusal}"
    );
}

proptest! {
    #[test]
    fn mistakes_are_lines_and_tell_no_secret(bytes in reader::mutated("config")) {
        let has_secret = bytes.windows(6).any(|window| window == b"geheim");
        match load(&bytes) {
            Some(Err(errors)) => {
                let count = errors.mistakes().len();
                prop_assert!(count >= 1);
                // Syntax errors quote nothing; keys are told by name, and a password may be changed into one.
                if has_secret && !errors.to_string().contains("unknown key") {
                    prop_assert!(!errors.to_string().contains("me:geheim"), "{errors}");
                }
            }
            Some(Ok(config)) => {
                prop_assert!(!config.upstreams.is_empty());
                let shown = format!("{config:?}");
                prop_assert!(!shown.contains("me:geheim"));
            }
            None => {}
        }
    }
}
