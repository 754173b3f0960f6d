//! Who is asking, as far as it changes the answer: the client's family, told from `User-Agent` and `ns`, and whether it has another
//! source to turn to.
//!
//! Nothing here is trusted for access: a client that lies about itself only gets an answer that suits it less.

use http::HeaderMap;
use http::header::{RANGE, USER_AGENT};

/// Families of clients whose failure rules differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Agent {
    /// dockerd with graph drivers: on a blob it waits out 5xx for a minute, and never sends `ns`.
    DockerClassic,
    /// dockerd with the containerd image store.
    DockerContainerd,
    /// containerd, nerdctl, BuildKit, k3s.
    Containerd,
    /// podman, skopeo, buildah, CRI-O.
    ContainersImage,
    /// The SOCI snapshotter, which waits three seconds for headers.
    Soci,
    /// stargz, nydus and overlaybd: ranged reads of a running container.
    Lazy,
    Other,
}

/// The part of a request's origin that the reply table looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) agent: Agent,
    /// When we refuse, does the client ask another host?
    pub(super) has_fallback: bool,
}

impl Agent {
    /// Reads the first `User-Agent` header.
    pub(super) fn of(headers: &HeaderMap, ns_given: bool) -> Self {
        match headers.get(USER_AGENT) {
            // nydusd does not name itself; hardly anybody else sends ranges without a name.
            None if headers.contains_key(RANGE) => Self::Lazy,
            None => Self::Other,
            Some(value) => Self::parse(value.to_str().unwrap_or_default(), ns_given),
        }
    }

    fn parse(text: &str, ns_given: bool) -> Self {
        let starts = |prefix: &str| {
            text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        };
        if starts("docker/") {
            // The containerd image store names itself behind the common part; the classic one never sends `ns`.
            if ns_given || text.contains("containerd-client/") || text.contains("storage-driver/") {
                Self::DockerContainerd
            } else {
                Self::DockerClassic
            }
        } else if starts("soci") {
            Self::Soci
        } else if starts("stargz") || starts("nydus") || starts("overlaybd") {
            Self::Lazy
        } else if ["containerd/", "buildkit/", "nerdctl/", "k3s/", "rke2/"].into_iter().any(starts)
        {
            Self::Containerd
        } else if text.contains("containers/image")
            || ["containers/", "skopeo/", "buildah/", "podman/", "libpod/", "cri-o/"]
                .into_iter()
                .any(starts)
        {
            Self::ContainersImage
        } else {
            Self::Other
        }
    }

    /// Is this a client that is configured with mirrors in front of the upstream, whatever name it asks for?
    pub(super) fn is_mirror_client(self) -> bool {
        matches!(self, Self::ContainersImage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_agents_are_told_apart() {
        let classic = "docker/20.10.24 go/go1.19.8 git-commit/5d6db84 kernel/6.1 os/linux arch/amd64 UpstreamClient(Docker-Client/20.10.24 \\(linux\\))";
        let contained = "docker/29.1 go/go1.25 containerd-client/2.1 storage-driver/overlayfs";
        let cases = [
            (classic, false, Agent::DockerClassic),
            (classic, true, Agent::DockerContainerd),
            (contained, false, Agent::DockerContainerd),
            ("containerd/1.6.20~ds1", true, Agent::Containerd),
            ("buildkit/0.25", true, Agent::Containerd),
            ("containers/5.24.1 (github.com/containers/image)", false, Agent::ContainersImage),
            ("skopeo/1.9.3", false, Agent::ContainersImage),
            ("Buildah/1.28.2", false, Agent::ContainersImage),
            ("cri-o/1.30", false, Agent::ContainersImage),
            ("soci-snapshotter/0.11", false, Agent::Soci),
            ("nydus-snapshotter", false, Agent::Lazy),
            ("crane/0.20 go-containerregistry/0.20", false, Agent::Other),
            ("", false, Agent::Other),
            ("d\u{f6}cker/1", false, Agent::Other),
        ];
        for (text, ns, agent) in cases {
            assert_eq!(Agent::parse(text, ns), agent, "{text}");
        }
    }
}
