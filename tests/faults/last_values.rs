//! Last values: whatever Redis and the gateways lost, a new stream begins with the newest, on every
//! gateway.

use std::time::Duration;

use serde_json::json;
use trunkline_proto::v1::{Event, QueueStatus, event::Kind, queue_status::State};

use crate::{
    pair_on,
    redis::serving,
    support::{
        LIMIT,
        cluster::RedisCluster,
        events,
        gateway::{Gateway, GatewayOptions},
        nodes::TestNode,
        proxy::Proxy,
        redis::{Data, RedisOptions, RedisServer},
        shared,
        wait::attempt,
    },
};

fn status(id: &str) -> Event {
    let kind = Some(Kind::QueueStatus(QueueStatus { state: State::Paused.into() }));
    Event { event_id: id.into(), kind, ..Default::default() }
}

async fn publish(gateway: &Gateway, id: &str) {
    let node = TestNode::connect(gateway, "publisher").await;
    node.publish(vec![status(id)]).await.expect("published");
}

/// The ids of what a new stream begins with.
async fn first(gateway: &Gateway) -> Vec<String> {
    let node = TestNode::connect(gateway, "reader").await;
    let stream = node.subscribe(node.request()).await;
    let marker = uuid::Uuid::new_v4().to_string();
    let event = events::with_id(&marker, events::mailbox_change("a", 1));
    TestNode::connect(gateway, "marker").await.publish(vec![event]).await.expect("published");
    let mut ids = stream.event(&marker, LIMIT).await.event_ids;
    ids.pop();
    ids
}

/// Waits until new streams of all gateways begin with this event.
async fn all_begin_with(gateways: &[&Gateway], id: &str) {
    for (index, gateway) in gateways.iter().enumerate() {
        attempt(LIMIT, &format!("gateway {index} begins with {id}"), async || {
            let ids = first(gateway).await;
            (ids == [id]).then_some(()).ok_or_else(|| format!("{ids:?}"))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_redis_that_lost_its_data_new_streams_begin_with_the_newest_value() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let (one, two) = pair_on(&redis).await;
    publish(&one, "old").await;
    redis.cli(&["SAVE"]).await;
    for (round, fault) in ["FLUSHALL", "put back", "empty"].into_iter().enumerate() {
        let id = format!("newest-{round}");
        publish(&one, &id).await;
        match fault {
            "FLUSHALL" => drop(redis.cli(&["FLUSHALL"]).await),
            "put back" => redis.restart(Data::Kept).await,
            _ => redis.restart(Data::Wiped).await,
        }
        serving([&one, &two]).await;
        // One that was not there before knows only what Redis has.
        let mut options = GatewayOptions::redis(&redis.url(), "");
        options.config["prefix"] = prefix_of(&one);
        let three = Gateway::start(options).await;
        all_begin_with(&[&one, &two, &three], &id).await;
    }
}

fn prefix_of(gateway: &Gateway) -> serde_json::Value {
    let file = std::fs::read_to_string(gateway.config_file()).expect("its configuration");
    serde_json::from_str::<serde_json::Value>(&file).expect("JSON")["prefix"].clone()
}

/// The gateways that received the event are gone; one that read it from Redis lives.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_no_gateway_received_itself_outlives_a_flush() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let options = GatewayOptions::redis(&redis.url(), &shared::prefix());
    let one = Gateway::start(options.clone()).await;
    publish(&one, "newest").await;
    one.kill_9();
    // Only the last value is left: history has another event.
    let two = Gateway::start(options.clone().set("history", json!({ "maxFrames": 1 }))).await;
    first(&two).await;
    two.restart().await;
    redis.cli(&["FLUSHALL"]).await;
    let three = Gateway::start(options).await;
    all_begin_with(&[&two, &three], "newest").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_missed_the_value_in_a_gap_reads_it() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let proxy = Proxy::start(redis.port()).await;
    let prefix = shared::prefix();
    let options =
        |url: &str| GatewayOptions::redis(url, &prefix).set("history", json!({ "maxFrames": 10 }));
    let (deaf, other) =
        tokio::join!(Gateway::start(options(&proxy.url())), Gateway::start(options(&redis.url())),);
    publish(&other, "old").await;
    all_begin_with(&[&deaf, &other], "old").await;
    let watcher = TestNode::connect(&deaf, "watcher").await;
    let stream = watcher.subscribe(watcher.request()).await;
    proxy.drop_bytes();
    publish(&other, "newest").await;
    // History forgets it.
    let publisher = TestNode::connect(&other, "publisher").await;
    for number in 0..500 {
        publisher.publish(events::numbered(&number.to_string(), 1, 1)).await.expect("published");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    proxy.forward();
    let gap = stream.gap(LIMIT).await;
    assert!(gap.missed_events.is_some_and(|missed| missed > 0), "{gap:?}");
    all_begin_with(&[&deaf, &other], "newest").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failover_of_a_cluster_new_streams_begin_with_the_newest_value() {
    let cluster = RedisCluster::start().await;
    let options = GatewayOptions::redis_cluster(&cluster.urls(), &shared::prefix());
    let (one, two) = crate::pair(options.clone()).await;
    publish(&one, "old").await;
    // Every master has a replica that lacks the newest value.
    let masters = cluster.masters().await;
    let mut replicas = Vec::new();
    for master in &masters {
        replicas.push(cluster.replicas_of(*master).await[0]);
    }
    for replica in &replicas {
        cluster.node(*replica).pause().await;
    }
    publish(&one, "newest").await;
    let slots = futures_util::future::join_all(
        masters.iter().map(async |master| cluster.slot_of_master(*master).await),
    )
    .await;
    // The master with the value is one of them: each fails over, one after the other.
    for ((master, replica), slot) in masters.iter().zip(&replicas).zip(slots) {
        cluster.kill_9(*master);
        cluster.node(*replica).resume();
        cluster.taken_over(slot, *master).await;
    }
    serving([&one, &two]).await;
    let three = Gateway::start(options).await;
    all_begin_with(&[&one, &two, &three], "newest").await;
}
