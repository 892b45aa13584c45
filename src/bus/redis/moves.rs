//! Masters that move behind their address: a DNS name that gets other addresses, or a proxy that
//! leads to another server. The connections from before stay open, and would lead to the demoted
//! master for good; they are closed.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use redis::{ConnectionAddr, RedisFuture, io::AsyncDNSResolver};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::topology::Topology;
use crate::throttle::Throttle;

/// The interval at which names are resolved.
const INTERVAL: Duration = Duration::from_secs(1);

/// The least time between two looks because of failed calls.
const MIN_AGE: Duration = Duration::from_millis(100);

/// The least time between two closings because a server is a replica: it may stay one.
const REPLICA_PAUSE: Duration = Duration::from_secs(1);

/// The least time between two closings because a name lost some of its addresses: there are names
/// that get a part of their addresses with each answer, in turn.
const PARTIAL_PAUSE: Duration = Duration::from_secs(10);

static MOVED: Throttle = Throttle::repeated();

/// The addresses that a name resolves to.
pub(super) type Resolved<'a> = Box<dyn Iterator<Item = SocketAddr> + Send + 'a>;

/// Resolves names, for connections and for [`Name`] alike.
#[derive(Clone)]
pub(super) struct Resolver(pub Arc<dyn AsyncDNSResolver>);

/// The system's resolver.
struct SystemResolver;

impl Resolver {
    pub(super) fn of_system() -> Resolver {
        Resolver(Arc::new(SystemResolver))
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

/// Closes the connections to servers that have moved, until it is stopped.
pub(super) async fn follow(topology: Arc<Topology>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = look_for_ever(&topology) => {}
    }
}

async fn look_for_ever(topology: &Topology) {
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut replica_closed: Option<Instant> = None;
    loop {
        let failed = tokio::select! {
            _ = tick.tick() => false,
            () = topology.failed_call() => true,
        };
        for server in topology.any() {
            let may_be_replica =
                failed && replica_closed.is_none_or(|at| at.elapsed() >= REPLICA_PAUSE);
            let why = if server.has_moved().await {
                "its name has other addresses"
            } else if may_be_replica && server.is_replica().await {
                replica_closed = Some(Instant::now());
                "it is a replica"
            } else {
                continue;
            };
            server.close_connections().await;
            if let Some(left_out) = MOVED.pass() {
                tracing::warn!(
                    server = server.address,
                    why,
                    left_out,
                    "connections may lead to a former master: reconnecting"
                );
            }
        }
        if failed {
            tokio::time::sleep(MIN_AGE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Error;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        task::JoinHandle,
    };

    use super::*;
    use crate::{
        bus::redis::{server::Server, settings::Settings},
        config::{Config, Sources},
    };

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

    /// Resolves every name to one address, which the test changes.
    struct Double(Arc<Mutex<IpAddr>>);

    impl AsyncDNSResolver for Double {
        fn resolve<'a, 'b: 'a>(
            &'a self,
            _host: &'b str,
            port: u16,
        ) -> RedisFuture<'a, Resolved<'a>> {
            let ip = *self.0.lock();
            let found = Some(SocketAddr::new(ip, port)).into_iter();
            Box::pin(async move { Ok(Box::new(found) as Resolved<'a>) })
        }
    }

    /// A server that gives every command the same answer. Ends, with the number of bytes of the
    /// last reading, when its only connection ends.
    fn serve(listener: TcpListener, run: &'static str) -> JoinHandle<Result<usize, Error>> {
        tokio::spawn(async move {
            let (mut connection, _) = listener.accept().await?;
            let mut bytes = vec![0; 4096];
            loop {
                let count = connection.read(&mut bytes).await?;
                if count == 0 {
                    return Ok(count);
                }
                // A command is an array: each has one `*`.
                let commands = bytes[..count].split(|byte| *byte == b'*').count() - 1;
                let answer = format!("+run_id:{run}\r\n").repeat(commands);
                connection.write_all(answer.as_bytes()).await?;
            }
        })
    }

    #[tokio::test]
    async fn a_server_whose_name_moved_is_reached_at_its_new_address() {
        let old = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = old.local_addr().unwrap().port();
        let new = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
        let (old, _new) = (serve(old, "old"), serve(new, "new"));
        let config = format!(
            r#"{{"coordinator":{{"@type":"Redis","url":"redis://master:{port}?protocol=resp2"}}}}"#
        );
        let config = Config::load_text(config.as_bytes(), &Sources::default()).unwrap();
        let settings = Settings::from_config(&config).unwrap();
        let address = Arc::new(Mutex::new(IpAddr::from([127, 0, 0, 1])));
        let resolver = Resolver(Arc::new(Double(address.clone())));
        let server = Server::with_resolver(settings.seeds[0].clone(), &settings, resolver).unwrap();
        let mut closings = server.closings();

        assert!(!server.has_moved().await);
        assert_eq!(&*server.command().await.unwrap().run, "old");
        assert!(!server.has_moved().await);
        *address.lock() = IpAddr::from([127, 0, 0, 2]);
        assert_eq!(&*server.command().await.unwrap().run, "old", "the connection stays open");
        assert!(server.has_moved().await);
        server.close_connections().await;
        assert!(closings.has_changed().unwrap(), "subscriptions are made anew");
        closings.mark_unchanged();
        let closed = tokio::time::timeout(Duration::from_secs(10), old).await;
        assert_eq!(closed.expect("it is closed").unwrap().unwrap(), 0);
        assert_eq!(&*server.command().await.unwrap().run, "new");
        assert!(!server.has_moved().await && !closings.has_changed().unwrap());
    }
}
