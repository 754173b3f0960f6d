//! What a start prints: where it listens, what it serves, where the data is, and what to do next.

use std::net::SocketAddr;

use crate::app::{Config, UpstreamConfig};

/// The lines of a start. The first two addresses are those that were really bound.
pub(super) fn started(config: &Config, data: SocketAddr, observe: SocketAddr) -> String {
    let mut lines = vec![
        format!("roadstead {}", env!("CARGO_PKG_VERSION")),
        format!("listening on http://{data}"),
        format!("observability on http://{observe}"),
    ];
    for upstream in &config.upstreams {
        if let Some(address) = upstream.listen {
            lines.push(format!("listening on http://{address} for {} alone", upstream.name));
        }
    }
    let directory = std::path::absolute(&config.data).unwrap_or_else(|_| config.data.clone());
    lines.push(format!("data in {}", directory.display()));
    lines.push(upstreams(config));
    if config.offline {
        lines.push("offline: no upstream is asked".to_owned());
    }
    lines.extend(next_steps(data));
    lines.join("\n")
}

/// One line that names all upstreams, the default first.
pub(super) fn upstreams(config: &Config) -> String {
    let is_default = |upstream: &&UpstreamConfig| upstream.name == config.default_upstream;
    let first = config.upstreams.iter().filter(is_default);
    let others = config.upstreams.iter().filter(|upstream| !is_default(upstream));
    let names: Vec<String> =
        first.chain(others).map(|upstream| described(upstream, config)).collect();
    format!("serving {}", names.join(", "))
}

fn described(upstream: &UpstreamConfig, config: &Config) -> String {
    let mut notes = Vec::new();
    if upstream.name == config.default_upstream {
        notes.push("default".to_owned());
    }
    if !upstream.well_known {
        notes.push(format!("at {}", upstream.url));
    }
    notes.extend(upstream.patterns.iter().cloned());
    if notes.is_empty() {
        upstream.name.to_string()
    } else {
        format!("{} ({})", upstream.name, notes.join(", "))
    }
}

fn next_steps(data: SocketAddr) -> [String; 2] {
    // A listener on all interfaces has no address of its own to give.
    let host =
        if data.ip().is_unspecified() { format!("HOST:{}", data.port()) } else { data.to_string() };
    [
        format!(
            "docker: put {{\"registry-mirrors\": [\"http://{host}\"]}} into /etc/docker/daemon.json, then `systemctl reload docker`"
        ),
        format!(
            "other registries: `docker pull {host}/ghcr.io/OWNER/IMAGE`; README.md has containerd, podman, BuildKit and k3s"
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_says_what_a_newcomer_needs() {
        let config = Config { data: "/data".into(), ..Config::default() };
        let text =
            started(&config, "127.0.0.1:5000".parse().unwrap(), "127.0.0.1:5010".parse().unwrap());
        insta::assert_snapshot!(text.replacen(env!("CARGO_PKG_VERSION"), "VERSION", 1), @r#"
        roadstead VERSION
        listening on http://127.0.0.1:5000
        observability on http://127.0.0.1:5010
        data in /data
        serving docker.io (default), cgr.dev, docker.elastic.co, gcr.io (*.gcr.io), ghcr.io, mcr.microsoft.com, nvcr.io, pkg.dev (*.pkg.dev), public.ecr.aws, quay.io, registry.access.redhat.com, registry.gitlab.com, registry.k8s.io, registry.redhat.io
        docker: put {"registry-mirrors": ["http://127.0.0.1:5000"]} into /etc/docker/daemon.json, then `systemctl reload docker`
        other registries: `docker pull 127.0.0.1:5000/ghcr.io/OWNER/IMAGE`; README.md has containerd, podman, BuildKit and k3s
        "#);
    }

    #[test]
    fn a_listener_on_all_interfaces_does_not_name_itself() {
        let [docker, _] = next_steps("0.0.0.0:5000".parse().unwrap());
        assert!(docker.contains("http://HOST:5000"), "{docker}");
    }
}
