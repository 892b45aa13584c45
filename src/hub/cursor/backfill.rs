//! Added interest that begins before the present.
//!
//! A second cursor reads from there up to where the cursor of the stream stands, which waits
//! meanwhile. It delivers what the stream has passed and its interest did not include then; all
//! else the stream has had, or will have. Which of the two it is follows from the name of each
//! event, so that copies which recovery made change nothing.

use std::sync::Arc;

use super::{Cursor, Missing, ReadOptions, shard_id};
use crate::{
    bus::{GapReason, Position, ShardId, unix_ms},
    hub::{
        Hub,
        filter::Passed,
        had::{Had, HadAt},
        token::ResumeToken,
    },
};

/// Delivers the events of added interest that began before the present.
pub struct Late {
    /// The events, up to where the stream stands.
    pub cursor: Cursor,
    /// What comes before them and is not delivered, since the stream may have had some of it.
    pub gaps: Vec<(ShardId, Missing)>,
}

/// What the other cursor has left out.
pub(super) struct Backfill {
    /// Where it stands, by shard.
    pub positions: Vec<Position>,
    /// What it has passed.
    pub passed: Passed,
    /// Up to where it had some of what is delivered, by shard.
    had_some: Option<Vec<Position>>,
}

impl Cursor {
    /// A cursor that delivers what this one has passed since a token and its filter did not
    /// include, after an update.
    pub(super) fn backfill(&mut self, since: &ResumeToken) -> Late {
        let (begin, gaps) = self.begin_late(since);
        self.past.begins_after(&begin);
        let hub = &self.hub;
        let openings = begin.into_iter().enumerate();
        let openings = openings.map(|(index, had)| hub.begin_after(shard_id(index), had)).collect();
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
        let passed = self.past.passed(self.filter());
        let had_some = passed.had_some_of_it();
        let had_some = had_some.map(|had| had.iter().map(Had::place).collect());
        cursor.backfill = Some(Backfill { positions: self.positions(), passed, had_some });
        Late { cursor, gaps }
    }

    /// Where added interest begins in each shard, and what is lost before: nobody knows what the
    /// stream had of it where its past is forgotten.
    fn begin_late(&self, since: &ResumeToken) -> (Vec<Had>, Vec<(ShardId, Missing)>) {
        let floor = self.past.floor();
        let count = self.shards.len();
        let of = |shards: &[Had], index: usize| -> Had {
            shards.get(index).filter(|_| shards.len() == count).cloned().unwrap_or_default()
        };
        let mut gaps = vec![];
        let begin = (0..count).map(|index| {
            let made = of(&since.shards, index);
            let behind = since.behind.as_deref().map(|behind| of(behind, index));
            let goes_on = !behind.as_ref().is_some_and(Had::is_unknown);
            let begin = behind.unwrap_or_else(|| made.clone());
            let floor = floor.as_deref().map(|floor| of(floor, index)).unwrap_or_default();
            let end = floor.place();
            let is_later = made.has_passed(end) || made.place().epoch > end.epoch;
            if !end.is_known() || (is_later && goes_on) {
                return begin;
            }
            if begin.place() < end {
                gaps.push((shard_id(index), Missing::given_up(begin.place(), end)));
            }
            floor
        });
        (begin.collect(), gaps)
    }

    /// What a stream has had, for the resume token, of a part of its interest that is behind.
    /// Nothing in shards where it cannot be said: a stream that resumed there could not tell what
    /// this one had before.
    pub fn had_behind(&self) -> impl ExactSizeIterator<Item = HadAt<'_>> + Clone {
        let ends = self.backfill.as_ref().and_then(|backfill| backfill.had_some.as_deref());
        self.shards.iter().enumerate().map(move |(index, shard)| {
            let end = ends.and_then(|ends| ends.get(index)).copied().unwrap_or(Position::UNKNOWN);
            let is_past = shard.has_passed(end) || shard.position().epoch > end.epoch;
            if end.is_known() && !is_past { HadAt::UNKNOWN } else { shard.had() }
        })
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
            origin: None,
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
