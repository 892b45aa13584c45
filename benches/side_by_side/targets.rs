//! The targets that the project has set itself, against the medians of one run.

use std::fmt::Write;

use crate::report::{Report, short};

const REDIS: &str = "trunkline redis";
const PLAIN: &str = "plain redis";
const BATCHES: &str = "fan-out, 1 to 100, 100 a request";
const ONE_BY_ONE: &str = "fan-out, 1 to 100, 1 a request";
const DELIVERED: &str = "delivered_per_second";
const SERVER_CPU: &str = "server_cpu_seconds_per_million";
const REDIS_CPU: &str = "redis_cpu_seconds_per_million";

/// One target: what is compared, the ratio or size, and its bound.
struct Target {
    what: &'static str,
    value: Option<f64>,
    bound: f64,
    at_most: bool,
}

/// A table of the targets for which something was measured.
pub fn table(report: &Report) -> String {
    let mut text =
        String::from("### targets\n\n| | target | measured | met |\n|---|---|---|---|\n");
    for target in targets(report) {
        let Some(value) = target.value else { continue };
        let (word, met) = if target.at_most {
            ("at most", value <= target.bound)
        } else {
            ("at least", value >= target.bound)
        };
        let met = if met { "yes" } else { "no" };
        let _ = writeln!(
            text,
            "| {} | {word} {} | {} | {met} |",
            target.what,
            short(target.bound),
            short(value)
        );
    }
    text
}

fn targets(report: &Report) -> [Target; 8] {
    let median = |scenario, contestant, metric| report.median(scenario, contestant, metric);
    let ratio = |a: Option<f64>, b: Option<f64>| Some(a? / b?).filter(|ratio| ratio.is_finite());
    let one = "latency, 1000/s, 1 to 1, open loop";
    let busy = "latency, 10000/s, 1 to 100, open loop";
    let least = median(one, "floor: tonic unary", "p50_us")
        .zip(median(one, PLAIN, "p50_us"))
        .map(|(round_trip, redis)| round_trip + redis);
    // Each as it does it best: plain Redis delivers more when it is not published to in pipelines.
    let delivered = |contestant| {
        let ways = [BATCHES, ONE_BY_ONE].map(|way| median(way, contestant, DELIVERED));
        Some(ways[0]?.max(ways[1]?))
    };
    let rss = |scenario| median(scenario, "trunkline embedded", "rss_bytes_per_stream");
    let at_least = |what, value, bound| Target { what, value, bound, at_most: false };
    let at_most = |what, value, bound| Target { what, value, bound, at_most: true };
    [
        at_least(
            "fan-out to 100, each at its best, delivered/s: trunkline redis / plain redis",
            ratio(delivered(REDIS), delivered(PLAIN)),
            3.0,
        ),
        at_least(
            "fan-out to 100, each at its best, delivered/s: trunkline redis / nats core",
            ratio(delivered(REDIS), delivered("nats core")),
            2.0,
        ),
        at_most(
            "fan-out to 100 in batches, CPU per delivered event: gateway / tonic floor",
            ratio(
                median(BATCHES, REDIS, SERVER_CPU),
                median(BATCHES, "floor: tonic stream, 100 a message", SERVER_CPU),
            ),
            1.3,
        ),
        at_most(
            "latency p50, 1000/s to 1: trunkline redis / (tonic unary + plain redis)",
            ratio(median(one, REDIS, "p50_us"), least),
            1.2,
        ),
        at_most(
            "latency p99, 10000/s to 100: trunkline redis / plain redis",
            ratio(median(busy, REDIS, "p99_us"), median(busy, PLAIN, "p99_us")),
            1.0,
        ),
        at_most(
            "fan-out to 100 in batches, Redis CPU per delivered event: trunkline redis / plain redis",
            ratio(median(BATCHES, REDIS, REDIS_CPU), median(BATCHES, PLAIN, REDIS_CPU)),
            1.0 / 30.0,
        ),
        at_most(
            "bytes an idle stream, 100 a connection",
            rss("idle, 10000 streams, 100 a connection"),
            10_240.0,
        ),
        at_most(
            "bytes an idle connection with one stream",
            rss("idle, 2000 streams, 1 a connection"),
            25_600.0,
        ),
    ]
}
