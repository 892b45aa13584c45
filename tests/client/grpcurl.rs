//! A real grpcurl, which knows the API only from reflection: the API is usable without our own
//! tools.

use super::support::{
    Gateway, GatewayOptions, LIMIT,
    process::{Output, Process, Program},
    tools,
    wait::{eventually, until},
};
use serde_json::{Value, json};

const SERVICE: &str = "trunkline.v1.CoordinationService";
const ORCA: &str = "xds.service.orca.v3.OpenRcaService";

/// A grpcurl command for a gateway: options, the address, and the symbol or method.
fn command(gateway: &Gateway, options: &[&str], symbol: &[&str]) -> Program {
    let address = gateway.address();
    let args = ["-plaintext"].iter().chain(options).copied();
    let args = args.chain([address.as_str()]).chain(symbol.iter().copied());
    Program::new(tools::grpcurl(), args)
}

async fn run(gateway: &Gateway, options: &[&str], symbol: &[&str]) -> Output {
    command(gateway, options, symbol).run(LIMIT).await
}

/// Calls a method of the service with a JSON request.
async fn call(gateway: &Gateway, method: &str, request: &Value) -> Output {
    run(gateway, &["-d", &request.to_string()], &[&format!("{SERVICE}/{method}")]).await
}

/// Starts a `Subscribe`, and returns when grpcurl has printed `subscribed`.
async fn subscribe(gateway: &Gateway, request: &Value) -> Process {
    let method = format!("{SERVICE}/Subscribe");
    let program = command(gateway, &["-d", &request.to_string()], &[&method]);
    let process = Process::start("grpcurl Subscribe", program);
    subscribed(&process).await;
    process
}

/// Waits until a `Subscribe` has printed its first message.
async fn subscribed(process: &Process) {
    eventually(LIMIT, "grpcurl shows `subscribed`", async || {
        assert!(process.ended().is_none_or(|status| status.success()), "{}", process.stderr());
        messages(&process.stdout()).first().map(|first| assert!(first["subscribed"].is_object()))
    })
    .await;
}

/// Waits until a `Subscribe` ends with success, and returns its messages.
async fn end(process: &Process) -> Vec<Value> {
    let (status, _) = process.wait(LIMIT).await;
    assert!(status.success(), "{}", process.stderr());
    messages(&process.stdout())
}

/// The JSON objects that grpcurl has printed so far, one after the other.
fn messages(text: &str) -> Vec<Value> {
    serde_json::Deserializer::from_str(text).into_iter().map_while(Result::ok).collect()
}

/// The events of all batches.
fn events(messages: &[Value]) -> Vec<Value> {
    let batches = messages.iter().filter_map(|message| message["events"]["events"].as_array());
    batches.flatten().cloned().collect()
}

/// An event of each kind, with field names as in the .proto files.
fn one_of_each() -> Value {
    json!([
        {"mailbox_change": {"account_id": "a1", "change_id": 7,
            "changed_types": ["CHANGED_TYPE_EMAIL", "CHANGED_TYPE_MAILBOX"]}},
        {"email_delivery": {"account_id": "a1", "email_id": "m1", "change_id": 8}},
        {"calendar_alert": {"account_id": "a1", "event_id": "e1",
            "recurrence_id": "20260102T090000Z", "uid": "7e1f@example.org", "alert_id": "k1"}},
        {"push_subscription_change": {"account_id": "a1"}},
        {"blocked_ip": {"address": "192.0.2.7", "action": "ACTION_ADDED",
            "expires_at": "2100-01-01T00:00:00Z", "reason": "too many failed logins"}},
        {"certificate_change": {"certificate_id": "c1", "domain_names": ["example.org"],
            "action": "ACTION_ISSUED"}},
        {"registry_change": {"object_type": "role", "object_id": "admin",
            "action": "ACTION_DELETE"}},
        {"cache_invalidation": {"entries": [{"cache": "access_token", "id": "7"}],
            "scope": "SCOPE_ENTRIES"}},
        {"queue_status": {"state": "STATE_PAUSED"}},
        {"queue_refresh": {}},
        {"custom": {"type": "com.example.paid", "labels": {"invoice": "42"},
            "payload": {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "7s"}}},
    ])
}

#[tokio::test]
async fn list_shows_the_services() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let listed = run(&gateway, &[], &["list"]).await.success();
    let mut services: Vec<_> = listed.lines().collect();
    services.retain(|service| !service.starts_with("grpc.reflection."));
    assert_eq!(services, ["grpc.health.v1.Health", SERVICE, ORCA]);

    let listed = run(&gateway, &[], &["list", SERVICE]).await.success();
    let methods: Vec<_> = listed.lines().filter_map(|line| line.rsplit('.').next()).collect();
    assert_eq!(
        methods,
        ["GetStatus", "ListNodes", "Publish", "PublishStream", "Subscribe", "Watch"]
    );
}

#[tokio::test]
async fn describe_shows_the_service_and_its_messages() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let described = run(&gateway, &[], &["describe", SERVICE]).await.success();
    for method in [
        "rpc Publish ( .trunkline.v1.PublishRequest ) returns ( .trunkline.v1.PublishResponse );",
        "rpc Subscribe ( .trunkline.v1.SubscribeRequest ) \
         returns ( stream .trunkline.v1.SubscribeResponse );",
    ] {
        assert!(described.contains(method), "{described}");
    }
    for (symbol, holds) in [
        (
            ".trunkline.v1.SubscribeRequest",
            [".trunkline.v1.Filter filter", "bytes resume_token", "uint64 max_events"],
        ),
        (
            ".trunkline.v1.SubscribeResponse",
            [".trunkline.v1.EventBatch events", ".trunkline.v1.Gap gap", "oneof response"],
        ),
        (
            ".trunkline.v1.Event",
            [
                ".trunkline.v1.MailboxChange mailbox_change",
                ".trunkline.v1.CustomEvent custom",
                "oneof kind",
            ],
        ),
        (
            ".trunkline.v1.MailboxChange",
            [
                "string account_id",
                "uint64 change_id",
                "repeated .trunkline.v1.ChangedType changed_types",
            ],
        ),
        // The details of errors, so that grpcurl can decode them.
        (".google.rpc.BadRequest", ["message BadRequest", "field_violations", "FieldViolation"]),
        (".google.rpc.ErrorInfo", ["string reason", "string domain", "metadata"]),
        (".google.rpc.RetryInfo", ["message RetryInfo", "Duration", "retry_delay"]),
    ] {
        let described = run(&gateway, &[], &["describe", symbol]).await.success();
        for text in holds {
            assert!(
                described.contains(text),
                "{text:?} in the description of {symbol}: {described}"
            );
        }
    }
}

#[tokio::test]
async fn every_kind_is_published_and_received_as_typed_fields() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let sent = one_of_each();
    let count = sent.as_array().unwrap().len();
    let subscriber = subscribe(&gateway, &json!({"node_id": "n1", "max_events": count})).await;
    let request = json!({"node_id": "n2", "events": sent});
    let answer = messages(&call(&gateway, "Publish", &request).await.success());
    assert_eq!(answer[0]["positions"].as_array().map(Vec::len), Some(count), "{answer:?}");

    let received = events(&end(&subscriber).await);
    assert_eq!(received.len(), count);
    for (sent, received) in sent.as_array().unwrap().iter().zip(received) {
        let stamped = ["eventId", "publishTime"].map(|key| received[key].is_string());
        assert_eq!((&received["source"], stamped), (&json!("n2"), [true, true]), "{received}");
        let (kind, fields) = sent.as_object().unwrap().iter().next().unwrap();
        assert_eq!(received[camel(kind)], as_printed(fields), "{kind}");
    }
}

#[tokio::test]
async fn a_stream_delivers_only_events_that_match_its_filter() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let filter = json!({"kinds": ["EVENT_KIND_BLOCKED_IP", "EVENT_KIND_QUEUE_REFRESH"]});
    let request = json!({"node_id": "n1", "filter": filter, "max_events": 2});
    let subscriber = subscribe(&gateway, &request).await;
    call(&gateway, "Publish", &json!({"node_id": "n2", "events": one_of_each()})).await.success();
    let received = events(&end(&subscriber).await);
    assert_eq!(received.len(), 2);
    assert_eq!(received[0]["blockedIp"]["address"], "192.0.2.7");
    assert_eq!(received[1]["queueRefresh"], json!({}));
}

#[tokio::test]
async fn a_stream_explains_its_filter_decisions() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let filter = json!({"accounts": ["a1"]});
    let request = json!({"node_id": "n1", "filter": filter, "explain": true, "max_events": 1});
    let subscriber = subscribe(&gateway, &request).await;
    let change = |account: &str| json!({"mailbox_change": {"account_id": account}});
    let events = json!([change("a2"), change("a1")]);
    call(&gateway, "Publish", &json!({"node_id": "n2", "events": events})).await.success();
    let seen = end(&subscriber).await;
    let decisions = seen.last().unwrap()["explanation"]["verdicts"].as_array().unwrap().clone();
    assert_eq!(decisions.len(), 2, "{seen:?}");
    assert_eq!(decisions[0]["exclusions"], json!(["EXCLUSION_ACCOUNT"]));
    assert_eq!(
        (&decisions[1]["delivered"], &decisions[1]["accountId"]),
        (&json!(true), &json!("a1"))
    );
}

#[tokio::test]
async fn a_token_copied_from_the_output_resumes_the_stream() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let publish = async |account: &str| {
        let event = json!({"mailbox_change": {"account_id": account}});
        let request = json!({"node_id": "n2", "events": [event]});
        call(&gateway, "Publish", &request).await.success();
    };
    let subscriber = subscribe(&gateway, &json!({"node_id": "n1", "max_events": 1})).await;
    publish("first").await;
    let seen = end(&subscriber).await;
    let token = &seen.last().unwrap()["events"]["resumeToken"];
    publish("second").await;
    publish("third").await;

    let request = json!({"node_id": "n1", "resume_token": token, "max_events": 2});
    let resumed = messages(&call(&gateway, "Subscribe", &request).await.success());
    assert_eq!(resumed[0]["subscribed"]["resumed"], true, "{resumed:?}");
    assert_eq!(resumed[0]["subscribed"]["replayedEvents"], "2");
    let events = events(&resumed);
    let accounts: Vec<_> =
        events.iter().map(|event| &event["mailboxChange"]["accountId"]).collect();
    assert_eq!(accounts, ["second", "third"]);
}

#[tokio::test]
async fn status_nodes_and_health_answer() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    for service in ["", SERVICE] {
        let request = json!({ "service": service }).to_string();
        let health = run(&gateway, &["-d", &request], &["grpc.health.v1.Health/Check"]).await;
        assert_eq!(messages(&health.success()), [json!({"status": "SERVING"})], "{service:?}");
    }
    let unknown = json!({ "service": "unknown" }).to_string();
    let health = run(&gateway, &["-d", &unknown], &["grpc.health.v1.Health/Check"]).await;
    assert!(!health.status.success() && health.stderr.contains("NotFound"), "{health:?}");

    let _subscriber = subscribe(&gateway, &json!({"node_id": "n1", "roles": ["imap"]})).await;
    let status = messages(&call(&gateway, "GetStatus", &json!({})).await.success()).remove(0);
    assert_eq!((&status["bus"], &status["serving"]), (&json!("embedded"), &json!(true)));
    assert_eq!(status["streams"], 1);
    let nodes = messages(&call(&gateway, "ListNodes", &json!({})).await.success()).remove(0);
    assert_eq!(nodes["nodes"][0]["nodeId"], "n1");
    assert_eq!(nodes["nodes"][0]["roles"], json!(["imap"]));
}

#[tokio::test]
async fn errors_show_their_details() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let event = json!({"mailbox_change": {"change_id": 7}});
    let refused = call(&gateway, "Publish", &json!({"events": [event]})).await;
    assert!(!refused.status.success());
    let stderr = &refused.stderr;
    assert!(stderr.contains("Code: InvalidArgument"), "{stderr}");
    // Decoded with the types from reflection: names and values instead of bytes.
    assert!(!stderr.contains("value\":") && !stderr.contains("unknown message type"), "{stderr}");
    for text in [
        "google.rpc.BadRequest",
        "\"field\":\"node_id\"",
        "\"field\":\"events[0].mailbox_change.account_id\"",
        "google.rpc.ErrorInfo",
        "\"reason\":\"INVALID_REQUEST\"",
        "\"domain\":\"trunkline\"",
    ] {
        assert!(stderr.contains(text), "{text}: {stderr}");
    }

    let malformed = json!({"node_id": "n1", "resume_token": "bm8gdG9rZW4="});
    let refused = call(&gateway, "Subscribe", &malformed).await;
    assert!(refused.stderr.contains("\"reason\":\"RESUME_TOKEN_MALFORMED\""), "{refused:?}");
}

/// The commands of the README and those that a gateway prints at its start, unchanged.
#[tokio::test]
async fn the_grpcurl_commands_of_the_readme_work() {
    let readme = include_str!("../../README.md");
    let section = readme.split("\n## ").find(|section| section.starts_with("First events"));
    let lines = grpcurl_lines(section.expect("a section of first events"));
    for what in
        [" list", " describe ", "/Subscribe", "/Publish", "/Check", "/Watch", "/PublishStream"]
    {
        assert!(lines.iter().any(|line| line.contains(what)), "{what}: {lines:?}");
    }

    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    until(LIMIT, "the banner", async || !grpcurl_lines(&gateway.stderr()).is_empty()).await;
    let printed = grpcurl_lines(&gateway.stderr());
    assert_eq!(printed.len(), 1, "{}", gateway.stderr());
    shell(&printed[0]).run(LIMIT).await.success();

    let mut streams = Vec::new();
    // Before the command that publishes what they wait for.
    let (from_terminal, others): (Vec<_>, Vec<_>) =
        lines.iter().partition(|line| line.contains("-d @"));
    for line in from_terminal {
        let requests = section.expect("a section").split_once(&line[..]).expect("its line").1;
        let requests = requests.lines().skip(1).map(str::trim);
        let requests: Vec<_> = requests.take_while(|line| line.starts_with('{')).collect();
        assert_eq!(requests.len(), 2, "{requests:?}");
        let line = line.replace("127.0.0.1:7420", &gateway.address());
        let rest = line.strip_prefix("grpcurl").expect("a grpcurl line");
        let command = format!("printf '%s' '{}' | \"$0\"{rest}", requests.join("\n"));
        let grpcurl = tools::grpcurl().display().to_string();
        let process = Process::start(&line, Program::new("sh", ["-c", &command, &grpcurl]));
        if line.contains("/PublishStream") {
            let answers = end(&process).await;
            assert!(answers[0]["opened"].is_object(), "{answers:?}");
            assert_eq!(answers[1]["accepted"]["sequence"], "1");
            continue;
        }
        until(LIMIT, "the update is in force", async || {
            process.stdout().contains("interestUpdated")
        })
        .await;
        streams.push(process);
    }
    for line in others {
        assert!(line.contains("127.0.0.1:7420"), "the default address: {line}");
        let program = shell(&line.replace("127.0.0.1:7420", &gateway.address()));
        if line.contains("/Subscribe") {
            let process = Process::start(line, program);
            subscribed(&process).await;
            streams.push(process);
        } else {
            let output = program.run(LIMIT).await.success();
            assert!(!output.is_empty(), "{line}");
        }
    }
    // The subscription ends with the event that the next command publishes.
    for stream in streams {
        let events = events(&end(&stream).await);
        assert_eq!(events.len(), 1);
        assert_eq!(events[0]["source"], "n2");
        assert_eq!(events[0]["mailboxChange"], json!({"accountId": "a1", "changeId": "7"}));
    }
}

/// The commands in an indented text that begin with `grpcurl`; continued lines are joined.
fn grpcurl_lines(text: &str) -> Vec<String> {
    let joined = text.replace("\\\n", "");
    let lines = joined.lines().map(str::trim);
    lines.filter(|line| line.starts_with("grpcurl ")).map(str::to_owned).collect()
}

/// A shell that runs a line with the grpcurl of the tests.
fn shell(line: &str) -> Program {
    let rest = line.strip_prefix("grpcurl").expect("a grpcurl line");
    // `exec`, so that the process is grpcurl's own.
    Program::new(
        "sh",
        ["-c", &format!("exec \"$0\"{rest}"), &tools::grpcurl().display().to_string()],
    )
}

/// `mailbox_change` as `mailboxChange`.
fn camel(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| name + &word[..1].to_uppercase() + &word[1..])
}

/// Fields as proto3 JSON prints them: in camel case, 64-bit numbers as strings.
fn as_printed(fields: &Value) -> Value {
    match fields {
        Value::Object(map) => {
            map.iter().map(|(key, value)| (camel(key), as_printed(value))).collect()
        }
        Value::Array(values) => values.iter().map(as_printed).collect(),
        Value::Number(number) => number.to_string().into(),
        other => other.clone(),
    }
}
