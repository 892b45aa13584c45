//! Between the bus and the streams: the logs of the shards, the subscribers' cursors over them, and
//! the router that wakes subscribers.
//!
//! The hub knows neither gRPC nor Redis.

pub mod batch;
pub mod cursor;
pub mod event;
pub mod explanation;
pub mod filter;
pub mod had;
mod kind_bits;
pub mod log;
mod merge;
mod opening;
pub mod readers;
mod router;
pub mod scope;
pub mod token;

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    task::Waker,
};

use bytes::Bytes;
use parking_lot::Mutex;
use trunkline_proto::kinds;

use self::{
    cursor::Cursor,
    event::EventView,
    filter::Filter,
    kind_bits::LAST_VALUE_KINDS,
    log::{Capacity, Content, IndexedFrame, Log},
    readers::Readers,
    router::Router,
};
pub use self::{
    cursor::ReadOptions,
    opening::{Begin, Opened},
};
use crate::bus::{AppendError, Delivery, Position, Retained, ShardId, SharedBus, Sink};

/// The logs of all shards, and the subscribers to them.
pub struct Hub {
    logs: Vec<Log>,
    router: Arc<Router>,
    /// Set once, after the bus has started: the bus needs the hub before.
    bus: OnceLock<SharedBus>,
    readers: Readers,
    /// By shard and kind: the last event of the kinds whose last value is kept.
    last_values: Vec<Mutex<HashMap<u8, Retained>>>,
}

impl Hub {
    /// A hub with empty logs.
    pub fn new(shards: u16, capacity: Capacity) -> Hub {
        Hub {
            logs: ShardId::all(shards).map(|_| Log::new(capacity)).collect(),
            router: Arc::default(),
            bus: OnceLock::new(),
            readers: Readers::default(),
            last_values: ShardId::all(shards).map(|_| Mutex::default()).collect(),
        }
    }

    /// Attaches the bus. Only the first call has an effect.
    pub fn attach(&self, bus: SharedBus) {
        let _ = self.bus.set(bus);
    }

    /// The bus.
    ///
    /// # Panics
    ///
    /// Before [`Hub::attach`].
    pub fn bus(&self) -> &SharedBus {
        self.bus.get().expect("a hub is used after its bus was attached")
    }

    /// The logs, one per shard.
    pub fn logs(&self) -> &[Log] {
        &self.logs
    }

    /// Wakes every stream, even if it has nothing to read.
    pub fn wake_all(&self) {
        self.router.wake_all();
    }

    /// True after the bus has reported the beginning of every shard.
    pub fn is_started(&self) -> bool {
        self.logs.iter().all(Log::is_started)
    }

    /// Loads the last values from the bus: those that were published before this gateway received
    /// events, or in a gap. May be called again at any time; a newer value that came meanwhile
    /// stays.
    ///
    /// # Errors
    ///
    /// The bus did not answer.
    pub async fn load_last_values(&self) -> Result<(), AppendError> {
        let Some(history) = self.bus().history() else { return Ok(()) };
        for shard in ShardId::all(u16::try_from(self.logs.len()).unwrap_or(u16::MAX)) {
            for retained in history.retained(shard).await? {
                // Anybody who writes to the bus can put another event there.
                let event = EventView::peek(&retained.event);
                if event.is_ok_and(|event| event.kind() == retained.key) {
                    self.keep_last(shard, retained);
                }
            }
        }
        Ok(())
    }

    fn keep_last(&self, shard: ShardId, retained: Retained) {
        let mut kept = self.last_values[shard.index()].lock();
        let newer =
            kept.get(&retained.key).is_none_or(|before| before.position < retained.position);
        if newer {
            kept.insert(retained.key, retained);
        }
    }

    /// The last values that a stream would not get otherwise: it has had them, or they are older
    /// than all that can still come.
    fn last_values(&self, filter: &Filter, cursor: &Cursor) -> Vec<Bytes> {
        let mut values = Vec::new();
        for ((kept, log), had) in self.last_values.iter().zip(&self.logs).zip(cursor.had()) {
            if had.is_empty() {
                continue;
            }
            let passed = |name: Position| had.has(name) || log.end_of(name.epoch).is_none();
            for retained in kept.lock().values().filter(|retained| passed(retained.position)) {
                if EventView::peek(&retained.event).is_ok_and(|event| filter.matches(&event)) {
                    values.push(retained.event.clone());
                }
            }
        }
        values
    }

    fn keep_last_values(&self, shard: ShardId, frame: &IndexedFrame) {
        for (index, event) in frame.events.iter().enumerate() {
            if kinds::of(event.meta.kind()).is_some_and(|row| row.keeps_last) {
                // By its name: a copy of an older value does not replace a newer one.
                let position = frame.frame.name_of(index as u64);
                // A copy of its own: a slice would keep the whole frame.
                let bytes = Bytes::copy_from_slice(&frame.frame.events[event.meta.range()]);
                self.keep_last(shard, Retained { key: event.meta.kind(), position, event: bytes });
            }
        }
    }
}

impl Sink for Hub {
    fn deliver(&self, shard: ShardId, delivery: Delivery) {
        let concerned = self.logs[shard.index()].append(delivery, |entry, number| {
            if let Content::Frame(frame) = &entry.content
                && frame.summary.kinds & LAST_VALUE_KINDS != 0
            {
                self.keep_last_values(shard, frame);
            }
            self.router.notify(shard, entry, number)
        });
        // Only after the lock of the log is released: they all read it next.
        concerned.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests;
