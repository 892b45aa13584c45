//! Names of servers, and the addresses that they have.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use redis::{ConnectionAddr, RedisFuture, io::AsyncDNSResolver};

/// The least time between two closings because a name lost some of its addresses: there are names
/// that get a part of their addresses with each answer, in turn.
const PARTIAL_PAUSE: Duration = Duration::from_secs(10);

/// The addresses that a name resolves to.
pub(super) type Resolved<'a> = Box<dyn Iterator<Item = SocketAddr> + Send + 'a>;

/// Resolves names, for connections and for [`Name`] alike.
#[derive(Clone)]
pub(super) struct Resolver(pub Arc<dyn AsyncDNSResolver>);

/// The system's resolver.
struct SystemResolver;

/// Resolves every name as if it was this one.
struct ToHost {
    host: String,
    resolver: Resolver,
}

impl Resolver {
    pub(super) fn of_system() -> Resolver {
        Resolver(Arc::new(SystemResolver))
    }

    /// One that resolves every name as if it was `host`.
    pub(super) fn with_host(self, host: &str) -> Resolver {
        Resolver(Arc::new(ToHost { host: host.to_owned(), resolver: self }))
    }
}

impl AsyncDNSResolver for ToHost {
    fn resolve<'a, 'b: 'a>(&'a self, _host: &'b str, port: u16) -> RedisFuture<'a, Resolved<'a>> {
        self.resolver.resolve(&self.host, port)
    }
}

impl AsyncDNSResolver for Resolver {
    fn resolve<'a, 'b: 'a>(&'a self, host: &'b str, port: u16) -> RedisFuture<'a, Resolved<'a>> {
        self.0.resolve(host, port)
    }
}

impl AsyncDNSResolver for SystemResolver {
    fn resolve<'a, 'b: 'a>(&'a self, host: &'b str, port: u16) -> RedisFuture<'a, Resolved<'a>> {
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
            Ok(Box::new(found.into_iter()) as Resolved<'a>)
        })
    }
}

/// The name of a server, and the addresses that connections to it may have.
pub(super) struct Name {
    host: String,
    port: u16,
    resolver: Resolver,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    addresses: HashSet<SocketAddr>,
    /// When an address was missing last.
    lost: Option<Instant>,
}

impl Name {
    /// The name in an address; None for an IP address or a socket.
    pub(super) fn of(address: &ConnectionAddr, resolver: Resolver) -> Option<Name> {
        let (ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. }) = address
        else {
            return None;
        };
        let is_ip = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        let state = Mutex::default();
        (!is_ip).then(|| Name { host: host.clone(), port: *port, resolver, state })
    }

    /// Resolves the name. True if it no longer has an address that open connections may have. A
    /// name that cannot be resolved keeps its addresses.
    pub(super) async fn lost_an_address(&self) -> bool {
        match self.resolver.resolve(&self.host, self.port).await {
            Ok(found) => self.state.lock().update(found.collect(), Instant::now()),
            Err(_) => false,
        }
    }
}

impl State {
    fn update(&mut self, found: HashSet<SocketAddr>, now: Instant) -> bool {
        if found.is_empty() {
            return false;
        }
        let lost = !self.addresses.is_subset(&found);
        let wholly = self.addresses.is_disjoint(&found);
        let recently = self.lost.is_some_and(|lost| now - lost < PARTIAL_PAUSE);
        if lost && !wholly && recently {
            self.addresses.extend(found);
            return false;
        }
        self.addresses = found;
        if lost {
            self.lost = Some(now);
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ips: &[&str]) -> HashSet<SocketAddr> {
        ips.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 6379)).collect()
    }

    #[test]
    fn connections_are_closed_if_the_name_lost_an_address_that_they_may_have() {
        let mut state = State::default();
        let now = Instant::now();
        assert!(!state.update(set(&["10.0.0.1"]), now), "the first answer");
        assert!(!state.update(set(&["10.0.0.1"]), now));
        assert!(!state.update(set(&[]), now), "no answer");
        assert!(!state.update(set(&["10.0.0.1", "10.0.0.2"]), now), "one more");
        assert!(state.update(set(&["10.0.0.2"]), now), "one of two");
        assert!(state.update(set(&["10.0.0.3"]), now), "all");
        assert!(!state.update(set(&["10.0.0.3"]), now));
    }

    #[test]
    fn a_name_whose_answers_are_parts_of_its_addresses_does_not_close_all_the_time() {
        let parts = [["10.0.0.1", "10.0.0.2"], ["10.0.0.2", "10.0.0.3"], ["10.0.0.3", "10.0.0.1"]];
        let mut state = State::default();
        let now = Instant::now();
        let closings = (0..30_u64).filter(|second| {
            let part = parts[usize::try_from(second % 3).unwrap()];
            state.update(set(&part), now + Duration::from_secs(*second))
        });
        assert_eq!(closings.count(), 3);
        // But a name that has none of them left has moved.
        assert!(state.update(set(&["10.0.0.9"]), now + Duration::from_secs(30)));
    }
}
