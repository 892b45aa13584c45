//! Unknown bytes where frames are expected: on the channel in Redis, and in the history. Gateways
//! continue to serve, and deliver what they acknowledge.

use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use trunkline_proto::v1::{GapReason, GetStatusRequest, Position, Start, SubscribeRequest};

use crate::{
    deployment::Deployment,
    support::{
        Collector, Gateway, LIMIT, TestNode,
        events::{self, numbered, with_id},
        until,
    },
};

/// A deployment with one stream on each gateway, and a connection that writes into its Redis.
struct Scene {
    deployment: Deployment,
    publisher: TestNode,
    collectors: [Collector; 2],
    redis: ::redis::aio::MultiplexedConnection,
    sent: Vec<String>,
}

impl Scene {
    async fn new() -> Scene {
        let deployment = Deployment::redis().await;
        let publisher = deployment.node("p").await;
        let (one, two) = (deployment.node("s1").await, deployment.remote("s2").await);
        let collectors = [one.subscribe(one.request()).await, two.subscribe(two.request()).await];
        let client = ::redis::Client::open(&*deployment.redis_server().unwrap().url).unwrap();
        let redis = client.get_multiplexed_async_connection().await.unwrap();
        Scene { deployment, publisher, collectors, redis, sent: vec![] }
    }

    fn name(&self, what: &str) -> String {
        format!("{}:{{0}}:{what}", self.deployment.redis_server().unwrap().prefix)
    }

    /// Publishes bytes on the channel, where both gateways receive them.
    async fn on_the_channel(&mut self, bytes: &[u8]) {
        let channel = self.name("channel");
        let receivers: i64 = ::redis::cmd("PUBLISH")
            .arg(channel)
            .arg(bytes)
            .query_async(&mut self.redis)
            .await
            .unwrap();
        assert_eq!(receivers, 2);
    }

    async fn in_history(&mut self, id: &str, field: &str, bytes: &[u8]) {
        let history = self.name("history");
        let _: String = ::redis::cmd("XADD")
            .arg(history)
            .arg(id)
            .arg(field)
            .arg(bytes)
            .query_async(&mut self.redis)
            .await
            .unwrap();
    }

    async fn publish(&mut self, id: &str) -> Position {
        self.sent.push(id.to_owned());
        let event = with_id(id, events::queue_refresh());
        self.publisher.publish(vec![event]).await.unwrap()[0]
    }

    /// Whether everything that was published came to both streams, in order and without a gap.
    async fn nothing_is_lost(&self) {
        for collector in &self.collectors {
            let recording = collector.events(self.sent.len(), LIMIT).await;
            assert_eq!(recording.event_ids, self.sent);
            assert!(recording.gaps().is_empty(), "{:?}", recording.gaps());
        }
    }

    async fn unreadable(&self) -> u64 {
        let mut client = self.deployment.gateway.client().await;
        client.get_status(GetStatusRequest {}).await.unwrap().into_inner().unreadable_frames
    }
}

/// The writer of a frame, `trunkline.bus.v1.Frame`.
fn writer() -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::fixed64::encode(2, &7, &mut bytes);
    bytes
}

/// A varint field of a frame: 3 is its sequence number, 4 the number of its events, 6 and 7 their
/// first position.
fn number(tag: u32, value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::uint64::encode(tag, &value, &mut bytes);
    bytes
}

fn on_the_channel(version: &str, epoch: u64, offset: u64, body: &[u8]) -> Vec<u8> {
    [format!("{version} {epoch}-{offset} ").as_bytes(), body].concat()
}

#[tokio::test]
async fn unknown_bytes_on_the_channel_are_skipped() {
    let mut scene = Scene::new().await;
    let mut random = StdRng::seed_from_u64(7);
    scene.publish("first").await;
    for n in 0..40 {
        let mut garbage = vec![0; random.random_range(0..2000)];
        random.fill_bytes(&mut garbage);
        scene.on_the_channel(&garbage).await;
        scene.publish(&format!("e{n}")).await;
    }
    scene.on_the_channel(&vec![b'x'; 4 << 20]).await;
    for text in ["", "F2", "F2 ", "F2 1-1", "F2 a-b c", "T0 1-1 x", "E2 1-0 x", "hello"] {
        scene.on_the_channel(text.as_bytes()).await;
    }
    scene.publish("last").await;
    scene.nothing_is_lost().await;
    assert!(scene.unreadable().await >= 40);
}

#[tokio::test]
async fn an_envelope_with_garbage_is_skipped_whatever_position_it_claims() {
    let mut scene = Scene::new().await;
    let Position { epoch, offset, .. } = scene.publish("first").await;
    let mut next = offset;
    let mut n = 0;
    let two = [number(4, 2), b"\x0a\x00\x0a\x00".to_vec()].concat();
    // Bytes that are not a frame; a frame that claims more events than it has; two with impossible
    // first positions; probes.
    let frames = [
        vec![0xff; 30],
        [writer(), number(3, 1), number(4, 3)].concat(),
        [writer(), number(3, 1), number(4, u64::from(u32::MAX)), b"\x0a\x01x".to_vec()].concat(),
        [number(3, u64::MAX), number(6, 1), number(7, u64::MAX), number(4, 1)].concat(),
        [writer(), number(3, 1), number(6, 1), number(7, u64::MAX), two.clone()].concat(),
        [writer(), number(8, u64::MAX)].concat(),
        vec![],
    ];
    for frame in &frames {
        let places = [
            (epoch, 0),
            (epoch, next),
            (epoch, next + 1),
            (epoch, next + 1000),
            (epoch, u64::MAX),
            (epoch - 1, 5),
            (epoch + 1, 0),
            (epoch + 1, 7),
            (u64::MAX, u64::MAX),
        ];
        for (epoch, offset) in places {
            scene.on_the_channel(&on_the_channel("T1", epoch, offset, frame)).await;
            scene.on_the_channel(&on_the_channel("T2", epoch, offset, frame)).await;
        }
        scene.publish(&format!("e{n}")).await;
        (n, next) = (n + 1, next + 1);
    }
    // The start of an epoch that no gateway began.
    for previous in ["0-0", "1-1", "18446744073709551615-18446744073709551615"] {
        let bytes = on_the_channel("E1", epoch + 1, 0, previous.as_bytes());
        scene.on_the_channel(&bytes).await;
        scene.publish(&format!("e{n}")).await;
        n += 1;
    }
    scene.nothing_is_lost().await;
}

#[tokio::test]
async fn a_frame_of_an_unknown_version_becomes_a_gap_of_its_size() {
    let mut scene = Scene::new().await;
    let Position { epoch, offset, .. } = scene.publish("before").await;
    // Three events, as a later version of the gateway might encode them.
    let id = format!("{epoch}-{}", offset + 3);
    scene.in_history(&id, "g", b"later").await;
    let state = scene.name("state");
    let _: i64 = ::redis::cmd("HSET")
        .arg(state)
        .arg("offset")
        .arg(offset + 3)
        .query_async(&mut scene.redis)
        .await
        .unwrap();
    scene.on_the_channel(&on_the_channel("T2", epoch, offset + 3, b"later")).await;
    let after = scene.publish("after").await;
    assert_eq!((after.epoch, after.offset), (epoch, offset + 4));
    for collector in &scene.collectors {
        let recording = collector.events(2, LIMIT).await;
        assert_eq!(recording.event_ids, ["before", "after"]);
        let gaps = recording.gaps();
        assert_eq!(gaps.len(), 1, "{gaps:?}");
        assert_eq!(gaps[0].reason(), GapReason::Unreadable);
        assert_eq!(gaps[0].missed_events, Some(3));
        assert_eq!(gaps[0].to, Some(Position { shard: 0, epoch, offset: offset + 3 }));
    }
}

#[tokio::test]
async fn garbage_in_the_history_does_not_stop_a_gateway() {
    let mut scene = Scene::new().await;
    let behind = |last: Position, count: u64| format!("{}-{}", last.epoch, last.offset + count);
    // Where the next frame is to stand.
    let last = scene.publish("first").await;
    scene.in_history(&behind(last, 1), "f", b"\xff\xff\xff").await;
    // Where a frame of several events is to stand, in the middle of them.
    let last = scene.publish("second").await;
    scene.in_history(&behind(last, 1), "f", b"\xff\xff\xff").await;
    scene.sent.extend(["a-0", "a-1", "a-2"].map(String::from));
    scene.publisher.publish(numbered("a", 3, 1)).await.unwrap();
    // Far ahead, more than once; under an id that Redis makes, which is the time; and bytes that
    // look like a frame of three events.
    let last = scene.publish("third").await;
    scene.in_history(&behind(last, 1000), "x", b"").await;
    scene.in_history(&behind(last, 2000), "f", b"").await;
    scene.publish("fourth").await;
    scene.in_history("*", "hello", b"world").await;
    let last = scene.publish("fifth").await;
    let three =
        [writer(), number(3, 1), number(4, 3), b"\x0a\x00\x0a\x00\x0a\x00".to_vec()].concat();
    scene.in_history(&behind(last, 1), "f", &three).await;
    scene.publish("sixth").await;
    for collector in &scene.collectors {
        let recording = collector.event("sixth", LIMIT).await;
        assert_eq!(recording.event_ids, scene.sent);
        assert!(recording.gaps().is_empty(), "{:?}", recording.gaps());
    }
    // A reader of the whole history gets all of them too.
    let late = scene.deployment.remote("late").await;
    let request = SubscribeRequest { start: Start::Oldest.into(), ..late.request() };
    let recording = late.subscribe(request).await.event("sixth", LIMIT).await;
    assert_eq!(recording.event_ids, scene.sent);
    assert!(recording.gaps().is_empty(), "{:?}", recording.gaps());
    // And a stream that resumes from before.
    let token = scene.collectors[0].with(|recording| recording.tokens()[0].to_vec());
    let request = SubscribeRequest { resume_token: token, ..late.request() };
    let recording = late.subscribe(request).await.event("sixth", LIMIT).await;
    assert_eq!(recording.event_ids, scene.sent);
    assert!(recording.gaps().is_empty(), "{:?}", recording.gaps());
    // A long run goes as if nothing had been.
    scene.publisher.publish(numbered("run", 500, 5)).await.unwrap();
    for collector in &scene.collectors {
        collector.event("run-499", LIMIT).await;
    }
    let state = scene.deployment.gateway.client();
    let mut state = state.await;
    until(LIMIT, "serving", async || {
        state.get_status(GetStatusRequest {}).await.unwrap().into_inner().serving
    })
    .await;
}

#[tokio::test]
async fn an_entry_at_the_last_possible_position_costs_only_the_history() {
    let mut scene = Scene::new().await;
    let before = scene.collectors[0].last_token();
    scene.publish("first").await;
    scene.in_history("18446744073709551615-18446744073709551614", "x", b"").await;
    scene.publish("second").await;
    scene.publish("third").await;
    scene.nothing_is_lost().await;
    // The gateways have the first event no more in history, and still in memory.
    let late = scene.deployment.remote("late").await;
    let request = SubscribeRequest { resume_token: before, ..late.request() };
    let collector = late.subscribe(request).await;
    assert!(collector.subscribed().await.resumed);
    assert_eq!(collector.event("third", LIMIT).await.event_ids, scene.sent);
    let newcomer = Gateway::start(scene.deployment.options()).await;
    let late = TestNode::connect(&newcomer, "late").await;
    let request = SubscribeRequest { start: Start::Oldest.into(), ..late.request() };
    let recording = late.subscribe(request).await.event("third", LIMIT).await;
    assert_eq!(recording.event_ids, ["second", "third"]);
}

#[tokio::test]
async fn an_entry_at_the_last_position_is_dropped_even_without_the_shard_state() {
    for epoch in [None, Some(u64::MAX)] {
        // The last offset that there is, and one that a double holds and a signed number does not.
        for offset in [u64::MAX - 1, 1 << 63] {
            let mut scene = Scene::new().await;
            let before = scene.publish("first").await;
            let id = format!("{}-{offset}", epoch.unwrap_or(before.epoch));
            scene.in_history(&id, "x", b"").await;
            let state = scene.name("state");
            let _: i64 =
                ::redis::cmd("DEL").arg(state).query_async(&mut scene.redis).await.unwrap();
            let after = scene.publish("second").await;
            assert!(after.epoch > before.epoch && after.epoch < 1 << 53, "{id}: {after:?}");
            scene.publish("third").await;
            for collector in &scene.collectors {
                assert_eq!(collector.event("third", LIMIT).await.event_ids, scene.sent, "{id}");
            }
        }
    }
}

#[tokio::test]
async fn an_unreadable_epoch_start_hides_nothing_from_readers_of_history() {
    let mut scene = Scene::new().await;
    let last = scene.publish("first").await;
    scene.in_history(&format!("{}-{}", last.epoch, last.offset + 1), "e", b"nonsense").await;
    scene.publish("second").await;
    let newcomer = Gateway::start(scene.deployment.options()).await;
    let late = TestNode::connect(&newcomer, "late").await;
    let request = SubscribeRequest { start: Start::Oldest.into(), ..late.request() };
    let recording = late.subscribe(request).await.event("second", LIMIT).await;
    assert_eq!(recording.event_ids.last(), scene.sent.last());
    for collector in &scene.collectors {
        assert_eq!(collector.event("second", LIMIT).await.event_ids, scene.sent);
    }
}
