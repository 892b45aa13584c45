//! `trunkline verify`: a fault drill on a deployment, whose verdict is true either way.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    acl,
    support::{
        ClusterOptions, Gateway, GatewayOptions, LIMIT, RedisCluster, RedisOptions, RedisServer,
        SentinelSet, TestNode, gateway::trunkline, process::Process, shared, wait::eventually,
    },
    two_gateways,
};

/// What verify said.
struct Said {
    code: Option<i32>,
    report: Value,
    stderr: String,
}

impl Said {
    /// The level of a check, and what was seen; of its last finding.
    fn finding(&self, check: &str) -> (&str, &str) {
        let findings =
            self.report["findings"].as_array().unwrap_or_else(|| panic!("{}", self.stderr));
        let found = findings.iter().rfind(|finding| finding["check"] == check);
        let found = found.unwrap_or_else(|| panic!("{check}: {:#}", self.report));
        let text = |key: &str| found[key].as_str().expect("text");
        (text("level"), text("seen"))
    }

    fn is_ok(&self, checks: &[&str]) {
        for check in checks {
            assert_eq!(self.finding(check).0, "ok", "{check}: {:#}", self.report);
        }
    }

    fn part(&self, name: &str) -> &Value {
        let parts = self.report["phases"].as_array().expect("parts");
        let found = parts.iter().find(|part| part["part"] == name);
        found.unwrap_or_else(|| panic!("{name}: {:#}", self.report))
    }

    /// Each promise was kept in these parts, by figures.
    fn kept(&self, parts: &[&str]) {
        for name in parts {
            let part = self.part(name);
            let number = |key: &str| part[key].as_u64().expect("a number");
            let acknowledged = number("acknowledgedEvents");
            assert!(acknowledged > 0, "{part:#}");
            assert_eq!(number("deliveries"), 4 * acknowledged, "{part:#}");
            for nothing in ["lostDeliveries", "repeatedDeliveries", "outOfOrderDeliveries", "gaps"]
            {
                assert_eq!(number(nothing), 0, "{part:#}");
            }
        }
    }
}

async fn verify(gateways: &[&Gateway], args: &[&str]) -> Said {
    verify_at("", gateways, args).await
}

/// With the Redis at this URL, which may have a password.
async fn verify_at(redis: &str, gateways: &[&Gateway], args: &[&str]) -> Said {
    let addresses: Vec<_> = gateways.iter().map(|gateway| gateway.url()).collect();
    let addresses = addresses.join(",");
    let mut all = vec!["verify", "--json", "--gateway", &addresses];
    for (flag, value) in [("--streams", "4"), ("--for", "2s")] {
        if !args.contains(&flag) {
            all.extend([flag, value]);
        }
    }
    let mut program = trunkline([&all, args].concat());
    if !redis.is_empty() {
        program = program.env("TRUNKLINE_REDIS", redis);
    }
    let output = program.run(LIMIT * 4).await;
    let report = serde_json::from_str(&output.stdout).unwrap_or(Value::Null);
    Said { code: output.status.code(), report, stderr: output.stderr }
}

#[tokio::test(flavor = "multi_thread")]
async fn promises_are_kept_while_connections_to_redis_are_closed() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    acl::make_user(&redis, "mail", &acl::rights(acl::STANDALONE, &prefix)).await;
    let url = redis.url().replace("redis://", "redis://mail:change-me@");
    let (one, two) = two_gateways(|| GatewayOptions::redis(&url, &prefix)).await;
    let subscribers = async || {
        let clients = redis.clients().await;
        let ids = clients.iter().filter(|client| client.is_subscriber());
        ids.map(|client| client.field("id").to_owned()).collect::<BTreeSet<_>>()
    };
    let before = subscribers().await;
    let prefix = format!("prefix={prefix}");
    let at = ["--set", &prefix, "--disconnect-redis", "--failover"];
    let admin = redis.url();
    let args = [&at[..], &["--gateway-user", "mail"]].concat();
    let said = verify_at(&admin, &[&one, &two], &args).await;
    assert_eq!(said.code, Some(0), "{:#}{}", said.report, said.stderr);
    said.is_ok(&["steady", "connections", "redis", "repeats", "left behind"]);
    said.kept(&["steady", "connections", "redis"]);
    assert!(said.finding("redis").1.contains("connections of gateways were closed at"));
    let (level, seen) = said.finding("failover");
    assert_eq!(level, "not checked", "{seen}");
    assert!(seen.contains("a single server has no replica"), "{seen}");
    // The connections are others.
    let after = subscribers().await;
    assert!(!before.is_empty() && before.is_disjoint(&after), "{before:?}");

    // Without the rights, and where gateways are not known: said, and nothing is closed.
    for (user, words) in [(&url, "CLIENT"), (&admin, "--gateway-user")] {
        let said = verify_at(user, &[&one, &two], &at[..3]).await;
        let (level, seen) = said.finding("redis");
        assert_eq!((said.code, level), (Some(0), "not checked"), "{:#}", said.report);
        assert!(seen.to_uppercase().contains(&words.to_uppercase()), "{words}: {seen}");
    }
    assert_eq!(subscribers().await, after);
}

#[tokio::test(flavor = "multi_thread")]
async fn promises_are_kept_through_a_failover_of_sentinels() {
    let set = SentinelSet::start().await;
    let prefix = shared::prefix();
    let options = || GatewayOptions::redis_sentinel(&set.urls(), &prefix);
    let (one, two) = two_gateways(options).await;
    let master = set.master().await;
    let file = one.config_file().display().to_string();
    let said = verify(&[&one, &two], &["--config", &file, "--failover"]).await;
    assert_eq!(said.code, Some(0), "{:#}{}", said.report, said.stderr);
    said.kept(&["steady", "connections", "failover"]);
    said.is_ok(&["failover", "repeats"]);
    assert!(said.finding("failover").1.contains("handed over to"), "{:#}", said.report);
    assert_ne!(set.master().await, master);
}

#[tokio::test(flavor = "multi_thread")]
async fn promises_are_kept_through_a_failover_in_a_cluster() {
    let cluster = RedisCluster::with(ClusterOptions::default()).await;
    let masters = cluster.masters().await;
    let options = || GatewayOptions::redis_cluster(&cluster.urls(), &shared::prefix());
    let options = options();
    let (one, two) = two_gateways(|| options.clone()).await;
    let file = one.config_file().display().to_string();
    let said = verify(&[&one, &two], &["--config", &file, "--failover"]).await;
    assert_eq!(said.code, Some(0), "{:#}{}", said.report, said.stderr);
    said.kept(&["steady", "connections", "failover"]);
    said.is_ok(&["failover", "repeats"]);
    assert_ne!(cluster.masters().await, masters);
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_that_do_not_belong_together_fail_the_drill() {
    let (one, two) = two_gateways(GatewayOptions::embedded).await;
    let said = verify(&[&one, &two], &[]).await;
    assert_eq!(said.code, Some(1), "{:#}{}", said.report, said.stderr);
    assert_eq!(said.report["ok"], false);
    let (level, seen) = said.finding("steady");
    assert_eq!(level, "failure", "{seen}");
    assert!(seen.contains("arrivals lost, with no gap"), "{seen}");
    let steady = said.part("steady");
    assert!(steady["lostDeliveries"].as_u64() > Some(0), "{steady:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_that_cannot_be_made_says_why() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    for (args, words) in [
        (&["--for", "0s"][..], "--for must be from 1s to 1h"),
        (&["--for", "2h"], "--for must be from 1s to 1h"),
        (&["--streams", "0"], "--streams"),
        (&["--rate", "0"], "--rate"),
        (&["--failover", "--config", "/nowhere.json"], "/nowhere.json"),
    ] {
        let said = verify(&[&gateway], args).await;
        assert!([Some(2), Some(78)].contains(&said.code), "{args:?}: {}", said.stderr);
        assert!(said.stderr.contains(words), "{args:?}: {}", said.stderr);
    }
    let node = TestNode::connect(&gateway, "imap-1").await;
    let collector = node.subscribe(node.request()).await;
    let said = verify(&[&gateway], &[]).await;
    assert_eq!(said.code, Some(2), "{}", said.stderr);
    assert!(said.stderr.contains("imap-1") && said.stderr.contains("--yes"), "{}", said.stderr);
    let said = verify(&[&gateway], &["--yes", "--failover"]).await;
    assert_eq!(said.code, Some(0), "{:#}{}", said.report, said.stderr);
    said.kept(&["steady", "connections", "failover"]);
    let (level, seen) = said.finding("failover");
    assert_eq!(level, "not checked", "{seen}");
    assert!(seen.contains("--config"), "{seen}");
    drop(collector);
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_a_drill_with_what_was_found_by_then() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let args = ["verify", "--for", "5s", "--gateway", &gateway.url()];
    let process = Process::start("verify", trunkline(args));
    eventually(LIMIT, "the first finding", async || {
        process.stdout().contains("steady").then_some(())
    })
    .await;
    process.signal("INT");
    let (status, _) = process.wait(LIMIT).await;
    let said = process.stdout();
    assert_eq!(status.code(), Some(0), "{said}{}", process.stderr());
    for line in ["ok          steady", "not checked connections", "ok          left behind"] {
        assert!(said.contains(line), "{line}: {said}");
    }
}
