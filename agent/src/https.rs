//! Asking servers elsewhere over HTTP: a client that follows no redirect and keeps no connection, and answers of bounded size.
//!
//! Owns nothing: a client belongs to who made it. Proxies of the environment are not used. Bounds no time: the caller does.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    pki_types::{CertificateDer, pem::PemObject as _},
};

/// Who asks, for `User-Agent`.
pub(crate) const USER_AGENT: &str = concat!("vmstation-autosleep/", env!("CARGO_PKG_VERSION"));
/// A server that is silent for so long on an open connection is asked by the kernel whether it is still there (tcp(7)) ..
const KEEPALIVE: Duration = Duration::from_secs(60);
/// .. again after this time ..
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// .. and so often.
const KEEPALIVE_RETRIES: u32 = 3;
/// Most bytes of the head of an answer.
const LONGEST_HEAD: usize = 32 << 10;
/// TLS sessions that are remembered to be resumed: a client asks one server.
const SESSIONS: usize = 2;

/// Makes one connection for each request.
pub(crate) type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Whose word counts that a server is who it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Nobody's: for plain HTTP.
    Nobody,
    /// That of those whom the system trusts, `SSL_CERT_FILE` and `SSL_CERT_DIR` included.
    System,
    /// That of the certificates in this file (PEM), and of no other.
    File(PathBuf),
}

/// Why an answer was not read to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// It is longer than what is read of it.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    /// The connection broke.
    #[error("the answer broke off")]
    Broken(#[source] hyper::Error),
}

/// A client.
///
/// # Errors
/// The certificates cannot be read, in words.
pub(crate) async fn client(trust: Trust) -> Result<HttpClient, String> {
    let roots = match trust {
        Trust::Nobody => RootCertStore::empty(),
        Trust::System | Trust::File(_) => tokio::task::spawn_blocking(|| match trust {
            Trust::File(path) => of_file(&path),
            Trust::System | Trust::Nobody => of_system(),
        })
        .await
        .map_err(|error| format!("cannot read the trusted certificates: {error}"))??,
    };
    let mut tls = ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("cannot set up TLS: {error}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.resumption = Resumption::in_memory_sessions(SESSIONS);
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_keepalive(Some(KEEPALIVE));
    http.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    http.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(http);
    Ok(Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .http1_max_buf_size(LONGEST_HEAD)
        .build(connector))
}

fn of_system() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    // A file among them that is broken costs no more than itself.
    let (_usable, _broken) = roots.add_parsable_certificates(found.certs);
    match (roots.is_empty(), found.errors.first()) {
        (false, _) => Ok(roots),
        (true, Some(error)) => Err(format!("cannot read the trusted certificates: {error}")),
        (true, None) => Err("no trusted certificates on this host; install the package ca-certificates".into()),
    }
}

fn of_file(path: &Path) -> Result<RootCertStore, String> {
    let unusable = |cause: String| format!("cannot use the certificates in {}: {cause}", path.display());
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| unusable(error.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(unusable("there is none in it (PEM, `BEGIN CERTIFICATE`)".into()));
    }
    Ok(roots)
}

/// An answer's body, of at most `longest` bytes.
///
/// # Errors
/// It is longer, or the connection breaks.
pub(crate) async fn read(mut body: Incoming, longest: usize) -> Result<Vec<u8>, ReadError> {
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(ReadError::Broken)?;
        let data = frame.data_ref().map_or(&[][..], |data| data);
        if read.len() + data.len() > longest {
            return Err(ReadError::TooLong(longest));
        }
        read.extend_from_slice(data);
    }
    Ok(read)
}
