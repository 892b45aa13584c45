//! Tokens that say little: inside of a frame, or of a stream that had nothing yet.

use trunkline_proto::v1::{Start, SubscribeRequest};

use crate::{
    pair,
    redis::serving,
    support::{
        LIMIT,
        events::numbered,
        gateway::GatewayOptions,
        nodes::TestNode,
        redis::{Data, RedisOptions, RedisServer},
        shared,
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn a_token_inside_a_frame_that_redis_lost_brings_the_rest_of_it_once() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let options = GatewayOptions::redis(&redis.url(), &shared::prefix());
    let (one, two) = pair(options).await;
    let publisher = TestNode::connect(&one, "publisher").await;
    publisher.publish(numbered("before", 3, 1)).await.expect("published");
    redis.cli(&["SAVE"]).await;
    let nodes = [TestNode::connect(&one, "node").await, TestNode::connect(&two, "node").await];
    // The streams of each node end after the first events of a frame.
    let mut streams = Vec::new();
    for count in 1..5 {
        let request = SubscribeRequest { max_events: count, ..nodes[0].request() };
        streams.push((count, nodes[0].subscribe(request).await));
    }
    publisher.publish(numbered("e", 5, 1)).await.expect("published");
    let mut tokens = Vec::new();
    for (count, stream) in &streams {
        stream.end(LIMIT).await.expect("it had all that it asked for");
        assert_eq!(stream.event_ids().len() as u64, *count);
        tokens.push((*count, stream.last_token()));
    }
    for round in 0..2 {
        redis.kill_9();
        redis.restart(Data::Kept).await;
        serving([&one, &two]).await;
        let last = format!("last-{round}");
        for (turn, (count, token)) in tokens.iter_mut().enumerate() {
            let node = &nodes[(turn + round) % 2];
            let request = SubscribeRequest { resume_token: token.clone(), ..node.request() };
            let stream = node.subscribe(request).await;
            let marker = format!("{last}-{turn}");
            publisher.publish(numbered(&marker, 1, 1)).await.expect("published");
            let recording = stream.event(&format!("{marker}-0"), LIMIT).await;
            let rest = recording.event_ids.iter().filter(|id| id.starts_with("e-"));
            let expected: Vec<_> = (*count..5).map(|number| format!("e-{number}")).collect();
            assert!(rest.eq(&expected), "after {count}: {:?}", recording.event_ids);
            assert!(recording.gaps().is_empty(), "after {count}: {:?}", recording.gaps());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_from_the_oldest_event_that_ended_early_resumes_to_the_rest_without_a_gap() {
    const EVENTS: usize = 60;
    let redis = RedisServer::start(RedisOptions::default()).await;
    let options = GatewayOptions::redis(&redis.url(), &shared::prefix()).set("shards", 8);
    let (one, two) = pair(options).await;
    let publisher = TestNode::connect(&one, "publisher").await;
    publisher.publish(numbered("e", EVENTS, 20)).await.expect("published");
    let nodes = [TestNode::connect(&one, "node").await, TestNode::connect(&two, "node").await];
    for data in [None, Some(Data::Wiped)] {
        let oldest = SubscribeRequest { start: Start::Oldest.into(), ..nodes[0].request() };
        let whole = nodes[0].subscribe(oldest.clone()).await;
        let of_subscribed = whole.subscribed().await.resume_token;
        let three = SubscribeRequest { max_events: 3, ..oldest };
        let early = nodes[0].subscribe(three).await;
        early.end(LIMIT).await.expect("it had all that it asked for");
        let had = early.event_ids();
        assert_eq!(had.len(), 3);
        if let Some(data) = data {
            redis.restart(data).await;
            serving([&one, &two]).await;
        }
        for node in &nodes {
            for (token, had) in [(early.last_token(), &had), (of_subscribed.clone(), &vec![])] {
                // With the token alone, and with the start that the node asked for before.
                for start in [Start::Unspecified, Start::Oldest] {
                    let request = SubscribeRequest {
                        resume_token: token.clone(),
                        start: start.into(),
                        ..node.request()
                    };
                    let stream = node.subscribe(request).await;
                    let recording = stream.events(EVENTS - had.len(), LIMIT).await;
                    assert!(recording.gaps().is_empty(), "{:?}", recording.gaps());
                    let mut ids = [had.clone(), recording.event_ids].concat();
                    ids.sort_unstable();
                    let mut expected: Vec<_> =
                        (0..EVENTS).map(|number| format!("e-{number}")).collect();
                    expected.sort_unstable();
                    assert_eq!(ids, expected, "each once");
                }
            }
        }
    }
}
