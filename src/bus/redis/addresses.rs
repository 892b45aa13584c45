//! Where servers are reached that announce other addresses, behind NAT for instance.

use std::sync::Arc;

use redis::{ConnectionAddr, ConnectionInfo};

use super::resolver::Resolver;
use crate::config::MappedAddress;

/// The entries of `addressMap`.
#[derive(Clone, Debug, Default)]
pub(super) struct AddressMap(Arc<[MappedAddress]>);

/// How a server is connected to that another one named.
pub(super) struct Way {
    /// The address as it was announced.
    pub announced: String,
    pub info: ConnectionInfo,
    pub resolver: Resolver,
}

impl AddressMap {
    pub(super) fn new(entries: &[MappedAddress]) -> AddressMap {
        AddressMap(entries.into())
    }

    /// The way to a server: as the template says, but for its address.
    pub(super) fn way(&self, template: &ConnectionInfo, host: &str, port: u16) -> Way {
        let of = |wanted: Option<u16>| {
            self.0.iter().find(|MappedAddress { announced, .. }| {
                announced.host == host && announced.port == wanted
            })
        };
        let entry = of(Some(port)).or_else(|| of(None));
        let reachable = entry.and_then(|entry| entry.reachable.as_ref());
        let to = reachable.map_or(host, |to| &to.host);
        let to_port = reachable.and_then(|to| to.port).unwrap_or(port);
        let name = entry.and_then(|entry| entry.server_name.as_deref());
        // The client library checks a certificate for the host that it connects to: so it gets the
        // name, and the name is resolved to the host.
        let system = Resolver::of_system();
        let resolver = if name.is_some() { system.with_host(to) } else { system };
        let addr = with_host(template.addr(), Some(name.unwrap_or(to)), to_port);
        let info = template.clone().set_addr(addr);
        Way { announced: format!("{host}:{port}"), info, resolver }
    }

    /// The entries that none of these addresses has.
    pub(super) fn unused(&self, announced: &[String]) -> Vec<String> {
        let is_used = |entry: &&MappedAddress| {
            announced.iter().filter_map(|address| address.rsplit_once(':')).any(|(host, port)| {
                let wanted = entry.announced.port;
                entry.announced.host == host
                    && wanted.is_none_or(|wanted| port.parse() == Ok(wanted))
            })
        };
        let unused = self.0.iter().filter(|entry| !is_used(entry));
        unused.map(|entry| entry.announced.to_string()).collect()
    }
}

/// The address with another port, and another host if there is one.
pub(super) fn with_host(addr: &ConnectionAddr, host: Option<&str>, port: u16) -> ConnectionAddr {
    match addr {
        ConnectionAddr::TcpTls { host: before, insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls {
                host: host.unwrap_or(before).to_owned(),
                port,
                insecure: *insecure,
                tls_params: tls_params.clone(),
            }
        }
        ConnectionAddr::Tcp(before, _) => {
            ConnectionAddr::Tcp(host.unwrap_or(before).to_owned(), port)
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use redis::IntoConnectionInfo;

    use super::*;
    use crate::config::HostPort;

    fn entry(announced: &str, reachable: Option<&str>, name: Option<&str>) -> MappedAddress {
        let parse = |text| HostPort::parse(text).unwrap();
        MappedAddress {
            announced: parse(announced),
            reachable: reachable.map(parse),
            server_name: name.map(str::to_owned),
        }
    }

    #[test]
    fn an_exact_entry_is_preferred_to_that_of_the_host() {
        let map = AddressMap::new(&[
            entry("10.0.0.1", Some("wide.example"), None),
            entry("10.0.0.1:7001", Some("exact.example:1"), None),
            entry("10.0.0.2:7000", Some("other.example"), None),
            entry("10.0.0.3", None, Some("redis.internal")),
        ]);
        let template = "rediss://seed:6379".into_connection_info().unwrap();
        let to = |host, port| map.way(&template, host, port).info.addr().to_string();
        assert_eq!(to("10.0.0.1", 7000), "wide.example:7000");
        assert_eq!(to("10.0.0.1", 7001), "exact.example:1");
        assert_eq!(to("10.0.0.2", 7000), "other.example:7000");
        assert_eq!(to("10.0.0.2", 7001), "10.0.0.2:7001");
        assert_eq!(to("10.0.0.3", 7001), "redis.internal:7001");
        assert_eq!(map.way(&template, "10.0.0.1", 7001).announced, "10.0.0.1:7001");
        let known = ["10.0.0.1:7000", "10.0.0.3:9"].map(str::to_owned);
        assert_eq!(map.unused(&known), ["10.0.0.1:7001", "10.0.0.2:7000"]);
    }

    #[tokio::test]
    async fn a_server_with_a_name_of_its_own_is_reached_at_its_address() {
        use redis::io::AsyncDNSResolver;
        let map = AddressMap::new(&[entry("h", Some("127.0.0.9"), Some("redis.internal"))]);
        let template = "rediss://seed:6379".into_connection_info().unwrap();
        let way = map.way(&template, "h", 7000);
        let found = way.resolver.resolve("redis.internal", 7000).await.unwrap();
        assert_eq!(found.map(|found| found.to_string()).collect::<Vec<_>>(), ["127.0.0.9:7000"]);
    }
}
