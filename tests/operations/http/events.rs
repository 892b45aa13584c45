//! Publishing and streams over HTTP.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Curl, HttpGateway, change, curl::published};
use crate::{
    access::{MX_TOKEN, WEB_TOKEN, files::Files},
    support::{GatewayOptions, LIMIT, RedisOptions, RedisServer, TestNode, events, shared},
};

/// How often a stream is lost.
const ROUNDS: usize = 6;

/// The ids of changes, in the order of the events.
fn change_ids(events: &[Value]) -> Vec<u64> {
    let id = |event: &Value| event["mailboxChange"]["changeId"].as_str()?.parse().ok();
    events.iter().map(|event| id(event).unwrap_or_else(|| panic!("{event}"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_and_nodes_receive_what_either_publishes() {
    let gateway = HttpGateway::embedded().await;
    let node = TestNode::connect(&gateway.gateway, "imap-1").await;
    let collector = node.subscribe(node.request()).await;
    let stream = gateway.curl("/v1/subscribe?node_id=browser-1&roles=web").stream();
    let subscribed = stream.named("subscribed").await;
    assert!(subscribed.id.is_some() && subscribed.data["gatewayId"].is_string(), "{subscribed:?}");

    // All kinds, by curl and by a node; the payload of an event stays whole.
    let payload = json!({ "@type": "type.googleapis.com/google.protobuf.Struct",
        "value": { "a": [1.5, null, "x"] } });
    let custom = json!({ "custom": { "type": "org.example", "payload": payload },
        "eventId": "e1", "target": { "roles": ["web"] } });
    let body = json!({ "nodeId": "script-1", "events": [change("a1", 7), custom] });
    let positions = gateway.publish(&body).send().await.json(200);
    assert_eq!(positions["positions"].as_array().expect("positions").len(), 2, "{positions}");
    collector.events(1, LIMIT).await;
    assert_eq!(collector.event_ids().len(), 1, "the other one is for another role");
    let kinds = events::one_of_each("a2");
    let count = kinds.len();
    node.publish(kinds).await.expect("published");
    let all = stream.published(2 + count).await;
    assert_eq!(all[0]["mailboxChange"], json!({ "accountId": "a1", "changeId": "7" }));
    assert_eq!(all[0]["source"], "script-1");
    assert_eq!((&all[1]["eventId"], &all[1]["custom"]["payload"]), (&json!("e1"), &payload));

    // What was received is published again as it came, and is the same.
    let again: Vec<Value> = all[2..].to_vec();
    let second = gateway.curl("/v1/subscribe?node_id=browser-2").stream();
    second.named("subscribed").await;
    let body = json!({ "nodeId": "script-1", "events": again });
    gateway.publish(&body).send().await.json(200);
    let without_stamps = |events: &[Value]| -> Vec<Value> {
        let mut events = events.to_vec();
        for event in &mut events {
            for stamp in ["source", "publishTime"] {
                event.as_object_mut().expect("an event").remove(stamp);
            }
        }
        events
    };
    // The last state of the queue comes first to a new stream.
    let mut received = second.published(1 + count).await;
    assert_eq!(received.remove(0)["queueStatus"]["state"], "STATE_PAUSED");
    assert_eq!(without_stamps(&received), without_stamps(&again));

    // Those of the same request are published once.
    let body = json!({ "nodeId": "script-1", "events": [change("a3", 1)],
        "requestId": "b5a7f2a2-6f0e-4f4c-9d5a-0d0f6f3c9c11" });
    let first = gateway.publish(&body).send().await.json(200);
    assert_eq!(gateway.publish(&body).send().await.json(200), first);

    // Over HTTP/2 too, and the other methods.
    let status = gateway.curl("/v1/status").arg("--http2-prior-knowledge").send().await;
    assert_eq!(status.json(200)["serving"], true, "{status:?}");
    assert!(status.headers.contains("cache-control: no-store"), "{status:?}");
    let nodes = gateway.curl("/v1/nodes?node_id=browser-1").send().await.json(200);
    assert_eq!(nodes["nodes"][0]["roles"], json!(["web"]), "{nodes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_and_an_end_are_asked_for_in_the_query() {
    let gateway = HttpGateway::embedded().await;
    let query = "node_id=b&filter.kinds=mailbox-change&filter.accounts=a1&max_events=2";
    let stream = gateway.curl(&format!("/v1/subscribe?{query}")).stream();
    stream.named("subscribed").await;
    let all = [change("a2", 1), change("a1", 2), json!({ "queueRefresh": {} }), change("a1", 3)];
    let body = json!({ "nodeId": "n", "events": all });
    gateway.publish(&body).send().await.json(200);
    assert_eq!(stream.named("end").await.data, json!({}));
    assert_eq!(change_ids(&stream.published(2).await), [2, 3]);
    let (status, _) = stream.0.wait(LIMIT).await;
    assert!(status.success(), "the connection ends in peace: {status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_by_its_last_id_on_any_gateway() {
    let redis = RedisServer::start(RedisOptions::default()).await;
    let prefix = shared::prefix();
    let start =
        async || HttpGateway::start(GatewayOptions::redis(&redis.url(), &prefix), json!({})).await;
    let gateways = [start().await, start().await];
    let mut received = Vec::new();
    let mut last_id = None;
    let mut sent = 0;
    // Streams are lost in the middle, and other gateways go on with them.
    for round in 0..ROUNDS {
        let gateway = &gateways[round % 2];
        let mut request = gateway.curl("/v1/subscribe?node_id=browser");
        if let Some(id) = &last_id {
            request = request.header(format!("last-event-id: {id}"));
        }
        let stream = request.stream();
        stream.named("subscribed").await;
        for nth_request in 0..20 {
            let changes: Vec<Value> = (1..=5).map(|nth| change("a", sent + nth)).collect();
            sent += 5;
            let body = json!({ "nodeId": "n", "events": changes });
            gateways[nth_request % 2].publish(&body).send().await.json(200);
        }
        let wanted = if round == ROUNDS - 1 { ROUNDS * 100 } else { received.len() + 30 };
        stream.published(wanted - received.len()).await;
        stream.0.kill_9();
        // As a browser does: only whole events, and the id of the last one.
        let events = stream.events();
        last_id = events.iter().rev().find_map(|event| event.id.clone());
        received.extend(change_ids(&published(&events)));
    }
    let expected: Vec<u64> = (1..=sent).collect();
    let distinct: BTreeSet<u64> = received.iter().copied().collect();
    assert_eq!(distinct.len(), received.len(), "nothing comes twice");
    assert_eq!(received, expected, "nothing is lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_drains_says_when_to_come_back() {
    let gateway = HttpGateway::embedded().await;
    let stream = gateway.curl("/v1/subscribe?node_id=browser").stream();
    stream.named("subscribed").await;
    gateway.gateway.signal_term();
    let draining = stream.named("draining").await;
    assert!(draining.retry.is_some(), "{draining:?}");
    stream.named("end").await;
    gateway.gateway.ends(LIMIT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_to_go_on_elsewhere_closes_its_connection() {
    // What the client opens next is to be on another one, which may lead to another gateway.
    let options = GatewayOptions::embedded().set("limits", json!({ "maxStreamAge": "1s" }));
    let gateway = HttpGateway::start(options, json!({})).await;
    let request = "GET /v1/subscribe?node_id=browser HTTP/1.1\r\nhost: x\r\n\r\n";
    let answer = gateway.raw(request.as_bytes()).await;
    for event in ["event: subscribed", "event: draining", "event: end"] {
        assert!(answer.contains(event), "{event}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn identities_and_rules_are_those_of_grpc() {
    let files = Files::new().await;
    let gateway = HttpGateway::start(files.options("optional"), json!({})).await;
    let ca = files.path("ca.pem");
    let publish = |node: &str, event: Value| {
        gateway.publish(&json!({ "nodeId": node, "events": [event] })).arg("--cacert").arg(&ca)
    };
    let get = |path: &str| gateway.curl(path).arg("--cacert").arg(&ca);

    // Without a credential, with a wrong one; nothing of the body is looked at.
    let answer = publish("mx-1", json!({ "queueRefresh": {} })).send().await;
    assert_eq!(answer.error(401).0, "UNAUTHENTICATED");
    assert!(answer.headers.contains("www-authenticate: bearer"), "{answer:?}");
    let answer = publish("mx-1", json!("rubbish")).token("token-of-nobody").send().await;
    assert_eq!(answer.error(401).0, "UNAUTHENTICATED");
    assert_eq!(get("/v1/subscribe?node_id=mx-1").send().await.error(401).0, "UNAUTHENTICATED");

    // What an identity may do, and what not.
    publish("mx-1", json!({ "queueRefresh": {} })).token(MX_TOKEN).send().await.json(200);
    let refused = publish("web", json!({ "queueRefresh": {} })).token(WEB_TOKEN).send().await;
    assert_eq!(refused.error(403).0, "PERMISSION_DENIED");
    let refused = publish("mx-1", json!({ "custom": { "type": "org.web.x" } })).token(WEB_TOKEN);
    assert_eq!(refused.send().await.error(403).0, "PERMISSION_DENIED");
    assert_eq!(get("/v1/status").token(WEB_TOKEN).send().await.error(403).0, "PERMISSION_DENIED");
    get("/v1/status").token(MX_TOKEN).send().await.json(200);

    // A stream has only what its identity may receive.
    let stream = get("/v1/subscribe?node_id=web").token(WEB_TOKEN).stream();
    stream.named("subscribed").await;
    let secret = json!({ "custom": { "type": "org.secret" } });
    publish("mx-1", secret).token(MX_TOKEN).send().await.json(200);
    publish("mx-1", change("vip-1", 1)).token(MX_TOKEN).send().await.json(200);
    publish("mx-1", change("a1", 2)).token(MX_TOKEN).send().await.json(200);
    assert_eq!(change_ids(&stream.published(1).await), [2]);

    // A certificate is a credential as well.
    let certificate = |request: Curl| {
        let (cert, key) = (files.path("imap.pem"), files.path("imap.key"));
        request.arg("--cert").arg(cert).arg("--key").arg(key)
    };
    files.certificate("imap", "ca", "DNS:imap.example.org", "-days 7").await;
    let answer = certificate(publish("imap", json!({ "queueRefresh": {} }))).send().await;
    answer.json(200);
    let text = format!("{}{}", gateway.gateway.stderr(), gateway.gateway.stdout());
    assert!(!text.contains("token-of"), "{text}");
}
