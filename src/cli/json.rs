//! proto3 JSON, over the descriptors that reflection serves.

use std::sync::LazyLock;

use base64::{Engine, engine::general_purpose::STANDARD};
use prost::Message;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions,
};
use serde_json::Value;
use trunkline::proto::v1::{DESCRIPTORS, Event};

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(DESCRIPTORS).expect("the descriptors are those of the build")
});

/// Key of the bytes of a payload whose type is not known here.
const PAYLOAD_BYTES: &str = "value";

fn descriptor(name: &str) -> MessageDescriptor {
    let full = format!("trunkline.v1.{name}");
    POOL.get_message_by_name(&full).expect("a message of the descriptors")
}

/// A message as JSON. The payload of a custom event whose type is not known here is its type and its bytes in base64.
pub(super) fn to_json(name: &str, message: &impl Message) -> Result<Value, String> {
    let bytes = message.encode_to_vec();
    let dynamic = DynamicMessage::decode(descriptor(name), &bytes[..])
        .map_err(|error| format!("{name}: {error}"))?;
    let options = SerializeOptions::new();
    dynamic
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|error| format!("{name}: {error}"))
}

/// An event as JSON.
pub(super) fn event_to_json(event: &Event) -> Result<Value, String> {
    let mut event = event.clone();
    let payload = match &mut event.kind {
        Some(trunkline::proto::v1::event::Kind::Custom(custom)) => custom.payload.take(),
        _ => None,
    };
    let mut json = to_json("Event", &event)?;
    if let Some(payload) = payload {
        let known = POOL.get_message_by_name(type_name(&payload.type_url)).is_some();
        json["custom"]["payload"] = if known {
            let wrapped = Event {
                kind: Some(trunkline::proto::v1::event::Kind::Custom(
                    trunkline::proto::v1::CustomEvent {
                        payload: Some(payload),
                        ..Default::default()
                    },
                )),
                ..Default::default()
            };
            to_json("Event", &wrapped)?["custom"]["payload"].take()
        } else {
            serde_json::json!({
                "@type": payload.type_url,
                PAYLOAD_BYTES: STANDARD.encode(&payload.value),
            })
        };
    }
    Ok(json)
}

/// Reads an event from JSON, as [`event_to_json`] wrote it or a person did.
pub(super) fn event_from_json(mut json: Value) -> Result<Event, String> {
    let mut payload = None;
    if let Some(custom) = json.get_mut("custom").and_then(Value::as_object_mut)
        && let Some(given) = custom.get("payload")
        && let Some(type_url) = given.get("@type").and_then(Value::as_str)
        && POOL.get_message_by_name(type_name(type_url)).is_none()
    {
        let bytes = given.get(PAYLOAD_BYTES).and_then(Value::as_str).unwrap_or_default();
        let value = STANDARD.decode(bytes).map_err(|error| {
            format!("custom.payload.{PAYLOAD_BYTES}: {error}; {type_url} is not known here, so it must be base64")
        })?;
        payload = Some(prost_types::Any { type_url: type_url.to_owned(), value });
        custom.remove("payload");
    }
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let dynamic = DynamicMessage::deserialize_with_options(descriptor("Event"), json, &options)
        .map_err(|error| error.to_string())?;
    let mut event =
        Event::decode(&dynamic.encode_to_vec()[..]).map_err(|error| error.to_string())?;
    if let Some(trunkline::proto::v1::event::Kind::Custom(custom)) = &mut event.kind
        && payload.is_some()
    {
        custom.payload = payload;
    }
    Ok(event)
}

fn type_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_comes_back_as_it_was_written() {
        let kinds = json!([
            {"mailboxChange": {"accountId": "a", "changeId": "7", "changedTypes": ["CHANGED_TYPE_EMAIL"]}},
            {"emailDelivery": {"accountId": "a", "emailId": "e", "changeId": "7"}},
            {"calendarAlert": {"accountId": "a", "eventId": "e", "uid": "u", "alertId": "1"}},
            {"pushSubscriptionChange": {"accountId": "a"}},
            {"blockedIp": {"address": "192.0.2.7", "action": "ACTION_ADDED", "expiresAt": "2026-01-01T00:00:00Z"}},
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
        assert_eq!(kinds.len(), arms, "every kind is tried");
        for kind in kinds {
            let event = event_from_json(kind.clone()).unwrap();
            assert_eq!(event_to_json(&event).unwrap(), *kind);
        }
    }

    #[test]
    fn payloads_of_known_types_read_as_json() {
        let json = json!({"custom": {"type": "x", "payload":
            {"@type": "type.googleapis.com/trunkline.v1.QueueStatus", "state": "STATE_RUNNING"}}});
        let event = event_from_json(json.clone()).unwrap();
        assert_eq!(event_to_json(&event).unwrap(), json);
    }

    #[test]
    fn an_unknown_field_is_an_error_that_names_it() {
        let error = event_from_json(json!({"mailboxChange": {"account": "a"}})).unwrap_err();
        assert!(error.contains("account"), "{error}");
    }
}
