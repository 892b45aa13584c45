//! A cursor's position in one shard, and the source that it reads there.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    bus::{Gap, Position},
    hub::{
        batch::Events,
        filter::Filter,
        log::{Content, Entry, IndexedFrame},
    },
};

/// Where a cursor begins in one shard.
pub(in crate::hub) enum Opening {
    /// In the log: everything up to `position` was delivered, and the entries from `next` to `end`
    /// may lie behind it.
    Log { position: Position, next: u64, end: u64, resumed: bool },
    /// In history, after `position`.
    History { position: Position },
    /// With a gap, then in the log.
    Gap { gap: Gap, next: u64, end: u64 },
}

/// The position in one shard.
pub(super) struct ShardCursor {
    /// Everything up to here was delivered, or was not wanted.
    pub(super) position: Position,
    /// The position at which the stream resumed, if it did.
    resumed: Option<Position>,
    pub(super) source: Source,
}

/// The source of the entries that come next.
pub(super) enum Source {
    /// The log.
    Log(Scan),
    /// Entries from history that were not delivered yet, oldest first. If there are none, the next
    /// page is to be read.
    History(VecDeque<Entry>),
    /// A gap, and the log after it.
    Gap(Gap, Scan),
}

/// Entries of the log that are to be read. Later ones are read only if one of them is pending.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scan {
    pub(super) next: u64,
    pub(super) end: u64,
}

/// The result of offering an entry to a batch.
pub(super) enum Offered {
    /// The entry is done.
    Whole,
    /// The batch is full, or the subscriber's limit is reached; the rest of the entry remains.
    Part,
    /// The entry is a gap.
    Gap(Gap),
}

impl ShardCursor {
    pub(super) fn open(opening: Opening) -> ShardCursor {
        match opening {
            Opening::Log { position, next, end, resumed } => ShardCursor {
                position,
                resumed: resumed.then_some(position),
                source: Source::Log(Scan { next, end }),
            },
            Opening::History { position } => ShardCursor {
                position,
                resumed: position.is_known().then_some(position),
                source: Source::History(VecDeque::new()),
            },
            Opening::Gap { gap, next, end } => ShardCursor {
                position: gap.from,
                resumed: None,
                source: Source::Gap(gap, Scan { next, end }),
            },
        }
    }

    /// The number of the next entry of the log that is to be read, if there is one so far.
    pub(super) fn unread(&self) -> Option<u64> {
        match &self.source {
            Source::Log(scan) => (scan.next < scan.end).then_some(scan.next),
            Source::History(_) => Some(0),
            Source::Gap(_, scan) => Some(scan.next),
        }
    }

    pub(super) fn wants_page(&self) -> bool {
        matches!(&self.source, Source::History(entries) if entries.is_empty())
    }

    pub(super) fn put_back(&mut self, entry: Entry) {
        if let Source::History(entries) = &mut self.source {
            entries.push_front(entry);
        }
    }

    /// Offers entries of the log, of which the first has the number `next`, one after the other.
    /// Returns what stopped it before the end.
    pub(super) fn offer_log(
        &mut self,
        entries: &[Arc<Entry>],
        scan: Scan,
        filter: &Filter,
        events: &mut Events,
        left: &mut u64,
    ) -> Offered {
        for (entry, number) in entries.iter().zip(scan.next..) {
            let offered = self.offer(entry, filter, events, left);
            let done = u64::from(matches!(offered, Offered::Whole));
            self.source = Source::Log(Scan { next: number + done, end: scan.end });
            if !matches!(offered, Offered::Whole) {
                return offered;
            }
        }
        Offered::Whole
    }

    /// Adds to the batch the entry's events after this position that the filter includes.
    pub(super) fn offer(
        &mut self,
        entry: &Entry,
        filter: &Filter,
        events: &mut Events,
        left: &mut u64,
    ) -> Offered {
        if entry.position <= self.position {
            return Offered::Whole;
        }
        let frame = match &entry.content {
            Content::Gap(gap) => {
                let from = gap.from.max(self.position);
                let missed = if from == gap.from { gap.missed } else { from.events_until(gap.to) };
                return Offered::Gap(Gap { from, missed, ..gap.clone() });
            }
            Content::Frame(frame) if !self.had_at_origin(frame) => frame,
            Content::Restored(frame) if self.resumed_in_epoch_of(frame) => frame,
            Content::Frame(_) | Content::Restored(_) | Content::Epoch => {
                self.position = entry.position;
                return Offered::Whole;
            }
        };
        self.offer_frame(frame, filter, events, left)
    }

    fn offer_frame(
        &mut self,
        indexed: &IndexedFrame,
        filter: &Filter,
        events: &mut Events,
        left: &mut u64,
    ) -> Offered {
        let frame = &indexed.frame;
        let done = if self.position.epoch == frame.epoch {
            (self.position.offset.0 + 1).saturating_sub(frame.first.0)
        } else {
            0
        };
        let done = usize::try_from(done).unwrap_or(usize::MAX).min(indexed.events.len());
        if events.explanation.is_none() && filter.includes_whole(indexed) {
            return self.offer_whole(indexed, done, events, left);
        }
        // Adjacent events are sent as one slice.
        let mut run: Option<(usize, usize)> = None;
        let mut offered = Offered::Whole;
        for (index, event) in indexed.events.iter().enumerate().skip(done) {
            if *left == 0 || events.is_full() {
                offered = Offered::Part;
                break;
            }
            let view = event.meta.view(&frame.events);
            let matches = filter.matches(&view);
            if let Some(explanation) = &mut events.explanation {
                let position = Position { epoch: frame.epoch, offset: indexed.offset(index) };
                explanation.record(position, &view, filter, matches);
            }
            if matches {
                run = match run {
                    Some((first, last)) if last + 1 == index => Some((first, index)),
                    Some(before) => {
                        events.push(indexed, before);
                        Some((index, index))
                    }
                    None => Some((index, index)),
                };
                events.count += 1;
                events.bytes += (event.end - event.start) as usize;
                *left -= 1;
            }
            self.position = Position { epoch: frame.epoch, offset: indexed.offset(index) };
        }
        if let Some(run) = run {
            events.push(indexed, run);
        }
        if matches!(offered, Offered::Whole) {
            self.position = frame.last();
        }
        offered
    }

    /// Adds the events from index `done` on, all of which the filter includes, in one slice: as
    /// many as fit.
    fn offer_whole(
        &mut self,
        indexed: &IndexedFrame,
        done: usize,
        events: &mut Events,
        left: &mut u64,
    ) -> Offered {
        let rest = &indexed.events[done..];
        let Some(start) = rest.first().map(|first| first.start as usize) else {
            self.position = indexed.frame.last();
            return Offered::Whole;
        };
        // The event that fills the batch is the last one in it.
        let free = events.max_bytes.saturating_sub(events.bytes);
        let by_bytes = match free {
            0 => 0,
            free => 1 + rest.partition_point(|event| event.end as usize - start < free),
        };
        let by_count = usize::try_from(events.max_count.saturating_sub(events.count).min(*left));
        let taken = rest.len().min(by_bytes).min(by_count.unwrap_or(usize::MAX));
        if let Some(last) = taken.checked_sub(1) {
            let last = done + last;
            events.push(indexed, (done, last));
            events.count += taken as u64;
            events.bytes += indexed.events[last].end as usize - start;
            *left -= taken as u64;
            self.position = Position { epoch: indexed.frame.epoch, offset: indexed.offset(last) };
        }
        if taken == rest.len() { Offered::Whole } else { Offered::Part }
    }

    /// True if the resumed stream had these events at their origin.
    fn had_at_origin(&self, frame: &IndexedFrame) -> bool {
        let (Some(origin), Some(resumed)) = (frame.frame.origin, self.resumed) else {
            return false;
        };
        origin.epoch == resumed.epoch && origin.offset <= resumed.offset
    }

    /// True if the stream resumed in the frame's epoch. It then comes from another gateway, which
    /// may not have had the events at their origin.
    fn resumed_in_epoch_of(&self, frame: &IndexedFrame) -> bool {
        self.resumed.is_some_and(|resumed| resumed.epoch == frame.frame.epoch)
    }
}
