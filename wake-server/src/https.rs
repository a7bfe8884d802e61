//! Asking servers elsewhere over HTTP. Owns nothing; follows no redirect, uses no proxy of the environment, and bounds no time but that of
//! a connection: the caller does.

use std::{path::Path, sync::Arc, time::Duration};

use hyper::body::{Body, Bytes};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

const CONNECT: Duration = Duration::from_secs(5);

/// Asks over HTTP, and over TLS where a URL says so.
pub(crate) type HttpClient<B> = Client<HttpsConnector<HttpConnector>, B>;

/// A client that trusts whom the system trusts, and the certificates in `ca_file`. Blocking if `is_tls`; without, nothing is read for it.
///
/// # Errors
/// The certificates cannot be read, in words.
pub(crate) fn client<B>(is_tls: bool, ca_file: Option<&Path>) -> Result<HttpClient<B>, String>
where
    B: Body<Data = Bytes> + Send,
{
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT));
    let https = HttpsConnectorBuilder::new()
        .with_tls_config(tls(is_tls, ca_file)?)
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    Ok(Client::builder(TokioExecutor::new()).build(https))
}

/// What a certificate is checked with.
fn tls(is_used: bool, ca_file: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    if is_used {
        let native = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(native.certs);
        if let Some(file) = ca_file {
            let unreadable = |error| format!("cannot read the certificates in {}: {error}", file.display());
            for certificate in CertificateDer::pem_file_iter(file).map_err(|error| unreadable(error.to_string()))? {
                let certificate = certificate.map_err(|error| unreadable(error.to_string()))?;
                roots.add(certificate).map_err(|error| unreadable(error.to_string()))?;
            }
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("cannot use TLS: {error}"))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
