//! `trunkline publish`.

use std::time::Duration;

use serde_json::{Value, json};

use super::{code, gateway, lines, subscribe, to};
use crate::support::{
    Gateway, GatewayOptions, LIMIT, RedisOptions, RedisServer, TestNode, folder, process::Process,
    shared,
};

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_can_be_published_by_flags() {
    let gateway = gateway().await;
    let subscriber = subscribe(&gateway, []).await;
    let cases: [(&[&str], Value); 14] = [
        (
            &["mailbox-change", "--account", "a1", "--change-id", "7", "--types", "email,mailbox"],
            json!({ "mailboxChange": { "accountId": "a1", "changeId": "7",
                "changedTypes": ["CHANGED_TYPE_EMAIL", "CHANGED_TYPE_MAILBOX"] } }),
        ),
        (
            &["email-delivery", "--account", "a1", "--email", "m1", "--change-id", "8"],
            json!({ "emailDelivery": { "accountId": "a1", "emailId": "m1", "changeId": "8" } }),
        ),
        (
            &["calendar-alert", "--account", "a1", "--event", "e1", "--uid", "u1", "--alert", "1"],
            json!({ "calendarAlert": { "accountId": "a1", "eventId": "e1", "uid": "u1",
                "alertId": "1" } }),
        ),
        (
            &["push-subscription-change", "--account", "a1"],
            json!({ "pushSubscriptionChange": { "accountId": "a1" } }),
        ),
        (
            &["blocked-ip", "192.0.2.7", "--reason", "too many failed logins"],
            json!({ "blockedIp": { "address": "192.0.2.7", "action": "ACTION_ADDED",
                "reason": "too many failed logins" } }),
        ),
        (
            &["blocked-ip", "2001:db8::/32", "--removed"],
            json!({ "blockedIp": { "address": "2001:db8::/32", "action": "ACTION_REMOVED" } }),
        ),
        (
            &["certificate-change", "c1", "--domain", "a.example", "--domain", "b.example"],
            json!({ "certificateChange": { "certificateId": "c1",
                "domainNames": ["a.example", "b.example"], "action": "ACTION_RENEWED" } }),
        ),
        (
            &["registry-change", "role", "admin", "--action", "insert"],
            json!({ "registryChange": { "objectType": "role", "objectId": "admin",
                "action": "ACTION_INSERT" } }),
        ),
        (
            &["cache-invalidation", "role:7", "domain"],
            json!({ "cacheInvalidation": { "scope": "SCOPE_ENTRIES",
                "entries": [{ "cache": "role", "id": "7" }, { "cache": "domain" }] } }),
        ),
        (
            &["cache-invalidation", "--all-negative"],
            json!({ "cacheInvalidation": { "scope": "SCOPE_ALL_NEGATIVE" } }),
        ),
        (&["queue-status", "paused"], json!({ "queueStatus": { "state": "STATE_PAUSED" } })),
        (&["queue-refresh"], json!({ "queueRefresh": {} })),
        (
            &["custom", "com.example.paid", "--label", "invoice=42"],
            json!({ "custom": { "type": "com.example.paid", "labels": { "invoice": "42" } } }),
        ),
        (&["--json", r#"{"queueRefresh":{}}"#], json!({ "queueRefresh": {} })),
    ];
    for (args, expected) in &cases {
        let mut program = to(&gateway, ["publish"]);
        program.args.extend(args.iter().map(|&arg| arg.to_owned()));
        let output = program.run(LIMIT).await;
        assert_eq!(
            (code(&output), output.stdout.as_str(), output.stderr.as_str()),
            (0, "", ""),
            "{expected}"
        );
    }
    let seen = lines(&subscriber, cases.len()).await;
    for (event, (_, expected)) in seen.iter().zip(&cases) {
        let (kind, content) =
            expected.as_object().and_then(|kind| kind.iter().next()).expect("a kind");
        assert_eq!(event[kind], *content, "{event}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ban_can_expire() {
    let gateway = gateway().await;
    let subscriber = subscribe(&gateway, []).await;
    let ban = to(&gateway, ["publish", "blocked-ip", "192.0.2.7", "--expires-in", "24h"]);
    ban.run(LIMIT).await.success();
    let event = lines(&subscriber, 1).await.remove(0);
    let [published, expires] = [&event["publishTime"], &event["blockedIp"]["expiresAt"]]
        .map(|time| time.as_str().expect("a time").to_owned());
    assert!(expires > published, "{event}");
}

#[tokio::test(flavor = "multi_thread")]
async fn flags_before_the_kind_set_the_node_and_the_targets() {
    let gateway = gateway().await;
    let subscriber = subscribe(&gateway, ["--node-id", "n2", "--role", "mta"]).await;
    for (args, id) in
        [(["--to-role", "imap"], "n1"), (["--to-node", "n3"], "n1"), (["--to-role", "mta"], "n1")]
    {
        let program = to(&gateway, ["publish", "--node-id", id, args[0], args[1], "queue-refresh"]);
        program.run(LIMIT).await.success();
    }
    let event = lines(&subscriber, 1).await.remove(0);
    assert_eq!((&event["source"], &event["target"]), (&json!("n1"), &json!({ "roles": ["mta"] })));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_line_of_standard_input_is_published_in_order() {
    let gateway = gateway().await;
    let subscriber = subscribe(&gateway, []).await;
    let line = |id: usize| {
        format!("{{\"eventId\":\"e{id}\",\"mailboxChange\":{{\"accountId\":\"a1\"}}}}\n")
    };
    // More than one request, an empty line, and field names as in the .proto.
    let mut input: String = (0..1200).map(line).collect();
    input.push_str("\n{\"event_id\":\"last\",\"mailbox_change\":{\"account_id\":\"a1\"}}");
    let output = to(&gateway, ["publish", "-"]).stdin(input).run(LIMIT).await;
    assert_eq!((code(&output), output.stderr.as_str()), (0, ""));
    let seen = lines(&subscriber, 1201).await;
    let ids: Vec<&str> =
        seen.iter().map(|event| event["eventId"].as_str().expect("an id")).collect();
    let expected: Vec<String> =
        (0..1200).map(|id| format!("e{id}")).chain(["last".into()]).collect();
    assert_eq!(ids, expected, "all of them, in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_line_is_named_and_the_lines_before_it_are_published() {
    let gateway = gateway().await;
    let subscriber = subscribe(&gateway, []).await;
    let good = r#"{"queueRefresh":{}}"#;
    for (wrong, expected) in [
        ("no json", "line 2, column 1: not JSON: "),
        (r#"{"queueRefresh":} x"#, "line 2, column 17: not JSON: expected a value"),
        (r#"{"mailboxChange":{"account":"a"}}"#, "line 2: "),
        (r#"{"eventId":7,"queueRefresh":{}}"#, "line 2: "),
        (
            r#"{"custom":{"type":"x","payload":{"@type":"t/x.Y","value":"%"}}}"#,
            "line 2: custom.payload.value",
        ),
    ] {
        let input = format!("{good}\n{wrong}\n{good}\n");
        let output = to(&gateway, ["publish", "-"]).stdin(input).run(LIMIT).await;
        assert_eq!(code(&output), 3, "{wrong}: {}", output.stderr);
        assert!(output.stderr.starts_with(&format!("trunkline: {expected}")), "{}", output.stderr);
    }
    assert_eq!(lines(&subscriber, 5).await.len(), 5, "the first of each");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_the_gateway_refuses_are_reported_by_line() {
    let gateway = gateway().await;
    let input =
        "{\"queueRefresh\":{}}\n\n{\"mailboxChange\":{}}\n{\"blockedIp\":{\"address\":\"x\"}}\n";
    let output = to(&gateway, ["publish", "-"]).stdin(input).run(LIMIT).await;
    assert_eq!(code(&output), 3, "{}", output.stderr);
    let errors: Vec<&str> = output.stderr.lines().collect();
    assert_eq!(errors.len(), 2, "{errors:#?}");
    assert!(errors[0].starts_with("trunkline: line 3: mailbox_change.account_id: "), "{errors:#?}");
    assert!(errors[1].starts_with("trunkline: line 4: blocked_ip.address: "), "{errors:#?}");

    let output = to(&gateway, ["publish", "mailbox-change", "--account", ""]).run(LIMIT).await;
    assert_eq!(code(&output), 3, "{}", output.stderr);
    assert!(output.stderr.contains("events[0].mailbox_change.account_id"), "{}", output.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_waits_for_a_paused_bus_and_publishes_once() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let options =
        GatewayOptions::redis(&redis.url(), &shared::prefix()).set_bus("timeout", "500ms");
    let gateway = Gateway::start(options).await;
    let node = TestNode::connect(&gateway, "n1").await;
    let collector = node.subscribe(node.request()).await;
    redis.pause().await;
    let publish = |id: &str| {
        let json = format!("{{\"eventId\":\"{id}\",\"queueRefresh\":{{}}}}");
        to(&gateway, ["publish", "--json", &json])
    };
    let publisher = Process::start("publish", publish("once"));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(publisher.ended().is_none(), "it retries");
    redis.resume();
    let (status, _) = publisher.wait(LIMIT).await;
    assert!(status.success(), "{status}: {}", publisher.stderr());
    publish("last").run(LIMIT).await.success();
    assert_eq!(collector.event("last", LIMIT).await.event_ids, ["once", "last"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn publish_waits_for_nodes_and_names_who_has_not_the_event() {
    let gateway = gateway().await;
    let node = TestNode::connect(&gateway, "imap-1").await;
    let _stream = node.subscribe(node.request()).await;
    let publish = async |stage| {
        let args = ["publish", "--wait-for", stage, "--wait-timeout", "3s", "queue-refresh"];
        to(&gateway, args).run(LIMIT).await
    };
    let delivered = publish("delivered").await;
    assert_eq!((code(&delivered), delivered.stdout.as_str()), (0, ""), "{}", delivered.stderr);
    let pending = publish("acknowledged").await;
    assert_ne!(code(&pending), 0);
    let text = "published; 0 of 1 nodes have it; nodes that have not: imap-1";
    assert!(pending.stderr.contains(text), "{}", pending.stderr);
    let wrong = publish("seen").await;
    assert_eq!(code(&wrong), 2);
    assert!(wrong.stderr.contains("delivered, acknowledged"), "{}", wrong.stderr);
    let lines = to(&gateway, ["publish", "--wait-for", "delivered", "-"]).run(LIMIT).await;
    assert_eq!(code(&lines), 2);
    assert!(lines.stderr.contains("--wait-for is for events of the command line"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_custom_event_carries_text_json_bytes_a_file_or_standard_input() {
    let gateway = gateway().await;
    let subscriber = subscribe(&gateway, []).await;
    let folder = folder::new();
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("a file");
        path.display().to_string()
    };
    let (bytes, document) =
        (file("bytes", &[0xff, 0, 1]), file("json", b"{\n  \"a\": [1, null]\n}\n"));
    let any = |name: &str, value: Value| {
        let url = format!("type.googleapis.com/google.protobuf.{name}");
        json!({ "@type": url, "value": value })
    };
    let cases: [(&[&str], &str, Value); 9] = [
        (&["--payload", "the backup is done"], "", any("StringValue", json!("the backup is done"))),
        (&["--payload", "@not-a-file"], "", any("StringValue", json!("@not-a-file"))),
        (&["--payload", r#"{"a":{"b":[true]}}"#], "", any("Struct", json!({"a": {"b": [true]}}))),
        (&["--payload", "17", "--payload-as", "json"], "", any("Value", json!(17.0))),
        (&["--payload-file", &document], "", any("Struct", json!({ "a": [1.0, null] }))),
        (
            &["--payload-file", &document, "--payload-as", "text"],
            "",
            any("StringValue", json!("{\n  \"a\": [1, null]\n}\n")),
        ),
        (&["--payload-file", &bytes], "", any("BytesValue", json!("/wAB"))),
        (
            &["--payload-file", &bytes, "--payload-type", "example.v1.Paid"],
            "",
            json!({ "@type": "type.googleapis.com/example.v1.Paid", "value": "/wAB" }),
        ),
        (&["--payload-file", "-"], "from a pipe\n", any("StringValue", json!("from a pipe\n"))),
    ];
    for (args, input, _) in &cases {
        let mut program = to(&gateway, ["publish", "custom", "com.example.x", "--label", "a=b"]);
        program.args.extend(args.iter().map(|&arg| arg.to_owned()));
        assert_eq!(program.stdin(*input).run(LIMIT).await.success(), "");
    }
    let seen = lines(&subscriber, cases.len()).await;
    for (event, (args, _, expected)) in seen.iter().zip(&cases) {
        assert_eq!(event["custom"]["payload"], *expected, "{args:?}");
        assert_eq!(event["custom"]["labels"], json!({ "a": "b" }));
    }

    let large = file("large", &vec![b'x'; 16 * 1024 * 1024 + 1]);
    let missing = folder.path().join("missing").display().to_string();
    for (args, expected, says) in [
        (&["--payload", r#"{"a":1,}"#][..], 3, "--payload: not JSON: "),
        (&["--payload", r#"{"a":1,}"#], 3, "--payload-as text"),
        (&["--payload", "x", "--payload-as", "json"], 3, "--payload: not JSON: "),
        (&["--payload", r#"{"id":12345678901234567}"#], 3, "12345678901234567 is larger"),
        (&["--payload-file", &missing], 3, "No such file"),
        (&["--payload-file", &large], 3, "more than 16777216 bytes, the limit of limits.maxEven"),
        (&["--payload", "x", "--payload-file", "y"], 2, "cannot be used with"),
        (&["--payload-as", "text"], 2, "--payload"),
    ] {
        let mut program = to(&gateway, ["publish", "custom", "com.example.x"]);
        program.args.extend(args.iter().map(|&arg| arg.to_owned()));
        let output = program.run(LIMIT).await;
        assert_eq!(code(&output), expected, "{args:?}: {}", output.stderr);
        assert!(output.stderr.contains(says), "{args:?}: {}", output.stderr);
    }
    let large = "x".repeat(65 * 1024);
    let args = ["publish", "custom", "com.example.x", "--payload", &large];
    let output = to(&gateway, args).run(LIMIT).await;
    assert_eq!(code(&output), 3, "{}", output.stderr);
    assert!(output.stderr.contains("events[0] has 66"), "{}", output.stderr);
    assert!(output.stderr.contains("the limit is 65536"), "{}", output.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn json_over_several_lines_is_published_and_what_is_wrong_is_named_by_line_and_column() {
    let gateway = gateway().await;
    let subscriber = subscribe(&gateway, []).await;
    let good = "{\n  \"queueRefresh\": {\n  }\n}\n\n{\"queueRefresh\":{}} {\"queueRefresh\":{}}";
    to(&gateway, ["publish", "-"]).stdin(good).run(LIMIT).await.success();
    to(&gateway, ["publish", "--json", good]).run(LIMIT).await.success();
    assert_eq!(lines(&subscriber, 6).await.len(), 6);
    for (wrong, expected) in [
        // What is missing is found where it is missing, and not at the end of the input.
        ("{\n  \"queueRefresh\": {\n}\n{\"queueRefresh\":{}}\n", "line 4, column 1: not JSON: "),
        ("{\n  \"queueRefresh\" {}\n}", "line 2, column 18: not JSON: expected : "),
        ("{\"queueRefresh\":{}}\n{\n", "line 3, column 1: the input ends within the object"),
        ("\n\n{\n  \"queueRefreshed\": {}\n}", "line 3: unrecognized field name"),
        ("{\n  \"mailboxChange\": {}\n}", "line 1: mailbox_change.account_id: "),
        ("{\"queueRefresh\":{}} {\"mailboxChange\":{}}", "line 1, column 21: mailbox_change."),
    ] {
        let output = to(&gateway, ["publish", "-"]).stdin(wrong).run(LIMIT).await;
        assert_eq!(code(&output), 3, "{wrong}: {}", output.stderr);
        let found = output.stderr.starts_with(&format!("trunkline: {expected}"));
        assert!(found, "{wrong}: {}", output.stderr);
    }
    let output = to(&gateway, ["publish", "--json", "{\n\"queueRefresh\": }"]).run(LIMIT).await;
    assert_eq!(code(&output), 3, "{}", output.stderr);
    let expected = "trunkline: --json: line 2, column 17: not JSON: expected a value";
    assert!(output.stderr.starts_with(expected), "{}", output.stderr);
    // An object without an end: no more than its limit is kept.
    let endless = format!("{{\"eventId\":\"{}", "x".repeat(33 << 20));
    let output = to(&gateway, ["publish", "-"]).stdin(endless).run(LIMIT).await;
    assert_eq!(code(&output), 3, "{}", output.stderr);
    let expected = "line 1, column 1: has more than 33554432 bytes, the limit of one object";
    assert!(output.stderr.contains(expected), "{}", output.stderr);
    let args = ["publish", "-", "custom", "com.example.x", "--payload-file", "-"];
    let output = to(&gateway, args).run(LIMIT).await;
    assert_eq!(code(&output), 2, "{}", output.stderr);
}
