//! Thousands of nodes that resume at once, on a gateway that has just started.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tonic::Streaming;
use trunkline_proto::v1::{SubscribeResponse, subscribe_response::Response};

use crate::{
    either,
    support::{
        events::{mailbox_change, with_id},
        gateway::{Gateway, GatewayOptions},
        nodes::TestNode,
        redis::{RedisOptions, RedisServer},
        shared,
    },
};

/// Events that all nodes miss.
const MISSED: usize = 200;

/// Nodes of one connection.
const OF_A_CONNECTION: usize = 100;

/// The longest wait of a node for its next message. Nothing here waits for a time by itself.
const PATIENCE: Duration = Duration::from_mins(2);

/// Pages of history that are read of a shard, whatever the number of nodes.
const PAGES: u64 = 40;

const SHARDS: u64 = 16;

type Stream = Streaming<SubscribeResponse>;

async fn response(stream: &mut Stream) -> Response {
    let message = tokio::time::timeout(PATIENCE, stream.message()).await;
    let message = message.expect("a message in time").expect("no error").expect("no end");
    message.response.expect("a response")
}

/// As many nodes as are wanted, on a few connections.
async fn nodes(gateway: &Gateway, count: usize) -> Vec<TestNode> {
    let connect = |nth: usize| TestNode::connect(gateway, format!("connection-{nth}"));
    let connections = join_all((0..count.div_ceil(OF_A_CONNECTION)).map(connect)).await;
    let node = |nth: usize| {
        let client = connections[nth / OF_A_CONNECTION].client.clone();
        TestNode { node_id: format!("node-{nth}"), client }
    };
    (0..count).map(node).collect()
}

/// The first token of a stream.
async fn token(node: &TestNode) -> Vec<u8> {
    let mut stream = node.stream(node.request()).await.expect("a stream");
    let Response::Subscribed(subscribed) = response(&mut stream).await else {
        panic!("not subscribed")
    };
    subscribed.resume_token
}

/// What a node found when it resumed.
struct Resumed {
    opened: Duration,
    caught_up: Duration,
    repeated: usize,
    lost: usize,
}

async fn resume(node: &TestNode, token: Vec<u8>, missed: &BTreeSet<String>) -> Resumed {
    let begun = Instant::now();
    let request = trunkline_proto::v1::SubscribeRequest { resume_token: token, ..node.request() };
    let mut stream = node.stream(request).await.expect("a stream");
    let Response::Subscribed(subscribed) = response(&mut stream).await else {
        panic!("not subscribed")
    };
    assert!(subscribed.resumed, "{}: {subscribed:?}", node.node_id);
    let opened = begun.elapsed();
    let (mut had, mut repeated) = (BTreeSet::new(), 0);
    let lacks = |had: &BTreeSet<String>| missed.difference(had).next().is_some();
    while lacks(&had) {
        match response(&mut stream).await {
            Response::Events(batch) => {
                for event in batch.events {
                    repeated += usize::from(!had.insert(event.event_id));
                }
            }
            Response::Heartbeat(_) => {}
            other => panic!("{}: {other:?}", node.node_id),
        }
    }
    let lost = missed.difference(&had).count();
    Resumed { opened, caught_up: begun.elapsed(), repeated, lost }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_resume_at_once_share_what_is_read_of_history() {
    let count = usize::try_from(either(5000, 500)).expect("few");
    let redis = RedisServer::start(RedisOptions::default()).await;
    let options = GatewayOptions::redis(&redis.url(), &shared::prefix()).set("shards", SHARDS);
    let (one, other) =
        tokio::join!(Gateway::start(options.clone()), Gateway::start(options.clone()));
    let publisher = TestNode::connect(&other, "publisher").await;
    let publish = async |prefix: &str, nth: usize| {
        let event = with_id(format!("{prefix}-{nth}"), mailbox_change(&format!("a-{nth}"), 1));
        publisher.publish(vec![event]).await.expect("accepted");
    };
    // Something happens all the time, so that their tokens differ.
    let all = nodes(&one, count).await;
    let mut tokens = Vec::with_capacity(count);
    for (nth, some) in all.chunks(count / 20).enumerate() {
        tokens.extend(join_all(some.iter().map(token)).await);
        publish("meanwhile", nth).await;
    }
    one.kill_9();
    for nth in 0..MISSED {
        publish("missed", nth).await;
    }
    let missed: BTreeSet<String> = (0..MISSED).map(|nth| format!("missed-{nth}")).collect();
    let fresh = Gateway::start(options).await;
    let all = nodes(&fresh, count).await;
    let before = redis.calls("xrange").await;
    let resumed = all.iter().zip(tokens).map(|(node, token)| resume(node, token, &missed));
    let resumed = join_all(resumed).await;
    let read = redis.calls("xrange").await - before;
    let opened = resumed.iter().map(|it| it.opened).max().unwrap_or_default();
    let caught_up = resumed.iter().map(|it| it.caught_up).max().unwrap_or_default();
    println!("{count} nodes open after {opened:?}, caught up after {caught_up:?}: {read} reads");
    assert_eq!(resumed.iter().map(|it| it.lost + it.repeated).sum::<usize>(), 0);
    assert!(read <= PAGES * SHARDS, "{read} reads of history");
}
