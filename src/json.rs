//! proto3 JSON of the wire API, for the command line and for HTTP, with the descriptors that
//! reflection serves.

mod payload;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use crate::proto::v1::{
    DESCRIPTORS, Event, SubscribeResponse, event::Kind, subscribe_response::Response,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use prost::Message;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions,
};
use serde_json::{Value, json};

/// The types of the API, and those that protobuf itself defines, such as `Struct`.
static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let mut pool = DescriptorPool::decode(DESCRIPTORS).expect("the build encoded the descriptors");
    for file in DescriptorPool::global().files() {
        if pool.get_file_by_name(file.name()).is_none() {
            let added = pool.add_file_descriptor_proto(file.file_descriptor_proto().clone());
            added.expect("files of protobuf import one another, in this order");
        }
    }
    pool
});

/// The key of an encoded event that JSON cannot hold, in base64.
const BYTES: &str = "@bytes";

/// The descriptor of a message of `trunkline.v1`.
///
/// # Panics
///
/// If there is none of this name.
pub fn descriptor(name: &str) -> MessageDescriptor {
    let full = format!("trunkline.v1.{name}");
    POOL.get_message_by_name(&full).expect("a message of the API")
}

/// Writes a message of `trunkline.v1` as JSON. The error is text.
pub fn to_json(name: &str, message: &impl Message) -> Result<Value, String> {
    let bytes = message.encode_to_vec();
    let dynamic = DynamicMessage::decode(descriptor(name), &bytes[..])
        .map_err(|error| format!("{name}: {error}"))?;
    let options = SerializeOptions::new();
    dynamic
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|error| format!("{name}: {error}"))
}

/// Reads a message of `trunkline.v1` from JSON, and encodes it. Fields that are not known are an
/// error, which is text.
pub fn from_json(name: &str, json: Value) -> Result<Vec<u8>, String> {
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let dynamic = DynamicMessage::deserialize_with_options(descriptor(name), json, &options)
        .map_err(|error| error.to_string())?;
    Ok(dynamic.encode_to_vec())
}

/// Writes a response of a subscription as JSON, its events as [`event_to_json`] does.
pub fn response_to_json(response: &SubscribeResponse) -> Result<Value, String> {
    let mut response = response.clone();
    let events = match &mut response.response {
        Some(Response::Events(batch)) => std::mem::take(&mut batch.events),
        _ => vec![],
    };
    let mut json = to_json("SubscribeResponse", &response)?;
    if !events.is_empty() {
        json["events"]["events"] = events.iter().map(event_to_json).collect();
    }
    Ok(json)
}

/// Writes an event as JSON, from which [`event_from_json`] reads the same event.
///
/// An event that its JSON does not give back, such as one with a time beyond the year 9999, has its
/// bytes too: nothing that a publisher sends is lost, or ends the stream of a subscriber.
pub fn event_to_json(event: &Event) -> Value {
    let mut plain = event.clone();
    let payload = match &mut plain.kind {
        Some(Kind::Custom(custom)) => custom.payload.take(),
        _ => None,
    };
    let Ok(mut json) = to_json("Event", &plain) else {
        return json!({
            "eventId": event.event_id,
            "source": event.source,
            BYTES: encoded(event),
        });
    };
    if let Some(labels) = json.pointer_mut("/custom/labels") {
        labels.sort_all_objects();
    }
    if let Some(payload) = payload {
        json["custom"]["payload"] = payload::to_json(&payload);
    }
    // A time with nanoseconds that are none, for example.
    if plain_event_from_json(json.clone()).as_ref() != Ok(event) {
        json[BYTES] = encoded(event).into();
    }
    json
}

/// The bytes of an event in base64: the same ones each time, although its labels have no order.
fn encoded(event: &Event) -> String {
    let bytes = event.encode_to_vec();
    STANDARD.encode(payload::ordered(&bytes, &descriptor("Event"), false).unwrap_or(bytes))
}

/// Reads the events of JSON that was written by [`event_to_json`] or [`response_to_json`]. A
/// response of another sort has none.
pub fn events_from_json(mut json: Value) -> Result<Vec<Event>, String> {
    let responses = descriptor("SubscribeResponse");
    let is_response = json.as_object().is_some_and(|object| {
        object.len() == 1
            && object.keys().all(|key| responses.get_field_by_json_name(key).is_some())
    });
    if !is_response {
        return Ok(vec![event_from_json(json)?]);
    }
    let Value::Array(events) = json["events"]["events"].take() else { return Ok(vec![]) };
    let read = events.into_iter().enumerate().map(|(nth, event)| {
        event_from_json(event).map_err(|error| format!("events.events[{nth}]: {error}"))
    });
    read.collect()
}

/// Reads an event from JSON, written by [`event_to_json`] or by a person.
pub fn event_from_json(json: Value) -> Result<Event, String> {
    match json.get(BYTES) {
        Some(bytes) => event_from_bytes(&json, bytes),
        None => plain_event_from_json(json),
    }
}

fn plain_event_from_json(mut json: Value) -> Result<Event, String> {
    let custom = json.get_mut("custom").and_then(Value::as_object_mut);
    let payload = custom.and_then(|custom| custom.shift_remove("payload"));
    let payload = match payload {
        None | Some(Value::Null) => None,
        Some(payload) => {
            let read = payload::from_json(&payload);
            Some(read.map_err(|error| format!("custom.payload{error}"))?)
        }
    };
    let bytes = from_json("Event", json)?;
    let mut event = Event::decode(&bytes[..]).map_err(|error| error.to_string())?;
    if let Some(Kind::Custom(custom)) = &mut event.kind {
        custom.payload = payload;
    }
    Ok(event)
}

fn event_from_bytes(json: &Value, bytes: &Value) -> Result<Event, String> {
    let decoded = bytes.as_str().and_then(|text| STANDARD.decode(text).ok());
    let event = decoded.and_then(|bytes| Event::decode(&bytes[..]).ok());
    let event = event.ok_or_else(|| format!("{BYTES}: must be an encoded event in base64"))?;
    if event_to_json(&event) == *json {
        return Ok(event);
    }
    Err(format!("{BYTES}: is not what the other fields say: publish it as it was printed"))
}
