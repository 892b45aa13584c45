//! What is slow or broken in one shard holds up that shard alone.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use serde_json::json;
use trunkline_proto::v1::{Start, SubscribeRequest};

use crate::{
    pair,
    support::{
        LIMIT,
        cluster::{ClusterOptions, RedisCluster},
        events::{mailbox_change, numbered, with_id},
        gateway::GatewayOptions,
        nodes::TestNode,
        shared, until,
    },
};

/// The accounts of the test, and so about as many shards.
const ACCOUNTS: usize = 64;

#[tokio::test(flavor = "multi_thread")]
async fn streams_over_a_cluster_wait_for_no_shard_but_the_one_whose_master_is_slow() {
    // No replica takes over meanwhile.
    let node_timeout = Duration::from_secs(30);
    let cluster = RedisCluster::with(ClusterOptions { node_timeout, ..Default::default() }).await;
    // The logs are too small: a stream from the oldest event reads history of every shard.
    let prefix = shared::prefix();
    let options = GatewayOptions::redis_cluster(&cluster.urls(), &prefix)
        .set("log", json!({ "maxEvents": 2 }));
    let (one, two) = pair(options).await;
    let publisher = TestNode::connect(&one, "publisher").await;
    let positions = publisher.publish(numbered("e", 10 * ACCOUNTS, ACCOUNTS)).await;
    let shards: Vec<u32> =
        positions.expect("published").iter().map(|position| position.shard).collect();
    let node = TestNode::connect(&two, "node").await;
    let live = node.subscribe(node.request()).await;

    let slow = cluster.masters().await[0];
    let owned = shards_of(&cluster, slow, &prefix).await;
    let is_slow = |shard: u32| owned.contains(&shard);
    let slow_events = |shards: &[u32]| shards.iter().filter(|shard| is_slow(**shard)).count();
    let others = shards.len() - slow_events(&shards);
    assert!(others > 0 && others < shards.len(), "{others} of {}", shards.len());

    cluster.node(slow).pause().await;
    let frozen = Instant::now();
    // A stream that is open gets what the other shards bring.
    let elsewhere = (0..ACCOUNTS).find(|account| !is_slow(shards[*account])).expect("a shard");
    let event = with_id("live", mailbox_change(&format!("account-{elsewhere}"), 1));
    publisher.publish(vec![event]).await.expect("published");
    live.event("live", LIMIT).await;
    let after = frozen.elapsed();
    assert!(after < Duration::from_secs(1), "{after:?}");
    // One that is opened reads history of the other shards.
    let request = SubscribeRequest { start: Start::Oldest.into(), ..node.request() };
    let collector = node.subscribe(request).await;
    // What the slow shards have comes later, but for what a replica gave.
    let wanted: Vec<String> = (0..shards.len())
        .filter(|index| !is_slow(shards[*index]))
        .map(|index| format!("e-{index}"))
        .collect();
    until(LIMIT, "the events of the other shards", async || {
        let came: HashSet<String> = collector.event_ids().into_iter().collect();
        wanted.iter().all(|id| came.contains(id))
    })
    .await;

    cluster.node(slow).resume();
    let recording = collector.events(shards.len() + 1, LIMIT).await;
    let different: HashSet<_> = recording.event_ids.iter().collect();
    assert_eq!(different.len(), shards.len() + 1, "each once");
    assert!(recording.gaps().is_empty(), "{:?}", recording.gaps());
}

/// The shards whose keys are on a master.
async fn shards_of(cluster: &RedisCluster, master: usize, prefix: &str) -> HashSet<u32> {
    let keys = cluster.node(master).cli(&["KEYS", &format!("{prefix}:{{*}}:state")]).await;
    let shard = |key: &str| {
        // `{5}`, or `{5.12}` where that has the slot that is wanted.
        let tag = key.split_once('{')?.1.split_once('}')?.0;
        tag.split('.').next()?.parse().ok()
    };
    keys.lines().filter_map(shard).collect()
}
