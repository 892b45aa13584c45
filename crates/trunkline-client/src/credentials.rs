//! A node's credentials, and the authorities that it trusts.

use std::net::Ipv6Addr;

use tonic::{
    Request, Status,
    codegen::http::Uri,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
    transport::{Certificate, ClientTlsConfig, Endpoint, Identity},
};

/// The port of a gateway, unless configured.
const DEFAULT_PORT: u16 = 7420;

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

    /// Trusts gateways with a certificate of one of these authorities (PEM), and no others.
    /// Default: the authorities that the system trusts (or those of the variable `SSL_CERT_FILE`).
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

    /// The URL of a gateway, from what people write: a URL, or a host and perhaps a port. Default:
    /// port 7420; `https` if these credentials have certificates, and otherwise `http`.
    ///
    /// ```
    /// let credentials = trunkline_client::Credentials::new();
    /// assert_eq!(credentials.url("gateway-1").as_deref(), Ok("http://gateway-1:7420"));
    /// assert_eq!(credentials.url("https://gateway-1").as_deref(), Ok("https://gateway-1:7420"));
    /// ```
    ///
    /// # Errors
    ///
    /// It is no address.
    pub fn url(&self, address: &str) -> Result<String, String> {
        let tls = self.ca.is_some() || self.identity.is_some();
        let (scheme, rest) = match address.split_once("://") {
            None => (if tls { "https" } else { "http" }, address),
            Some((scheme @ ("http" | "https"), rest)) => (scheme, rest),
            Some(_) => return Err("the scheme must be http:// or https://".into()),
        };
        // The address of IPv6 alone, without the brackets of a URL.
        let host = match rest.parse::<Ipv6Addr>() {
            Ok(address) => format!("[{address}]"),
            Err(_) => rest.trim_end_matches('/').to_owned(),
        };
        let uri: Uri = format!("{scheme}://{host}").parse().map_err(|_| "it is not a host")?;
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        match (uri.host(), uri.port_u16()) {
            (None | Some(""), _) => Err("it names no host".into()),
            _ if uri.path() != "/" || uri.query().is_some() || authority.contains('@') => {
                Err("it must be a host and a port, without anything after or before them".into())
            }
            (_, Some(1..)) => Ok(format!("{scheme}://{authority}")),
            (Some(name), None) if name == authority => {
                Ok(format!("{scheme}://{authority}:{DEFAULT_PORT}"))
            }
            // `Uri` ignores a port that is not valid.
            _ => Err("the port is no number from 1 to 65535".into()),
        }
    }

    /// The endpoint with TLS, if its scheme is `https`.
    ///
    /// # Errors
    ///
    /// A certificate or key is not valid, or the system trusts no authority and none was given.
    pub fn apply(&self, endpoint: Endpoint) -> Result<Endpoint, String> {
        if endpoint.uri().scheme_str() != Some("https") {
            return Ok(endpoint);
        }
        let mut tls = match &self.ca {
            Some(ca) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_default_port_and_a_scheme_that_follows_the_certificates() {
        let plain = Credentials::new();
        let tls = Credentials::new().ca_certificate("pem");
        for (address, expected) in [
            ("gateway-1", "gateway-1:7420"),
            ("10.0.0.1", "10.0.0.1:7420"),
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("::1", "[::1]:7420"),
            ("[::1]", "[::1]:7420"),
            ("[::1]:80", "[::1]:80"),
            ("gateway-1/", "gateway-1:7420"),
        ] {
            assert_eq!(plain.url(address), Ok(format!("http://{expected}")));
            assert_eq!(tls.url(address), Ok(format!("https://{expected}")));
            assert_eq!(tls.url(&format!("http://{address}")), Ok(format!("http://{expected}")));
            assert_eq!(plain.url(&format!("https://{address}")), Ok(format!("https://{expected}")));
        }
        for address in
            ["", "http://", "redis://a", "a b", "a:x", "a:0", "a:99999", "a/b", "u@a", "a?b", ":80"]
        {
            assert!(plain.url(address).is_err(), "{address}");
        }
    }
}
