//! The host names under which the page may be opened.
//!
//! A web page of another origin cannot read this port (no CORS header allows it). It could after
//! DNS rebinding: its owner lets the name of its origin point to this address once it is loaded. So
//! data that names nodes is served only under an address, or under a name that nobody can own on
//! the public internet.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Suffixes that are reserved from public DNS, and those of clusters.
const PRIVATE: [&str; 8] =
    [".localhost", ".local", ".internal", ".lan", ".home.arpa", ".svc", ".test", ".localdomain"];

/// True when a `Host` header names an address, or a name that no outsider can point here.
pub fn is_private(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        return address.parse::<Ipv6Addr>().is_ok() && (port.is_empty() || is_port(port));
    }
    let name = match host.split_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) => return false,
        None => host,
    };
    if name.parse::<Ipv4Addr>().is_ok() {
        return true;
    }
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    !name.is_empty()
        && name.chars().all(is_name)
        // A name without a dot is local: localhost, a container.
        && (!name.contains('.') || PRIVATE.iter().any(|suffix| name.ends_with(suffix)))
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_that_nobody_can_own_are_private() {
        for host in [
            "127.0.0.1:7421",
            "10.1.2.3",
            "[::1]:7421",
            "[fd00::1]",
            "localhost:7421",
            "LOCALHOST",
            "gateway:7421",
            "gw-1.mail.svc:7421",
            "gw-1.mail.svc.cluster.local",
            "gw.corp.internal.",
        ] {
            assert!(is_private(host), "{host}");
        }
        for host in [
            "",
            ":7421",
            "rebound.example.com:7421",
            "127.0.0.1.example.com",
            "local.example",
            "evil.example:7421:1",
            "[::1",
            "[::1]x",
            "a b",
            "localhost@example.com",
            "7f000001.example.com",
        ] {
            assert!(!is_private(host), "{host}");
        }
    }
}
