//! The channel `stwt.agora` of Stalwart Mail Server, releases 0.15 and 0.16.
//!
//! A message is the id of the node that sends it, then events until its end: a tag of one byte, and
//! the fields of the event. Numbers are LEB128, texts have their length before them. It has no
//! version, no length of an event and no count of events: what follows a tag that a node does not
//! know is lost for it, and a count or length that is not that of what is there makes a node fail.
//! So nothing is passed on that was not read, and what may be unknown to a node comes alone.
//!
//! | tag in 0.16 | event | fields |
//! |---|---|---|
//! | 0 | state change | change id, types (a bit each), account |
//! | 1 | calendar alert | account, event, recurrence (seconds, 0: none), uid, alert id |
//! | 2 | e-mail push | account, e-mail, change id |
//! | 3 | push server update | account |
//! | 4, 5 | registry insert, delete | type of object, id |
//! | 6 | registry reload | type of object |
//! | 7 | cache invalidation | count, then for each: cache (a byte), id, hash (one cache alone) |
//! | 8, 9 | invalidation of all caches, of negative entries | |
//! | 10, 11 | queue running, paused | |
//! | 12 | queue refresh | |
//!
//! Tags 3 to 8 of 0.15 are: access tokens, groupware caches (a count and ids each), settings,
//! banned addresses, push server update, spam filter.

mod decode;
mod encode;
mod event;
mod names;
mod reader;
mod recurrence;
mod version;
mod wire;

use bytes::Bytes;
use trunkline_proto::v1::{event::Kind, queue_status};

pub use self::{
    decode::{Events, Message},
    encode::Writer,
    event::{Entries, Entry, EntryIter, Event},
    names::{Cache, Types, object_type},
    version::{Tags, UnknownVersion, Version, Young},
};
use super::{ACCOUNTS, Decoded, Encoded, Format, Healing, LeftOut, Undecodable};

/// The node id of an agent: nodes take every id but their own, and their own begin at 0.
pub const AGENT: u16 = u16::MAX;

/// The format, in one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agora {
    /// The version that all nodes of this host have.
    pub version: Version,
    /// The node id of the agent's own messages.
    pub sender: u16,
}

impl Default for Agora {
    fn default() -> Agora {
        Agora { version: Version::default(), sender: AGENT }
    }
}

impl Agora {
    /// The error of a message, which says so where another release reads all of it: nodes have
    /// that one, as a rule.
    fn explained(self, message: &[u8], mut error: Undecodable) -> Undecodable {
        let (tags, release) = match self.version.tags {
            Tags::V0_15 => (Tags::V0_16, "0.16"),
            Tags::V0_16 => (Tags::V0_15, "0.15"),
        };
        if Message::read(message, tags).is_ok_and(|message| message.events().all(|e| e.is_ok())) {
            let set = self.version;
            let why = error.why;
            error.why =
                format!("{why}; it can be read as of release {release}, and release {set} is set");
        }
        error
    }
}

impl Format for Agora {
    fn name(&self) -> &'static str {
        "agora"
    }

    fn channel(&self) -> &'static str {
        "stwt.agora"
    }

    fn version(&self) -> String {
        self.version.to_string()
    }

    fn sender(&self) -> Option<u16> {
        Some(self.sender)
    }

    fn decode<'a>(&self, message: &'a [u8]) -> Result<Decoded<'a>, Undecodable> {
        let (format, bytes) = (*self, message);
        let message = Message::read(bytes, self.version.tags)?;
        let mut events = message.events();
        let mut kinds = None;
        let events = std::iter::from_fn(move || {
            loop {
                if let Some(kind) = kinds.as_mut().and_then(wire::Kinds::next) {
                    return Some(Ok(kind));
                }
                match events.next()? {
                    Ok(event) => kinds = Some(wire::Kinds::of(&event)),
                    Err(error) => return Some(Err(format.explained(bytes, error))),
                }
            }
        });
        Ok(Decoded { sender: Some(message.sender()), events: Box::new(events) })
    }

    fn recode(&self, bytes: &[u8]) -> (Vec<Bytes>, Option<Undecodable>) {
        let message = match Message::read(bytes, self.version.tags) {
            Ok(message) => message,
            Err(error) => return (Vec::new(), Some(error)),
        };
        let mut writer = Writer::new(message.sender(), self.version);
        for event in message.events() {
            match event {
                Ok(event) => {
                    // It was read in the version in which it is written, which has it.
                    let _ = writer.put(&event);
                }
                Err(error) => return (writer.finish(), Some(self.explained(bytes, error))),
            }
        }
        (writer.finish(), None)
    }

    fn encode(&self, events: &[Kind]) -> Encoded {
        let mut writer = Writer::new(self.sender, self.version);
        let mut left_out = Vec::new();
        for (index, kind) in events.iter().enumerate() {
            if let Err(why) = wire::put(&mut writer, kind) {
                left_out.push(LeftOut { index, why });
            }
        }
        Encoded { messages: writer.finish(), left_out }
    }

    fn heal(&self, healing: &Healing<'_>) -> Vec<Bytes> {
        let mut writer = Writer::new(self.sender, self.version);
        let accounts: Vec<&str> = match healing.accounts {
            Some(accounts) => accounts.iter().map(String::as_str).collect(),
            None => healing.known.accounts().collect(),
        };
        // Accounts of other servers are none of these nodes'.
        let number = |id: &str| names::decimal::<u32>(id).map(|number| (number, id.to_owned()));
        let mut accounts: Vec<(u32, String)> = accounts.into_iter().filter_map(number).collect();
        accounts.sort_unstable();
        accounts.dedup();

        let reload = |object_type| Event::RegistryReload { object_type };
        // A release leaves out what it does not have: it has no other way to say it.
        let _ = writer.put(&Event::CacheInvalidateAll);
        let _ = writer.put(&Event::CacheInvalidateNegative);
        if self.version.tags == Tags::V0_15 {
            // Which has no way to drop everything.
            let entry = |cache| move |(id, _): &(u32, String)| Entry { cache, id: *id, hash: 0 };
            let tokens = accounts.iter().map(entry(Cache::AccessToken));
            let groupware = accounts.iter().map(entry(Cache::DavResources));
            let entries: Vec<Entry> = tokens.chain(groupware).collect();
            let _ = writer.put(&Event::CacheInvalidate(Entries::new(&entries)));
        }
        let _ = writer.put(&reload(names::BLOCKED_IP));
        let _ = writer.put(&reload(names::CERTIFICATE));
        if healing.settings {
            let _ = writer.put(&reload(names::DATA_STORE));
        }
        if let Some(state) = healing.known.queue() {
            let is_running = state == queue_status::State::Running;
            let _ = writer.put(&Event::QueueStatus { is_running });
        }
        let _ = writer.put(&Event::QueueRefresh);
        writer.end_message();
        for some in accounts.chunks(ACCOUNTS) {
            for (account_id, id) in some {
                // A node reads the store; the number is only shown to clients.
                let change_id = healing.known.state_of(id).max(1);
                let change =
                    Event::StateChange { account_id: *account_id, change_id, types: Types::ALL };
                let _ = writer.put(&change);
            }
            writer.end_message();
        }
        writer.finish()
    }

    /// A message without events.
    fn probe(&self) -> Option<Bytes> {
        let mut message = Vec::new();
        reader::put_number(&mut message, self.sender.into());
        Some(message.into())
    }
}

#[cfg(test)]
mod tests;
