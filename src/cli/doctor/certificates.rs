//! Certificates in files: they can be read, are valid, and match their keys.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    time::Duration,
};

use tokio_rustls::rustls::{
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use trunkline::{
    bus::Finding,
    config::{BusConfig, ServerTls},
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use super::Report;

const DAY: u64 = 24 * 60 * 60;

/// A certificate that expires within this time is a warning.
const SOON: Duration = Duration::from_secs(14 * DAY);

const REDIS: &str = "TLS to Redis";

const GATEWAY: &str = "TLS to nodes";

/// Examines the files of `tls`.
pub(super) fn examine_gateway(tls: Option<&ServerTls>, report: &mut Report) {
    let Some(tls) = tls else { return };
    report.begins(GATEWAY);
    report.found(validity(GATEWAY, "tls.certificate", &tls.certificate));
    report.found(key_matches(GATEWAY, "tls", &tls.certificate, &tls.private_key));
    if let Some(path) = &tls.client_ca {
        report.found(validity(GATEWAY, "tls.clientCa", path));
    }
}

/// Examines the files of `coordinator.tls`.
pub(super) fn examine_redis(bus: &BusConfig, report: &mut Report) {
    for (group, tls) in bus.certificates() {
        let group = format!("coordinator.{group}");
        if let Some(path) = &tls.ca_certificate {
            report.begins(REDIS);
            report.found(validity(REDIS, &format!("{group}.caCertificate"), path));
        }
        if let (Some(certificate), Some(key)) = (&tls.client_certificate, &tls.client_key) {
            report.begins(REDIS);
            report.found(validity(REDIS, &format!("{group}.clientCertificate"), certificate));
            report.found(key_matches(REDIS, &group, certificate, key));
        }
    }
}

/// The validity of the certificates of a file; the finding names whom the first is for.
fn validity(check: &'static str, key: &str, path: &Path) -> Finding {
    match read_validity(path) {
        Err(why) => {
            let seen = format!("{key}: {}: {why}", path.display());
            Finding::failure(check, seen, "name a PEM file that this user may read")
        }
        Ok(Validity { names, from, until }) => {
            let now = now();
            let subject = format!("{key}: {} ({names})", path.display());
            let days = until.abs_diff(now) / DAY;
            if from > now {
                let seen = format!("{subject} is not valid yet");
                Finding::failure(
                    check,
                    seen,
                    "set the clock of this machine, or have the certificate issued anew",
                )
            } else if until <= now {
                let seen = format!("{subject} expired {days} days ago");
                Finding::failure(check, seen, "renew it")
            } else if until - now < SOON.as_secs() {
                Finding::warning(check, format!("{subject} expires in {days} days"), "renew it")
            } else {
                Finding::ok(check, format!("{subject} is valid for {days} days"))
            }
        }
    }
}

/// The common validity of all certificates of a file.
struct Validity {
    /// The names in the first certificate.
    names: String,
    /// The latest start and the earliest end, in seconds since 1970.
    from: u64,
    until: u64,
}

fn read_validity(path: &Path) -> Result<Validity, String> {
    let certificates = certificates(path)?;
    let mut read = Validity { names: String::new(), from: 0, until: u64::MAX };
    for (index, der) in certificates.iter().enumerate() {
        let (_, parsed) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
        let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
        read.from = read.from.max(seconds(parsed.validity().not_before.timestamp()));
        read.until = read.until.min(seconds(parsed.validity().not_after.timestamp()));
        if index == 0 {
            read.names = names(&parsed);
        }
    }
    Ok(read)
}

/// The alternative names of a certificate, or else its subject.
fn names(certificate: &X509Certificate<'_>) -> String {
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let names = alternative.map(|names| &names.value.general_names);
    let plain = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) => (*name).to_owned(),
        GeneralName::IPAddress(bytes) => {
            match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
                (Ok(v4), _) => Ipv4Addr::from(v4).to_string(),
                (_, Ok(v6)) => Ipv6Addr::from(v6).to_string(),
                _ => name.to_string(),
            }
        }
        other => other.to_string(),
    };
    let names: Vec<_> = names.into_iter().flatten().map(plain).collect();
    if names.is_empty() { certificate.subject().to_string() } else { names.join(", ") }
}

/// The certificates of a PEM file: at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let read = read.map_err(|error| format!("not PEM: {error}"))?;
    if read.is_empty() { Err("contains no certificate".to_owned()) } else { Ok(read) }
}

/// The private key of a PEM file.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| format!("{}: {error}", path.display()))
}

/// Checks that a private key matches a certificate.
fn key_matches(check: &'static str, group: &str, certificate: &Path, key: &Path) -> Finding {
    let pair = || -> Result<(), String> {
        let chain = certificates(certificate)?;
        CertifiedKey::from_der(chain, private_key(key)?, &ring::default_provider())
            .map(drop)
            .map_err(|error| error.to_string())
    };
    let names = format!("{group}: {} and {}", certificate.display(), key.display());
    match pair() {
        Ok(()) => Finding::ok(check, format!("{names} match")),
        Err(why) => {
            let advice = "name the key with which the certificate was requested";
            Finding::failure(check, format!("{names} do not match: {why}"), advice)
        }
    }
}

fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs())
}
