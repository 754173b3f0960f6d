//! Trees by hand, and what is chosen of them.

use super::*;

const INDEX: &str = MediaType::OCI_INDEX;
const IMAGE: &str = MediaType::OCI_MANIFEST;
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

fn digest(seed: &str) -> Digest {
    Digest::sha256_of(seed.as_bytes())
}

fn member(seed: &str, role: Option<Role>, media_type: &str, children: &[&str]) -> Member {
    Member {
        digest: digest(seed),
        role,
        is_manifest: matches!(role, None | Some(Role::Child)),
        media_type: Some(media_type.parse().unwrap()),
        platform: None,
        size: Some(1),
        present: true,
        damaged: false,
        removed: false,
        of_referrer: false,
        tag: None,
        children: children.iter().map(|child| digest(child)).collect(),
    }
}

fn on(platform: &str, member: Member) -> Member {
    Member { platform: Some(platform.to_owned()), ..member }
}

/// An index of two platforms that share a layer, each with an attestation.
fn members() -> Vec<Member> {
    let child = Some(Role::Child);
    let attests =
        |platform: &str, member: Member| Member { of_referrer: true, ..on(platform, member) };
    vec![
        member("index", None, INDEX, &["amd", "arm", "amd proof", "arm proof"]),
        on("linux/amd64", member("amd", child, IMAGE, &["amd config", "shared", "shared"])),
        on("linux/arm64/v8", member("arm", child, IMAGE, &["arm config", "shared", "arm layer"])),
        member("amd config", Some(Role::Config), MediaType::OCI_CONFIG, &[]),
        member("arm config", Some(Role::Config), MediaType::OCI_CONFIG, &[]),
        member("shared", Some(Role::Layer), LAYER, &[]),
        member("arm layer", Some(Role::Layer), LAYER, &[]),
        attests("linux/amd64", member("amd proof", child, IMAGE, &["statement"])),
        attests("linux/arm64/v8", member("arm proof", child, IMAGE, &["statement"])),
        Member { of_referrer: true, ..member("statement", Some(Role::Layer), "a/b", &[]) },
        Member { of_referrer: true, ..member("signature", None, IMAGE, &["statement"]) },
    ]
}

fn tree(change: impl Fn(&mut Member)) -> Tree {
    let mut members = members();
    members.iter_mut().for_each(change);
    Tree::new(digest("index"), members)
}

fn without(seed: &str) -> Tree {
    tree(|member| member.present &= member.digest != digest(seed))
}

fn patterns(texts: &[&str]) -> Vec<PlatformPattern> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn set(seeds: &[&str]) -> BTreeSet<Digest> {
    seeds.iter().map(|seed| digest(seed)).collect()
}

const AMD: [&str; 4] = ["index", "amd", "amd config", "shared"];

#[test]
fn what_is_complete_goes_and_what_is_not_stays() {
    let all = tree(|_| {}).choose(&[], true).unwrap();
    assert_eq!(all.platforms, ["linux/amd64", "linux/arm64/v8"]);
    assert_eq!(all.objects.len(), 10, "all but the signature, which is looked at apart");
    for lost in ["arm", "arm config", "arm layer"] {
        let some = without(lost).choose(&[], true).unwrap();
        assert_eq!(some.platforms, ["linux/amd64"], "{lost}");
        let mut wanted = set(&AMD);
        wanted.extend(set(&["amd proof", "statement"]));
        assert_eq!(some.objects, wanted, "{lost}");
        assert_eq!(without(lost).choose(&[], false).unwrap().objects, set(&AMD), "{lost}");
    }
    // An attestation that is not here is nobody's loss.
    let bare = without("statement").choose(&[], true).unwrap();
    assert_eq!((bare.platforms.len(), bare.objects.len()), (2, 7));
}

#[test]
fn a_platform_that_was_named_must_be_complete() {
    let wanted = patterns(&["linux/arm64"]);
    let arm = tree(|_| {}).choose(&wanted, false);
    // The tree was made for the wish, so that all of it is meant; here both are in it.
    assert_eq!(arm.unwrap().platforms.len(), 2);
    let lacks = without("arm layer").choose(&wanted, true).unwrap_err();
    assert_eq!(lacks.len(), 1);
    assert_eq!((lacks[0].state, lacks[0].what.contains("layer")), ("absent", true));
    let lacks = tree(|_| {}).choose(&patterns(&["linux/amd64", "linux/s390x"]), true).unwrap_err();
    assert_eq!((lacks.len(), lacks[0].state), (1, "unknown"));
    assert!(lacks[0].what.contains("linux/s390x"), "{lacks:?}");
}

#[test]
fn what_is_missing_is_told_with_what_is_the_matter() {
    let lacks = without("shared").choose(&[], true).unwrap_err();
    assert_eq!(lacks.len(), 1, "each once: {lacks:?}");
    let damaged = tree(|member| {
        if member.digest == digest("shared") {
            (member.present, member.damaged) = (false, true);
        }
        if member.digest == digest("amd config") {
            (member.present, member.removed) = (false, true);
        }
    });
    let mut states: Vec<_> =
        damaged.choose(&[], true).unwrap_err().into_iter().map(|lack| lack.state).collect();
    states.sort_unstable();
    assert_eq!(states, ["damaged", "removed"]);
    let lacks = without("index").choose(&[], true).unwrap_err();
    assert!(lacks.len() == 1 && lacks[0].what.starts_with("index sha256:"), "{lacks:?}");
    let nothing = Tree::new(digest("index"), Vec::new()).choose(&[], true).unwrap_err();
    assert!(nothing[0].what.starts_with("manifest sha256:"), "{nothing:?}");
}

#[test]
fn what_refers_goes_whole_or_not_at_all() {
    assert_eq!(tree(|_| {}).referrers(), set(&["signature"]));
    let signature = digest("signature");
    let whole = tree(|_| {}).whole(&signature).unwrap();
    assert_eq!(whole.into_iter().collect::<BTreeSet<_>>(), set(&["signature", "statement"]));
    assert_eq!(without("statement").whole(&signature), None);
    assert_eq!(without("signature").whole(&signature), None);
}

#[test]
fn docker_gets_the_platform_that_was_named_or_this_machines() {
    let here = PlatformPattern::of_this_machine().to_string();
    let chosen = |tree: &Tree, wanted: &[&str]| {
        tree.choose(&patterns(wanted), true).unwrap().loadable.map(|image| image.config)
    };
    let wanted = if here == "linux/arm64" { "arm config" } else { "amd config" };
    assert_eq!(chosen(&tree(|_| {}), &[]), Some(digest(wanted)));
    assert_eq!(chosen(&tree(|_| {}), &["linux/arm64"]), Some(digest("arm config")));
    assert_eq!(chosen(&tree(|_| {}), &["linux/arm64", "linux/amd64"]), Some(digest("arm config")));
    assert_eq!(chosen(&without("amd"), &[]), Some(digest("arm config")));
    let image = tree(|_| {}).choose(&patterns(&["linux/amd64"]), true).unwrap().loadable.unwrap();
    assert_eq!(image.layers, [digest("shared"), digest("shared")], "in order, and twice");
    let chart = tree(|member| {
        if member.role == Some(Role::Config) {
            member.media_type = Some("application/vnd.cncf.helm.config.v1+json".parse().unwrap());
        }
    });
    assert_eq!(chosen(&chart, &[]), None);
    let mut foreign = members();
    foreign.retain(|member| member.digest != digest("shared"));
    assert_eq!(chosen(&Tree::new(digest("index"), foreign), &[]), None);
}

#[test]
fn an_image_of_one_platform_is_that_or_refused() {
    let single = || {
        let root = on("linux/amd64", member("amd", None, IMAGE, &["amd config", "shared"]));
        let rest = members()
            .into_iter()
            .filter(|member| member.role == Some(Role::Config) || member.role == Some(Role::Layer));
        Tree::new(digest("amd"), std::iter::once(root).chain(rest).collect())
    };
    assert_eq!(single().choose(&[], true).unwrap().objects, set(&["amd", "amd config", "shared"]));
    assert_eq!(
        single().choose(&patterns(&["linux/amd64"]), true).unwrap().platforms,
        ["linux/amd64"]
    );
    assert_eq!(single().choose(&patterns(&["linux/arm64"]), true).unwrap_err()[0].state, "unknown");
}

#[test]
fn documents_that_point_at_each_other_end() {
    let child = Some(Role::Child);
    let members = vec![
        member("a", None, INDEX, &["b"]),
        member("b", child, INDEX, &["c", "b"]),
        member("c", child, INDEX, &["b"]),
    ];
    let choice = Tree::new(digest("a"), members).choose(&[], true).unwrap();
    assert_eq!(
        (choice.objects, choice.platforms),
        (set(&["a", "b", "c"]), vec!["unknown".to_owned()])
    );
}

#[test]
fn an_index_of_nothing_goes_into_no_bundle() {
    let hollow = || member("hollow", Some(Role::Child), INDEX, &[]);
    let only = Tree::new(digest("hollow"), vec![member("hollow", None, INDEX, &[])]);
    let lack = only.choose(&[], true).unwrap_err();
    assert!(lack[0].what.contains("lists no image"), "{lack:?}");
    assert_eq!(only.whole(&digest("hollow")), None, "nor as what refers to something");

    let mut listed = members();
    listed[0].children.push(digest("hollow"));
    listed.push(hollow());
    let choice = Tree::new(digest("index"), listed).choose(&[], true).unwrap();
    assert!(!choice.objects.contains(&digest("hollow")) && !choice.platforms.is_empty());
}
