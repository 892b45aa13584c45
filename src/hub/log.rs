//! A gateway's tail of one shard: a bounded ring of what the bus handed on, in its order, in wire encoding.
//!
//! Entries are numbered from the gateway's start, so that a cursor is one number. Memory is the ring and nothing else: a
//! cursor that is slower than the ring is overtaken by it, and finds out.

use std::{collections::VecDeque, sync::Arc, time::SystemTime};

use bytes::Bytes;
use parking_lot::RwLock;

use super::{
    event::{CUSTOM, EventMeta, EventView},
    filter::kind_bit,
};
use crate::bus::{Delivery, Epoch, Frame, Gap, Offset, Position};

/// How much a log may hold.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Bytes of events.
    pub bytes: usize,
    /// Events.
    pub events: usize,
}

/// What each entry costs beside its events' bytes, about.
const ENTRY_COST: usize = 160;

/// One shard's log.
pub struct Log {
    capacity: Capacity,
    ring: RwLock<Ring>,
}

#[derive(Default)]
struct Ring {
    entries: VecDeque<Arc<Entry>>,
    /// The number of the first entry.
    base: u64,
    /// Everything after this place is here, or is told to be missing.
    start: Position,
    /// The place of the last entry.
    end: Position,
    /// Epochs of which the log has, or had, something.
    epochs: Vec<Epoch>,
    /// Events ever appended.
    total: u64,
    /// Frames ever appended.
    frames: u64,
    /// How often the epoch changed.
    epoch_changes: u64,
    /// Events and bytes in the ring.
    events: usize,
    bytes: usize,
    started: bool,
}

/// One entry of a log.
#[derive(Debug)]
pub struct Entry {
    /// What it is.
    pub content: Content,
    /// The place that is reached with it.
    pub position: Position,
    /// Events ever appended to the log, up to and including it.
    pub total: u64,
}

/// What an entry is.
#[derive(Debug)]
pub enum Content {
    /// Events.
    Frame(Indexed),
    /// Events that the log had before, at the frame's origin.
    Again(Indexed),
    /// Events that are missing.
    Gap(Gap),
    /// A new epoch without a loss.
    Epoch,
}

/// A frame, and where each of its events lies.
#[derive(Debug)]
pub struct Indexed {
    /// The frame.
    pub frame: Frame,
    /// The events, in order.
    pub events: Vec<IndexedEvent>,
    /// When this gateway got it, if one of the events belongs to a trace that is recorded: who reads it looks which.
    pub followed: Option<SystemTime>,
    /// What all of them have in common.
    pub summary: Summary,
}

/// What is known of a frame's events together, so that most subscribers need not ask each of them.
#[derive(Debug, Default)]
pub struct Summary {
    /// Their kinds, a bit for each.
    pub kinds: u128,
    /// Whether any of them is for certain nodes only.
    pub targeted: bool,
    /// The nodes that published them.
    sources: Distinct,
    /// The types of those that are custom.
    types: Distinct,
}

/// The different values of one thing, each as the index of an event that has it, while there are only a few.
#[derive(Debug, Default)]
struct Distinct {
    events: Vec<usize>,
    /// There are others.
    more: bool,
}

/// Values that a summary lists of one thing.
const MAX_VALUES: usize = 4;

/// One event of a frame.
#[derive(Debug)]
pub struct IndexedEvent {
    /// Where it begins in the frame's bytes, with its tag and length.
    pub start: u32,
    /// Where it ends.
    pub end: u32,
    /// What filters ask of it.
    pub meta: EventMeta,
}

/// The ends of a log, at one instant.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Everything after this place is in the log.
    pub start: Position,
    /// The place of the last entry.
    pub end: Position,
    /// The number of the first entry.
    pub base: u64,
    /// The number that the next entry will get.
    pub next: u64,
    /// Events ever appended.
    pub total: u64,
    /// Frames ever appended.
    pub frames: u64,
    /// How often the epoch changed since the gateway's start.
    pub epoch_changes: u64,
    /// Events in the log.
    pub events: usize,
    /// Bytes in the log.
    pub bytes: usize,
}

impl Indexed {
    /// Finds the events of a frame. An event that cannot be peeked at (no gateway accepts one) matches no filter.
    pub fn new(frame: Frame) -> Indexed {
        let mut events = Vec::with_capacity(usize::try_from(frame.count).unwrap_or(0));
        let mut sampled = false;
        let mut summary = Summary::default();
        let mut rest = &frame.events[..];
        while !rest.is_empty() {
            let start = frame.events.len() - rest.len();
            let Some(event) = split_event(&mut rest) else { break };
            let end = frame.events.len() - rest.len();
            let at = end - event.len();
            let meta = EventMeta::peek(&frame.events, at..end);
            let meta = meta.unwrap_or_else(|_| EventMeta::unreadable());
            sampled |= meta.is_sampled();
            events.push(IndexedEvent { start: offset(start), end: offset(end), meta });
            summary.add(&frame.events, &events);
        }
        Indexed { frame, events, followed: sampled.then(SystemTime::now), summary }
    }

    /// The nth event, as a filter sees it.
    pub fn view(&self, nth: usize) -> EventView<'_> {
        self.events[nth].meta.view(&self.frame.events)
    }

    /// Whether one of the events is, or may be, of this node.
    pub fn may_be_from(&self, node_id: &[u8]) -> bool {
        let sources = &self.summary.sources;
        sources.more || sources.events.iter().any(|nth| self.view(*nth).source_bytes() == node_id)
    }

    /// Whether the types of all custom events are certainly such ones.
    pub fn types_all(&self, such: impl Fn(&[u8]) -> bool) -> bool {
        let types = &self.summary.types;
        !types.more && types.events.iter().all(|nth| such(self.view(*nth).custom_type_bytes()))
    }

    /// The offset of the nth event.
    pub fn offset(&self, nth: usize) -> Offset {
        self.frame.first.plus(nth as u64)
    }

    /// The bytes of the events from one to another, as they stand in a batch.
    pub fn slice(&self, first: &IndexedEvent, last: &IndexedEvent) -> Bytes {
        self.frame.events.slice(first.start as usize..last.end as usize)
    }
}

impl Summary {
    /// Adds the last of the events.
    fn add(&mut self, frame: &[u8], events: &[IndexedEvent]) {
        let Some(last) = events.last() else { return };
        let last = last.meta.view(frame);
        self.kinds |= kind_bit(last.kind());
        self.targeted |= last.has_target();
        let view = |nth: usize| events[nth].meta.view(frame);
        self.sources.add(events.len() - 1, |nth| view(nth).source_bytes());
        if last.kind() == CUSTOM {
            self.types.add(events.len() - 1, |nth| view(nth).custom_type_bytes());
        }
    }
}

impl Distinct {
    fn add<'a>(&mut self, event: usize, value: impl Fn(usize) -> &'a [u8]) {
        if self.more || self.events.iter().any(|known| value(*known) == value(event)) {
            return;
        }
        if self.events.len() < MAX_VALUES {
            self.events.push(event);
        } else {
            self.more = true;
        }
    }
}

impl Log {
    /// An empty log; nothing is known of its shard.
    pub fn new(capacity: Capacity) -> Log {
        Log { capacity, ring: RwLock::default() }
    }

    /// How much it may hold.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Appends what the bus handed on. `announce` is told the entry and its number, before any cursor can see it; what it returns
    /// is handed back.
    pub fn append<T: Default>(
        &self,
        delivery: Delivery,
        announce: impl FnOnce(&Entry, u64) -> T,
    ) -> T {
        if let Delivery::Start(position) = delivery {
            self.ring.write().begin(position);
            return T::default();
        }
        // Indexed before the lock is taken.
        let mut entry = Entry::new(delivery);
        let mut ring = self.ring.write();
        entry.total = ring.total + entry.events() as u64;
        let announced = announce(&entry, ring.next());
        ring.push(entry);
        ring.trim(self.capacity);
        announced
    }

    /// Whether the bus has said where the shard begins.
    pub fn is_started(&self) -> bool {
        self.ring.read().started
    }

    /// Where the log begins and ends.
    pub fn extent(&self) -> Extent {
        self.ring.read().extent()
    }

    /// The log's ends, and what `with` finds at the same instant: nothing is appended meanwhile.
    pub fn extent_with<T>(&self, with: impl FnOnce() -> T) -> (Extent, T) {
        let ring = self.ring.read();
        (ring.extent(), with())
    }

    /// Takes entries from number `from` on, until `full` says so; none if the ring has overtaken the number.
    pub fn read(
        &self,
        from: u64,
        mut full: impl FnMut(&Arc<Entry>) -> bool,
    ) -> Option<Vec<Arc<Entry>>> {
        let ring = self.ring.read();
        let index = usize::try_from(from.checked_sub(ring.base)?).ok()?;
        let mut taken = Vec::new();
        for entry in ring.entries.iter().skip(index) {
            taken.push(entry.clone());
            if full(entry) {
                break;
            }
        }
        Some(taken)
    }

    /// How many events the log holds from the entry with this number on.
    pub fn events_from(&self, number: u64) -> u64 {
        let ring = self.ring.read();
        if number >= ring.next() {
            return 0;
        }
        let index = usize::try_from(number.saturating_sub(ring.base)).unwrap_or(usize::MAX);
        let before = match index.checked_sub(1).and_then(|before| ring.entries.get(before)) {
            Some(entry) => entry.total,
            None => ring.total - ring.events as u64,
        };
        ring.total - before
    }

    /// When the first frame from the entry with this number on was made, in milliseconds since 1970. None: there is none.
    pub fn made_from(&self, number: u64) -> Option<u64> {
        let ring = self.ring.read();
        let index = usize::try_from(number.saturating_sub(ring.base)).unwrap_or(usize::MAX);
        ring.entries.iter().skip(index).find_map(|entry| match &entry.content {
            Content::Frame(indexed) | Content::Again(indexed) => Some(indexed.frame.time_ms),
            Content::Gap(_) | Content::Epoch => None,
        })
    }

    /// The number of the first entry that lies after `place`, if everything after `place` is in the log; and how many events
    /// the log had up to there.
    pub fn locate(&self, position: Position) -> Option<(u64, u64)> {
        let ring = self.ring.read();
        let known = ring.epochs.contains(&position.epoch);
        if position < ring.start || position > ring.end || !known {
            return None;
        }
        let index = ring.entries.partition_point(|entry| entry.position <= position);
        let mut before = match index.checked_sub(1) {
            Some(before) => ring.entries[before].total,
            None => ring.total - ring.events as u64,
        };
        if let Some(Content::Frame(indexed)) = ring.entries.get(index).map(|entry| &entry.content)
            && indexed.frame.epoch == position.epoch
        {
            before += (position.offset.0 + 1).saturating_sub(indexed.frame.first.0);
        }
        Some((ring.base + index as u64, before))
    }
}

impl Ring {
    fn begin(&mut self, position: Position) {
        (self.start, self.end, self.started) = (position, position, true);
        self.epochs.push(position.epoch);
    }

    fn next(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    fn push(&mut self, entry: Entry) {
        if self.end.epoch != entry.position.epoch {
            self.epochs.push(entry.position.epoch);
            self.epoch_changes += 1;
        }
        self.frames += u64::from(matches!(entry.content, Content::Frame(_)));
        self.end = entry.position;
        self.total = entry.total;
        self.events += entry.events();
        self.bytes += entry.bytes();
        self.entries.push_back(Arc::new(entry));
    }

    fn trim(&mut self, capacity: Capacity) {
        while self.bytes > capacity.bytes || self.events > capacity.events {
            let Some(entry) = self.entries.pop_front() else { return };
            self.base += 1;
            self.start = entry.position;
            self.events -= entry.events();
            self.bytes -= entry.bytes();
        }
        // An epoch that lies before the log can only be found in history.
        let first = self.start.epoch;
        self.epochs.retain(|epoch| *epoch >= first);
    }

    fn extent(&self) -> Extent {
        Extent {
            start: self.start,
            end: self.end,
            base: self.base,
            next: self.next(),
            total: self.total,
            frames: self.frames,
            epoch_changes: self.epoch_changes,
            events: self.events,
            bytes: self.bytes,
        }
    }
}

impl Entry {
    /// The entry of a delivery that is not a start.
    pub fn new(delivery: Delivery) -> Entry {
        let (content, position) = match delivery {
            Delivery::Frame(frame) => {
                let position = frame.last();
                (Content::Frame(Indexed::new(frame)), position)
            }
            Delivery::Again(frame) => {
                let position = frame.last();
                (Content::Again(Indexed::new(frame)), position)
            }
            Delivery::Gap(gap) => {
                let position = gap.to;
                (Content::Gap(gap), position)
            }
            Delivery::Epoch(position) | Delivery::Start(position) => (Content::Epoch, position),
        };
        Entry { content, position, total: 0 }
    }

    /// Bytes of events in it.
    pub fn wire_bytes(&self) -> usize {
        self.indexed().map_or(0, |indexed| indexed.frame.events.len())
    }

    fn indexed(&self) -> Option<&Indexed> {
        match &self.content {
            Content::Frame(indexed) | Content::Again(indexed) => Some(indexed),
            Content::Gap(_) | Content::Epoch => None,
        }
    }

    fn events(&self) -> usize {
        match &self.content {
            Content::Frame(indexed) => indexed.events.len(),
            _ => 0,
        }
    }

    fn bytes(&self) -> usize {
        let indexed = self.indexed().map_or(0, |indexed| {
            indexed.frame.events.len() + indexed.events.len() * size_of::<IndexedEvent>()
        });
        ENTRY_COST + indexed
    }
}

/// The events in a slice of a frame's bytes, each without its tag and length.
pub(super) fn events_of(chunk: &Bytes) -> impl Iterator<Item = Bytes> + '_ {
    let mut rest = &chunk[..];
    std::iter::from_fn(move || Some(chunk.slice_ref(split_event(&mut rest)?)))
}

/// Takes the next event off a frame's bytes.
fn split_event<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let mut tail = *rest;
    prost::encoding::decode_key(&mut tail).ok()?;
    let length = usize::try_from(prost::encoding::decode_varint(&mut tail).ok()?).ok()?;
    let (event, tail) = tail.split_at_checked(length)?;
    *rest = tail;
    Some(event)
}

/// Frames are far smaller than 4 GiB.
fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}
