//! Random events of every kind, made from the descriptors, so that a new kind or field is among
//! them.

use proptest::{prelude::*, strategy::ValueTree};
use prost_reflect::{FieldDescriptor, Kind as Type, MapKey, Value as Field};

use super::*;

/// The choices of a test case. Fewer of them make a smaller message.
#[derive(Debug)]
struct Choices(std::vec::IntoIter<u8>);

impl Choices {
    fn next(&mut self) -> u8 {
        self.0.next().unwrap_or_default()
    }

    fn below(&mut self, end: usize) -> usize {
        usize::from(u16::from_le_bytes([self.next(), self.next()])) % end
    }

    fn bits(&mut self) -> u64 {
        // Small numbers, and those of any size.
        match self.next() {
            0..100 => u64::from(self.next()),
            _ => u64::from_le_bytes(std::array::from_fn(|_| self.next())),
        }
    }

    fn text(&mut self) -> String {
        const ANY: [char; 12] = [
            'a',
            'Z',
            '0',
            '"',
            '\\',
            '\n',
            '\u{1b}',
            '\u{9b}',
            '\u{202e}',
            'é',
            '\u{1f600}',
            '\0',
        ];
        (0..self.below(6)).map(|_| ANY[self.below(ANY.len())]).collect()
    }

    fn bytes(&mut self) -> Vec<u8> {
        (0..self.below(12)).map(|_| self.next()).collect()
    }

    fn message(&mut self, of: &MessageDescriptor, depth: u8) -> DynamicMessage {
        let mut message = DynamicMessage::new(of.clone());
        if of.full_name() == "google.protobuf.Any" {
            let Any { type_url, value } = self.payload(depth);
            message.set_field_by_name("type_url", Field::String(type_url));
            message.set_field_by_name("value", Field::Bytes(value.into()));
            return message;
        }
        for oneof in of.oneofs() {
            let fields: Vec<_> = oneof.fields().collect();
            let chosen = &fields[self.below(fields.len())];
            self.set(&mut message, chosen, depth);
        }
        for field in of.fields().filter(|field| field.containing_oneof().is_none()) {
            if self.next() < 150 {
                self.set(&mut message, &field, depth);
            }
        }
        message
    }

    fn set(&mut self, message: &mut DynamicMessage, field: &FieldDescriptor, depth: u8) {
        let is_message = matches!(field.kind(), Type::Message(_));
        if depth == 0 && is_message && (field.is_list() || field.is_map()) {
            return;
        }
        let depth = depth.saturating_sub(1);
        let value = if field.is_map() {
            let Type::Message(entry) = field.kind() else { return };
            let entries = (0..self.below(4)).map(|_| {
                let key = MapKey::String(self.text());
                (key, self.value(&entry.map_entry_value_field(), depth))
            });
            Field::Map(entries.collect())
        } else if field.is_list() {
            Field::List((0..self.below(4)).map(|_| self.value(field, depth)).collect())
        } else {
            self.value(field, depth)
        };
        // Keys of maps that are no texts occur in no type so far.
        message.try_set_field(field, value).expect("a value of the field's type");
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
    fn value(&mut self, field: &FieldDescriptor, depth: u8) -> Field {
        let bits = self.bits();
        match field.kind() {
            Type::Message(inner) => Field::Message(self.message(&inner, depth)),
            Type::Enum(_) => Field::EnumNumber((bits % 7) as i32),
            Type::Bool => Field::Bool(bits.is_multiple_of(2)),
            Type::String => Field::String(self.text()),
            Type::Bytes => Field::Bytes(self.bytes().into()),
            Type::Double => Field::F64(f64::from_bits(bits.rotate_left(57))),
            Type::Float => Field::F32(f32::from_bits(bits as u32)),
            Type::Int32 | Type::Sint32 | Type::Sfixed32 => Field::I32(bits as i32),
            Type::Uint32 | Type::Fixed32 => Field::U32(bits as u32),
            Type::Int64 | Type::Sint64 | Type::Sfixed64 => Field::I64(bits as i64),
            Type::Uint64 | Type::Fixed64 => Field::U64(bits),
        }
    }

    /// A payload of a known type, of one that is not known, or of a known type and not decodable.
    fn payload(&mut self, depth: u8) -> Any {
        // The types that describe types are large and say nothing more.
        let known: Vec<_> = POOL
            .all_messages()
            .filter(|message| {
                let file = message.parent_file();
                !message.is_map_entry()
                    && ![
                        "google/protobuf/descriptor.proto",
                        "google/protobuf/compiler/plugin.proto",
                    ]
                    .contains(&file.name())
            })
            .collect();
        let of = &known[self.below(known.len())];
        let type_url = format!("type.googleapis.com/{}", of.full_name());
        match self.next() {
            0..30 => Any { type_url: "example.org/x.Y".into(), value: self.bytes() },
            30..60 => Any { type_url: self.text(), value: self.bytes() },
            60..90 => Any { type_url, value: self.bytes() },
            _ => Any { type_url, value: self.message(of, depth).encode_to_vec() },
        }
    }
}

fn choices() -> impl Strategy<Value = Choices> {
    prop::collection::vec(any::<u8>(), 0..600).prop_map(|bytes| Choices(bytes.into_iter()))
}

/// Writes an event as a line, reads it, and writes it again.
fn round_trip(event: &Event) {
    let line = event_to_json(event).to_string();
    let read = event_from_json(serde_json::from_str(&line).unwrap());
    let read = read.unwrap_or_else(|error| panic!("{error}: {line}"));
    assert_eq!(&read, event, "{line}");
    assert_eq!(event_to_json(&read).to_string(), line);
}

#[test]
fn the_random_events_are_of_every_kind_and_the_payloads_of_every_sort() {
    let (mut kinds, mut whole, mut readable, mut bytes) = ([0; 100], 0, 0, 0);
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..3000 {
        let mut choices = choices().new_tree(&mut runner).unwrap().current();
        let event = choices.message(&descriptor("Event"), 3);
        let kind = event.fields().find(|(field, _)| field.containing_oneof().is_some());
        kinds[kind.map_or(0, |(field, _)| field.number()) as usize] += 1;
        let event = Event::decode(&event.encode_to_vec()[..]).unwrap();
        if let Some(payload) = event_to_json(&event).pointer("/custom/payload") {
            match (payload.get("@bytes"), payload.as_object().unwrap().len()) {
                (None, _) => whole += 1,
                (Some(_), 2) => bytes += 1,
                (Some(_), _) => readable += 1,
            }
        }
    }
    let all = descriptor("Event").oneofs().next().unwrap();
    assert!(all.fields().all(|field| kinds[field.number() as usize] > 0), "{kinds:?}");
    assert!(whole > 10 && readable > 0 && bytes > 0, "{whole} {readable} {bytes}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn events_of_every_kind_are_read_back_as_they_were(mut choices in choices()) {
        let event = choices.message(&descriptor("Event"), 3).encode_to_vec();
        round_trip(&Event::decode(&event[..]).unwrap());
    }

    #[test]
    fn every_payload_is_read_back_byte_for_byte(mut choices in choices()) {
        let payload = Some(choices.payload(4));
        round_trip(&CustomEvent { r#type: "x".into(), payload, ..Default::default() }.into());
    }
}
