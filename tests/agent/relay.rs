//! Agents between programs that speak Redis' protocol and a real gateway.

use std::{collections::BTreeMap, net::SocketAddr, sync::atomic::Ordering};

use futures_util::{Stream, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use trunkline::agent::{
    formats::agora::{Agora, Version},
    serve::{Agent, Options},
    session::Credentials,
};
use trunkline_client::Client;
use trunkline_proto::v1::{Start, SubscribeRequest, cache_invalidation::Scope, event::Kind};

use crate::support::{
    Gateway, GatewayOptions, LIMIT, TestNode,
    events::{cache_invalidation, mailbox_change},
    until,
};

pub const CHANNEL: &str = "stwt.agora";

/// What heals a node when nothing is known of the queue and of accounts.
pub const HEALING: &[u8] = b"\xff\xff\x03\x08\x09\x06\x11\x06\x17\x06\x1c\x0c";

/// An agent in this process.
pub struct Host {
    pub agent: Agent,
    pub address: SocketAddr,
    _serves: JoinHandle<std::io::Result<()>>,
    _stop: DropGuard,
}

impl Host {
    pub async fn start(node_id: &str, gateway: &str) -> Host {
        Host::with(node_id, gateway, |options| options).await
    }

    pub async fn with(
        node_id: &str,
        gateway: &str,
        change: impl FnOnce(Options) -> Options,
    ) -> Host {
        let client = Client::builder(node_id).gateway(gateway).build().expect("built");
        let format = Agora { version: Version::V0_16_19, ..Agora::default() };
        let options = Options { host: "this-host".into(), ..Options::new(Box::new(format)) };
        let agent = Agent::new(client, change(options));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let serves = tokio::spawn({
            let (agent, stop) = (agent.clone(), stop.clone());
            async move { agent.serve(vec![listener.into()], None, stop).await }
        });
        Host { agent, address, _serves: serves, _stop: stop.drop_guard() }
    }

    pub fn redis(&self, query: &str) -> redis::Client {
        redis::Client::open(format!("redis://{}/{query}", self.address)).expect("a URL")
    }

    /// The messages that a node gets, without those that heal it.
    pub async fn subscribe(&self, query: &str) -> impl Stream<Item = Vec<u8>> + Unpin + use<> {
        let mut pubsub = self.redis(query).get_async_pubsub().await.expect("connected");
        pubsub.subscribe(CHANNEL).await.expect("subscribed");
        let messages = pubsub.into_on_message().map(|message| message.get_payload_bytes().to_vec());
        let mut messages = messages.boxed();
        assert_eq!(next(&mut messages).await, HEALING);
        messages.filter(|message| std::future::ready(message != HEALING)).boxed()
    }

    pub async fn publish(&self, message: &[u8]) -> redis::RedisResult<i64> {
        let mut connection =
            self.redis("").get_multiplexed_async_connection().await.expect("connected");
        redis::cmd("PUBLISH").arg(CHANNEL).arg(message).query_async(&mut connection).await
    }

    /// Until it receives events of the gateways.
    pub async fn is_connected(&self) {
        let streams = &self.agent.counters().streams;
        until(LIMIT, "a stream of events", async || streams.load(Ordering::Relaxed) > 0).await;
    }
}

pub async fn next(messages: &mut (impl Stream<Item = Vec<u8>> + Unpin)) -> Vec<u8> {
    timeout(LIMIT, messages.next()).await.expect("a message in time").expect("a connection")
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_mail_server_reach_those_of_other_hosts_and_nodes_of_trunkline() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let url = gateway.url();
    let (first, second) = tokio::join!(Host::start("host-1", &url), Host::start("host-2", &url));
    let node = TestNode::connect(&gateway, "node").await;
    let observer = node.subscribe(node.request()).await;
    observer.subscribed().await;
    let mut neighbour = first.subscribe("").await;
    let mut remote = second.subscribe("?protocol=resp3").await;
    second.is_connected().await;

    // E-mail and mailboxes of account 1, and a password of account 3.
    let message = [5, 0, 9, 9, 1, 7, 1, 0, 3];
    assert_eq!(first.publish(&message).await.expect("answered"), 1);
    // On its own host it keeps its sender.
    assert_eq!(next(&mut neighbour).await, message);
    let recording = observer.events(2, LIMIT).await;
    let kinds: Vec<_> = recording.events.iter().filter_map(|event| event.kind.clone()).collect();
    let Kind::MailboxChange(change) = &kinds[0] else { panic!("{kinds:?}") };
    assert_eq!((change.account_id.as_str(), change.change_id), ("1", 9));
    assert_eq!(change.changed_types, [1, 4]);
    let Kind::CacheInvalidation(invalidation) = &kinds[1] else { panic!("{kinds:?}") };
    assert_eq!(invalidation.entries[0].cache, "access_token");
    assert!(recording.events.iter().all(|event| event.source == "host-1"));
    // On others it is the agent's, in one message or two.
    let mut received = Vec::new();
    while received.len() < 8 {
        received.extend_from_slice(next(&mut remote).await.strip_prefix(b"\xff\xff\x03").unwrap());
    }
    assert_eq!(received, message[1..]);

    // The other way.
    let events = vec![mailbox_change("7", 4), cache_invalidation("access_token", "x")];
    node.publish(events).await.expect("published");
    for node in [&mut neighbour, &mut remote] {
        let mut received = Vec::new();
        // The last one drops every cache: the entry has no number.
        while received.last() != Some(&8) {
            received.extend_from_slice(next(node).await.strip_prefix(b"\xff\xff\x03").unwrap());
        }
        assert_eq!(received[..2], [0, 4]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_while_no_gateway_is_there_is_answered_and_arrives_once_in_order() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    gateway.kill_9();
    let url = gateway.url();
    let (first, second) = tokio::join!(Host::start("host-1", &url), Host::start("host-2", &url));
    // A node is answered, healed and held.
    let mut remote = second.subscribe("").await;
    for change in 1..=100 {
        assert_eq!(first.publish(&[5, 0, change, 1, 1]).await.expect("answered"), 0);
    }
    gateway.restart().await;
    second.is_connected().await;
    // Whoever is connected first: what the second one may have missed is healed, and what was
    // published after that arrives.
    first.publish(&[5, 0, 101, 1, 1]).await.expect("answered");
    let mut changes = Vec::new();
    while changes.last() != Some(&101) {
        let message = next(&mut remote).await;
        let mut events = message.strip_prefix(b"\xff\xff\x03").expect("the agent's");
        while let [0, change, 1, 1, rest @ ..] = events {
            changes.push(*change);
            events = rest;
        }
    }
    assert!(changes.is_sorted_by(|a, b| a < b), "{changes:?}");
    assert_eq!(first.agent.counters().lost_events.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_were_given_up_are_healed_on_the_other_hosts() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    gateway.kill_9();
    let url = gateway.url();
    let first =
        Host::with("host-1", &url, |options| Options { buffer_events: 20, ..options }).await;
    for account in 1..=100 {
        first.publish(&[5, 0, 9, 1, account]).await.expect("answered");
    }
    let counters = first.agent.counters();
    assert_eq!(counters.lost_events.load(Ordering::Relaxed), 80);
    gateway.restart().await;
    let node = TestNode::connect(&gateway, "node").await;
    let request = SubscribeRequest { start: Start::Oldest.into(), ..node.request() };
    let observer = node.subscribe(request).await;
    until(LIMIT, "a repair", async || counters.repairs.load(Ordering::Relaxed) > 0).await;
    // 20 changes, then what drops all caches and reads all again, and a change of each account.
    let recording = observer.events(20 + 6 + 100, LIMIT).await;
    let mut accounts = BTreeMap::new();
    let mut scopes = Vec::new();
    for event in &recording.events {
        match &event.kind {
            Some(Kind::MailboxChange(change)) => {
                *accounts.entry(change.account_id.clone()).or_insert(0) += 1;
            }
            Some(Kind::CacheInvalidation(invalidation)) => scopes.push(invalidation.scope()),
            _ => {}
        }
    }
    assert_eq!((accounts.len(), accounts.values().sum::<i32>()), (100, 120));
    assert_eq!(scopes, [Scope::All, Scope::AllNegative]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_garbage_is_told_and_closed_and_nobody_else_is_affected() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let host = Host::start("host-1", &gateway.url()).await;
    let mut node = host.subscribe("").await;
    for (garbage, answer) in [
        (&b"*1000000\r\n"[..], "-ERR Protocol error: invalid multibulk length\r\n"),
        (
            b"*1\r\n$536870912\r\n",
            "-ERR Protocol error: the command is longer than 1048576 bytes\r\n",
        ),
        (b"POST / HTTP/1.1\r\n\r\nPUBLISH stwt.agora x\r\n", ""),
    ] {
        let mut stream = TcpStream::connect(host.address).await.expect("connected");
        stream.write_all(garbage).await.expect("sent");
        let mut answered = String::new();
        let read = timeout(LIMIT, stream.read_to_string(&mut answered)).await.expect("closed");
        // With bytes that nobody read, a connection may end with a reset.
        assert!(read.is_ok() || answered.is_empty());
        assert_eq!(answered, answer);
    }
    // A count of 2^62, and the id of the agent: refused, and kept out.
    let huge = [5, 12, 7, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40];
    let error = host.publish(&huge).await.expect_err("refused").to_string();
    assert!(error.contains("4611686018427387904 cache entries"), "{error}");
    let error = host.publish(b"\xff\xff\x03\x0c").await.expect_err("refused").to_string();
    assert!(error.contains("node id 65535 is that of the agent"), "{error}");
    host.publish(&[5, 10]).await.expect("answered");
    // What stood before the count was understood.
    assert_eq!(next(&mut node).await, [5, 12]);
    assert_eq!(next(&mut node).await, [5, 10]);
    assert_eq!(host.agent.counters().undecodable_messages.load(Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_does_not_read_is_healed_when_it_does() {
    let options = |options| Options { buffer_events: 1, subscriber_bytes: 64 << 10, ..options };
    // Nobody listens there.
    let host = Host::with("host-1", "http://127.0.0.1:1", options).await;
    let mut slow = TcpStream::connect(host.address).await.expect("connected");
    slow.write_all(b"SUBSCRIBE stwt.agora\r\n").await.expect("sent");
    let healings = &host.agent.counters().healings;
    until(LIMIT, "a subscriber", async || healings.load(Ordering::Relaxed) > 0).await;
    // More than the kernel keeps for a connection.
    let uid = 16 << 10;
    let head = [&[5, 1, 1, 1, 0, 0x80, 0x80, 1][..], &vec![b'x'; uid], &[0]].concat();
    let mut publisher = host.redis("").get_multiplexed_async_connection().await.expect("connected");
    for _ in 0..2000 {
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(CHANNEL).arg(&head);
        assert_eq!(publish.query_async::<i64>(&mut publisher).await.expect("answered"), 1);
    }
    let mut read = vec![0; 64 << 10];
    let mut rest = Vec::new();
    let (mut bytes, mut found) = (0, 0);
    while found < 2 {
        let length = timeout(LIMIT, slow.read(&mut read)).await.expect("bytes").expect("bytes");
        assert!(length > 0, "the connection was closed");
        bytes += length;
        rest.extend_from_slice(&read[..length]);
        if let Some(at) = rest.windows(HEALING.len()).position(|some| some == HEALING) {
            found += 1;
            rest.drain(..at + HEALING.len());
        }
        // A healing may be cut.
        let done = rest.len().saturating_sub(HEALING.len());
        rest.drain(..done);
    }
    assert!(bytes < 2000 * uid, "everything was kept: {bytes} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_needed_where_one_is_set_and_on_other_addresses_than_loopback() {
    let credentials = Credentials { user: "mail".into(), password: "secret".into() };
    let options = |options| Options { credentials: Some(credentials), ..options };
    let host = Host::with("host-1", "http://127.0.0.1:1", options).await;
    let error = host.publish(&[5, 12]).await.expect_err("refused").to_string();
    assert!(error.contains("Authentication required"), "{error}");
    let url = format!("redis://mail:secret@{}/3", host.address);
    let client = redis::Client::open(url).expect("a URL");
    let mut connection = client.get_multiplexed_async_connection().await.expect("connected");
    let pong: String = redis::cmd("PING").query_async(&mut connection).await.expect("answered");
    assert_eq!(pong, "PONG");

    let client = Client::builder("host-2").gateway("http://127.0.0.1:1").build().expect("built");
    let agent = Agent::new(client, Options::new(Box::<Agora>::default()));
    let listener = TcpListener::bind("0.0.0.0:0").await.expect("bound");
    let error = agent
        .serve(vec![listener.into()], None, CancellationToken::new())
        .await
        .expect_err("refused");
    assert!(error.to_string().contains("set a password for the agent"), "{error}");
}
