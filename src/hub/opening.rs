//! Opening a stream: the position at which it begins in each shard.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::{
    Hub,
    cursor::{Cursor, Opening, ReadOptions, Scan, Source, is_elsewhere, shard_id},
    filter::Filter,
    had::Had,
    log::{Content, IndexedFrame, Resume},
    pages::{Page, Wanted},
    readers::HistoryQuota,
};
use crate::bus::{AppendError, Gap, GapReason, Lost, Position, ShardId, unix_ms};

/// The time for which opening a stream waits for a log that is behind. After that the stream is
/// opened, and waits itself.
const MAX_CATCH_UP: Duration = Duration::from_secs(1);

/// The wait before a log that is behind is looked at again.
const CATCH_UP_PAUSE: Duration = Duration::from_millis(20);

/// The time for which opening a stream waits for history, to say whether events are lost and how
/// many follow.
const MAX_PREVIEW: Duration = Duration::from_secs(1);

/// Bytes of events in the page that is read to see how a stream begins.
const PREVIEW_BYTES: usize = 64 * 1024;

/// Where a stream begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// With the next event.
    Latest,
    /// With the oldest event that is kept.
    Oldest,
    /// With the oldest event that is kept of this shard, and the next one of the others.
    OldestOf(ShardId),
    /// After what was had, one for each shard.
    After(Vec<Had>),
}

/// An opened stream.
pub struct Opened {
    /// The stream's cursor.
    pub cursor: Cursor,
    /// True if the stream continues without loss, as far as is known.
    pub resumed: bool,
    /// The number of events between the token and the newest event, before filtering.
    pub replayed: u64,
}

impl Hub {
    /// Opens a stream. Every event that the bus accepts after this is delivered, or reported as a
    /// gap.
    ///
    /// # Errors
    ///
    /// The bus was needed to look up a position, and did not answer.
    pub async fn open(
        self: &Arc<Self>,
        filter: Filter,
        begin: &Begin,
        options: ReadOptions,
    ) -> Result<Opened, AppendError> {
        // Registered first: events that arrive while positions are looked up become pending.
        let registration = self.router.register(filter, self.logs.len());
        let mut openings = Vec::with_capacity(self.logs.len());
        let (mut resumed, mut replayed) = (matches!(begin, Begin::After(_)), 0);
        let deadline = Instant::now() + MAX_PREVIEW;
        for (shard, log) in self.logs.iter().enumerate() {
            let id = shard_id(shard);
            let opening = match begin {
                Begin::Oldest => self.oldest(id),
                Begin::OldestOf(of) if *of == id => self.oldest(id),
                Begin::Latest | Begin::OldestOf(_) => self.latest(id),
                Begin::After(shards) => {
                    let had = shards.get(shard).filter(|_| shards.len() == self.logs.len());
                    let had = had.cloned().unwrap_or_default();
                    if had.is_oldest() { self.oldest(id) } else { self.resume(id, had).await? }
                }
            };
            match &opening.source {
                Source::Gap(..) => resumed = false,
                Source::Log(Scan { next, end }) if next < end => {
                    replayed += log.events_after(*next, opening.position);
                }
                Source::Log(_) | Source::Behind => {}
                Source::History(_) => {
                    let preview = self.preview(id, &opening, options.history.as_ref());
                    // A shard whose history is slow holds up no other.
                    if let Ok(preview) = tokio::time::timeout_at(deadline, preview).await {
                        let (lost, events) = preview?;
                        resumed &= !lost;
                        replayed += events;
                    }
                }
            }
            openings.push(opening);
        }
        let mut cursor = Cursor::new(self.clone(), registration, openings, options);
        if matches!(begin, Begin::After(_)) {
            cursor.goes_on();
        }
        let first = self.last_values(cursor.filter(), &cursor);
        cursor.begin_with(&first);
        Ok(Opened { cursor, resumed, replayed })
    }

    /// A stream that begins with the next event.
    fn latest(&self, shard: ShardId) -> Opening {
        let (position, had, next) = self.logs[shard.index()].latest();
        Opening { position, had, source: Source::Log(Scan { next, end: next }) }
    }

    /// A stream that begins with the oldest event that is kept.
    pub(super) fn oldest(&self, shard: ShardId) -> Opening {
        if self.bus().history().is_some() {
            let source = Source::History(VecDeque::new());
            return Opening { position: Position::UNKNOWN, had: Had::oldest(), source };
        }
        let extent = self.logs[shard.index()].extent();
        let source = Source::Log(Scan { next: extent.base, end: extent.next });
        Opening { position: extent.start, had: Had::default(), source }
    }

    /// A stream that continues with what it has had. Waits for a log that is behind, for a while.
    async fn resume(&self, shard: ShardId, had: Had) -> Result<Opening, AppendError> {
        let opening = self.continue_with(shard, had, || {});
        if !matches!(opening.source, Source::Behind) {
            return Ok(opening);
        }
        let caught_up = self.catch_up(shard, opening.had.clone());
        match tokio::time::timeout(MAX_CATCH_UP, caught_up).await {
            Ok(opening) => opening,
            Err(_) => Ok(opening),
        }
    }

    /// How a stream goes on that has had this. `take_pending` is called before the end of the log
    /// is looked up. [`Source::Behind`] if nothing that it has had is known here.
    pub(super) fn continue_with(
        &self,
        shard: ShardId,
        had: Had,
        take_pending: impl FnOnce(),
    ) -> Opening {
        let log = &self.logs[shard.index()];
        take_pending();
        let resume = log.resume(&had);
        let extent = log.extent();
        let history = self.bus().history().is_some();
        let in_log = |next| Source::Log(Scan { next, end: extent.next });
        match resume {
            Resume::Log { position, .. }
                if !history && position.epoch == extent.end.epoch && position > extent.end =>
            {
                // No other gateway can have it: it never existed.
                self.unknown(shard, Had::default())
            }
            Resume::Log { number, position } => Opening { position, had, source: in_log(number) },
            Resume::History { after } if history => {
                Opening { position: after, had, source: Source::History(VecDeque::new()) }
            }
            Resume::History { after } if after.epoch == extent.start.epoch => {
                let gap = expired(after, extent.start).into();
                let scan = Scan { next: extent.base, end: extent.next };
                Opening { position: after, had, source: Source::Gap(gap, scan) }
            }
            Resume::Unknown if history && !had.is_unknown() => {
                Opening { position: Position::UNKNOWN, had, source: Source::Behind }
            }
            Resume::History { .. } | Resume::Unknown => self.unknown(shard, had),
        }
    }

    /// A stream of which nothing is known here: it is told so, and goes on with the next event.
    fn unknown(&self, shard: ShardId, had: Had) -> Opening {
        let extent = self.logs[shard.index()].extent();
        let position = had.place();
        let gap = Gap {
            reason: GapReason::UnknownEpoch,
            lost: vec![],
            more: true,
            position: extent.end,
            from_ms: None,
            to_ms: unix_ms(),
        };
        let scan = Scan { next: extent.next, end: extent.next };
        Opening { position, had, source: Source::Gap(gap.into(), scan) }
    }

    /// Waits until the log has what the stream has had, or has caught up with the bus without it.
    pub(super) async fn catch_up(&self, shard: ShardId, had: Had) -> Result<Opening, AppendError> {
        let Some(history) = self.bus().history() else { return Ok(self.unknown(shard, had)) };
        loop {
            let (tip, ends) = history.tip(shard).await?;
            let log = &self.logs[shard.index()];
            log.learn_ends(&ends);
            let reached = log.reaches(tip);
            let opening = self.continue_with(shard, had.clone(), || {});
            if !matches!(opening.source, Source::Behind) {
                return Ok(opening);
            }
            if reached {
                return Ok(self.unknown(shard, had));
            }
            tokio::time::sleep(CATCH_UP_PAUSE).await;
        }
    }

    /// Waits until the log has what the bus has accepted by now.
    ///
    /// # Errors
    ///
    /// The bus does not answer.
    pub async fn reach_tip(&self, shard: ShardId) -> Result<(), AppendError> {
        let Some(history) = self.bus().history() else { return Ok(()) };
        loop {
            let (tip, ends) = history.tip(shard).await?;
            let log = &self.logs[shard.index()];
            log.learn_ends(&ends);
            if log.reaches(tip) {
                return Ok(());
            }
            tokio::time::sleep(CATCH_UP_PAUSE).await;
        }
    }

    /// Reads a page of history where a stream begins. Returns whether anything that it has not had
    /// is lost, and about how many events follow.
    async fn preview(
        self: &Arc<Self>,
        shard: ShardId,
        opening: &Opening,
        quota: Option<&HistoryQuota>,
    ) -> Result<(bool, u64), AppendError> {
        let wanted = Wanted { after: opening.position, max_bytes: PREVIEW_BYTES, fresh: false };
        let page = self.history_page(shard, wanted, quota).await?;
        let mut events = 0;
        for entry in &page.entries {
            if let Content::Frame(IndexedFrame { frame, .. }) = &entry.content {
                let had = (0..frame.count).filter(|nth| opening.had.has(frame.name_of(*nth)));
                events += frame.count - had.count() as u64;
            }
        }
        let extent = self.logs[shard.index()].extent();
        if page.next.epoch == extent.end.epoch {
            events += extent.end.offset.0.saturating_sub(page.next.offset.0);
        }
        let lost = match page.entries.first().map(|entry| &entry.content) {
            Some(Content::Gap(gap)) if !is_elsewhere(opening.position, &page) => {
                gap.more || gap.lost.iter().any(|lost| opening.had.first_missing(*lost).is_some())
            }
            _ => false,
        };
        Ok((lost, events))
    }

    /// A page of history, which streams share. It is read in a task of its own, so that others do
    /// not wait for a stream that is not polled.
    pub(super) async fn history_page(
        self: &Arc<Self>,
        shard: ShardId,
        wanted: Wanted,
        quota: Option<&HistoryQuota>,
    ) -> Result<Page, AppendError> {
        let (hub, quota) = (self.clone(), quota.cloned());
        let read = tokio::spawn(async move {
            let Some(history) = hub.bus().history() else {
                let next = hub.logs[shard.index()].extent().start;
                return Ok(Page::empty(next));
            };
            let read = async { history.page(shard, wanted.after, wanted.max_bytes).await };
            let page = hub.pages[shard.index()].get(wanted, read);
            hub.readers.take_turn(quota.as_ref(), page).await
        });
        AbortOnDropHandle::new(read).await.unwrap_or(Err(AppendError::Closed))
    }
}

/// The gap between a place and a later one of its epoch, where the log begins.
fn expired(after: Position, start: Position) -> Gap {
    let lost = Lost { epoch: start.epoch, first: after.offset.plus(1), last: start.offset };
    Gap {
        reason: GapReason::HistoryExpired,
        lost: vec![lost],
        more: false,
        position: start,
        from_ms: None,
        to_ms: unix_ms(),
    }
}
