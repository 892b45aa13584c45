//! Events as nodes publish them. Each has a number.

use bytes::Bytes;
use prost::Message;
use trunkline::{
    hub::event::EventView,
    proto::v1::{self, event::Kind},
};

/// The encoded event of this number.
pub fn encode(number: u64) -> Bytes {
    let change =
        v1::MailboxChange { account_id: "a".into(), change_id: number, ..Default::default() };
    let event = v1::Event {
        event_id: number.to_string(),
        source: "publisher".into(),
        kind: Some(Kind::MailboxChange(change)),
        ..Default::default()
    };
    event.encode_to_vec().into()
}

/// The number of an encoded event.
pub fn number(event: &[u8]) -> u64 {
    let event = EventView::peek(event).expect("an event");
    event.event_id().parse().expect("its number")
}
