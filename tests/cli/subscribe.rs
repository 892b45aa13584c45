//! `trunkline subscribe`.

use std::time::Duration;

use serde_json::{Value, json};

use super::{binary, code, gateway, lines, subscribe, to};
use crate::support::{
    LIMIT, TestNode,
    events::{custom, mailbox_change, numbered, one_of_each, queue_refresh, with_id},
    gateway::trunkline,
    process::{Process, Program},
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
async fn the_loss_of_the_gateway_exits_with_69() {
    let gateway = gateway().await;
    let killed = subscribe(&gateway, []).await;
    gateway.kill_9();
    let (status, _) = killed.wait(LIMIT).await;
    assert_eq!(status.code(), Some(69), "{}", killed.stderr());
    gateway.restart().await;
    let drained = subscribe(&gateway, []).await;
    gateway.signal_term();
    let (status, _) = drained.wait(LIMIT).await;
    assert_eq!(status.code(), Some(69), "{}", drained.stderr());
    assert!(drained.stderr().contains("\"draining\""), "{}", drained.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn gaps_are_printed_to_standard_error() {
    let options = crate::support::GatewayOptions::embedded()
        .set("log", json!({ "maxEvents": 10 }))
        .set("history", json!({ "maxFrames": 10 }));
    let gateway = crate::support::Gateway::start(options).await;
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
