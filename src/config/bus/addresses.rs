//! `addressMap`: where servers are reached that announce other addresses.

use std::fmt;

use serde_json::{Value, json};

use crate::config::{
    error::Problem,
    fields::{Fields, Found},
    settings::{Declared, described, list, optional, required, settings},
    types::{ValueType, text},
};

const ADDRESS_MAP: &str = "addressMap";

/// A host, and a port or all of its ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPort {
    /// A name or an address; that of IPv6 without brackets.
    pub host: String,
    /// None: every port of the host.
    pub port: Option<u16>,
}

settings! {
    /// Where servers are reached that announce other addresses.
    pub struct MappedAddress checked by check_mapped {
        /// What a server of the cluster, or a sentinel, announces: `host:port`, or `host` for all
        /// ports of it. The first is looked for first. Of IPv6: `[::1]:6379`.
        pub announced: HostPort =
            required("announced", AddressText, "host:port, or a host, that servers announce"),
        /// Where it is reached: `host:port`, or `host` for the port that is announced. `null`:
        /// where it says.
        pub reachable: Option<HostPort> = optional("reachable", AddressText),
        /// The name that its certificate is checked for. `null`: the host that is connected to.
        pub server_name: Option<String> = optional("serverName", text(check_server_name)),
    }
}

/// The list of them.
pub(super) fn address_map() -> impl Declared<Value = Vec<MappedAddress>> {
    described(
        "Where servers, and sentinels, are reached that announce addresses which this gateway does \
         not reach, or whose certificates are for other names. The addresses of `coordinator.urls` \
         are used as they are.",
        list(ADDRESS_MAP, "an object with announced, and reachable or serverName"),
    )
}

/// Checks that no two entries are of the same addresses, and that names have an effect.
pub(super) fn check_address_map(
    map: &[MappedAddress],
    has_tls: bool,
    resp2: bool,
    fields: &Fields<'_>,
) {
    for (index, entry) in map.iter().enumerate() {
        let invalid = |key: &str, why: String| {
            fields.fail_in_list(ADDRESS_MAP, index, key, Problem::Invalid(why));
        };
        let is_twice = map[..index].iter().any(|other| other.announced == entry.announced);
        if is_twice && !entry.announced.host.is_empty() {
            invalid("announced", format!("{} is there twice", entry.announced));
        }
        if entry.server_name.is_some() && !has_tls {
            invalid("serverName", "has no effect: there is no TLS".to_owned());
        } else if entry.server_name.is_some() && resp2 {
            invalid("serverName", "needs RESP3".to_owned());
        }
    }
}

fn check_mapped(entry: &mut MappedAddress, fields: &Fields<'_>) {
    if !fields.sound(&["announced", "reachable", "serverName"]) {
        return;
    }
    let MappedAddress { announced, reachable, server_name } = entry;
    if reachable.is_none() && server_name.is_none() {
        let expected = "where the server is reached, or serverName".to_owned();
        fields.fail("reachable", Problem::Missing { expected });
    }
    if announced.port.is_none() && reachable.as_ref().is_some_and(|to| to.port.is_some()) {
        let problem = "has a port, and announced has none: all servers of that host would be one";
        fields.fail("reachable", Problem::Invalid(problem.to_owned()));
    }
}

fn check_server_name(name: &str) -> Result<(), Problem> {
    if is_host(name) {
        return Ok(());
    }
    Err(Problem::Invalid("is neither a name nor an address".to_owned()))
}

fn is_host(host: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    (1..=253).contains(&host.len()) && host.chars().all(plain)
}

/// `host`, `host:port`, `[::1]` or `[::1]:port`.
struct AddressText;

impl HostPort {
    /// Parses a host, with a port or without.
    pub fn parse(text: &str) -> Option<HostPort> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']')?;
                (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
            }
            // An address of IPv6 without brackets has no port.
            None if text.matches(':').count() > 1 => (text, None),
            None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
        };
        let port = match port {
            Some(port) => Some(port.parse().ok().filter(|port| *port != 0)?),
            None => None,
        };
        is_host(host).then(|| HostPort { host: host.to_owned(), port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HostPort { host, port } = self;
        match port {
            Some(port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Some(port) => write!(f, "{host}:{port}"),
            None => f.write_str(host),
        }
    }
}

impl ValueType for AddressText {
    type Value = HostPort;
    type Literal = &'static str;

    fn name(&self) -> &'static str {
        "text"
    }

    fn read(&self, found: &Found<'_>) -> Option<HostPort> {
        let text = found.text()?;
        let form = || Problem::Invalid("is neither host:port nor a host".to_owned());
        found.or_report(HostPort::parse(text).ok_or_else(form))
    }

    fn value_of(&self, literal: &&'static str) -> HostPort {
        HostPort::parse(literal).unwrap_or_default()
    }

    fn show(&self, value: &HostPort) -> Value {
        json!(value.to_string())
    }

    fn schema(&self) -> Value {
        json!({ "type": ["string"] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_with_and_without_a_port() {
        let parsed = |text| HostPort::parse(text).map(|found| (found.host, found.port));
        let is = |host: &str, port| Some((host.to_owned(), port));
        assert_eq!(parsed("a.example"), is("a.example", None));
        assert_eq!(parsed("10.0.0.1:6379"), is("10.0.0.1", Some(6379)));
        assert_eq!(parsed("::1"), is("::1", None));
        assert_eq!(parsed("[::1]"), is("::1", None));
        assert_eq!(parsed("[::1]:7000"), is("::1", Some(7000)));
        for odd in ["", ":1", "a:0", "a:65536", "a:", "[::1", "[::1]7", "a b", "redis://a", "a/b"] {
            assert_eq!(parsed(odd), None, "{odd}");
        }
        for text in ["a", "a:1", "[::1]:1", "::1"] {
            assert_eq!(HostPort::parse(text).unwrap().to_string(), text);
        }
    }
}
