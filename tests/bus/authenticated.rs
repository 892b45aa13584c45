//! `frameKey`: another tenant of the same Redis can write anything under the names of the gateways,
//! and no stream delivers it.

use std::time::Duration;

use ::redis::{AsyncTypedCommands, Client, Value, aio::MultiplexedConnection, cmd};
use serde_json::json;
use trunkline_proto::v1::{Event, Gap, GapReason, QueueStatus, event::Kind, queue_status::State};

use super::{
    crosses, ids,
    support::{
        Collector, Gateway, GatewayOptions, LIMIT, RedisCluster, RedisOptions, RedisServer,
        TestNode, events,
        gateway::{FRAME_KEY, Ready},
        shared,
        wait::until,
    },
    two_gateways,
};

const OTHER: &str = "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA=";

/// Another tenant of the same server, who has all rights but not the key.
struct Tenant {
    redis: MultiplexedConnection,
    prefix: String,
}

/// An entry of a shard's history.
#[derive(Clone, Debug)]
struct Entry {
    epoch: u64,
    offset: u64,
    frame: Vec<u8>,
}

impl Tenant {
    async fn of(server: &RedisServer, prefix: &str) -> Tenant {
        let client = Client::open(server.url()).expect("a URL");
        let redis = client.get_multiplexed_async_connection().await.expect("a connection");
        Tenant { redis, prefix: prefix.to_owned() }
    }

    fn name(&self, shard: &str, what: &str) -> String {
        format!("{}:{{{shard}}}:{what}", self.prefix)
    }

    async fn run(&mut self, args: &[&[u8]]) -> Value {
        let mut command = cmd(std::str::from_utf8(args[0]).expect("text"));
        command.arg(&args[1..]);
        command.query_async(&mut self.redis).await.expect("an answer")
    }

    /// The last frame of a shard.
    async fn last(&mut self, shard: &str) -> Entry {
        let key = self.name(shard, "history");
        let mut asked = cmd("XREVRANGE");
        asked.arg(key).arg("+").arg("-").arg("COUNT").arg(1);
        let entries: Vec<(String, Vec<Vec<u8>>)> =
            asked.query_async(&mut self.redis).await.expect("an entry");
        let (id, fields) = &entries[0];
        let (epoch, offset) = id.split_once('-').expect("an id");
        assert_eq!(fields[0], b"f", "a frame");
        let number = |text: &str| text.parse().expect("a number");
        Entry { epoch: number(epoch), offset: number(offset), frame: fields[1].clone() }
    }

    async fn tip(&mut self, shard: &str) -> (u64, u64) {
        let key = self.name(shard, "state");
        let mut asked = cmd("HMGET");
        asked.arg(key).arg("epoch").arg("offset");
        asked.query_async(&mut self.redis).await.expect("a state")
    }

    /// Appends a frame of one event as the script would: state, history and channel.
    async fn append(&mut self, shard: &str, frame: &[u8]) {
        let (epoch, offset) = self.tip(shard).await;
        let position = format!("{epoch}-{}", offset + 1);
        let next = (offset + 1).to_string();
        let state = self.name(shard, "state");
        let history = self.name(shard, "history");
        let channel = self.name(shard, "channel");
        self.run(&[b"HSET", state.as_bytes(), b"offset", next.as_bytes()]).await;
        self.run(&[b"XADD", history.as_bytes(), position.as_bytes(), b"f", frame]).await;
        let message = [b"F2 ", position.as_bytes(), b" ", frame].concat();
        self.run(&[b"PUBLISH", channel.as_bytes(), &message]).await;
    }
}

/// A gateway with a subscriber and a publisher, and another tenant.
struct Scene {
    redis: RedisServer,
    prefix: String,
    gateway: Gateway,
    publisher: TestNode,
    collector: Collector,
    tenant: Tenant,
}

impl Scene {
    async fn set(shards: u16) -> Scene {
        let redis = RedisServer::start(RedisOptions::default()).await;
        let prefix = shared::prefix();
        let options = GatewayOptions::redis(&redis.url(), &prefix).frame_keys(FRAME_KEY);
        let gateway = Gateway::start(options.set("shards", shards)).await;
        let publisher = TestNode::connect(&gateway, "publisher").await;
        let node = TestNode::connect(&gateway, "node").await;
        let collector = node.subscribe(node.request()).await;
        let tenant = Tenant::of(&redis, &prefix).await;
        Scene { redis, prefix, gateway, publisher, collector, tenant }
    }

    async fn publish(&self, id: &str, account: &str) {
        let event = events::with_id(id, events::mailbox_change(account, 1));
        self.publisher.publish(vec![event]).await.expect("published");
        self.collector.event(id, LIMIT).await;
    }

    /// The stream has had exactly so many gaps, each of one unreadable event, and goes on.
    async fn has_gaps(&self, gaps: usize, next: &str) {
        self.publish(next, "a0").await;
        let what = format!("{gaps} gaps");
        until(LIMIT, &what, async || self.collector.with(|r| r.gaps().len()) == gaps).await;
        self.collector.with(|recording| {
            let unread =
                |gap: &&Gap| gap.reason() == GapReason::Unreadable && gap.missed_events == Some(1);
            assert!(recording.gaps().iter().all(unread), "{:?}", recording.gaps());
        });
    }

    async fn forged(&self) -> u64 {
        let address = self.gateway.admin_address();
        let text = tokio::task::spawn_blocking(move || {
            use std::io::{Read, Write};
            let mut stream = std::net::TcpStream::connect(address).expect("the admin port");
            let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
            stream.write_all(request.as_bytes()).expect("sent");
            let mut text = String::new();
            stream.read_to_string(&mut text).expect("an answer");
            text
        });
        let text = text.await.expect("an answer");
        let name = "trunkline_bus_forged_messages_total ";
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("the metric");
        line.trim().parse().expect("a number")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn authenticated_events_cross_gateways_and_come_from_history() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    let options = || {
        GatewayOptions::redis(&redis.url(), &prefix)
            .frame_keys(FRAME_KEY)
            .set("log", json!({"maxEvents": 1}))
    };
    let (one, two) = two_gateways(options).await;
    let node = TestNode::connect(&two, "node").await;
    let first = node.subscribe(node.request()).await;
    crosses(&one, &two).await;
    let mut resume = node.request();
    resume.resume_token = first.recording().subscribed().expect("subscribed").resume_token.clone();
    let resumed = node.subscribe(resume).await.event("e-299", LIMIT).await;
    assert_eq!((resumed.event_ids.clone(), resumed.gaps().len()), (ids("e", 0..300), 0));
    // Both at once, so that each often finds its position taken by the other.
    let publishers = [&one, &two].map(async |gateway| {
        let name = format!("p{}", gateway.port());
        let node = TestNode::connect(gateway, name.as_str()).await;
        for batch in events::numbered(&name, 400, 40).chunks(4) {
            node.publish(batch.to_vec()).await.expect("published");
        }
    });
    futures_util::future::join_all(publishers).await;
    let all = first.events(300 + 800, LIMIT).await;
    assert!(all.gaps().is_empty(), "{:?}", all.gaps());
    assert!(!one.stderr().contains("an authentication tag does not verify"), "{}", one.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn authenticated_events_cross_a_cluster_through_a_failover() {
    let cluster = RedisCluster::start().await;
    let prefix = shared::prefix();
    let options = || {
        GatewayOptions::redis_cluster(&cluster.urls(), &prefix)
            .frame_keys(FRAME_KEY)
            .set("shards", 1)
    };
    let (one, two) = two_gateways(options).await;
    crosses(&one, &two).await;
    let slot = super::support::view::slot(&format!("{prefix}:{{0}}:state"));
    let old = cluster.kill_master(slot).await;
    cluster.taken_over(slot, old).await;
    let publisher = TestNode::connect(&one, "after").await;
    let node = TestNode::connect(&two, "node").await;
    until(LIMIT, "publishing goes on", async || {
        publisher.publish(events::numbered("p", 1, 1)).await.is_ok()
    })
    .await;
    let collector = node.subscribe(node.request()).await;
    publisher.publish(events::numbered("q", 5, 1)).await.expect("published");
    collector.event("q-4", LIMIT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_and_altered_frames_are_gaps_and_are_counted() {
    let mut scene = Scene::set(1).await;
    scene.publish("e-0", "a0").await;
    let real = scene.tenant.last("0").await;
    assert_eq!(scene.forged().await, 0);
    // Without a tag, as it was before there was a key.
    scene.tenant.append("0", &real.frame[22..]).await;
    scene.has_gaps(1, "e-1").await;
    // A bit of the event, of the header, of the tag.
    let length = real.frame.len();
    for (number, at) in [length - 1, 23, 10, 3].into_iter().enumerate() {
        let mut altered = scene.tenant.last("0").await.frame;
        let last = altered.len() - 1;
        altered[at.min(last)] ^= 1;
        scene.tenant.append("0", &altered).await;
        scene.has_gaps(2 + number, &format!("f-{number}")).await;
    }
    // Nonsense on the channel alone takes no position and has no effect.
    let channel = scene.tenant.name("0", "channel");
    let (epoch, offset) = scene.tenant.tip("0").await;
    for message in [
        format!("F2 {epoch}-{} nonsense", offset + 1),
        format!("F2 {epoch}-{} nonsense", offset + 1000),
        format!("E2 {}-0 {epoch}-{offset} 0", epoch + 1),
        format!("E2 {}-0 {epoch}-{offset} 0", epoch + 1_000_000),
    ] {
        scene.tenant.run(&[b"PUBLISH", channel.as_bytes(), message.as_bytes()]).await;
    }
    scene.has_gaps(5, "g-0").await;
    assert!(scene.forged().await >= 5 + 2, "{}", scene.forged().await);
    let seen = scene.collector.event_ids();
    assert_eq!(seen, ["e-0", "e-1", "f-0", "f-1", "f-2", "f-3", "g-0"]);
    assert!(scene.gateway.stderr().contains("an authentication tag does not verify"));
}

#[tokio::test(flavor = "multi_thread")]
async fn replayed_frames_are_gaps_on_any_shard_and_prefix() {
    let mut scene = Scene::set(2).await;
    // An event for each of the two shards.
    scene.publish("e-0", "a0").await;
    for number in 0..20 {
        scene.publish(&format!("s-{number}"), &format!("b{number}")).await;
    }
    let before = scene.collector.event_ids();
    let tags = ["0", "1"].map(|shard| {
        (0..10_000)
            .map(|n| if n == 0 { shard.to_owned() } else { format!("{shard}.{n}") })
            // Shard 0 has the half of the slots in which the slot of "0" lies.
            .find(|tag| (super::support::view::slot(tag) / 8192).to_string() != shard)
            .expect("a tag")
    });
    let one = scene.tenant.last(&tags[0]).await;
    let two = scene.tenant.last(&tags[1]).await;
    // On the same shard, and on the other.
    scene.tenant.append(&tags[0], &one.frame).await;
    scene.tenant.append(&tags[1], &one.frame).await;
    scene.tenant.append(&tags[0], &two.frame).await;
    until(LIMIT, "three are missing", async || {
        scene.collector.with(|recording| {
            recording.gaps().iter().map(|gap| gap.missed_events.unwrap_or(0)).sum::<u64>() == 3
        })
    })
    .await;
    // A second time at its own position, on the channel: every stream has had it.
    let channel = scene.tenant.name(&tags[0], "channel");
    let message = [format!("F2 {}-{} ", one.epoch, one.offset).as_bytes(), &one.frame].concat();
    scene.tenant.run(&[b"PUBLISH", channel.as_bytes(), &message]).await;
    scene.publish("e-1", "a0").await;
    assert_eq!(scene.collector.event_ids()[before.len()..], ["e-1"]);

    // Another system with the same key, on the same server.
    let other_prefix = format!("{}x", scene.prefix);
    let options = GatewayOptions::redis(&scene.redis.url(), &other_prefix).frame_keys(FRAME_KEY);
    let other = Gateway::start(options).await;
    let node = TestNode::connect(&other, "node").await;
    let collector = node.subscribe(node.request()).await;
    let mut tenant = Tenant::of(&scene.redis, &other_prefix).await;
    tenant.append("0", &one.frame).await;
    let gap = collector.gap(LIMIT).await;
    assert_eq!((gap.reason(), gap.missed_events), (GapReason::Unreadable, Some(1)));
    assert!(collector.event_ids().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_reset_to_an_earlier_state_replays_nothing_to_a_new_gateway() {
    let mut scene = Scene::set(1).await;
    scene.publish("e-0", "a0").await;
    let (epoch, offset) = scene.tenant.tip("0").await;
    let run = {
        let key = scene.tenant.name("0", "state");
        scene.tenant.redis.hget(key, "run").await.expect("a state").expect("a run")
    };
    scene.publish("e-1", "a0").await;
    let played = scene.tenant.last("0").await;
    scene.gateway.kill_9();
    // Exactly the state before the last frame.
    for name in ["state", "history", "marks"] {
        let key = scene.tenant.name("0", name);
        scene.tenant.run(&[b"DEL", key.as_bytes()]).await;
    }
    let (epoch, offset) = (epoch.to_string(), offset.to_string());
    let state = scene.tenant.name("0", "state");
    scene
        .tenant
        .run(&[
            b"HSET",
            state.as_bytes(),
            b"epoch",
            epoch.as_bytes(),
            b"offset",
            offset.as_bytes(),
            b"run",
            run.as_bytes(),
        ])
        .await;
    scene.gateway.restart().await;
    let node = TestNode::connect(&scene.gateway, "node").await;
    let collector = node.subscribe(node.request()).await;
    // The tenant replays the frame, at its own position and after the shard's current end.
    let channel = scene.tenant.name("0", "channel");
    let message =
        [format!("F2 {}-{} ", played.epoch, played.offset).as_bytes(), &played.frame].concat();
    scene.tenant.run(&[b"PUBLISH", channel.as_bytes(), &message]).await;
    let (now, _) = scene.tenant.tip("0").await;
    assert!(now > played.epoch, "a gateway that starts begins an epoch");
    scene.tenant.append("0", &played.frame).await;
    collector.gap(LIMIT).await;
    let publisher = TestNode::connect(&scene.gateway, "publisher").await;
    publisher.publish(events::numbered("n", 1, 1)).await.expect("published");
    assert_eq!(collector.event("n-0", LIMIT).await.event_ids, ["n-0"]);
}

fn queue_status(id: &str, state: State) -> Event {
    let kind = Some(Kind::QueueStatus(QueueStatus { state: state.into() }));
    Event { event_id: id.into(), kind, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_value_is_accepted_only_with_a_valid_tag() {
    let mut scene = Scene::set(1).await;
    scene.publisher.publish(vec![queue_status("real", State::Paused)]).await.expect("published");
    let options = || GatewayOptions::redis(&scene.redis.url(), &scene.prefix).frame_keys(FRAME_KEY);
    let first = async |gateway: &Gateway| {
        let node = TestNode::connect(gateway, "late").await;
        let collector = node.subscribe(node.request()).await;
        let marker = format!("m-{}", gateway.port());
        let event = events::with_id(marker.as_str(), events::mailbox_change("a0", 1));
        scene.publisher.publish(vec![event]).await.expect("published");
        let ids = collector.event(&marker, LIMIT).await.event_ids;
        ids[..ids.len() - 1].to_vec()
    };
    let second = Gateway::start(options()).await;
    assert_eq!(first(&second).await, ["real"]);

    // With altered bytes, and unaltered at another position.
    let retained = scene.tenant.name("0", "retained");
    let fields: Vec<(Vec<u8>, Vec<u8>)> = cmd("HGETALL")
        .arg(&retained)
        .query_async(&mut scene.tenant.redis)
        .await
        .expect("a last value");
    let (field, value) = &fields[0];
    let mut altered = value.clone();
    *altered.last_mut().expect("bytes") ^= 1;
    let space = value.iter().position(|byte| *byte == b' ').expect("a position");
    let (epoch, _) = scene.tenant.tip("0").await;
    let moved = [format!("{epoch}-1000").as_bytes(), &value[space..]].concat();
    for forged in [altered, moved] {
        scene.tenant.run(&[b"HSET", retained.as_bytes(), field, &forged]).await;
        let late = Gateway::start(options()).await;
        assert_eq!(first(&late).await, [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_rotated_without_loss() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    let with = |keys: &str| GatewayOptions::redis(&redis.url(), &prefix).frame_keys(keys);
    let both = |first: &str, second: &str| format!("{first}\n{second}\n");
    let stays = Gateway::start(with(&both(FRAME_KEY, OTHER))).await;
    let node = TestNode::connect(&stays, "node").await;
    let collector = node.subscribe(node.request()).await;
    let mut sent = Vec::new();
    // One gateway after another: the old key alone, both, both with the new one first, the new key
    // alone.
    let steps =
        [FRAME_KEY.to_owned(), both(FRAME_KEY, OTHER), both(OTHER, FRAME_KEY), OTHER.to_owned()];
    for (number, keys) in steps.iter().enumerate() {
        let gateway = Gateway::start(with(keys)).await;
        let publisher = TestNode::connect(&gateway, "publisher").await;
        let prefix = format!("k{number}");
        publisher.publish(events::numbered(&prefix, 20, 5)).await.expect("published");
        sent.extend(ids(&prefix, 0..20));
        // And back: the others verify the tags of the one that stays.
        let stream = TestNode::connect(&gateway, "other").await;
        let stream = stream.subscribe(stream.request()).await;
        let back = TestNode::connect(&stays, "back").await;
        let id = format!("b{number}-0");
        back.publish(events::numbered(&format!("b{number}"), 1, 1)).await.expect("published");
        sent.push(id.clone());
        if keys.contains(FRAME_KEY) {
            stream.event(&id, LIMIT).await;
        }
        collector.event(&id, LIMIT).await;
    }
    let recording = collector.recording();
    assert_eq!(recording.event_ids, sent);
    assert!(recording.gaps().is_empty(), "{:?}", recording.gaps());
}

/// Starts a gateway that refuses to serve, and returns its standard error.
async fn refuses(options: GatewayOptions) -> String {
    let gateway = Gateway::start(options.ready(Ready::Started)).await;
    let ended = gateway.ends(LIMIT).await;
    assert_eq!(ended.status.code(), Some(78), "{}", gateway.stderr());
    gateway.stderr()
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_with_different_keys_report_it_and_do_not_serve() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let options = |prefix: &str| GatewayOptions::redis(&redis.url(), prefix);
    let _keyed = Gateway::start(options("keyed").frame_keys(FRAME_KEY)).await;
    let said = refuses(options("keyed")).await;
    assert!(said.contains("frameKey is not set here"), "{said}");
    let said = refuses(options("keyed").frame_keys(OTHER)).await;
    assert!(said.contains("all gateways need a key in common"), "{said}");
    assert!(!said.contains(OTHER) && !said.contains(FRAME_KEY), "{said}");

    let open = Gateway::start(options("open")).await;
    let said = refuses(options("open").frame_keys(FRAME_KEY)).await;
    assert!(
        said.contains("frameKey is set here") && said.contains("DEL open:deployment"),
        "{said}"
    );
    assert_eq!(redis.cli(&["HEXISTS", "open:deployment", "key"]).await, "0");
    // As documented: stop all, delete the record, start them with the key.
    open.terminate(Duration::from_secs(15)).await;
    redis.cli(&["DEL", "open:deployment"]).await;
    let (one, two) = two_gateways(|| options("open").frame_keys(FRAME_KEY)).await;
    crosses(&one, &two).await;
}
