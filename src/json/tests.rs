//! JSON of events, and back.

use crate::proto::v1::{CustomEvent, EventBatch};
use prost_types::Any;

use super::*;

mod random;

#[test]
fn every_kind_is_read_back_as_it_was_written() {
    let kinds = json!([
        {"mailboxChange": {"accountId": "a", "changeId": "7",
            "changedTypes": ["CHANGED_TYPE_EMAIL"]}},
        {"emailDelivery": {"accountId": "a", "emailId": "e", "changeId": "7"}},
        {"calendarAlert": {"accountId": "a", "eventId": "e", "uid": "u", "alertId": "1"}},
        {"pushSubscriptionChange": {"accountId": "a"}},
        {"blockedIp": {"address": "192.0.2.7", "action": "ACTION_ADDED",
            "expiresAt": "2026-01-01T00:00:00Z"}},
        {"certificateChange": {"certificateId": "c", "domainNames": ["example.com"]}},
        {"registryChange": {"objectType": "role", "objectId": "7", "action": "ACTION_INSERT"}},
        {"cacheInvalidation": {"entries": [{"cache": "role", "id": "7"}]}},
        {"queueStatus": {"state": "STATE_PAUSED"}},
        {"queueRefresh": {}},
        {"custom": {"type": "x.y", "labels": {"k": "v"},
            "payload": {"@type": "type.example.com/x.Y", "value": "AQID"}}},
        {"missedEvents": {"missedEvents": "7", "kinds": ["EVENT_KIND_BLOCKED_IP"]}},
        {"nodeJoined": {"nodeId": "n", "roles": ["imap"], "gatewayId": "g"}},
        {"nodeLeft": {"nodeId": "n", "gatewayId": "g", "reason": "NODE_LEFT_REASON_LOST"}},
    ]);
    let kinds = kinds.as_array().unwrap();
    let arms = descriptor("Event").oneofs().next().unwrap().fields().count();
    assert_eq!(kinds.len(), arms, "every kind is tested");
    for kind in kinds {
        let event = event_from_json(kind.clone()).unwrap();
        assert_eq!(event_to_json(&event), *kind);
    }
}

#[test]
fn a_payload_of_a_known_type_is_json_of_that_type() {
    let json = json!({"custom": {"type": "x", "payload":
        {"@type": "type.googleapis.com/trunkline.v1.QueueStatus", "state": "STATE_RUNNING"}}});
    let event = event_from_json(json.clone()).unwrap();
    assert_eq!(event_to_json(&event), json);
}

#[test]
fn a_payload_that_does_not_decode_as_its_type_is_written_as_bytes() {
    let payload = Any {
        type_url: "type.googleapis.com/trunkline.v1.QueueStatus".into(),
        value: vec![0xff; 3],
    };
    let custom = CustomEvent { r#type: "x".into(), payload: Some(payload), ..Default::default() };
    let event = Event::from(custom);
    let json = event_to_json(&event);
    assert_eq!(json["custom"]["payload"]["@bytes"], "////");
    assert_eq!(event_from_json(json).unwrap(), event);
}

#[test]
fn events_of_a_response_are_written_as_single_events_are() {
    let payload = Any { type_url: "type.example.com/x.Y".into(), value: vec![1, 2, 3] };
    let custom = CustomEvent { r#type: "x".into(), payload: Some(payload), ..Default::default() };
    let event = Event::from(custom);
    let batch = EventBatch { events: vec![event.clone()], resume_token: vec![7] };
    let response = SubscribeResponse { response: Some(Response::Events(batch)) };
    let json = response_to_json(&response).unwrap();
    assert_eq!(json["events"]["events"], json!([event_to_json(&event)]));
    assert_eq!(json["events"]["resumeToken"], "Bw==");
}

#[test]
fn an_unknown_field_is_an_error_that_names_it() {
    let error = event_from_json(json!({"mailboxChange": {"account": "a"}})).unwrap_err();
    assert!(error.contains("account"), "{error}");
}

fn custom(type_url: &str, value: Vec<u8>) -> Event {
    let payload = Some(Any { type_url: type_url.to_owned(), value });
    CustomEvent { r#type: "x".into(), payload, ..Default::default() }.into()
}

#[test]
fn structs_and_values_are_json_and_kept_whole() {
    for payload in [
        json!({"@type": "type.googleapis.com/google.protobuf.Struct",
            "value": {"a": 1.5, "b": [null, true, {"c": "d"}], "e": {}}}),
        json!({"@type": "type.googleapis.com/google.protobuf.Value", "value": ["a", null]}),
        json!({"@type": "type.googleapis.com/google.protobuf.ListValue", "value": [false]}),
        json!({"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "AQID"}),
        json!({"@type": "type.googleapis.com/google.protobuf.BytesValue", "value": "AQID"}),
        json!({"@type": "type.googleapis.com/google.protobuf.Any", "value":
            {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "7s"}}),
    ] {
        let event = event_from_json(json!({"custom": {"type": "x", "payload": payload}})).unwrap();
        let Some(Kind::Custom(custom)) = &event.kind else { panic!("{event:?}") };
        assert!(!custom.payload.as_ref().unwrap().value.is_empty(), "{payload}");
        assert_eq!(event_to_json(&event)["custom"]["payload"], payload);
    }
}

#[test]
fn a_payload_in_another_encoding_is_readable_and_keeps_its_bytes() {
    // The fields b and a of a Struct, in this order.
    let field = |name: u8, number: f64| {
        let mut field = vec![0x0a, 14, 0x0a, 1, name, 0x12, 9, 0x11];
        field.extend(number.to_le_bytes());
        field[1] = u8::try_from(field.len() - 2).unwrap();
        field
    };
    let bytes = [field(b'b', 2.0), field(b'a', 1.0)].concat();
    let event = custom("type.googleapis.com/google.protobuf.Struct", bytes.clone());
    let json = event_to_json(&event);
    let payload = &json["custom"]["payload"];
    assert_eq!(payload["value"], json!({"a": 1.0, "b": 2.0}));
    assert_eq!(payload["@bytes"], STANDARD.encode(&bytes));
    assert_eq!(event_from_json(json.clone()).unwrap(), event);
    // As jq writes numbers.
    let rewritten = json.to_string().replace("1.0", "1").replace("2.0", "2");
    assert_eq!(event_from_json(serde_json::from_str(&rewritten).unwrap()).unwrap(), event);
    // One of the two was changed.
    let changed = json.to_string().replace("1.0", "3.0");
    let error = event_from_json(serde_json::from_str(&changed).unwrap()).unwrap_err();
    assert!(error.starts_with("custom.payload.@bytes: is not what"), "{error}");
    // The bytes alone are enough.
    let alone = json!({"custom": {"type": "x", "payload":
        {"@type": payload["@type"], "@bytes": payload["@bytes"]}}});
    assert_eq!(event_from_json(alone).unwrap(), event);
}

#[test]
fn nothing_of_a_payload_is_dropped() {
    for (payload, expected) in [
        (
            json!({"@type": "x/Y", "value": {"a": 1}}),
            "value: must be bytes in base64; the type x/Y",
        ),
        (json!({"@type": "x/Y", "value": "%"}), "value: "),
        (json!({"@type": "x/Y", "a": 1}), "a: the type x/Y is not known here"),
        (json!({"@type": "x/Y", "@bytes": 7}), "@bytes: must be bytes"),
        (json!({"value": "AQID"}), "@type: is required"),
        (json!("AQID"), "must be an object"),
        (json!({"@type": "a/google.protobuf.Struct", "value": {}, "x": 1}), ""),
        (json!({"@type": "a/trunkline.v1.QueueStatus", "stat": "STATE_RUNNING"}), "stat"),
    ] {
        let event = json!({"custom": {"type": "x", "payload": payload}});
        let error = event_from_json(event).expect_err(&payload.to_string());
        assert!(error.starts_with("custom.payload"), "{error}");
        assert!(error.contains(expected), "{error}");
    }
    let empty = event_from_json(json!({"custom": {"type": "x", "payload": {"@type": "x/Y"}}}));
    assert_eq!(empty.unwrap(), custom("x/Y", vec![]));
}

#[test]
fn an_event_that_json_cannot_hold_is_written_as_its_bytes() {
    let time = prost_types::Timestamp { seconds: i64::MAX, nanos: -1 };
    let event = Event { publish_time: Some(time), ..custom("x/Y", vec![1]) };
    let mut json = event_to_json(&event);
    assert_eq!(event_from_json(json.clone()).unwrap(), event);
    json["source"] = "other".into();
    let error = event_from_json(json).unwrap_err();
    assert!(error.starts_with("@bytes: is not what"), "{error}");
}
