//! The alerts, by Prometheus' own `promtool`: in situations that are written down, and in those
//! that a real gateway was in.

use std::{collections::BTreeMap, fmt::Write};

use super::admin::Scrape;
use super::support::{
    Gateway, GatewayOptions, LIMIT, RedisOptions, RedisServer, TestNode, events, folder,
    process::{Output, Program},
    shared, tools, until,
};

const ALERTS: &str = include_str!("../../deploy/prometheus/alerts.yaml");
const TESTS: &str = include_str!("../../deploy/prometheus/alerts.test.yaml");

/// Scrapes at 15 s that one situation lasts: ten minutes.
const SCRAPES: usize = 40;

/// Runs promtool in a folder with the alerts and this file of tests.
async fn promtool(args: &[&str], tests: &str) -> Output {
    let folder = folder::new();
    for (name, text) in [("alerts.yaml", ALERTS), ("alerts.test.yaml", tests)] {
        std::fs::write(folder.path().join(name), text).expect("a file");
    }
    let file =
        folder.path().join(if args[0] == "check" { "alerts.yaml" } else { "alerts.test.yaml" });
    let args = args.iter().map(|arg| (*arg).to_owned()).chain([file.display().to_string()]);
    Program::new(tools::promtool(), args).run(LIMIT).await
}

fn names() -> Vec<&'static str> {
    ALERTS.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_alert_fires_when_it_should_and_not_before() {
    promtool(&["check", "rules"], TESTS).await.success();
    promtool(&["test", "rules"], TESTS).await.success();
    let names = names();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        let tests = TESTS.split("alertname: ").filter(|test| test.starts_with(name));
        let fires = tests.clone().any(|test| test.contains("exp_alerts:"));
        assert!(fires, "no situation in which {name} fires");
    }
    // The tests can fail: with another limit.
    let wrong = TESTS.replace("9500x40", "8500x40");
    let output = promtool(&["test", "rules"], &wrong).await;
    assert!(!output.status.success(), "{}", output.stdout);
}

/// The samples of a scrape, with the labels that Prometheus adds.
async fn samples(gateway: &Gateway) -> BTreeMap<String, f64> {
    let labels = "job=\"trunkline\",instance=\"a\"";
    let labelled = |(name, value): (String, f64)| match name.split_once('{') {
        Some((name, rest)) => (format!("{name}{{{labels},{rest}"), value),
        None => (format!("{name}{{{labels}}}"), value),
    };
    Scrape::of(gateway).await.samples.into_iter().map(labelled).collect()
}

/// A test of the alerts over situations that last ten minutes each; `firing` are the alerts at the
/// end of each.
fn recorded(situations: &[BTreeMap<String, f64>], firing: &[&[&str]]) -> String {
    let mut test =
        "rule_files: [alerts.yaml]\ntests:\n  - interval: 15s\n    input_series:\n".to_owned();
    let series: std::collections::BTreeSet<_> =
        situations.iter().flat_map(BTreeMap::keys).collect();
    for series in series {
        let values = situations.iter().map(|situation| match situation.get(series) {
            Some(value) => format!("{value}x{}", SCRAPES - 1),
            None => format!("_x{}", SCRAPES - 1),
        });
        let values: Vec<_> = values.collect();
        let series = series.replace('\'', "''");
        let _ = writeln!(test, "      - {{ series: '{series}', values: '{}' }}", values.join(" "));
    }
    let _ = writeln!(test, "    promql_expr_test:");
    for (nth, firing) in firing.iter().enumerate() {
        let seconds = (nth + 1) * SCRAPES * 15 - 15;
        let _ = writeln!(
            test,
            "      - expr: count by (alertname) (ALERTS{{alertstate=\"firing\"}})\n        \
             eval_time: {seconds}s\n        exp_samples:"
        );
        for alert in *firing {
            let _ =
                writeln!(test, "          - {{ labels: '{{alertname=\"{alert}\"}}', value: 1 }}");
        }
    }
    test
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_real_gateway_shows_while_redis_is_away_fires_the_right_alerts() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let options = GatewayOptions::redis(&redis.url(), &shared::prefix());
    let gateway = Gateway::start(options.set_bus("timeout", "1s")).await;
    let node = TestNode::connect(&gateway, "mx-1").await;
    let _stream = node.subscribe(node.request()).await;
    node.publish(vec![events::queue_refresh()]).await.expect("published");
    let scrape = async || {
        let mut all = samples(&gateway).await;
        all.insert("up{job=\"trunkline\",instance=\"a\"}".into(), 1.0);
        all
    };
    let serving = scrape().await;
    // Frozen: nothing is answered, and nothing refused.
    redis.pause().await;
    node.publish(vec![events::queue_refresh()]).await.expect_err("no Redis");
    gateway.is_not_ready(&[], LIMIT).await;
    let away = scrape().await;
    redis.resume();
    until(LIMIT, "it serves again", async || {
        gateway.admin_answer("/readyz").await.is_ok_and(|(status, _)| status == 200)
    })
    .await;
    node.publish(vec![events::queue_refresh()]).await.expect("published");
    let back = scrape().await;
    let firing: [&[&str]; 3] = [&[], &["TrunklineNotServing", "TrunklineShardNotVerified"], &[]];
    let test = recorded(&[serving, away, back], &firing);
    let output = promtool(&["test", "rules"], &test).await;
    assert!(output.status.success(), "{}{}\n{test}", output.stdout, output.stderr);
}
