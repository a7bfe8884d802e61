//! Certificate and key, from PEM files. Owns the pair in use; a connection keeps the one that it began with.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject as _},
};
use thiserror::Error;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{self, ServerConfig, crypto::ring},
};

/// Why TLS cannot be spoken.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {what} from {}: {source}", path.display())]
    Pem {
        /// What was looked for.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why there is none.
        source: pem::Error,
    },
    /// No certificate in the file.
    #[error("there is no certificate in {}: it has to hold the chain as PEM, the server's own first", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// They do not fit.
    #[error("cannot use the certificate in {} with the key in {}: {source}", certificate.display(), key.display())]
    Unusable {
        /// File of the chain.
        certificate: PathBuf,
        /// File of the key.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// TLS 1.2 and 1.3 with a certificate chain and its key.
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    acceptor: RwLock<TlsAcceptor>,
}

impl Tls {
    /// With the pair that is in these files.
    ///
    /// # Errors
    /// [`TlsError`]: a file cannot be read, or they are not of a pair.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        Ok(Self {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            acceptor: RwLock::new(acceptor(certificate, key)?),
        })
    }

    /// Takes the pair that is in the files for connections from here on. Blocking.
    ///
    /// # Errors
    /// As [`Tls::load`]: the pair before stays in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        let acceptor = acceptor(&self.certificate, &self.key)?;
        *self.acceptor.write().unwrap_or_else(PoisonError::into_inner) = acceptor;
        Ok(())
    }

    /// The pair in use.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    let unread = |what, path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Pem { what, path, source }
    };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(unread("certificates", certificate))?;
    if chain.is_empty() {
        return Err(TlsError::Empty {
            path: certificate.to_owned(),
        });
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(unread("a private key", key))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private))
        .map_err(|source| TlsError::Unusable {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            source,
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn certificate_and_key_have_to_fit() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let made = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (one, another) = (made(), made());
        let certificate = file("one.pem", &one.cert.pem());
        let key = file("one.key", &one.signing_key.serialize_pem());
        let other_key = file("another.key", &another.signing_key.serialize_pem());
        assert!(acceptor(&certificate, &key).is_ok());
        assert!(matches!(
            acceptor(&certificate, &other_key),
            Err(TlsError::Unusable { .. })
        ));
        assert!(matches!(acceptor(&key, &key), Err(TlsError::Empty { .. })));
        assert!(matches!(
            acceptor(&certificate, &certificate),
            Err(TlsError::Pem { .. })
        ));
        let missing = folder.path().join("missing");
        let error = acceptor(&missing, &key).err().unwrap().to_string();
        assert!(error.starts_with("cannot read certificates from "), "{error}");
    }
}
