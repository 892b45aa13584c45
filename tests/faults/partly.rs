//! Requests of which the bus accepts a part: the error says which events were accepted, and a retry
//! with the same request id completes the request.

use std::{collections::HashSet, time::Duration};

use serde_json::json;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use trunkline_client::{Client, ErrorKind};
use trunkline_proto::v1::{Event, Position};
use uuid::Uuid;

use crate::support::{
    LIMIT,
    cluster::RedisCluster,
    events,
    gateway::{Gateway, GatewayOptions},
    nodes::{Collector, TestNode},
    redis::{RedisOptions, RedisServer, cli},
    shared,
    wait::attempt,
};

const EVENTS: usize = 64;

/// The events of the request: of as many accounts, and so of all shards.
fn request() -> Vec<Event> {
    events::numbered("e", EVENTS, EVENTS)
}

/// A standalone Redis that refuses the appends to one of four shards, and two gateways on it.
struct Scene {
    redis: RedisServer,
    operator: String,
    options: GatewayOptions,
    prefix: String,
}

impl Scene {
    async fn start() -> Scene {
        let redis = RedisServer::start(RedisOptions::default()).await;
        redis.cli(&["ACL", "SETUSER", "operator", "on", ">operator", "~*", "&*", "+@all"]).await;
        let operator = format!("redis://operator:operator@127.0.0.1:{}", redis.port());
        let prefix = shared::prefix();
        let options = GatewayOptions::redis(&redis.url(), &prefix).set("shards", 4);
        Scene { redis, operator, options, prefix }
    }

    /// Redis refuses what concerns the first shard.
    async fn refuse(&self) {
        let states = cli(&self.operator, &["KEYS", &format!("{}:*:state", self.prefix)]).await;
        let bases = states.lines().map(|key| key.strip_suffix(":state").expect("a state"));
        let (first, others): (Vec<_>, Vec<_>) = bases.partition(|base| base.ends_with(":{0}"));
        assert_eq!((first.len(), others.len()), (1, 3));
        let mut rights = vec!["resetkeys".to_owned(), format!("~{}:deployment", self.prefix)];
        rights.push(format!("~{}:{{members}}:*", self.prefix));
        rights.extend(others.iter().map(|base| format!("~{base}:*")));
        let rights = rights.iter().map(String::as_str);
        let command: Vec<_> = ["ACL", "SETUSER", "default"].into_iter().chain(rights).collect();
        cli(&self.operator, &command).await;
    }

    async fn heal(&self) {
        cli(&self.operator, &["ACL", "SETUSER", "default", "allkeys"]).await;
    }
}

async fn collect(gateway: &Gateway) -> Collector {
    let node = TestNode::connect(gateway, "subscriber").await;
    node.subscribe(node.request()).await
}

/// The shard of each event of the request: that of an earlier event of its account.
async fn shards_of(publisher: &TestNode) -> Vec<u32> {
    let earlier = events::numbered("earlier", EVENTS, EVENTS);
    let positions = publisher.publish(earlier).await.expect("published");
    positions.iter().map(|position| position.shard).collect()
}

/// The ids of the events of these shards.
fn ids_in(shards: &[u32], wanted: impl Fn(u32) -> bool) -> HashSet<String> {
    let ids = (0..EVENTS).filter(|index| wanted(shards[*index]));
    ids.map(|index| format!("e-{index}")).collect()
}

/// The ids of the events that an error says were accepted. Checks its other details.
fn accepted(status: &Status, reason: &str, cause: &str) -> HashSet<String> {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.details().len() < 2048, "{status:?}");
    let details = status.get_error_details();
    assert!(details.retry_info().is_some(), "{status:?}");
    let info = details.error_info().expect("details");
    assert_eq!((&*info.reason, &*info.metadata["cause"]), (reason, cause), "{status:?}");
    assert_eq!(info.metadata["events"], EVENTS.to_string());
    let digits = info.metadata["accepted_events"].chars().map(|digit| digit.to_digit(16));
    let bits = digits.flat_map(|digit| (0..4).map(move |bit| digit.expect("hex") & 8 >> bit != 0));
    let accepted: HashSet<_> =
        bits.enumerate().filter(|(_, bit)| *bit).map(|(index, _)| format!("e-{index}")).collect();
    assert_eq!(info.metadata["accepted"], accepted.len().to_string());
    let text = format!("the bus accepted {} of {EVENTS} events", accepted.len());
    assert!(status.message().starts_with(&text), "{status:?}");
    accepted
}

/// The ids that arrived of the request.
fn arrived(collector: &Collector) -> Vec<String> {
    collector.event_ids().into_iter().filter(|id| id.starts_with("e-")).collect()
}

/// Retries until the request is complete, and asserts that every event arrived once.
async fn completes(node: &TestNode, id: Uuid, shards: &[u32], collector: &Collector) {
    let positions: Vec<Position> = attempt(LIMIT, "the request is complete", async || {
        node.publish_as(id, request()).await.map_err(|status| status.to_string())
    })
    .await;
    assert!(positions.iter().map(|position| position.shard).eq(shards.iter().copied()));
    once(node, collector).await;
}

/// Every event of the request arrived once, before events that are published now.
async fn once(node: &TestNode, collector: &Collector) {
    let last = events::numbered("last", EVENTS, EVENTS);
    node.publish(last).await.expect("published");
    let all_last = |ids: &[String]| ids.iter().filter(|id| id.starts_with("last-")).count();
    collector
        .wait(LIMIT, "the last events", |recording| {
            (all_last(&recording.event_ids) == EVENTS).then_some(())
        })
        .await;
    let arrived = arrived(collector);
    assert_eq!(arrived.len(), EVENTS, "{arrived:?}");
    assert_eq!(arrived.iter().collect::<HashSet<_>>().len(), EVENTS, "none twice");
    assert!(collector.with(|recording| recording.gaps().is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_which_a_master_of_the_cluster_refuses_a_part_says_what_was_accepted() {
    let cluster = RedisCluster::start().await;
    let options = GatewayOptions::redis_cluster(&cluster.urls(), &shared::prefix());
    let (one, two) = crate::pair(options.set_bus("timeout", "2s")).await;
    let publisher = TestNode::connect(&one, "publisher").await;
    let collector = collect(&two).await;
    let shards = shards_of(&publisher).await;
    let master = cluster.masters().await[0];
    cluster.node(master).cli(&["ACL", "SETUSER", "default", "-evalsha"]).await;
    let id = Uuid::new_v4();
    let status = publisher.publish_as(id, request()).await.expect_err("not all of it");
    let accepted = accepted(&status, "PARTLY_ACCEPTED", "BUS_UNAVAILABLE");
    assert!(status.message().contains("NOPERM"), "it names the cause: {status:?}");
    // The shards of one of three masters are missing, as a whole.
    let missing: HashSet<u32> = (0..EVENTS)
        .filter(|index| !accepted.contains(&format!("e-{index}")))
        .map(|index| shards[index])
        .collect();
    assert!((4..=6).contains(&missing.len()), "{missing:?}");
    assert_eq!(accepted, ids_in(&shards, |shard| !missing.contains(&shard)));
    collector
        .wait(LIMIT, "what was accepted", |recording| {
            let arrived = recording.event_ids.iter().filter(|id| id.starts_with("e-"));
            (arrived.count() == accepted.len()).then_some(())
        })
        .await;
    assert_eq!(arrived(&collector).into_iter().collect::<HashSet<_>>(), accepted);

    cluster.node(master).cli(&["ACL", "SETUSER", "default", "+evalsha"]).await;
    let elsewhere = TestNode::connect(&two, "publisher").await;
    completes(&elsewhere, id, &shards, &collector).await;
}

/// A gateway drains while a request waits for one shard. `options` are those of both gateways.
async fn drains(
    options: impl Fn(GatewayOptions) -> GatewayOptions,
    reason: &'static str,
    cause: &'static str,
) {
    let scene = Scene::start().await;
    let (one, two) = crate::pair(options(scene.options.clone())).await;
    let publisher = TestNode::connect(&one, "publisher").await;
    let collector = collect(&two).await;
    let shards = shards_of(&publisher).await;
    scene.refuse().await;
    let id = Uuid::new_v4();
    let waiting = tokio::spawn(async move { publisher.publish_as(id, request()).await });
    let expected = ids_in(&shards, |shard| shard != 0);
    collector
        .wait(LIMIT, "what is accepted", |recording| {
            let arrived = recording.event_ids.iter().filter(|id| id.starts_with("e-"));
            (arrived.count() == expected.len()).then_some(())
        })
        .await;
    let ended = one.terminate(LIMIT).await;
    assert!(ended.status.success() && ended.took < Duration::from_secs(8), "{ended:?}");
    let status = waiting.await.expect("no panic").expect_err("not all of it");
    assert_eq!(accepted(&status, reason, cause), expected);

    scene.heal().await;
    let elsewhere = TestNode::connect(&two, "publisher").await;
    completes(&elsewhere, id, &shards, &collector).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_in_the_middle_of_a_drain_says_what_was_accepted() {
    let options = |options: GatewayOptions| {
        options.set_bus("timeout", "2s").set("drain", json!({ "spread": "0s", "timeout": "5s" }))
    };
    drains(options, "PARTLY_ACCEPTED", "BUS_UNAVAILABLE").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_outlasts_a_drain_says_what_was_accepted() {
    let options = |options: GatewayOptions| {
        options.set_bus("timeout", "20s").set("drain", json!({ "spread": "0s", "timeout": "1s" }))
    };
    drains(options, "OUTCOME_UNKNOWN", "OUTCOME_UNKNOWN").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_reports_what_was_published_and_completes_it_later() {
    let scene = Scene::start().await;
    let (one, two) = crate::pair(scene.options.clone().set_bus("timeout", "1s")).await;
    let publisher = TestNode::connect(&one, "publisher").await;
    let collector = collect(&two).await;
    let shards = shards_of(&publisher).await;
    scene.refuse().await;
    let client = Client::builder("client")
        .gateways([one.url(), two.url()])
        .in_order()
        .publish_timeout(Duration::from_secs(4))
        .build()
        .expect("built");
    let id = Uuid::new_v4().to_string();
    let error = client.publish_as(&id, request()).await.expect_err("not all of it");
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    let expected: Vec<_> = (0..EVENTS).filter(|index| shards[*index] != 0).collect();
    assert_eq!(error.accepted_events(), expected);

    // A client that still retries completes the request by itself, here on another gateway.
    let retrying = {
        let (client, id) = (client.clone(), id.clone());
        tokio::spawn(async move { client.publish_as(&id, request()).await })
    };
    one.kill_9();
    scene.heal().await;
    let positions = retrying.await.expect("no panic").expect("published");
    assert!(positions.iter().map(|position| position.shard).eq(shards));
    once(&TestNode::connect(&two, "publisher").await, &collector).await;
    drop(scene.redis);
}
