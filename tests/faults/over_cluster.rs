//! Faults and changes of a Redis Cluster. The tests have the word in their names, so that one runs at a time.

use std::time::Duration;

use crate::{
    load::{Load, Shape},
    pair,
    redis::serving,
    report::Report,
    support::{
        cluster::RedisCluster,
        gateway::{Gateway, GatewayOptions},
        redis::Data,
        shared,
    },
};

/// What is left to a busy machine beyond what was promised.
const SLACK: Duration = Duration::from_secs(2);

async fn pair_over(cluster: &RedisCluster, protocol: &str) -> (Gateway, Gateway) {
    let options = GatewayOptions::redis_cluster(&cluster.urls(), &shared::prefix());
    pair(options.set_bus("protocolVersion", protocol)).await
}

async fn a_master_is_killed(protocol: &str, fault: &str) {
    let cluster = RedisCluster::start().await;
    let (one, two) = pair_over(&cluster, protocol).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    let master = cluster.masters().await[0];
    let slot = cluster.slot_of_master(master).await;
    cluster.kill_9(master);
    let killed = load.now();
    cluster.taken_over(slot, master).await;
    let healed = load.now();
    serving([&one, &two]).await;
    let served = load.now().saturating_sub(killed);
    load.publishes(500).await;
    cluster.restart(master, Data::Wiped).await;
    load.publishes(500).await;
    let history = load.finish().await;
    let report = Report::of(fault, &history).healed(healed);
    report.judge();
    let limit = cluster.node_timeout() + Duration::from_secs(2) + SLACK;
    assert!(served < limit, "serving again {served:?} after the kill; {limit:?} is the most");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_of_the_cluster_is_killed_resp3() {
    a_master_is_killed("resp3", "cluster master killed (kill -9), RESP3").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_of_the_cluster_is_killed_resp2() {
    a_master_is_killed("resp2", "cluster master killed (kill -9), RESP2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_of_the_cluster_takes_over_on_demand() {
    let cluster = RedisCluster::start().await;
    let (one, two) = pair_over(&cluster, "resp3").await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    for master in cluster.masters().await {
        let replica = cluster.replicas_of(master).await[0];
        cluster.failover(replica).await;
        load.publishes(300).await;
    }
    serving([&one, &two]).await;
    let history = load.finish().await;
    Report::of("CLUSTER FAILOVER of every master", &history).judge_without_gap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_of_the_cluster_is_moved_and_a_master_added() {
    let mut cluster = RedisCluster::start().await;
    let prefix = shared::prefix();
    let options = GatewayOptions::redis_cluster(&cluster.urls(), &prefix);
    let (one, two) = pair(options).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    let slots = slots_of_shards(&cluster, &prefix).await;
    assert_eq!(slots.len(), 6);
    // To another master, and back to where it came from.
    let slot = slots[0];
    let from = cluster.master_of_slot(slot).await;
    let to = *cluster.masters().await.iter().find(|master| **master != from).expect("three");
    cluster.move_slot(slot, to).await;
    load.publishes(300).await;
    cluster.move_slot(slot, from).await;
    load.publishes(300).await;
    // And two of them to a master that no gateway has heard of.
    let added = cluster.add_master().await;
    for slot in &slots[1..3] {
        cluster.move_slot(*slot, added).await;
        load.publishes(300).await;
    }
    serving([&one, &two]).await;
    let history = load.finish().await;
    Report::of("slot moved live, master added", &history).judge_without_gap();
}

/// The slots in which the shards of a prefix lie.
async fn slots_of_shards(cluster: &RedisCluster, prefix: &str) -> Vec<u16> {
    let mut slots = Vec::new();
    for master in cluster.masters().await {
        let keys = cluster.node(master).cli(&["KEYS", &format!("{prefix}:*:state")]).await;
        slots.extend(keys.lines().filter(|key| !key.is_empty()).map(crate::support::view::slot));
    }
    slots.sort_unstable();
    slots
}
