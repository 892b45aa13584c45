//! A gateway's tail of one shard: a bounded ring of the bus's deliveries, in order and in their
//! wire encoding.
//!
//! Entries are numbered from the gateway's start, so that a cursor is one number. The ring is all
//! the memory that a log takes: a cursor that is slower than the ring is overtaken, and notices
//! when it reads.

mod entry;
mod frame;
mod line;

use std::{collections::VecDeque, sync::Arc};

use parking_lot::RwLock;

use self::line::Line;
pub use self::{
    entry::{Content, Entry},
    frame::{IndexedEvent, IndexedFrame, Summary},
};
pub(super) use self::{frame::events_of, line::Resume};
use super::had::Had;
use crate::bus::{Delivery, Epoch, EpochStart, Offset, Position};

/// The capacity of a log.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Bytes of events.
    pub bytes: usize,
    /// Events.
    pub events: usize,
}

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
    /// Everything after this position is here, or has an entry that reports it missing.
    start: Position,
    /// The position of the last entry.
    end: Position,
    /// The epochs of the entries, and those before.
    line: Line,
    /// Events ever appended.
    total: u64,
    /// Frames ever appended.
    frames: u64,
    /// The number of changes of the epoch.
    epoch_changes: u64,
    /// Events and bytes in the ring.
    events: usize,
    bytes: usize,
    started: bool,
}

/// The ends of a log at one instant.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Everything after this position is in the log.
    pub start: Position,
    /// The position of the last entry.
    pub end: Position,
    /// The number of the first entry.
    pub base: u64,
    /// The number of the entry that is appended next.
    pub next: u64,
    /// Events ever appended.
    pub total: u64,
    /// Frames ever appended.
    pub frames: u64,
    /// The number of changes of the epoch since the gateway's start.
    pub epoch_changes: u64,
    /// Events in the log.
    pub events: usize,
    /// Bytes in the log.
    pub bytes: usize,
}

impl Log {
    /// An empty log of a shard of which nothing is known.
    pub fn new(capacity: Capacity) -> Log {
        Log { capacity, ring: RwLock::default() }
    }

    /// The capacity.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Appends a delivery of the bus. `notify` is called with the entry and its number before any
    /// cursor can see the entry; its result is returned.
    pub fn append<T: Default>(
        &self,
        delivery: Delivery,
        notify: impl FnOnce(&Entry, u64) -> T,
    ) -> T {
        if let Delivery::Start(start) = &delivery {
            self.ring.write().begin(start);
            return T::default();
        }
        // Indexed before the lock is taken.
        let mut entry = Entry::new(delivery);
        let mut ring = self.ring.write();
        entry.total = ring.total + entry.events() as u64;
        entry.follows = (!entry.is_step_from(ring.end)).then_some(ring.end);
        let notified = notify(&entry, ring.next());
        ring.push(entry);
        ring.trim(self.capacity);
        notified
    }

    /// True after the bus has reported the beginning of the shard.
    pub fn is_started(&self) -> bool {
        self.ring.read().started
    }

    /// The ends of the log.
    pub fn extent(&self) -> Extent {
        self.ring.read().extent()
    }

    /// The ends of the log, and the result of `with` at the same instant: nothing is appended
    /// meanwhile.
    pub fn extent_with<T>(&self, with: impl FnOnce() -> T) -> (Extent, T) {
        let ring = self.ring.read();
        (ring.extent(), with())
    }

    /// The entries from number `from` on, up to the first of which `full` is true; `None` if the
    /// ring no longer has that number.
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

    /// The number of events in the log from the entry with this number on.
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

    /// The time of the first frame from the entry with this number on, in milliseconds since 1970,
    /// if there is one.
    pub fn made_from(&self, number: u64) -> Option<u64> {
        let ring = self.ring.read();
        let index = usize::try_from(number.saturating_sub(ring.base)).unwrap_or(usize::MAX);
        ring.entries.iter().skip(index).find_map(|entry| match &entry.content {
            Content::Frame(frame) => Some(frame.frame.time_ms),
            Content::Gap(_) | Content::Epoch(_) => None,
        })
    }

    /// The number of the first entry after `place`, if everything after it is in the log.
    /// `has_passed` tells whether a stream at the place walked through another epoch up to there.
    pub(super) fn locate(
        &self,
        place: Position,
        has_passed: impl Fn(Position) -> bool,
    ) -> Option<u64> {
        let ring = self.ring.read();
        let segment = ring.line.segment_after(place, has_passed)?;
        Some(ring.number_after(segment, place.offset))
    }

    /// True if a stream that reads the log from its first entry on has everything before each
    /// later one. `has_passed` tells whether it walked through another epoch up to a place.
    pub(super) fn is_whole(&self, has_passed: impl Fn(Position) -> bool) -> bool {
        self.ring.read().line.is_covered(0, has_passed)
    }

    /// True if all entries of the log lie on one line.
    pub(super) fn is_one_line(&self) -> bool {
        self.ring.read().line.is_one()
    }

    /// True if everything after this place is in the log.
    pub(super) fn contains(&self, place: Position) -> bool {
        self.locate(place, |_| true).is_some()
    }

    /// The number of events in the log after a place that lies before the entry with this number.
    pub fn events_after(&self, number: u64, place: Position) -> u64 {
        let events = self.events_from(number);
        let ring = self.ring.read();
        let index = number.checked_sub(ring.base).and_then(|index| usize::try_from(index).ok());
        let passed = match index.and_then(|index| ring.entries.get(index)) {
            Some(entry) if entry.position.epoch == place.epoch => {
                (place.offset.0 + 1).saturating_sub(entry.first_place().0)
            }
            _ => 0,
        };
        events.saturating_sub(passed)
    }

    /// Where a stream continues that has had this.
    pub(super) fn resume(&self, had: &Had) -> Resume {
        let ring = self.ring.read();
        let number_after = |segment, offset| ring.number_after(segment, offset);
        ring.line.resume(had, number_after)
    }

    /// The position at the end, what a stream has had besides that begins there, and the number of
    /// its first entry.
    pub(super) fn latest(&self) -> (Position, Had, u64) {
        let ring = self.ring.read();
        (ring.end, ring.line.latest(), ring.next())
    }

    /// True if the log has, or had, everything up to this position of the bus.
    pub(super) fn reaches(&self, position: Position) -> bool {
        let ring = self.ring.read();
        ring.line
            .segments
            .iter()
            .any(|segment| segment.epoch == position.epoch && segment.end >= position.offset)
    }

    /// The highest name of an epoch that is in the shard, was appended again, or is lost; none if
    /// the epoch is not known.
    pub(super) fn end_of(&self, epoch: Epoch) -> Option<Offset> {
        self.ring.read().line.end_of(epoch)
    }

    /// The same for all epochs that are known.
    pub(super) fn ends(&self) -> Vec<Position> {
        self.ring.read().line.ends().to_vec()
    }

    /// Learns how far earlier epochs go, of which no entry said so.
    pub(super) fn learn_ends(&self, ends: &[Position]) {
        self.ring.write().line.learn(ends.iter().copied());
    }

    /// Records that the bus does not know an epoch: it lies on another line.
    pub(super) fn not_on_line(&self, epoch: Epoch) {
        self.ring.write().line.not_on_line(epoch);
    }
}

impl Ring {
    fn begin(&mut self, start: &EpochStart) {
        (self.start, self.end, self.started) = (start.position, start.position, true);
        self.line.begin(start);
    }

    /// The number of the first entry of a segment after the place with this offset.
    fn number_after(&self, segment: usize, offset: Offset) -> u64 {
        let bounds = |index: usize| {
            let number = self.line.segments.get(index).map_or(self.next(), |found| found.number);
            usize::try_from(number.saturating_sub(self.base)).unwrap_or(usize::MAX)
        };
        let end = bounds(segment + 1).min(self.entries.len());
        let entries = bounds(segment).min(end)..end;
        let (mut low, mut high) = (entries.start, entries.end);
        while low < high {
            let middle = low.midpoint(high);
            // The start of an epoch, at its offset 0, was passed by whoever is in it.
            if self.entries[middle].position.offset <= offset {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        self.base + low as u64
    }

    fn next(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    fn push(&mut self, entry: Entry) {
        self.epoch_changes += u64::from(self.end.epoch != entry.position.epoch);
        self.line.push(&entry, self.next());
        self.frames += u64::from(matches!(entry.content, Content::Frame(_)));
        self.end = entry.position;
        self.total = entry.total;
        self.events += entry.events();
        self.bytes += entry.bytes();
        self.entries.push_back(Arc::new(entry));
    }

    fn trim(&mut self, capacity: Capacity) {
        while self.bytes > capacity.bytes || self.events > capacity.events {
            let Some(entry) = self.entries.pop_front() else { break };
            self.base += 1;
            self.start = entry.position;
            self.events -= entry.events();
            self.bytes -= entry.bytes();
        }
        self.line.trim(self.base, self.start);
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
