//! `trunkline subscribe`.

use std::time::Duration;

use prost_types::Any;
use serde_json::{Value, json};
use trunkline_proto::v1::{CustomEvent, Event};

use super::{binary, code, gateway, lines, subscribe, to};
use crate::support::{
    Gateway, GatewayOptions, LIMIT, Ready, RedisOptions, RedisServer, TestNode,
    events::{custom, mailbox_change, numbered, one_of_each, queue_refresh, with_id},
    gateway::trunkline,
    process::{Process, Program},
    shared, until,
};

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_passes_unchanged_from_subscribe_to_publish_through_a_pipe() {
    let (one, other) = tokio::join!(gateway(), gateway());
    let pipe = format!(
        "\"$0\" subscribe --heartbeats --max-events 11 --gateway {} | \
         \"$0\" publish --node-id pipe --gateway {} -",
        one.url(),
        other.url()
    );
    let other_node = TestNode::connect(&other, "observer").await;
    let observed = other_node.subscribe(other_node.request()).await;
    let pipe = Process::start("pipe", Program::new("sh", ["-c", &pipe, &binary()]));
    pipe.stderr_has("subscriptionId", LIMIT).await;

    let publisher = TestNode::connect(&one, "publisher").await;
    let direct = TestNode::connect(&one, "direct").await;
    let direct = direct.subscribe(direct.request()).await;
    publisher.publish(one_of_each("a1")).await.expect("published");
    let (status, _) = pipe.wait(LIMIT).await;
    assert!(status.success(), "{status}: {}", pipe.stderr());
    let expected = direct.events(11, LIMIT).await.events;
    let mut found = observed.events(11, LIMIT).await.events;
    for event in &mut found {
        // Only the source differs; ids and times are unchanged.
        assert_eq!(event.source, "pipe");
        event.source = "publisher".into();
    }
    assert_eq!(found, expected);
}

/// Payloads whose JSON alone does not give them back, and others.
fn payloads() -> Vec<Event> {
    let known = |name: &str| format!("type.googleapis.com/google.protobuf.{name}");
    let field = |name: u8, content: &[u8]| {
        let length = |bytes: &[u8]| u8::try_from(bytes.len()).expect("a short field");
        let value = [&[0x12, length(content)], content].concat();
        [&[0x0a, 3 + length(&value), 0x0a, 1, name], &value[..]].concat()
    };
    let (text, number) = ([0x1a, 1, b'x'], [&[0x11][..], &1.5f64.to_le_bytes()].concat());
    let all = [
        (known("Struct"), [field(b'a', &text), field(b'b', &number)].concat()),
        // The same with its fields the other way round.
        (known("Struct"), [field(b'b', &number), field(b'a', &text)].concat()),
        // NaN, which JSON does not have.
        (known("Value"), [&[0x11][..], &f64::NAN.to_le_bytes()].concat()),
        (known("BytesValue"), vec![0x0a, 2, 0xff, 0]),
        // A field that the type does not have.
        (known("Duration"), vec![0x08, 7, 0x58, 1]),
        (known("Struct"), vec![0xff; 3]),
        ("example.org/x.Unknown".to_owned(), vec![0, 0xff]),
        (known("Any"), [&[0x0a, 3, b'x', b'/', b'y', 0x12, 1][..], &[7]].concat()),
    ];
    let events = all.into_iter().map(|(type_url, value)| {
        let labels = (0..9).map(|nth| (format!("label-{nth}"), nth.to_string())).collect();
        let payload = Some(Any { type_url, value });
        CustomEvent { r#type: "com.example.x".into(), labels, payload }.into()
    });
    events.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_goes_back_through_publish_and_is_the_same_line_again() {
    let (one, other) = tokio::join!(gateway(), gateway());
    let events = [one_of_each("a1"), payloads()].concat();
    let count = events.len();
    let first = subscribe(&one, []).await;
    // Whole responses, as --all prints them, go back too.
    let whole = Process::start("subscribe", to(&one, ["subscribe", "--all"]));
    whole.stdout_lines(1, LIMIT).await;
    let (second, direct) = (subscribe(&other, []).await, TestNode::connect(&other, "direct").await);
    let direct = direct.subscribe(direct.request()).await;
    TestNode::connect(&one, "n1").await.publish(events.clone()).await.expect("published");

    let lines = first.stdout_lines(count, LIMIT).await;
    let mut program = to(&other, ["publish", "--node-id", "n1", "-"]);
    program = program.stdin(lines.join("\n") + "\n");
    assert_eq!(program.run(LIMIT).await.success(), "");
    assert_eq!(second.stdout_lines(count, LIMIT).await, lines);
    // Byte for byte also where no JSON was in between.
    let content = |event: &Event| event.kind.clone();
    let arrived = direct.events(count, LIMIT).await.events;
    assert!(arrived.iter().map(content).eq(events.iter().map(content)));

    until(LIMIT, "all events in whole responses", async || {
        whole.stdout().matches("\"eventId\"").count() >= count
    })
    .await;
    let again = to(&other, ["publish", "--node-id", "n1", "-"]).stdin(whole.stdout());
    assert_eq!(again.run(LIMIT).await.success(), "");
    let repeated = direct.events(2 * count, LIMIT).await.events;
    assert!(repeated[count..].iter().eq(&repeated[..count]));

    // So do events and responses over several lines.
    for all in [&[][..], &["--all"]] {
        let events = count.to_string();
        let args = ["subscribe", "--pretty", "--start", "oldest", "--max-events", &events];
        let mut pretty = to(&one, args);
        pretty.args.extend(all.iter().map(|&arg| arg.to_owned()));
        let printed = pretty.run(LIMIT).await.success();
        assert!(printed.lines().count() > 5 * count, "{printed}");
        let again = to(&other, ["publish", "--node-id", "n1", "-"]).stdin(printed);
        assert_eq!(again.run(LIMIT).await.success(), "");
    }
    let repeated = direct.events(4 * count, LIMIT).await.events;
    for part in repeated.chunks(count) {
        assert!(part.iter().eq(&repeated[..count]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_is_one_line_of_json() {
    let gateway = gateway().await;
    let subscriber = subscribe(&gateway, []).await;
    let node = TestNode::connect(&gateway, "n1").await;
    let event = with_id("line\nbreak", mailbox_change("a\u{1f600}", 7));
    node.publish(vec![event, queue_refresh()]).await.expect("published");
    let seen = lines(&subscriber, 2).await;
    assert_eq!(seen[0]["eventId"], "line\nbreak");
    assert_eq!(seen[0]["mailboxChange"]["accountId"], "a\u{1f600}");
    assert_eq!(seen[0]["source"], "n1");
    assert!(seen[1]["publishTime"].is_string() && seen[1]["eventId"].is_string(), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_comes_again_is_printed_once() {
    let gateway = gateway().await;
    let subscriber = subscribe(&gateway, []).await;
    for source in ["n1", "n1", "n2"] {
        let node = TestNode::connect(&gateway, source).await;
        node.publish(vec![with_id("e", queue_refresh())]).await.expect("published");
    }
    // The same id of another node is another event.
    let events = lines(&subscriber, 2).await;
    let sources: Vec<&Value> = events.iter().map(|event| &event["source"]).collect();
    assert_eq!(sources, ["n1", "n2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_events_that_match_the_filter_are_printed() {
    let gateway = gateway().await;
    let filter = [
        "--kind",
        "mailbox-change",
        "--kind",
        "20",
        "--account",
        "a1",
        "--custom-type",
        "com.example.*",
    ];
    let subscriber = subscribe(&gateway, filter).await;
    let node = TestNode::connect(&gateway, "n1").await;
    let events = vec![
        mailbox_change("a2", 1),
        queue_refresh(),
        custom("org.example.x"),
        with_id("kind", mailbox_change("a1", 2)),
        with_id("type", custom("com.example.x")),
    ];
    node.publish(events).await.expect("published");
    let ids: Vec<Value> =
        lines(&subscriber, 2).await.iter().map(|event| event["eventId"].clone()).collect();
    assert_eq!(ids, ["kind", "type"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_after_the_given_events_or_time() {
    let gateway = gateway().await;
    let subscriber = subscribe(&gateway, ["--max-events", "3"]).await;
    let node = TestNode::connect(&gateway, "n1").await;
    node.publish(numbered("e", 10, 1)).await.expect("published");
    let (status, _) = subscriber.wait(LIMIT).await;
    assert!(status.success(), "{status}");
    assert_eq!(subscriber.stdout().lines().count(), 3);

    let output =
        to(&gateway, ["subscribe", "--for", "1200ms", "--start", "oldest"]).run(LIMIT).await;
    assert!(output.took >= Duration::from_millis(1200), "{:?}", output.took);
    assert_eq!(output.success().lines().count(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_printed_token_resumes_the_stream() {
    let gateway = gateway().await;
    let subscriber =
        Process::start("subscribe", to(&gateway, ["subscribe", "--all", "--max-events", "2"]));
    subscriber.stdout_lines(1, LIMIT).await;
    let node = TestNode::connect(&gateway, "n1").await;
    node.publish(numbered("e", 2, 1)).await.expect("published");
    subscriber.wait(LIMIT).await;
    let printed = subscriber.stdout();
    let responses: Vec<Value> =
        printed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(responses[0]["subscribed"].is_object(), "{printed}");
    let token =
        responses.last().and_then(|last| last["events"]["resumeToken"].as_str()).expect("a token");
    node.publish(numbered("f", 2, 1)).await.expect("published");
    let rest = to(&gateway, ["subscribe", "--resume", token, "--max-events", "2"])
        .run(LIMIT)
        .await
        .success();
    let ids: Vec<Value> = rest
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["eventId"].clone())
        .collect();
    assert_eq!(ids, ["f-0", "f-1"]);
    // A malformed token is refused.
    let output = to(&gateway, ["subscribe", "--resume", "AAAA"]).run(LIMIT).await;
    assert_eq!(code(&output), 3, "{}", output.stderr);
    assert!(output.stderr.contains("resume_token"), "{}", output.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupt_and_terminate_end_it_with_success() {
    let gateway = gateway().await;
    for signal in ["INT", "TERM"] {
        let subscriber = subscribe(&gateway, []).await;
        subscriber.signal(signal);
        let (status, _) = subscriber.wait(LIMIT).await;
        assert_eq!(status.code(), Some(0), "{signal}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_silently_when_its_reader_closes_the_pipe() {
    let gateway = gateway().await;
    let script = "(\"$0\" subscribe --start oldest; echo \"code $?\" >&2) | head -1";
    let shell =
        Program::new("sh", ["-c", script, &binary()]).env("TRUNKLINE_GATEWAY", gateway.url());
    // There is only one event, so that no later write can fail.
    let node = TestNode::connect(&gateway, "n1").await;
    node.publish(vec![queue_refresh()]).await.expect("published");
    let output = shell.run(LIMIT).await;
    assert_eq!(output.stderr, "code 0\n");
    assert!(output.stdout.contains("queueRefresh"), "{}", output.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_once_the_loss_of_the_gateway_exits_with_69() {
    let gateway = gateway().await;
    let killed = subscribe(&gateway, ["--once"]).await;
    gateway.kill_9();
    let (status, _) = killed.wait(LIMIT).await;
    assert_eq!(status.code(), Some(69), "{}", killed.stderr());
    gateway.restart().await;
    let drained = subscribe(&gateway, ["--once"]).await;
    gateway.signal_term();
    let (status, _) = drained.wait(LIMIT).await;
    assert_eq!(status.code(), Some(69), "{}", drained.stderr());
    assert!(drained.stderr().contains("\"draining\""), "{}", drained.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_resumes_after_a_crash_and_after_a_drain_and_repeats_nothing() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    let options = || GatewayOptions::redis(&redis.url(), &prefix);
    let (one, two) = tokio::join!(Gateway::start(options()), Gateway::start(options()));
    let both = format!("{},{}", one.url(), two.url());
    let subscriber =
        Process::start("subscribe", trunkline(["subscribe", "--gateway", &both, "--heartbeats"]));
    subscriber.stderr_has("subscriptionId", LIMIT).await;
    let publish = async |through: &Gateway, name: &str| {
        let node = TestNode::connect(through, "n1").await;
        node.publish(numbered(name, 3, 1)).await.expect("published");
    };
    publish(&two, "before").await;
    lines(&subscriber, 3).await;
    one.kill_9();
    publish(&two, "crash").await;
    lines(&subscriber, 6).await;
    subscriber.stderr_has("\"reconnecting\"", LIMIT).await;
    one.restart().await;
    one.ready(Ready::Serving).await;
    two.signal_term();
    subscriber.stderr_has("\"draining\"", LIMIT).await;
    publish(&one, "drain").await;
    lines(&subscriber, 9).await;
    // A signal ends it with success, whatever it is waiting for.
    one.kill_9();
    until(LIMIT, "the third loss", async || {
        subscriber.stderr().matches("\"reconnecting\"").count() >= 3
    })
    .await;
    subscriber.signal("INT");
    let (status, _) = subscriber.wait(LIMIT).await;
    assert_eq!(status.code(), Some(0), "{}", subscriber.stderr());
    let ids: Vec<_> = subscriber
        .stdout()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["eventId"].clone())
        .collect();
    let expected =
        ["before", "crash", "drain"].map(|name| [0, 1, 2].map(|nth| format!("{name}-{nth}")));
    assert_eq!(ids, expected.concat());
    assert!(!subscriber.stderr().contains("\"gap\""), "{}", subscriber.stderr());
    for line in subscriber.stderr().lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_after_a_gap_and_counts_events_over_all_streams() {
    // An embedded bus forgets everything when its gateway is killed.
    let gateway = gateway().await;
    let limited = to(&gateway, ["subscribe", "--max-events", "5", "--all"]);
    let subscriber = Process::start("subscribe", limited);
    subscriber.stdout_lines(1, LIMIT).await;
    let publish = async |name: &str, count: usize| {
        let node = TestNode::connect(&gateway, "n1").await;
        node.publish(numbered(name, count, 1)).await.expect("published");
    };
    publish("before", 2).await;
    until(LIMIT, "the first events", async || subscriber.stdout().contains("before-1")).await;
    gateway.kill_9();
    gateway.restart().await;
    until(LIMIT, "the gap", async || subscriber.stdout().contains("GAP_REASON_")).await;
    publish("after", 9).await;
    let (status, _) = subscriber.wait(LIMIT).await;
    assert!(status.success(), "{}", subscriber.stderr());
    let printed = subscriber.stdout();
    let ids: Vec<_> = printed.matches("before-").chain(printed.matches("after-")).collect();
    assert_eq!(ids.len(), 5, "{printed}");
    assert!(printed.contains("after-2") && !printed.contains("after-3"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn gaps_are_printed_to_standard_error() {
    let options = GatewayOptions::embedded()
        .set("log", json!({ "maxEvents": 10 }))
        .set("history", json!({ "maxFrames": 10 }));
    let gateway = Gateway::start(options).await;
    let first = to(&gateway, ["subscribe", "--all", "--for", "1s"]).run(LIMIT).await.success();
    let first: Value = serde_json::from_str(first.lines().next().expect("a line")).expect("JSON");
    let token = first["subscribed"]["resumeToken"].as_str().expect("a token");
    let node = TestNode::connect(&gateway, "n1").await;
    for event in numbered("e", 50, 1) {
        node.publish(vec![event]).await.expect("published");
    }
    let output = to(&gateway, ["subscribe", "--resume", token, "--for", "1s"]).run(LIMIT).await;
    let gap: Value =
        serde_json::from_str(output.stderr.lines().next().expect("a gap")).expect("JSON");
    assert_eq!(gap["gap"]["reason"], "GAP_REASON_HISTORY_EXPIRED");
    let missed: usize =
        gap["gap"]["missedEvents"].as_str().and_then(|n| n.parse().ok()).expect("a count");
    assert_eq!(missed + output.success().lines().count(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_prints_the_filter_decision_for_every_event() {
    let gateway = gateway().await;
    let text = subscribe(&gateway, ["--account", "a1", "--explain"]).await;
    let json = subscribe(&gateway, ["--account", "a1", "--explain", "--json"]).await;
    let node = TestNode::connect(&gateway, "n1").await;
    let events =
        vec![with_id("mine", mailbox_change("a1", 1)), with_id("other", mailbox_change("a2", 1))];
    node.publish(events).await.expect("published");
    let seen = lines(&json, 2).await;
    assert_eq!((&seen[0]["eventId"], &seen[0]["delivered"]), (&json!("mine"), &json!(true)));
    assert_eq!(seen[1]["exclusions"], json!(["EXCLUSION_ACCOUNT"]));
    let seen = text.stdout_lines(2, LIMIT).await;
    assert!(seen[0].starts_with("delivered mailbox-change account=a1 source=n1 id=mine at="));
    assert!(seen[1].starts_with("withheld  mailbox-change account=a2 source=n1 id=other at="));
    assert!(seen[1].ends_with(": its account is not in the filter"), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_explain_command_needs_no_gateway() {
    let event = r#"{"source": "n1", "target": {"roles": ["mta"]}, "queueRefresh": {}}"#;
    let explain = async |args: &[&str]| {
        let args = ["explain", "--node-id", "n1"].iter().chain(args).copied();
        trunkline(args).run(LIMIT).await
    };
    let decision = explain(&["--event", event]).await.success();
    assert!(
        decision.contains("the node published it itself") && decision.contains("its target names")
    );
    let decision = explain(&["--role", "mta", "--include-own", "--event", event]).await.success();
    assert!(decision.starts_with("delivered queue-refresh source=n1"), "{decision}");
    let wrong = explain(&["--event", r#"{"queueRefreshed": {}}"#]).await;
    assert_eq!(code(&wrong), 3);
    assert!(wrong.stderr.contains("queueRefreshed"), "{}", wrong.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_accounts_of_a_file_are_followed_as_it_changes() {
    let gateway = gateway().await;
    let folder = crate::support::folder::new();
    let file = folder.path().join("accounts");
    std::fs::write(&file, "a\n\n b \n").expect("a file");
    let path = file.display().to_string();
    let subscriber = subscribe(&gateway, ["--follow-interest", &path]).await;
    let node = TestNode::connect(&gateway, "publisher").await;
    let publish = async |id: &str, account: &str| {
        let event = with_id(id, mailbox_change(account, 1));
        node.publish(vec![event]).await.expect("published");
    };
    publish("1", "b").await;
    publish("not-2", "c").await;
    std::fs::write(&file, "c\nb\n").expect("a file");
    subscriber.stderr_has("{\"interest\":{\"accounts\":2}}", LIMIT).await;
    publish("3", "c").await;
    publish("not-4", "a").await;
    publish("5", "b").await;
    let ids: Vec<_> = lines(&subscriber, 3).await.iter().map(|e| e["eventId"].clone()).collect();
    assert_eq!(ids, ["1", "3", "5"]);

    // Without a file there is nothing to follow.
    std::fs::remove_file(&file).expect("it is ours");
    let output = to(&gateway, ["subscribe", "--follow-interest", &path]).run(LIMIT).await;
    assert_eq!(code(&output), 3, "{}", output.stderr);
    assert!(output.stderr.contains("--follow-interest"), "{}", output.stderr);
}
