//! The contestants, and the servers that each needs.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use serde_json::json;
use tonic::transport::Channel;

use crate::{
    connections::{BareSubscriber, bare_connection, channel_on},
    floor,
    machine::cpu_of,
    support::{
        ClusterOptions, Gateway, GatewayOptions, RedisCluster, RedisOptions, RedisServer,
        gateway::{binary, connect},
        ports::Port,
        process::{Process, Program},
    },
};

/// Connections that a gateway accepts from one address: all nodes of the benchmark share one.
const MAX_CONNECTIONS: u32 = 15_000;

/// One of the systems that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contestant {
    /// Trunkline in one process, without Redis.
    Embedded,
    /// Trunkline on a standalone Redis; nodes are spread over this number of gateways.
    Redis(usize),
    /// The same with one gateway, and publishers that publish on streams.
    RedisByStream,
    /// Trunkline on a Redis Cluster of three masters.
    Cluster(usize),
    /// Redis pub/sub: each node has a connection of its own.
    PlainRedis,
    /// Classic pub/sub on a cluster of three masters: each node has a connection to one of them.
    PlainClassic,
    /// Sharded pub/sub on a cluster of three masters: one channel on each, and each node has a
    /// connection to each.
    PlainSharded,
    /// NATS core: each node has a connection of its own.
    Nats,
    /// tonic, streaming batches of this size from memory; nothing is published.
    Stream(Batch),
    /// tonic, handing a prepared message to all streams for each request of a publisher: the least
    /// that publishing and delivering over tonic costs.
    Relay,
    /// tonic, taking requests of the same size as a publisher's; nothing is delivered.
    Unary,
    /// A tonic unary round trip with one event.
    Echo,
    /// Redis, publishing to the connection that publishes.
    BareRedis,
    /// The same, by the smallest script that gives an event a position, keeps it and publishes it.
    RedisPositions,
    /// No network: from the thread that sends to a task that takes the time.
    Sender,
}

/// Events in a message of the floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// As many as Trunkline on Redis delivered in one in the same round.
    AsDelivered,
    /// A fixed number.
    Of(u32),
}

impl Contestant {
    /// Its name in the tables.
    pub fn name(self) -> String {
        let gateways = |bus: &str, gateways: usize| match gateways {
            1 => format!("trunkline {bus}"),
            more => format!("trunkline {bus}, {more} gateways"),
        };
        match self {
            Contestant::Embedded => "trunkline embedded".into(),
            Contestant::Redis(count) => gateways("redis", count),
            Contestant::RedisByStream => "trunkline redis, by stream".into(),
            Contestant::Cluster(count) => gateways("cluster", count),
            Contestant::PlainRedis => "plain redis".into(),
            Contestant::PlainClassic => "plain cluster, classic".into(),
            Contestant::PlainSharded => "plain cluster, sharded".into(),
            Contestant::Nats => "nats core".into(),
            Contestant::Stream(Batch::AsDelivered) => "floor: tonic stream, as delivered".into(),
            Contestant::Stream(Batch::Of(count)) => {
                format!("floor: tonic stream, {count} a message")
            }
            Contestant::Relay => "floor: tonic relay".into(),
            Contestant::Unary => "floor: tonic unary publish".into(),
            Contestant::Echo => "floor: tonic unary round trip".into(),
            Contestant::BareRedis => "floor: redis, one connection".into(),
            Contestant::RedisPositions => "floor: redis, one connection, with positions".into(),
            Contestant::Sender => "floor: the sender itself".into(),
        }
    }
}

/// The Redis Cluster that all runs share, started when it is first needed: it takes seconds to
/// form.
#[derive(Default)]
pub struct SharedCluster {
    cluster: tokio::sync::OnceCell<Arc<RedisCluster>>,
}

impl SharedCluster {
    async fn get(&self) -> Arc<RedisCluster> {
        let start = async || {
            let options = ClusterOptions { replicas: 0, ..ClusterOptions::default() };
            Arc::new(RedisCluster::with(options).await)
        };
        self.cluster.get_or_init(start).await.clone()
    }
}

/// The Redis of a contestant.
pub enum Bus {
    /// No Redis.
    None,
    /// A server of its own.
    Server(Box<RedisServer>),
    /// The cluster that all runs share.
    Cluster(Arc<RedisCluster>),
}

impl Bus {
    /// Its servers.
    pub fn servers(&self) -> &[RedisServer] {
        match self {
            Bus::None => &[],
            Bus::Server(server) => std::slice::from_ref(server.as_ref()),
            Bus::Cluster(cluster) => cluster.nodes(),
        }
    }
}

/// A contestant's running servers.
pub struct System {
    /// The contestant.
    pub contestant: Contestant,
    /// Its Redis.
    pub bus: Bus,
    pub(crate) gateways: Vec<Gateway>,
    // NATS, or the floor.
    other: Option<(Process, Port)>,
    // Channels of sharded pub/sub: one on each master.
    pub(crate) channels: Vec<String>,
    // The one connection of the bare Redis, and its subscriber.
    pub(crate) bare: Option<(MultiplexedConnection, BareSubscriber)>,
    /// Events in a message of the floor's stream.
    pub batch: u32,
}

impl System {
    /// Starts the servers of the contestant. None if one is not installed on this machine.
    pub async fn start(contestant: Contestant, shared: &SharedCluster) -> Option<System> {
        let mut system = System {
            contestant,
            bus: Bus::None,
            gateways: vec![],
            other: None,
            channels: vec![],
            bare: None,
            batch: 1,
        };
        match contestant {
            Contestant::Embedded => system.add_gateways(1, &GatewayOptions::embedded()).await,
            Contestant::Redis(_) | Contestant::RedisByStream => {
                let gateways = if let Contestant::Redis(count) = contestant { count } else { 1 };
                let redis = RedisServer::start(RedisOptions::default()).await;
                system.add_gateways(gateways, &GatewayOptions::redis(&redis.url(), "bench")).await;
                system.bus = Bus::Server(Box::new(redis));
            }
            Contestant::Cluster(gateways) => {
                let cluster = shared.get().await;
                let prefix = format!("bench-{}", uuid::Uuid::new_v4().simple());
                let options = GatewayOptions::redis_cluster(&cluster.urls(), &prefix);
                system.add_gateways(gateways, &options).await;
                system.bus = Bus::Cluster(cluster);
            }
            Contestant::PlainRedis => {
                let redis = RedisServer::start(RedisOptions::default()).await;
                system.bus = Bus::Server(Box::new(redis));
            }
            Contestant::PlainClassic => system.bus = Bus::Cluster(shared.get().await),
            Contestant::PlainSharded => {
                let cluster = shared.get().await;
                for index in 0..cluster.nodes().len() {
                    system.channels.push(channel_on(&cluster, index).await);
                }
                system.bus = Bus::Cluster(cluster);
            }
            Contestant::BareRedis | Contestant::RedisPositions => {
                let redis = RedisServer::start(RedisOptions::default()).await;
                let subscriber = Arc::new(Mutex::new(None));
                let connection = bare_connection(&redis.url(), subscriber.clone()).await;
                system.bare = Some((connection, subscriber));
                system.bus = Bus::Server(Box::new(redis));
            }
            Contestant::Nats => {
                let server = nats_server()?;
                let port = Port::free();
                let args = ["-a", "127.0.0.1", "-p", &port.number().to_string()];
                let process = Process::start("nats-server", Program::new(server, args));
                system.other = Some((process, port));
            }
            Contestant::Stream(_) | Contestant::Relay | Contestant::Unary | Contestant::Echo => {
                let port = Port::free();
                let own = std::env::current_exe().expect("the path of this program");
                let args = [floor::ARGUMENT, &port.number().to_string()];
                system.other = Some((Process::start("floor", Program::new(own, args)), port));
            }
            Contestant::Sender => {}
        }
        Some(system)
    }

    async fn add_gateways(&mut self, count: usize, options: &GatewayOptions) {
        let mut options = options.clone();
        if limits_are_settable() {
            let limits = json!({
                "maxConnections": MAX_CONNECTIONS,
                "maxConnectionsPerPeer": MAX_CONNECTIONS,
            });
            options = options.set("limits", limits);
        }
        for _ in 0..count {
            self.gateways.push(Gateway::start(options.clone()).await);
        }
    }

    /// Ends the servers, and empties the shared cluster.
    pub async fn end(self) {
        // Gateways first: they would write to it again.
        drop(self.gateways);
        if let Bus::Cluster(cluster) = &self.bus {
            for server in cluster.nodes() {
                let _: Result<String, _> = server.command(&["FLUSHALL"]).await;
            }
        }
    }

    /// CPU seconds used so far by the gateways, or by the server in their place.
    pub fn server_cpu(&self) -> f64 {
        let gateways: f64 = self.gateways.iter().map(|gateway| cpu_of(gateway.pid())).sum();
        gateways + self.other.as_ref().map_or(0.0, |(process, _)| cpu_of(process.pid()))
    }

    /// CPU seconds used so far by Redis.
    pub fn redis_cpu(&self) -> f64 {
        self.bus.servers().iter().map(|server| cpu_of(server.pid())).sum()
    }

    /// Resident memory in bytes of the gateways, or of the server in their place.
    pub fn rss_bytes(&self) -> u64 {
        let gateways: u64 = self.gateways.iter().map(Gateway::rss_bytes).sum();
        gateways + self.other.as_ref().map_or(0, |(process, _)| process.rss_bytes())
    }

    /// A connection to the first gateway, or to the floor.
    pub async fn server(&self) -> Channel {
        if self.gateways.is_empty() { self.floor().await } else { self.gateway(0).await }
    }

    /// A connection to the gateway of a node.
    pub async fn gateway(&self, node: usize) -> Channel {
        let gateway = &self.gateways[node % self.gateways.len()];
        connect(&gateway.url()).await.expect("a connection to the gateway")
    }

    /// A connection to the floor.
    pub async fn floor(&self) -> Channel {
        let url = format!("http://127.0.0.1:{}", self.port());
        for _ in 0..200 {
            if let Ok(channel) = connect(&url).await {
                return channel;
            }
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        }
        panic!("the floor did not come up");
    }

    /// The port of NATS or of the floor.
    pub fn port(&self) -> u16 {
        self.other.as_ref().expect("it runs").1.number()
    }
}

/// True if this build has limits of connections: the benchmark also compares builds without them.
fn limits_are_settable() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let limit = |name: &str| format!("limits.{name}={MAX_CONNECTIONS}");
        let mut check = std::process::Command::new(binary());
        // The benchmark's own variables are not keys of a gateway's configuration.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"TRUNKLINE_") {
                check.env_remove(name);
            }
        }
        let checked = check
            .args(["check", "--set", &limit("maxConnections")])
            .args(["--set", &limit("maxConnectionsPerPeer")])
            .output();
        checked.is_ok_and(|output| output.status.success())
    })
}

/// The `nats-server` that `TRUNKLINE_BENCH_NATS_SERVER` names, or that is in `PATH`.
pub fn nats_server() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("TRUNKLINE_BENCH_NATS_SERVER") {
        return Some(named.into());
    }
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths)
        .map(|folder| folder.join("nats-server"))
        .find(|file| file.is_file())
}
