//! Added interest that begins before the present.
//!
//! A second cursor reads from there up to where the cursor of the stream stands, which waits
//! meanwhile. It delivers what the stream has passed and its interest did not include then; all
//! else the stream has had, or will have. Which of the two it is follows from the name of each
//! event, so that copies which recovery made change nothing.

use std::sync::Arc;

use super::{Cursor, Missing, ReadOptions};
use crate::{
    bus::{GapReason, Position, ShardId, unix_ms},
    hub::{Hub, filter::Before, had::Had},
};

/// What the other cursor has left out.
pub(super) struct Backfill {
    /// What it has had, by shard.
    pub had: Vec<Had>,
    /// Where it stands, by shard.
    pub positions: Vec<Position>,
    /// Its filter meanwhile.
    pub before: Before,
}

impl Cursor {
    /// A cursor that delivers what this one has passed since `begin` and its filter `before` did
    /// not include.
    #[must_use]
    pub fn backfill(&self, begin: &[Had], before: Before) -> Cursor {
        let hub = &self.hub;
        let openings = (0..self.shards.len()).map(|index| {
            let had = begin.get(index).filter(|_| begin.len() == self.shards.len());
            hub.begin_after(super::shard_id(index), had.cloned().unwrap_or_default())
        });
        let openings = openings.collect();
        // It is read at once, so every entry may wake it.
        let filter = self.registration.filter.clone().watching_all();
        let registration = hub.router.register(filter, self.shards.len());
        let options = ReadOptions {
            max_events: (self.left < u64::MAX).then_some(self.left),
            trace: self.max_traced > 0,
            history: self.history.clone(),
            ..ReadOptions::default()
        };
        let mut cursor = Cursor::new(Arc::clone(hub), registration, openings, options);
        cursor.backfill =
            Some(Backfill { had: self.to_had(), positions: self.positions(), before });
        cursor
    }

    /// True if a backfill has come to where the other cursor stands.
    pub fn has_caught_up(&self) -> bool {
        let Some(backfill) = &self.backfill else { return true };
        let mut shards = self.shards.iter().zip(&backfill.positions).enumerate();
        self.first.is_none()
            && shards.all(|(index, (shard, end))| {
                let at = shard.position();
                let log = &self.hub.logs[index];
                !end.is_known()
                    || at.epoch > end.epoch
                    || (at.epoch == end.epoch && at.offset >= end.offset)
                    || (shard.reads_log() && shard.unread().is_none() && log.reaches(*end))
            })
    }

    /// Counts events that a backfill has delivered.
    pub fn delivered_elsewhere(&mut self, events: u64) {
        if self.left < u64::MAX {
            self.left = self.left.saturating_sub(events);
        }
    }
}

impl Missing {
    /// The part of a gap that a backfill found which the stream has passed; none if it has not
    /// passed anything of it: then it is told of it itself.
    #[must_use]
    pub fn up_to(self, end: Position) -> Option<Missing> {
        let behind = |place: Position| place.epoch == end.epoch && place.offset >= end.offset;
        if behind(self.from) || self.from.epoch > end.epoch {
            return None;
        }
        if !behind(self.to) {
            return Some(self);
        }
        let missed = self.missed.filter(|_| self.from.epoch == end.epoch);
        let missed = missed.map(|_| end.offset.0 - self.from.offset.0);
        Some(Missing { to: end, missed, ..self })
    }

    /// The events of a backfill that was given up: those after `from`, up to `to`.
    pub fn given_up(from: Position, to: Position) -> Missing {
        let missed = (from.epoch == to.epoch).then(|| to.offset.0.saturating_sub(from.offset.0));
        Missing {
            reason: GapReason::HistoryExpired,
            from,
            to,
            missed,
            from_ms: None,
            to_ms: unix_ms(),
            place: to,
            names: vec![],
        }
    }
}

impl Hub {
    /// How a stream begins after what was had, without waiting for anything.
    fn begin_after(self: &Arc<Self>, shard: ShardId, had: Had) -> super::Opening {
        if had.is_oldest() { self.oldest(shard) } else { self.continue_with(shard, had, || {}) }
    }
}
