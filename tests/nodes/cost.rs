//! The cost of the list of nodes for Redis.

use std::time::Duration;

use trunkline_proto::v1::SubscribeRequest;

use super::{
    node_ids, redis,
    support::{Collector, Gateway, LIMIT, RedisServer, TestNode, until},
    two,
};

/// How long is counted.
const COUNTED: Duration = Duration::from_secs(10);

/// The calls that the list makes, while nothing happens.
async fn counted(redis: &RedisServer, gateways: [&Gateway; 2], nodes: usize) -> [u64; 3] {
    for gateway in gateways {
        until(LIMIT, "all nodes", async || node_ids(gateway).await.len() == nodes).await;
    }
    // The last changes are published, and so are the stats.
    tokio::time::sleep(Duration::from_secs(6)).await;
    redis.cli(&["CONFIG", "RESETSTAT"]).await;
    tokio::time::sleep(COUNTED).await;
    // The scripts of the list, what they read, and the member shards.
    [redis.calls("evalsha").await, redis.calls("hgetall").await, redis.calls("hmget").await]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_nodes_cost_as_many_commands_as_two() {
    let redis = redis().await;
    let (a, b) = two(&redis).await;
    let (on_a, on_b) = (TestNode::connect(&a, "").await, TestNode::connect(&b, "").await);
    let mut held: Vec<Collector> = Vec::new();
    let mut open = async |count: usize| {
        while held.len() < count {
            let number = held.len();
            let node = if number.is_multiple_of(2) { &on_a } else { &on_b };
            let node_id = format!("node-{number}");
            held.push(node.subscribe(SubscribeRequest { node_id, ..Default::default() }).await);
        }
    };
    open(2).await;
    let few = counted(&redis, [&a, &b], 2).await;
    open(1000).await;
    let many = counted(&redis, [&a, &b], 1000).await;
    println!("in {COUNTED:?}: evalsha, hgetall, hmget with 2 nodes {few:?}, with 1000 {many:?}");
    // One call of each gateway every 2 s, and once a second at most one of them looks at all.
    assert!(few[0] >= 8 && (3..=11).contains(&few[1]), "{few:?}");
    for (few, many) in few.into_iter().zip(many) {
        assert!(many <= few + 8, "{few} with 2 nodes, {many} with 1000");
    }
}
