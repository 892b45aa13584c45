//! Changes of the interest of a live stream.
//!
//! An update takes effect where the cursor stands: what it has passed was filtered by the old
//! interest, what it has not is filtered by the new one. So the resume token after an update means
//! what it always means, and a stream that is resumed with it needs the new interest alone.

use super::{Cursor, Late, Scan, Source};
use crate::hub::{
    filter::{Change, Filter},
    token::ResumeToken,
};

impl Cursor {
    /// The filter of the stream.
    pub fn filter(&self) -> &Filter {
        &self.registration.filter
    }

    /// True while the last values with which the stream begins are not taken. They are of the
    /// interest at the opening: an update comes after them.
    pub fn has_first(&self) -> bool {
        self.first.is_some()
    }

    /// Changes the interest, in order. Every event that the bus accepts after this and that the new
    /// interest includes is delivered, or reported as a gap, and no other. With `since`, what is
    /// added begins there: returns what delivers the events up to here.
    pub fn update(&mut self, changes: Vec<Change>, since: Option<&ResumeToken>) -> Option<Late> {
        self.past.begin(&self.registration.filter, &changes);
        // Added first, so that events that are appended from here on become pending.
        let removed = self.registration.update(changes, &mut self.past);
        self.begin_here();
        drop(removed);
        self.registration.set_kinds();
        self.past.end(self.shards.iter().map(|shard| shard.had().recent()));
        let late = since.map(|since| self.backfill(since));
        self.past.trim();
        late
    }

    /// Bytes that are held for what the interest was.
    pub fn past_bytes(&self) -> usize {
        self.past.bytes()
    }

    /// Goes on to the end of each log up to which nothing is pending. Where something is, reads
    /// everything that comes next: what did not concern the old interest may concern the new one.
    fn begin_here(&mut self) {
        for (index, shard) in self.shards.iter_mut().enumerate() {
            if !shard.reads_log() {
                continue;
            }
            let interest = &self.registration.interest;
            let (extent, pending) =
                self.hub.logs[index].extent_with(|| interest.take_pending(index));
            match &mut shard.source {
                Source::Log(scan) if pending.is_none() && scan.next >= scan.end => {
                    *scan = Scan { next: extent.next, end: extent.next };
                    shard.walk(extent.end);
                }
                Source::Log(scan) | Source::Gap(_, scan) => scan.end = extent.next,
                Source::History(_) | Source::Behind => {}
            }
            interest.report(index, shard.unread());
        }
    }
}
