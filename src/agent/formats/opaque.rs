//! Channels whose messages mean nothing to the agent: each is a custom event.
//!
//! Such an event has the type `redis/<channel>`, in which `_` stands for what a type cannot have,
//! the name of the channel as it is in the label `channel`, and the message as a `BytesValue`.
//! Another node may send a `StringValue` as well.

use std::iter;

use bytes::Bytes;
use prost::Message as _;
use trunkline_proto::v1::{CustomEvent, event::Kind};

use super::{Decoded, Encoded, Format, Healing, LeftOut, Undecodable};

/// The beginning of the types of events.
const TYPE: &str = "redis/";

/// The longest type.
const MAX_TYPE: usize = 128;

/// The label with the name of the channel.
const LABEL: &str = "channel";

/// The longest label.
const MAX_CHANNEL: usize = 1024;

const BYTES: &str = "google.protobuf.BytesValue";
const STRING: &str = "google.protobuf.StringValue";

/// A channel whose messages are carried as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opaque {
    channel: String,
    event_type: String,
    healing: Option<Bytes>,
}

impl Opaque {
    /// A channel, and the message that heals its programs: they read everything again, or whatever
    /// their developers had in mind. None: they are not healed.
    ///
    /// # Errors
    ///
    /// The name is empty or too long.
    pub fn new(channel: &str, healing: Option<Bytes>) -> Result<Opaque, String> {
        if channel.is_empty() || channel.len() > MAX_CHANNEL {
            return Err(format!("the name of a channel has 1 to {MAX_CHANNEL} bytes"));
        }
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
        let name = channel.chars().map(|c| if fits(c) { c } else { '_' });
        let event_type = TYPE.chars().chain(name).take(MAX_TYPE).collect();
        Ok(Opaque { channel: channel.to_owned(), event_type, healing })
    }

    fn message_of(&self, kind: &Kind) -> Result<Bytes, &'static str> {
        let Kind::Custom(event) = kind else { return Err("it is no custom event") };
        if event.r#type != self.event_type || event.labels.get(LABEL) != Some(&self.channel) {
            return Err("it is of no channel of this agent");
        }
        let Some(payload) = &event.payload else { return Ok(Bytes::new()) };
        let message = match payload.type_url.rsplit('/').next() {
            Some(BYTES) => Bytes::decode(&*payload.value),
            Some(STRING) => String::decode(&*payload.value).map(Bytes::from),
            _ => return Err("its payload is neither a BytesValue nor a StringValue"),
        };
        message.map_err(|_| "its payload cannot be read")
    }
}

impl Format for Opaque {
    fn name(&self) -> &'static str {
        "opaque"
    }

    fn channel(&self) -> &str {
        &self.channel
    }

    fn version(&self) -> String {
        String::new()
    }

    fn sender(&self) -> Option<u16> {
        None
    }

    fn decode<'a>(&self, message: &'a [u8]) -> Result<Decoded<'a>, Undecodable> {
        let payload = prost_types::Any {
            type_url: format!("type.googleapis.com/{BYTES}"),
            value: message.to_vec().encode_to_vec(),
        };
        let event = CustomEvent {
            r#type: self.event_type.clone(),
            labels: [(LABEL.to_owned(), self.channel.clone())].into(),
            payload: Some(payload),
        };
        Ok(Decoded { sender: None, events: Box::new(iter::once(Ok(Kind::from(event)))) })
    }

    fn recode(&self, message: &[u8]) -> (Vec<Bytes>, Option<Undecodable>) {
        (vec![Bytes::copy_from_slice(message)], None)
    }

    fn encode(&self, events: &[Kind]) -> Encoded {
        let mut encoded = Encoded::default();
        for (index, kind) in events.iter().enumerate() {
            match self.message_of(kind) {
                Ok(message) => encoded.messages.push(message),
                Err(why) => encoded.left_out.push(LeftOut { index, why }),
            }
        }
        encoded
    }

    fn heal(&self, _: &Healing<'_>) -> Vec<Bytes> {
        self.healing.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opaque(channel: &str) -> Opaque {
        Opaque::new(channel, None).unwrap()
    }

    fn event_of(format: &Opaque, message: &[u8]) -> Kind {
        format.decode(message).unwrap().events.next().unwrap().unwrap()
    }

    #[test]
    fn a_message_is_a_custom_event_and_a_message_of_that_channel_alone() {
        let format = opaque("app:cache 1");
        let kind = event_of(&format, b"\0\xff");
        let Kind::Custom(event) = &kind else { panic!("{kind:?}") };
        assert_eq!(event.r#type, "redis/app_cache_1");
        assert_eq!(event.labels["channel"], "app:cache 1");
        assert_eq!(format.encode(std::slice::from_ref(&kind)).messages, [&b"\0\xff"[..]]);
        // Of the same type.
        let other = opaque("app_cache_1").encode(std::slice::from_ref(&kind));
        assert_eq!((other.messages.len(), other.left_out.len()), (0, 1));
        for channel in [String::new(), "x".repeat(1025)] {
            assert!(Opaque::new(&channel, None).is_err());
        }
        let Kind::Custom(event) = event_of(&opaque(&"x".repeat(1024)), b"") else { panic!() };
        assert_eq!(event.r#type.len(), 128);
    }

    #[test]
    fn another_node_may_send_text_and_nothing_else_is_guessed() {
        let format = opaque("a");
        let Kind::Custom(mut event) = event_of(&format, b"") else { panic!() };
        let mut read = |type_name: &str, value: &[u8]| {
            let type_url = format!("type.googleapis.com/{type_name}");
            event.payload = Some(prost_types::Any { type_url, value: value.to_vec() });
            format.message_of(&Kind::from(event.clone()))
        };
        assert_eq!(read(STRING, &"hé".to_owned().encode_to_vec()), Ok("hé".into()));
        assert!(read("google.protobuf.Struct", b"").is_err());
        assert!(read(BYTES, b"\x0a\x05x").is_err());
        event.payload = None;
        assert_eq!(format.message_of(&event.into()), Ok(Bytes::new()));
    }
}
