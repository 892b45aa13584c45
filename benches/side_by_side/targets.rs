//! The targets that the project has set itself, against the medians of one run.

use std::fmt::Write;

use super::report::{Report, short};

const REDIS: &str = "trunkline redis";
const EMBEDDED: &str = "trunkline embedded";
const PLAIN: &str = "plain redis";
const NATS: &str = "nats core";
const STREAM: &str = "floor: tonic stream, as delivered";
const RELAY: &str = "floor: tonic relay";
const BATCHES: &str = "fan-out, 1 to 100, 100 a request, mailbox changes";
const ONE_BY_ONE: &str = "fan-out, 1 to 100, 1 a request, mailbox changes";
const TO_1000: &str = "fan-out, 1 to 1000, 100 a request, mailbox changes";
const SLOW_TO_ONE: &str = "latency, 1000/s, 1 to 1, open loop";
const FAST_TO_100: &str = "latency, 10000/s, 1 to 100, open loop";
const UPDATES: &str = "updates, 10000/s of 100 watchers, 50000 events/s";
const NO_UPDATES: &str = "updates, 0/s of 100 watchers, 50000 events/s";
const DELIVERED: &str = "delivered_per_second";
const SERVER_CPU: &str = "server_cpu_seconds_per_million";
const REDIS_CPU: &str = "redis_cpu_seconds_per_million";
const CONNECTIONS: &str = "redis_connections";

/// The bound of a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
    Below(f64),
    /// No bound: shown for comparison with the figure above.
    None,
}

impl Bound {
    fn holds(self, value: f64) -> Option<bool> {
        match self {
            Bound::AtLeast(bound) => Some(value >= bound),
            Bound::AtMost(bound) => Some(value <= bound),
            Bound::Below(bound) => Some(value < bound),
            Bound::None => None,
        }
    }
}

/// The format of a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    Number,
    /// 0.05 is 1/20.
    Fraction,
    Kilobytes,
}

impl Format {
    fn text(self, value: f64) -> String {
        match self {
            Format::Fraction if value > 0.0 && value < 0.5 => format!("1/{}", short(1.0 / value)),
            Format::Number | Format::Fraction => short(value),
            Format::Kilobytes => format!("{:.1} KB", value / 1024.0),
        }
    }
}

/// One target.
struct Target {
    name: &'static str,
    bound: Bound,
    value: Option<f64>,
    unit: Format,
}

/// A table of all targets; what was not measured says so.
pub fn table(report: &Report) -> String {
    let mut text = String::from("| | target | measured | met |\n|---|---|---|---|\n");
    for Target { name, bound, value, unit } in targets(report) {
        // Bounds are round numbers.
        let round = |bound| unit.text(bound).replace(".00", "").replace(".0", "");
        let target = match bound {
            Bound::AtLeast(bound) => format!("at least {}", round(bound)),
            Bound::AtMost(bound) => format!("at most {}", round(bound)),
            Bound::Below(bound) => format!("below {}", round(bound)),
            Bound::None => String::new(),
        };
        let (measured, met) = match value {
            None => ("not measured".to_owned(), ""),
            Some(value) => {
                let met = match bound.holds(value) {
                    None => "",
                    Some(true) => "yes",
                    Some(false) => "**no**",
                };
                (unit.text(value), met)
            }
        };
        let _ = writeln!(text, "| {name} | {target} | {measured} | {met} |");
    }
    text
}

fn ratio(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    Some(a? / b?).filter(|ratio| ratio.is_finite())
}

fn targets(report: &Report) -> Vec<Target> {
    use Bound::{AtLeast, AtMost, Below};
    let median = |scenario, contestant, metric| report.median(scenario, contestant, metric);
    let number = |name, bound, value| Target { name, bound, value, unit: Format::Number };

    // The better of both: plain Redis may deliver more without pipelines.
    let best = |contestant| {
        let both = [BATCHES, ONE_BY_ONE].map(|scenario| median(scenario, contestant, DELIVERED));
        Some(both[0]?.max(both[1]?))
    };

    // The composed floor: the stream, and for each of 100 deliveries a hundredth of what a unary
    // request costs per event.
    let gateway = median(BATCHES, REDIS, SERVER_CPU);
    let stream = median(BATCHES, STREAM, SERVER_CPU);
    let publish = median(BATCHES, "floor: tonic unary publish", SERVER_CPU);
    let composed = stream.zip(publish).map(|(stream, publish)| stream + publish / 100.0);

    let p50 = |contestant| median(SLOW_TO_ONE, contestant, "p50_us");
    let trip = p50("floor: tonic unary round trip");
    let bare = p50("floor: redis, one connection");
    let sender = p50("floor: the sender itself");
    let positions = p50("floor: redis, one connection, with positions");
    let sum = |a: Option<f64>, b: Option<f64>| Some(a? + b?).filter(|sum| *sum > 0.0);
    let without = |value: Option<f64>| Some(value? - sender?);

    let filters = |others: &str| {
        let scenario = format!("filters, 1000 that match, {others} that do not");
        report.median(&scenario, REDIS, SERVER_CPU)
    };
    let growth =
        |nodes: u32, metric| report.median(&format!("growth, {nodes} nodes"), REDIS, metric);
    let idle = |each: u32, contestant, metric| {
        report.median(&format!("idle, 10000 streams, {each} a connection"), contestant, metric)
    };

    vec![
        number(
            "fan-out to 100, each at its best: delivered/s, Trunkline on Redis / plain Redis",
            AtLeast(3.0),
            ratio(best(REDIS), best(PLAIN)),
        ),
        number(
            "the same, both in batches of 100",
            Bound::None,
            ratio(median(BATCHES, REDIS, DELIVERED), median(BATCHES, PLAIN, DELIVERED)),
        ),
        number(
            "fan-out to 100, each at its best: delivered/s, Trunkline on Redis / NATS core",
            AtLeast(2.0),
            ratio(best(REDIS), best(NATS)),
        ),
        number(
            "fan-out to 100 in batches, CPU a delivered event: gateway / tonic stream of messages \
             of the same size (strict)",
            AtMost(1.3),
            ratio(gateway, stream),
        ),
        number(
            "the same / (tonic stream + a hundredth of a tonic unary request an event) (composed: \
             the gateway publishes too)",
            Bound::None,
            ratio(gateway, composed),
        ),
        number(
            "the same / tonic relay (a tonic server that hands a prepared message to all streams \
             for each request)",
            Bound::None,
            ratio(gateway, median(BATCHES, RELAY, SERVER_CPU)),
        ),
        number(
            "latency p50, 1,000/s to 1: Trunkline on Redis / (tonic unary round trip + Redis on \
             one connection)",
            AtMost(1.2),
            ratio(p50(REDIS), sum(trip, bare)),
        ),
        number(
            "the same, the sender's own lateness taken out of each of the three (strict: the sum \
             has it twice)",
            Bound::None,
            ratio(without(p50(REDIS)), sum(without(trip), without(bare))),
        ),
        number(
            "the same, strict, where Redis gives each event a position (a script of three \
             commands)",
            Bound::None,
            ratio(without(p50(REDIS)), sum(without(trip), without(positions))),
        ),
        number(
            "latency p99, 10,000/s to 100: Trunkline on Redis / plain Redis with 100 connections",
            Below(1.0),
            ratio(median(FAST_TO_100, REDIS, "p99_us"), median(FAST_TO_100, PLAIN, "p99_us")),
        ),
        Target {
            name: "fan-out to 100 in batches, Redis CPU a delivered event: Trunkline / plain Redis",
            bound: AtMost(1.0 / 30.0),
            value: ratio(median(BATCHES, REDIS, REDIS_CPU), median(BATCHES, PLAIN, REDIS_CPU)),
            unit: Format::Fraction,
        },
        Target {
            name: "the same to 1,000",
            bound: Bound::None,
            value: ratio(median(TO_1000, REDIS, REDIS_CPU), median(TO_1000, PLAIN, REDIS_CPU)),
            unit: Format::Fraction,
        },
        Target {
            name: "memory of an idle stream, 100 to a connection",
            bound: AtMost(10.0 * 1024.0),
            value: idle(100, EMBEDDED, "rss_bytes_per_stream"),
            unit: Format::Kilobytes,
        },
        Target {
            name: "memory of an idle connection with one stream",
            bound: AtMost(25.0 * 1024.0),
            value: idle(1, EMBEDDED, "rss_bytes_per_connection"),
            unit: Format::Kilobytes,
        },
        Target {
            name: "the same of the tonic relay, whose streams have no filter, position, heartbeat \
                   or rules",
            bound: Bound::None,
            value: idle(1, RELAY, "rss_bytes_per_connection"),
            unit: Format::Kilobytes,
        },
        number(
            "filters: gateway CPU with 10 times the subscribers, none of which match / without \
             them",
            AtMost(1.2),
            ratio(filters("10000"), filters("0")),
        ),
        number(
            "updates: p99 of the answer at 10,000 a second and 50,000 events a second, us",
            AtMost(5_000.0),
            median(UPDATES, REDIS, "p99_us"),
        ),
        number(
            "updates: p50 of events to others, with 10,000 updates a second / without",
            Bound::None,
            ratio(
                median(UPDATES, REDIS, "event_p50_us"),
                median(NO_UPDATES, REDIS, "event_p50_us"),
            ),
        ),
        number(
            "connections at Redis: with 1,000 nodes / with 100",
            AtMost(1.0),
            ratio(median(TO_1000, REDIS, CONNECTIONS), median(BATCHES, REDIS, CONNECTIONS)),
        ),
        number(
            "growth: gateway CPU a delivered event, with 2,000 nodes / with 100",
            Bound::None,
            ratio(growth(2_000, SERVER_CPU), growth(100, SERVER_CPU)),
        ),
    ]
}
