//! Certificates: the gateway's own, and those that nodes present.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
        server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    },
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use crate::config::ServerTls;

/// The protocols that TLS negotiates. The port for nodes answers the second one with the reason why
/// it does not serve it.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Stands before a common name where rules name it.
const COMMON_NAME: &str = "CN=";

/// Bytes of the longest name that is read from a certificate.
const MAX_NAME_LEN: usize = 512;

/// Answers TLS handshakes, and verifies client certificates again later.
#[derive(Clone)]
pub struct Certificates {
    /// Answers handshakes.
    pub acceptor: TlsAcceptor,
    /// Verifies client certificates. None: nodes are not asked for one.
    pub verifier: Option<Arc<dyn ClientCertVerifier>>,
}

/// A client certificate whose private key the node has proved to hold.
#[derive(Debug)]
pub struct PeerCertificate {
    /// The identity that it names, if any.
    pub name: Option<Arc<str>>,
    chain: Vec<CertificateDer<'static>>,
    not_after: SystemTime,
    /// The generation of certificate authorities that last verified it.
    verified_generation: AtomicU64,
}

impl Certificates {
    /// Reads the files. The error names the configuration key.
    pub fn load(tls: &ServerTls) -> Result<Certificates, String> {
        let provider = Arc::new(ring::default_provider());
        let verifier = match &tls.client_ca {
            Some(path) => Some(verifier(path, tls.client_certificate_required, provider.clone())?),
            None => None,
        };
        let chain = certificates("tls.certificate", &tls.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&tls.private_key)
            .map_err(|error| format!("tls.privateKey: {error}"))?;
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("tls: {error}"))?;
        let builder = match &verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| format!("tls.certificate does not go with tls.privateKey: {error}"))?;
        config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
        // Connections are few and long: each verifies its certificate anew, without resumption.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Certificates { acceptor: TlsAcceptor::from(Arc::new(config)), verifier })
    }
}

fn verifier(
    path: &Path,
    required: bool,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("tls.clientCa", path)? {
        roots.add(certificate).map_err(|error| format!("tls.clientCa: {error}"))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|error| format!("tls.clientCa: {error}"))
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(chain) if chain.is_empty() => Err(format!("{key}: the file contains no certificate")),
        Ok(chain) => Ok(chain),
        Err(error) => Err(format!("{key}: {error}")),
    }
}

impl PeerCertificate {
    /// The certificate of a handshake, which authorities of this generation have verified. None:
    /// the chain is empty or cannot be parsed.
    pub fn new(chain: &[CertificateDer<'_>], verified_generation: u64) -> Option<PeerCertificate> {
        let (_, certificate) = X509Certificate::from_der(chain.first()?).ok()?;
        let not_after = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
        Some(PeerCertificate {
            name: name(&certificate).map(Arc::from),
            chain: chain.iter().map(|each| each.clone().into_owned()).collect(),
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(not_after),
            verified_generation: AtomicU64::new(verified_generation),
        })
    }

    /// True while it has not expired and the authorities of this generation verify it.
    pub fn is_valid(&self, verifier: Option<&dyn ClientCertVerifier>, generation: u64) -> bool {
        let (Some(verifier), Some((own, others))) = (verifier, self.chain.split_first()) else {
            return false;
        };
        if self.not_after <= SystemTime::now() {
            return false;
        }
        if self.verified_generation.load(Ordering::Relaxed) == generation {
            return true;
        }
        let verified = verifier.verify_client_cert(own, others, UnixTime::now()).is_ok();
        if verified {
            self.verified_generation.store(generation, Ordering::Relaxed);
        }
        verified
    }

    /// The time until it expires.
    pub fn time_left(&self) -> Duration {
        self.not_after.duration_since(SystemTime::now()).unwrap_or_default()
    }
}

/// The identity that a certificate names: its first URI (a SPIFFE id is one), else its first DNS
/// name, else its common name.
///
/// Each kind has a form that no other kind can have, so that an authority that signs common names
/// for anybody gives nobody the rights of a SPIFFE id. None: there is no name, or the one that
/// decides does not have the form of its kind.
fn name(certificate: &X509Certificate<'_>) -> Option<String> {
    let extension = certificate.subject_alternative_name().ok().flatten();
    let names = extension.map_or(&[][..], |extension| &extension.value.general_names);
    let uri = names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let dns = || {
        names.iter().find_map(|name| match name {
            GeneralName::DNSName(name) => Some(*name),
            _ => None,
        })
    };
    let common = || certificate.subject().iter_common_name().next()?.as_str().ok();
    let name = if let Some(uri) = uri {
        is_uri(uri).then(|| uri.to_owned())?
    } else if let Some(dns) = dns() {
        is_dns_name(dns).then(|| dns.to_owned())?
    } else {
        format!("{COMMON_NAME}{}", common().filter(|name| !name.is_empty())?)
    };
    let usable =
        name.len() <= MAX_NAME_LEN && !name.chars().any(|c| c.is_control() || c.is_whitespace());
    usable.then_some(name)
}

/// A scheme and a colon, which neither of the other kinds has.
fn is_uri(name: &str) -> bool {
    let scheme = |scheme: &str| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    };
    name.split_once(':').is_some_and(|(before, after)| scheme(before) && !after.is_empty())
}

/// Letters, digits, `-`, `_` and `.`. No wildcard: a name is not a pattern.
fn is_dns_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_has_the_form_of_two_kinds() {
        for uri in ["spiffe://example.org/mail", "urn:x", "dns:mx1", "a+b-c.1:x"] {
            assert!(is_uri(uri) && !is_dns_name(uri), "{uri}");
        }
        for name in ["mx1", "mx1.example.org", "_sip.example.org", "1"] {
            assert!(is_dns_name(name) && !is_uri(name), "{name}");
        }
        for neither in
            ["", ":", ":x", "x:", "1:x", "a b:c", "*.example.org", "a/b", "CN=a", "\u{e9}"]
        {
            assert!(!is_uri(neither) && !is_dns_name(neither), "{neither}");
        }
        let common = |name: &str| format!("{COMMON_NAME}{name}");
        for name in ["mx1", "spiffe://example.org/mail", "urn:x", "CN=a"] {
            assert!(!is_uri(&common(name)) && !is_dns_name(&common(name)), "{name}");
        }
    }
}
