//! What nodes of the mail server say to one another.

use super::{
    super::Undecodable,
    names::{CACHES, Cache, Types},
    reader::Reader,
};

/// One event of a message. The names are the mail server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Something changed in an account.
    StateChange {
        /// The account.
        account_id: u32,
        /// State of these types. Of a share notification it is a number of another counter.
        change_id: u64,
        /// What changed.
        types: Types,
    },
    /// An alarm of a calendar is due.
    CalendarAlert {
        /// The account.
        account_id: u32,
        /// The calendar event.
        event_id: u32,
        /// Start of the recurrence in seconds since 1970, without a time zone; 0: none.
        recurrence_id: i64,
        /// UID of the event in iCalendar.
        uid: &'a str,
        /// The alarm.
        alert_id: &'a str,
    },
    /// A message was delivered to an account.
    EmailPush {
        /// The account.
        account_id: u32,
        /// The message.
        email_id: u32,
        /// State of the account.
        change_id: u64,
    },
    /// The push subscriptions of an account are to be read again.
    PushServerUpdate {
        /// The account.
        account_id: u32,
    },
    /// An object was added to the store.
    RegistryInsert {
        /// Its type: see [`object_type`](super::object_type).
        object_type: u16,
        /// Its id.
        id: u64,
    },
    /// An object was removed from the store. No release is known to send it.
    RegistryDelete {
        /// Its type.
        object_type: u16,
        /// Its id.
        id: u64,
    },
    /// All objects of a type are to be read again.
    RegistryReload {
        /// The type.
        object_type: u16,
    },
    /// Cache entries are no longer valid.
    CacheInvalidate(Entries<'a>),
    /// Nothing in any cache is valid any more.
    CacheInvalidateAll,
    /// No negative entry in any cache is valid any more.
    CacheInvalidateNegative,
    /// The queue was paused or resumed.
    QueueStatus {
        /// True if messages are sent.
        is_running: bool,
    },
    /// The queue is to be read again.
    QueueRefresh,
}

/// One entry of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The cache.
    pub cache: Cache,
    /// Id of the entry.
    pub id: u32,
    /// Hash of the part before the @; for [`Cache::EmailNegative`] alone, else 0.
    pub hash: u32,
}

/// Cache entries of an event, in memory or as they came.
#[derive(Clone, Copy, Debug)]
pub struct Entries<'a>(Source<'a>);

#[derive(Clone, Copy, Debug)]
enum Source<'a> {
    List(&'a [Entry]),
    /// So many, read and checked before: each with its cache in front, or all of one cache.
    Encoded {
        count: usize,
        bytes: &'a [u8],
        cache: Option<Cache>,
    },
}

impl<'a> Entries<'a> {
    /// These entries.
    pub fn new(entries: &'a [Entry]) -> Entries<'a> {
        Entries(Source::List(entries))
    }

    pub(super) fn encoded(count: usize, bytes: &'a [u8], cache: Option<Cache>) -> Entries<'a> {
        Entries(Source::Encoded { count, bytes, cache })
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        match self.0 {
            Source::List(entries) => entries.len(),
            Source::Encoded { count, .. } => count,
        }
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entries, in their order.
    pub fn iter(&self) -> EntryIter<'a> {
        EntryIter(match self.0 {
            Source::List(entries) => Left::List(entries.iter()),
            Source::Encoded { count, bytes, cache } => {
                Left::Encoded { count, reader: Reader::new(bytes), cache }
            }
        })
    }
}

impl<'a> IntoIterator for &Entries<'a> {
    type Item = Entry;
    type IntoIter = EntryIter<'a>;

    fn into_iter(self) -> EntryIter<'a> {
        self.iter()
    }
}

/// Iterates over entries: see [`Entries::iter`].
#[derive(Clone, Debug)]
pub struct EntryIter<'a>(Left<'a>);

#[derive(Clone, Debug)]
enum Left<'a> {
    List(std::slice::Iter<'a, Entry>),
    Encoded { count: usize, reader: Reader<'a>, cache: Option<Cache> },
}

impl Iterator for EntryIter<'_> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        match &mut self.0 {
            Left::List(entries) => entries.next().copied(),
            Left::Encoded { count, reader, cache } => {
                *count = count.checked_sub(1)?;
                // It was read before, when the message was decoded.
                read_entry(reader, *cache).ok()
            }
        }
    }
}

impl PartialEq for Entries<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl Eq for Entries<'_> {}

/// Reads one entry, of this cache, or of the one that stands in front.
pub(super) fn read_entry(
    reader: &mut Reader<'_>,
    cache: Option<Cache>,
) -> Result<Entry, Undecodable> {
    let at = reader.at();
    let cache = if let Some(cache) = cache {
        cache
    } else {
        let marker = reader.byte("a cache")?;
        let known = CACHES.get(usize::from(marker));
        known.ok_or_else(|| Undecodable::new(at, format!("cache {marker} is unknown")))?.0
    };
    let id = reader.number("the id of a cache entry")?;
    let hash = if cache == Cache::EmailNegative {
        reader.number("the hash of a cache entry")?
    } else {
        0
    };
    Ok(Entry { cache, id, hash })
}
