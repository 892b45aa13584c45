//! A cursor in one shard: what the stream has had there, and the source that it reads.

use std::{collections::VecDeque, sync::Arc};

use trunkline_proto::kinds::MISSED_EVENTS;

use crate::{
    bus::{Epoch, Gap, GapReason, Lost, Offset, Position, Provenance, unix_ms},
    hub::{
        batch::Events,
        cursor::{Missing, selection::Selection},
        had::{Had, HadAt},
        log::{Content, Entry, IndexedFrame, Log},
        pages::Page,
    },
};

/// The most lost events of [`ShardCursor::ahead`], as runs.
const MAX_AHEAD: usize = 16;

/// How a stream begins, or continues, in one shard.
pub(in crate::hub) struct Opening {
    /// The place: everything in its epoch up to here was passed.
    pub position: Position,
    /// What the stream has had besides.
    pub had: Had,
    /// The source of the entries that come next.
    pub source: Source,
}

/// A cursor in one shard.
pub(super) struct ShardCursor {
    /// The place: the stream passed everything in its epoch up to here. Unknown before the first
    /// entry of a stream that reads the whole line.
    position: Position,
    /// What the stream has had besides. Joined with `position` when it enters another epoch.
    had: Had,
    /// True if `had` has names beyond `position` in its epoch: then it is kept up to date with
    /// `position`, and each event is looked up.
    checks: bool,
    /// Events that the stream had and that were lost afterwards. One in doubt may be the same as
    /// one of them.
    ahead: Vec<Lost>,
    /// True while the first entry is a gap of which a part was reported.
    reporting: bool,
    pub(super) source: Source,
    /// Where a page of history was turned, the furthest place.
    turned: Option<Position>,
    /// The place that the log went on behind when the stream left it last.
    left_before: Option<Position>,
}

/// The source of the entries that come next.
pub(in crate::hub) enum Source {
    /// The log.
    Log(Scan),
    /// Entries from history that were not delivered yet, oldest first. If there are none, the next
    /// page is to be read.
    History(VecDeque<Arc<Entry>>),
    /// A gap, and the log after it.
    Gap(Box<Gap>, Scan),
    /// Not known yet: the log has to catch up with the bus first.
    Behind,
}

/// Entries of the log that are to be read. Later ones are read only if one of them is pending.
#[derive(Clone, Copy, Debug)]
pub(in crate::hub) struct Scan {
    pub(in crate::hub) next: u64,
    pub(in crate::hub) end: u64,
}

/// The result of offering an entry to a batch.
pub(super) enum Offered {
    /// The entry is done.
    Whole,
    /// The batch is full, or the subscriber's limit is reached; the rest of the entry remains.
    Part,
    /// These events are missing; the entry remains.
    Missing(Missing),
    /// The log goes on behind this place, which the stream has not passed; the entry remains.
    Apart(Position),
}

/// Adjacent events of a frame, which are sent as one slice.
#[derive(Default)]
struct Run(Option<(usize, usize)>);

impl Run {
    fn add(&mut self, frame: &IndexedFrame, index: usize, events: &mut Events) {
        match &mut self.0 {
            Some((_, last)) if *last + 1 == index => *last = index,
            _ => {
                self.end(frame, events);
                self.0 = Some((index, index));
            }
        }
        let event = &frame.events[index];
        events.count += 1;
        events.bytes += (event.end - event.start) as usize;
    }

    fn end(&mut self, frame: &IndexedFrame, events: &mut Events) {
        if let Some(run) = self.0.take() {
            events.push(frame, run);
        }
    }
}

impl ShardCursor {
    pub(super) fn open(opening: Opening) -> ShardCursor {
        let Opening { position, had, source, .. } = opening;
        let mut shard = ShardCursor {
            position: Position::UNKNOWN,
            had,
            checks: false,
            ahead: vec![],
            reporting: false,
            source,
            turned: None,
            left_before: None,
        };
        shard.stand_at(position);
        shard
    }

    /// Goes on as an opening says, which was made of all that this has had.
    pub(super) fn continue_with(&mut self, opening: Opening) {
        self.reporting = false;
        self.position = Position::UNKNOWN;
        self.had = opening.had;
        self.source = opening.source;
        self.stand_at(opening.position);
    }

    /// What history no longer holds before the first page, if the stream reads the whole line to
    /// find what it has not had.
    pub(super) fn before(&self, page: &Page, ends: &[Position]) -> Option<Gap> {
        let position = match &page.entries.first()?.content {
            Content::Frame(IndexedFrame { frame, .. }) => {
                Position { epoch: frame.epoch, offset: Offset(frame.first.0.saturating_sub(1)) }
            }
            Content::Epoch(start) if start.position.offset > Offset(0) => start.position,
            Content::Epoch(start) if start.previous.is_known() => start.previous,
            Content::Epoch(_) | Content::Gap(_) => return None,
        };
        let mut expired = self.expired_before(position, ends)?;
        // Copies of it may follow. Not of the epoch of the position: whoever goes on behind a place
        // has had all names before it.
        let mut coming = self.had.clone();
        for entry in &page.entries {
            match &entry.content {
                Content::Frame(IndexedFrame { frame, .. }) => {
                    if let Some(name) = frame.provenance.as_ref().and_then(|it| it.name.as_ref()) {
                        coming.add(name.epoch, name.first, name.last().offset);
                    }
                }
                Content::Gap(gap) => {
                    gap.lost.iter().for_each(|lost| coming.add(lost.epoch, lost.first, lost.last));
                }
                Content::Epoch(_) => {}
            }
        }
        let lost = expired.lost.iter().flat_map(|lost| {
            if lost.epoch < position.epoch { coming.missing(*lost) } else { vec![*lost] }
        });
        expired.lost = lost.collect();
        (!expired.lost.is_empty()).then_some(expired)
    }

    /// What was lost up to a position with which everything begins that is kept.
    pub(super) fn expired_before(&self, position: Position, ends: &[Position]) -> Option<Gap> {
        if self.position.is_known() || self.had.is_oldest() {
            return None;
        }
        let earlier = ends.iter().filter(|end| end.epoch < position.epoch);
        let lost = earlier.chain([&position]).map(|end| Lost {
            epoch: end.epoch,
            first: Offset(1),
            last: end.offset,
        });
        let lost: Vec<_> = lost.filter(|lost| self.had.first_missing(*lost).is_some()).collect();
        (!lost.is_empty()).then(|| Gap {
            reason: GapReason::HistoryExpired,
            lost,
            more: false,
            position,
            from_ms: None,
            to_ms: unix_ms(),
        })
    }

    /// The place: everything in its epoch up to here was passed.
    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// What the stream has had, of which its token leaves out what is old.
    pub(super) fn had(&self) -> HadAt<'_> {
        self.had.at(self.position).recent()
    }

    /// The number of the next entry of the log that is to be read, if there is one so far.
    pub(super) fn unread(&self) -> Option<u64> {
        match &self.source {
            Source::Log(scan) => (scan.next < scan.end).then_some(scan.next),
            Source::History(_) | Source::Behind => Some(0),
            Source::Gap(_, scan) => Some(scan.next),
        }
    }

    /// The position after which history is to be read, and whether the page must be fresh: what was
    /// kept has led a stream that comes back to where it was, and its oldest event may be gone.
    pub(super) fn wanted(&self) -> (Position, bool) {
        let came_back = self.turned.is_some_and(|place| self.position <= place);
        (self.position, came_back || !self.position.is_known())
    }

    /// A page of history is turned here.
    pub(super) fn turn_at(&mut self, place: Position) {
        self.turned = self.turned.max(Some(place));
    }

    /// True if it waits for a page of history, or for the log.
    pub(super) fn waits(&self) -> bool {
        match &self.source {
            Source::History(entries) => entries.is_empty(),
            Source::Behind => true,
            Source::Log(_) | Source::Gap(..) => false,
        }
    }

    /// True if it has entries of a page of history.
    pub(super) fn holds_history(&self) -> bool {
        matches!(&self.source, Source::History(entries) if !entries.is_empty())
    }

    /// True if it reads the log, so that a pending bit concerns it.
    pub(super) fn reads_log(&self) -> bool {
        matches!(self.source, Source::Log(_) | Source::Gap(..))
    }

    pub(super) fn put_back(&mut self, entry: Arc<Entry>) {
        if let Source::History(entries) = &mut self.source {
            entries.push_front(entry);
        }
    }

    /// Goes to another place, and keeps what was had.
    pub(super) fn stand_at(&mut self, position: Position) {
        if self.position.is_known() {
            self.had.walk(self.position);
        }
        let walked = if position.is_known() { self.had.walked(position.epoch) } else { Offset(0) };
        self.position = Position { offset: position.offset.max(walked), ..position };
        self.checks = self.had.has_more(position.epoch);
        if self.checks {
            self.walk(self.position);
        }
    }

    /// Goes into an epoch.
    fn enter(&mut self, epoch: Epoch) {
        if epoch != self.position.epoch {
            self.stand_at(Position { epoch, offset: Offset(0) });
        }
        self.had.begin();
    }

    /// Passes everything in the epoch up to a place.
    pub(super) fn walk(&mut self, to: Position) {
        self.enter(to.epoch);
        self.position.offset = self.position.offset.max(to.offset);
        if self.checks {
            self.had.walk(self.position);
            self.checks = self.had.has_more(to.epoch);
        }
    }

    /// Takes a place of another epoch, and all before it there, as passed.
    pub(super) fn pass(&mut self, place: Position) {
        if place.epoch == self.position.epoch {
            self.walk(place);
        } else {
            self.had.walk(place);
        }
    }

    /// Leaves the log, which goes on behind this place; true if that was so the last time.
    pub(super) fn left_before(&mut self, place: Position) -> bool {
        self.left_before.replace(place) == Some(place)
    }

    pub(super) fn has_passed(&self, place: Position) -> bool {
        if place.epoch == self.position.epoch {
            place.offset <= self.position.offset
        } else {
            self.had.has_passed(place)
        }
    }

    fn has(&self, name: Position) -> bool {
        name.epoch == self.position.epoch && name.offset <= self.position.offset
            || self.had.has(name)
    }

    fn add(&mut self, lost: Lost) {
        let here = lost.epoch == self.position.epoch;
        if here {
            self.had.walk(self.position);
        }
        self.had.add(lost.epoch, lost.first, lost.last);
        self.checks = self.had.has_more(self.position.epoch);
    }

    fn add_name(&mut self, name: Position) {
        if !self.has(name) {
            self.add(Lost { epoch: name.epoch, first: name.offset, last: name.offset });
        }
    }

    fn first_missing(&self, mut lost: Lost) -> Option<Lost> {
        if lost.epoch == self.position.epoch {
            lost.first = lost.first.max(self.position.offset.plus(1));
        }
        self.had.first_missing(lost)
    }

    /// The next missing events of a gap that were not reported; none if all were had or reported.
    fn missing(&mut self, gap: &Gap, log: &Log) -> Option<Missing> {
        if !self.reporting && gap.reason == GapReason::EpochChanged {
            let had_some = |lost: &&Lost| self.first_missing(**lost) != Some(**lost);
            let ahead: Vec<Lost> = gap.lost.iter().filter(had_some).copied().collect();
            self.ahead.extend(ahead);
            let over = self.ahead.len().saturating_sub(MAX_AHEAD);
            self.ahead.drain(..over);
        }
        self.reporting = true;
        if gap.more && !self.has_passed(gap.position) {
            return Some(Missing::unknown(gap, self.position, &log.ends()));
        }
        let lost = gap.lost.iter().find_map(|lost| self.first_missing(*lost))?;
        Some(Missing::run(gap, lost, self.position))
    }

    /// Records that missing events were reported.
    pub(super) fn reported(&mut self, missing: &Missing) {
        missing.names.iter().for_each(|lost| self.add(*lost));
        // A report has a name, whatever it reports.
        let is_report = matches!(missing.reason, GapReason::Link | GapReason::NotPublished);
        if missing.missed.is_none() && !is_report {
            self.walk(missing.to);
        }
    }

    /// Reports a gap, or goes on behind it.
    pub(super) fn offer_gap(&mut self, gap: &Gap, log: &Log) -> Offered {
        if let Some(missing) = self.missing(gap, log) {
            return Offered::Missing(missing);
        }
        self.reporting = false;
        self.walk(gap.position);
        Offered::Whole
    }

    /// Offers entries of the log, of which the first has the number `next`, one after the other.
    /// Returns what stopped it before the end.
    pub(super) fn offer_log(
        &mut self,
        entries: &[Arc<Entry>],
        scan: Scan,
        log: &Log,
        filter: Selection<'_>,
        events: &mut Events,
        left: &mut u64,
    ) -> Offered {
        for (entry, number) in entries.iter().zip(scan.next..) {
            let offered = self.offer(entry, log, filter, events, left);
            let done = u64::from(matches!(offered, Offered::Whole));
            self.source = Source::Log(Scan { next: number + done, end: scan.end });
            if !matches!(offered, Offered::Whole) {
                return offered;
            }
        }
        Offered::Whole
    }

    /// Adds to the batch the entry's events that the stream has not had and that the filter
    /// includes.
    pub(super) fn offer(
        &mut self,
        entry: &Entry,
        log: &Log,
        filter: Selection<'_>,
        events: &mut Events,
        left: &mut u64,
    ) -> Offered {
        if let Some(before) = entry.follows
            && before.epoch == self.position.epoch
        {
            // What was skipped since the last entry did not concern the stream.
            self.walk(before);
        }
        if let Some(place) = entry.goes_on_after().filter(|place| !self.has_passed(*place)) {
            return Offered::Apart(place);
        }
        match &entry.content {
            Content::Gap(gap) => self.offer_gap(gap, log),
            Content::Epoch(start) => {
                if self.had.is_oldest() && !self.position.is_known() {
                    // What was before the oldest entry that is kept.
                    for end in &start.ends {
                        self.had.add(end.epoch, Offset(1), end.offset);
                    }
                }
                self.walk(start.position);
                Offered::Whole
            }
            Content::Frame(frame) => {
                self.enter(frame.frame.epoch);
                if entry.position.offset <= self.position.offset {
                    Offered::Whole
                } else if frame.frame.provenance.is_none() && !self.checks {
                    self.offer_frame(frame, filter, events, left)
                } else {
                    self.offer_checked(frame, log, filter, events, left)
                }
            }
        }
    }

    /// The index of the first event of a frame that was not passed.
    fn first_left(&self, indexed: &IndexedFrame) -> usize {
        let done = (self.position.offset.0 + 1).saturating_sub(indexed.frame.first.0);
        usize::try_from(done).unwrap_or(usize::MAX).min(indexed.events.len())
    }

    /// Offers a frame of which nothing was had beyond this place.
    fn offer_frame(
        &mut self,
        indexed: &IndexedFrame,
        filter: Selection<'_>,
        events: &mut Events,
        left: &mut u64,
    ) -> Offered {
        let frame = &indexed.frame;
        let done = self.first_left(indexed);
        if events.explanation.is_none() && filter.includes_whole(indexed) {
            return self.offer_whole(indexed, done, events, left);
        }
        let mut run = Run::default();
        let mut offered = Offered::Whole;
        for (index, event) in indexed.events.iter().enumerate().skip(done) {
            if *left == 0 || events.is_full() {
                offered = Offered::Part;
                break;
            }
            let view = event.meta.view(&frame.events);
            let place = Position { epoch: frame.epoch, offset: indexed.offset(index) };
            let matches = filter.includes(&view, place);
            if matches && view.kind() == MISSED_EVENTS {
                offered = Offered::Missing(Missing::report(&view, place, self.position));
                break;
            }
            if let Some(explanation) = &mut events.explanation {
                explanation.record(place, &view, filter.filter, matches);
            }
            if matches {
                run.add(indexed, index, events);
                *left -= 1;
            }
            self.position = place;
        }
        run.end(indexed, events);
        if matches!(offered, Offered::Whole) {
            self.position = frame.last();
        }
        offered
    }

    /// Offers a frame of which events may have been had under their names.
    fn offer_checked(
        &mut self,
        indexed: &IndexedFrame,
        log: &Log,
        filter: Selection<'_>,
        events: &mut Events,
        left: &mut u64,
    ) -> Offered {
        let frame = &indexed.frame;
        let nothing = Provenance::default();
        let provenance = frame.provenance.as_deref().unwrap_or(&nothing);
        let in_doubt = provenance.doubts.iter().any(|end| self.may_be_behind(*end, log));
        let mut run = Run::default();
        let mut offered = Offered::Whole;
        for (index, event) in indexed.events.iter().enumerate().skip(self.first_left(indexed)) {
            let place = Position { epoch: frame.epoch, offset: indexed.offset(index) };
            let name = frame.name_of(index as u64);
            let aliases = || {
                let of_event = |(of, _): &&(u64, Position)| *of == index as u64;
                provenance.aliases.iter().filter(of_event).map(|(_, alias)| *alias)
            };
            // A name at its own place is beyond what was walked.
            let had = self.has(name) || aliases().any(|alias| self.has(alias));
            if !had {
                if *left == 0 || events.is_full() {
                    offered = Offered::Part;
                    break;
                }
                if in_doubt {
                    offered = Offered::Missing(Missing::in_doubt(name, self.position));
                    break;
                }
                let view = event.meta.view(&frame.events);
                let matches = filter.includes(&view, name);
                if matches && view.kind() == MISSED_EVENTS {
                    offered = Offered::Missing(Missing::report(&view, name, self.position));
                    break;
                }
                if let Some(explanation) = &mut events.explanation {
                    explanation.record(place, &view, filter.filter, matches);
                }
                if matches {
                    run.add(indexed, index, events);
                    *left -= 1;
                }
            }
            aliases().for_each(|alias| self.add_name(alias));
            if name != place {
                self.add_name(name);
            }
            self.walk(place);
        }
        run.end(indexed, events);
        if matches!(offered, Offered::Whole) {
            self.walk(frame.last());
        }
        offered
    }

    /// True if the stream had an event that lies behind this end of an epoch and that this gateway
    /// cannot name: it may be the one that is in doubt.
    fn may_be_behind(&self, end: Position, log: &Log) -> bool {
        let here = if end.epoch == self.position.epoch { self.position.offset } else { Offset(0) };
        let last = self.had.last(end.epoch).max(here);
        let known = log.end_of(end.epoch).unwrap_or(Offset(0)).max(end.offset);
        let lost = |lost: &Lost| lost.epoch == end.epoch && lost.last > end.offset;
        last > known || self.ahead.iter().any(lost)
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
}
