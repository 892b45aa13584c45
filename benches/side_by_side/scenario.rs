//! The scenarios, the most important first, and the contestants of each.

use std::time::Duration;

use crate::{
    contestant::{Batch, Contestant, System},
    load::{self, Offer},
    payload::Content,
    report::Metrics,
};

/// One scenario.
#[derive(Clone, Copy, Debug)]
pub enum Scenario {
    /// Closed loop: as fast as requests are acknowledged.
    FanOut(Offer),
    /// Open loop: at a fixed rate.
    Latency { subscribers: usize, rate: u64 },
    /// Idle streams.
    Idle { streams: usize, per_connection: usize },
    /// Subscribers whose filters match events, and others whose filters match none.
    Filters { matching: usize, others: usize },
    /// Streams whose interest changes, and events that pass meanwhile.
    Updates { watchers: usize, rate: u64 },
    /// A growing number of nodes.
    Growth { nodes: usize },
}

/// A fan-out with one publisher.
fn fan_out(subscribers: usize, batch: usize, content: Content) -> Scenario {
    Scenario::FanOut(Offer { publishers: 1, subscribers, batch, content })
}

impl Scenario {
    /// All scenarios. `quick`: with few nodes, as a smoke test.
    pub fn all(quick: bool) -> Vec<Scenario> {
        use Content::{Custom, Mailbox};
        let many = |batch| {
            let content = Mailbox;
            Scenario::FanOut(Offer { publishers: 16, subscribers: 100, batch, content })
        };
        let mut all = vec![
            fan_out(100, 100, Mailbox),
            fan_out(100, 1, Mailbox),
            Scenario::Latency { subscribers: 1, rate: 1_000 },
            Scenario::Latency { subscribers: 100, rate: 10_000 },
            Scenario::Filters { matching: 1_000, others: 0 },
            Scenario::Filters { matching: 1_000, others: 10_000 },
            Scenario::Updates { watchers: 100, rate: 0 },
            Scenario::Updates { watchers: 100, rate: 10_000 },
            Scenario::Idle { streams: 10_000, per_connection: 100 },
            Scenario::Idle { streams: 10_000, per_connection: 1 },
            fan_out(1_000, 100, Mailbox),
            fan_out(1_000, 1, Mailbox),
            many(100),
            many(1),
        ];
        all.extend([10, 100, 500, 2_000].map(|nodes| Scenario::Growth { nodes }));
        all.extend([
            Scenario::Latency { subscribers: 100, rate: 1_000 },
            Scenario::Latency { subscribers: 1, rate: 10_000 },
        ]);
        for batch in [100, 1] {
            all.extend([1, 10].map(|subscribers| fan_out(subscribers, batch, Mailbox)));
        }
        for batch in [100, 1] {
            all.extend([1, 10, 100, 1_000].map(|nodes| fan_out(nodes, batch, Custom)));
        }
        if quick { all.into_iter().map(Scenario::small).collect() } else { all }
    }

    /// The same with a tenth of the nodes.
    fn small(self) -> Scenario {
        let few = |count: usize| if count > 10 { count / 10 } else { count };
        match self {
            Scenario::FanOut(offer) => {
                Scenario::FanOut(Offer { subscribers: few(offer.subscribers), ..offer })
            }
            Scenario::Latency { subscribers, rate } => {
                Scenario::Latency { subscribers: few(subscribers), rate: rate / 10 }
            }
            Scenario::Idle { streams, per_connection } => {
                Scenario::Idle { streams: streams / 10, per_connection }
            }
            Scenario::Filters { matching, others } => {
                Scenario::Filters { matching: matching / 10, others: others / 10 }
            }
            Scenario::Updates { watchers, rate } => {
                Scenario::Updates { watchers: few(watchers), rate: rate / 10 }
            }
            Scenario::Growth { nodes } => Scenario::Growth { nodes: few(nodes) },
        }
    }

    /// Its name in the tables, by which targets and plots find it.
    pub fn name(self) -> String {
        match self {
            Scenario::FanOut(Offer { publishers: 1, subscribers, batch, content }) => {
                format!("fan-out, 1 to {subscribers}, {batch} a request, {}", content.name())
            }
            Scenario::FanOut(Offer { publishers, subscribers, batch, .. }) => {
                format!("many to many, {publishers} to {subscribers}, {batch} a request")
            }
            Scenario::Latency { subscribers, rate } => {
                format!("latency, {rate}/s, 1 to {subscribers}, open loop")
            }
            Scenario::Idle { streams, per_connection } => {
                format!("idle, {streams} streams, {per_connection} a connection")
            }
            Scenario::Filters { matching, others } => {
                format!("filters, {matching} that match, {others} that do not")
            }
            Scenario::Updates { watchers, rate } => {
                format!("updates, {rate}/s of {watchers} watchers, 50000 events/s")
            }
            Scenario::Growth { nodes } => format!("growth, {nodes} nodes"),
        }
    }

    /// The contestants in order: the floor that copies Trunkline's batches comes after Trunkline.
    pub fn contestants(self) -> Vec<Contestant> {
        use Contestant::{
            BareRedis, Cluster, Echo, Embedded, Nats, PlainClassic, PlainRedis, PlainSharded,
            Redis, RedisByStream, RedisPositions, Relay, Sender, Stream, Unary,
        };
        let as_delivered = Stream(Batch::AsDelivered);
        match self {
            Scenario::FanOut(offer) if offer.publishers > 1 => {
                vec![Redis(2), Cluster(2), PlainRedis, PlainClassic, PlainSharded, Nats]
            }
            Scenario::FanOut(Offer { content: Content::Custom, .. }) => {
                vec![Redis(1), PlainRedis, Nats, as_delivered]
            }
            Scenario::FanOut(Offer { subscribers, batch, .. }) => {
                let mut all = vec![
                    Redis(1),
                    RedisByStream,
                    PlainRedis,
                    Nats,
                    as_delivered,
                    Embedded,
                    Redis(2),
                ];
                if subscribers >= 100 {
                    all.extend([Cluster(1), Cluster(2), PlainClassic, PlainSharded]);
                }
                if subscribers == 100 {
                    all.extend([Unary, Relay]);
                }
                if subscribers == 100 && batch == 100 {
                    all.push(Stream(Batch::Of(100)));
                }
                all
            }
            Scenario::Latency { subscribers, .. } => {
                let mut all = vec![Redis(1), RedisByStream, PlainRedis, Nats];
                if subscribers == 1 {
                    all.extend([Echo, BareRedis, RedisPositions, Sender]);
                }
                all.extend([Embedded, Redis(2), Cluster(1), PlainClassic, PlainSharded]);
                all
            }
            Scenario::Idle { .. } => vec![Redis(1), Embedded, Relay],
            Scenario::Filters { .. } | Scenario::Updates { .. } => vec![Redis(1), Embedded],
            Scenario::Growth { .. } => vec![Redis(1), Redis(2), PlainRedis, Nats],
        }
    }

    /// Events per request.
    pub fn batch(self) -> u32 {
        match self {
            Scenario::FanOut(offer) => u32::try_from(offer.batch).expect("a small number"),
            _ => 1,
        }
    }

    /// Rounds in which it takes part: memory hardly varies, and growth takes long.
    pub fn rounds(self, rounds: usize) -> usize {
        match self {
            Scenario::Idle { .. } | Scenario::Growth { .. } => rounds.min(2),
            _ => rounds,
        }
    }

    /// Estimated seconds of a run, before there was one.
    pub fn guess(self, length: Duration) -> f64 {
        let seconds = length.as_secs_f64();
        match self {
            Scenario::FanOut(offer) if offer.subscribers >= 1_000 => seconds + 3.0,
            Scenario::FanOut(_) => seconds + 1.2,
            Scenario::Latency { .. } => 2.0 * seconds + 1.2,
            Scenario::Idle { .. } => 9.0,
            Scenario::Filters { .. } | Scenario::Updates { .. } => 2.0 * seconds + 3.0,
            Scenario::Growth { .. } => 2.0 * seconds + 4.0,
        }
    }

    /// Runs it.
    pub async fn run(self, system: &System, length: Duration) -> Metrics {
        match self {
            Scenario::FanOut(offer) => load::fan_out(system, offer, length).await,
            Scenario::Latency { subscribers, rate } => {
                load::latency(system, subscribers, rate, 2 * length).await
            }
            Scenario::Idle { streams, per_connection } => {
                load::idle(system, streams, per_connection).await
            }
            Scenario::Filters { matching, others } => {
                load::filters(system, matching, others, 2 * length).await
            }
            Scenario::Updates { watchers, rate } => {
                load::updates(system, watchers, rate, 2 * length).await
            }
            Scenario::Growth { nodes } => load::growth(system, nodes, length).await,
        }
    }
}
