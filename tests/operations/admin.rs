//! The admin port of a real gateway: probes and metrics.

use std::{collections::BTreeMap, time::Duration};

use super::support::{
    self, Data, Gateway, GatewayOptions, LIMIT, RedisOptions, RedisServer, TestNode, events,
    gateway::{Ready, trunkline},
    shared, until,
    wait::attempt,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use trunkline_proto::v1::SubscribeRequest;

/// The limit for an answer of the admin port, whatever happens to Redis.
const ANSWER: Duration = Duration::from_secs(5);

/// An answer of the admin port.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: String,
    body: String,
}

async fn ask(address: &str, method: &str, path: &str) -> std::io::Result<Answer> {
    ask_as("x", address, method, path).await
}

async fn ask_as(host: &str, address: &str, method: &str, path: &str) -> std::io::Result<Answer> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok::<_, std::io::Error>(text)
    };
    let text = tokio::time::timeout(ANSWER, exchange).await.expect("an answer in time")?;
    let (headers, body) = text.split_once("\r\n\r\n").expect("headers and a body");
    let status = headers.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok(Answer {
        status: status.expect("a status"),
        headers: headers.to_ascii_lowercase(),
        body: body.to_owned(),
    })
}

async fn get(gateway: &Gateway, path: &str) -> Answer {
    ask(&gateway.admin_address(), "GET", path).await.expect("an answer")
}

/// A scrape: each sample by its name with its labels, and the type of each family.
#[derive(Debug, Default)]
pub struct Scrape {
    pub samples: BTreeMap<String, f64>,
    types: BTreeMap<String, String>,
}

impl Scrape {
    /// Reads the text format strictly, as its specification says.
    ///
    /// # Panics
    ///
    /// If a scraper would refuse it.
    fn read(text: &str) -> Scrape {
        assert!(text.ends_with('\n'), "the last line ends too");
        let mut scrape = Scrape::default();
        let (mut family, mut helped) = (String::new(), String::new());
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').expect("a name and a text");
                assert!(help.len() > 3 && !scrape.types.contains_key(name), "{line}");
                name.clone_into(&mut helped);
            } else if let Some(of) = line.strip_prefix("# TYPE ") {
                let (name, of) = of.split_once(' ').expect("a name and a type");
                assert!(
                    name == helped && ["counter", "gauge", "histogram"].contains(&of),
                    "{line}"
                );
                assert!(of != "counter" || name.ends_with("_total"), "{line}");
                scrape.types.insert(name.to_owned(), of.to_owned());
                name.clone_into(&mut family);
            } else {
                let (series, value) = line.rsplit_once(' ').expect("a series and a value");
                let name = series.split('{').next().expect("a name");
                let of = &scrape.types[&family];
                let belongs = match name.strip_prefix(&family).expect("samples follow their type") {
                    "" => of != "histogram",
                    "_bucket" | "_sum" | "_count" => of == "histogram",
                    _ => false,
                };
                assert!(belongs, "{line}");
                assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{line}");
                let before = scrape.samples.insert(series.into(), value.parse().expect("a number"));
                assert!(before.is_none(), "twice: {line}");
            }
        }
        scrape
    }

    pub async fn of(gateway: &Gateway) -> Scrape {
        let answer = get(gateway, "/metrics").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let headers = answer.headers;
        assert!(headers.contains("content-type: text/plain; version=0.0.4"), "{headers}");
        Scrape::read(&answer.body)
    }

    /// The value of a series, its name without the prefix.
    fn get(&self, series: &str) -> f64 {
        let value = self.samples.get(&format!("trunkline_{series}"));
        *value.unwrap_or_else(|| panic!("no {series} in {:#?}", self.samples))
    }

    fn is(&self, series: &str, expected: f64) {
        let seen = self.get(series);
        assert!((seen - expected).abs() < 1e-9, "{series} is {seen}, not {expected}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_move_with_what_is_published_and_delivered() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let before = Scrape::of(&gateway).await;
    before.is("published_events_total{kind=\"mailbox_change\"}", 0.0);
    before.is("publish_duration_seconds_count", 0.0);

    let node = TestNode::connect(&gateway, "node").await;
    let request = SubscribeRequest { include_own_events: true, ..node.request() };
    let streams = [node.subscribe(request.clone()).await, node.subscribe(request).await];
    node.publish(vec![events::queue_refresh(), events::registry_change("role", "a")])
        .await
        .expect("a position");
    node.publish(vec![events::queue_refresh()]).await.expect("a position");
    for stream in &streams {
        stream.events(3, LIMIT).await;
    }
    let refused = node.publish(vec![]).await.expect_err("no events");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);

    let seen = Scrape::of(&gateway).await;
    seen.is("published_events_total{kind=\"queue_refresh\"}", 2.0);
    seen.is("published_events_total{kind=\"registry_change\"}", 1.0);
    seen.is("published_events_total{kind=\"mailbox_change\"}", 0.0);
    seen.is("published_events_total{kind=\"unknown\"}", 0.0);
    seen.is("publish_duration_seconds_count", 2.0);
    seen.is("publish_duration_seconds_bucket{le=\"+Inf\"}", 2.0);
    assert!(seen.get("publish_duration_seconds_sum") > 0.0);
    seen.is("delivered_events_total", 6.0);
    let batches = seen.get("delivered_batches_total");
    assert!((2.0..=6.0).contains(&batches), "{batches}");
    seen.is("delivery_lag_seconds_count", batches);
    seen.is("errors_total{method=\"Publish\",reason=\"invalid_request\"}", 1.0);
    seen.is("errors_total{method=\"Subscribe\",reason=\"invalid_request\"}", 0.0);
    seen.is("streams", 2.0);
    seen.is("behind_events", 0.0);
    seen.is("received_events_total{shard=\"0\"}", 3.0);
    seen.is("received_frames_total{shard=\"0\"}", 2.0);
    seen.is("log_events{shard=\"0\"}", 3.0);
    assert!(seen.get("log_limit_bytes{shard=\"0\"}") > seen.get("log_bytes{shard=\"0\"}"));
    seen.is("shard_verified{shard=\"0\"}", 1.0);
    seen.is("shard_epoch_changes_total{shard=\"0\"}", 0.0);
    seen.is("serving", 1.0);
    assert!(seen.get("uptime_seconds") >= before.get("uptime_seconds"));
    let build = seen.samples.keys().find(|series| series.starts_with("trunkline_build_info"));
    let build = build.expect("build info");
    assert!(build.contains(concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"")), "{build}");
    assert!(build.contains("bus=\"embedded\""), "{build}");

    drop(streams);
    until(LIMIT, "no streams", async || Scrape::of(&gateway).await.get("streams") < 0.5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_is_counted_with_its_reason_and_its_events() {
    // The log is so small that a resume from the start has missed most events.
    let options = GatewayOptions::embedded()
        .set("log", serde_json::json!({ "maxEvents": 1000, "maxBytes": "1MiB" }));
    let gateway = Gateway::start(options).await;
    let node = TestNode::connect(&gateway, "node").await;
    let token = node.subscribe(node.request()).await.subscribed().await.resume_token;
    let other = TestNode::connect(&gateway, "other").await;
    for part in 0..5 {
        other.publish(events::numbered(&format!("e{part}-"), 500, 1)).await.expect("a position");
    }
    let late = node.subscribe(SubscribeRequest { resume_token: token, ..node.request() }).await;
    let gap = late.gap(LIMIT).await;
    let missed = gap.missed_events.expect("a count");
    assert!(missed >= 1500, "{missed}");
    let seen = Scrape::of(&gateway).await;
    seen.is("stream_gaps_total{reason=\"history_expired\"}", 1.0);
    #[allow(clippy::cast_precision_loss)]
    seen.is("stream_missed_events_total{reason=\"history_expired\"}", missed as f64);
    seen.is("stream_gaps_total{reason=\"epoch_changed\"}", 0.0);
    seen.is("log_limit_events{shard=\"0\"}", 1000.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_the_gateway_is_live_and_not_ready_and_gives_the_reason() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    redis.kill_9();
    let options = GatewayOptions::redis(&redis.url(), &shared::prefix()).ready(Ready::Listening);
    let gateway = Gateway::start(options).await;
    assert_eq!(get(&gateway, "/livez").await.status, 200);
    let answer = get(&gateway, "/readyz").await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.body.contains("the bus has not started"), "{answer:?}");
    let seen = Scrape::of(&gateway).await;
    seen.is("serving", 0.0);

    redis.restart(Data::Wiped).await;
    ready(&gateway).await;
    let seen = Scrape::of(&gateway).await;
    seen.is("serving", 1.0);
    seen.is("shard_verified{shard=\"0\"}", 1.0);
    assert!(seen.get("shard_verified_age_seconds{shard=\"0\"}") < 3.0);
    let link = format!("{{address=\"127.0.0.1:{}\",purpose=\"subscribe\"}}", redis.port());
    seen.is(&format!("link_up{link}"), 1.0);
    seen.is(&format!("link_reconnects_total{link}"), 0.0);

    // Redis dies, and comes back empty.
    redis.kill_9();
    not_ready(&gateway, "shard 0: ").await;
    assert_eq!(get(&gateway, "/livez").await.status, 200);
    let seen = Scrape::of(&gateway).await;
    seen.is("serving", 0.0);
    seen.is("shard_verified{shard=\"0\"}", 0.0);
    seen.is(&format!("link_up{link}"), 0.0);
    let node = TestNode::connect(&gateway, "node").await;
    node.stream(node.request()).await.expect_err("no bus");
    let seen = Scrape::of(&gateway).await;
    seen.is("errors_total{method=\"Subscribe\",reason=\"bus_unavailable\"}", 1.0);

    redis.restart(Data::Wiped).await;
    ready(&gateway).await;
    let seen = Scrape::of(&gateway).await;
    seen.is(&format!("link_up{link}"), 1.0);
    assert!(seen.get(&format!("link_reconnects_total{link}")) >= 1.0);
    // The path is verified before history has shown how the last epoch ended.
    until(LIMIT, "the new epoch", async || {
        Scrape::of(&gateway).await.get("shard_epoch_changes_total{shard=\"0\"}") >= 1.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_frozen_redis_the_gateway_is_live_and_not_ready() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let gateway = Gateway::start(GatewayOptions::redis(&redis.url(), &shared::prefix())).await;
    ready(&gateway).await;
    redis.pause().await;
    not_ready(&gateway, "shard 0: ").await;
    assert_eq!(get(&gateway, "/livez").await.status, 200);
    redis.resume();
    ready(&gateway).await;
}

async fn ready(gateway: &Gateway) {
    attempt(LIMIT, "ready", async || match get(gateway, "/readyz").await {
        answer if answer.status == 200 && answer.body == "ready\n" => Ok(()),
        answer => Err(format!("{answer:?}")),
    })
    .await;
}

async fn not_ready(gateway: &Gateway, why: &str) {
    attempt(LIMIT, "not ready", async || match get(gateway, "/readyz").await {
        answer if answer.status == 503 && answer.body.contains(why) => Ok(()),
        answer => Err(format!("{answer:?}")),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_gateway_is_live_and_not_ready() {
    let options = GatewayOptions::embedded()
        .set("drain", serde_json::json!({ "delay": "1m", "spread": "1s", "timeout": "1m" }));
    let gateway = Gateway::start(options).await;
    ready(&gateway).await;
    gateway.signal_term();
    not_ready(&gateway, "draining").await;
    assert_eq!(get(&gateway, "/livez").await.status, 200);
    Scrape::of(&gateway).await.is("draining", 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_port_answers_known_paths_and_refuses_other_methods() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    assert_eq!(get(&gateway, "/livez?verbose").await.status, 200);
    let unknown = get(&gateway, "/metric").await;
    assert_eq!(unknown.status, 404);
    assert!(unknown.body.contains("/metrics"), "{unknown:?}");
    let address = gateway.admin_address();
    let posted = ask(&address, "POST", "/livez").await.expect("an answer");
    assert_eq!(posted.status, 405);
    assert!(posted.headers.contains("allow: get, head"), "{posted:?}");
    let head = ask(&address, "HEAD", "/metrics").await.expect("an answer");
    assert_eq!((head.status, &*head.body), (200, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_port_can_be_off_and_a_used_address_is_an_error() {
    let options = GatewayOptions::embedded().set("admin", serde_json::Value::Null);
    let nowhere = Gateway::start(options).await;
    let refused = ask(&nowhere.admin_address(), "GET", "/livez").await;
    assert_eq!(refused.expect_err("nothing listens").kind(), std::io::ErrorKind::ConnectionRefused);

    let taken = Gateway::start(GatewayOptions::embedded()).await;
    let free = support::ports::Port::free();
    let listen = format!("127.0.0.1:{}", free.number());
    let admin = taken.admin_address();
    let output = trunkline(["serve", "--listen", &listen, "--admin", &admin]).run(LIMIT).await;
    assert_eq!(output.status.code(), Some(1), "{}", output.stderr);
    let expected = format!("admin: cannot listen on {admin}");
    assert!(output.stderr.contains(&expected), "{}", output.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_closed_to_other_origins_and_public_host_names() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let address = gateway.admin_address();
    for path in ["/", "/page.js", "/page.css", "/icon.svg", "/api/status", "/api/nodes"] {
        let answer = ask_as(&address, &address, "GET", path).await.expect("an answer");
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        for header in [
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; \
             img-src 'self'; connect-src 'self'; ",
            "frame-ancestors 'none'",
            "x-content-type-options: nosniff",
            "cache-control: no-store",
            "cross-origin-resource-policy: same-origin",
        ] {
            assert!(answer.headers.contains(header), "{path}: {header} in {answer:?}");
        }
        assert!(!answer.headers.contains("access-control-allow"), "{answer:?}");
        // A public name that its owner lets point here.
        let rebound = ask_as("rebound.example.com:7421", &address, "GET", path).await;
        let rebound = rebound.expect("an answer");
        assert_eq!(rebound.status, 421, "{path}: {rebound:?}");
        assert!(rebound.body.contains("docs/operations.md"), "{rebound:?}");
        let posted = ask_as(&address, &address, "POST", path).await.expect("an answer");
        assert_eq!(posted.status, 405, "{path}");
    }
    // Scrapers and probes may use any name.
    for path in ["/metrics", "/livez", "/readyz"] {
        let answer = ask_as("gateway.example.com", &address, "GET", path).await;
        assert_eq!(answer.expect("an answer").status, 200, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_gets_a_bounded_number_of_nodes_in_the_requested_order() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let mut streams = Vec::new();
    for nth in 0..12 {
        let node = TestNode::connect(&gateway, format!("n{nth:02}")).await;
        streams.push(node.subscribe(node.request()).await);
    }
    let ask = async |query: &str| {
        let answer = get(&gateway, &format!("/api/nodes?{query}")).await;
        serde_json::from_str::<serde_json::Value>(&answer.body).expect("JSON")
    };
    let ids = |answer: &serde_json::Value| -> Vec<String> {
        let nodes = answer["nodes"].as_array().expect("nodes").iter();
        nodes.map(|node| node["nodeId"].as_str().expect("an id").to_owned()).collect()
    };
    until(LIMIT, "all nodes", async || ask("").await["total"] == 12).await;
    let answer = ask("rows=3&sort=node&order=descending").await;
    assert_eq!((&answer["total"], &answer["matching"]), (&12.into(), &12.into()));
    assert_eq!(ids(&answer), ["n11", "n10", "n09"]);
    let answer = ask("search=N1").await;
    assert_eq!((ids(&answer), &answer["matching"]), (vec!["n10".into(), "n11".into()], &2.into()));
    assert_eq!(answer["gateways"][0]["streams"], 12);
}

/// The beginnings of the names of all metrics.
const PREFIXES: [&str; 4] = ["trunkline_", "grpc_server_", "process_", "tokio_"];

/// The names of metrics in a text.
fn metrics_in(text: &str) -> Vec<&str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut names = Vec::new();
    for prefix in PREFIXES {
        for (at, _) in text.match_indices(prefix) {
            // A part of a longer word is no metric.
            if !text[..at].ends_with(is_name) {
                names.push(text[at..].split(|c| !is_name(c)).next().expect("a name"));
            }
        }
    }
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn dashboard_alerts_and_documentation_name_existing_metrics() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let scrape = Scrape::of(&gateway).await;
    let exists = |name: &str| {
        let of_histogram = ["_bucket", "_sum", "_count"]
            .into_iter()
            .filter_map(|suffix| name.strip_suffix(suffix))
            .any(|family| scrape.types.get(family).is_some_and(|of| of == "histogram"));
        of_histogram || scrape.types.get(name).is_some_and(|of| of != "histogram")
    };
    let dashboard = include_str!("../../deploy/grafana/trunkline.json");
    let dashboard: serde_json::Value = serde_json::from_str(dashboard).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut expressions = vec![include_str!("../../deploy/prometheus/alerts.yaml")];
    for target in panels.iter().flat_map(|panel| panel["targets"].as_array().expect("targets")) {
        let expression = target["expr"].as_str().expect("an expression");
        assert!(!metrics_in(expression).is_empty(), "{expression}");
        expressions.push(expression);
    }
    let mut named = 0;
    for name in expressions.iter().flat_map(|text| metrics_in(text)) {
        assert!(exists(name), "there is no metric {name}");
        named += 1;
    }
    assert!(named > 40, "{named}");

    // The documentation has a row for each metric, and for no other.
    let documentation = include_str!("../../docs/operations.md");
    let rows = documentation.lines().filter_map(|line| line.strip_prefix("| `"));
    let rows: Vec<&str> = rows
        .map(|row| row.split(['`', '{']).next().expect("a name"))
        .filter(|name| PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
        .collect();
    for name in &rows {
        assert!(scrape.types.contains_key(*name), "there is no metric {name}");
    }
    for name in scrape.types.keys() {
        assert!(rows.contains(&name.as_str()), "{name} is not in docs/operations.md");
    }
    // And each alert is explained.
    let alerts = expressions[0].lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    let mut explained = 0;
    for alert in alerts {
        assert!(documentation.contains(&format!("| `{alert}` |")), "{alert} is not explained");
        explained += 1;
    }
    assert!(explained > 5, "{explained}");
}
