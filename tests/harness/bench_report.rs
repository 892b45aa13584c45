//! The report of the side-by-side benchmark: tables, targets and plots from known figures.

#[path = "../../benches/side_by_side/plots.rs"]
mod plots;
#[path = "../../benches/side_by_side/raw.rs"]
#[allow(dead_code)]
mod raw;
#[path = "../../benches/side_by_side/report.rs"]
#[allow(dead_code)]
mod report;
#[path = "../../benches/side_by_side/svg.rs"]
mod svg;
#[path = "../../benches/side_by_side/tables.rs"]
mod tables;
#[path = "../../benches/side_by_side/targets.rs"]
mod targets;

use prost::Message;
use raw::{Response, id_of, read_response, stamp};
use report::{Metrics, Report, short};
use serde_json::json;
use trunkline_proto::v1::{
    Event, EventBatch, Gap, SubscribeResponse, subscribe_response::Response as Arm,
};

const BATCHES: &str = "fan-out, 1 to 100, 100 a request, mailbox changes";
const ONE_BY_ONE: &str = "fan-out, 1 to 100, 1 a request, mailbox changes";

fn metrics<const N: usize>(figures: [(&str, f64); N]) -> Metrics {
    figures.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn fan_out(delivered: f64, server: f64, redis: f64) -> Metrics {
    metrics([
        ("delivered_per_second", delivered),
        ("server_cpu_seconds_per_million", server),
        ("redis_cpu_seconds_per_million", redis),
        ("redis_connections", 3.0),
    ])
}

/// A run of three rounds whose medians are round numbers.
fn report() -> Report {
    let conditions = json!({ "cores": 2, "load_before": "0.1 0.2 0.3", "debug_build": true });
    let mut report = Report { conditions, ..Report::default() };
    for delivered in [9e6, 30e6, 12e6] {
        report.add(BATCHES, "trunkline redis", fan_out(delivered, 0.08, 0.01));
    }
    report.add(BATCHES, "plain redis", fan_out(1e6, 0.0, 0.4));
    report.add(BATCHES, "floor: tonic stream, as delivered", fan_out(2e7, 0.04, 0.0));
    report.add(BATCHES, "floor: tonic unary publish", fan_out(2e5, 2.0, 0.0));
    report.add(ONE_BY_ONE, "trunkline redis", fan_out(2e6, 0.5, 0.1));
    report.add(ONE_BY_ONE, "plain redis", fan_out(3e6, 0.0, 0.2));
    let latency = |factor: f64| {
        metrics([
            ("p50_us", 100.0 * factor),
            ("p99_us", 900.0 * factor),
            ("us_at_0", 50.0 * factor),
            ("us_at_0.5", 100.0 * factor),
            ("us_at_0.99", 900.0 * factor),
        ])
    };
    for (contestant, factor) in [
        ("trunkline redis", 5.0),
        ("floor: tonic unary round trip", 3.0),
        ("floor: redis, one connection", 2.0),
        ("floor: redis, one connection, with positions", 2.6),
        ("floor: the sender itself", 1.0),
    ] {
        report.add("latency, 1000/s, 1 to 1, open loop", contestant, latency(factor));
    }
    for nodes in [10.0, 100.0, 2_000.0] {
        let mut figures = fan_out(1e6 + nodes, 0.1, 0.1);
        figures.extend(latency(nodes.sqrt()));
        report.add(&format!("growth, {nodes} nodes"), "trunkline redis", figures);
    }
    report.failures.push("idle: something: it panicked".into());
    report
}

fn row<'a>(text: &'a str, begin: &str) -> &'a str {
    text.lines().find(|line| line.starts_with(begin)).unwrap_or_else(|| panic!("{begin} in {text}"))
}

#[test]
fn targets_are_ratios_of_medians() {
    let text = targets::table(&report());
    // 12 M, the median, over 3 M: plain Redis does it best one by one.
    assert!(
        row(&text, "| fan-out to 100, each at its best: delivered/s, Trunkline on Redis / plain")
            .ends_with("| at least 3 | 4.00 | yes |")
    );
    let nats =
        row(&text, "| fan-out to 100, each at its best: delivered/s, Trunkline on Redis / NATS");
    assert!(nats.ends_with("| at least 2 | not measured |  |"), "{nats}");
    let strict = row(&text, "| fan-out to 100 in batches, CPU a delivered event");
    assert!(strict.ends_with("| at most 1.30 | 2.00 | **no** |"), "{strict}");
    // 0.08 / (0.04 + 2 / 100).
    let composed = row(&text, "| the same / (tonic stream");
    assert!(composed.ends_with("|  | 1.33 |  |"), "{composed}");
    // 500 / (300 + 200).
    let latency = row(&text, "| latency p50, 1,000/s to 1");
    assert!(latency.ends_with("| at most 1.20 | 1.00 | yes |"), "{latency}");
    // (500 - 100) / (300 - 100 + 200 - 100).
    let strict = row(&text, "| the same, the sender's own lateness taken out");
    assert!(strict.ends_with("|  | 1.33 |  |"), "{strict}");
    // (500 - 100) / (300 - 100 + 260 - 100).
    let positions = row(&text, "| the same, strict, where Redis gives each event");
    assert!(positions.ends_with("|  | 1.11 |  |"), "{positions}");
    let redis = row(&text, "| fan-out to 100 in batches, Redis CPU");
    assert!(redis.ends_with("| at most 1/30 | 1/40.0 | yes |"), "{redis}");
}

#[test]
fn tables_show_the_median_with_the_least_and_the_greatest() {
    let text = tables::all(&report());
    let trunkline = row(&text, "| trunkline redis | 12.00 M (9.00 M to 30.00 M) | 0.080 | 0.010 |");
    assert!(!trunkline.is_empty());
    let share = text.split_once("Redis' share").expect("a table of its own").1;
    assert!(row(share, "| plain redis | 0.400 |").ends_with("| 3.00 |"), "{share}");
    let positions: Vec<_> = ["growth, 10 nodes", "Growth, 100 nodes", "Growth, 2000 nodes"]
        .map(|name| text.find(&name[1..]))
        .into();
    assert!(positions.is_sorted() && positions[0].is_some(), "by size: {positions:?}");
    let conditions = tables::conditions(&report());
    assert!(conditions.contains("**failed**: idle: something: it panicked"), "{conditions}");
    assert!(conditions.contains("debug build"), "{conditions}");
}

#[test]
fn a_report_read_from_its_file_is_unchanged() {
    let report = report();
    let read = Report::parse(&report.to_json()).expect("a report reads what it wrote");
    assert_eq!(read.to_json(), report.to_json());
    assert_eq!(tables::all(&read), tables::all(&report));
    assert_eq!(read.figure(BATCHES, "trunkline redis", 1, "delivered_per_second"), Some(30e6));
    assert_eq!(read.figure(BATCHES, "trunkline redis", 7, "delivered_per_second"), Some(12e6));
    for wrong in ["", "{}", r#"{"results":[{}]}"#, r#"{"results":[{"rounds":[{}]}]}"#] {
        assert!(Report::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn plots_show_every_contestant_and_are_well_formed() {
    let plots = plots::all(&report());
    let names: Vec<&str> = plots.iter().map(|plot| plot.name.as_str()).collect();
    assert_eq!(names, ["fan-out-100", "fan-out-1", "latency", "growth"]);
    for plot in &plots {
        assert!(plot.svg.contains(&plot.title), "{}", plot.name);
        assert!(plot.svg.contains("prefers-color-scheme:dark"), "{}", plot.name);
        assert!(plot.svg.contains(">trunkline redis<"), "{}", plot.name);
        assert!(!plot.svg.contains("NaN") && !plot.svg.contains("inf"), "{}", plot.svg);
        for element in ["svg", "style", "text"] {
            let count = |pattern: &str| plot.svg.matches(pattern).count();
            let opened = count(&format!("<{element} ")) + count(&format!("<{element}>"));
            assert_eq!(opened, count(&format!("</{element}>")), "{element} in {}", plot.name);
        }
    }
    assert!(plots::all(&Report::default()).is_empty());
}

#[test]
fn figures_are_shown_with_three_digits() {
    let texts = [0.0, 0.0123, 1.234, 45.67, 890.1, 12_345.0, 6_789_000.0].map(short);
    assert_eq!(texts, ["0", "0.012", "1.23", "45.7", "890", "12.3 k", "6.79 M"]);
}

#[test]
fn events_of_a_response_are_found_without_decoding_it() {
    let event = |id: &str| Event { event_id: id.to_owned(), ..Event::default() };
    let events = vec![event("a"), event("0123456789abcdef")];
    let batch = EventBatch { events: events.clone(), resume_token: vec![1, 2, 3] };
    let response = SubscribeResponse { response: Some(Arm::Events(batch)) }.encode_to_vec();
    let mut seen = vec![];
    assert_eq!(read_response(&response, |event| seen.push(event.to_vec())), Response::Events);
    assert_eq!(seen, events.iter().map(Message::encode_to_vec).collect::<Vec<_>>());
    assert_eq!((id_of(&seen[0]), id_of(&seen[1])), (None, Some("0123456789abcdef")));
    stamp(&mut seen[1], "fedcba9876543210");
    let stamped = Event::decode(seen[1].as_slice()).expect("an event");
    assert_eq!(stamped, event("fedcba9876543210"));
    let gap = SubscribeResponse { response: Some(Arm::Gap(Gap::default())) }.encode_to_vec();
    assert_eq!(read_response(&gap, |_| unreachable!()), Response::Gap);
    assert_eq!(read_response(b"", |_| unreachable!()), Response::Other);
}
