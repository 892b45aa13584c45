//! Messages, read.

use super::{
    super::Undecodable,
    event::{Entries, Event, read_entry},
    names::{self, Cache, Types},
    reader::Reader,
    version::Tags,
};

/// A message, read event by event. What is read was checked; nothing is copied.
#[derive(Clone, Debug)]
pub struct Message<'a> {
    sender: u16,
    events: Events<'a>,
}

impl<'a> Message<'a> {
    /// Reads the sender. An empty message has none, and an id of more than 16 bits is refused: a
    /// node would take it for another's.
    pub fn read(bytes: &'a [u8], tags: Tags) -> Result<Message<'a>, Undecodable> {
        let mut reader = Reader::new(bytes);
        let sender = reader.number("the node id")?;
        Ok(Message { sender, events: Events { reader, tags, failed: false } })
    }

    /// The id of the node that sent it.
    pub fn sender(&self) -> u16 {
        self.sender
    }

    /// The events, in order. After an error there are no more.
    pub fn events(&self) -> Events<'a> {
        self.events.clone()
    }
}

/// Iterates over the events of a message.
#[derive(Clone, Debug)]
pub struct Events<'a> {
    reader: Reader<'a>,
    tags: Tags,
    failed: bool,
}

impl<'a> Iterator for Events<'a> {
    type Item = Result<Event<'a>, Undecodable>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.reader.is_empty() {
            return None;
        }
        let event = match self.tags {
            Tags::V0_16 => read_event(&mut self.reader),
            Tags::V0_15 => read_old_event(&mut self.reader),
        };
        self.failed = event.is_err();
        Some(event)
    }
}

/// An event in the tags of release 0.16.
fn read_event<'a>(reader: &mut Reader<'a>) -> Result<Event<'a>, Undecodable> {
    let at = reader.at();
    Ok(match reader.byte("a tag")? {
        tag @ 0..=2 => return read_push(reader, tag),
        3 => Event::PushServerUpdate { account_id: reader.number("the account")? },
        4 => Event::RegistryInsert {
            object_type: reader.number("the type of an object")?,
            id: reader.number("the id of an object")?,
        },
        5 => Event::RegistryDelete {
            object_type: reader.number("the type of an object")?,
            id: reader.number("the id of an object")?,
        },
        6 => Event::RegistryReload { object_type: reader.number("the type of an object")? },
        7 => Event::CacheInvalidate(read_entries(reader, None)?),
        8 => Event::CacheInvalidateAll,
        9 => Event::CacheInvalidateNegative,
        10 => Event::QueueStatus { is_running: true },
        11 => Event::QueueStatus { is_running: false },
        12 => Event::QueueRefresh,
        tag => return Err(Undecodable::new(at, format!("tag {tag} is unknown in release 0.16"))),
    })
}

/// An event in the tags of release 0.15.
fn read_old_event<'a>(reader: &mut Reader<'a>) -> Result<Event<'a>, Undecodable> {
    let at = reader.at();
    Ok(match reader.byte("a tag")? {
        tag @ 0..=2 => return read_push(reader, tag),
        3 => Event::CacheInvalidate(read_entries(reader, Some(Cache::AccessToken))?),
        4 => Event::CacheInvalidate(read_entries(reader, Some(Cache::DavResources))?),
        5 => Event::RegistryReload { object_type: names::DATA_STORE },
        6 => Event::RegistryReload { object_type: names::BLOCKED_IP },
        7 => Event::PushServerUpdate { account_id: reader.number("the account")? },
        8 => Event::RegistryReload { object_type: names::SPAM_RULE },
        tag => return Err(Undecodable::new(at, format!("tag {tag} is unknown in release 0.15"))),
    })
}

/// The first three, which both have.
fn read_push<'a>(reader: &mut Reader<'a>, tag: u8) -> Result<Event<'a>, Undecodable> {
    Ok(match tag {
        0 => {
            let change_id = reader.number("the change id")?;
            let types = Types(reader.number("the changed types")?);
            Event::StateChange { change_id, types, account_id: reader.number("the account")? }
        }
        1 => {
            let account_id = reader.number("the account")?;
            let event_id = reader.number("the calendar event")?;
            let recurrence_id: u64 = reader.number("the recurrence")?;
            Event::CalendarAlert {
                account_id,
                event_id,
                recurrence_id: recurrence_id.cast_signed(),
                uid: reader.text("the uid")?,
                alert_id: reader.text("the alert id")?,
            }
        }
        _ => Event::EmailPush {
            account_id: reader.number("the account")?,
            email_id: reader.number("the e-mail id")?,
            change_id: reader.number("the change id")?,
        },
    })
}

/// A list of cache entries: each is read here once, so that the count is that of what is there.
fn read_entries<'a>(
    reader: &mut Reader<'a>,
    cache: Option<Cache>,
) -> Result<Entries<'a>, Undecodable> {
    let at = reader.at();
    let count: u64 = reader.number("the number of cache entries")?;
    // The least that one takes: its id, and its cache where that stands in front.
    let least = if cache.is_some() { 1 } else { 2 };
    let most = reader.rest() / least;
    let Some(count) = usize::try_from(count).ok().filter(|count| *count <= most) else {
        let why = format!("{count} cache entries, and there is room for {most}");
        return Err(Undecodable::new(at, why));
    };
    let start = reader.at();
    for _ in 0..count {
        read_entry(reader, cache)?;
    }
    Ok(Entries::encoded(count, reader.between(start, reader.at()), cache))
}
