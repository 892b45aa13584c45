//! Messages of the channel `stwt.agora`, in `payloads.json`: 66 that two nodes of Stalwart 0.16.19
//! sent, recorded with what caused them and what the other node did, and 34 that were made by hand
//! and given to those nodes, to see what they do with unusual and wrong ones. `hex` is the message,
//! `fields` are those of its events, in the names of the mail server.

use serde_json::{Value, json};
use trunkline::agent::formats::{
    Format,
    agora::{Agora, Cache, Event, Message, Tags, Types, Version, Writer, object_type},
};

/// The messages of the file.
fn payloads() -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/agent/payloads.json");
    let text = std::fs::read_to_string(path).expect("the file of messages");
    serde_json::from_str(&text).expect("a list")
}

fn bytes_of(payload: &Value) -> Vec<u8> {
    let hex = payload["hex"].as_str().expect("a message");
    let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("two digits");
    (0..hex.len()).step_by(2).map(digit).collect()
}

const TYPES: [&str; 23] = [
    "Email",
    "EmailDelivery",
    "EmailSubmission",
    "Mailbox",
    "Thread",
    "Identity",
    "Core",
    "PushSubscription",
    "SearchSnippet",
    "VacationResponse",
    "MDN",
    "Quota",
    "SieveScript",
    "Calendar",
    "CalendarEvent",
    "CalendarEventNotification",
    "AddressBook",
    "ContactCard",
    "FileNode",
    "Principal",
    "ShareNotification",
    "ParticipantIdentity",
    "CalendarAlert",
];

/// The name of an event and its fields, as the file has them.
fn described(event: &Event<'_>) -> (&'static str, Value) {
    let registry = |number: u16| (number, object_type(number));
    match *event {
        Event::StateChange { account_id, change_id, types } => {
            let names = TYPES.iter().enumerate().filter(|(bit, _)| types.0 >> bit & 1 == 1);
            let names: Vec<_> = names.map(|(_, name)| name).collect();
            let Types(types) = types;
            let fields = json!({
                "account_id": account_id, "change_id": change_id, "types": types,
                "type_names": names,
            });
            ("StateChange", fields)
        }
        Event::CalendarAlert { account_id, event_id, recurrence_id, uid, alert_id } => {
            let fields = json!({
                "account_id": account_id, "event_id": event_id, "recurrence_id": recurrence_id,
                "uid": uid, "alert_id": alert_id,
            });
            ("CalendarAlert", fields)
        }
        Event::EmailPush { account_id, email_id, change_id } => {
            let fields =
                json!({"account_id": account_id, "email_id": email_id, "change_id": change_id});
            ("EmailPush", fields)
        }
        Event::PushServerUpdate { account_id } => {
            ("PushServerUpdate", json!({"account_id": account_id}))
        }
        Event::RegistryInsert { object_type, id } => {
            let (number, name) = registry(object_type);
            ("RegistryInsert", json!({"object_type": number, "object": name, "id": id}))
        }
        Event::RegistryDelete { object_type, id } => {
            let (number, name) = registry(object_type);
            ("RegistryDelete", json!({"object_type": number, "object": name, "id": id}))
        }
        Event::RegistryReload { object_type } => {
            let (number, name) = registry(object_type);
            ("RegistryReload", json!({"object_type": number, "object": name}))
        }
        Event::CacheInvalidate(entries) => {
            let items = entries.iter().map(|entry| {
                let name = format!("{:?}", entry.cache);
                let mut item = json!({"kind": name, "marker": entry.cache as u8, "id": entry.id});
                if entry.cache == Cache::EmailNegative {
                    item["local_part_hash"] = entry.hash.into();
                }
                item
            });
            ("CacheInvalidate", json!({"items": items.collect::<Vec<_>>()}))
        }
        Event::CacheInvalidateAll => ("CacheInvalidateAll", json!({})),
        Event::CacheInvalidateNegative => ("CacheInvalidateNegative", json!({})),
        Event::QueueStatus { is_running } => ("MtaQueueStatus", json!({"is_running": is_running})),
        Event::QueueRefresh => ("QueueRefresh", json!({})),
    }
}

/// Those of the file that cannot be read to their end: how many events are read before the byte at
/// which that is found. The last ones of the file have no fields there.
const UNREADABLE: [(&str, usize, usize); 10] = [
    // A node id of more than 16 bits.
    ("80800400210901", 0, 0),
    // An unknown tag: last, first, in the middle.
    ("2a002509010d01", 1, 5),
    ("2a0d00260901", 0, 1),
    ("2a0cc800260901", 1, 2),
    // Cut off: the first event, the second.
    ("2a002709", 0, 4),
    ("2a002709010027", 1, 7),
    // Nothing, and a text.
    ("", 0, 0),
    ("68656c6c6f", 0, 1),
    // An unknown cache.
    ("2a07010c0100280901", 0, 3),
    // Not in the file: a count of 2^62.
    ("2a0780808080808080804000", 0, 2),
];

/// The one message whose bytes are not those that Trunkline writes: its node id, 42, is written
/// with more bytes than it needs.
const PADDED: &str = "aa800000210901";

/// True if all of a message is read; checks where it ends if not.
fn is_readable(hex: &str, message: &[u8]) -> bool {
    let known = UNREADABLE.iter().find(|(unreadable, ..)| *unreadable == hex);
    let mut read = 0;
    let error = match Message::read(message, Tags::V0_16) {
        Ok(message) => {
            let mut events = message.events();
            events.by_ref().find_map(|event| match event {
                Ok(_) => {
                    read += 1;
                    None
                }
                Err(error) => Some(error),
            })
        }
        Err(error) => Some(error),
    };
    let ends = error.map(|error| (read, error.at));
    assert_eq!(ends, known.map(|(_, read, at)| (*read, *at)), "{hex}");
    ends.is_none()
}

#[test]
fn all_messages_are_read_as_the_fields_that_they_have() {
    let payloads = payloads();
    assert_eq!(payloads.len(), 100);
    let mut with_fields = 0;
    for payload in &payloads {
        let message = bytes_of(payload);
        if !is_readable(payload["hex"].as_str().expect("text"), &message) {
            assert_eq!(payload["fields"], json!({}));
            continue;
        }
        let read = Message::read(&message, Tags::V0_16).expect("a sender");
        if let Some(node_id) = payload["node_id"].as_u64() {
            assert_eq!(u64::from(read.sender()), node_id);
        }
        let events: Vec<_> = read.events().map(|event| described(&event.expect("read"))).collect();
        let name = &payload["event"];
        // One event as it is; several as lists; of some by hand, only the effect is noted.
        let (names, fields) = match name {
            Value::Array(names) => (names.clone(), payload["fields"].as_array().cloned()),
            Value::String(text) if text == "edge case" => continue,
            name => (vec![name.clone()], Some(vec![payload["fields"].clone()])),
        };
        let read_names: Vec<Value> = events.iter().map(|(name, _)| (*name).into()).collect();
        assert_eq!(read_names, names);
        let read_fields: Vec<Value> = events.into_iter().map(|(_, fields)| fields).collect();
        assert_eq!(Some(read_fields), fields, "{payload}");
        with_fields += 1;
    }
    assert_eq!(with_fields, 68);
    is_readable(UNREADABLE[9].0, &bytes_of(&json!({"hex": UNREADABLE[9].0})));
}

#[test]
fn all_messages_that_can_be_read_are_written_again_byte_for_byte() {
    let mut same = 0;
    for payload in payloads() {
        let (hex, message) = (payload["hex"].as_str().expect("text"), bytes_of(&payload));
        if !is_readable(hex, &message) {
            continue;
        }
        let read = Message::read(&message, Tags::V0_16).expect("a sender");
        let mut writer = Writer::new(read.sender(), Version::V0_16_19);
        for event in read.events() {
            writer.put(&event.expect("an event")).expect("an event of this version");
        }
        let written = writer.finish();
        match hex {
            PADDED => assert_eq!(written, [[&[42], &message[3..]].concat()]),
            // Without an event, a message says nothing.
            "2a" => assert!(written.is_empty()),
            _ => {
                assert_eq!(written, [&message[..]], "{hex}");
                same += 1;
            }
        }
    }
    assert_eq!(same, 89);
}

#[test]
fn all_messages_come_back_from_the_wire_of_trunkline_as_they_were() {
    for payload in payloads() {
        let (hex, message) = (payload["hex"].as_str().expect("text"), bytes_of(&payload));
        if !is_readable(hex, &message) || hex == PADDED || hex == "2a" {
            continue;
        }
        let sender = Message::read(&message, Tags::V0_16).expect("a sender").sender();
        let format = Agora { version: Version::V0_16_19, sender };
        let decoded = format.decode(&message).expect("a sender");
        let kinds: Vec<_> = decoded.events.map(|kind| kind.expect("an event")).collect();
        let encoded = format.encode(&kinds);
        assert_eq!(encoded.left_out, [], "{hex}");
        // A type that has no name on the wire comes back as a change of anything.
        if payload["cause"].as_str().expect("text").contains("bit 40") {
            let all = Types::ALL;
            let events = Message::read(&encoded.messages[0], Tags::V0_16).expect("it").events();
            for event in events {
                assert!(matches!(event, Ok(Event::StateChange { types, .. }) if types == all));
            }
        } else {
            assert_eq!(encoded.messages, [&message[..]], "{hex}");
        }
    }
}
