//! A real Redis Cluster of three masters and three replicas, in both protocols; and the load that
//! gateways put on it.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use super::{
    support::{
        self, SharedCluster,
        cluster::RedisCluster,
        events,
        gateway::{Gateway, GatewayOptions},
        nodes::{Keep, TestNode},
        redis::{RedisOptions, RedisServer},
        shared,
        view::slot,
        wait,
    },
    two_gateways,
};
use trunkline_proto::v1::{GetStatusRequest, Position, Start};

const LIMIT: Duration = Duration::from_secs(30);

/// All events published on one gateway arrive on the other, from every shard.
async fn crosses(cluster: &SharedCluster, protocol: &str) {
    let options = || {
        GatewayOptions::redis_cluster(&cluster.urls, &cluster.prefix)
            .set_bus("protocolVersion", protocol)
    };
    let (one, two) = two_gateways(options).await;
    let publisher = TestNode::connect(&one, "publisher").await;
    let subscriber = TestNode::connect(&two, "subscriber").await;
    let collector = subscriber.subscribe(subscriber.request()).await;
    let positions = publisher.publish(events::numbered("e", 300, 100)).await.expect("published");
    let shards: HashSet<u32> = positions.iter().map(|position| position.shard).collect();
    assert_eq!(shards.len(), 16, "all shards are in use");
    let recording = collector.events(300, LIMIT).await;
    assert!(recording.gaps().is_empty());
    let ids: HashSet<_> = recording.event_ids.iter().collect();
    assert_eq!((ids.len(), recording.event_ids.len()), (300, 300));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_cross_gateways_over_sharded_channels_in_resp3() {
    crosses(&SharedCluster::get().await, "resp3").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_cross_gateways_over_classic_channels_in_resp2() {
    crosses(&SharedCluster::get().await, "resp2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_of_a_cluster_in_the_other_mode_reports_it_and_does_not_serve() {
    let cluster = SharedCluster::get().await;
    let options = || GatewayOptions::redis_cluster(&cluster.urls, &cluster.prefix);
    let _first = Gateway::start(options()).await;
    let other =
        options().set_bus("protocolVersion", "resp2").ready(support::gateway::Ready::Started);
    let second = Gateway::start(other).await;
    let ended = second.ends(LIMIT).await;
    assert!(!ended.status.success());
    let said = second.stderr();
    assert!(said.contains("classic") && said.contains("sharded"), "it says which: {said}");
}

/// The number of client connections of all servers, without those of the cluster itself; and the
/// number of those that subscribe.
async fn connections(servers: &[&RedisServer]) -> (usize, usize) {
    let (mut all, mut subscribers) = (0, 0);
    for server in servers {
        for client in server.clients().await {
            if client.is_replication() {
                continue;
            }
            all += 1;
            subscribers += usize::from(client.is_subscriber());
        }
    }
    (all, subscribers)
}

// The tests that count or close connections have servers of their own: a shared one also has the
// connections of other tests.

/// Redis sees the same number of connections with 2 nodes and with 500.
async fn multiplexes(
    options: impl Fn() -> GatewayOptions,
    servers: &[&RedisServer],
    subscriptions: usize,
) {
    let (one, two) = two_gateways(options).await;
    let mut collectors = Vec::new();
    for gateway in [&one, &two] {
        let node = TestNode::connect(gateway, format!("first-{}", gateway.port())).await;
        collectors.push(node.subscribe(node.request()).await);
    }
    let publisher = TestNode::connect(&one, "publisher").await;
    publisher.publish(events::numbered("warm", 20, 20)).await.expect("published");
    for collector in &collectors {
        collector.events(20, LIMIT).await;
    }
    let few = connections(servers).await;
    assert_eq!(few.1, subscriptions, "subscription connections of two gateways");
    for gateway in [&one, &two] {
        // Fifty nodes on each connection, as the processes of a mail server would share one.
        for connection in 0..5 {
            let node = TestNode::connect(gateway, "many").await;
            for stream in 0..50 {
                let mut request = node.request();
                request.node_id = format!("node-{}-{connection}-{stream}", gateway.port());
                let collector = node.collect(request, Keep::Ids).await.expect("a stream");
                collectors.push(collector);
            }
        }
    }
    for collector in &collectors {
        collector.subscribed().await;
    }
    assert_eq!(collectors.len(), 502);
    publisher.publish(events::numbered("many", 20, 20)).await.expect("published");
    for collector in &collectors {
        collector.event("many-19", LIMIT).await;
    }
    let many = connections(servers).await;
    assert_eq!(many, few, "(connections, subscriptions) with 502 nodes and with 2");
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_sees_no_more_connections_with_500_nodes_than_with_2() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    multiplexes(|| GatewayOptions::redis(&redis.url(), &prefix), &[&redis], 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_sees_one_subscription_connection_for_each_master_and_gateway() {
    let cluster = RedisCluster::start().await;
    let prefix = shared::prefix();
    let servers: Vec<_> = cluster.nodes().iter().collect();
    multiplexes(|| GatewayOptions::redis_cluster(&cluster.urls(), &prefix), &servers, 6).await;
}

/// 100,000 events from 4 publishers on 2 gateways to 20 subscribers on 2 gateways: every subscriber
/// has all of them, none twice, the same order per shard.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_events_reach_twenty_subscribers_once_and_in_one_order() {
    const EVENTS: usize = 100_000;
    const PUBLISHERS: usize = 4;
    const BATCH: usize = 50;
    let cluster = SharedCluster::get().await;
    let options = || GatewayOptions::redis_cluster(&cluster.urls, &cluster.prefix);
    let (one, two) = two_gateways(options).await;
    let mut collectors = Vec::new();
    for index in 0..20 {
        let gateway = if index % 2 == 0 { &one } else { &two };
        let node = TestNode::connect(gateway, format!("subscriber-{index}")).await;
        let collector = node.collect(node.request(), Keep::Ids).await.expect("a stream");
        collector.subscribed().await;
        collectors.push(collector);
    }
    let publishing = (0..PUBLISHERS).map(|publisher| {
        let gateway = if publisher % 2 == 0 { &one } else { &two };
        async move {
            let node = TestNode::connect(gateway, format!("publisher-{publisher}")).await;
            let all = events::numbered(&format!("p{publisher}"), EVENTS / PUBLISHERS, 500);
            let mut accepted: Vec<(String, Position)> = Vec::with_capacity(all.len());
            for batch in all.chunks(BATCH) {
                let positions = node.publish(batch.to_vec()).await.expect("published");
                let ids = batch.iter().map(|event| event.event_id.clone());
                accepted.extend(ids.zip(positions));
            }
            accepted
        }
    });
    let accepted: HashMap<String, Position> =
        futures_util::future::join_all(publishing).await.into_iter().flatten().collect();
    assert_eq!(accepted.len(), EVENTS);
    for collector in &collectors {
        collector
            .wait(Duration::from_mins(1), "all events", |r| {
                (r.event_ids.len() >= EVENTS).then_some(())
            })
            .await;
    }
    // A repeated event would have arrived before the end of this wait.
    let last = TestNode::connect(&one, "last").await;
    last.publish(events::numbered("last", 200, 200)).await.expect("published");
    for collector in &collectors {
        collector.event("last-199", LIMIT).await;
        let recording = collector.recording();
        assert!(recording.gaps().is_empty());
        let ids: HashSet<_> = recording.event_ids.iter().collect();
        let numbered = recording.event_ids.iter().filter(|id| id.starts_with('p'));
        assert_eq!(ids.len(), recording.event_ids.len(), "none twice");
        let mut ends: HashMap<u32, (u64, u64)> = HashMap::new();
        let mut count = 0;
        for id in numbered {
            count += 1;
            // One order for all: that of the positions.
            let position = &accepted[id];
            let at = (position.epoch, position.offset);
            let end = ends.entry(position.shard).or_default();
            assert!(*end < at, "{id} at {at:?} came after {end:?}");
            *end = at;
        }
        assert_eq!(count, EVENTS, "all of them");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_has_the_shards_of_a_cluster_and_their_masters() {
    let cluster = RedisCluster::start().await;
    let prefix = shared::prefix();
    let gateway = Gateway::start(GatewayOptions::redis_cluster(&cluster.urls(), &prefix)).await;
    let mut client = gateway.client().await;
    let status = client.get_status(GetStatusRequest {}).await.expect("a status").into_inner();
    assert_eq!(status.bus, "redis-cluster");
    assert!(status.serving);
    assert_eq!((status.shards.len(), status.links.len()), (16, 3));
    assert!(status.shards.iter().all(|shard| shard.proven && shard.epoch > 0));
    assert!(status.links.iter().all(|link| link.connected));
    let before: Vec<_> = status.links.iter().map(|link| link.reconnects).collect();
    assert_eq!(before, [0, 0, 0]);
    for server in cluster.nodes() {
        server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    }
    wait::until(LIMIT, "every subscription to be made anew", async || {
        let status = client.get_status(GetStatusRequest {}).await.expect("a status").into_inner();
        status.links.iter().all(|link| link.connected && link.reconnects == 1)
    })
    .await;
}

/// A history of more than one reading, by two gateways: one reads from the replica, the other is
/// configured not to.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_of_a_cluster_serve_history_and_one_that_hangs_delays_no_stream() {
    const EVENTS: usize = 1000;
    let cluster = RedisCluster::start().await;
    let prefix = shared::prefix();
    let options = |replicas: bool| {
        GatewayOptions::redis_cluster(&cluster.urls(), &prefix)
            .set("shards", 1)
            .set("log", serde_json::json!({ "maxEvents": 1 }))
            .set_bus("readFromReplicas", replicas)
    };
    let first = Gateway::start(options(false)).await;
    let publisher = TestNode::connect(&first, "publisher").await;
    let sent = events::numbered("e", EVENTS, 1);
    for event in &sent {
        publisher.publish(vec![event.clone()]).await.expect("published");
    }
    let master = cluster.master_of_slot(slot(&format!("{prefix}:{{0}}:state"))).await;
    let replica = cluster.replicas_of(master).await[0];
    cluster.replica_is_named(replica).await;
    let (master, replica) = (cluster.node(master), cluster.node(replica));
    let second = Gateway::start(options(true)).await;
    let all_through = async |gateway: &Gateway, limit| {
        let node = TestNode::connect(gateway, "node").await;
        let mut request = node.request();
        request.start = Start::Oldest.into();
        let recording = node.subscribe(request).await.events(EVENTS, limit).await;
        let expected: Vec<_> = sent.iter().map(|event| &event.event_id).collect();
        assert_eq!(recording.event_ids.iter().collect::<Vec<_>>(), expected);
        assert!(recording.gaps().is_empty(), "{:?}", recording.gaps());
    };

    let before = (master.calls("xrange").await, replica.calls("xrange").await);
    all_through(&first, LIMIT).await;
    let between = (master.calls("xrange").await, replica.calls("xrange").await);
    assert!(between.0 >= before.0 + 8, "{before:?} {between:?}");
    assert_eq!(between.1, before.1, "without readFromReplicas");
    all_through(&second, LIMIT).await;
    assert!(replica.calls("xrange").await >= between.1 + 7, "with it");

    // It costs one time limit, not one for each reading of a hundred entries.
    replica.pause().await;
    all_through(&second, Duration::from_secs(8)).await;
    second.stderr_has("a replica did not serve history", LIMIT).await;
    replica.resume();
    let before = replica.calls("xrange").await;
    wait::until(LIMIT, "the replica serves again", async || {
        all_through(&second, LIMIT).await;
        replica.calls("xrange").await > before
    })
    .await;
}
