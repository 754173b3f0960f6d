//! The test CA and the certificate of the fake's loopback addresses, made once per process.

use std::sync::{Arc, OnceLock};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

struct Pki {
    ca_pem: String,
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

fn pki() -> &'static Pki {
    static PKI: OnceLock<Pki> = OnceLock::new();
    PKI.get_or_init(|| {
        let ca_key = KeyPair::generate().expect("a key can be made");
        let mut ca = CertificateParams::new(Vec::<String>::new()).expect("no names to be wrong");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca_certificate = ca.self_signed(&ca_key).expect("the CA signs itself");
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate().expect("a key can be made");
        let names = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "localhost"].map(str::to_owned);
        let leaf = CertificateParams::new(names).expect("these names are valid");
        let certificate = leaf.signed_by(&key, &issuer).expect("the CA signs");
        Pki {
            ca_pem: ca_certificate.pem(),
            certificate: certificate.der().clone(),
            key: key.serialize_der(),
        }
    })
}

/// The CA's certificate, for `ca_file`.
pub fn ca_pem() -> &'static str {
    &pki().ca_pem
}

pub(super) fn acceptor(h2: bool) -> TlsAcceptor {
    let pki = pki();
    let key = PrivateKeyDer::try_from(pki.key.clone()).expect("rcgen writes PKCS#8");
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions")
        .with_no_client_auth()
        .with_single_cert(vec![pki.certificate.clone()], key)
        .expect("certificate and key belong together");
    config.alpn_protocols =
        if h2 { vec![b"h2".to_vec(), b"http/1.1".to_vec()] } else { vec![b"http/1.1".to_vec()] };
    TlsAcceptor::from(Arc::new(config))
}
