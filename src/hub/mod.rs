//! Between the bus and the streams: the logs of the shards, the subscribers' cursors over them, the
//! router that wakes subscribers, and who has each producer.
//!
//! The hub knows neither gRPC nor Redis.

pub mod accounts;
pub mod batch;
pub mod cursor;
pub mod event;
pub mod explanation;
pub mod filter;
pub mod had;
mod kind_bits;
mod last_values;
pub mod log;
mod merge;
mod opening;
mod pages;
pub mod producers;
pub mod readers;
mod router;
pub mod scope;
pub mod token;
pub mod waits;

use std::{
    sync::{Arc, OnceLock},
    task::Waker,
};

pub use self::{
    cursor::ReadOptions,
    opening::{Begin, Opened},
};
use self::{
    last_values::LastValues,
    log::{Capacity, Content, Entry, Log},
    pages::Pages,
    producers::Producers,
    readers::Readers,
    router::Router,
    waits::Waits,
};
use crate::bus::{Delivery, PublisherId, ShardId, SharedBus, Sink, StreamNumber};

/// The logs of all shards, and the subscribers to them.
pub struct Hub {
    logs: Vec<Log>,
    router: Arc<Router>,
    /// Set once, after the bus has started: the bus needs the hub before.
    bus: OnceLock<SharedBus>,
    readers: Readers,
    /// Pages of history, one per shard.
    pages: Vec<Pages>,
    last_values: LastValues,
    producers: Arc<Producers>,
    waits: Waits,
}

impl Hub {
    /// A hub with empty logs.
    pub fn new(shards: u16, capacity: Capacity) -> Hub {
        Hub {
            logs: ShardId::all(shards).map(|_| Log::new(capacity)).collect(),
            router: Arc::default(),
            bus: OnceLock::new(),
            readers: Readers::default(),
            pages: ShardId::all(shards).map(|_| Pages::default()).collect(),
            last_values: LastValues::new(shards),
            producers: Arc::default(),
            waits: Waits::default(),
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

    /// The producers that publish on streams of this gateway.
    pub fn producers(&self) -> &Arc<Producers> {
        &self.producers
    }

    /// The waits of publishers for events that came.
    pub fn waits(&self) -> &Waits {
        &self.waits
    }

    /// Wakes every stream, even if it has nothing to read.
    pub fn wake_all(&self) {
        self.router.wake_all();
    }

    /// True after the bus has reported the beginning of every shard.
    pub fn is_started(&self) -> bool {
        self.logs.iter().all(Log::is_started)
    }
}

impl Hub {
    /// Notes the events of an entry that a publisher waits for. Called where its streams are
    /// notified: none of them has read it.
    fn note_waits(&self, shard: ShardId, entry: &Entry, number: u64) {
        let Content::Frame(frame) = &entry.content else { return };
        if !frame.waited {
            return;
        }
        let concerned = self.router.concerned(entry);
        for index in 0..frame.events.len() {
            if let Some(stamp) = frame.view(index).waiter().and_then(event::WaitStamp::decode) {
                self.waits.arrived(stamp, (shard.index(), number), &concerned);
            }
        }
    }
}

impl Sink for Hub {
    fn deliver(&self, shard: ShardId, delivery: Delivery) {
        if !matches!(delivery, Delivery::Frame(_)) {
            self.pages[shard.index()].clear();
        }
        let concerned = self.logs[shard.index()].append(delivery, |entry, number| {
            self.last_values.take(shard, &entry.content);
            let woken = self.router.notify(shard, entry, number);
            self.note_waits(shard, entry, number);
            woken
        });
        // Only after the lock of the log is released: they all read it next.
        concerned.into_iter().for_each(Waker::wake);
    }

    fn publishes(&self, publisher: PublisherId, stream: StreamNumber) {
        self.producers.publishes(publisher, stream);
    }
}

#[cfg(test)]
mod tests;
