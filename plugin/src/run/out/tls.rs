//! Certificates: whom receivers are believed to be, and who we are.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::super::read::Section;

/// The files of certificates that a section names, as they were read.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Certificates {
    /// Authorities that are believed; none: the system's.
    pub(super) authorities: Option<Vec<u8>>,
    /// Ours and its key.
    own: Option<(Vec<u8>, Vec<u8>)>,
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Certificates") // a key is nobody's business
    }
}

impl Certificates {
    /// `ca-file`, and where a client may have one of its own, `cert-file` and `key-file`.
    pub(super) fn read(section: &mut Section<'_>, own: bool) -> Self {
        let file = |section: &mut Section<'_>, key, expected, is_one: fn(&[u8]) -> bool| {
            let bytes = section.file(key)?;
            if !is_one(&bytes) {
                section.wrong(key, expected);
            }
            Some(bytes)
        };
        let is_certificate = |bytes: &[u8]| certificates(bytes).is_some_and(|found| !found.is_empty());
        let is_key = |bytes: &[u8]| PrivateKeyDer::from_pem_slice(bytes).is_ok();
        let authorities = file(section, "ca-file", "a file with certificates in PEM", is_certificate);
        if !own {
            return Self { authorities, own: None };
        }
        let certificate = file(section, "cert-file", "a file with a certificate in PEM", is_certificate);
        let key = file(section, "key-file", "a file with a private key in PEM", is_key);
        if section.has("cert-file") != section.has("key-file") {
            let (there, missing) =
                if section.has("cert-file") { ("cert-file", "key-file") } else { ("key-file", "cert-file") };
            section.wrong(there, &format!("{missing} beside it"));
        }
        Self { authorities, own: certificate.zip(key) }
    }

    /// What a connection needs.
    pub(super) fn client(&self) -> Result<Arc<ClientConfig>, String> {
        let mut roots = RootCertStore::empty();
        match &self.authorities {
            Some(pem) => roots.add_parsable_certificates(certificates(pem).unwrap_or_default()),
            None => roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
        };
        if roots.is_empty() {
            return Err("no certificate authority is known: install ca-certificates, or set ca-file".into());
        }
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let wrong = |error: &dyn std::fmt::Display| format!("cert-file and key-file: {error}");
        let config = match &self.own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| wrong(&error))?;
                let chain = certificates(certificate).unwrap_or_default();
                builder.with_client_auth_cert(chain, key).map_err(|error| wrong(&error))?
            }
        };
        Ok(Arc::new(config))
    }
}

fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().ok()
}
