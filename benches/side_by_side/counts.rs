//! Samples of the counters of Redis and of the CPU time of processes, before and after a
//! measurement.

use std::time::{Duration, Instant};

use redis::{AsyncConnectionConfig, Client, cmd};

use crate::{
    contestant::{Bus, System},
    load::float,
    machine::{all_cpu, own_cpu},
    report::Metrics,
};

/// Connections that a sample itself takes.
const OWN_CONNECTIONS: u64 = 1;

/// Time limit for the answer of a busy Redis.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Counters of Redis since its start, summed up over all servers.
#[derive(Clone, Copy, Debug, Default)]
pub struct RedisCounts {
    /// Commands, those of scripts included.
    pub commands: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
    /// Connections now.
    pub connections: u64,
}

/// Reads the counters of Redis. None if there is no Redis, or it does not answer under load.
async fn redis_counts(bus: &Bus) -> Option<RedisCounts> {
    let limits = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(ANSWER_TIMEOUT))
        .set_response_timeout(Some(ANSWER_TIMEOUT));
    let mut counts = RedisCounts::default();
    for server in bus.servers() {
        let client = Client::open(server.url()).ok()?;
        let connection = client.get_multiplexed_async_connection_with_config(&limits).await;
        let text: String = cmd("INFO").query_async(&mut connection.ok()?).await.ok()?;
        let field = |name: &str| {
            let value =
                |line: &str| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok();
            text.lines().find_map(value).unwrap_or(0)
        };
        counts.commands += field("total_commands_processed");
        counts.bytes_in += field("total_net_input_bytes");
        counts.bytes_out += field("total_net_output_bytes");
        counts.connections += field("connected_clients").saturating_sub(OWN_CONNECTIONS);
    }
    (!bus.servers().is_empty()).then_some(counts)
}

/// A sample of all counters.
pub struct Sample {
    at: Instant,
    server_cpu: f64,
    redis_cpu: f64,
    own_cpu: f64,
    all_cpu: f64,
    redis: Option<RedisCounts>,
}

impl Sample {
    /// The first sample of a measurement, which begins when this returns.
    pub async fn begin(system: &System) -> Sample {
        let redis = redis_counts(&system.bus).await;
        Sample { redis, ..Sample::now(system) }
    }

    /// The last sample of a measurement, which ends when this is called.
    pub async fn end(system: &System) -> Sample {
        // Redis is asked last, since a busy one takes time to answer.
        let sample = Sample::now(system);
        Sample { redis: redis_counts(&system.bus).await, ..sample }
    }

    fn now(system: &System) -> Sample {
        Sample {
            at: Instant::now(),
            server_cpu: system.server_cpu(),
            redis_cpu: system.redis_cpu(),
            own_cpu: own_cpu(),
            all_cpu: all_cpu(),
            redis: None,
        }
    }

    /// Adds the use of each party since `before`, in total and per event, to `metrics`.
    pub fn since(&self, before: &Sample, events: u64, metrics: &mut Metrics) {
        let events = float(events.max(1));
        let seconds = (self.at - before.at).as_secs_f64();
        let server = (self.server_cpu - before.server_cpu).max(0.0);
        let redis = (self.redis_cpu - before.redis_cpu).max(0.0);
        let clients = self.own_cpu - before.own_cpu;
        let others = (self.all_cpu - before.all_cpu - server - redis - clients).max(0.0);
        let mut add = |name: &str, value| metrics.insert(name.to_owned(), value);
        add("server_cpu_seconds_per_million", server / events * 1e6);
        add("redis_cpu_seconds_per_million", redis / events * 1e6);
        add("server_cpu_percent", server / seconds * 100.0);
        add("redis_cpu_percent", redis / seconds * 100.0);
        add("clients_cpu_percent", clients / seconds * 100.0);
        add("others_cpu_percent", others / seconds * 100.0);
        let (Some(redis), Some(before)) = (self.redis, before.redis) else { return };
        let difference = |after: u64, before: u64| float(after.saturating_sub(before));
        let commands = difference(redis.commands, before.commands);
        add("redis_commands_per_thousand", commands / events * 1e3);
        add("redis_bytes_in_per_event", difference(redis.bytes_in, before.bytes_in) / events);
        add("redis_bytes_out_per_event", difference(redis.bytes_out, before.bytes_out) / events);
        add("redis_connections", float(redis.connections));
    }

    /// Seconds since `before`.
    pub fn seconds_since(&self, before: &Sample) -> f64 {
        (self.at - before.at).as_secs_f64()
    }
}
