//! The client of clients/python, run by a real interpreter: the API works outside of Rust.

mod package;

use std::time::Duration;

use super::{
    Pair,
    support::{
        self, Gateway, GatewayOptions, LIMIT, RedisOptions, RedisServer, TestNode, events,
        gateway::Ready,
        process::{Process, Program},
        tools,
        wait::eventually,
    },
};
use serde_json::{Value, json};
use trunkline_proto::v1::GetStatusRequest;

/// `mail_node.py` as the node `python`, with these gateways.
fn mail_node(gateways: &[&Gateway], args: &[&str]) -> Program {
    let mut all = vec!["--node-id".into(), "python".into()];
    for gateway in gateways {
        all.extend(["--gateway".into(), gateway.address()]);
    }
    all.extend(args.iter().map(|arg| (*arg).to_owned()));
    tools::python_example("mail_node.py", all)
}

/// A running `mail_node.py subscribe`.
struct Subscriber(Process);

impl Subscriber {
    /// Starts it, and waits until its stream is open.
    async fn start(gateways: &[&Gateway], args: &[&str]) -> Subscriber {
        let args: Vec<_> = ["subscribe"].into_iter().chain(args.iter().copied()).collect();
        let subscriber = Subscriber(Process::start("mail_node.py", mail_node(gateways, &args)));
        subscriber.streams(1).await;
        subscriber
    }

    /// The lines that it has printed so far, each a JSON object.
    fn lines(&self) -> Vec<Value> {
        let text = self.0.stdout();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
    }

    /// The values under a key, in order.
    fn all(&self, key: &str) -> Vec<Value> {
        self.lines().iter().filter_map(|line| line.get(key).cloned()).collect()
    }

    fn event_ids(&self) -> Vec<String> {
        let id = |event: &Value| event["eventId"].as_str().expect("an id").to_owned();
        self.all("event").iter().map(id).collect()
    }

    /// Waits until it has opened this number of streams, and returns `subscribed` of the last one.
    async fn streams(&self, count: usize) -> Value {
        self.wait(&format!("{count} streams"), || self.all("subscribed").get(count - 1).cloned())
            .await
    }

    /// Waits for an event, and returns the ids of all events so far.
    async fn event(&self, id: &str) -> Vec<String> {
        self.wait(id, || Some(self.event_ids()).filter(|ids| ids.iter().any(|seen| seen == id)))
            .await
    }

    async fn wait<T>(&self, what: &str, look: impl Fn() -> Option<T>) -> T {
        eventually(LIMIT, what, async || {
            assert!(self.0.ended().is_none(), "the node has ended: {}", self.0.stderr());
            look()
        })
        .await
    }

    /// Of two gateways, the one that serves its first stream, and the other one: it tries them in
    /// random order.
    async fn gateways<'a>(&self, pair: [&'a Gateway; 2]) -> [&'a Gateway; 2] {
        let [first, second] = pair;
        let status = first.client().await.get_status(GetStatusRequest {}).await.expect("a status");
        if self.streams(1).await["gatewayId"] == status.into_inner().gateway_id.as_str() {
            pair
        } else {
            [second, first]
        }
    }

    /// Terminates it, and asserts that it exits with success.
    async fn stop(self) {
        self.0.signal("TERM");
        let (status, _) = self.0.wait(LIMIT).await;
        assert!(status.success(), "{}", self.0.stderr());
    }
}

fn ids(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn python_and_rust_nodes_receive_from_each_other() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let rust = TestNode::connect(&gateway, "rust").await;
    let collector = rust.subscribe(rust.request()).await;
    let python = Subscriber::start(&[&gateway], &[]).await;

    // From Rust to Python: every kind.
    let sent: Vec<_> = events::one_of_each("a1").into_iter().zip(ids("e", 11)).collect();
    let sent = sent.into_iter().map(|(event, id)| events::with_id(id, event)).collect();
    rust.publish(sent).await.expect("published");
    assert_eq!(python.event("e-10").await, ids("e", 11));
    let lines = python.lines();
    assert!(lines.iter().skip(1).all(|line| line["event"]["source"] == "rust"), "{lines:?}");
    let duties: Vec<_> = lines.iter().filter_map(|line| line["duty"].as_str()).collect();
    assert_eq!(duties[0], "wake the IDLE and JMAP sessions of account a1");
    assert_eq!(duties[10], "pass it to the handler of com.example.invoice_paid");
    assert_eq!(lines[5]["event"]["blockedIp"]["address"], "192.0.2.7");
    assert_eq!(lines[11]["event"]["custom"]["payload"]["value"], "7s");

    // From Python to Rust: several events in one request, as typed fields.
    let texts = [
        json!({"eventId": "p-0", "mailboxChange": {"accountId": "a1", "changeId": 7,
            "changedTypes": ["CHANGED_TYPE_EMAIL"]}}),
        json!({"eventId": "p-1", "queueRefresh": {}}),
    ]
    .map(|event| event.to_string());
    let args = ["publish", &texts[0], &texts[1]];
    let output = mail_node(&[&gateway], &args).run(LIMIT).await.success();
    assert_eq!(output.lines().count(), 2, "a position each: {output}");
    let recording = collector.event("p-1", LIMIT).await;
    assert_eq!(recording.event_ids, ids("p", 2));
    assert!(recording.events.iter().all(|event| event.source == "python"));
    let Some(trunkline_proto::v1::event::Kind::MailboxChange(change)) = &recording.events[0].kind
    else {
        panic!("{:?}", recording.events[0]);
    };
    assert_eq!((change.account_id.as_str(), change.change_id), ("a1", 7));
    assert_eq!(change.changed_types, [1]);
    // A node does not receive its own events.
    assert_eq!(python.event_ids().len(), 11);
    python.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_request_is_not_retried() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let output = mail_node(&[&gateway], &["publish", r#"{"mailboxChange": {}}"#]).run(LIMIT).await;
    assert_eq!(output.status.code(), Some(1));
    let stderr = output.stderr;
    assert!(stderr.contains("INVALID_ARGUMENT: events[0].mailbox_change.account_id"), "{stderr}");
    assert!(!stderr.contains("retrying to publish"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_node_resumes_after_a_restart_of_its_gateway() {
    let Pair { redis: _redis, first: own, second: other } = Pair::start().await;
    let publisher = TestNode::connect(&other, "publisher").await;
    let python = Subscriber::start(&[&own], &[]).await;
    publisher.publish(events::numbered("before", 50, 7)).await.expect("published");
    python.event("before-49").await;

    own.kill_9();
    publisher.publish(events::numbered("while", 50, 7)).await.expect("published");
    own.restart().await;
    assert_eq!(python.streams(2).await["resumed"], true);
    publisher.publish(events::numbered("after", 50, 7)).await.expect("published");
    let expected = [ids("before", 50), ids("while", 50), ids("after", 50)].concat();
    assert_eq!(python.event("after-49").await, expected, "all of them, once, in order");
    assert!(python.all("gap").is_empty());
    python.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_node_moves_to_another_gateway_when_its_own_drains() {
    let pair = Pair::with(|options| options.set("drain", json!({"spread": "100ms"}))).await;
    let python = Subscriber::start(&[&pair.first, &pair.second], &[]).await;
    let [own, other] = python.gateways([&pair.first, &pair.second]).await;
    let publisher = TestNode::connect(other, "publisher").await;
    let first = python.streams(1).await["gatewayId"].clone();
    publisher.publish(events::numbered("before", 20, 7)).await.expect("published");
    python.event("before-19").await;

    own.signal_term();
    publisher.publish(events::numbered("while", 20, 7)).await.expect("published");
    let second = python.streams(2).await;
    assert_eq!(second["resumed"], true);
    assert_ne!(second["gatewayId"], first);
    assert!(own.ends(LIMIT).await.status.success());
    publisher.publish(events::numbered("after", 20, 7)).await.expect("published");
    let expected = [ids("before", 20), ids("while", 20), ids("after", 20)].concat();
    assert_eq!(python.event("after-19").await, expected);
    python.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_node_leaves_a_gateway_that_sends_no_heartbeats() {
    let pair = Pair::start().await;
    let all = [&pair.first, &pair.second];
    let program = mail_node(&all, &["--heartbeat", "1", "subscribe"]);
    let python = Subscriber(Process::start("mail_node.py", program));
    let [own, other] = python.gateways(all).await;
    let publisher = TestNode::connect(other, "publisher").await;
    publisher.publish(events::numbered("before", 5, 1)).await.expect("published");
    python.event("before-4").await;

    // The connection stays open without any message.
    own.pause().await;
    publisher.publish(events::numbered("while", 5, 1)).await.expect("published");
    assert_eq!(python.streams(2).await["resumed"], true);
    assert_eq!(python.event("while-4").await, [ids("before", 5), ids("while", 5)].concat());
    assert!(python.0.stderr().contains("nothing received for 2 s"), "{}", python.0.stderr());
    python.stop().await;
    own.resume();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_node_gets_a_gap_for_events_that_redis_has_lost() {
    let Pair { redis, first: own, second: other } = Pair::start().await;
    let publisher = TestNode::connect(&other, "publisher").await;
    let python = Subscriber::start(&[&own], &[]).await;
    publisher.publish(events::numbered("before", 5, 1)).await.expect("published");
    python.event("before-4").await;

    own.kill_9();
    publisher.publish(events::numbered("lost", 5, 1)).await.expect("published");
    // The gateway that published the events cannot restore them either.
    other.kill_9();
    redis.cli(&["FLUSHALL"]).await;
    tokio::join!(own.restart(), other.restart());
    assert_ne!(python.streams(2).await["resumed"], true);
    let gap = python.wait("a gap", || python.all("gap").first().cloned()).await;
    assert_eq!(gap["action"], "GAP_ACTION_RESYNC");
    assert_eq!(gap["reason"], "GAP_REASON_UNKNOWN_EPOCH", "{gap}");

    let publisher = TestNode::connect(&other, "publisher").await;
    publisher.publish(events::numbered("after", 5, 1)).await.expect("published");
    let expected = [ids("before", 5), ids("after", 5)].concat();
    assert_eq!(python.event("after-4").await, expected);
    assert_eq!(python.all("gap").len(), 1);
    python.stop().await;
}

/// Its gateway has lost the event and the request, and accepts a retry as a new one.
#[tokio::test(flavor = "multi_thread")]
async fn a_python_node_handles_an_event_that_is_accepted_again_once() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let python = Subscriber::start(&[&gateway], &[]).await;
    let request = uuid::Uuid::new_v4().to_string();
    let batch = || vec![events::mailbox_change("a1", 1), events::mailbox_change("a1", 2)];
    let publisher = TestNode::connect(&gateway, "publisher").await;
    publisher.publish_as(&request, batch()).await.expect("published");
    python.wait("two events", || (python.event_ids().len() == 2).then_some(())).await;
    gateway.restart().await;
    python.streams(2).await;
    let publisher = TestNode::connect(&gateway, "publisher").await;
    publisher.publish_as(&request, batch()).await.expect("published");
    publisher.publish(events::numbered("last", 1, 1)).await.expect("published");
    assert_eq!(python.event("last-0").await.len(), 3);
    python.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_node_resumes_from_the_token_file_of_the_process_before() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let publisher = TestNode::connect(&gateway, "publisher").await;
    let folder = support::folder::new();
    let file = folder.path().join("token").display().to_string();
    let args = ["--resume-file", file.as_str()];

    let python = Subscriber::start(&[&gateway], &args).await;
    publisher.publish(events::numbered("before", 5, 1)).await.expect("published");
    python.event("before-4").await;
    python.stop().await;
    publisher.publish(events::numbered("between", 5, 1)).await.expect("published");

    let python = Subscriber::start(&[&gateway], &args).await;
    assert_eq!(python.event("between-4").await, ids("between", 5));
    assert_eq!(python.streams(1).await["resumed"], true);
    python.stop().await;

    // A malformed token does not keep a node from its events; a gap reports that some may be
    // missing.
    std::fs::write(&file, "no token").expect("a file");
    let python = Subscriber::start(&[&gateway], &args).await;
    assert_eq!(python.all("gap")[0]["reason"], "GAP_REASON_UNKNOWN_EPOCH");
    python.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_node_publishes_once_however_often_it_retries() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    // The gateway answers soon, so that the node has to retry.
    let options = || {
        let options = GatewayOptions::redis(&redis.url(), "once");
        options.set_bus("timeout", "200ms").ready(Ready::Listening)
    };
    let gateway = Gateway::start(options()).await;
    gateway.ready(Ready::Serving).await;
    let subscriber = TestNode::connect(&gateway, "subscriber").await;
    let collector = subscriber.subscribe(subscriber.request()).await;

    // While Redis is paused, requests wait in the connection and are accepted later without an
    // answer.
    redis.pause().await;
    let event = json!({"eventId": "once", "queueRefresh": {}}).to_string();
    let publishing = Process::start("publish", mail_node(&[&gateway], &["publish", &event]));
    let tries = |count: usize| {
        let publishing = &publishing;
        async move {
            eventually(LIMIT, "attempts", async || {
                let stderr = publishing.stderr();
                (stderr.matches("retrying to publish in").count() >= count).then_some(stderr)
            })
            .await
        }
    };
    let stderr = tries(2).await;
    redis.resume();
    let (status, _) = publishing.wait(LIMIT).await;
    assert!(status.success(), "{}", publishing.stderr());
    assert_eq!(publishing.stdout().lines().count(), 1);

    for line in stderr.lines().filter(|line| line.contains("retrying to publish in")) {
        assert!(line.contains("UNAVAILABLE"), "{line}");
        let wait = line
            .rsplit_once("retrying to publish in ")
            .and_then(|(_, rest)| rest.strip_suffix(" s"));
        let wait: f64 = wait.expect("a wait").parse().expect("seconds");
        // The gateway asks for half a second (RetryInfo).
        assert!((0.5..=2.0).contains(&wait), "{line}");
    }
    collector.event("once", LIMIT).await;
    assert_received_once(&gateway, &collector).await;
}

/// Asserts that the event `once` was received once. A repetition would come before a later event.
async fn assert_received_once(gateway: &Gateway, collector: &support::Collector) {
    let other = TestNode::connect(gateway, "other").await;
    let last = || vec![events::with_id("last", events::queue_refresh())];
    eventually(Duration::from_secs(10), "a last event", async || other.publish(last()).await.ok())
        .await;
    let recording = collector.event("last", LIMIT).await;
    assert_eq!(recording.event_ids.iter().filter(|id| *id == "once").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_program_without_an_event_loop_watches_and_publishes() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let rust = TestNode::connect(&gateway, "rust").await;
    let collector = rust.subscribe(rust.request()).await;
    let args = ["--node-id", "python", "--gateway", &gateway.address(), "alice"];
    let program = tools::python_example("blocking_node.py", args).talks();
    let python = Process::start("blocking_node.py", program);
    assert_eq!(python.stdout_lines(1, LIMIT).await, ["watching"]);
    rust.publish(vec![events::mailbox_change("bob", 1), events::mailbox_change("alice", 2)])
        .await
        .expect("published");
    assert_eq!(python.stdout_lines(2, LIMIT).await[1], "alice changed");
    python.write_line("carol");
    assert_eq!(python.stdout_lines(3, LIMIT).await[2], "carol published");
    collector.events(1, LIMIT).await;
    python.end_input();
    let (status, _) = python.wait(LIMIT).await;
    assert!(status.success() && !python.stderr().contains("Traceback"), "{}", python.stderr());
}

/// Without Python or its packages the tests fail and say what to do; they are not skipped.
#[test]
fn a_missing_interpreter_fails_the_tests_and_says_how_to_get_one() {
    let test = "python::a_refused_request_is_not_retried";
    let output = std::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", test])
        .env("TRUNKLINE_TEST_PYTHON", "/bin/false")
        .output()
        .expect("this test, run again");
    assert!(!output.status.success());
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("./test installs") && stdout.contains("grpcio-tools"), "{stdout}");
}
