//! A cluster of which a part is down, or reports itself oddly.

use std::time::Duration;

use futures_util::future::join_all;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use trunkline_proto::v1::{Event, GetStatusRequest};

use super::{
    ids,
    support::{
        ClusterOptions, Collector, Data, Gateway, GatewayOptions, LIMIT, Ready, RedisCluster,
        RedisOptions, Seen, TestNode, events, shared, view::slot,
    },
    two_gateways,
};

/// Three masters, of which each serves its slots whatever becomes of the others.
async fn masters() -> RedisCluster {
    let args = ["--cluster-require-full-coverage", "no"].map(str::to_owned).to_vec();
    let server = RedisOptions { args, ..RedisOptions::default() };
    RedisCluster::with(ClusterOptions { replicas: 0, server, ..ClusterOptions::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_of_a_cluster_starts_while_one_master_is_down_and_serves_the_other_shards() {
    let cluster = masters().await;
    let prefix = shared::prefix();
    let options = || {
        GatewayOptions::redis_cluster(&cluster.urls(), &prefix)
            .set("shards", 6)
            .set_bus("timeout", "2s")
    };
    drop(Gateway::start(options()).await);
    let record = slot(&format!("{prefix}:deployment"));
    let of_record = cluster.master_of_slot(record).await;
    let other = cluster.masters().await.into_iter().find(|master| *master != of_record);
    for down in [of_record, other.expect("another")] {
        cluster.kill_9(down);
        let gateway = Gateway::start(options().ready(Ready::Listening)).await;
        // It says what it cannot.
        gateway.is_not_ready(&["shard "], LIMIT).await;
        let address = format!("127.0.0.1:{}", cluster.node(down).port());
        let message = gateway.is_not_ready(&[&address], LIMIT).await;
        assert!(message.contains("refused"), "{message}");
        let mut client = gateway.client().await;
        let status = client.get_status(GetStatusRequest {}).await.expect("a status").into_inner();
        let verified = status.shards.iter().filter(|shard| shard.proven).count();
        assert!((1..6).contains(&verified), "{status:?}");
        // And serves what it can.
        let node = TestNode::connect(&gateway, "node").await;
        publish_what_is_taken(&node).await;
        let refused = node.stream(node.request()).await.expect_err("not every shard is verified");
        assert!(refused.message().contains(&address), "{refused:?}");
        // With the master all of it.
        cluster.restart(down, Data::Kept).await;
        gateway.health_is("", ServingStatus::Serving, LIMIT * 2).await;
        let stream = node.subscribe(node.request()).await;
        let publisher = TestNode::connect(&gateway, "publisher").await;
        publisher.publish(events::numbered("e", 60, 30)).await.expect("published");
        stream.events(60, LIMIT).await;
    }
}

/// Publishes one event for each of thirty accounts, some of which concern shards that are away. The
/// ids of those that were accepted.
async fn publish_what_is_taken(publisher: &TestNode) -> Vec<String> {
    let publish = async |number: usize| {
        let event_id = format!("e-{number}");
        let event = events::mailbox_change(&format!("account-{number}"), 1);
        let event = Event { event_id: event_id.clone(), ..event };
        publisher.publish(vec![event]).await.map(|_| event_id)
    };
    let published = join_all((0..30).map(publish)).await;
    let (accepted, failed): (Vec<_>, Vec<_>) = published.into_iter().partition(Result::is_ok);
    assert!(!accepted.is_empty() && !failed.is_empty(), "{} accepted", accepted.len());
    for failure in failed.into_iter().map(Result::unwrap_err) {
        assert_eq!(failure.code(), Code::Unavailable, "{failure:?}");
    }
    accepted.into_iter().map(Result::unwrap).collect()
}

/// Waits until a stream has said last that exactly these shards are not reached.
async fn reports(stream: &Collector, shards: &[u32]) {
    let what = format!("{shards:?} are not reached");
    stream
        .wait(LIMIT, &what, |recording| {
            let unverified = recording.seen.iter().rev().find_map(|seen| match seen {
                Seen::Subscribed(subscribed) => Some(&subscribed.unverified_shards),
                Seen::Heartbeat(heartbeat) => Some(&heartbeat.unverified_shards),
                _ => None,
            });
            unverified.is_some_and(|unverified| unverified == shards).then_some(())
        })
        .await;
}

/// Waits until a stream has brought these events behind the first ones, in any order, and nothing
/// else.
async fn brings(stream: &Collector, first: usize, events: &[String]) {
    let recording = stream.events(first + events.len(), LIMIT).await;
    let mut brought = recording.event_ids[first..].to_vec();
    let mut events = events.to_vec();
    brought.sort_unstable();
    events.sort_unstable();
    assert_eq!(brought, events);
    assert!(recording.gaps().is_empty(), "{:?}", recording.gaps());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_shard_stops_what_concerns_it_and_nothing_else() {
    let cluster = masters().await;
    let prefix = shared::prefix();
    let options = GatewayOptions::redis_cluster(&cluster.urls(), &prefix)
        .set("shards", 6)
        .set_bus("timeout", "2s");
    let gateway = Gateway::start(options).await;
    let mut owners = Vec::new();
    for shard in 0..6_u32 {
        owners.push(cluster.master_of_slot(slot(&format!("{prefix}:{{{shard}}}:state"))).await);
    }
    let down = owners[0];
    let dead: Vec<u32> =
        (0..).zip(&owners).filter(|(_, owner)| **owner == down).map(|(n, _)| n).collect();
    assert!(dead.len() < 6, "one master has all shards");
    let node = TestNode::connect(&gateway, "node").await;
    let first = node.subscribe(node.request()).await;
    reports(&first, &[]).await;

    cluster.kill_9(down);
    reports(&first, &dead).await;
    for service in ["", "trunkline.v1.CoordinationService/Publish"] {
        assert_eq!(gateway.health(service).await.expect("an answer"), ServingStatus::Serving);
    }
    let (status, ready) = gateway.admin_answer("/readyz").await.expect("an answer");
    assert!(status == 200 && ready.starts_with("ready but for shard "), "{status} {ready}");
    // The other shards go on, on streams that were open and on new ones.
    let second = node.subscribe(node.request()).await;
    assert_eq!(second.subscribed().await.unverified_shards, dead);
    let publisher = TestNode::connect(&gateway, "publisher").await;
    let accepted = publish_what_is_taken(&publisher).await;
    for stream in [&first, &second] {
        brings(stream, 0, &accepted).await;
    }

    // What is published when it is back arrives on both, of all shards.
    cluster.restart(down, Data::Kept).await;
    for stream in [&first, &second] {
        reports(stream, &[]).await;
    }
    publisher.publish(events::numbered("late", 60, 30)).await.expect("published");
    for stream in [&first, &second] {
        brings(stream, accepted.len(), &ids("late", 0..60)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_a_cluster_that_report_no_address_are_reached_at_the_one_that_was_asked() {
    let options = ClusterOptions { replicas: 0, ..ClusterOptions::default() };
    let cluster = RedisCluster::with(options).await;
    for form in ["unknown-endpoint", "hostname"] {
        for node in cluster.nodes() {
            node.cli(&["CONFIG", "SET", "cluster-preferred-endpoint-type", form]).await;
        }
        let prefix = shared::prefix();
        for protocol in ["resp3", "resp2"] {
            let options = || {
                GatewayOptions::redis_cluster(&cluster.urls()[..1], &prefix)
                    .set("shards", 6)
                    .set_bus("protocolVersion", protocol)
            };
            let (one, two) = two_gateways(options).await;
            let publisher = TestNode::connect(&one, "publisher").await;
            let subscriber = TestNode::connect(&two, "subscriber").await;
            let stream = subscriber.subscribe(subscriber.request()).await;
            publisher.publish(events::numbered("e", 300, 30)).await.expect("published");
            let mut seen = stream.events(300, LIMIT).await.event_ids;
            seen.sort_by_key(|id| id[2..].parse::<u32>().expect("a number"));
            assert_eq!(seen, ids("e", 0..300), "{form}, {protocol}");
            drop((one, two));
            // The mode of the channels is recorded.
            for node in cluster.nodes() {
                node.cli(&["FLUSHALL"]).await;
            }
        }
    }
}

/// Two masters that have lost sight of each other: what one publishes does not reach the
/// subscribers of the other, while the third has both.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_whose_masters_lost_sight_of_each_other_loses_no_event() {
    let cluster = masters().await;
    let prefix = shared::prefix();
    let options = || {
        GatewayOptions::redis_cluster(&cluster.urls(), &prefix)
            .set("shards", 2)
            .set_bus("protocolVersion", "resp2")
    };
    let gateway = Gateway::start(options()).await;
    let mut owners = Vec::new();
    for (index, node) in cluster.nodes().iter().enumerate() {
        let keys = node.cli(&["KEYS", &format!("{prefix}:*:state")]).await;
        owners.extend((!keys.is_empty()).then_some(index));
    }
    let [one, two] = owners[..] else { panic!("two owners: {owners:?}") };
    let id = async |index: usize| cluster.node(index).cli(&["CLUSTER", "MYID"]).await;
    let (first, second) = (id(one).await, id(two).await);
    cluster.node(one).cli(&["CLUSTER", "FORGET", &second]).await;
    cluster.node(two).cli(&["CLUSTER", "FORGET", &first]).await;
    // Wherever it subscribes, it finds its way.
    gateway.health_is("", ServingStatus::Serving, Duration::from_secs(50)).await;
    let node = TestNode::connect(&gateway, "node").await;
    let stream = node.subscribe(node.request()).await;
    let publisher = TestNode::connect(&gateway, "publisher").await;
    publisher.publish(events::numbered("e", 60, 30)).await.expect("published");
    stream.events(60, LIMIT).await;
}
