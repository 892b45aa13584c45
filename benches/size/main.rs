#![forbid(unsafe_code)]
//! What gateways cost one another: many of them on one Redis, and what it pays.
//!
//!     cargo bench --bench size                               10 to 1,000 gateways of 16 shards
//!     cargo bench --bench size -- --gateways 10,40           a part
//!     cargo bench --bench size -- --waits                    `wait_for` over ten gateways
//!
//! The gateways are simulated: each is what a gateway has of the bus (its writers, its reader, its
//! connections and its membership), all in this process, and speaks the real protocol to a real
//! Redis. Measured for each number of gateways: what Redis pays while nothing is published; what
//! a frame of one event costs it, beside a plain `PUBLISH` of as many bytes to as many subscribers;
//! what it pays when nodes come and go; and how long a real gateway that starts takes until it
//! lists all nodes, and what memory they take there. `docs/scaling.md` has the results.

#[path = "../../tests/support/mod.rs"]
mod support;

mod members;
mod waits;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use clap::Parser;
use futures_util::{StreamExt, stream};
use serde_json::json;
use trunkline::{
    bus::{Batch, Delivery, Health, Registry, ShardId, SharedBus, Sink, Starting},
    config::Config,
};

use self::{
    members::Members,
    support::{RedisOptions, RedisServer, shared},
};

/// The columns of the table; the share of a core and the times are those of Redis.
const COLUMNS: [&str; 17] = [
    "gateways",
    "all ready after, s",
    "idle, % of a core",
    "calls of the script/s",
    "us in a call",
    "messages/s",
    "KB sent/s",
    "us for a frame of one event",
    "us for a plain PUBLISH",
    "accepted after, ms",
    "connections",
    "frames received by each",
    "with nodes that change, % of a core",
    "KB sent/s then",
    "nodes",
    "listed by a new gateway after, s",
    "MB that they take there",
];

/// Measures what gateways cost Redis.
#[derive(Debug, Parser)]
struct Options {
    /// Numbers of gateways.
    #[arg(long, value_delimiter = ',', default_value = "10,40,100,300,1000")]
    gateways: Vec<usize>,
    /// Shards of the deployment.
    #[arg(long, default_value_t = 16)]
    shards: u16,
    /// Seconds for which each figure is measured.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Frames of one event that are published in each second.
    #[arg(long, default_value_t = 100)]
    frames: u32,
    /// Nodes of each gateway.
    #[arg(long, default_value_t = 100)]
    nodes: u32,
    /// Nodes that come and go in each second, in all.
    #[arg(long, default_value_t = 20)]
    changes: u32,
    /// Measures how long publishers wait for a thousand nodes of ten real gateways instead.
    #[arg(long)]
    waits: bool,
    /// Passed by cargo to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Counts the frames that its gateway receives.
#[derive(Default)]
struct Count(AtomicU64);

impl Sink for Count {
    fn deliver(&self, _: ShardId, delivery: Delivery) {
        if let Delivery::Frame(_) = delivery {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What Redis had used and done at one time.
#[derive(Clone, Copy)]
struct Used {
    at: Instant,
    cpu: f64,
    sent: f64,
    calls: f64,
    /// Microseconds in scripts.
    scripts: f64,
    published: f64,
}

impl Used {
    async fn now(redis: &RedisServer) -> Used {
        let number = async |section, field| -> f64 {
            let text = redis.info(section, field).await.expect("a field of INFO");
            text.parse().expect("a number")
        };
        let cpu = number("cpu", "used_cpu_user").await + number("cpu", "used_cpu_sys").await;
        let sent = number("stats", "total_net_output_bytes").await;
        let of = async |command: &str, field: &str| -> f64 {
            let value = redis.command_stat(command, field).await;
            value.map_or(0.0, |value| value.parse().expect("a number"))
        };
        let (calls, scripts) = (of("evalsha", "calls").await, of("evalsha", "usec").await);
        let published = of("publish", "calls").await;
        Used { at: Instant::now(), cpu, sent, calls, scripts, published }
    }

    /// Of one core, in percent; in one second: KB sent, calls of scripts, messages published; and
    /// microseconds for each call.
    fn since(&self, before: &Used) -> [f64; 5] {
        let seconds = self.at.duration_since(before.at).as_secs_f64();
        let rate = |now: f64, before: f64| (now - before) / seconds;
        [
            (self.cpu - before.cpu) / seconds * 100.0,
            (self.sent - before.sent) / seconds / 1024.0,
            rate(self.calls, before.calls),
            rate(self.published, before.published),
            (self.scripts - before.scripts) / (self.calls - before.calls),
        ]
    }
}

fn config(redis: &RedisServer, options: &Options) -> Config {
    support::config(&json!({
        "coordinator": {"@type": "Redis", "url": redis.url()},
        "prefix": shared::prefix(),
        "shards": options.shards,
    }))
}

async fn gateway(config: &Config) -> (SharedBus, Arc<Count>) {
    let sink = Arc::<Count>::default();
    let starting = Starting {
        config,
        waiting: Box::new(|_| {}),
        sink: Box::new({
            let sink = sink.clone();
            move |_| sink
        }),
    };
    let registry = Registry::default();
    let factory = registry.get(config.bus.type_name()).expect("a registered bus");
    (factory.start(starting).await.expect("a bus that starts"), sink)
}

async fn measure(options: &Options, count: usize) {
    let redis = RedisServer::start(RedisOptions {
        args: vec!["--maxclients".into(), "20000".into()],
        ..RedisOptions::default()
    })
    .await;
    let config = config(&redis, options);
    let started = Instant::now();
    let starting = stream::iter(0..count).map(|_| gateway(&config)).buffer_unordered(32);
    let gateways: Vec<_> = starting.collect().await;
    for (bus, _) in &gateways {
        let mut health = bus.health();
        health.wait_for(|health| *health == Health::Ready).await.expect("a bus that runs");
    }
    let ready = started.elapsed();
    let members = Members::start(gateways.iter().map(|(bus, _)| bus.clone()), options.nodes).await;
    tokio::time::sleep(Duration::from_secs(5)).await;

    let seconds = Duration::from_secs(options.seconds);
    let before = Used::now(&redis).await;
    tokio::time::sleep(seconds).await;
    let [idle, sent, calls, published, usec] = Used::now(&redis).await.since(&before);

    let before = Used::now(&redis).await;
    members.change(options.changes, seconds).await;
    let [changing, sent_changing, ..] = Used::now(&redis).await.since(&before);
    let nodes = count as u64 * u64::from(options.nodes);
    let (listed, memory) = members::listed_at_a_new_gateway(&redis, &config.prefix, nodes).await;

    // One gateway publishes, to all shards in turn.
    let before = Used::now(&redis).await;
    let mut tick = tokio::time::interval(Duration::from_secs(1) / options.frames);
    let frames = options.frames * u32::try_from(options.seconds).expect("few seconds");
    let mut waits = Duration::ZERO;
    for nth in 0..frames {
        tick.tick().await;
        let shard = ShardId(u16::try_from(nth % u32::from(options.shards)).expect("a shard"));
        let asked = Instant::now();
        let batch = Batch {
            events: vec![Bytes::from_static(&[b'x'; 100])],
            request_id: None,
            runs: vec![],
            retain: vec![],
            trace: None,
        };
        gateways[0].0.append(shard, batch).await.expect("an event that is accepted");
        waits += asked.elapsed();
    }
    let [busy, ..] = Used::now(&redis).await.since(&before);

    let before = Used::now(&redis).await;
    let mut tick = tokio::time::interval(Duration::from_secs(1) / options.frames);
    let names: Vec<String> = redis.command(&["PUBSUB", "CHANNELS"]).await.expect("the channels");
    for nth in 0..frames as usize {
        tick.tick().await;
        let message = "x".repeat(180);
        let _: u64 = redis
            .command(&["PUBLISH", &names[nth % names.len()], &message])
            .await
            .expect("a number");
    }
    let [plain, ..] = Used::now(&redis).await.since(&before);

    let received: u64 = gateways.iter().map(|(_, sink)| sink.0.load(Ordering::Relaxed)).sum();
    let each = |percent: f64| (percent - idle) * 10_000.0 / f64::from(options.frames);
    let connections = redis.clients().await.len();
    let row = [
        count.to_string(),
        format!("{:.1}", ready.as_secs_f64()),
        format!("{idle:.1}"),
        format!("{calls:.0}"),
        format!("{usec:.1}"),
        format!("{published:.1}"),
        format!("{sent:.0}"),
        format!("{:.0}", each(busy)),
        format!("{:.0}", each(plain)),
        format!("{:.1}", waits.as_secs_f64() * 1000.0 / f64::from(frames)),
        connections.to_string(),
        (received / count as u64).to_string(),
        format!("{changing:.1}"),
        format!("{sent_changing:.0}"),
        nodes.to_string(),
        format!("{:.1}", listed.as_secs_f64()),
        memory.to_string(),
    ];
    println!("| {} |", row.join(" | "));
    members.stop().await;
    for (bus, _) in &gateways {
        bus.close().await;
    }
}

fn main() {
    let options = Options::parse();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    if options.waits {
        runtime.block_on(waits::measure(10, 1000));
        return;
    }
    println!("| {} |", COLUMNS.join(" | "));
    println!("|{}", "---|".repeat(COLUMNS.len()));
    for count in &options.gateways {
        runtime.block_on(measure(&options, *count));
    }
}
