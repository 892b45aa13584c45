//! The configuration: declarations of all keys, and everything that is made from them.
//!
//! A configuration is a JSON document: the file, overlaid with what the environment and the command
//! line set ([`Sources`]). A reader of our own finds all violations at once, each with its path and
//! its limit ([`ConfigErrors`]). Each key is declared once, as a field of a struct with its name,
//! type, default, limits and meaning; see `settings.rs`. The reader, [`Config::effective`],
//! [`keys()`] with the names of the environment variables, the JSON [`schema()`], the help of flags
//! and the tables of `docs/configuration.md` are made from that declaration.
//!
//! The comments of fields are those declarations: they speak of the JSON document, where `null` is
//! None in Rust.

mod access;
mod bus;
mod declaration;
mod error;
mod fields;
mod frame_key;
mod gateway_id;
mod http;
mod json;
mod keys;
mod limits;
mod nearest;
mod otlp;
mod password;
mod protocol;
mod redis_url;
mod rules;
mod schema;
mod secret;
mod secret_key;
mod settings;
mod sources;
#[cfg(test)]
mod tests;
mod types;
mod units;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::LazyLock,
    time::Duration,
};

use serde_json::Value;

pub use self::nearest::nearest;
pub(crate) use self::units::format_duration;
pub use self::units::parse_duration;
pub use self::{
    access::{
        Allow, Auth, Deny, EventRules, IdentityRules, Kinds, Operation, ServerTls, Token,
        TokenHash, TokenSource,
    },
    bus::{
        BusConfig, HostPort, MappedAddress, MasterTls, Pool, Redis, RedisCluster, RedisSentinel,
        Retries, Tls,
    },
    error::{ConfigErrors, Origin, Problem, Violation},
    http::Http,
    keys::Key,
    limits::{Keepalive, Limits},
    otlp::Otlp,
    password::{LoginCommand, Password},
    protocol::Protocol,
    redis_url::{Endpoint, RedisUrl, RedisUrlError, TlsMode},
    schema::schema,
    secret::{Secret, SecretSource},
    sources::Sources,
};
use self::{
    bus::Bus,
    declaration::{Declaration, Shape},
    fields::Context,
    frame_key::FrameKey,
    gateway_id::{IsRandom, gateway_id},
    keys::keys_of,
    rules::{check_config, check_drain, check_id, check_log_level, check_prefix},
    settings::{Settings, group, group_if, key, nullable, optional, optional_group, settings},
    sources::Layers,
    types::{Address, Boolean, Choice, duration, number, short_text, size, text},
    units::{DAY, GIB, HOUR, KIB, MIB, MINUTE, SECOND},
};

const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7420);
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7421);

settings! {
    /// The whole configuration. [`Config::load`] keeps all values within their limits; one that is
    /// assembled by hand is not checked.
    pub struct Config checked by check_config {
        /// The address for nodes. Any other than one of loopback needs `tls` or `insecure`.
        pub listen: SocketAddr = key("listen", Address, LISTEN),
        /// The address for operators: [a page, metrics and probes](operations.md). `null`: none.
        /// Must not have the port of `listen`.
        pub admin: Option<SocketAddr> = nullable("admin", Address, ADMIN),
        /// The port for browsers and scripts: see [HTTP](http.md).
        pub http: Option<Http> = optional_group("http"),
        /// TLS of the ports for nodes and for HTTP. All are PEM files.
        pub tls: Option<ServerTls> = group_if("tls", ServerTls::is_set),
        /// The rights of each identity. With it all requests but those of the health service need
        /// credentials, and nothing is allowed that is not named here. `null`: everything is
        /// allowed to everybody.
        pub auth: Option<Auth> = optional_group("auth"),
        /// True: nodes may connect from other machines in plain text, tokens included. The gateway
        /// warns of it when it starts.
        pub insecure: bool = key("insecure", Boolean, false),
        /// How often the files of certificates and tokens are checked for changes. A change takes
        /// effect when two checks have found the same.
        pub reload_interval: Duration =
            key("reloadInterval", duration(SECOND / 10..=HOUR), SECOND),
        /// The name of this gateway, without white space; no two gateways of one bus have the same.
        /// `null`: a random one at each start.
        pub gateway_id: String = gateway_id(),
        /// True when `gatewayId` was made up for this process. [`Config::effective`] leaves it out
        /// then.
        pub gateway_id_is_random: bool = IsRandom,
        /// The name of this deployment, the same on all gateways of one bus and on those of no
        /// other; without white space. Links know by it where an event has been: see
        /// [regions](regions.md). `null`: none, and no link serves.
        pub deployment: Option<String> = optional("deployment", short_text(128, check_id)),
        /// The bus between gateways. Without it: `{"@type": "Embedded"}`.
        pub bus: BusConfig = Bus,
        /// Keys that authenticate frames in a Redis that others use too, at least 32 bytes each,
        /// with white space between them: see [Authenticated frames](#authenticated-frames).
        pub frame_key: Option<Secret> = FrameKey,
        /// The beginning of the names of all keys and channels in Redis: letters, digits and
        /// `._-:/`. Gateways that share a prefix are one system; two systems on one Redis need two.
        pub prefix: String = key("prefix", short_text(64, check_prefix), "trunkline"),
        /// The number of shards, the ordered channels of the bus. `null`: the bus decides, one for
        /// a standalone server, 16 for a cluster, however many masters it has. The first gateway
        /// records it in Redis, and the others must agree.
        pub shards: Option<u16> = optional("shards", number(1..=256)),
        /// What the bus keeps of each shard. The first limit that is reached counts.
        pub history: History = group("history"),
        /// What this gateway keeps of each shard in memory. The first limit that is reached counts.
        pub log: Log = group("log"),
        /// True: gateways publish [events about nodes](presence.md), `node_joined` and `node_left`,
        /// for streams that ask for them. Each stream that a node opens then costs an event, and
        /// another one when it ends. The same on all gateways of one bus.
        pub node_events: bool = key("nodeEvents", Boolean, false),
        /// The interval of heartbeats on a stream on which nothing else is sent, unless its node
        /// asks for another one.
        pub heartbeat: Duration = key("heartbeat", duration(SECOND..=HOUR), 15 * SECOND),
        /// Limits of what nodes may ask for.
        pub limits: Limits = group("limits"),
        /// Detection of peers that are gone without closing their connection.
        pub keepalive: Keepalive = group("keepalive"),
        /// The steps in which a gateway stops.
        pub drain: Drain = group("drain"),
        /// How gateways even out their streams: one that has many more than its share asks some of
        /// its nodes to go on at another one.
        pub rebalance: Rebalance = group("rebalance"),
        /// A repeated `request_id` is recognised for this time, so that a retried `Publish` does
        /// not publish twice.
        pub request_id_window: Duration =
            key("requestIdWindow", duration(SECOND..=HOUR), MINUTE),
        /// The collector of traces.
        pub otlp: Option<Otlp> = group_if("otlp", Otlp::is_set),
        /// `text`, or `json` for one JSON object a line.
        pub log_format: LogFormat =
            key("logFormat", Choice(&LogFormat::WORDS), LogFormat::Text),
        /// `off`, `error`, `warn`, `info`, `debug` or `trace`; also for single modules,
        /// `info,trunkline::bus=debug`.
        pub log_level: String = key("logLevel", text(check_log_level), "info"),
    }
}

settings! {
    /// What the bus keeps of each shard, for streams that resume.
    pub struct History {
        /// Older frames are dropped.
        pub max_age: Duration = key("maxAge", duration(SECOND..=7 * DAY), 5 * MINUTE),
        /// Bytes for each shard.
        pub max_bytes: u64 = key("maxBytes", size(KIB..=64 * GIB), 64 * MIB),
        /// Frames for each shard.
        pub max_frames: u64 = key("maxFrames", number(1..=1_000_000_000), 100_000),
    }
}

settings! {
    /// What a gateway keeps of each shard in memory.
    pub struct Log {
        /// Bytes for each shard.
        pub max_bytes: usize = key("maxBytes", size(KIB..=16 * GIB), 32 * MIB),
        /// Events for each shard.
        pub max_events: usize = key("maxEvents", number(1..=100_000_000), 200_000),
    }
}

settings! {
    /// The steps in which a gateway stops.
    pub struct Drain checked by check_drain {
        /// The gateway keeps serving for this time with its health `NOT_SERVING`, so that load
        /// balancers send no new connections.
        pub delay: Duration = key("delay", duration(0..=5 * MINUTE), 0),
        /// The time over which the notifications to streams are spread, so that their nodes do not
        /// all reconnect at once. Not more than `drain.timeout`; the default is lower where that
        /// is.
        pub spread: Duration = key("spread", duration(0..=5 * MINUTE), SECOND),
        /// The gateway ends within this time, counted from the end of the delay. Streams that are
        /// still open are ended before, so that a quarter of it, at most 2 s, is left for the rest.
        pub timeout: Duration = key("timeout", duration(SECOND..=HOUR), 10 * SECOND),
    }
}

settings! {
    /// How gateways even out their streams.
    pub struct Rebalance {
        /// False: this gateway asks no stream to leave because others have fewer.
        pub enabled: bool = key("enabled", Boolean, true),
        /// The number of streams that are asked to leave in a second, at most.
        pub streams_per_second: u32 = key("streamsPerSecond", number(1..=10_000), 10),
        /// Streams are moved only when the same gateways have served for this time: after a restart
        /// nodes find their places by themselves first.
        pub after: Duration = key("after", duration(SECOND..=HOUR), 30 * SECOND),
        /// A stream that is younger is not asked.
        pub min_age: Duration = key("minAge", duration(0..=DAY), 2 * MINUTE),
    }
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    const WORDS: [(&str, LogFormat); 2] = [("text", LogFormat::Text), ("json", LogFormat::Json)];
}

impl Config {
    /// Reads `sources`; the error holds every violation.
    ///
    /// Reads the file, and the files that hold secrets and certificates; nothing else of the
    /// machine.
    pub fn load(sources: &Sources) -> Result<Config, ConfigErrors> {
        Config::decode(Layers::of(sources), sources)
    }

    /// As [`Config::load`], with `text` in place of the file.
    pub fn load_text(text: &[u8], sources: &Sources) -> Result<Config, ConfigErrors> {
        Config::decode(Layers::over("text", text, sources), sources)
    }

    fn decode(layers: Layers, sources: &Sources) -> Result<Config, ConfigErrors> {
        let Layers { document, origins, mut violations } = layers;
        let context = Context::new(&sources.env, &origins, keys());
        let config = document.map(|document| context.read(&document, Config::read));
        violations.extend(context.into_violations());
        ConfigErrors::of(violations)?;
        // Without a document there is a violation that says why.
        Ok(config.unwrap_or_default())
    }

    /// The effective configuration as a document in which every key is set. Secrets are masked
    /// (`***`); apart from those, loading it gives the same configuration again. `Default` is
    /// replaced by the bus that it stands for.
    pub fn effective(&self) -> Value {
        Value::Object(self.show())
    }
}

/// A key of the document that names the schema for editors.
const SCHEMA: &str = "$schema";

/// The declarations of the whole configuration.
fn declarations() -> &'static [Declaration] {
    static DECLARATIONS: LazyLock<Vec<Declaration>> = LazyLock::new(|| {
        let meaning = "Ignored; editors find the schema by it: `trunkline config schema`.";
        let mut declarations = vec![Declaration::new(SCHEMA, meaning, Shape::Ignored)];
        declarations.extend(Config::describe());
        declarations
    });
    &DECLARATIONS
}

/// All keys, in the order of their declarations; of `coordinator` and `inMemoryStore`, those of all
/// variants.
pub fn keys() -> &'static [Key] {
    static KEYS: LazyLock<Vec<Key>> = LazyLock::new(|| keys_of(declarations()));
    &KEYS
}

impl Key {
    /// The key at `path`, if it is declared.
    pub fn at(path: &str) -> Option<&'static Key> {
        keys().iter().find(|key| key.path == path)
    }
}
