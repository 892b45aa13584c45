//! Faults and changes of a Redis Cluster. The names of the tests contain `cluster`: nextest runs
//! those one at a time.

use std::time::Duration;

use tonic::Code;
use tonic_types::StatusExt;
use trunkline_proto::v1::Start;

use crate::{
    load::{Load, Shape},
    pair,
    redis::serving,
    report::Report,
    support::{
        LIMIT,
        cluster::RedisCluster,
        events,
        gateway::{Gateway, GatewayOptions},
        nodes::TestNode,
        redis::Data,
        shared,
        wait::attempt,
    },
};

/// Tolerance for a busy machine.
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
    report.check();
    report.unseen_by_publishers();
    let limit = cluster.node_timeout() + Duration::from_secs(2) + SLACK;
    assert!(served < limit, "serving again {served:?} after the kill; {limit:?} is the most");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_master_of_a_cluster_loses_nothing_over_resp3() {
    a_master_is_killed("resp3", "cluster master killed (kill -9), RESP3").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_master_of_a_cluster_loses_nothing_over_resp2() {
    a_master_is_killed("resp2", "cluster master killed (kill -9), RESP2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_by_command_in_a_cluster_causes_no_gap() {
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
    let report = Report::of("CLUSTER FAILOVER of every master", &history);
    report.check_without_gap();
    report.unseen_by_publishers();
}

#[tokio::test(flavor = "multi_thread")]
async fn moving_slots_and_masters_of_a_cluster_causes_no_gap() {
    let mut cluster = RedisCluster::start().await;
    let prefix = shared::prefix();
    let options = GatewayOptions::redis_cluster(&cluster.urls(), &prefix);
    let (one, two) = pair(options).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    let slots = slots_of_shards(&cluster, &prefix).await;
    assert_eq!(slots.len(), 16);
    // To another master, and back.
    let slot = slots[0];
    let from = cluster.master_of_slot(slot).await;
    let to = *cluster.masters().await.iter().find(|master| **master != from).expect("three");
    cluster.move_slot(slot, to).await;
    load.publishes(300).await;
    cluster.move_slot(slot, from).await;
    load.publishes(300).await;
    // And two of them to a master that no gateway knows yet.
    let added = cluster.add_master().await;
    for slot in &slots[1..3] {
        cluster.move_slot(*slot, added).await;
        load.publishes(300).await;
    }
    // The new master is removed: first its slots, then the server.
    for slot in &slots[1..3] {
        cluster.move_slot(*slot, from).await;
    }
    load.publishes(300).await;
    cluster.remove_master(added).await;
    load.publishes(300).await;
    serving([&one, &two]).await;
    let history = load.finish().await;
    let report = Report::of("slot moved live, master added, master removed", &history);
    report.check_without_gap();
    report.unseen_by_publishers();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_joins_a_cluster_after_a_master_was_added_has_the_same_shards() {
    let mut cluster = RedisCluster::start().await;
    let prefix = shared::prefix();
    let options = GatewayOptions::redis_cluster(&cluster.urls(), &prefix);
    let one = Gateway::start(options.clone()).await;
    let slots = slots_of_shards(&cluster, &prefix).await;
    assert_eq!(slots.len(), 16);
    let added = cluster.add_master().await;
    cluster.move_slot(slots[0], added).await;
    // Without the record, the second gateway decides for itself.
    let record = format!("{prefix}:deployment");
    for master in cluster.masters().await {
        let _: ::redis::RedisResult<u8> = cluster.node(master).command(&["DEL", &record]).await;
    }
    let two = Gateway::start(options).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    load.publishes(500).await;
    let history = load.finish().await;
    let report = Report::of("cluster scaled out, deployment record lost", &history);
    report.check_without_gap();
    assert_eq!(slots_of_shards(&cluster, &prefix).await, slots, "no further shards");
}

#[tokio::test(flavor = "multi_thread")]
async fn changing_every_address_of_a_cluster_causes_no_gap() {
    let mut cluster = RedisCluster::start().await;
    let (one, two) = pair_over(&cluster, "resp3").await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    // Like an orchestrator, one by one: replicas first, and masters once they are replicas.
    let masters = cluster.masters().await;
    for master in masters {
        let replica = cluster.replicas_of(master).await[0];
        cluster.readdress(replica).await;
        cluster.failover(replica).await;
        cluster.readdress(master).await;
        load.publishes(300).await;
    }
    // Every address that the gateways learned at their start is gone.
    serving([&one, &two]).await;
    let history = load.finish().await;
    Report::of("every address of the cluster changed, one by one", &history).check_without_gap();
}

/// The hash slots of the shards of a prefix.
async fn slots_of_shards(cluster: &RedisCluster, prefix: &str) -> Vec<u16> {
    let mut slots = Vec::new();
    for master in cluster.masters().await {
        let keys = cluster.node(master).cli(&["KEYS", &format!("{prefix}:*:state")]).await;
        slots.extend(keys.lines().filter(|key| !key.is_empty()).map(crate::support::view::slot));
    }
    slots.sort_unstable();
    slots
}

#[tokio::test(flavor = "multi_thread")]
async fn with_min_replicas_in_a_cluster_ok_means_that_a_replica_has_it() {
    let cluster = RedisCluster::start().await;
    let prefix = shared::prefix();
    let options = GatewayOptions::redis_cluster(&cluster.urls(), &prefix)
        .set("shards", 1)
        .set_bus("minReplicas", 1)
        .set_bus("timeout", "2s");
    let (one, two) = pair(options.clone()).await;
    let subscriber = TestNode::connect(&two, "subscriber").await;
    let collector = subscriber.subscribe(subscriber.request()).await;
    let publisher = TestNode::connect(&one, "publisher").await;
    publisher.publish(events::numbered("first", 10, 1)).await.expect("a replica has them");

    // Without a replica there is no OK, whatever the master answers; and the request is accepted
    // once.
    let slot = slots_of_shards(&cluster, &prefix).await[0];
    let master = cluster.master_of_slot(slot).await;
    let replica = cluster.replicas_of(master).await[0];
    cluster.node(replica).pause().await;
    let request = uuid::Uuid::new_v4().to_string();
    let second = || events::numbered("second", 10, 1);
    let error = publisher.publish_as(&request, second()).await.expect_err("no replica has it");
    assert_eq!(error.code(), Code::Unavailable, "{error:?}");
    let reason = error.get_details_error_info().expect("details").reason;
    assert_eq!(reason, "OUTCOME_UNKNOWN", "{error:?}");
    let again = TestNode::connect(&two, "publisher").await;
    again.publish_as(&request, second()).await.expect_err("still none has it, on any gateway");
    cluster.node(replica).resume();
    attempt(LIMIT, "the request is accepted", async || {
        let retried = again.publish_as(&request, second()).await;
        retried.map_err(|status| status.to_string())
    })
    .await;

    // Acknowledged events outlive the master and both gateways.
    publisher.publish(events::numbered("third", 10, 1)).await.expect("a replica has them");
    one.kill_9();
    cluster.kill_9(master);
    let ids = collector.event("third-9", LIMIT).await.event_ids;
    assert_eq!(ids.len(), 30, "each once: {ids:?}");
    two.kill_9();
    cluster.taken_over(slot, master).await;
    let three = Gateway::start(options.set_bus("minReplicas", 0)).await;
    let node = TestNode::connect(&three, "late").await;
    let mut request = node.request();
    request.start = Start::Oldest.into();
    let late = node.subscribe(request).await;
    assert_eq!(late.events(30, LIMIT).await.event_ids, ids);
}
