//! The last event of each kind whose last value is kept: what a new stream begins with.
//!
//! A gateway sees most of them pass by. Those that it did not, since they were published before it
//! started or lie in a gap, it reads from the bus. Where the bus lost them, it gets them back from
//! any gateway that has them, however long ago they were published.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::Notify;
use trunkline_proto::kinds;

use super::{
    Hub,
    cursor::Cursor,
    event::EventView,
    filter::Filter,
    kind_bits::LAST_VALUE_KINDS,
    log::{Content, IndexedFrame},
};
use crate::{
    bus::{AppendError, Position, Retained, ShardId},
    throttle::Throttle,
};

/// The pause before the last values are read again.
const RETRY: Duration = Duration::from_millis(200);

/// The last values of all shards.
pub(super) struct LastValues {
    shards: Vec<Mutex<Shard>>,
    /// Notified when a shard may lack values.
    incomplete: Notify,
}

#[derive(Default)]
struct Shard {
    by_kind: HashMap<u8, Retained>,
    /// True if this gateway or the bus may lack values that the other has.
    incomplete: bool,
}

impl LastValues {
    pub(super) fn new(shards: u16) -> LastValues {
        let unread = || Mutex::new(Shard { incomplete: true, ..Shard::default() });
        let shards = ShardId::all(shards).map(|_| unread()).collect();
        LastValues { shards, incomplete: Notify::new() }
    }

    /// Keeps what an entry of a log brings. After a gap values may be missing here, and after a new
    /// epoch in the bus.
    pub(super) fn take(&self, shard: ShardId, content: &Content) {
        match content {
            Content::Frame(frame) if frame.summary.kinds & LAST_VALUE_KINDS != 0 => {
                self.take_frame(shard, frame);
            }
            Content::Frame(_) => {}
            Content::Gap(_) | Content::Epoch(_) => {
                self.shards[shard.index()].lock().incomplete = true;
                self.incomplete.notify_one();
            }
        }
    }

    fn take_frame(&self, shard: ShardId, frame: &IndexedFrame) {
        let mut kept = self.shards[shard.index()].lock();
        for (index, event) in frame.events.iter().enumerate() {
            if kinds::of(event.meta.kind()).is_some_and(|row| row.keeps_last) {
                // By its name: a copy of an older value does not replace a newer one.
                let position = frame.frame.name_of(index as u64);
                // A copy of its own: a slice would keep the whole frame.
                let bytes = Bytes::copy_from_slice(&frame.frame.events[event.meta.range()]);
                kept.take(Retained { key: event.meta.kind(), position, event: bytes });
            }
        }
    }
}

impl Shard {
    /// Keeps a value unless a newer one is known.
    fn take(&mut self, retained: Retained) {
        let newer = |before: &Retained| before.position < retained.position;
        if self.by_kind.get(&retained.key).is_none_or(newer) {
            self.by_kind.insert(retained.key, retained);
        }
    }
}

impl Hub {
    /// Reads the last values that may be missing: at first all that were published before this
    /// gateway received events. Tries until the bus has answered for every shard; `failed` is
    /// called with each error.
    pub async fn complete_last_values(&self, failed: impl Fn(&AppendError)) {
        let (throttle, mut again) = (Throttle::repeated(), false);
        while let Err(error) = self.try_complete().await {
            failed(&error);
            // While the bus starts or recovers, the second attempt succeeds.
            if std::mem::replace(&mut again, true)
                && let Some(left_out) = throttle.pass()
            {
                tracing::warn!(%error, left_out, "the last values could not be read; trying again");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Waits until some may be missing again.
    pub async fn lacks_last_values(&self) {
        self.last_values.incomplete.notified().await;
    }

    /// Asks the bus for each shard that may lack values. One that does not answer holds up no
    /// other.
    async fn try_complete(&self) -> Result<(), AppendError> {
        let Some(history) = self.bus().history() else { return Ok(()) };
        let shards = self.last_values.shards.iter().enumerate();
        let completed = shards.map(async |(index, kept)| {
            let shard = ShardId::at_index(index);
            // Reset before the bus is asked: a gap that comes meanwhile counts.
            if !std::mem::take(&mut kept.lock().incomplete) {
                return Ok(());
            }
            let exchanged = async {
                let theirs = history.retained(shard).await?;
                let missing = kept.lock().exchange(theirs);
                if missing.is_empty() { Ok(()) } else { history.retain(shard, missing).await }
            };
            let exchanged = exchanged.await;
            kept.lock().incomplete |= exchanged.is_err();
            exchanged
        });
        join_all(completed).await.into_iter().collect()
    }

    /// The last values that a stream would not get otherwise: it has had them, or they are older
    /// than all that can still come.
    pub(super) fn last_values(&self, filter: &Filter, cursor: &Cursor) -> Vec<Bytes> {
        let mut values = Vec::new();
        let shards = self.last_values.shards.iter();
        for ((kept, log), had) in shards.zip(&self.logs).zip(cursor.had()) {
            if had.is_empty() {
                continue;
            }
            let passed = |name: Position| had.has(name) || log.end_of(name.epoch).is_none();
            let kept = kept.lock();
            for retained in kept.by_kind.values().filter(|retained| passed(retained.position)) {
                if EventView::peek(&retained.event).is_ok_and(|event| filter.matches(&event)) {
                    values.push(retained.event.clone());
                }
            }
        }
        values
    }
}

impl Shard {
    /// Keeps the values of the bus that are newer, and returns those that the bus lacks.
    fn exchange(&mut self, theirs: Vec<Retained>) -> Vec<Retained> {
        // Anybody who writes to the bus can put another event there.
        let is_of_kind = |retained: &Retained| {
            EventView::peek(&retained.event).is_ok_and(|event| event.kind() == retained.key)
        };
        let theirs: Vec<Retained> = theirs.into_iter().filter(is_of_kind).collect();
        let positions: HashMap<u8, Position> =
            theirs.iter().map(|retained| (retained.key, retained.position)).collect();
        for retained in theirs {
            self.take(retained);
        }
        let lacks = |own: &&Retained| {
            positions.get(&own.key).is_none_or(|position| *position < own.position)
        };
        self.by_kind.values().filter(lacks).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// An event of the nth kind, which is empty: its field number, of a message without content.
    fn event(nth: u8) -> Bytes {
        Bytes::from(vec![(9 + nth) << 3 | 2, 0])
    }

    fn key(nth: u8) -> u8 {
        EventView::peek(&event(nth)).unwrap().kind()
    }

    fn value(nth: u8, epoch: u64, offset: u64) -> Retained {
        Retained { key: key(nth), position: Position::new(epoch, offset), event: event(nth) }
    }

    fn places(values: &[(u8, u64, u64)]) -> BTreeMap<u8, Position> {
        values
            .iter()
            .map(|(nth, epoch, offset)| (key(*nth), Position::new(*epoch, *offset)))
            .collect()
    }

    #[test]
    fn each_side_gets_the_newer_values_of_the_other() {
        let mut kept = Shard::default();
        for own in [value(1, 5, 5), value(2, 5, 6), value(3, 5, 7)] {
            kept.take(own);
        }
        // The last one is of another kind than its field says.
        let foreign = Retained { key: key(1), ..value(4, 9, 1) };
        let theirs = vec![value(1, 5, 5), value(2, 4, 9), value(4, 5, 1), foreign];
        let missing = kept.exchange(theirs);
        let missing: BTreeMap<_, _> = missing.iter().map(|own| (own.key, own.position)).collect();
        assert_eq!(missing, places(&[(2, 5, 6), (3, 5, 7)]));
        let own: BTreeMap<_, _> =
            kept.by_kind.values().map(|own| (own.key, own.position)).collect();
        assert_eq!(own, places(&[(1, 5, 5), (2, 5, 6), (3, 5, 7), (4, 5, 1)]));
        // A value of the bus that is newer replaces the own one.
        assert!(kept.exchange(vec![value(1, 6, 1)]).iter().all(|own| own.key != key(1)));
        assert_eq!(kept.by_kind[&key(1)].position, Position::new(6, 1));
    }
}
