//! What a start prints: where it listens, what it serves, where the data is, and what to do next.

use std::net::SocketAddr;

use crate::app::{Config, UpstreamConfig};

/// The lines of a start. The addresses are those that were really bound.
pub(super) fn started(
    config: &Config,
    data: SocketAddr,
    observe: SocketAddr,
    admin: Option<SocketAddr>,
) -> String {
    let mut lines = vec![
        format!("roadstead {}", env!("CARGO_PKG_VERSION")),
        format!("listening on http://{data}"),
        format!("observability on http://{observe}"),
    ];
    if let Some(admin) = admin {
        lines.push(format!("admin API on http://{admin}, behind the token in admin-token"));
    }
    for upstream in &config.upstreams {
        if let Some(address) = upstream.listen {
            lines.push(format!("listening on http://{address} for {} alone", upstream.name));
        }
    }
    let directory = std::path::absolute(&config.data).unwrap_or_else(|_| config.data.clone());
    lines.push(format!("data in {}", directory.display()));
    lines.push(upstreams(config));
    lines.extend(proxies(config));
    if config.offline {
        lines.push("offline: no upstream is asked".to_owned());
    }
    lines.extend(next_steps(data));
    lines.join("\n")
}

/// One line that names all upstreams, the default first, and one before it that names the parent if there is one.
pub(super) fn upstreams(config: &Config) -> String {
    let is_default = |upstream: &&UpstreamConfig| upstream.name == config.default_upstream;
    let first = config.upstreams.iter().filter(is_default);
    let others = config.upstreams.iter().filter(|upstream| !is_default(upstream));
    let names: Vec<String> =
        first.chain(others).map(|upstream| described(upstream, config)).collect();
    let serving = format!("serving {}", names.join(", "));
    match &config.parent {
        Some(parent) => format!("asking {} first\n{serving}", parent.url),
        None => serving,
    }
}

/// What goes through which HTTP proxy, without credentials.
pub(super) fn proxies(config: &Config) -> Vec<String> {
    let own = config.upstreams.iter().filter_map(|upstream| {
        Some(format!("{} through {}", upstream.name, upstream.shown_proxy()?))
    });
    config.system_proxy.lines().into_iter().chain(own).collect()
}

fn described(upstream: &UpstreamConfig, config: &Config) -> String {
    let mut notes = Vec::new();
    if upstream.name == config.default_upstream {
        notes.push("default".to_owned());
    }
    if !upstream.well_known {
        notes.push(format!("at {}", upstream.url));
    }
    if !upstream.mirrors.is_empty() {
        notes.push(format!("after {}", upstream.mirrors.join(" and ")));
    }
    if config.parent.is_some() && upstream.parent.is_none() {
        notes.push("without the parent".to_owned());
    }
    notes.extend(upstream.patterns.iter().map(ToString::to_string));
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
    use crate::app::Parent;

    #[test]
    fn a_start_says_what_a_newcomer_needs() {
        let config = Config { data: "/data".into(), ..Config::default() };
        let text = started(
            &config,
            "127.0.0.1:5000".parse().unwrap(),
            "127.0.0.1:5010".parse().unwrap(),
            None,
        );
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
    fn endpoints_are_named() {
        let mut config = Config::default();
        config
            .upstreams
            .retain(|upstream| ["docker.io", "ghcr.io"].contains(&upstream.name.as_str()));
        config.parent = Some(Parent { url: "http://central:5000".to_owned(), ca_file: None });
        config.upstreams[0].parent.clone_from(&config.parent);
        config.upstreams[0].mirrors =
            vec!["https://m1.example".into(), "https://m2.example".into()];
        assert_eq!(
            upstreams(&config),
            "asking http://central:5000 first\n\
             serving docker.io (default, after https://m1.example and https://m2.example), ghcr.io (without the parent)"
        );
    }

    #[test]
    fn proxies_are_named_without_their_passwords() {
        let mut config = Config::default();
        assert!(proxies(&config).is_empty());
        config.system_proxy.https = Some("http://me:geheim@proxy.example:3128".to_owned());
        config.system_proxy.no_proxy = Some(".corp,10.0.0.0/8".to_owned());
        let own = config.upstreams.iter_mut().find(|own| own.name.as_str() == "ghcr.io").unwrap();
        own.proxy = Some(crate::app::Secret::new("http://you:geheim@other:8080"));
        let lines = proxies(&config);
        assert_eq!(
            lines,
            [
                "https upstreams through http://proxy.example:3128",
                "no proxy for .corp,10.0.0.0/8",
                "ghcr.io through http://other:8080",
            ]
        );
    }

    #[test]
    fn a_listener_on_all_interfaces_does_not_name_itself() {
        let [docker, _] = next_steps("0.0.0.0:5000".parse().unwrap());
        assert!(docker.contains("http://HOST:5000"), "{docker}");
    }
}
