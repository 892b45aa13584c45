//! By which names the page may be opened.
//!
//! A web page from elsewhere cannot read this port: nothing allows it to (CORS). It could if it came from a name that its owner
//! lets point here once it is loaded (DNS rebinding): to the browser that is the same place. So what names nodes is told only
//! to who asks for an address, or for a name that nobody can own on the public internet.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Endings that public DNS has not and will not have, and what clusters use.
const PRIVATE: [&str; 8] =
    [".localhost", ".local", ".internal", ".lan", ".home.arpa", ".svc", ".test", ".localdomain"];

/// Whether a `Host` header names an address, or a name that no stranger can point here.
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
        // A name without a dot is one of this machine or of its network: localhost, a container.
        && (!name.contains('.') || PRIVATE.iter().any(|ending| name.ends_with(ending)))
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
