//! Tables in Markdown: each figure is the median, with the least and the greatest where rounds
//! differ.

use std::fmt::Write;

use serde_json::Value;

use super::report::{Report, Row, short};

/// A column: its head, the name of the figure, and a divisor for its unit.
type Column = (&'static str, &'static str, f64);

const FAN_OUT: [Column; 6] = [
    ("delivered/s", "delivered_per_second", 1.0),
    ("gateway or server CPU, s a million", "server_cpu_seconds_per_million", 1.0),
    ("Redis CPU, s a million", "redis_cpu_seconds_per_million", 1.0),
    ("events a message", "events_per_message", 1.0),
    ("lost", "lost", 1.0),
    ("CPU of others, %", "others_cpu_percent", 1.0),
];
const LATENCY: [Column; 5] = [
    ("p50, us", "p50_us", 1.0),
    ("p99, us", "p99_us", 1.0),
    ("p99.9, us", "p999_us", 1.0),
    ("most, us", "max_us", 1.0),
    ("CPU of others, %", "latency_others_cpu_percent", 1.0),
];
const IDLE: [Column; 4] = [
    ("KB a stream", "rss_bytes_per_stream", 1024.0),
    ("KB a connection", "rss_bytes_per_connection", 1024.0),
    ("gateway CPU, %", "server_cpu_percent", 1.0),
    ("Redis CPU, %", "redis_cpu_percent", 1.0),
];
const FILTERS: [Column; 4] = [
    ("gateway CPU, s a million published", "server_cpu_seconds_per_million", 1.0),
    ("Redis CPU, s a million published", "redis_cpu_seconds_per_million", 1.0),
    ("delivered/s", "delivered_per_second", 1.0),
    ("lost", "lost", 1.0),
];
const UPDATES: [Column; 9] = [
    ("updates/s", "updated_per_second", 1.0),
    ("update p50, us", "p50_us", 1.0),
    ("update p99, us", "p99_us", 1.0),
    ("most, us", "max_us", 1.0),
    ("event p50, us", "event_p50_us", 1.0),
    ("event p99, us", "event_p99_us", 1.0),
    ("gateway CPU, %", "server_cpu_percent", 1.0),
    ("lost", "lost", 1.0),
    ("CPU of others, %", "others_cpu_percent", 1.0),
];
const REDIS_SHARE: [Column; 5] = [
    ("Redis CPU, s a million", "redis_cpu_seconds_per_million", 1.0),
    ("commands a thousand", "redis_commands_per_thousand", 1.0),
    ("bytes in, an event", "redis_bytes_in_per_event", 1.0),
    ("bytes out, an event", "redis_bytes_out_per_event", 1.0),
    ("connections", "redis_connections", 1.0),
];
const GROWTH: [Column; 6] = [
    ("delivered/s", "delivered_per_second", 1.0),
    ("gateway or server CPU, s a million", "server_cpu_seconds_per_million", 1.0),
    ("Redis CPU, s a million", "redis_cpu_seconds_per_million", 1.0),
    ("connections at Redis", "redis_connections", 1.0),
    ("p50 at 100/s, us", "p50_us", 1.0),
    ("p99 at 100/s, us", "p99_us", 1.0),
];

/// All tables.
pub fn all(report: &Report) -> String {
    let mut text = String::new();
    for (title, prefix, columns) in [
        ("Fan-out", "fan-out", &FAN_OUT[..]),
        ("Many to many", "many to many", &FAN_OUT[..]),
        ("Latency", "latency", &LATENCY[..]),
        ("Idle", "idle", &IDLE[..]),
        ("Filters", "filters", &FILTERS[..]),
        ("Updates of an interest", "updates", &UPDATES[..]),
        ("Growth", "growth", &GROWTH[..]),
    ] {
        let mut scenarios = report.scenarios();
        scenarios.retain(|scenario| scenario.starts_with(prefix));
        scenarios.sort_by_key(|scenario| numbers(scenario));
        if scenarios.is_empty() {
            continue;
        }
        let _ = write!(text, "\n### {title}\n");
        for scenario in scenarios {
            let _ = write!(text, "\n{}\n\n", capital(scenario));
            text.push_str(&table(report.of(scenario), columns));
        }
    }
    text.push_str(&redis_share(report));
    text
}

/// The use of Redis per delivered event, in fan-outs to 100 and to 1,000 by contestants with Redis.
fn redis_share(report: &Report) -> String {
    let mut text = String::new();
    for scenario in report.scenarios() {
        let wanted =
            scenario.starts_with("fan-out, 1 to 100") && scenario.ends_with("mailbox changes");
        let with_redis = |row: &&Row| row.spread("redis_connections").is_some();
        if wanted && report.of(scenario).any(|row| with_redis(&row)) {
            let _ = write!(text, "\n{}\n\n", capital(scenario));
            text.push_str(&table(report.of(scenario).filter(with_redis), &REDIS_SHARE));
        }
    }
    if text.is_empty() { text } else { format!("\n### Redis' share, by delivered event\n{text}") }
}

fn table<'a>(rows: impl Iterator<Item = &'a Row>, columns: &[Column]) -> String {
    let rows: Vec<&Row> = rows.collect();
    let measured = |column: &&Column| rows.iter().any(|row| row.spread(column.1).is_some());
    let columns: Vec<&Column> = columns.iter().filter(measured).collect();
    let mut text = String::from("| |");
    for (head, ..) in &columns {
        let _ = write!(text, " {head} |");
    }
    let _ = write!(text, "\n|---|{}\n", "---|".repeat(columns.len()));
    for row in rows {
        let _ = write!(text, "| {} |", row.contestant);
        for (_, metric, divisor) in &columns {
            let _ = write!(text, " {} |", cell(row, metric, *divisor));
        }
        text.push('\n');
    }
    text
}

fn cell(row: &Row, metric: &str, divisor: f64) -> String {
    let Some(spread) = row.spread(metric) else { return String::new() };
    let [min, median, max] =
        [spread.min, spread.median, spread.max].map(|value| short(value / divisor));
    if min == max { median } else { format!("{median} ({min} to {max})") }
}

/// The conditions of the run as a list, with failed runs and those that there was no time for.
pub fn conditions(report: &Report) -> String {
    let of = |key: &str| match &report.conditions[key] {
        Value::String(text) => text.clone(),
        Value::Null => "?".to_owned(),
        other => other.to_string(),
    };
    let crates = report.conditions["crates"].as_object();
    let crates = crates
        .into_iter()
        .flatten()
        .filter_map(|(name, version)| Some(format!("{name} {}", version.as_str()?)));
    let mut text = String::new();
    let mut item = |line: String| {
        let _ = writeln!(text, "- {line}");
    };
    item(format!("{}, commit {}", of("date"), of("commit")));
    item(format!(
        "{} cores ({}), {} GB, {}; {}",
        of("cores"),
        of("cpu"),
        of("memory_gb"),
        of("kernel"),
        of("rustc")
    ));
    item(format!(
        "{}; nats-server: {}; {}",
        of("redis_server"),
        of("nats_server"),
        crates.collect::<Vec<_>>().join(", ")
    ));
    item(format!(
        "{} rounds of {} s; arguments: `{}`; it took {} s",
        of("rounds"),
        of("seconds"),
        of("command"),
        of("took_seconds")
    ));
    let rounds =
        (1..).map_while(|round| report.conditions[format!("load_round_{round}")].as_array());
    let rounds: Vec<String> = rounds
        .map(|loads| loads.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" to "))
        .collect();
    item(format!(
        "load average (1, 5, 15 min) before: {}; by round, the bench included: {}",
        of("load_before"),
        rounds.join("; ")
    ));
    if let Some((median, max)) = others(report) {
        item(format!(
            "CPU of processes outside the run, while it was measured: median {} %, most {} % of \
             one core",
            short(median),
            short(max)
        ));
    }
    if report.conditions["debug_build"] == true {
        item("**a debug build: the figures mean nothing**".into());
    }
    for failure in &report.failures {
        item(format!("**failed**: {failure}"));
    }
    for unfinished in report.conditions["unfinished"].as_array().into_iter().flatten() {
        item(format!(
            "not run, since the time was up: {}",
            unfinished.as_str().unwrap_or_default()
        ));
    }
    text
}

/// CPU of processes outside the runs: median and maximum over all runs.
fn others(report: &Report) -> Option<(f64, f64)> {
    let runs = report.rows.iter().flat_map(|row| &row.rounds);
    let of = |run: &super::report::Metrics| {
        run.get("others_cpu_percent").or(run.get("latency_others_cpu_percent")).copied()
    };
    let mut all: Vec<f64> = runs.filter_map(of).collect();
    all.sort_by(f64::total_cmp);
    Some((*all.get(all.len() / 2)?, *all.last()?))
}

/// A key that sorts names by their numbers, so that 10 comes after 2.
fn numbers(name: &str) -> (String, Vec<u64>) {
    let words: String = name.chars().filter(|c| !c.is_ascii_digit()).collect();
    let digits = name.split(|c: char| !c.is_ascii_digit());
    (words, digits.filter_map(|digits| digits.parse().ok()).collect())
}

fn capital(name: &str) -> String {
    let mut letters = name.chars();
    let first = letters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    format!("**{first}{}**", letters.as_str())
}
