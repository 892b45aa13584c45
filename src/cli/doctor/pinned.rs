//! A TLS connection to a gateway whose certificate is in a local file: that certificate is trusted
//! and no other.
//!
//! An authority would say less: a gateway that has not reloaded its file still shows the
//! certificate from before. The validity of the certificate is checked in the file.

use std::{path::Path, sync::Arc};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, ServerName, UnixTime},
    },
};

use super::certificates::{certificates, private_key};

/// Does the TLS handshake with a gateway that should show the first certificate of the file
/// `certificate`. `client` is the files of the client certificate and its key, if there is one.
pub(super) async fn handshake(
    stream: TcpStream,
    certificate: &Path,
    client: Option<(&Path, &Path)>,
) -> Result<TlsStream<TcpStream>, String> {
    let name = ServerName::from(stream.peer_addr().map_err(|error| error.to_string())?.ip());
    let provider = Arc::new(ring::default_provider());
    let expected = certificates(certificate)?.swap_remove(0);
    let verifier = Pinned { expected, provider: provider.clone() };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match client {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => config
            .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
            .map_err(|error| error.to_string())?,
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await.map_err(|error| match error.get_ref() {
        Some(why) => why.to_string(),
        None => format!("not TLS: {error}"),
    })
}

/// A verifier that trusts one certificate.
#[derive(Debug)]
struct Pinned {
    expected: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if *end_entity == self.expected {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::General("shows another certificate than the one in tls.certificate".to_owned()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
