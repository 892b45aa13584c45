//! The published events: encoded once, with a new time in the id for each publication.

use prost::Message;
use prost_types::{Any, Timestamp};
use trunkline_proto::v1::{ChangedType, CustomEvent, Event, MailboxChange, event::Kind};

use super::{raw::stamp, received::id};

/// Accounts that take turns: the events of one request concern several, as on a mail server.
const TURNS: usize = 64;

/// Bytes of content of a custom event.
const CUSTOM_BYTES: usize = 128;

/// The kinds of events that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A mailbox change.
    Mailbox,
    /// A custom event with 128 bytes of content.
    Custom,
}

impl Content {
    /// Its name in the names of scenarios.
    pub fn name(self) -> &'static str {
        match self {
            Content::Mailbox => "mailbox changes",
            Content::Custom => "128-byte custom events",
        }
    }
}

/// Encoded events of one kind.
pub struct Payload {
    // As a node publishes them to a gateway.
    published: Vec<Vec<u8>>,
    // As they are delivered, with source and time; also as they are published without a gateway.
    delivered: Vec<Vec<u8>>,
}

impl Payload {
    /// Events of this content.
    pub fn new(content: Content) -> Payload {
        let events: Vec<Event> = (0..TURNS).map(|turn| event(content, turn)).collect();
        let time = Timestamp { seconds: 1_800_000_000, nanos: 123_456_789 };
        let delivered = |event: &Event| Event {
            source: "publisher-0".to_owned(),
            publish_time: Some(time),
            ..event.clone()
        };
        Payload {
            published: events.iter().map(Message::encode_to_vec).collect(),
            delivered: events.iter().map(|event| delivered(event).encode_to_vec()).collect(),
        }
    }

    /// Event number `number` as a node publishes it to a gateway.
    pub fn published(&self, number: usize, at: u64) -> Vec<u8> {
        stamped(&self.published, number, at)
    }

    /// Event number `number` as it is delivered.
    pub fn delivered(&self, number: usize, at: u64) -> Vec<u8> {
        stamped(&self.delivered, number, at)
    }
}

/// An encoded mailbox change of an account.
pub fn change_of(account: &str) -> Vec<u8> {
    Event { event_id: id(0), kind: Some(mailbox(account.to_owned())), ..Event::default() }
        .encode_to_vec()
}

fn stamped(events: &[Vec<u8>], number: usize, at: u64) -> Vec<u8> {
    let mut event = events[number % TURNS].clone();
    stamp(&mut event, &id(at));
    event
}

fn event(content: Content, turn: usize) -> Event {
    let kind = match content {
        Content::Mailbox => mailbox(format!("account-{turn:02}")),
        Content::Custom => Kind::Custom(CustomEvent {
            r#type: "com.example.bench".to_owned(),
            payload: Some(Any {
                type_url: "type.googleapis.com/com.example.Bench".to_owned(),
                value: vec![b'x'; CUSTOM_BYTES],
            }),
            ..CustomEvent::default()
        }),
    };
    Event { event_id: id(0), kind: Some(kind), ..Event::default() }
}

fn mailbox(account_id: String) -> Kind {
    Kind::MailboxChange(MailboxChange {
        account_id,
        change_id: 123_456,
        changed_types: vec![ChangedType::Email.into(), ChangedType::Mailbox.into()],
        ..Default::default()
    })
}
