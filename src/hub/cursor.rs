//! A subscriber's cursor over the logs of all shards.
//!
//! A cursor owns no queue. It reads when it is polled, which is when the stream took the batch
//! before, so a slow subscriber costs what a fast one does. A cursor that the log has overtaken, or
//! that resumes before the log, reads the bus's history until it is back in the log.

mod progress;
mod shard;

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};

pub use self::progress::Progress;
pub(super) use self::shard::Opening;
use self::shard::{Offered, Scan, ShardCursor, Source};
use super::{
    Hub,
    batch::{Events, MAX_BATCH_EVENTS},
    explanation::Explanation,
    log::Entry,
    merge,
    router::Registration,
};
use crate::bus::{AppendError, Gap, HistoryPage, Position, ShardId};

/// The most events that are read for one merge. They are not kept.
const MAX_MERGED_EVENTS: u64 = 50_000;

/// The most events of one batch that are reported for traces.
const MAX_TRACED_EVENTS: usize = 64;

/// Bytes of events in a page of history.
const PAGE_BYTES: usize = 1024 * 1024;

/// The wait before history is read again after an empty page.
const PAGE_PAUSE: Duration = Duration::from_millis(20);

/// How a stream is read.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadOptions {
    /// The number of events that are wanted; `None`: no limit.
    pub max_events: Option<u64>,
    /// Merge events while the stream is behind.
    pub merge: bool,
    /// Report the events of recorded traces.
    pub trace: bool,
    /// Explain the filter's decision about every event. The filter must be one that watches all.
    pub explain: bool,
}

/// An item of a stream.
#[derive(Debug)]
pub enum Item {
    /// Events, encoded as in a batch.
    Events(Events),
    /// Events of a shard that will not be delivered.
    Gap(ShardId, Gap),
}

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
    /// The page of history that is being read, and the index of its shard.
    page: Option<(usize, BoxFuture<'static, Result<HistoryPage, AppendError>>)>,
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
            page: None,
        }
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

    /// The position in each shard, for the resume token: everything up to there was delivered.
    pub fn positions(&self) -> Vec<Position> {
        self.shards.iter().map(|shard| shard.position).collect()
    }

    /// Replaces the content of `positions` with [`Cursor::positions`].
    pub fn positions_into(&self, positions: &mut Vec<Position>) {
        positions.clear();
        positions.extend(self.shards.iter().map(|shard| shard.position));
    }

    /// Limits the decisions in the next batch, if the stream explains itself.
    pub fn limit_decisions(&mut self, max: usize) {
        self.max_decisions = self.max_decisions.map(|_| max);
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
            if let Some((shard, page)) = &mut self.page {
                let shard = *shard;
                let Poll::Ready(page) = page.poll_unpin(cx) else { return Poll::Pending };
                self.page = None;
                self.turn_page(shard, page?);
            }
            if let Some(item) = self.take() {
                return Poll::Ready(Ok(item));
            }
            if self.is_finished() {
                return Poll::Pending;
            }
            match self.shards.iter().position(ShardCursor::wants_page) {
                Some(shard) => self.page = Some((shard, self.read_page(shard))),
                None => match self.registration.interest.poll_pending(cx) {
                    Poll::Ready(()) => {}
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }

    /// Takes what is there: events of all shards up to a batch, or one gap.
    pub fn take(&mut self) -> Option<Item> {
        if let Some(first) = self.first.take() {
            return Some(Item::Events(first));
        }
        let item = self.take_item();
        for (index, shard) in self.shards.iter().enumerate() {
            self.registration.interest.report(index, shard.unread());
        }
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
            let id = ShardId::at_index(shard);
            if let Some(explanation) = &mut events.explanation {
                explanation.begin_shard(id);
            }
            if let Some(gap) = self.take_from(shard, &mut events) {
                if events.is_empty() {
                    self.pass_gap(shard, &gap);
                    return Some(Item::Gap(id, gap));
                }
                // The events before it go first; the shard's cursor is still before the gap.
                self.turn = shard;
                break;
            }
        }
        if merging {
            let merged = merge::merge(&events);
            events = Events { traced: events.traced, explanation: events.explanation, ..merged };
        }
        (!events.is_empty()).then_some(Item::Events(events))
    }

    /// Adds what a shard has to the batch; returns a gap if that comes next.
    fn take_from(&mut self, index: usize, events: &mut Events) -> Option<Gap> {
        let interest = self.registration.interest.clone();
        let filter = &interest.filter;
        loop {
            let shard = &mut self.shards[index];
            match &mut shard.source {
                Source::Gap(gap, _) => return Some(gap.clone()),
                Source::History(entries) => {
                    let Some(entry) = entries.pop_front() else {
                        if self.return_to_log(index) {
                            continue;
                        }
                        return None;
                    };
                    match shard.offer(&entry, filter, events, &mut self.left) {
                        Offered::Whole => {}
                        Offered::Part => {
                            shard.put_back(entry);
                            return None;
                        }
                        Offered::Gap(gap) => {
                            shard.put_back(entry);
                            if let Some(gap) = self.clip(index, gap) {
                                return Some(gap);
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
                    let read = self.hub.logs[index].read(scan.next, |entry| {
                        bytes += entry.wire_bytes();
                        number += 1;
                        bytes >= events.max_bytes || number >= scan.end
                    });
                    let Some(entries) = read else {
                        self.leave_log(index);
                        continue;
                    };
                    match shard.offer_log(&entries, scan, filter, events, &mut self.left) {
                        Offered::Whole => {}
                        Offered::Part => return None,
                        Offered::Gap(gap) => return Some(gap),
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
        shard.position = shard.position.max(extent.end);
        false
    }

    /// Leaves the log, which no longer has what comes next.
    fn leave_log(&mut self, index: usize) {
        let shard = &mut self.shards[index];
        if self.hub.bus().history().is_some() {
            shard.source = Source::History(VecDeque::new());
            return;
        }
        let interest = &self.registration.interest;
        let (extent, _) = self.hub.logs[index].extent_with(|| interest.take_pending(index));
        let scan = Scan { next: extent.base, end: extent.next };
        let gap = extent.gap_after(shard.position);
        shard.source = Source::Gap(gap, scan);
    }

    /// Returns to the log, if it has everything after the position.
    fn return_to_log(&mut self, index: usize) -> bool {
        let interest = &self.registration.interest;
        let position = self.shards[index].position;
        let log = &self.hub.logs[index];
        let Some((next, _)) = log.locate(position) else { return false };
        let (extent, _) = log.extent_with(|| interest.take_pending(index));
        self.shards[index].source = Source::Log(Scan { next, end: extent.next });
        true
    }

    /// Ends a gap where the log begins, if it reaches into the log: history may hold less than the
    /// log.
    fn clip(&mut self, index: usize, gap: Gap) -> Option<Gap> {
        let extent = self.hub.logs[index].extent();
        if gap.to <= extent.start || gap.from >= extent.end {
            return Some(gap);
        }
        let interest = &self.registration.interest;
        let (extent, _) = self.hub.logs[index].extent_with(|| interest.take_pending(index));
        let shard = &mut self.shards[index];
        let scan = Scan { next: extent.base, end: extent.next };
        if shard.position >= extent.start {
            shard.source = Source::Log(scan);
            return None;
        }
        let gap = Gap { to: extent.start, missed: gap.from.events_until(extent.start), ..gap };
        shard.source = Source::Gap(gap.clone(), scan);
        Some(gap)
    }

    fn pass_gap(&mut self, index: usize, gap: &Gap) {
        let shard = &mut self.shards[index];
        shard.position = shard.position.max(gap.to);
        match &mut shard.source {
            Source::Log(scan) => scan.next += 1,
            Source::History(entries) => {
                entries.pop_front();
            }
            Source::Gap(_, scan) => {
                // A position of an unknown epoch may be beyond all that is here: it is replaced
                // even by a smaller one, or nothing would ever follow it.
                shard.position = gap.to;
                shard.source = Source::Log(*scan);
            }
        }
    }

    fn read_page(&self, index: usize) -> BoxFuture<'static, Result<HistoryPage, AppendError>> {
        let (hub, position) = (self.hub.clone(), self.shards[index].position);
        let id = ShardId::at_index(index);
        let read = async move {
            let page = hub.history_page(id, position, PAGE_BYTES).await?;
            if page.deliveries.is_empty() {
                // History and the log do not meet yet: the events between them are on their way.
                tokio::time::sleep(PAGE_PAUSE).await;
            }
            Ok(page)
        };
        read.boxed()
    }

    fn turn_page(&mut self, index: usize, page: HistoryPage) {
        let shard = &mut self.shards[index];
        if page.deliveries.is_empty() {
            shard.position = shard.position.max(page.next);
        }
        shard.source = Source::History(page.deliveries.into_iter().map(Entry::new).collect());
    }
}
