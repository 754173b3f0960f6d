//! Tables and properties of the reader of request paths.

use proptest::prelude::*;

use super::*;
use crate::corpus as reader;
use crate::oci::RepositoryName;

const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn get<'a>(path: &'a str, query: &'a str) -> Result<Asked<'a>, RouteError> {
    parse(&Method::GET, path, Some(query), &Limits::default())
}

fn route(path: &str) -> Result<Route<'_>, RouteError> {
    get(path, "").map(|asked| asked.route)
}

fn whole(raw: &str) -> Result<String, RouteError> {
    let limits = Limits::default();
    let path = decode_path(raw, &limits)?;
    parse(&Method::GET, &path, None, &limits).map(|asked| format!("{asked:?}"))
}

fn manifest<'a>(path: &'a str, reference: &str) -> Route<'a> {
    Route::Manifest { path, reference: reference.parse().unwrap() }
}

#[test]
fn pings_in_all_their_forms() {
    for path in ["/v2", "/v2/"] {
        assert_eq!(route(path), Ok(Route::Ping { prefix: None }), "{path}");
    }
    for path in ["/v2/docker.io", "/v2/docker.io/"] {
        let prefix = Some("docker.io");
        assert_eq!(route(path), Ok(Route::Ping { prefix }), "{path}");
    }
    for path in ["/p/v2", "/p/v2/"] {
        let asked = get(path, "").unwrap();
        assert_eq!(asked.mount, Some("p"), "{path}");
        assert_eq!(asked.route, Route::Ping { prefix: None }, "{path}");
    }
    let asked = get("/v2/", "ns=localhost%3A5001&x=y").unwrap();
    assert_eq!(asked.ns.as_deref(), Some("localhost:5001"));
    assert_eq!(get("/v2/", "ns=&n=1").unwrap().ns, None);
}

#[test]
fn health_is_found_and_unknown_paths_are_not() {
    assert_eq!(route("/livez"), Ok(Route::Health(Health::Live)));
    assert_eq!(route("/healthz"), Ok(Route::Health(Health::Live)));
    assert_eq!(route("/readyz"), Ok(Route::Health(Health::Ready)));
    for path in [
        "",
        "/",
        "*",
        "/index.html",
        "/v1/_ping",
        "/v1/search",
        "/v3/",
        "/v2x/",
        "/xv2/a/tags/list",
        "//v2/",
        "/extensions/a/signatures/x",
        "/metrics",
    ] {
        assert_eq!(route(path), Err(RouteError::NotFound), "{path}");
    }
}

#[test]
fn reads_of_a_repository() {
    let digest: Digest = D.parse().unwrap();
    assert_eq!(route("/v2/nginx/manifests/latest"), Ok(manifest("nginx", "latest")));
    assert_eq!(route("/v2/ghcr.io/o/r/manifests/v1"), Ok(manifest("ghcr.io/o/r", "v1")));
    let path = format!("/v2/localhost:5001/a/manifests/{D}");
    assert_eq!(route(&path), Ok(manifest("localhost:5001/a", D)));
    let path = format!("/v2/a/b/blobs/{D}");
    assert_eq!(route(&path), Ok(Route::Blob { path: "a/b", digest }));
    let path = format!("/v2/a/manifests/v1/{D}");
    let tag = "v1".parse().unwrap();
    assert_eq!(route(&path), Ok(Route::TaggedManifest { path: "a", tag, digest }));
    let path = format!("/p/q/v2/a/referrers/{D}");
    let asked = get(&path, "artifactType=application%2Fvnd.x%2Bjson&artifactType=b").unwrap();
    assert_eq!(asked.mount, Some("p/q"));
    let artifact_type = Some("application/vnd.x+json".into());
    assert_eq!(asked.route, Route::Referrers { path: "a", digest, artifact_type });
}

#[test]
fn names_that_look_like_operations_are_read_from_the_right() {
    let digest: Digest = D.parse().unwrap();
    for name in [
        "manifests",
        "a/manifests/b",
        "blobs/uploads",
        "a/tags/list",
        "v2",
        "x/v2/y",
        "a/blobs",
        "referrers/x",
        "_catalog/a",
    ] {
        let path = format!("/v2/{name}/manifests/latest");
        assert_eq!(route(&path), Ok(manifest(name, "latest")));
        let path = format!("/v2/{name}/blobs/{D}");
        assert_eq!(route(&path), Ok(Route::Blob { path: name, digest }));
        let path = format!("/v2/{name}/tags/list");
        let page = PageAsked::default();
        assert_eq!(route(&path), Ok(Route::Tags { path: name, page }));
    }
    // The repository `a/manifests` by digest, not the tag `manifests` of `a`.
    let path = format!("/v2/a/manifests/manifests/{D}");
    assert_eq!(route(&path), Ok(manifest("a/manifests", D)));
}

#[test]
fn writes_have_no_path_here() {
    let limits = Limits::default();
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "BREW"] {
        let method: Method = method.parse().unwrap();
        for path in ["/v2/", "/v2/a/manifests/x", "/v2/a/blobs/uploads/", "*", ""] {
            if method == Method::DELETE && path == "/v2/a/manifests/x" {
                continue;
            }
            assert_eq!(parse(&method, path, None, &limits), Err(RouteError::Method));
        }
    }
    for path in ["/v2/a/blobs/uploads", "/v2/a/blobs/uploads/", "/v2/a/b/blobs/uploads/7-b_c"] {
        assert_eq!(route(path), Err(RouteError::Method), "{path}");
    }
}

#[test]
fn manifests_alone_can_be_asked_to_go() {
    fn delete(path: &str) -> Result<Asked<'_>, RouteError> {
        parse(&Method::DELETE, path, None, &Limits::default())
    }
    for path in [
        "/v2/a/manifests/x".to_owned(),
        format!("/v2/a/manifests/{D}"),
        format!("/m/v2/a/manifests/x/{D}"),
    ] {
        let read = get(&path, "").unwrap();
        assert!(!read.deletes);
        assert_eq!(delete(&path), Ok(Asked { deletes: true, ..read }), "{path}");
    }
    for path in [
        format!("/v2/a/blobs/{D}"),
        format!("/v2/a/referrers/{D}"),
        "/v2/a/tags/list".to_owned(),
        "/v2/_catalog".to_owned(),
        "/livez".to_owned(),
        "/v2/a/manifests/-".to_owned(),
        "/v2/a/manifests/sha256:00".to_owned(),
    ] {
        assert_eq!(delete(&path), Err(RouteError::Method), "{path}");
    }
}

#[test]
fn pages_take_any_number_and_nothing_else() {
    let page = |query: &str| match get("/v2/_catalog", query)?.route {
        Route::Catalog { page } => Ok((page.n, page.last)),
        other => panic!("{other:?}"),
    };
    assert_eq!(page(""), Ok((None, None)));
    assert_eq!(page("n=0"), Ok((Some(0), None)));
    assert_eq!(page("n=&last="), Ok((None, None)));
    assert_eq!(page("last=a%2Fb&n=7&n=x"), Ok((Some(7), Some("a/b".into()))));
    assert_eq!(page("n=99999999999999999999999"), Ok((Some(u64::MAX), None)));
    for bad in ["n=-1", "n=+1", "n=1.5", "n=x", "n=0x10", "n=%20", "n=%31x"] {
        assert_eq!(page(bad), Err(RouteError::Page), "{bad}");
    }
    for bad in ["n=%", "n=%1", "last=%00", "last=%0a", "last=%ff", "ns=%zz"] {
        assert_eq!(page(bad), Err(RouteError::Malformed), "{bad}");
    }
    assert_eq!(page("unknown=%zz%00"), Ok((None, None)));
}

#[test]
fn bad_names_tags_and_digests_have_their_own_errors() {
    let long_tag = format!("/v2/a/manifests/{}", "x".repeat(129));
    let cases = [
        ("/v2/manifests/latest", RouteError::Name),
        ("/v2//manifests/latest", RouteError::Name),
        ("/v2/a//b/manifests/latest", RouteError::Name),
        ("/v2/../manifests/latest", RouteError::Name),
        ("/v2/a/./b/tags/list", RouteError::Name),
        ("/v2/a b/tags/list", RouteError::Name),
        ("/v2/a\u{e9}/tags/list", RouteError::Name),
        ("/v2//", RouteError::Name),
        ("/v2/a/manifests/.x", RouteError::Tag),
        (&*long_tag, RouteError::Tag),
        ("/v2/a/manifests/-x/sha256:00", RouteError::Tag),
        ("/v2/a/manifests/v1/sha256:00", RouteError::Digest),
        ("/v2/a/manifests/sha256:00", RouteError::Digest),
        ("/v2/a/manifests/md5:d41d8cd98f00b204e9800998ecf8427e", RouteError::Digest),
        ("/v2/a/blobs/latest", RouteError::Digest),
        ("/v2/a/blobs/sha256:../../etc", RouteError::Name),
        ("/v2/a/referrers/x", RouteError::Digest),
        ("/../v2/", RouteError::NotFound),
    ];
    for (path, error) in cases {
        assert_eq!(route(path), Err(error), "{path}");
    }
    let long = format!("/v2/{}/tags/list", "a/".repeat(300) + "a");
    assert_eq!(route(&long), Err(RouteError::Name));
}

#[test]
fn encoding_is_undone_once_and_only_where_it_is_harmless() {
    assert_eq!(
        whole(
            "/v2/%61lpine/manifests/sha256%3Ae3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        ),
        whole(&format!("/v2/alpine/manifests/{D}"))
    );
    for bad in [
        "/v2/a%2fb/tags/list",
        "/v2/a%2Fb/tags/list",
        "/v2/%2e%2e/tags/list",
        "/v2/a%00/tags/list",
        "/v2/a%/tags/list",
        "/v2/a%2/tags/list",
        "/v2/a%zz/tags/list",
        "/v2/a%252f/tags/list",
        "/v2/a%0d%0a/tags/list",
        "/v2/a%c3%a9/tags/list",
        "/v2/a%5cb/tags/list",
        "/v2/a%ff/tags/list",
        "/%76%32%2f",
    ] {
        assert_eq!(whole(bad), Err(RouteError::Malformed), "{bad}");
    }
}

#[test]
fn length_has_a_limit() {
    let limits = Limits::default();
    assert_eq!(decode_path(&"/a".repeat(2000), &limits), Err(RouteError::TooLong));
    let query = "x=".repeat(3000);
    assert_eq!(get("/v2/", &query), Err(RouteError::QueryTooLong));
}

fn component() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}",
        prop::sample::select(vec![
            "manifests",
            "blobs",
            "tags",
            "list",
            "uploads",
            "referrers",
            "v2"
        ])
        .prop_map(str::to_owned),
    ]
}

proptest! {
    #[test]
    fn any_legal_name_and_reference_comes_back(
        components in prop::collection::vec(component(), 1..5),
        tag in "[A-Za-z0-9_][A-Za-z0-9._-]{0,20}",
        mount in prop::option::of("[a-uw-z][a-z0-9]{0,5}"),
    ) {
        let name = components.join("/");
        prop_assert!(name.parse::<RepositoryName>().is_ok());
        let prefix = mount.as_deref().map_or(String::new(), |mount| format!("/{mount}"));
        let digest: Digest = D.parse().unwrap();
        let cases = [
            (format!("manifests/{tag}"), manifest(&name, &tag)),
            (format!("manifests/{D}"), manifest(&name, D)),
            (format!("blobs/{D}"), Route::Blob { path: &name, digest }),
            ("tags/list".to_owned(), Route::Tags { path: &name, page: PageAsked::default() }),
            (format!("referrers/{D}"), Route::Referrers { path: &name, digest, artifact_type: None }),
        ];
        for (tail, wanted) in cases {
            let path = format!("{prefix}/v2/{name}/{tail}");
            let asked = get(&path, "").unwrap();
            prop_assert_eq!(asked.mount, mount.as_deref());
            prop_assert_eq!(asked.route, wanted);
        }
    }

    #[test]
    fn nothing_makes_it_panic_and_nothing_illegal_comes_out(path in "/(v2/)?\\PC{0,60}", query in "\\PC{0,40}") {
        let limits = Limits::default();
        if let Ok(decoded) = decode_path(&path, &limits)
            && let Ok(asked) = parse(&Method::GET, &decoded, Some(&query), &limits)
        {
            let path = match &asked.route {
                Route::Manifest { path, .. } | Route::TaggedManifest { path, .. } | Route::Blob { path, .. }
                | Route::Tags { path, .. } | Route::Referrers { path, .. } => Some(*path),
                Route::Ping { prefix } => *prefix,
                Route::Health(_) | Route::Catalog { .. } => None,
            };
            for path in path.into_iter().chain(asked.mount) {
                prop_assert!(!path.is_empty() && path.is_ascii() && !path.contains("//") && !path.contains(['%', '\\', ' ']));
                prop_assert!(path.split('/').all(|component| component != ".." && component != "."));
            }
        }
    }

    #[test]
    fn any_bytes_after_an_operation_are_refused_or_legal(text in "[ -~]{1,80}") {
        let path = format!("/v2/a/blobs/{text}");
        if let Ok(Route::Blob { digest, .. }) = route(&path) {
            prop_assert!(path.ends_with(&digest.to_string()));
        }
    }
}

/// A target as hyper hands it over; gives the request again, written from what was understood.
fn understood(target: &str) -> Result<String, RouteError> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let limits = Limits::default();
    let path = decode_path(path, &limits)?;
    let asked = parse(&Method::GET, &path, Some(query), &limits)?;
    let (name, rest) = match &asked.route {
        Route::Health(Health::Live) => return Ok("/livez".to_owned()),
        Route::Health(Health::Ready) => return Ok("/readyz".to_owned()),
        Route::Ping { prefix: None } => ("", String::new()),
        Route::Ping { prefix: Some(prefix) } => (*prefix, "/".to_owned()),
        Route::Catalog { .. } => ("_catalog", String::new()),
        Route::Manifest { path, reference } => (*path, format!("/manifests/{reference}")),
        Route::TaggedManifest { path, tag, digest } => {
            (*path, format!("/manifests/{tag}/{digest}"))
        }
        Route::Blob { path, digest } => (*path, format!("/blobs/{digest}")),
        Route::Tags { path, .. } => (*path, "/tags/list".to_owned()),
        Route::Referrers { path, digest, .. } => (*path, format!("/referrers/{digest}")),
    };
    let mount = asked.mount.map(|mount| format!("/{mount}")).unwrap_or_default();
    Ok(format!("{mount}/v2/{name}{rest}"))
}

#[test]
fn targets_of_the_corpus() {
    reader::walk("route", |bytes| {
        reader::accepted(understood(&String::from_utf8_lossy(bytes)).is_ok())
    });
}

proptest! {
    #[test]
    fn what_is_understood_is_clean_and_comes_back(bytes in reader::mutated("route")) {
        let target = String::from_utf8_lossy(&bytes);
        if let Ok(clean) = understood(&target) {
            let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-:".contains(&byte);
            prop_assert!(clean.bytes().all(legal), "{clean}");
            prop_assert!(clean.split('/').skip(1).all(|part| !matches!(part, "." | "..")), "{clean}");
            prop_assert_eq!(understood(&clean), Ok(clean.clone()));
        }
    }
}

#[test]
fn what_is_spotted_is_what_is_read() {
    let limits = Limits::default();
    let digest = format!("/v2/ghcr.io/o/r/manifests/{D}");
    let spotted = [
        ("/v2/nginx/manifests/latest", ""),
        ("/v2/docker.io/library/nginx/manifests/v1.2_3-x", "ns=docker.io"),
        ("/p/v2/a/manifests/b", "x=y&ns=ghcr.io"),
        ("/v2/a/manifests/manifests/latest", ""),
        (digest.as_str(), "ns=localhost%3A5001"),
    ];
    for (path, query) in spotted {
        let found = spot_manifest(&Method::GET, path, Some(query), &limits).expect(path);
        let asked = get(path, query).unwrap();
        assert_eq!((found.mount, &found.ns), (asked.mount, &asked.ns), "{path}");
        assert_eq!(asked.route, manifest(found.path, found.reference), "{path}");
    }
    let tagged = format!("/v2/a/manifests/latest/{D}");
    let long = format!("/v2/{}/manifests/b", "a".repeat(limits.path_bytes));
    let others = [
        (Method::GET, "/v2/a/manifests/lat%65st", ""),
        (Method::GET, "/v2/manifests/latest", ""),
        (Method::GET, "/v2/a/manifests/", ""),
        (Method::GET, "/v2/a/blobs/b", ""),
        (Method::GET, "/v2/", ""),
        (Method::GET, "/livez", ""),
        (Method::PUT, "/v2/a/manifests/latest", ""),
        (Method::GET, "/v2/a/manifests/latest", "ns=%zz"),
        (Method::GET, tagged.as_str(), ""),
        (Method::GET, long.as_str(), ""),
    ];
    for (method, path, query) in others {
        assert_eq!(spot_manifest(&method, path, Some(query), &limits), None, "{method} {path}");
    }
}
