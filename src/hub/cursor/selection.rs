//! The events that a cursor selects.

use crate::{
    bus::Position,
    hub::{
        event::EventView,
        filter::{Filter, Passed},
        log::IndexedFrame,
    },
};

/// The events that a cursor selects in one shard.
#[derive(Clone, Copy)]
pub(super) struct Selection<'a> {
    pub filter: &'a Filter,
    /// For a backfill: the shard, and what the stream has passed.
    pub backfill: Option<(usize, &'a Passed)>,
}

impl Selection<'_> {
    /// True if the event with this name is to be delivered.
    pub fn includes(&self, event: &EventView<'_>, name: Position) -> bool {
        let left_out =
            |(shard, passed): (usize, &Passed)| passed.left_out(shard, name, event, self.filter);
        self.filter.matches(event) && self.backfill.is_none_or(left_out)
    }

    /// True if every event of a frame is to be delivered; may be false in error.
    pub fn includes_whole(&self, frame: &IndexedFrame) -> bool {
        self.backfill.is_none() && self.filter.includes_whole(frame)
    }
}
