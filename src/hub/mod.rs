//! Between the bus and the streams: the logs, the subscribers' places in them, and who is connected.
//!
//! The hub knows neither gRPC nor Redis.

pub mod cursor;
pub mod event;
pub mod filter;
pub mod judged;
pub mod log;
mod merge;
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
use tokio::sync::Semaphore;

use self::{
    cursor::{Cursor, Opening, gap_to},
    event::EventView,
    filter::{Filter, kind_bit},
    log::{Capacity, Content, Indexed, Log},
    router::Router,
};
use crate::bus::{
    AppendError, Delivery, Gap, GapReason, HistoryPage, Position, Retained, ShardId, SharedBus,
    Sink, unix_ms,
};

/// Readings of history under way at once, so that many who resume together do not weigh on the bus.
const HISTORY_READINGS: usize = 8;

/// The logs of all shards, and everybody's place in them.
pub struct Hub {
    logs: Vec<Log>,
    router: Arc<Router>,
    /// Set once, when the bus has started; the bus needs the hub before.
    bus: OnceLock<SharedBus>,
    history_readings: Semaphore,
    /// By shard: the last event of each kind that is kept for who comes later.
    last_values: Vec<Mutex<HashMap<u8, Retained>>>,
}

/// Kinds whose last event a new or resuming stream gets first: `queue_status`.
pub const LAST_VALUE_KINDS: [u8; 1] = [18];

/// Where a stream begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// With the next event.
    Latest,
    /// With the oldest event that is kept.
    Oldest,
    /// After these places, one a shard.
    After(Vec<Position>),
}

/// How a stream is read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// How many events are wanted; none: no limit.
    pub max_events: Option<u64>,
    /// Whether events may be merged while the stream is behind.
    pub merge: bool,
    /// Whether events are noted that belong to a trace which is recorded.
    pub follow: bool,
    /// Whether all events are judged that the stream passes. Its filter must be one that watches all.
    pub explain: bool,
}

/// An opened stream.
pub struct Opened {
    /// The stream's place.
    pub cursor: Cursor,
    /// Whether it continues without loss, as far as is known.
    pub resumed: bool,
    /// Events that come again before new ones, the filter not applied.
    pub replayed: u64,
}

impl Hub {
    /// A hub with empty logs.
    pub fn new(shards: u16, capacity: Capacity) -> Hub {
        Hub {
            logs: ShardId::all(shards).map(|_| Log::new(capacity)).collect(),
            router: Arc::default(),
            bus: OnceLock::new(),
            history_readings: Semaphore::new(HISTORY_READINGS),
            last_values: ShardId::all(shards).map(|_| Mutex::default()).collect(),
        }
    }

    /// Gives the hub its bus. The first one stays.
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

    /// The logs, one a shard.
    pub fn logs(&self) -> &[Log] {
        &self.logs
    }

    /// Has every stream look up, whether or not there is something for it to read.
    pub fn wake_all(&self) {
        self.router.wake_all();
    }

    /// Whether the bus has said of every shard where it begins.
    pub fn is_started(&self) -> bool {
        self.logs.iter().all(Log::is_started)
    }

    /// Asks the bus for the last values that were published before this gateway heard of them.
    ///
    /// # Errors
    ///
    /// The bus could not be asked.
    pub async fn load_last_values(&self) -> Result<(), AppendError> {
        let Some(history) = self.bus().history() else { return Ok(()) };
        for shard in ShardId::all(u16::try_from(self.logs.len()).unwrap_or(u16::MAX)) {
            for retained in history.retained(shard).await? {
                self.keep_last(shard, retained);
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

    /// The last values that a stream would not get by itself, since they lie before its places.
    fn last_values(&self, filter: &Filter, cursor: &[Position]) -> Vec<Bytes> {
        let mut values = Vec::new();
        for (kept, position) in self.last_values.iter().zip(cursor) {
            for retained in kept.lock().values().filter(|retained| retained.position <= *position) {
                if EventView::peek(&retained.event).is_ok_and(|event| filter.matches(&event)) {
                    values.push(retained.event.clone());
                }
            }
        }
        values
    }

    /// Opens a stream. Every event that the bus accepts after this is handed on, or told as a gap.
    ///
    /// # Errors
    ///
    /// The bus was needed to judge a place, and could not be asked.
    pub async fn open(
        self: &Arc<Self>,
        filter: Filter,
        begin: &Begin,
        reading: Reading,
    ) -> Result<Opened, AppendError> {
        // Registered first: what comes while the places are looked up is marked.
        let registration = self.router.register(filter, self.logs.len());
        let mut openings = Vec::with_capacity(self.logs.len());
        let (mut resumed, mut replayed) = (matches!(begin, Begin::After(_)), 0);
        for (shard, log) in self.logs.iter().enumerate() {
            let id = ShardId(u16::try_from(shard).unwrap_or(u16::MAX));
            let extent = log.extent();
            let opening = match begin {
                Begin::Latest => Opening::Log {
                    position: extent.end,
                    next: extent.next,
                    end: extent.next,
                    resumed: false,
                },
                Begin::Oldest if self.bus().history().is_some() => {
                    Opening::History { position: Position::UNKNOWN }
                }
                Begin::Oldest => Opening::Log {
                    position: extent.start,
                    next: extent.base,
                    end: extent.next,
                    resumed: false,
                },
                Begin::After(positions) => {
                    let position = positions
                        .get(shard)
                        .copied()
                        .filter(|_| positions.len() == self.logs.len());
                    self.resume(id, position.unwrap_or(Position::UNKNOWN)).await?
                }
            };
            match &opening {
                Opening::Gap { .. } => resumed = false,
                Opening::Log { next, end, position, .. } if next < end => {
                    let before = log.locate(*position).map_or(0, |(_, before)| before);
                    replayed += log.extent().total.saturating_sub(before);
                }
                Opening::Log { .. } => {}
                Opening::History { position } => {
                    let (lost, events) = self.preview(id, *position).await?;
                    resumed &= !lost;
                    replayed += events;
                }
            }
            openings.push(opening);
        }
        let interest = registration.interest.clone();
        let mut cursor = Cursor::new(self.clone(), registration, openings, reading);
        let first = self.last_values(&interest.filter, &cursor.positions());
        cursor.begin_with(&first);
        Ok(Opened { cursor, resumed, replayed })
    }

    /// Finds the place where a stream goes on.
    async fn resume(&self, shard: ShardId, position: Position) -> Result<Opening, AppendError> {
        let log = &self.logs[shard.index()];
        let in_log = || {
            let (next, _) = log.locate(position)?;
            Some(Opening::Log { position, next, end: log.extent().next, resumed: true })
        };
        if let Some(opening) = in_log() {
            return Ok(opening);
        }
        let unknown = || {
            let extent = log.extent();
            let gap = Gap {
                reason: GapReason::UnknownEpoch,
                from: position,
                to: extent.end,
                missed: None,
                from_ms: None,
                to_ms: unix_ms(),
            };
            Opening::Gap { gap, next: extent.next, end: extent.next }
        };
        if !position.is_known() {
            return Ok(unknown());
        }
        let Some(history) = self.bus().history() else {
            let extent = log.extent();
            if position.epoch == extent.start.epoch && position < extent.start {
                let gap = gap_to(position, extent.start);
                return Ok(Opening::Gap { gap, next: extent.base, end: extent.next });
            }
            return Ok(unknown());
        };
        if position <= log.extent().end {
            return Ok(Opening::History { position });
        }
        // The other gateway was ahead of this one, or the place is a fiction.
        let tip = history.tip(shard).await?;
        if position.epoch == tip.epoch && position.offset <= tip.offset {
            let extent = log.extent();
            return Ok(Opening::Log {
                position,
                next: extent.base,
                end: extent.next,
                resumed: true,
            });
        }
        // The gateway may have got there while it asked.
        Ok(in_log().unwrap_or_else(unknown))
    }

    /// What history says of a place: whether anything after it is lost, and about how many events come again.
    async fn preview(
        &self,
        shard: ShardId,
        position: Position,
    ) -> Result<(bool, u64), AppendError> {
        let page = self.history_page(shard, position, 64 * 1024).await?;
        let lost = matches!(page.deliveries.first(), Some(Delivery::Gap(_)));
        let mut events = 0;
        for delivery in &page.deliveries {
            if let Delivery::Frame(frame) = delivery {
                events += frame.count;
            }
        }
        let extent = self.logs[shard.index()].extent();
        if page.next.epoch == extent.end.epoch {
            events += extent.end.offset.0.saturating_sub(page.next.offset.0);
        }
        Ok((lost, events))
    }

    async fn history_page(
        &self,
        shard: ShardId,
        after: Position,
        max_bytes: usize,
    ) -> Result<HistoryPage, AppendError> {
        let Some(history) = self.bus().history() else {
            let next = self.logs[shard.index()].extent().start;
            return Ok(HistoryPage { deliveries: vec![], next, at_end: true });
        };
        let _permit = self.history_readings.acquire().await.map_err(|_| AppendError::Closed)?;
        history.page(shard, after, max_bytes).await
    }
}

impl Hub {
    fn note_last_values(&self, shard: ShardId, indexed: &Indexed) {
        for (nth, event) in indexed.events.iter().enumerate() {
            if LAST_VALUE_KINDS.contains(&event.meta.kind()) {
                let position = Position { epoch: indexed.frame.epoch, offset: indexed.offset(nth) };
                // A copy of its own: a slice would keep the whole frame.
                let bytes = Bytes::copy_from_slice(&indexed.frame.events[event.meta.range()]);
                self.keep_last(shard, Retained { key: event.meta.kind(), position, event: bytes });
            }
        }
    }
}

impl Sink for Hub {
    fn deliver(&self, shard: ShardId, delivery: Delivery) {
        let concerned = self.logs[shard.index()].append(delivery, |entry, number| {
            if let Content::Frame(indexed) = &entry.content
                && LAST_VALUE_KINDS.iter().any(|k| indexed.summary.kinds & kind_bit(*k) != 0)
            {
                self.note_last_values(shard, indexed);
            }
            self.router.announce(shard, entry, number)
        });
        // Not before the log is free again: they all come to read it.
        concerned.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests;
