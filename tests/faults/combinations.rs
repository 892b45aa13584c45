//! Two and three faults together: what Redis loses comes back from the gateways, once.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use trunkline_proto::v1::{GetStatusRequest, Position, SubscribeRequest};
use uuid::Uuid;

use crate::{
    load::{Load, Shape},
    pair, pair_on,
    redis::serving,
    report::Report,
    seconds,
    support::{
        LIMIT,
        events::{self, with_id},
        gateway::{Gateway, GatewayOptions, Ready},
        nodes::{Keep, TestNode},
        redis::{Data, RedisOptions, RedisServer},
        shared,
        wait::until,
    },
};

/// The age of the snapshot to which Redis is put back.
const AGE: Duration = Duration::from_millis(300);

/// Puts Redis back to the state that it has now, after `AGE` of load: what a failover to a replica
/// that lags does.
async fn put_back(redis: &RedisServer) {
    redis.cli(&["SAVE"]).await;
    tokio::time::sleep(AGE).await;
    redis.kill_9();
    redis.restart(Data::Kept).await;
}

/// A node that moves between the gateways all the time with its last token. Returns the ids of the
/// events, in the order in which it got them, and the number of gaps.
async fn moves(gateways: [&Gateway; 2], until: Instant) -> (Vec<String>, usize) {
    let (mut ids, mut gaps, mut token) = (Vec::new(), 0, Vec::new());
    let nodes = [
        TestNode::connect(gateways[0], "mover").await,
        TestNode::connect(gateways[1], "mover").await,
    ];
    for node in nodes.iter().cycle() {
        let request = SubscribeRequest { resume_token: token.clone(), ..node.request() };
        let Ok(collector) = node.collect(request, Keep::Everything).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        tokio::time::sleep(Duration::from_millis(120)).await;
        let recording = collector.recording();
        if let Some(last) = recording.last_token() {
            token = last.to_vec();
        }
        gaps += recording.gaps().len();
        ids.extend(recording.event_ids);
        if Instant::now() > until && !token.is_empty() {
            break;
        }
    }
    (ids, gaps)
}

/// Redis loses its last 0.3 s, several times, while nodes publish, retry, and move.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_put_back_again_and_again_loses_and_repeats_nothing() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let (one, two) = pair_on(&redis).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    let end = Instant::now() + seconds(60, 12);
    let faults = async {
        let mut kills = 0;
        while Instant::now() < end {
            kills += 2;
            put_back(&redis).await;
            // Once before the gateways have brought back what was lost, once after.
            tokio::time::sleep(Duration::from_millis(60)).await;
            put_back(&redis).await;
            serving([&one, &two]).await;
            load.publishes(100).await;
        }
        kills
    };
    let (kills, (ids, gaps)) = tokio::join!(faults, moves([&one, &two], end));
    let history = load.finish().await;
    // A kill can leave a position that one gateway knows of, and a frame that Redis has sent to
    // nobody: the position is reported as lost, and the writer's next attempt gets another one.
    Report::of("Redis put back 0.3 s, twice at a time", &history).check();
    for node in &history.nodes {
        assert!(node.gaps().count() <= kills, "{}: {} gaps", node.node_id, node.gaps().count());
    }
    let different: BTreeSet<&String> = ids.iter().collect();
    assert_eq!(different.len(), ids.len(), "the node that moves got events twice");
    assert!(ids.len() > 500, "{} events", ids.len());
    assert!(gaps <= kills, "{gaps} gaps are reported to the node that moves");
}

/// The answer of an append is lost, and the frame is sent again after Redis was put back.
#[tokio::test(flavor = "multi_thread")]
async fn connections_cut_while_redis_is_put_back_cause_no_loss_and_no_repeat() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let (one, two) = pair_on(&redis).await;
    let load = Load::start(&[&one, &two], Shape::default()).await;
    for _ in 0..seconds(40, 8).as_secs() {
        redis.cli(&["SAVE"]).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]).await;
        redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        redis.kill_9();
        redis.restart(Data::Kept).await;
        serving([&one, &two]).await;
    }
    load.publishes(200).await;
    let history = load.finish().await;
    Report::of("connections cut, then Redis put back", &history).check();
}

async fn positions(node: &TestNode, request_id: &str) -> Vec<Position> {
    let batch = vec![
        with_id("a", events::mailbox_change("x", 1)),
        with_id("b", events::mailbox_change("x", 2)),
    ];
    node.publish_as(request_id, batch).await.expect("published")
}

/// A retry with the same `request_id` gets the first answer, whatever Redis has forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_a_flush_or_a_restart_gets_the_first_answer() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let (one, two) = pair_on(&redis).await;
    let nodes = [TestNode::connect(&one, "p").await, TestNode::connect(&two, "p").await];
    let watcher = TestNode::connect(&two, "w").await;
    let collector = watcher.subscribe(watcher.request()).await;
    collector.subscribed().await;
    let mut first = Vec::new();
    for (round, wipe) in ["FLUSHALL", "restart", "FLUSHALL"].into_iter().enumerate() {
        let id = Uuid::new_v4().to_string();
        let answer = positions(&nodes[round % 2], &id).await;
        first.push((id, answer));
        collector.events(first.len() * 2, LIMIT).await;
        if wipe == "restart" {
            redis.kill_9();
            redis.restart(Data::Wiped).await;
            serving([&one, &two]).await;
        } else {
            redis.cli(&["FLUSHALL"]).await;
        }
        for (nth, (id, answer)) in first.iter().enumerate() {
            assert_eq!(&positions(&nodes[nth % 2], id).await, answer, "the gateway of before");
            assert_eq!(&positions(&nodes[1 - nth % 2], id).await, answer, "the other one");
        }
    }
    nodes[0].publish(vec![with_id("end", events::queue_refresh())]).await.expect("published");
    let recording = collector.event("end", LIMIT).await;
    assert_eq!(recording.event_ids.len(), 2 * first.len() + 1, "{:?}", recording.event_ids);
    assert!(recording.gaps().is_empty());
}

/// A gateway with another number of shards joins after a flush: it must not serve beside the
/// others.
#[tokio::test(flavor = "multi_thread")]
async fn gateways_that_disagree_do_not_both_serve_after_a_flush() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    let options = |shards: u64| {
        GatewayOptions::redis(&redis.url(), &prefix).set("shards", shards).ready(Ready::Started)
    };
    let (one, two) = pair(options(4).ready(Ready::Serving)).await;
    let node = TestNode::connect(&one, "p").await;
    node.publish(vec![events::queue_refresh()]).await.expect("published");
    redis.cli(&["FLUSHALL"]).await;
    let other = Gateway::start(options(8)).await;
    // Whoever came first after the flush goes on; the others say why they do not.
    until(LIMIT, "one side serves and the other says why not", async || {
        let mut serving = Vec::new();
        for gateway in [&one, &two, &other] {
            let reason = match gateway.connect().await {
                Ok(_) => gateway.client().await.get_status(GetStatusRequest {}).await,
                Err(error) => Err(error),
            };
            let reason = reason.map(|status| status.into_inner().reason).unwrap_or_default();
            serving.push(!reason.contains("configured otherwise"));
        }
        serving == [true, true, false] || serving == [false, false, true]
    })
    .await;
}

/// Two deployments with one prefix on two databases of one server: channels belong to the server.
#[tokio::test(flavor = "multi_thread")]
async fn gateways_on_two_databases_do_not_hear_one_another() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    let on = |database: &str| GatewayOptions::redis(&format!("{}{database}", redis.url()), &prefix);
    let (one, two) = tokio::join!(Gateway::start(on("/0")), Gateway::start(on("/1")));
    let nodes = [TestNode::connect(&one, "n").await, TestNode::connect(&two, "n").await];
    let watchers = [TestNode::connect(&one, "w").await, TestNode::connect(&two, "w").await];
    let collectors = [
        watchers[0].subscribe(watchers[0].request()).await,
        watchers[1].subscribe(watchers[1].request()).await,
    ];
    let batch = |side: usize| events::numbered(&format!("side{side}"), 50, 5);
    for round in 0..20 {
        for (side, node) in nodes.iter().enumerate() {
            let batch = batch(side).into_iter().map(|event| {
                let id = format!("{}-{round}", event.event_id);
                with_id(id, event)
            });
            node.publish(batch.collect()).await.expect("published");
        }
    }
    for (side, collector) in collectors.iter().enumerate() {
        let recording = collector.events(1000, LIMIT).await;
        let own = format!("side{side}-");
        assert!(recording.event_ids.iter().all(|id| id.starts_with(&own)), "side {side}");
        assert!(recording.gaps().is_empty());
    }
}
