//! The smallest rights that are enough: the users of deploy/redis, as they stand there.

use std::{collections::HashSet, time::Duration};

use futures_util::{StreamExt, stream};
use serde_json::json;
use trunkline_proto::v1::{Event, QueueStatus, event::Kind, queue_status::State};

use super::{
    crosses, ids,
    support::{
        ClusterOptions, Gateway, GatewayOptions, LIMIT, RedisCluster, RedisOptions, RedisServer,
        TestNode, events,
        gateway::Ready,
        shared,
        view::slot,
        wait::{eventually, until},
    },
};

pub const STANDALONE: &str = include_str!("../../deploy/redis/standalone.acl");
const CLUSTER: &str = include_str!("../../deploy/redis/cluster.acl");

/// What the user of the file may do, for another prefix.
pub fn rights(file: &str, prefix: &str) -> Vec<String> {
    let line = file.trim().strip_prefix("user gateway ").expect("the user `gateway`");
    let line = line.replace("trunkline:", &format!("{prefix}:"));
    line.split(' ').map(str::to_owned).collect()
}

/// Makes the user on a server.
pub async fn make_user(server: &RedisServer, name: &str, rights: &[String]) {
    let mut args = vec!["ACL", "SETUSER", name];
    args.extend(rights.iter().map(String::as_str));
    assert_eq!(server.cli(&args).await, "OK");
}

/// What was refused to the user on this server: the commands and the keys.
async fn refused(server: &RedisServer, user: &str) -> Vec<String> {
    let log = server.cli(&["ACL", "LOG", "1000"]).await;
    let lines: Vec<_> = log.lines().collect();
    // Each entry is a list of names and values, one a line.
    let of = |chunk: &[&str]| -> Option<String> {
        let value = |name: &str| {
            let at = chunk.iter().position(|line| *line == name)?;
            chunk.get(at + 1).copied()
        };
        (value("username")? == user).then(|| value("object").unwrap_or_default().to_owned())
    };
    let starts: Vec<_> =
        (0..lines.len()).filter(|at| lines[*at] == "count").chain([lines.len()]).collect();
    starts.windows(2).filter_map(|pair| of(&lines[pair[0]..pair[1]])).collect()
}

fn queue_status(id: &str) -> Event {
    let kind = Some(Kind::QueueStatus(QueueStatus { state: State::Paused.into() }));
    Event { event_id: id.into(), kind, ..Default::default() }
}

/// A log that keeps next to nothing, so that streams read from Redis; and a history that is soon full, so that it is trimmed.
fn hungry(options: GatewayOptions) -> GatewayOptions {
    options
        .set("shards", 1)
        .set("log", json!({"maxEvents": 1}))
        .set("history", json!({"maxBytes": "96KiB"}))
        .set_bus("minReplicas", 1)
}

/// Everything that a gateway does with Redis. `server` owns the shard's `key`, which is taken away in the midst.
async fn everything(options: &GatewayOptions, server: &RedisServer, key: &str) {
    let (one, two) = tokio::join!(Gateway::start(options.clone()), Gateway::start(options.clone()));
    // Publishing and subscribing; what a stream resumes with comes from history.
    let node = TestNode::connect(&two, "node").await;
    let first = node.subscribe(node.request()).await;
    crosses(&one, &two).await;
    let sent = ids("e", 0..300);
    let token = first.recording().subscribed().expect("subscribed").resume_token.clone();
    for _ in 0..2 {
        let mut resume = node.request();
        resume.resume_token = token.clone();
        let resumed = node.subscribe(resume).await.event("e-299", LIMIT).await;
        assert_eq!((&resumed.event_ids, resumed.gaps().len()), (&sent, 0));
    }
    // A retry.
    let publisher = TestNode::connect(&one, "publisher").await;
    let request = "0190d2a0-0000-7000-8000-000000000001";
    let again = async || {
        publisher.publish_as(request, events::numbered("r", 1, 1)).await.expect("published")
    };
    assert_eq!(again().await, again().await);
    // A last value, for a gateway that never heard it.
    publisher.publish(vec![queue_status("paused")]).await.expect("published");
    one.restart().await;
    let late = TestNode::connect(&one, "late").await;
    let late = late.subscribe(late.request()).await;
    late.event("paused", LIMIT).await;
    // A lost subscription is repaired.
    server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    let publisher = TestNode::connect(&one, "publisher").await;
    publisher.publish(events::numbered("k", 1, 1)).await.expect("published");
    first.event("k-0", LIMIT).await;
    // A lost state is a new epoch.
    server.cli(&["DEL", key]).await;
    publisher.publish(events::numbered("d", 1, 1)).await.expect("published");
    first.event("d-0", LIMIT).await;
    // A full history is trimmed.
    for number in 0..40 {
        let event = events::with_id(format!("large-{number}"), events::large(16 << 10));
        publisher.publish(vec![event]).await.expect("published");
    }
    first.event("large-39", LIMIT).await;
    first.with(|recording| assert!(recording.gaps().is_empty(), "{:?}", recording.gaps()));
}

/// A server and its replica.
async fn with_replica() -> (RedisServer, RedisServer) {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let args = ["--replicaof", "127.0.0.1", &redis.port().to_string()].map(str::to_owned).to_vec();
    let replica = RedisServer::start(RedisOptions { args, ..RedisOptions::default() }).await;
    until(LIMIT, "the replica is in sync", async || {
        replica.info("replication", "master_link_status").await.as_deref() == Some("up")
    })
    .await;
    (redis, replica)
}

fn as_user(redis: &RedisServer, user: &str, prefix: &str) -> GatewayOptions {
    let url = format!("redis://{user}:change-me@127.0.0.1:{}", redis.port());
    hungry(GatewayOptions::redis(&url, prefix))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_of_the_file_may_do_all_that_a_gateway_does() {
    let (redis, _replica) = with_replica().await;
    let prefix = shared::prefix();
    make_user(&redis, "gateway", &rights(STANDALONE, &prefix)).await;
    let state = format!("{prefix}:{{0}}:state");
    for query in ["", "?protocol=resp2"] {
        let options = as_user(&redis, "gateway", &prefix);
        let url =
            format!("{}/{query}", options.config["coordinator"]["url"].as_str().expect("text"));
        everything(&options.set_bus("url", url), &redis, &state).await;
        redis.cli(&["FLUSHALL"]).await;
    }
    assert_eq!(redis.cli(&["ACL", "LOG"]).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_one_of_its_rights_something_is_refused() {
    let (redis, _replica) = with_replica().await;
    let all = rights(STANDALONE, "p");
    let commands: Vec<String> =
        all.iter().filter(|right| right.starts_with('+')).cloned().collect();
    assert!(commands.len() > 20, "{all:?}");
    let without = commands.iter().map(String::as_str).chain(["~", "&"]);
    let check = async |(number, taken): (usize, &str)| {
        let (user, prefix) = (format!("user-{number}"), shared::prefix());
        let rights: Vec<String> = rights(STANDALONE, &prefix)
            .into_iter()
            .filter(|right| right != taken && (taken.len() > 1 || !right.starts_with(taken)))
            .collect();
        assert_eq!(rights.len(), all.len() - 1, "{taken}");
        make_user(&redis, &user, &rights).await;
        let state = format!("{prefix}:{{0}}:state");
        let options = as_user(&redis, &user, &prefix);
        let seen = eventually(LIMIT * 2, taken, async || refused(&redis, &user).await.pop());
        let seen = tokio::select! {
            seen = seen => seen,
            // In vain, or in part: what counts is what was refused.
            () = stubborn(&options, &redis, &state) => unreachable!("it goes on"),
        };
        let command = taken.trim_start_matches('+');
        let expected = match taken {
            "~" | "&" => &prefix,
            _ => command,
        };
        assert!(seen.contains(expected), "without {taken}: {seen}");
    };
    stream::iter(without.enumerate()).map(check).buffer_unordered(4).collect::<Vec<()>>().await;
}

/// As [`everything`], for a user to whom something is refused: nothing is expected, and it does not end.
async fn stubborn(options: &GatewayOptions, server: &RedisServer, key: &str) {
    let options = options.clone().ready(Ready::Started).set_bus("timeout", "2s");
    let gateway = Gateway::start(options).await;
    let node = eventually(LIMIT, "a connection", async || {
        gateway.connect().await.ok()?;
        Some(TestNode::connect(&gateway, "node").await)
    })
    .await;
    let mut token = Vec::new();
    for round in 0.. {
        let mut request = node.request();
        request.include_own_events = true;
        request.resume_token = token.clone();
        let stream = node.collect(request, super::support::Keep::Ids).await;
        let id = "0190d2a0-0000-7000-8000-000000000002";
        let _ = node.publish_as(id, vec![queue_status("paused")]).await;
        let _ = node.publish(vec![events::large(48 << 10)]).await;
        let _ = node.publish(events::numbered("n", 20, 1)).await;
        if let Ok(stream) = &stream
            && round % 2 == 0
        {
            token = stream.recording().last_token().map(<[u8]>::to_vec).unwrap_or_default();
        }
        // Not too often: a history that begins anew is not trimmed, and what is trimmed is older than a second.
        if round % 48 == 47 {
            // Where the slot is on its way they lie elsewhere.
            let _ = server.command::<i64>(&["DEL", key]).await;
            let _ = server.command::<String>(&["SCRIPT", "FLUSH"]).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        // Now and then nobody is there for so long that the other gateways are told.
        if round % 48 == 23 {
            drop(stream);
            tokio::time::sleep(Duration::from_millis(1500)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_of_the_file_is_enough_in_a_cluster() {
    let cluster = RedisCluster::with(ClusterOptions::default()).await;
    let prefix = shared::prefix();
    // What the file of a cluster has beside that of a standalone server; each is needed.
    let (file, alone) = (rights(CLUSTER, &prefix), rights(STANDALONE, &prefix));
    let alone: HashSet<_> = alone.iter().collect();
    let mut more: Vec<_> = file.iter().filter(|right| !alone.contains(right)).cloned().collect();
    let options = |user: &str| {
        hungry(GatewayOptions::redis_cluster(&cluster.urls(), &prefix))
            .set_bus("authUsername", user)
            .set_bus("authSecret", json!({"@type": "Value", "secret": "change-me"}))
    };
    // Numbered as they are taken away below.
    more.sort_by_key(|right| right == "+asking");
    for node in cluster.nodes() {
        make_user(node, "gateway", &file).await;
        for (number, taken) in more.iter().enumerate() {
            let rights: Vec<_> = file.iter().filter(|right| *right != taken).cloned().collect();
            make_user(node, &format!("user-{number}"), &rights).await;
        }
    }
    let key = format!("{prefix}:{{0}}:state");
    let owner = cluster.master_of_slot(slot(&key)).await;
    let options_of_all = options("gateway");
    everything(&options_of_all, cluster.node(owner), &key).await;
    // Without its right to READONLY nothing is refused before a gateway knows a replica.
    cluster.replica_is_named(cluster.replicas_of(owner).await[0]).await;

    // A slot on its way, last of all: what is no longer there is asked for where it goes, which takes it when it has all.
    assert_eq!(more.last().map(String::as_str), Some("+asking"), "{more:?}");
    let mut moving = None;
    for (number, taken) in more.iter().enumerate() {
        if taken == "+asking" {
            let to = cluster.masters().await.into_iter().find(|master| *master != owner);
            let begun = Moving::begin(&cluster, slot(&key), owner, to.expect("another")).await;
            moving = Some(begun);
            let gateway = stubborn(&options_of_all, cluster.node(owner), &key);
            let _ = tokio::time::timeout(Duration::from_secs(3), gateway).await;
            for node in cluster.nodes() {
                assert_eq!(refused(node, "gateway").await, [""; 0]);
            }
        }
        let user = format!("user-{number}");
        let options = options(&user);
        let gateway = stubborn(&options, cluster.node(owner), &key);
        let seen = eventually(LIMIT * 2, taken, async || {
            let mut all = Vec::new();
            for node in cluster.nodes() {
                all.extend(refused(node, &user).await);
            }
            all.pop()
        });
        let seen = tokio::select! {
            seen = seen => seen,
            () = gateway => unreachable!("it goes on"),
        };
        let command = taken.trim_start_matches('+');
        assert!(seen.contains(command), "without {taken}: {seen}");
    }
    moving.expect("it was moved").end(&cluster).await;
}

/// A slot that is being moved and has lost its keys, so that every command about it is sent on.
struct Moving {
    slot: String,
    from: usize,
    to: usize,
}

impl Moving {
    async fn begin(cluster: &RedisCluster, slot: u16, from: usize, to: usize) -> Moving {
        let slot = slot.to_string();
        let id = async |index: usize| cluster.node(index).cli(&["CLUSTER", "MYID"]).await;
        let set = async |index: usize, what: &str, of: usize| {
            let id = id(of).await;
            cluster.node(index).cli(&["CLUSTER", "SETSLOT", &slot, what, &id]).await;
        };
        set(to, "IMPORTING", from).await;
        set(from, "MIGRATING", to).await;
        let keys = cluster.node(from).cli(&["CLUSTER", "GETKEYSINSLOT", &slot, "1000"]).await;
        for key in keys.lines() {
            cluster.node(from).cli(&["DEL", key]).await;
        }
        Moving { slot, from, to }
    }

    async fn end(self, cluster: &RedisCluster) {
        for index in [self.from, self.to] {
            cluster.node(index).cli(&["CLUSTER", "SETSLOT", &self.slot, "STABLE"]).await;
        }
    }
}

#[test]
fn the_readme_shows_the_rights_as_they_stand_in_the_file() {
    let readme = include_str!("../../README.md");
    let one_line: String = readme.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(one_line.contains(STANDALONE.trim()), "{STANDALONE}");
}
