//! Masters that move: to another address, which the sentinels know, or behind their address, where
//! a DNS name gets other addresses, or a proxy leads to another server. The connections from before
//! stay open, and would lead to the former master for good, be it a replica now (READONLY) or a
//! master without replicas (NOREPLICAS); they are closed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::topology::Topology;
use crate::throttle::Throttle;

/// The interval at which sentinels are asked, and names are resolved.
const INTERVAL: Duration = Duration::from_secs(1);

/// The least time between two looks because of failed calls.
const MIN_AGE: Duration = Duration::from_millis(100);

/// The least time between two closings because a server is a replica: it may stay one.
const REPLICA_PAUSE: Duration = Duration::from_secs(1);

/// The time for which a server may lack replicas: one that restarts is back by then.
const LACKS_REPLICAS: Duration = Duration::from_secs(2);

static MOVED: Throttle = Throttle::repeated();

static UNKNOWN: Throttle = Throttle::repeated();

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
            () = topology.switched() => {
                // What was asked for meanwhile may be from before.
                tokio::time::sleep(MIN_AGE).await;
                false
            }
        };
        if !failed
            && let Err(why) = topology.ask_sentinels().await
            && let Some(left_out) = UNKNOWN.pass()
        {
            tracing::warn!(%why, left_out, "the sentinels name no other master that can be used");
        }
        for server in topology.any() {
            let may_be_replica = failed
                && topology.owns(&server.address)
                && replica_closed.is_none_or(|at| at.elapsed() >= REPLICA_PAUSE);
            let why = if server.has_moved().await {
                "its name has other addresses"
            } else if may_be_replica && server.is_replica().await {
                replica_closed = Some(Instant::now());
                "it is a replica"
            } else if server.has_lacked_replicas(LACKS_REPLICAS) {
                "it lacks replicas"
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
    use std::{
        io::Error,
        net::{IpAddr, SocketAddr},
    };

    use parking_lot::Mutex;
    use redis::{RedisFuture, io::AsyncDNSResolver};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        task::JoinHandle,
    };

    use super::*;
    use crate::{
        bus::redis::{
            addresses::Way,
            resolver::{Resolved, Resolver},
            server::Server,
            settings::Settings,
        },
        config::{Config, Sources},
    };

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
    fn serve(listener: TcpListener, name: &'static str) -> JoinHandle<Result<usize, Error>> {
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
                let answer = format!("+{name}\r\n").repeat(commands);
                connection.write_all(answer.as_bytes()).await?;
            }
        })
    }

    /// The answer of the server at the other end of the command connection.
    async fn identity(server: &Server) -> String {
        let mut command = server.command().await.unwrap();
        redis::cmd("PING").query_async(&mut command.connection).await.unwrap()
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
        let info = settings.seeds[0].clone();
        let way = Way { announced: info.addr().to_string(), info, resolver };
        let server = Server::by(way, &settings).unwrap();
        let mut closings = server.closings();

        assert!(!server.has_moved().await);
        assert_eq!(identity(&server).await, "old");
        assert!(!server.has_moved().await);
        *address.lock() = IpAddr::from([127, 0, 0, 2]);
        assert_eq!(identity(&server).await, "old", "the connection stays open");
        assert!(server.has_moved().await);
        server.close_connections().await;
        assert!(closings.has_changed().unwrap(), "subscriptions are made anew");
        closings.mark_unchanged();
        let closed = tokio::time::timeout(Duration::from_secs(10), old).await;
        assert_eq!(closed.expect("it is closed").unwrap().unwrap(), 0);
        assert_eq!(identity(&server).await, "new");
        assert!(!server.has_moved().await && !closings.has_changed().unwrap());
    }
}
