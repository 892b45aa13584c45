//! proto3 JSON, with the descriptors that reflection serves.

use std::sync::LazyLock;

use base64::{Engine, engine::general_purpose::STANDARD};
use prost::Message;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions,
};
use prost_types::Any;
use serde_json::{Value, json};
use trunkline_proto::v1::{
    CustomEvent, DESCRIPTORS, Event, SubscribeResponse, event::Kind, subscribe_response::Response,
};

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(DESCRIPTORS).expect("the build encoded the descriptors")
});

/// Key of the bytes of a payload whose type is not in the descriptors.
const PAYLOAD_BYTES: &str = "value";

fn descriptor(name: &str) -> MessageDescriptor {
    let full = format!("trunkline.v1.{name}");
    POOL.get_message_by_name(&full).expect("a message of the API")
}

/// Writes a message of `trunkline.v1` as JSON.
pub(super) fn to_json(name: &str, message: &impl Message) -> Result<Value, String> {
    let bytes = message.encode_to_vec();
    let dynamic = DynamicMessage::decode(descriptor(name), &bytes[..])
        .map_err(|error| format!("{name}: {error}"))?;
    let options = SerializeOptions::new();
    dynamic
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|error| format!("{name}: {error}"))
}

/// Writes a response of a subscription as JSON, its events as [`event_to_json`] does.
pub(super) fn response_to_json(response: &SubscribeResponse) -> Result<Value, String> {
    let mut response = response.clone();
    let events = match &mut response.response {
        Some(Response::Events(batch)) => std::mem::take(&mut batch.events),
        _ => vec![],
    };
    let mut json = to_json("SubscribeResponse", &response)?;
    if !events.is_empty() {
        json["events"]["events"] = events.iter().map(event_to_json).collect::<Result<_, _>>()?;
    }
    Ok(json)
}

/// Writes an event as JSON. A payload of a custom event whose type is not in the descriptors is
/// written as its type and its bytes in base64.
pub(super) fn event_to_json(event: &Event) -> Result<Value, String> {
    let mut event = event.clone();
    let payload = match &mut event.kind {
        Some(Kind::Custom(custom)) => custom.payload.take(),
        _ => None,
    };
    let mut json = to_json("Event", &event)?;
    if let Some(payload) = payload {
        json["custom"]["payload"] = payload_to_json(payload);
    }
    Ok(json)
}

/// Writes a payload whose type is in the descriptors as JSON of that type. Any other payload, and
/// one that does not decode as its type, is written as bytes: a bad payload must not end the stream
/// of a subscriber.
fn payload_to_json(payload: Any) -> Value {
    let bytes = json!({
        "@type": payload.type_url,
        PAYLOAD_BYTES: STANDARD.encode(&payload.value),
    });
    if POOL.get_message_by_name(type_name(&payload.type_url)).is_none() {
        return bytes;
    }
    let custom = CustomEvent { payload: Some(payload), ..CustomEvent::default() };
    match to_json("CustomEvent", &custom) {
        Ok(mut json) => json["payload"].take(),
        Err(_) => bytes,
    }
}

/// Reads an event from JSON, written by [`event_to_json`] or by a person.
pub(super) fn event_from_json(mut json: Value) -> Result<Event, String> {
    let mut payload = None;
    if let Some(custom) = json.get_mut("custom").and_then(Value::as_object_mut)
        && let Some(found) = custom.get("payload")
        && let Some(type_url) = found.get("@type").and_then(Value::as_str)
        && !is_of_known_type(type_url, found)
    {
        let bytes = found.get(PAYLOAD_BYTES).and_then(Value::as_str).unwrap_or_default();
        let value = STANDARD.decode(bytes).map_err(|error| {
            format!(
                "custom.payload.{PAYLOAD_BYTES}: {error}; it must be base64, since the type \
                 {type_url} is unknown"
            )
        })?;
        payload = Some(Any { type_url: type_url.to_owned(), value });
        custom.remove("payload");
    }
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let dynamic = DynamicMessage::deserialize_with_options(descriptor("Event"), json, &options)
        .map_err(|error| error.to_string())?;
    let mut event =
        Event::decode(&dynamic.encode_to_vec()[..]).map_err(|error| error.to_string())?;
    if let Some(Kind::Custom(custom)) = &mut event.kind
        && payload.is_some()
    {
        custom.payload = payload;
    }
    Ok(event)
}

/// True if a payload is JSON of a type in the descriptors. One that does not parse as its type but
/// holds bytes alone is taken as bytes.
fn is_of_known_type(type_url: &str, payload: &Value) -> bool {
    if POOL.get_message_by_name(type_name(type_url)).is_none() {
        return false;
    }
    let only_bytes = payload.as_object().is_some_and(|object| object.len() == 2)
        && payload[PAYLOAD_BYTES].as_str().is_some_and(|text| STANDARD.decode(text).is_ok());
    let custom = json!({ "payload": payload });
    let options = DeserializeOptions::new();
    let parsed =
        DynamicMessage::deserialize_with_options(descriptor("CustomEvent"), custom, &options);
    parsed.is_ok() || !only_bytes
}

fn type_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use trunkline_proto::v1::EventBatch;

    use super::*;

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
        ]);
        let kinds = kinds.as_array().unwrap();
        let arms = descriptor("Event").oneofs().next().unwrap().fields().count();
        assert_eq!(kinds.len(), arms, "every kind is tested");
        for kind in kinds {
            let event = event_from_json(kind.clone()).unwrap();
            assert_eq!(event_to_json(&event).unwrap(), *kind);
        }
    }

    #[test]
    fn a_payload_of_a_known_type_is_json_of_that_type() {
        let json = json!({"custom": {"type": "x", "payload":
            {"@type": "type.googleapis.com/trunkline.v1.QueueStatus", "state": "STATE_RUNNING"}}});
        let event = event_from_json(json.clone()).unwrap();
        assert_eq!(event_to_json(&event).unwrap(), json);
    }

    #[test]
    fn a_payload_that_does_not_decode_as_its_type_is_written_as_bytes() {
        let payload = Any {
            type_url: "type.googleapis.com/trunkline.v1.QueueStatus".into(),
            value: vec![0xff; 3],
        };
        let custom =
            CustomEvent { r#type: "x".into(), payload: Some(payload), ..Default::default() };
        let event = Event::from(custom);
        let json = event_to_json(&event).unwrap();
        assert_eq!(json["custom"]["payload"]["value"], "////");
        assert_eq!(event_from_json(json).unwrap(), event);
    }

    #[test]
    fn events_of_a_response_are_written_as_single_events_are() {
        let payload = Any { type_url: "type.example.com/x.Y".into(), value: vec![1, 2, 3] };
        let custom =
            CustomEvent { r#type: "x".into(), payload: Some(payload), ..Default::default() };
        let event = Event::from(custom);
        let batch = EventBatch { events: vec![event.clone()], resume_token: vec![7] };
        let response = SubscribeResponse { response: Some(Response::Events(batch)) };
        let json = response_to_json(&response).unwrap();
        assert_eq!(json["events"]["events"], json!([event_to_json(&event).unwrap()]));
        assert_eq!(json["events"]["resumeToken"], "Bw==");
    }

    #[test]
    fn an_unknown_field_is_an_error_that_names_it() {
        let error = event_from_json(json!({"mailboxChange": {"account": "a"}})).unwrap_err();
        assert!(error.contains("account"), "{error}");
    }
}
