//! A subscriber's cursor over the logs of all shards.
//!
//! A cursor owns no queue. It reads when it is polled, which is when the stream took the batch
//! before, so a slow subscriber costs what a fast one does. A cursor that the log has overtaken, or
//! that resumes before the log, reads the bus's history until it is back in the log.

mod backfill;
mod missing;
mod progress;
mod selection;
mod shard;
mod update;

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};

pub(super) use self::shard::{Opening, Scan, Source};
use self::{
    backfill::Backfill,
    selection::Selection,
    shard::{Offered, ShardCursor},
};
pub use self::{backfill::Late, missing::Missing, progress::Progress};
use super::{
    Hub,
    batch::{Events, MAX_BATCH_EVENTS},
    explanation::Explanation,
    filter::Past,
    had::{Had, HadAt},
    log::{Content, Entry},
    merge,
    pages::{Page, Wanted},
    readers::{HeldPage, HistoryQuota},
    router::Registration,
};
use crate::bus::{AppendError, Delivery, Gap, GapReason, Lost, Offset, Position, ShardId};

/// The most events that are read for one merge. They are not kept.
const MAX_MERGED_EVENTS: u64 = 50_000;

/// The most events of one batch that are reported for traces.
const MAX_TRACED_EVENTS: usize = 64;

/// Bytes of events in the pages of history of one stream, and in one of them at least. A page with
/// one larger frame has more.
const PAGE_BYTES: usize = 1024 * 1024;
const MIN_PAGE_BYTES: usize = 64 * 1024;

/// The wait before history is read again after an empty page.
const PAGE_PAUSE: Duration = Duration::from_millis(20);

/// How a stream is read.
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// The number of events that are wanted; `None`: no limit.
    pub max_events: Option<u64>,
    /// Merge events while the stream is behind.
    pub merge: bool,
    /// Report the events of recorded traces.
    pub trace: bool,
    /// Explain the filter's decision about every event. The filter must be one that watches all.
    pub explain: bool,
    /// Counts the history that the stream reads and holds; `None`: it counts against nobody.
    pub history: Option<HistoryQuota>,
}

/// An item of a stream.
#[derive(Debug)]
pub enum Item {
    /// Events, encoded as in a batch.
    Events(Events),
    /// Events of a shard that will not be delivered.
    Gap(ShardId, Missing),
}

/// What a shard's cursor waits for.
enum Awaited {
    /// A page of history, which counts as held.
    Page(Page, HeldPage),
    /// The log has caught up with the bus: the stream continues so.
    Opening(Opening),
}

/// The read of history that a shard's cursor waits for.
type Waiting = BoxFuture<'static, Result<Awaited, AppendError>>;

/// A subscriber's position in all shards.
pub struct Cursor {
    hub: Arc<Hub>,
    registration: Registration,
    shards: Vec<ShardCursor>,
    /// The shard to read first. It rotates, so that a busy shard does not hold up the others.
    turn: usize,
    /// The number of events that the subscriber still wants.
    left: u64,
    /// Events may be merged while the cursor is behind. Not if the subscriber limits their number:
    /// it counts events as they were published.
    merge: bool,
    /// The limit of traced events in a batch; 0 if none are reported.
    max_traced: usize,
    /// The limit of decisions in the next batch; `None` if the stream does not explain itself.
    max_decisions: Option<usize>,
    /// A batch to deliver before anything else.
    first: Option<Events>,
    /// The shards that wait for a page of history, by their indexes. The others do not wait for
    /// them.
    waiting: Vec<(usize, Waiting)>,
    /// Counts the history that the stream holds.
    history: Option<HistoryQuota>,
    /// The pages that it holds, with the indexes of their shards.
    held: Vec<(usize, HeldPage)>,
    /// Reads only what another cursor has left out; `None` for the cursor of a stream.
    backfill: Option<Backfill>,
    /// What the interest was.
    past: Past,
}

impl Cursor {
    pub(super) fn new(
        hub: Arc<Hub>,
        registration: Registration,
        openings: Vec<Opening>,
        options: ReadOptions,
    ) -> Cursor {
        Cursor {
            hub,
            registration,
            shards: openings.into_iter().map(ShardCursor::open).collect(),
            turn: 0,
            left: options.max_events.unwrap_or(u64::MAX),
            merge: options.merge && options.max_events.is_none(),
            max_traced: if options.trace { MAX_TRACED_EVENTS } else { 0 },
            max_decisions: options.explain.then_some(0),
            first: None,
            waiting: vec![],
            history: options.history,
            held: vec![],
            backfill: None,
            past: Past::default(),
        }
    }

    /// The stream goes on with what one before it had, whatever its interest was.
    pub(super) fn goes_on(&mut self) {
        self.past = Past::after(self.had());
    }

    /// Delivers these encoded events before anything else; their positions lie before the cursor's.
    pub(super) fn begin_with(&mut self, first: &[Bytes]) {
        let wanted = first.iter().take(usize::try_from(self.left).unwrap_or(usize::MAX));
        let events = Events::of(wanted.map(|event| &event[..]));
        if events.count > 0 {
            self.left -= events.count;
            self.first = Some(events);
        }
    }

    /// The place in each shard.
    pub fn positions(&self) -> Vec<Position> {
        self.shards.iter().map(ShardCursor::position).collect()
    }

    /// What the stream has had in each shard, for the resume token.
    pub fn had(&self) -> impl ExactSizeIterator<Item = HadAt<'_>> + Clone {
        self.shards.iter().map(ShardCursor::had)
    }

    /// The same as values of their own.
    pub fn to_had(&self) -> Vec<Had> {
        self.had().map(HadAt::to_had).collect()
    }

    /// Limits the decisions in the next batch, if the stream explains itself.
    pub fn limit_decisions(&mut self, max: usize) {
        self.max_decisions = self.max_decisions.map(|_| max);
    }

    /// True if it reads what comes in all shards from their logs, and not from history.
    pub fn reads_logs(&self) -> bool {
        self.waiting.is_empty() && self.shards.iter().all(ShardCursor::reads_log)
    }

    /// A handle that reports how far the cursor is behind.
    pub fn progress(&self) -> Progress {
        Progress { hub: self.hub.clone(), interest: self.registration.interest.clone() }
    }

    /// True after the subscriber got all the events that it wanted.
    pub fn is_finished(&self) -> bool {
        self.left == 0 && self.first.is_none()
    }

    /// Waits for the next item. Nothing is lost if it is dropped while it waits.
    ///
    /// # Errors
    ///
    /// History was needed and could not be read.
    pub async fn next(&mut self) -> Result<Item, AppendError> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The next item, if there is one. Otherwise the task is woken when there may be one. A
    /// finished cursor stays pending.
    ///
    /// # Errors
    ///
    /// History was needed and could not be read.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Item, AppendError>> {
        loop {
            self.poll_waiting(cx)?;
            if let Some(item) = self.take() {
                return Poll::Ready(Ok(item));
            }
            if self.is_finished() {
                return Poll::Pending;
            }
            if self.wait_for_history() {
                continue;
            }
            let shards = &self.shards;
            let reads_log = |shard: usize| shards[shard].reads_log();
            match self.registration.interest.poll_pending(cx, reads_log) {
                Poll::Ready(()) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Goes on with the shards whose page of history has come.
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Result<(), AppendError> {
        let mut index = 0;
        while let Some((shard, waiting)) = self.waiting.get_mut(index) {
            let Poll::Ready(awaited) = waiting.poll_unpin(cx) else {
                index += 1;
                continue;
            };
            let shard = *shard;
            drop(self.waiting.swap_remove(index));
            match awaited? {
                Awaited::Page(page, held) => {
                    self.held.push((shard, held));
                    self.turn_page(shard, page);
                }
                Awaited::Opening(opening) => self.shards[shard].continue_with(opening),
            }
        }
        Ok(())
    }

    /// Begins to read for the shards that need it; false if none does.
    fn wait_for_history(&mut self) -> bool {
        let before = self.waiting.len();
        for index in 0..self.shards.len() {
            if self.shards[index].waits() && self.waiting.iter().all(|(shard, _)| *shard != index) {
                let waiting = self.read(index);
                self.waiting.push((index, waiting));
            }
        }
        self.waiting.len() > before
    }

    /// Takes what is there: events of all shards up to a batch, or one gap.
    pub fn take(&mut self) -> Option<Item> {
        if let Some(first) = self.first.take() {
            return Some(Item::Events(first));
        }
        self.registration.interest.begin_read();
        let item = self.take_item();
        if let Some(Item::Events(events)) = &item {
            for stamp in &events.waited {
                self.hub.waits.taken(stamp, &self.registration.interest);
            }
        }
        self.held.retain(|(shard, _)| self.shards[*shard].holds_history());
        for (index, shard) in self.shards.iter().enumerate() {
            self.registration.interest.report(index, shard.unread());
        }
        self.registration.interest.end_read();
        item
    }

    fn take_item(&mut self) -> Option<Item> {
        let merging = self.merge && self.progress().behind() > MAX_BATCH_EVENTS;
        let mut events = Events::up_to(if merging { MAX_MERGED_EVENTS } else { MAX_BATCH_EVENTS });
        events.max_traced = self.max_traced;
        events.explanation = self.max_decisions.map(|max| Box::new(Explanation::new(max)));
        let count = self.shards.len();
        let first = self.turn;
        self.turn = (first + 1) % count;
        for shard in (first..count).chain(0..first) {
            if events.is_full() || self.left == 0 {
                break;
            }
            let id = shard_id(shard);
            if let Some(explanation) = &mut events.explanation {
                explanation.begin_shard(id);
            }
            if let Some(missing) = self.take_from(shard, &mut events) {
                if events.is_empty() {
                    self.shards[shard].reported(&missing);
                    return Some(Item::Gap(id, missing));
                }
                // The events before it go first; the shard's cursor is still before the gap.
                self.turn = shard;
                break;
            }
        }
        if merging {
            let merged = merge::merge(&events);
            events = Events {
                traced: events.traced,
                waited: events.waited,
                explanation: events.explanation,
                ..merged
            };
        }
        (!events.is_empty()).then_some(Item::Events(events))
    }

    /// Adds what a shard has to the batch; returns what is missing if that comes next.
    fn take_from(&mut self, index: usize, events: &mut Events) -> Option<Missing> {
        let hub = self.hub.clone();
        let log = &hub.logs[index];
        loop {
            let backfill = self.backfill.as_ref();
            let selection = Selection {
                filter: &self.registration.filter,
                backfill: backfill.map(|backfill| (index, &backfill.passed)),
            };
            let shard = &mut self.shards[index];
            match &mut shard.source {
                Source::Behind => return None,
                Source::Gap(gap, scan) => {
                    let (gap, scan) = (gap.clone(), *scan);
                    match shard.offer_gap(&gap, log) {
                        Offered::Missing(missing) => return Some(missing),
                        _ => shard.source = Source::Log(scan),
                    }
                }
                Source::History(entries) => {
                    let Some(entry) = entries.pop_front() else {
                        if self.return_to_log(index) {
                            continue;
                        }
                        return None;
                    };
                    match shard.offer(&entry, log, selection, events, &mut self.left) {
                        Offered::Whole => {}
                        Offered::Part | Offered::Apart(_) => {
                            shard.put_back(entry);
                            return None;
                        }
                        Offered::Missing(missing) => {
                            shard.put_back(entry);
                            if !self.ends_in_log(index) {
                                return Some(missing);
                            }
                        }
                    }
                }
                Source::Log(scan) if scan.next >= scan.end => {
                    if !self.scan_pending(index) {
                        return None;
                    }
                }
                Source::Log(scan) => {
                    let scan = *scan;
                    let mut bytes = events.bytes;
                    let mut number = scan.next;
                    let read = log.read(scan.next, |entry| {
                        bytes += entry.wire_bytes();
                        number += 1;
                        bytes >= events.max_bytes || number >= scan.end
                    });
                    let Some(entries) = read else {
                        self.leave_log(index);
                        continue;
                    };
                    match shard.offer_log(&entries, scan, log, selection, events, &mut self.left) {
                        Offered::Whole => {}
                        Offered::Part => return None,
                        Offered::Missing(missing) => return Some(missing),
                        Offered::Apart(place) => self.leave_log_before(index, place),
                    }
                    if events.is_full() {
                        return None;
                    }
                }
            }
        }
    }

    /// Goes on to what became pending since the last read, and skips what did not; false if nothing
    /// is pending.
    fn scan_pending(&mut self, index: usize) -> bool {
        let interest = &self.registration.interest;
        let (extent, pending) = self.hub.logs[index].extent_with(|| interest.take_pending(index));
        let shard = &mut self.shards[index];
        let Source::Log(scan) = &mut shard.source else { return false };
        if let Some(first) = pending {
            *scan = Scan { next: first.max(scan.next), end: extent.next };
            return scan.next < scan.end;
        }
        *scan = Scan { next: extent.next, end: extent.next };
        shard.walk(extent.end);
        false
    }

    /// Leaves the log, which goes on behind a place that the stream has not passed.
    fn leave_log_before(&mut self, index: usize, place: Position) {
        let shard = &mut self.shards[index];
        if shard.left_before(place) {
            // History has led here again: it has nothing more of what is before the place.
            shard.pass(place);
            return;
        }
        let unread = shard.unread();
        self.leave_log(index);
        let shard = &mut self.shards[index];
        if shard.reads_log() && shard.unread() == unread {
            // The log counts the place as passed, and would lead here for ever.
            shard.pass(place);
        }
    }

    /// Leaves the log, which no longer has what comes next.
    fn leave_log(&mut self, index: usize) {
        let had = self.shards[index].had().to_had();
        let opening = self.hub.continue_with(shard_id(index), had, || {
            self.registration.interest.take_pending(index);
        });
        self.shards[index].continue_with(opening);
    }

    /// Returns to the log, if it has everything after the place.
    fn return_to_log(&mut self, index: usize) -> bool {
        let interest = &self.registration.interest;
        let (shard, log) = (&self.shards[index], &self.hub.logs[index]);
        let Some(next) = log.locate(shard.position(), |place| shard.has_passed(place)) else {
            return false;
        };
        let (extent, _) = log.extent_with(|| interest.take_pending(index));
        self.shards[index].source = Source::Log(Scan { next, end: extent.next });
        true
    }

    /// Ends the gap that comes next in history where the log begins, if it reaches into the log:
    /// history may hold less than the log. False if it does not.
    fn ends_in_log(&mut self, index: usize) -> bool {
        let hub = self.hub.clone();
        let log = &hub.logs[index];
        let Source::History(entries) = &self.shards[index].source else { return false };
        let Some(Content::Gap(gap)) = entries.front().map(|entry| &entry.content) else {
            return false;
        };
        let gap = gap.clone();
        let reaches = log.contains(gap.position) && gap.position != log.extent().start;
        if gap.reason != GapReason::HistoryExpired || !reaches {
            return false;
        }
        if self.return_to_log(index) {
            return true;
        }
        // What comes in it after a change of its line may be older than its beginning.
        if !log.is_one_line() {
            return false;
        }
        let interest = &self.registration.interest;
        let (extent, _) = log.extent_with(|| interest.take_pending(index));
        let gap = gap_before(&gap, extent.start);
        self.shards[index].source =
            Source::Gap(gap.into(), Scan { next: extent.base, end: extent.next });
        true
    }

    /// Reads what a shard waits for.
    fn read(&self, index: usize) -> Waiting {
        let (hub, id) = (self.hub.clone(), shard_id(index));
        if matches!(self.shards[index].source, Source::Behind) {
            let had = self.shards[index].had().to_had();
            return async move { hub.catch_up(id, had).await.map(Awaited::Opening) }.boxed();
        }
        let (after, fresh) = self.shards[index].wanted();
        let quota = self.history.clone();
        let max_bytes = (PAGE_BYTES / self.shards.len()).max(MIN_PAGE_BYTES);
        let wanted = Wanted { after, max_bytes, fresh };
        let read = async move {
            let mut held = match &quota {
                Some(quota) => quota.hold().await?,
                None => HeldPage::uncounted(),
            };
            let page = hub.history_page(id, wanted, quota.as_ref()).await?;
            held.resize(page.bytes());
            if page.entries.is_empty() {
                // History and the log do not meet yet: the events between them are on their way.
                tokio::time::sleep(PAGE_PAUSE).await;
            }
            Ok(Awaited::Page(page, held))
        };
        read.boxed()
    }

    fn turn_page(&mut self, index: usize, page: Page) {
        let (log, shard) = (&self.hub.logs[index], &mut self.shards[index]);
        let place = shard.position();
        shard.turn_at(place);
        if is_elsewhere(place, &page) {
            // Its events come as copies, as far as they are not lost.
            log.not_on_line(place.epoch);
            self.leave_log(index);
            return;
        }
        log.learn_ends(&page.ends);
        let mut expired = shard.before(&page, &log.ends());
        if page.entries.is_empty() {
            let extent = log.extent();
            if place.is_known() {
                shard.walk(page.next);
            } else if page.at_end && (page.next.is_known() || extent.base == 0) {
                // History holds nothing: everything that is left is in the log. Not if the log has
                // dropped entries that a shard without any state may not have had yet.
                // Nor if the log itself goes on behind a place that nothing leads to any more.
                let whole = log.is_whole(|place| shard.has_passed(place));
                let in_log = !page.next.is_known() || log.contains(page.next) && whole;
                let begin = if in_log { extent.start } else { page.next };
                expired = shard.expired_before(begin, &log.ends());
                if expired.is_none() {
                    shard.stand_at(begin);
                }
                if in_log {
                    // Its first entries may lie on another line, of which history knows nothing.
                    let interest = &self.registration.interest;
                    let (end, _) = log.extent_with(|| interest.take_pending(index));
                    let scan = Scan { next: extent.base, end: end.next };
                    shard.source = match expired {
                        Some(gap) => Source::Gap(gap.into(), scan),
                        None => Source::Log(scan),
                    };
                    return;
                }
            }
        }
        let expired = expired.map(|gap| Arc::new(Entry::new(Delivery::Gap(gap))));
        shard.source = Source::History(expired.into_iter().chain(page.entries).collect());
    }
}

/// True if the page after a place says that the epoch of the place lies on another line.
pub(super) fn is_elsewhere(place: Position, page: &Page) -> bool {
    place.is_known()
        && match page.entries.first().map(|entry| &entry.content) {
            Some(Content::Gap(gap)) => gap.reason == GapReason::UnknownEpoch,
            Some(Content::Epoch(start)) => {
                start.position.epoch != place.epoch && start.previous.epoch != place.epoch
            }
            _ => false,
        }
}

/// The part of a gap up to a place. Of its epoch everything up to there is missing that the stream
/// has not had: whoever goes on behind a place has had all names before it.
fn gap_before(gap: &Gap, place: Position) -> Gap {
    let earlier = gap.lost.iter().filter(|lost| lost.epoch < place.epoch).copied();
    let here = Lost { epoch: place.epoch, first: Offset(1), last: place.offset };
    let here = (place.offset > Offset(0)).then_some(here);
    Gap { lost: earlier.chain(here).collect(), position: place, ..gap.clone() }
}

/// The id of the shard with this index.
pub(super) fn shard_id(index: usize) -> ShardId {
    ShardId(u16::try_from(index).unwrap_or(u16::MAX))
}
