//! The users of deploy/redis have all rights that a gateway needs, and no others.

use std::{collections::HashSet, time::Duration};

use futures_util::{StreamExt, stream};
use serde_json::json;
use trunkline_proto::v1::{Event, QueueStatus, event::Kind, queue_status::State};

use super::{
    crosses, ids,
    support::{
        ClusterOptions, Gateway, GatewayOptions, LIMIT, RedisCluster, RedisServer, TestNode,
        events, gateway::Ready, shared, view::slot, wait::eventually,
    },
};

pub const STANDALONE: &str = include_str!("../../deploy/redis/standalone.acl");
const CLUSTER: &str = include_str!("../../deploy/redis/cluster.acl");

/// The rights of a file's user, for another prefix.
pub fn rights(file: &str, prefix: &str) -> Vec<String> {
    let line = file.trim().strip_prefix("user gateway ").expect("the user `gateway`");
    let line = line.replace("trunkline:", &format!("{prefix}:"));
    line.split(' ').map(str::to_owned).collect()
}

/// Creates the user on a server.
pub async fn make_user(server: &RedisServer, name: &str, rights: &[String]) {
    let mut args = vec!["ACL", "SETUSER", name];
    args.extend(rights.iter().map(String::as_str));
    assert_eq!(server.cli(&args).await, "OK");
}

/// The commands and keys that the server refused to the user.
async fn refused(server: &RedisServer, user: &str) -> Vec<String> {
    let log = server.cli(&["ACL", "LOG", "1000"]).await;
    let lines: Vec<_> = log.lines().collect();
    // Each entry is a list of names and values, one on each line.
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

/// A log of one event, so that streams read from Redis, and a history that is soon full, so that it
/// is trimmed.
fn small_limits(options: GatewayOptions) -> GatewayOptions {
    options
        .set("shards", 1)
        .set("log", json!({"maxEvents": 1}))
        .set("history", json!({"maxBytes": "96KiB"}))
        .set_bus("minReplicas", 1)
}

/// Makes a gateway do everything that it does with Redis. `server` owns the shard's `key`, which is
/// deleted halfway.
async fn everything(options: &GatewayOptions, server: &RedisServer, key: &str) {
    let (one, two) = tokio::join!(Gateway::start(options.clone()), Gateway::start(options.clone()));
    // Publish, subscribe, and resume from history.
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
    // Retry a publish.
    let publisher = TestNode::connect(&one, "publisher").await;
    let request = "0190d2a0-0000-7000-8000-000000000001";
    let retry = async || {
        publisher.publish_as(request, events::numbered("r", 1, 1)).await.expect("published")
    };
    assert_eq!(retry().await, retry().await);
    // Read a last value on a gateway that did not receive it.
    publisher.publish(vec![queue_status("paused")]).await.expect("published");
    one.restart().await;
    let late = TestNode::connect(&one, "late").await;
    let late = late.subscribe(late.request()).await;
    late.event("paused", LIMIT).await;
    // Repair a lost subscription.
    server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    let publisher = TestNode::connect(&one, "publisher").await;
    publisher.publish(events::numbered("k", 1, 1)).await.expect("published");
    first.event("k-0", LIMIT).await;
    // Open a new epoch after the state was lost.
    server.cli(&["DEL", key]).await;
    publisher.publish(events::numbered("d", 1, 1)).await.expect("published");
    first.event("d-0", LIMIT).await;
    // Trim a full history.
    for number in 0..40 {
        let event = events::with_id(format!("large-{number}"), events::large(16 << 10));
        publisher.publish(vec![event]).await.expect("published");
    }
    first.event("large-39", LIMIT).await;
    first.with(|recording| assert!(recording.gaps().is_empty(), "{:?}", recording.gaps()));
}

fn as_user(redis: &RedisServer, user: &str, prefix: &str) -> GatewayOptions {
    let url = format!("redis://{user}:change-me@127.0.0.1:{}", redis.port());
    small_limits(GatewayOptions::redis(&url, prefix))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_of_the_acl_file_are_enough() {
    let (redis, _replica) = RedisServer::with_replica().await;
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
async fn every_right_of_the_acl_file_is_needed() {
    let (redis, _replica) = RedisServer::with_replica().await;
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
            // It need not succeed: the test counts refusals.
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

/// As [`everything`], for a user without some right: errors are ignored, and it does not end.
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
        // Not too often: a history that begins anew is not trimmed, and trimmed entries are older
        // than a second.
        if round % 48 == 47 {
            // While the slot moves, its keys are on the other server.
            let _ = server.command::<i64>(&["DEL", key]).await;
            let _ = server.command::<String>(&["SCRIPT", "FLUSH"]).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        // Now and then no node is connected for so long that the other gateways get a new record.
        if round % 48 == 23 {
            drop(stream);
            tokio::time::sleep(Duration::from_millis(1500)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_of_the_cluster_acl_file_are_enough_and_needed() {
    let cluster = RedisCluster::with(ClusterOptions::default()).await;
    let prefix = shared::prefix();
    // The rights that only the file of a cluster has; each is needed.
    let (file, alone) = (rights(CLUSTER, &prefix), rights(STANDALONE, &prefix));
    let alone: HashSet<_> = alone.iter().collect();
    let mut more: Vec<_> = file.iter().filter(|right| !alone.contains(right)).cloned().collect();
    let options = |user: &str| {
        small_limits(GatewayOptions::redis_cluster(&cluster.urls(), &prefix))
            .set_bus("authUsername", user)
            .set_bus("authSecret", json!({"@type": "Value", "secret": "change-me"}))
    };
    // In the order in which they are removed below.
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

    // A moving slot comes last: keys that have left are asked for at the destination, which owns
    // the slot when it has all of them.
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

/// A moving slot without keys, so that every command about it is redirected.
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
fn the_documentation_shows_the_rights_of_the_acl_files() {
    let readme = include_str!("../../README.md");
    let one_line: String = readme.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(one_line.contains(STANDALONE.trim()), "{STANDALONE}");
}
