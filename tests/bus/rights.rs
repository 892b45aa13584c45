//! A Redis that refuses a right: the gateway says which, on what, and the line that gives it;
//! nothing is appended in part, and it goes on when the right is there.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use super::{
    acl::{STANDALONE, make_user, rights},
    support::{
        Gateway, GatewayOptions, LIMIT, Ready, RedisOptions, RedisServer, TestNode, events,
        gateway::trunkline, shared, until,
    },
};

/// The line after `ACL SETUSER` in a message: what an operator would paste.
fn cure(message: &str) -> Vec<String> {
    let (_, line) = message.split_once("ACL SETUSER ").unwrap_or_else(|| panic!("{message}"));
    let line = line.split([';', ')', '\n']).next().unwrap_or_default();
    line.split_whitespace().map(str::to_owned).collect()
}

async fn set_user(redis: &RedisServer, words: &[impl AsRef<str>]) {
    let mut args = vec!["ACL", "SETUSER"];
    args.extend(words.iter().map(AsRef::as_ref));
    assert_eq!(redis.cli(&args).await, "OK");
}

fn as_user(redis: &RedisServer, user: &str, prefix: &str) -> GatewayOptions {
    let url = format!("redis://{user}:change-me@127.0.0.1:{}", redis.port());
    GatewayOptions::redis(&url, prefix).set("shards", 1).set_bus("timeout", "2s")
}

/// Each command, the keys and the channels, one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn each_missing_right_is_named_with_its_cure_and_nothing_is_appended() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let all = rights(STANDALONE, "p");
    let commands: Vec<_> = all.iter().filter(|right| right.starts_with('+')).cloned().collect();
    assert!(commands.len() > 20, "{all:?}");
    // WAIT is used with minReplicas alone.
    let commands = commands.iter().map(String::as_str).filter(|right| *right != "+wait");
    let check = async |(number, taken): (usize, &str)| {
        let (user, prefix) = (format!("user-{number}"), shared::prefix());
        let kept: Vec<String> = rights(STANDALONE, &prefix)
            .into_iter()
            .filter(|right| right != taken && (taken.len() > 1 || !right.starts_with(taken)))
            .collect();
        make_user(&redis, &user, &kept).await;
        let options = as_user(&redis, &user, &prefix).ready(Ready::Listening);
        let gateway = Gateway::start(options).await;
        let expected =
            if taken.len() > 1 { taken.to_owned() } else { format!("{taken}{prefix}:*") };
        let line = format!("ACL SETUSER {user} {expected}");
        let message = gateway.is_not_ready(&["NOPERM", &line], LIMIT).await;
        assert_eq!(message.lines().count(), 1, "one line: {message}");
        // What is published meanwhile fails with the same reason, and leaves nothing behind.
        let node = TestNode::connect(&gateway, "node").await;
        let id = "0190d2a0-0000-7000-8000-000000000003";
        let refused = node.publish_as(id, events::numbered("e", 3, 1)).await.expect_err("refused");
        assert_eq!(refused.code(), Code::Unavailable, "{taken}: {refused:?}");
        assert!(refused.message().contains("NOPERM"), "{taken}: {refused:?}");
        let history = format!("{prefix}:{{0}}:history");
        assert_eq!(redis.cli(&["EXISTS", &history]).await, "0", "without {taken}");
        // The log and `doctor` say the same.
        assert!(gateway.stderr().contains(&line), "{}", gateway.stderr());
        let file = gateway.config_file().display().to_string();
        let doctor = trunkline(["doctor", "--config", &file]).run(LIMIT).await;
        let said = format!("{}{}", doctor.stdout, doctor.stderr);
        assert!(said.contains(&line), "without {taken}: {said}");
        // The line is the cure.
        set_user(&redis, &cure(&message)).await;
        gateway.health_is("", ServingStatus::Serving, LIMIT).await;
        node.publish_as(id, events::numbered("e", 3, 1)).await.expect("published");
        let status = node.client.clone().get_status(trunkline_proto::v1::GetStatusRequest {}).await;
        assert_eq!(status.expect("a status").into_inner().published_events, 3);
    };
    let taken = commands.chain(["~", "&"]).enumerate();
    stream::iter(taken).map(check).buffer_unordered(4).collect::<Vec<()>>().await;
}

/// A right that is taken from a gateway that serves.
#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_taken_away_stops_appends_before_they_begin() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    make_user(&redis, "gateway", &rights(STANDALONE, &prefix)).await;
    let options = as_user(&redis, "gateway", &prefix);
    let gateway = Gateway::start(options).await;
    let node = TestNode::connect(&gateway, "node").await;
    let subscriber = TestNode::connect(&gateway, "subscriber").await;
    let stream = subscriber.subscribe(subscriber.request()).await;
    let history = format!("{prefix}:{{0}}:history");
    let mut sent = Vec::new();
    // Each stops the script at another place: `set` long after the frame was added.
    for (number, right) in ["set", "publish", "hset", "xadd", "xtrim"].into_iter().enumerate() {
        let before = redis.cli(&["XLEN", &history]).await;
        set_user(&redis, &["gateway", &format!("-{right}")]).await;
        let id = format!("0190d2a0-0000-7000-8000-00000000000{number}");
        let name = format!("{right}-0");
        let publish = async || node.publish_as(&id, events::numbered(right, 1, 1)).await;
        if right == "xtrim" {
            // It is needed now and then only: the probe finds it.
            gateway.is_not_ready(&["NOPERM", "+xtrim"], LIMIT).await;
        }
        let refused = publish().await.expect_err("refused");
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        let line = format!("ACL SETUSER gateway +{right}");
        assert!(refused.message().contains(&line), "{refused:?}");
        gateway.is_not_ready(&[&line], LIMIT).await;
        assert_eq!(redis.cli(&["XLEN", &history]).await, before, "without {right}");
        set_user(&redis, &cure(refused.message())).await;
        gateway.health_is("", ServingStatus::Serving, LIMIT).await;
        publish().await.expect("published");
        publish().await.expect("the same request again");
        sent.push(name.clone());
        assert_eq!(stream.event(&name, LIMIT).await.event_ids, sent);
    }
    let lines = gateway.stderr().lines().filter(|line| line.contains("NOPERM")).count();
    assert!((1..20).contains(&lines), "{lines} lines: {}", gateway.stderr());
    until(Duration::from_secs(5), "no gap", async || {
        stream.with(|recording| recording.gaps().is_empty())
    })
    .await;
}
