//! The names that a bundle's members may have, and what links name.

use std::collections::HashMap;

use crate::oci::Digest;

/// Longest name of a member: `blobs/sha512/` with its digest has 141 bytes.
const NAME_BYTES_MAX: usize = 256;
/// Links that may follow each other; `docker save` writes one.
const LINKS_MAX: u32 = 16;
/// Hexadecimal digits of a sha256, by which `docker save` names things.
const HEX: usize = 64;

/// The texts of a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Document {
    /// `oci-layout`
    Layout,
    /// `index.json`
    Index,
    /// `manifest.json`, docker's list of images.
    Manifest,
    /// `repositories`, which docker wrote before it wrote that list.
    Repositories,
}

/// What a file of a bundle is by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Document(Document),
    /// Content by its digest.
    Blob(Digest),
    /// A configuration or a layer of `docker save`, whose name says nothing of its bytes.
    Part,
    /// What docker wrote for versions of it that are long gone.
    Relic,
}

/// The name without what does not matter in it; `None`: it leaves the bundle, or is no name.
pub(super) fn tidied(name: &str) -> Option<&str> {
    let name = name.strip_prefix("./").unwrap_or(name);
    let name = name.strip_suffix('/').unwrap_or(name);
    let plain = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && !part.contains(|c: char| c.is_control() || c == '\\')
    };
    // The directory that the bundle itself was.
    if name.is_empty() || name == "." {
        return Some("");
    }
    (name.len() <= NAME_BYTES_MAX && name.split('/').all(plain)).then_some(name)
}

/// What a file of this (tidied) name is; `None`: nothing that belongs into a bundle.
pub(super) fn place(name: &str) -> Option<Place> {
    let parts: Vec<&str> = name.split('/').collect();
    Some(match parts.as_slice() {
        ["oci-layout"] => Place::Document(Document::Layout),
        ["index.json"] => Place::Document(Document::Index),
        ["manifest.json"] => Place::Document(Document::Manifest),
        ["repositories"] => Place::Document(Document::Repositories),
        ["blobs", algorithm, hex] => Place::Blob(Digest::from_parts(algorithm, hex).ok()?),
        [file] => {
            let stem = file.strip_suffix(".json").or_else(|| file.strip_suffix(".tar.gz"));
            let stem = stem.or_else(|| file.strip_suffix(".tar"));
            let stem = stem.or_else(|| file.strip_prefix("sha256:"))?;
            is_hex(stem).then_some(Place::Part)?
        }
        [directory, "layer.tar"] if is_hex(directory) => Place::Part,
        [directory, "json" | "VERSION"] if is_hex(directory) => Place::Relic,
        _ => return None,
    })
}

fn is_hex(text: &str) -> bool {
    text.len() == HEX && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The member that a symbolic link names; `None`: it leads out of the bundle.
pub(super) fn beside(link: &str, target: &str) -> Option<String> {
    if target.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = link.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The member behind a name, over links; `None`: there is none, or the links go round in a circle.
pub(super) fn follow<'a, T>(
    name: &str,
    members: &'a HashMap<String, T>,
    links: &HashMap<String, String>,
) -> Option<&'a T> {
    let mut name = name;
    for _ in 0..LINKS_MAX {
        match links.get(name) {
            Some(target) => name = target,
            None => return members.get(name),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside_and_are_of_a_known_kind() {
        for (name, wanted) in [
            ("./index.json", Some("index.json")),
            ("blobs/sha256/", Some("blobs/sha256")),
            ("./", Some("")),
            ("/etc/passwd", None),
            ("../x", None),
            ("a/../b", None),
            ("a//b", None),
            ("a/./b", None),
            ("a\u{0}b", None),
            ("a\\..\\b", None),
        ] {
            assert_eq!(tidied(name), wanted, "{name:?}");
        }
        let hex = "a".repeat(64);
        for (name, known) in [
            (format!("blobs/sha256/{hex}"), true),
            (format!("blobs/sha256/{}", hex.to_uppercase()), false),
            (format!("blobs/md5/{}", "a".repeat(32)), false),
            (format!("{hex}.json"), true),
            (format!("{hex}.tar"), true),
            (format!("{hex}.tar.gz"), true),
            (format!("sha256:{hex}"), true),
            (format!("{hex}/layer.tar"), true),
            (format!("{hex}/VERSION"), true),
            (format!("{hex}/other"), false),
            ("roadstead.db".to_owned(), false),
            ("blobs/sha256/x/y".to_owned(), false),
        ] {
            assert_eq!(place(&name).is_some(), known, "{name}");
        }
    }

    #[test]
    fn links_are_followed_inside_and_not_in_circles() {
        assert_eq!(beside("a/layer.tar", "../b/layer.tar").as_deref(), Some("b/layer.tar"));
        assert_eq!(beside("a/layer.tar", "../../b"), None);
        assert_eq!(beside("a/layer.tar", "/b"), None);
        let link = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        let links = HashMap::from([link("a", "b"), link("b", "c"), link("x", "y"), link("y", "x")]);
        let members = HashMap::from([("c".to_owned(), 1)]);
        assert_eq!(follow("a", &members, &links), Some(&1));
        assert_eq!(follow("x", &members, &links), None);
        assert_eq!(follow("z", &members, &links), None);
    }
}
