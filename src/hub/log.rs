//! A gateway's tail of one shard: a bounded ring of the bus's deliveries, in order and in their
//! wire encoding.
//!
//! Entries are numbered from the gateway's start, so that a cursor is one number. The ring is all
//! the memory that a log takes: a cursor that is slower than the ring is overtaken, and notices
//! when it reads.

mod entry;
mod frame;

use std::{collections::VecDeque, sync::Arc};

use parking_lot::RwLock;

pub(super) use self::frame::events_of;
pub use self::{
    entry::{Content, Entry},
    frame::{IndexedEvent, IndexedFrame, Summary},
};
use crate::bus::{Delivery, Epoch, Gap, GapReason, Position, unix_ms};

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
    /// The epochs from that of `start` on, of which the log has, or had, entries.
    epochs: Vec<Epoch>,
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

impl Extent {
    /// The gap between a position that lies before the log and the log's beginning.
    pub(super) fn gap_after(&self, from: Position) -> Gap {
        let missed = from.events_until(self.start);
        let reason =
            if missed.is_some() { GapReason::HistoryExpired } else { GapReason::UnknownEpoch };
        Gap { reason, from, to: self.start, missed, from_ms: None, to_ms: unix_ms() }
    }
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
        if let Delivery::Start(position) = delivery {
            self.ring.write().begin(position);
            return T::default();
        }
        // Indexed before the lock is taken.
        let mut entry = Entry::new(delivery);
        let mut ring = self.ring.write();
        entry.total = ring.total + entry.events() as u64;
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
            Content::Frame(frame) | Content::Restored(frame) => Some(frame.frame.time_ms),
            Content::Gap(_) | Content::Epoch => None,
        })
    }

    /// The number of the first entry after `position`, and the number of events ever appended up to
    /// `position`, if everything after `position` is in the log.
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
        if let Some(Content::Frame(frame)) = ring.entries.get(index).map(|entry| &entry.content)
            && frame.frame.epoch == position.epoch
        {
            before += (position.offset.0 + 1).saturating_sub(frame.frame.first.0);
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
        // A position in an earlier epoch can only be found in history.
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
