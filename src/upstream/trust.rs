//! Whom TLS trusts: the authorities of the system, or the well-known ones where the system has none (an image without a CA bundle),
//! and those of the upstream's `ca_file`.
//!
//! What must hold: the system's are read once per process, and not by the runtime's workers; a `ca_file` that cannot be used is told
//! when the upstream is set up, not when it is first asked.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio_util::task::TaskTracker;

use super::error::BuildError;

/// TLS with the system's authorities and `more`; HTTP/2 is offered first. Blocks the first time.
pub(super) fn client_config(
    more: &[CertificateDer<'static>],
) -> Result<rustls::ClientConfig, String> {
    let mut roots = Arc::clone(system_roots());
    for authority in more {
        let added = Arc::make_mut(&mut roots).add(authority.clone());
        added.map_err(|error| error.to_string())?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The certificates of a PEM file. Blocks.
///
/// # Errors
/// [`BuildError::CaFile`] if it cannot be read, or holds none or one that is no authority.
pub(super) fn authorities_in(path: &Path) -> Result<Vec<CertificateDer<'static>>, BuildError> {
    let refused = |reason: String| BuildError::CaFile { path: path.to_owned(), reason };
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let certificates: Vec<CertificateDer<'static>> =
        certificates.map_err(|error| refused(error.to_string()))?;
    if certificates.is_empty() {
        return Err(refused("holds no certificate in PEM".into()));
    }
    let mut trial = RootCertStore::empty();
    for certificate in &certificates {
        let added = trial.add(certificate.clone());
        added.map_err(|error| refused(error.to_string()))?;
    }
    Ok(certificates)
}

/// Begins to read the system's authorities, so that the first request does not wait for them. Without a runtime they are read then.
pub(super) fn read_ahead(tasks: &TaskTracker) {
    static BEGUN: AtomicBool = AtomicBool::new(false);
    if tokio::runtime::Handle::try_current().is_ok() && !BEGUN.swap(true, Ordering::Relaxed) {
        tasks.spawn_blocking(|| system_roots().len());
    }
}

fn system_roots() -> &'static Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut store = RootCertStore::empty();
        // One broken certificate among the system's is no reason to trust none.
        let found = rustls_native_certs::load_native_certs();
        let (_added, _ignored) = store.add_parsable_certificates(found.certs);
        if store.is_empty() {
            let known = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned();
            let (_added, _ignored) = store.add_parsable_certificates(known);
        }
        Arc::new(store)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_always_somebody_to_trust() {
        assert!(!system_roots().is_empty());
        assert!(client_config(&[]).is_ok());
    }
}
