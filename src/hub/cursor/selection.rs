//! The events that a cursor selects.

use crate::{
    bus::Position,
    hub::{
        event::EventView,
        filter::{Before, Filter},
        had::Had,
        log::IndexedFrame,
    },
};

/// The events that a cursor selects in one shard.
#[derive(Clone, Copy)]
pub(super) struct Selection<'a> {
    pub filter: &'a Filter,
    /// For a backfill: the names up to which the stream was read before, and the filter that it was
    /// read with.
    pub backfill: Option<(&'a Had, &'a Before)>,
}

impl Selection<'_> {
    /// True if the event with this name is to be delivered.
    pub fn includes(&self, event: &EventView<'_>, name: Position) -> bool {
        let left_out =
            |(had, before): (&Had, &Before)| had.has(name) && !before.matches(event, self.filter);
        self.filter.matches(event) && self.backfill.is_none_or(left_out)
    }

    /// True if every event of a frame is to be delivered; may be false in error.
    pub fn includes_whole(&self, frame: &IndexedFrame) -> bool {
        self.backfill.is_none() && self.filter.includes_whole(frame)
    }
}
