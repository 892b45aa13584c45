//! Payloads of custom events as JSON, without a loss.
//!
//! A payload whose type is known is JSON of that type, as proto3 defines it. Not every payload can
//! be read back from that: its fields may be in another order, or of a later version, and JSON has
//! no infinity. Such a payload has its bytes too, as `@bytes`; no field has that name.

use crate::proto::v1::CustomEvent;
use base64::{Engine, engine::general_purpose::STANDARD};
use prost::{
    Message,
    encoding::{WireType, decode_key, decode_varint, encode_varint},
};
use prost_reflect::{DeserializeOptions, DynamicMessage, Kind, MessageDescriptor};
use prost_types::Any;
use serde_json::{Map, Value, json};

use super::{POOL, descriptor, to_json as message_to_json};

/// The key of the type.
const TYPE: &str = "@type";

/// The key of the bytes in base64, beside JSON that does not give them back.
const BYTES: &str = "@bytes";

/// The key of the bytes of a type that is not known.
const VALUE: &str = "value";

/// The full name of the type that holds others.
const ANY: &str = "google.protobuf.Any";

/// Writes a payload.
pub(super) fn to_json(payload: &Any) -> Value {
    let type_url = &payload.type_url;
    if known(type_url).is_none() {
        return json!({ TYPE: type_url, VALUE: STANDARD.encode(&payload.value) });
    }
    let mut written = typed(payload).unwrap_or_else(|_| json!({ TYPE: type_url }));
    if bytes_of(&written).as_ref() != Ok(&payload.value) {
        written[BYTES] = STANDARD.encode(&payload.value).into();
    }
    written
}

/// Reads a payload, written by [`to_json`] or by a person. Nothing in it is ignored. An error
/// begins with the field, and a dot before it, or with a colon.
pub(super) fn from_json(payload: &Value) -> Result<Any, String> {
    let object = payload.as_object().ok_or(": must be an object with @type")?;
    let type_url = object.get(TYPE).and_then(Value::as_str).ok_or(".@type: is required")?;
    let value = if let Some(bytes) = object.get(BYTES) {
        let value = decoded(bytes).map_err(|error| format!(".{BYTES}: {error}"))?;
        let mut others = object.clone();
        others.shift_remove(BYTES);
        if others.len() > 1 && !are_the_same(type_url, &value, others) {
            let error = "is not what the other fields say: leave it out, or leave them out";
            return Err(format!(".{BYTES}: {error}"));
        }
        value
    } else if known(type_url).is_some() {
        let only_bytes = || (object.len() == 2).then(|| decoded(object.get(VALUE)?).ok()).flatten();
        bytes_of(payload).or_else(|error| only_bytes().ok_or(format!(": {error}")))?
    } else {
        let unknown = format!(
            "the type {type_url} is not known here, so that only its bytes can \
             be given, in base64"
        );
        if let Some(other) = object.keys().find(|key| ![TYPE, VALUE].contains(&key.as_str())) {
            return Err(format!(".{other}: {unknown}, in {VALUE:?}"));
        }
        let value = object.get(VALUE).map_or(Ok(vec![]), decoded);
        value.map_err(|error| format!(".{VALUE}: {error}; {unknown}"))?
    };
    Ok(Any { type_url: type_url.to_owned(), value })
}

fn known(type_url: &str) -> Option<MessageDescriptor> {
    POOL.get_message_by_name(type_url.rsplit('/').next()?)
}

fn decoded(bytes: &Value) -> Result<Vec<u8>, String> {
    let text = bytes.as_str().ok_or("must be bytes in base64")?;
    STANDARD.decode(text).map_err(|error| error.to_string())
}

/// A payload as JSON of its type. Members are in the order of their names, since maps have none.
fn typed(payload: &Any) -> Result<Value, String> {
    let custom = CustomEvent { payload: Some(payload.clone()), ..CustomEvent::default() };
    let mut json = message_to_json("CustomEvent", &custom)?;
    let mut written = json["payload"].take();
    written.sort_all_objects();
    Ok(written)
}

/// The bytes of JSON of a known type, with the entries of maps in order.
fn bytes_of(payload: &Value) -> Result<Vec<u8>, String> {
    let custom = json!({ "payload": payload });
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let dynamic =
        DynamicMessage::deserialize_with_options(descriptor("CustomEvent"), custom, &options)
            .map_err(|error| error.to_string())?;
    let custom =
        CustomEvent::decode(&dynamic.encode_to_vec()[..]).map_err(|error| error.to_string())?;
    let Any { type_url, value } = custom.payload.unwrap_or_default();
    match known(&type_url) {
        Some(message) => ordered(&value, &message, true).ok_or("is of another form".to_owned()),
        None => Ok(value),
    }
}

/// True if these bytes are those of a payload with these other fields. Tools may have written the
/// numbers in other words, as `1` for `1.0`.
fn are_the_same(type_url: &str, bytes: &[u8], others: Map<String, Value>) -> bool {
    let payload = Any { type_url: type_url.to_owned(), value: bytes.to_vec() };
    let others = Value::Object(others);
    typed(&payload).is_ok_and(|written| {
        written == others || bytes_of(&written).is_ok_and(|bytes| Ok(bytes) == bytes_of(&others))
    })
}

/// An encoded message with the entries of each map in the order of their bytes: a map in memory has
/// none. None if it is not of this type. `contents`: those in an `Any` too.
pub(super) fn ordered(
    bytes: &[u8],
    message: &MessageDescriptor,
    contents: bool,
) -> Option<Vec<u8>> {
    let mut fields: Vec<(u32, Vec<u8>)> = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let field = rest;
        let (number, wire_type) = decode_key(&mut rest).ok()?;
        let descriptor = message.get_field(number)?;
        let head = field.len() - rest.len();
        let skipped = match wire_type {
            WireType::Varint => {
                decode_varint(&mut rest).ok()?;
                0
            }
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            WireType::LengthDelimited => usize::try_from(decode_varint(&mut rest).ok()?).ok()?,
            WireType::StartGroup | WireType::EndGroup => return None,
        };
        let content = rest.get(..skipped)?;
        rest = &rest[skipped..];
        let mut encoded = field[..field.len() - rest.len()].to_vec();
        let inner = match descriptor.kind() {
            Kind::Message(inner) => Some(inner),
            // The content of an `Any`, whose type was read before.
            Kind::Bytes if contents && message.full_name() == ANY => held(bytes),
            _ => None,
        };
        if let Some(inner) = inner.filter(|_| wire_type == WireType::LengthDelimited) {
            let content = ordered(content, &inner, contents)?;
            encoded.truncate(head);
            encode_varint(content.len() as u64, &mut encoded);
            encoded.extend(content);
        }
        fields.push((number, encoded));
    }
    let is_map = |number| message.get_field(number).is_some_and(|field| field.is_map());
    for same in fields.chunk_by_mut(|a, b| a.0 == b.0) {
        if is_map(same[0].0) {
            same.sort();
        }
    }
    Some(fields.into_iter().flat_map(|(_, encoded)| encoded).collect())
}

/// The type of what an encoded `Any` holds, where it is known.
fn held(any: &[u8]) -> Option<MessageDescriptor> {
    known(&Any::decode(any).ok()?.type_url)
}
