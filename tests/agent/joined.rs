//! An agent on a channel of Redis that other nodes still use.

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use futures_util::{Stream, StreamExt};
use tokio::time::timeout;
use trunkline::agent::serve::{Join, Options};
use trunkline_proto::v1::{AgentChannel, ListNodesRequest, cache_invalidation::Scope, event::Kind};

use crate::{
    relay::{CHANNEL, HEALING, Host, next},
    support::{
        Gateway, GatewayOptions, LIMIT, TestNode,
        events::mailbox_change,
        gateway::trunkline,
        ports::Port,
        process::Process,
        redis::{Data, RedisOptions, RedisServer},
        until,
    },
};

/// Of agents, alone: what they ask whether the channel works with.
const PROBE: &[u8] = b"\xff\xff\x03";

async fn joined(node_id: &str, gateway: &Gateway, redis: &RedisServer) -> Host {
    let join = Join::new(&redis.url(), "redis").expect("a URL");
    Host::with(node_id, &gateway.url(), |options| Options { join: Some(join), ..options }).await
}

/// The messages of the channel, without probes and healings.
async fn subscribe(redis: &RedisServer) -> impl Stream<Item = Vec<u8>> + Unpin + use<> {
    let client = redis::Client::open(redis.url()).expect("a URL");
    let mut pubsub = client.get_async_pubsub().await.expect("connected");
    pubsub.subscribe(CHANNEL).await.expect("subscribed");
    let messages = pubsub.into_on_message().map(|message| message.get_payload_bytes().to_vec());
    let is_said = |message: &Vec<u8>| std::future::ready(message != PROBE && message != HEALING);
    messages.filter(is_said).boxed()
}

async fn publish(redis: &RedisServer, message: &[u8]) {
    let client = redis::Client::open(redis.url()).expect("a URL");
    let mut connection = client.get_multiplexed_async_connection().await.expect("connected");
    let mut publish = redis::cmd("PUBLISH");
    publish.arg(CHANNEL).arg(message);
    publish.query_async::<i64>(&mut connection).await.expect("answered");
}

/// How often each change was received, by its id, until all of these were.
async fn changes(
    messages: &mut (impl Stream<Item = Vec<u8>> + Unpin),
    last: &[u8],
) -> BTreeMap<u8, usize> {
    let mut received = BTreeMap::new();
    while !last.iter().all(|change| received.contains_key(change)) {
        let message = next(messages).await;
        // The sender has three bytes if it is an agent, and one else.
        let mut events = message.strip_prefix(PROBE).unwrap_or(&message[1..]);
        while let [0, change, 1, 1, rest @ ..] = events {
            *received.entry(*change).or_insert(0) += 1;
            events = rest;
        }
        assert!(events.is_empty(), "{message:?}");
    }
    received
}

fn once(changes: impl IntoIterator<Item = u8>) -> BTreeMap<u8, usize> {
    changes.into_iter().map(|change| (change, 1)).collect()
}

fn joins(host: &Host) -> u64 {
    host.agent.counters().joins.load(Ordering::Relaxed)
}

#[tokio::test(flavor = "multi_thread")]
async fn with_two_agents_on_a_channel_every_event_comes_once_each_way() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    // Before the agents, which would heal it.
    let mut remote = subscribe(&redis).await;
    let first = joined("host-1", &gateway, &redis).await;
    let repairs = || first.agent.counters().repairs.load(Ordering::Relaxed);
    until(LIMIT, "an agent that carries the channel", async || repairs() == 1).await;
    // What heals the others has passed.
    let second = joined("host-2", &gateway, &redis).await;
    first.is_connected().await;
    second.is_connected().await;
    let node = TestNode::connect(&gateway, "node").await;
    let observer = node.subscribe(node.request()).await;
    observer.subscribed().await;
    let (mut one, mut two) = (first.subscribe("").await, second.subscribe("").await);

    // By a node on Redis, by nodes of both agents, and by one of Trunkline.
    for change in 1..=20 {
        publish(&redis, &[3, 0, change, 1, 1]).await;
        first.publish(&[5, 0, change + 20, 1, 1]).await.expect("answered");
        second.publish(&[6, 0, change + 40, 1, 1]).await.expect("answered");
        let mut event = mailbox_change("1", u64::from(change) + 60);
        if let Some(Kind::MailboxChange(change)) = &mut event.kind {
            change.changed_types = vec![1];
        }
        node.publish(vec![event]).await.expect("published");
    }
    // Who has received the last one of each sender has received all.
    let all = [20, 40, 60, 80];
    assert_eq!(changes(&mut remote, &all).await, once(1..=80));
    assert_eq!(changes(&mut one, &all).await, once(1..=80));
    assert_eq!(changes(&mut two, &all).await, once(1..=80));
    // Both are listed with the channel, which one of them carries.
    until(LIMIT, "the channel in the list of nodes", async || {
        let request = ListNodesRequest { agents: true, ..Default::default() };
        let list = node.client.clone().list_nodes(request).await.expect("a list").into_inner();
        let channels: Vec<_> =
            list.nodes.into_iter().filter_map(|node| node.agent?.joined_channel).collect();
        let named = |of: &AgentChannel| of.channel == CHANNEL && of.server == "redis";
        let carried = channels.iter().filter(|of| of.carried && of.published_messages > 0);
        channels.len() == 2 && channels.iter().all(named) && carried.count() == 1
    })
    .await;
    let recording = observer.events(60, LIMIT).await;
    let received = recording.events.iter().map(|event| match &event.kind {
        Some(Kind::MailboxChange(change)) => u8::try_from(change.change_id).expect("a change"),
        other => panic!("{other:?}"),
    });
    let mut received: Vec<u8> = received.collect();
    received.sort_unstable();
    assert_eq!(received, (1..=60).collect::<Vec<_>>());
    // Nothing comes behind: what went round would.
    publish(&redis, &[3, 0, 99, 1, 1]).await;
    assert_eq!(changes(&mut remote, &[99]).await, once([99]));
    assert_eq!(changes(&mut one, &[99]).await, once([99]));
    assert_eq!(changes(&mut two, &[99]).await, once([99]));
    let recording = observer.events(61, LIMIT).await;
    assert_eq!(recording.events.len(), 61);
    assert_eq!((joins(&first), joins(&second)), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_agent_that_carries_the_channel_ends_another_one_does_and_nodes_are_healed() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let first = joined("host-1", &gateway, &redis).await;
    until(LIMIT, "an agent that carries the channel", async || joins(&first) == 1).await;
    let second = joined("host-2", &gateway, &redis).await;
    second.is_connected().await;
    let client = redis::Client::open(redis.url()).expect("a URL");
    let mut pubsub = client.get_async_pubsub().await.expect("connected");
    pubsub.subscribe(CHANNEL).await.expect("subscribed");
    let mut messages =
        pubsub.into_on_message().map(|message| message.get_payload_bytes().to_vec()).boxed();
    drop(first);
    while next(&mut messages).await != HEALING {}
    until(LIMIT, "another agent that carries the channel", async || joins(&second) == 1).await;
    let mut local = second.subscribe("").await;
    publish(&redis, &[3, 0, 7, 1, 1]).await;
    assert_eq!(changes(&mut local, &[7]).await, once([7]));
    second.publish(&[6, 0, 8, 1, 1]).await.expect("answered");
    while next(&mut messages).await != b"\xff\xff\x03\x00\x08\x01\x01" {}
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_agent_that_carries_the_channel_is_killed_another_one_does() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let port = Port::free();
    let (address, gateway_url) = (format!("127.0.0.1:{}", port.number()), gateway.url());
    let arguments = ["agent", "--listen", &address, "--gateway", &gateway_url];
    let channel = ["--channel", &redis.url()].map(str::to_owned);
    let arguments = arguments.into_iter().map(str::to_owned).chain(channel);
    let first = Process::start("agent", trunkline(arguments));
    until(LIMIT, "an agent that carries the channel", async || {
        first.stderr().contains("this agent carries the channel of Redis")
    })
    .await;
    let second = joined("host-2", &gateway, &redis).await;
    first.kill_9();
    until(LIMIT, "another agent that carries the channel", async || joins(&second) == 1).await;
    let mut local = second.subscribe("").await;
    publish(&redis, &[3, 0, 7, 1, 1]).await;
    assert_eq!(changes(&mut local, &[7]).await, once([7]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_subscribes_on_redis_is_healed_there() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let host = joined("host-1", &gateway, &redis).await;
    let published = || host.agent.counters().joined_messages.load(Ordering::Relaxed);
    // Its first healing and a probe: it knows how many nodes are there.
    until(LIMIT, "an agent that carries the channel", async || published() > 2).await;
    host.publish(&[5, 11]).await.expect("answered");
    let client = redis::Client::open(redis.url()).expect("a URL");
    let mut pubsub = client.get_async_pubsub().await.expect("connected");
    pubsub.subscribe(CHANNEL).await.expect("subscribed");
    let mut messages =
        pubsub.into_on_message().map(|message| message.get_payload_bytes().to_vec()).boxed();
    // The queue is paused.
    let expected = b"\xff\xff\x03\x08\x09\x06\x11\x06\x17\x06\x1c\x0b\x0c";
    while next(&mut messages).await != expected {}
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_channel_holds_up_nobody_and_is_healed_on_all_sides() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let host = joined("host-1", &gateway, &redis).await;
    host.is_connected().await;
    let repairs = || host.agent.counters().repairs.load(Ordering::Relaxed);
    until(LIMIT, "an agent that carries the channel", async || repairs() == 1).await;
    for outage in 1..=2 {
        let mut local = host.redis("").get_async_pubsub().await.expect("connected");
        local.subscribe(CHANNEL).await.expect("subscribed");
        let mut local =
            local.into_on_message().map(|message| message.get_payload_bytes().to_vec()).boxed();
        assert!(next(&mut local).await.starts_with(&HEALING[..4]));
        let node = TestNode::connect(&gateway, format!("node-{outage}")).await;
        let observer = node.subscribe(node.request()).await;
        observer.subscribed().await;
        // It is gone, or it does not answer.
        if outage == 1 {
            redis.kill_9();
        } else {
            redis.pause().await;
        }
        let began = std::time::Instant::now();
        host.publish(&[5, 0, outage, 1, 1]).await.expect("answered");
        assert!(began.elapsed() < Duration::from_secs(1));
        // The others still receive it.
        while next(&mut local).await != [5, 0, outage, 1, 1] {}
        assert_eq!(observer.events(1, LIMIT).await.events.len(), 1);
        if outage == 1 {
            redis.restart(Data::Kept).await;
        } else {
            // Until the agent has noticed.
            until(LIMIT, "a channel that is not carried", async || {
                host.agent.is_joined().is_some_and(|joined| !joined)
            })
            .await;
            redis.resume();
        }
        let client = redis::Client::open(redis.url()).expect("a URL");
        let mut remote = client.get_async_pubsub().await.expect("connected");
        remote.subscribe(CHANNEL).await.expect("subscribed");
        let mut remote =
            remote.into_on_message().map(|message| message.get_payload_bytes().to_vec()).boxed();
        // The nodes there get the account that changed, in a healing that drops all caches,
        let mut healed = false;
        until(LIMIT, "a healing of the nodes on Redis, with the account", async || {
            let message = timeout(Duration::from_secs(1), remote.next()).await;
            let Ok(Some(message)) = message else { return false };
            healed |= message.starts_with(&HEALING[..5]);
            healed && message.starts_with(b"\xff\xff\x03\x00") && message.ends_with(b"\x01")
        })
        .await;
        // those of this host too, and the others by events.
        while !next(&mut local).await.starts_with(&HEALING[..5]) {}
        let recording = observer.events(2, LIMIT).await;
        let Some(Kind::CacheInvalidation(invalidation)) = &recording.events[1].kind else {
            panic!("{recording:?}")
        };
        assert_eq!(invalidation.scope(), Scope::All);
    }
}
