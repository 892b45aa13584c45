//! Certificates in files: whether they can be read, hold, and belong together.

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
    config::{ServerTls, Tls},
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use super::Report;

const DAY: u64 = 24 * 60 * 60;

/// Who has less time left than this is told.
const SOON: Duration = Duration::from_secs(14 * DAY);

const CHECK: &str = "TLS to Redis";

const CHECK_OWN: &str = "TLS to nodes";

/// The files of `tls`.
pub(super) fn examine_own(tls: Option<&ServerTls>, report: &mut Report) {
    let Some(tls) = tls else { return };
    report.begins(CHECK_OWN);
    report.found(validity(CHECK_OWN, "tls.certificate", &tls.certificate));
    report.found(belong(CHECK_OWN, "tls", &tls.certificate, &tls.private_key));
    if let Some(path) = &tls.client_ca {
        report.found(validity(CHECK_OWN, "tls.clientCa", path));
    }
}

/// The files of `coordinator.tls`.
pub(super) fn examine(tls: Option<&Tls>, report: &mut Report) {
    let Some(tls) = tls else { return };
    if let Some(path) = &tls.ca_certificate {
        report.begins(CHECK);
        report.found(validity(CHECK, "coordinator.tls.caCertificate", path));
    }
    if let (Some(certificate), Some(key)) = (&tls.client_certificate, &tls.client_key) {
        report.begins(CHECK);
        report.found(validity(CHECK, "coordinator.tls.clientCertificate", certificate));
        report.found(belong(CHECK, "coordinator.tls", certificate, key));
    }
}

/// Whether the certificates of a file hold now, and for a while; the names in the first.
fn validity(check: &'static str, key: &str, path: &Path) -> Finding {
    match read_validity(path) {
        Err(why) => {
            let seen = format!("{key}: {}: {why}", path.display());
            Finding::failure(check, seen, "name a PEM file that this user may read")
        }
        Ok(Read { names, from, until }) => {
            let now = now();
            let what = format!("{key}: {} ({names})", path.display());
            let days = until.abs_diff(now) / DAY;
            if from > now {
                let seen = format!("{what} does not hold yet");
                Finding::failure(
                    check,
                    seen,
                    "set the clock of this machine, or have it issued anew",
                )
            } else if until <= now {
                let seen = format!("{what} expired {days} days ago");
                Finding::failure(check, seen, "renew it")
            } else if until - now < SOON.as_secs() {
                Finding::warning(check, format!("{what} expires in {days} days"), "renew it")
            } else {
                Finding::ok(check, format!("{what} holds for {days} days"))
            }
        }
    }
}

struct Read {
    names: String,
    /// The latest beginning and the earliest end, in seconds since 1970.
    from: u64,
    until: u64,
}

fn read_validity(path: &Path) -> Result<Read, String> {
    let certificates = certificates(path)?;
    let mut read = Read { names: String::new(), from: 0, until: u64::MAX };
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

/// Whom a certificate is for: its alternative names, or else its subject.
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

/// Those of a PEM file, of which there is at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let read = read.map_err(|error| format!("no PEM: {error}"))?;
    if read.is_empty() { Err("holds no certificate".to_owned()) } else { Ok(read) }
}

/// That of a PEM file.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| format!("{}: {error}", path.display()))
}

/// Whether a key is that of a certificate.
fn belong(check: &'static str, group: &str, certificate: &Path, key: &Path) -> Finding {
    let both = || -> Result<(), String> {
        let chain = certificates(certificate)?;
        CertifiedKey::from_der(chain, private_key(key)?, &ring::default_provider())
            .map(drop)
            .map_err(|error| error.to_string())
    };
    let names = format!("{group}: {} and {}", certificate.display(), key.display());
    match both() {
        Ok(()) => Finding::ok(check, format!("{names} belong together")),
        Err(why) => {
            let advice = "name the key with which the certificate was requested";
            Finding::failure(check, format!("{names} do not belong together: {why}"), advice)
        }
    }
}

fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs())
}
