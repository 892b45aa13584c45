//! A node's credentials, and the authorities that it trusts.

use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
    transport::{Certificate, ClientTlsConfig, Endpoint, Identity},
};

/// A node's credentials, and the authorities whose gateways it trusts. `Debug` shows none of it.
#[derive(Clone, Default)]
pub struct Credentials {
    ca: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
    bearer: Bearer,
}

/// Adds the token to each request.
#[derive(Clone, Default)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Credentials {
    /// No credentials.
    pub fn new() -> Credentials {
        Credentials::default()
    }

    /// Trusts gateways with a certificate of one of these authorities (PEM). Addresses with `https`
    /// need it.
    #[must_use]
    pub fn ca_certificate(mut self, pem: impl Into<Vec<u8>>) -> Credentials {
        self.ca = Some(pem.into());
        self
    }

    /// Presents this certificate, with this key (PEM).
    #[must_use]
    pub fn client_certificate(
        mut self,
        certificate: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Credentials {
        self.identity = Some((certificate.into(), key.into()));
        self
    }

    /// Sends this token.
    ///
    /// # Errors
    ///
    /// The token has characters that a header cannot have.
    pub fn token(mut self, token: &str) -> Result<Credentials, String> {
        let value = format!("Bearer {}", token.trim()).parse::<MetadataValue<Ascii>>();
        let mut value =
            value.map_err(|_| "the token has characters that a header cannot have".to_owned())?;
        value.set_sensitive(true);
        self.bearer = Bearer(Some(value));
        Ok(self)
    }

    /// The interceptor that adds the token to requests.
    pub fn bearer(&self) -> Bearer {
        self.bearer.clone()
    }

    /// The endpoint with TLS, if its scheme is `https`.
    ///
    /// # Errors
    ///
    /// A certificate or key is not valid, or no authority was given.
    pub fn apply(&self, endpoint: Endpoint) -> Result<Endpoint, String> {
        if endpoint.uri().scheme_str() != Some("https") {
            return Ok(endpoint);
        }
        let ca = self.ca.as_ref().ok_or("https needs the certificate of an authority")?;
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
        if let Some((certificate, key)) = &self.identity {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        endpoint.tls_config(tls).map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            format!("{error}: {}", cause.unwrap_or_default())
        })
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(***)")
    }
}

impl std::fmt::Debug for Bearer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bearer(***)")
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}
