//! What can be set, and nothing else.
//!
//! A configuration is a JSON document: the file, with what the environment and the command line set laid over it
//! ([`Sources`]). A walker of our own reads it, so that all violations are told at once, each with its
//! path and its limit ([`ConfigErrors`]). `docs/configuration.md` has every key; a test keeps it true.

mod access;
mod bus;
mod decode;
mod effective;
mod error;
mod fields;
mod json;
mod keys;
mod limits;
mod nearest;
mod otlp;
mod redis_url;
mod secret;
mod sources;
#[cfg(test)]
mod tests;
mod units;

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use serde_json::Value;
use uuid::Uuid;

pub(crate) use self::units::format_duration;
pub use self::{
    access::{
        Allow, Auth, Deny, EventRules, IdentityRules, Kinds, Operation, ServerTls, Token,
        TokenHash, TokenSource,
    },
    bus::{BusConfig, Pool, Protocol, Redis, RedisCluster, Tls},
    error::{ConfigErrors, Origin, Problem, Violation},
    keys::{Key, keys},
    limits::{Keepalive, Limits},
    otlp::Otlp,
    redis_url::{Endpoint, RedisUrl, RedisUrlError, TlsMode},
    secret::{Secret, SecretSource},
    sources::Sources,
};
use self::{fields::Context, sources::Layers};

/// Everything that can be set. [`Config::load`] keeps all values in their ranges; one that is put together by hand is not
/// checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The name of this gateway, at most 128 bytes; no two gateways of one bus have the same.
    pub gateway_id: String,
    /// Whether the name was made up for this process. Then [`Config::effective`] leaves it out.
    pub gateway_id_is_random: bool,
    /// Where nodes connect.
    pub listen: SocketAddr,
    /// Where operators connect; None is nowhere.
    pub admin: Option<SocketAddr>,
    /// TLS of the port for nodes. None: plain text.
    pub tls: Option<ServerTls>,
    /// What each identity may do. None: everybody may do everything.
    pub auth: Option<Auth>,
    /// Whether nodes may connect from elsewhere in plain text.
    pub insecure: bool,
    /// How often the files of certificates and tokens are looked at.
    pub reload_interval: Duration,
    /// What carries frames between gateways.
    pub bus: BusConfig,
    /// What frames in Redis are sealed with: keys of at least 32 bytes with white space between them, the first of which seals
    /// and all of which open. None: frames are not sealed.
    pub frame_key: Option<Secret>,
    /// What all names in Redis begin with. Gateways of one prefix are one system.
    pub prefix: String,
    /// The number of shards, 1 to 256. None: the bus decides.
    pub shards: Option<u16>,
    /// What the bus keeps of each shard.
    pub history: History,
    /// What this gateway keeps of each shard in memory.
    pub log: Log,
    /// How often a stream on which nothing else is sent gets a heartbeat, unless its node asks otherwise; 1 s to 1 h.
    pub heartbeat: Duration,
    /// What a node may ask for.
    pub limits: Limits,
    /// How peers that are gone are found.
    pub keepalive: Keepalive,
    /// How this gateway goes away.
    pub drain: Drain,
    /// For how long a repeated `request_id` is recognised.
    pub request_id_window: Duration,
    /// Where spans go; None: nowhere.
    pub otlp: Option<Otlp>,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// What is logged: a level, or `target=level` pairs, with commas between.
    pub log_level: String,
}

/// What the bus keeps of each shard, for streams that resume. The first limit that is reached counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// Older frames are dropped.
    pub max_age: Duration,
    /// Bytes a shard.
    pub max_bytes: u64,
    /// Frames a shard.
    pub max_frames: u64,
}

/// What a gateway keeps of each shard in memory. The first limit that is reached counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Bytes a shard.
    pub max_bytes: usize,
    /// Events a shard.
    pub max_events: usize,
}

/// How a gateway goes away when it is told to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drain {
    /// How long it serves on, unhealthy, so that load balancers see it before streams end.
    pub delay: Duration,
    /// Over how long the streams are told, so that their nodes do not all reconnect at once; not longer than the limit.
    pub spread: Duration,
    /// When it gives up on what is still open, counted from the end of the delay.
    pub timeout: Duration,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// Reads `sources`. If anything is wrong, everything that is wrong is told.
    ///
    /// Reads the file, and the files in which secrets and certificates lie; nothing else of the machine.
    pub fn load(sources: &Sources) -> Result<Config, ConfigErrors> {
        Config::decode(Layers::of(sources), sources)
    }

    /// As [`Config::load`], with `text` in place of the file.
    pub fn load_text(text: &[u8], sources: &Sources) -> Result<Config, ConfigErrors> {
        Config::decode(Layers::over("text", text, sources), sources)
    }

    fn decode(layers: Layers, sources: &Sources) -> Result<Config, ConfigErrors> {
        let Layers { document, origins, mut violations } = layers;
        let context = Context::new(&sources.env, &origins);
        let config = document.map(|document| context.decode(&document, decode::decode));
        violations.extend(context.into_violations());
        ConfigErrors::of(violations)?;
        // Without a document there is a violation that says why.
        Ok(config.unwrap_or_default())
    }

    /// The whole configuration as a document in which every key is set. Secrets are masked (`***`); apart from those, loading
    /// it gives the same configuration again. `Default` has become the bus that it stands for.
    pub fn effective(&self) -> Value {
        effective::effective(self)
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            gateway_id: random_id(),
            gateway_id_is_random: true,
            listen: (Ipv4Addr::LOCALHOST, 7420).into(),
            admin: Some((Ipv4Addr::LOCALHOST, 7421).into()),
            tls: None,
            auth: None,
            insecure: false,
            reload_interval: Duration::from_secs(1),
            bus: BusConfig::Embedded,
            frame_key: None,
            prefix: "trunkline".to_owned(),
            shards: None,
            history: History::default(),
            log: Log::default(),
            heartbeat: Duration::from_secs(15),
            limits: Limits::default(),
            keepalive: Keepalive::default(),
            drain: Drain::default(),
            request_id_window: Duration::from_mins(1),
            otlp: None,
            log_format: LogFormat::Text,
            log_level: "info".to_owned(),
        }
    }
}

/// A name for a gateway that has none: `gw-` and 48 random bits, of which a thousand gateways share none in practice.
fn random_id() -> String {
    let id = Uuid::new_v4().simple().to_string();
    format!("gw-{}", &id[20..])
}

impl Default for History {
    fn default() -> History {
        History { max_age: Duration::from_mins(5), max_bytes: 64 << 20, max_frames: 100_000 }
    }
}

impl Default for Log {
    fn default() -> Log {
        Log { max_bytes: 32 << 20, max_events: 200_000 }
    }
}

impl Default for Drain {
    fn default() -> Drain {
        Drain {
            delay: Duration::ZERO,
            spread: Duration::from_secs(1),
            timeout: Duration::from_secs(10),
        }
    }
}

impl LogFormat {
    const ALL: [LogFormat; 2] = [LogFormat::Text, LogFormat::Json];

    /// As it is written: `text`, `json`.
    pub fn as_str(self) -> &'static str {
        match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }
    }

    fn of(name: &str) -> LogFormat {
        if name == "json" { LogFormat::Json } else { LogFormat::Text }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
