//! The registries that work without configuration, with what is peculiar to each, as data.
//!
//! A table of the operator is merged over the entry of the same name. Hosts that blobs are redirected to are not listed: they change
//! without notice, get no credential, and need no permission.

/// One registry that everybody knows.
#[derive(Debug)]
pub(super) struct WellKnown {
    pub(super) name: &'static str,
    pub(super) url: &'static str,
    /// Other names of the same registry.
    pub(super) aliases: &'static [&'static str],
    /// Families of hosts, each of which is a registry of its own.
    pub(super) patterns: &'static [&'static str],
    /// Token services on hosts that are not the registry's own.
    pub(super) realms: &'static [&'static str],
    /// Names of one component mean `library/<name>`.
    pub(super) library: bool,
}

const PLAIN: WellKnown =
    WellKnown { name: "", url: "", aliases: &[], patterns: &[], realms: &[], library: false };

/// Sorted by name.
pub(super) const WELL_KNOWN: [WellKnown; 14] = [
    WellKnown { name: "cgr.dev", url: "https://cgr.dev", ..PLAIN },
    WellKnown {
        name: "docker.elastic.co",
        url: "https://docker.elastic.co",
        realms: &["docker-auth.elastic.co"],
        ..PLAIN
    },
    // Three names of one registry: the second is the key of its credentials in docker's config.json, the third is where it lives.
    WellKnown {
        name: "docker.io",
        url: "https://registry-1.docker.io",
        aliases: &["index.docker.io", "registry-1.docker.io"],
        realms: &["auth.docker.io"],
        library: true,
        ..PLAIN
    },
    // The regional hosts (us.gcr.io, eu.gcr.io, asia.gcr.io) hold other content under the same names.
    WellKnown { name: "gcr.io", url: "https://gcr.io", patterns: &["*.gcr.io"], ..PLAIN },
    WellKnown { name: "ghcr.io", url: "https://ghcr.io", ..PLAIN },
    WellKnown { name: "mcr.microsoft.com", url: "https://mcr.microsoft.com", ..PLAIN },
    // The API keys of NGC are exchanged at another domain.
    WellKnown { name: "nvcr.io", url: "https://nvcr.io", realms: &["authn.nvidia.com"], ..PLAIN },
    // Google Artifact Registry: one host per location, all of one owner.
    WellKnown { name: "pkg.dev", url: "https://pkg.dev", patterns: &["*.pkg.dev"], ..PLAIN },
    // A blob HEAD is always refused there; the client falls back to GET.
    WellKnown { name: "public.ecr.aws", url: "https://public.ecr.aws", ..PLAIN },
    WellKnown { name: "quay.io", url: "https://quay.io", ..PLAIN },
    WellKnown {
        name: "registry.access.redhat.com",
        url: "https://registry.access.redhat.com",
        ..PLAIN
    },
    WellKnown {
        name: "registry.gitlab.com",
        url: "https://registry.gitlab.com",
        realms: &["gitlab.com"],
        ..PLAIN
    },
    // The frozen k8s.gcr.io redirects here, path by path, since 2023.
    WellKnown {
        name: "registry.k8s.io",
        url: "https://registry.k8s.io",
        aliases: &["k8s.gcr.io"],
        ..PLAIN
    },
    WellKnown {
        name: "registry.redhat.io",
        url: "https://registry.redhat.io",
        realms: &["sso.redhat.com"],
        ..PLAIN
    },
];

/// The entry of a name, by its name alone.
pub(super) fn well_known(name: &str) -> Option<&'static WellKnown> {
    WELL_KNOWN.iter().find(|entry| entry.name == name)
}
