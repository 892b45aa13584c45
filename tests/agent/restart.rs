//! Nobody is refused and nothing is lost while an agent is replaced.

use std::{
    net::SocketAddr,
    os::fd::OwnedFd,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use trunkline_proto::v1::{
    Start, SubscribeRequest, cache_invalidation::Scope, event::Kind, queue_status::State,
};

use super::seen;
use crate::support::{
    Gateway, GatewayOptions, LIMIT, TestNode,
    events::mailbox_change,
    gateway::{binary, trunkline},
    ports::Port,
    process::Process,
    until,
};

const CHANNEL: &str = "stwt.agora";

/// An agent, as a process with a folder for its state.
struct Host {
    port: Port,
    folder: TempDir,
    gateway: String,
    /// More flags.
    flags: Vec<String>,
}

impl Host {
    fn new(gateway: &Gateway) -> Host {
        let folder = tempfile::tempdir().expect("a folder");
        Host { port: Port::free(), folder, gateway: gateway.url(), flags: Vec::new() }
    }

    fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port.number()).into()
    }

    /// Returns when the agent serves.
    async fn start(&self) -> Process {
        let state = self.folder.path().join("state-dir").display().to_string();
        let address = self.address().to_string();
        let arguments = ["agent", "--node-id", "host-1", "--gateway", &self.gateway];
        let own = ["--listen", &address, "--state-dir", &state, "--mail-server", "0.16.19"];
        let flags = self.flags.iter().map(String::as_str);
        let arguments = arguments.into_iter().chain(own).chain(flags);
        let agent = Process::start("agent", trunkline(arguments));
        until(LIMIT, "an agent that listens", async || {
            assert!(agent.ended().is_none(), "{}", agent.stderr());
            agent.stderr().contains("the agent listens")
        })
        .await;
        agent
    }

    /// Publishes changes of account 1 with these ids.
    async fn publish(&self, changes: std::ops::Range<u8>) {
        let url = format!("redis://{}", self.address());
        let client = redis::Client::open(url).expect("a URL");
        let mut connection = client.get_multiplexed_async_connection().await.expect("connected");
        for change in changes {
            let mut publish = redis::cmd("PUBLISH");
            publish.arg(CHANNEL).arg(&[5, 0, change, 1, 1]);
            publish.query_async::<i64>(&mut connection).await.expect("answered");
        }
    }
}

async fn ends(agent: &Process) {
    let (status, _) = agent.wait(LIMIT).await;
    assert!(status.success(), "{status}: {}", agent.stderr());
}

/// The ids of the changes of account 1 that a new observer gets, from the oldest on.
async fn changes(gateway: &Gateway, count: usize) -> Vec<u64> {
    let node = TestNode::connect(gateway, "observer").await;
    let request = SubscribeRequest { start: Start::Oldest.into(), ..node.request() };
    let recording = node.subscribe(request).await.events(count, LIMIT).await;
    let change = |event: &trunkline_proto::v1::Event| match &event.kind {
        Some(Kind::MailboxChange(change)) => Some(change.change_id),
        _ => None,
    };
    recording.events.iter().filter_map(change).collect()
}

/// Sends a PING. False if the connection was closed before the answer.
async fn ping(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> bool {
    let mut answer = [0; 7];
    let exchange = async {
        stream.write_all(b"PING\r\n").await?;
        stream.read_exact(&mut answer).await
    };
    let answered = timeout(LIMIT, exchange).await.expect("an answer, or the end").is_ok();
    assert!(!answered || &answer == b"+PONG\r\n");
    answered
}

#[tokio::test(flavor = "multi_thread")]
async fn no_connection_is_refused_while_the_agent_is_replaced_and_its_subscribers_are_healed() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let host = Host::new(&gateway);
    let mut agent = host.start().await;
    let address = host.address();
    let done = Arc::new(AtomicBool::new(false));
    let (connected, answered) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let clients: Vec<_> = (0..50)
        .map(|_| {
            let (done, connected) = (done.clone(), connected.clone());
            let answered = answered.clone();
            tokio::spawn(async move {
                while !done.load(Ordering::Relaxed) {
                    let mut stream = TcpStream::connect(address).await.expect("never refused");
                    connected.fetch_add(1, Ordering::Relaxed);
                    // One that the ending agent had accepted is closed.
                    if ping(&mut stream).await {
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            })
        })
        .collect();
    // What the node is healed of must be known to every agent that follows.
    let url = format!("redis://{address}");
    let client = redis::Client::open(url).expect("a URL");
    let mut publisher = client.get_multiplexed_async_connection().await.expect("connected");
    let mut publish = redis::cmd("PUBLISH");
    // The queue is paused; account 77 changed.
    publish.arg(CHANNEL).arg(&b"\x05\x0b\0\x09\x09\x4d"[..]);
    publish.query_async::<i64>(&mut publisher).await.expect("answered");
    for _ in 0..5 {
        let mut pubsub = client.get_async_pubsub().await.expect("connected");
        pubsub.subscribe(CHANNEL).await.expect("subscribed");
        let mut messages = pubsub.into_on_message();
        let mut healing = Vec::new();
        while !healing.ends_with(&[77]) {
            let message = timeout(LIMIT, messages.next()).await.expect("in time").expect("healed");
            healing.extend_from_slice(message.get_payload_bytes());
        }
        let head = b"\xff\xff\x03\x08\x09\x06\x11\x06\x17\x06\x1c\x0b\x0c\xff\xff\x03\x00\x09";
        assert_eq!(healing[..head.len()], head[..]);
        let next = host.start().await;
        ends(&agent).await;
        // Its subscription has ended; those that it gets from now on begin with a healing.
        assert!(timeout(LIMIT, messages.next()).await.expect("closed").is_none());
        agent = next;
        let before = answered.load(Ordering::Relaxed);
        until(LIMIT, "connections to the new one", async || {
            answered.load(Ordering::Relaxed) >= before + 50
        })
        .await;
    }
    done.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("no connection was refused");
    }
    let closed = connected.load(Ordering::Relaxed) - answered.load(Ordering::Relaxed);
    assert!(closed <= 5 * 50, "{closed} connections were closed before they were answered");
    agent.signal("TERM");
    ends(&agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_port_goes_to_the_agent_that_takes_over() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let mut host = Host::new(&gateway);
    let admin = Port::free();
    let address = format!("127.0.0.1:{}", admin.number());
    host.flags = ["--admin", &address].map(str::to_owned).into();
    let answers = async || seen::admin(&address, "/livez").await.is_some();
    let first = host.start().await;
    until(LIMIT, "an admin port", answers).await;
    let second = host.start().await;
    ends(&first).await;
    until(LIMIT, "the admin port of the next agent", answers).await;
    // Another agent cannot have it, and says so: it has nobody to take over from.
    let other = ["agent", "--listen", "127.0.0.1:0", "--admin", &address];
    let other = Process::start("other", trunkline(other));
    let (status, _) = other.wait(LIMIT).await;
    assert_eq!(status.code(), Some(2), "{}", other.stderr());
    assert!(other.stderr().contains("--admin 127.0.0.1:"), "{}", other.stderr());
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_gateway_is_handed_over_and_kept_and_published_once_in_order() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    gateway.kill_9();
    let host = Host::new(&gateway);
    let first = host.start().await;
    host.publish(1..40).await;
    // Another process takes over,
    let second = host.start().await;
    ends(&first).await;
    host.publish(40..80).await;
    // is stopped, and started again.
    second.signal("TERM");
    ends(&second).await;
    let third = host.start().await;
    host.publish(80..120).await;
    gateway.restart().await;
    let expected: Vec<u64> = (1..120).collect();
    assert_eq!(changes(&gateway, 119).await, expected);
    // Nothing comes again with an orderly end.
    third.signal("TERM");
    ends(&third).await;
    let fourth = host.start().await;
    host.publish(120..121).await;
    let expected: Vec<u64> = (1..121).collect();
    assert_eq!(changes(&gateway, 120).await, expected);
    drop(fourth);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_process_was_killed_heals_the_other_nodes_when_it_starts_again() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let host = Host::new(&gateway);
    let first = host.start().await;
    let node = TestNode::connect(&gateway, "observer").await;
    let observer = node.subscribe(node.request()).await;
    observer.subscribed().await;
    host.publish(1..2).await;
    assert_eq!(observer.events(1, LIMIT).await.events.len(), 1);
    first.kill_9();
    let second = host.start().await;
    let recording = observer.events(7, LIMIT).await;
    let is_healing = |event: &trunkline_proto::v1::Event| match &event.kind {
        Some(Kind::CacheInvalidation(invalidation)) => invalidation.scope() == Scope::All,
        _ => false,
    };
    assert!(is_healing(&recording.events[1]), "{:?}", recording.events);
    // One that was stopped leaves nothing to heal.
    second.signal("TERM");
    ends(&second).await;
    let third = host.start().await;
    host.publish(2..3).await;
    let recording = observer.events(8, LIMIT).await;
    assert!(matches!(recording.events[7].kind, Some(Kind::MailboxChange(_))));
    drop(third);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_killed_agent_programs_are_healed_of_what_gateways_keep() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let host = Host::new(&gateway);
    let first = host.start().await;
    // A node of this host pauses the queue, and another one changes an account.
    let client = redis::Client::open(format!("redis://{}", host.address())).expect("a URL");
    let mut publisher = client.get_multiplexed_async_connection().await.expect("connected");
    let mut publish = redis::cmd("PUBLISH");
    publish.arg(CHANNEL).arg(&b"\x05\x0b"[..]);
    publish.query_async::<i64>(&mut publisher).await.expect("answered");
    let node = TestNode::connect(&gateway, "node").await;
    until(LIMIT, "an accepted event", async || {
        gateway
            .admin("/metrics")
            .await
            .contains("published_events_total{kind=\"queue_status\"} 1\n")
    })
    .await;
    first.kill_9();
    node.publish(vec![mailbox_change("77", 9)]).await.expect("published");
    let _second = host.start().await;
    let mut pubsub = client.get_async_pubsub().await.expect("connected");
    pubsub.subscribe(CHANNEL).await.expect("subscribed");
    let messages = pubsub.into_on_message();
    let mut messages = messages.map(|message| message.get_payload_bytes().to_vec());
    let mut paused = false;
    loop {
        let message = timeout(LIMIT, messages.next()).await.expect("in time").expect("a healing");
        paused |= message.ends_with(b"\x0b\x0c");
        if paused && message.ends_with(&[77]) {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_of_events_goes_on_where_the_agent_before_ended() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let host = Host::new(&gateway);
    let first = host.start().await;
    let node = TestNode::connect(&gateway, "node").await;
    // It is connected when an event arrives.
    let mut pubsub = redis::Client::open(format!("redis://{}", host.address()))
        .expect("a URL")
        .get_async_pubsub()
        .await
        .expect("connected");
    pubsub.subscribe(CHANNEL).await.expect("subscribed");
    let mut messages = pubsub.into_on_message();
    let paused = trunkline_proto::v1::QueueStatus { state: State::Paused.into() };
    until(LIMIT, "an event", async || {
        node.publish(vec![Kind::from(paused).into()]).await.expect("published");
        let message = timeout(Duration::from_millis(200), messages.next()).await;
        message.is_ok_and(|message| {
            message.expect("a message").get_payload_bytes().ends_with(b"\x03\x0b")
        })
    })
    .await;
    first.signal("TERM");
    ends(&first).await;
    // Nobody is there to hear it.
    let running = trunkline_proto::v1::QueueStatus { state: State::Running.into() };
    node.publish(vec![Kind::from(running).into()]).await.expect("published");
    let second = host.start().await;
    let client = redis::Client::open(format!("redis://{}", host.address())).expect("a URL");
    until(LIMIT, "a healing with what was published meanwhile", async || {
        let mut pubsub = client.get_async_pubsub().await.expect("connected");
        pubsub.subscribe(CHANNEL).await.expect("subscribed");
        let message = pubsub.into_on_message().next().await.expect("a healing");
        message.get_payload_bytes().ends_with(b"\x0a\x0c")
    })
    .await;
    assert!(!second.stderr().contains("were missed"), "{}", second.stderr());
}

/// A process that was started as systemd does it: with a listening socket.
struct Activated(Child);

impl Activated {
    fn start(socket: impl Into<OwnedFd>, gateway: &str) -> Activated {
        // The number of the process is known to a shell alone, before it becomes that process.
        let script = r#"exec env LISTEN_PID=$$ LISTEN_FDS=1 "$@" 3<&0 </dev/null"#;
        let child = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(binary())
            .args(["agent", "--node-id", "host-1", "--gateway", gateway])
            .stdin(Stdio::from(socket.into()))
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        Activated(child)
    }
}

impl Drop for Activated {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_systemd_passes_are_served_and_outlive_the_agent() {
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("agent.sock");
    let unix = std::os::unix::net::UnixListener::bind(&path).expect("bound");
    let address = tcp.local_addr().expect("an address");
    // Nobody listens at the gateway's address.
    for _ in 0..2 {
        // The agent is not there yet: systemd holds the connection.
        let mut stream = TcpStream::connect(address).await.expect("connected");
        let agent = Activated::start(tcp.try_clone().expect("a socket"), "127.0.0.1:1");
        assert!(ping(&mut stream).await);
        drop(agent);
    }
    let mut stream = UnixStream::connect(&path).await.expect("connected");
    let agent = Activated::start(unix.try_clone().expect("a socket"), "127.0.0.1:1");
    assert!(ping(&mut stream).await);
    drop(agent);
    // Its file is systemd's.
    assert!(path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn several_addresses_are_listened_on_and_the_file_of_a_socket_goes_with_the_agent() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("agent.sock");
    let port = Port::free();
    let listen = format!("127.0.0.1:{},unix:{}", port.number(), path.display());
    let arguments = ["agent", "--listen", &listen, "--socket-mode", "600"];
    let start = || {
        let gateway = ["--gateway".to_owned(), gateway.url()];
        let arguments = arguments.iter().map(|each| (*each).to_owned()).chain(gateway);
        Process::start("agent", trunkline(arguments))
    };
    let agent = start();
    answers(&path).await;
    let mut stream = TcpStream::connect(("127.0.0.1", port.number())).await.expect("connected");
    assert!(ping(&mut stream).await);
    // A file that a killed agent left is replaced.
    agent.kill_9();
    assert!(path.exists());
    let agent = start();
    answers(&path).await;
    agent.signal("TERM");
    ends(&agent).await;
    assert!(!path.exists());
}

async fn answers(path: &Path) {
    until(LIMIT, "an answer", async || match UnixStream::connect(path).await {
        Ok(mut stream) => ping(&mut stream).await,
        Err(_) => false,
    })
    .await;
}
