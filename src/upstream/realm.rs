//! Which token service may get our credential.
//!
//! The realm of a challenge is chosen by whoever answers for the registry, so a credential goes there only if the realm is at the
//! registry's own host, within its registrable domain (public suffix list), or was named by the operator. A realm never downgrades
//! https to http, not even for an anonymous token. What addresses a realm may have is the business of `guard.rs`.

use reqwest::Url;

use super::error::Error;

/// The rule of one upstream.
#[derive(Clone, Debug)]
pub(super) struct RealmRule {
    registry: Url,
    /// Hosts, with or without a port, in lower case.
    named: Vec<String>,
}

impl RealmRule {
    pub(super) fn new(registry: &Url, named: &[String]) -> Self {
        Self {
            registry: registry.clone(),
            named: named.iter().map(|host| normalise(host)).collect(),
        }
    }

    /// Was this host named by the operator?
    pub(super) fn names(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else {
            return false;
        };
        let port = url.port_or_known_default().unwrap_or_default();
        let with_port = format!("{host}:{port}");
        self.named.iter().any(|name| *name == host || *name == with_port)
    }

    /// May a token be asked for at `realm`, with our credential or without?
    ///
    /// # Errors
    /// [`Error::Credential`] with a text that names the setting to change.
    pub(super) fn admits(&self, realm: &Url, with_credential: bool) -> Result<(), Error> {
        let host = realm.host_str().unwrap_or_default();
        match realm.scheme() {
            "https" => {}
            "http" if self.registry.scheme() == "http" => {}
            _ => {
                let message =
                    format!("the token service at {host} is not https as its registry is");
                return Err(Error::credential(message));
            }
        }
        if !with_credential || self.is_own(realm) || self.names(realm) {
            return Ok(());
        }
        let registry = self.registry.host_str().unwrap_or_default();
        Err(Error::credential(format!(
            "{registry} sends us to the token service {host}, which does not belong to it; add \"{host}\" to its `realms` if our credential may go there"
        )))
    }

    /// The registry's own host, or one of the same registrable domain under a public suffix that is really on the list: of
    /// `svc.cluster.local` nobody knows where ownership ends.
    fn is_own(&self, realm: &Url) -> bool {
        let (Some(registry), Some(realm)) = (self.registry.domain(), realm.domain()) else {
            // One of them is an IP address: only the same address is the same host.
            return self.registry.host_str() == realm.host_str();
        };
        registry == realm
            || matches!(
                (psl::domain(registry.as_bytes()), psl::domain(realm.as_bytes())),
                (Some(ours), Some(theirs)) if ours.suffix().is_known() && ours.as_bytes() == theirs.as_bytes()
            )
    }
}

/// The host of what an operator may write: a host, a host with a port, or a URL.
fn normalise(text: &str) -> String {
    let text = text.trim().to_ascii_lowercase();
    let text = text.split_once("://").map_or(&*text, |(_scheme, rest)| rest);
    text.split('/').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(registry: &str, realm: &str, named: &[&str]) -> bool {
        let named: Vec<String> = named.iter().map(ToString::to_string).collect();
        let rule = RealmRule::new(&registry.parse().unwrap(), &named);
        rule.admits(&realm.parse().unwrap(), true).is_ok()
    }

    #[test]
    fn a_credential_stays_in_the_family() {
        let cases = [
            ("https://registry-1.docker.io", "https://auth.docker.io/token", true),
            ("https://ghcr.io", "https://ghcr.io/token", true),
            ("https://registry.gitlab.com", "https://gitlab.com/jwt/auth", true),
            ("https://nvcr.io", "https://nvcr.io/proxy_auth", true),
            ("https://nvcr.io", "https://authn.nvidia.com/token", false),
            ("https://registry.redhat.io", "https://sso.redhat.com/x", false),
            ("https://a.github.io", "https://b.github.io/t", false),
            ("https://example.co.uk", "https://evil.co.uk/t", false),
            ("https://r.svc.cluster.local", "https://x.svc.cluster.local/t", false),
            ("https://r.corp", "https://r.corp:8443/t", true),
            ("https://10.0.0.1", "https://10.0.0.2/t", false),
            ("https://10.0.0.1", "https://10.0.0.1:8443/t", true),
            ("https://[fd00::1]", "https://[fd00::1]/t", true),
            ("https://1.2.3.4", "https://evil.example/t", false),
            ("https://ghcr.io", "http://ghcr.io/token", false),
            ("http://r.corp", "https://r.corp/t", true),
            ("http://r.corp", "http://r.corp/t", true),
            ("https://ghcr.io", "ftp://ghcr.io/t", false),
        ];
        for (registry, realm, want) in cases {
            assert_eq!(verdict(registry, realm, &[]), want, "{registry} -> {realm}");
        }
    }

    #[test]
    fn the_operator_may_name_more() {
        let registry = "https://registry.redhat.io";
        let realm = "https://sso.redhat.com/auth/realms/rhcc";
        for named in
            ["sso.redhat.com", "SSO.redhat.com", "https://sso.redhat.com/x", "sso.redhat.com:443"]
        {
            assert!(verdict(registry, realm, &[named]), "{named}");
        }
        for named in ["redhat.com", "sso.redhat.com:8443", ""] {
            assert!(!verdict(registry, realm, &[named]), "{named}");
        }
    }

    #[test]
    fn anonymity_may_go_anywhere_but_down_to_http() {
        let rule = RealmRule::new(&"https://nvcr.io".parse().unwrap(), &[]);
        let foreign = "https://authn.nvidia.com/token".parse().unwrap();
        assert!(rule.admits(&foreign, false).is_ok());
        assert!(rule.admits(&"http://nvcr.io/t".parse().unwrap(), false).is_err());
        let Err(Error::Credential(message)) = rule.admits(&foreign, true) else {
            panic!("must be refused");
        };
        assert!(message.contains("realms") && message.contains("authn.nvidia.com"));
    }
}
