//! A subscriber's place in the logs.
//!
//! A cursor owns no queue. It reads when it is asked for more, which is when the stream before it was taken, so a slow
//! subscriber costs what a fast one does. One that the log has overtaken, or that resumes from before it, goes on from the
//! bus's history until it is back in the log.

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};

use super::{
    Hub, Reading,
    event::EventMeta,
    filter::Filter,
    judged::{Followed, Judged},
    log::{Content, Entry, Indexed},
    merge,
    router::{Interest, Registration},
};
use crate::bus::{AppendError, Gap, GapReason, HistoryPage, Position, ShardId, put_event, unix_ms};

/// A batch is closed when it holds this much. Larger ones gain little, and a node's client may refuse them.
const BATCH_BYTES: usize = 64 * 1024;
const BATCH_EVENTS: u64 = 1000;

/// Events that are merged at once at the most: what a cursor looks at, not what it keeps.
const MERGED_EVENTS: u64 = 50_000;

/// Events of one batch that are followed at the most.
const FOLLOWED_EVENTS: usize = 64;

/// Events of a page of history, in bytes.
const PAGE_BYTES: usize = 1024 * 1024;

/// The wait before history is asked again where it had nothing.
const PAGE_PAUSE: Duration = Duration::from_millis(20);

/// What a cursor has for its subscriber.
#[derive(Debug)]
pub enum Item {
    /// Events, as they stand in a batch.
    Events(Events),
    /// Events of a shard that will not come.
    Gap(ShardId, Gap),
}

/// Encoded events for one batch; at least one, or one that was judged.
#[derive(Debug)]
pub struct Events {
    /// Their bytes, each event with the tag and length that it has in `EventBatch`.
    pub chunks: Vec<Bytes>,
    /// How many events.
    pub count: u64,
    /// How many bytes.
    pub bytes: usize,
    /// When the oldest of their frames was made, in milliseconds since 1970; none for what is kept beyond history.
    pub oldest_ms: Option<u64>,
    /// Those that belong to a trace which is recorded, where they are asked for.
    pub followed: Vec<Followed>,
    /// What became of all that were passed, where that is asked for.
    pub judged: Option<Box<Judged>>,
    /// How many are followed at the most.
    pub(crate) follow: usize,
    /// What it takes at the most.
    pub(crate) most: u64,
    pub(crate) most_bytes: usize,
}

/// A subscriber's place in all shards.
pub struct Cursor {
    hub: Arc<Hub>,
    registration: Registration,
    lanes: Vec<Lane>,
    /// The lane to look at first, so that a busy shard does not keep the others waiting.
    turn: usize,
    /// How many more events the subscriber wants.
    left: u64,
    /// Whether events may be merged while the cursor is behind.
    merge: bool,
    /// How many events of a batch are followed.
    follow: usize,
    /// How many verdicts may come with the next events; none: the stream does not explain itself.
    verdicts: Option<usize>,
    /// What is handed on before anything else.
    first: Option<Events>,
    /// A page of history that is being read, and for which lane.
    reading: Option<(usize, BoxFuture<'static, Result<HistoryPage, AppendError>>)>,
}

/// How far a cursor is, for those who look from outside.
#[derive(Clone)]
pub struct Progress {
    hub: Arc<Hub>,
    interest: Arc<Interest>,
}

impl Progress {
    /// How many events the logs hold that may concern the subscriber and that it was not offered yet, with all that lies
    /// between.
    pub fn behind(&self) -> u64 {
        let shards = self.hub.logs.iter().enumerate();
        shards.map(|(shard, log)| log.events_from(self.interest.first_unread(shard))).sum()
    }

    /// How old the oldest of these events is at `now_ms`, in milliseconds. Zero if there are none.
    pub fn lag_ms(&self, now_ms: u64) -> u64 {
        let shards = self.hub.logs.iter().enumerate();
        let oldest =
            shards.filter_map(|(shard, log)| log.made_from(self.interest.first_unread(shard)));
        oldest.min().map_or(0, |oldest| now_ms.saturating_sub(oldest))
    }
}

/// The place in one shard.
struct Lane {
    /// Everything up to here was handed on, or was not wanted.
    position: Position,
    /// Where the stream resumed; none if it did not.
    resumed: Option<Position>,
    source: Source,
}

enum Source {
    /// In the log.
    Log(Scan),
    /// Deliveries from history that were not handed on yet, oldest first, and whether history had no more when they were read.
    History(VecDeque<Entry>),
    /// A gap first, and then the log.
    Gap(Gap, Scan),
}

/// Entries of the log to be looked at. What comes after them is looked at only if it is marked.
#[derive(Clone, Copy, Debug)]
struct Scan {
    next: u64,
    end: u64,
}

/// How a shard is opened.
pub(super) enum Opening {
    /// In the log: `place` was handed on, and the entries from `next` to `end` may lie behind it.
    Log { position: Position, next: u64, end: u64, resumed: bool },
    /// In history, after `place`.
    History { position: Position },
    /// With a gap, then in the log.
    Gap { gap: Gap, next: u64, end: u64 },
}

/// What became of an entry.
enum Offered {
    /// It was dealt with.
    Whole,
    /// The batch is full, or the subscriber has had enough: there is more in it.
    Part,
    /// It is a gap.
    Gap(Gap),
}

impl Cursor {
    pub(super) fn new(
        hub: Arc<Hub>,
        registration: Registration,
        openings: Vec<Opening>,
        reading: Reading,
    ) -> Cursor {
        Cursor {
            hub,
            registration,
            lanes: openings.into_iter().map(Lane::open).collect(),
            turn: 0,
            left: reading.max_events.unwrap_or(u64::MAX),
            merge: reading.merge,
            follow: if reading.follow { FOLLOWED_EVENTS } else { 0 },
            verdicts: reading.explain.then_some(0),
            first: None,
            reading: None,
        }
    }

    /// Hands on these encoded events before anything else; they lie before the cursor's places.
    pub(super) fn begin_with(&mut self, first: &[Bytes]) {
        let mut body = Vec::new();
        let mut events = Events::up_to(1);
        for event in first.iter().take(usize::try_from(self.left).unwrap_or(usize::MAX)) {
            put_event(&mut body, event);
            events.count += 1;
        }
        if events.count > 0 {
            self.left -= events.count;
            events.bytes = body.len();
            events.chunks.push(body.into());
            self.first = Some(events);
        }
    }

    /// The place in each shard, for the resume token: everything up to there was handed on.
    pub fn positions(&self) -> Vec<Position> {
        self.lanes.iter().map(|lane| lane.position).collect()
    }

    /// How many verdicts may come with the next events, if the stream explains itself.
    pub fn allow_verdicts(&mut self, most: usize) {
        self.verdicts = self.verdicts.map(|_| most);
    }

    /// What others may ask about the cursor.
    pub fn progress(&self) -> Progress {
        Progress { hub: self.hub.clone(), interest: self.registration.interest.clone() }
    }

    /// Writes the same places over what `places` held.
    pub fn positions_into(&self, positions: &mut Vec<Position>) {
        positions.clear();
        positions.extend(self.lanes.iter().map(|lane| lane.position));
    }

    /// Whether the subscriber has had all the events that it wanted.
    pub fn is_finished(&self) -> bool {
        self.left == 0 && self.first.is_none()
    }

    /// Waits for the next item. Nothing is lost when it is dropped while it waits.
    ///
    /// # Errors
    ///
    /// History was needed and could not be read.
    pub async fn next(&mut self) -> Result<Item, AppendError> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The next item, if it is there. Else the task is woken when there may be one. A cursor that is finished has none.
    ///
    /// # Errors
    ///
    /// History was needed and could not be read.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Item, AppendError>> {
        loop {
            if let Some((shard, reading)) = &mut self.reading {
                let shard = *shard;
                let Poll::Ready(page) = reading.poll_unpin(cx) else { return Poll::Pending };
                self.reading = None;
                self.turn_page(shard, page?);
            }
            if let Some(item) = self.take() {
                return Poll::Ready(Ok(item));
            }
            if self.is_finished() {
                return Poll::Pending;
            }
            match self.lanes.iter().position(Lane::wants_page) {
                Some(shard) => self.reading = Some((shard, self.read_page(shard))),
                None => match self.registration.interest.poll_marked(cx) {
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
        for (shard, lane) in self.lanes.iter().enumerate() {
            self.registration.interest.report(shard, lane.unread());
        }
        item
    }

    fn take_item(&mut self) -> Option<Item> {
        // Who counts events counts those that were published.
        let merging =
            self.merge && self.left == u64::MAX && self.progress().behind() > BATCH_EVENTS;
        let mut events = Events::up_to(if merging { MERGED_EVENTS } else { BATCH_EVENTS });
        events.follow = self.follow;
        events.judged = self.verdicts.map(|most| Box::new(Judged::new(most)));
        let count = self.lanes.len();
        let first = self.turn;
        self.turn = (first + 1) % count;
        for shard in (first..count).chain(0..first) {
            if events.is_full() || self.left == 0 {
                break;
            }
            let id = ShardId(u16::try_from(shard).unwrap_or(u16::MAX));
            if let Some(judged) = &mut events.judged {
                judged.pass(id);
            }
            if let Some(gap) = self.take_from(shard, &mut events) {
                if events.is_empty() {
                    self.pass_gap(shard, &gap);
                    return Some(Item::Gap(id, gap));
                }
                // The events before it go first; the lane still stands before the gap.
                self.turn = shard;
                break;
            }
        }
        if merging {
            let merged = merge::merge(&events);
            events = Events { followed: events.followed, judged: events.judged, ..merged };
        }
        (!events.is_empty()).then_some(Item::Events(events))
    }

    /// Adds what a shard has to the batch; returns a gap if that is what comes next.
    fn take_from(&mut self, shard: usize, events: &mut Events) -> Option<Gap> {
        let interest = self.registration.interest.clone();
        let filter = &interest.filter;
        loop {
            let lane = &mut self.lanes[shard];
            match &mut lane.source {
                Source::Gap(gap, _) => return Some(gap.clone()),
                Source::History(entries) => {
                    let Some(entry) = entries.pop_front() else {
                        if self.back_in_log(shard) {
                            continue;
                        }
                        return None;
                    };
                    match lane.offer(&entry, filter, events, &mut self.left) {
                        Offered::Whole => {}
                        Offered::Part => {
                            lane.put_back(entry);
                            return None;
                        }
                        Offered::Gap(gap) => {
                            lane.put_back(entry);
                            if let Some(gap) = self.clip(shard, gap) {
                                return Some(gap);
                            }
                        }
                    }
                }
                Source::Log(scan) if scan.next >= scan.end => {
                    if !self.look_for_marks(shard) {
                        return None;
                    }
                }
                Source::Log(scan) => {
                    let scan = *scan;
                    let mut bytes = events.bytes;
                    let mut number = scan.next;
                    let read = self.hub.logs[shard].read(scan.next, |entry| {
                        bytes += entry.wire_bytes();
                        number += 1;
                        bytes >= events.most_bytes || number >= scan.end
                    });
                    let Some(entries) = read else {
                        self.overtaken(shard);
                        continue;
                    };
                    for (entry, number) in entries.iter().zip(scan.next..) {
                        let offered = lane.offer(entry, filter, events, &mut self.left);
                        let done = u64::from(matches!(offered, Offered::Whole));
                        lane.source = Source::Log(Scan { next: number + done, end: scan.end });
                        match offered {
                            Offered::Whole => {}
                            Offered::Part => return None,
                            Offered::Gap(gap) => return Some(gap),
                        }
                    }
                    if events.is_full() {
                        return None;
                    }
                }
            }
        }
    }

    /// Goes on to what was marked since the last look, and passes over all that was not; false if there is nothing.
    fn look_for_marks(&mut self, shard: usize) -> bool {
        let interest = &self.registration.interest;
        let (extent, marked) = self.hub.logs[shard].extent_with(|| interest.take_mark(shard));
        let lane = &mut self.lanes[shard];
        let Source::Log(scan) = &mut lane.source else { return false };
        if let Some(first) = marked {
            *scan = Scan { next: first.max(scan.next), end: extent.next };
            return scan.next < scan.end;
        }
        *scan = Scan { next: extent.next, end: extent.next };
        lane.position = lane.position.max(extent.end);
        false
    }

    /// Leaves the log, which no longer has what comes next.
    fn overtaken(&mut self, shard: usize) {
        let lane = &mut self.lanes[shard];
        if self.hub.bus().history().is_some() {
            lane.source = Source::History(VecDeque::new());
            return;
        }
        let interest = &self.registration.interest;
        let (extent, _) = self.hub.logs[shard].extent_with(|| interest.take_mark(shard));
        let scan = Scan { next: extent.base, end: extent.next };
        let gap = gap_to(lane.position, extent.start);
        lane.source = Source::Gap(gap, scan);
    }

    /// Returns to the log, if it has everything after the lane's place.
    fn back_in_log(&mut self, shard: usize) -> bool {
        let interest = &self.registration.interest;
        let position = self.lanes[shard].position;
        let log = &self.hub.logs[shard];
        let Some((next, _)) = log.locate(position) else { return false };
        let (extent, _) = log.extent_with(|| interest.take_mark(shard));
        self.lanes[shard].source = Source::Log(Scan { next, end: extent.next });
        true
    }

    /// History may know less than the log: a gap that reaches into the log ends where the log begins.
    fn clip(&mut self, shard: usize, gap: Gap) -> Option<Gap> {
        let extent = self.hub.logs[shard].extent();
        if gap.to <= extent.start || gap.from >= extent.end {
            return Some(gap);
        }
        let interest = &self.registration.interest;
        let (extent, _) = self.hub.logs[shard].extent_with(|| interest.take_mark(shard));
        let lane = &mut self.lanes[shard];
        let scan = Scan { next: extent.base, end: extent.next };
        if lane.position >= extent.start {
            lane.source = Source::Log(scan);
            return None;
        }
        let gap = Gap { to: extent.start, missed: missed(gap.from, extent.start), ..gap };
        lane.source = Source::Gap(gap.clone(), scan);
        Some(gap)
    }

    fn pass_gap(&mut self, shard: usize, gap: &Gap) {
        let lane = &mut self.lanes[shard];
        lane.position = lane.position.max(gap.to);
        match &mut lane.source {
            Source::Log(scan) => scan.next += 1,
            Source::History(entries) => {
                entries.pop_front();
            }
            Source::Gap(_, scan) => {
                // A place of an unknown epoch may be beyond all that is here: nothing would ever follow it.
                lane.position = gap.to;
                lane.source = Source::Log(*scan);
            }
        }
    }

    fn read_page(&self, shard: usize) -> BoxFuture<'static, Result<HistoryPage, AppendError>> {
        let (hub, position) = (self.hub.clone(), self.lanes[shard].position);
        let id = ShardId(u16::try_from(shard).unwrap_or(u16::MAX));
        let read = async move {
            let page = hub.history_page(id, position, PAGE_BYTES).await?;
            if page.deliveries.is_empty() {
                // History has no more, and the log is not there yet, or the other way round: what comes next is on its way.
                tokio::time::sleep(PAGE_PAUSE).await;
            }
            Ok(page)
        };
        read.boxed()
    }

    fn turn_page(&mut self, shard: usize, page: HistoryPage) {
        let lane = &mut self.lanes[shard];
        if page.deliveries.is_empty() {
            lane.position = lane.position.max(page.next);
        }
        lane.source = Source::History(page.deliveries.into_iter().map(Entry::new).collect());
    }
}

impl Lane {
    fn open(opening: Opening) -> Lane {
        match opening {
            Opening::Log { position, next, end, resumed } => Lane {
                position,
                resumed: resumed.then_some(position),
                source: Source::Log(Scan { next, end }),
            },
            Opening::History { position } => Lane {
                position,
                resumed: position.is_known().then_some(position),
                source: Source::History(VecDeque::new()),
            },
            Opening::Gap { gap, next, end } => Lane {
                position: gap.from,
                resumed: None,
                source: Source::Gap(gap, Scan { next, end }),
            },
        }
    }

    /// The number of the next entry of the log that is to be looked at, if one is known to be.
    fn unread(&self) -> Option<u64> {
        match &self.source {
            Source::Log(scan) => (scan.next < scan.end).then_some(scan.next),
            Source::History(_) => Some(0),
            Source::Gap(_, scan) => Some(scan.next),
        }
    }

    fn wants_page(&self) -> bool {
        matches!(&self.source, Source::History(entries) if entries.is_empty())
    }

    fn put_back(&mut self, entry: Entry) {
        if let Source::History(entries) = &mut self.source {
            entries.push_front(entry);
        }
    }

    /// Adds an entry's events to the batch, those that lie after the lane's place and that the filter includes.
    fn offer(
        &mut self,
        entry: &Entry,
        filter: &Filter,
        events: &mut Events,
        left: &mut u64,
    ) -> Offered {
        if entry.position <= self.position {
            return Offered::Whole;
        }
        let indexed = match &entry.content {
            Content::Gap(gap) => {
                let from = gap.from.max(self.position);
                let missed = if from == gap.from { gap.missed } else { missed(from, gap.to) };
                return Offered::Gap(Gap { from, missed, ..gap.clone() });
            }
            Content::Frame(indexed) if !self.had_elsewhere(indexed) => indexed,
            Content::Again(indexed) if self.came_from_elsewhere(indexed) => indexed,
            Content::Frame(_) | Content::Again(_) | Content::Epoch => {
                self.position = entry.position;
                return Offered::Whole;
            }
        };
        self.offer_frame(indexed, filter, events, left)
    }

    fn offer_frame(
        &mut self,
        indexed: &Indexed,
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
        if events.judged.is_none() && filter.includes_whole(indexed) {
            return self.offer_whole(indexed, done, events, left);
        }
        // Neighbours leave as one slice.
        let mut run: Option<(usize, usize)> = None;
        let mut offered = Offered::Whole;
        for (index, event) in indexed.events.iter().enumerate().skip(done) {
            if *left == 0 || events.is_full() {
                offered = Offered::Part;
                break;
            }
            let view = event.meta.view(&frame.events);
            let matches = filter.matches(&view);
            if let Some(judged) = &mut events.judged {
                let position = Position { epoch: frame.epoch, offset: indexed.offset(index) };
                judged.note(position, &view, filter, matches);
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

    /// Adds the events from the nth on, of which the filter includes every one: as many as there is room for, in one slice.
    fn offer_whole(
        &mut self,
        indexed: &Indexed,
        done: usize,
        events: &mut Events,
        left: &mut u64,
    ) -> Offered {
        let rest = &indexed.events[done..];
        let Some(start) = rest.first().map(|first| first.start as usize) else {
            self.position = indexed.frame.last();
            return Offered::Whole;
        };
        // The event with which the batch is full is the last one in it.
        let room = events.most_bytes.saturating_sub(events.bytes);
        let by_bytes = match room {
            0 => 0,
            room => 1 + rest.partition_point(|event| event.end as usize - start < room),
        };
        let by_count = usize::try_from(events.most.saturating_sub(events.count).min(*left));
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

    /// Whether the stream that is resumed had these events where they first stood.
    fn had_elsewhere(&self, indexed: &Indexed) -> bool {
        let (Some(origin), Some(resumed)) = (indexed.frame.origin, self.resumed) else {
            return false;
        };
        origin.epoch == resumed.epoch && origin.offset <= resumed.offset
    }

    /// Whether the stream resumed in this very epoch: then it was another gateway's, which may not have had the events where
    /// they first stood.
    fn came_from_elsewhere(&self, indexed: &Indexed) -> bool {
        self.resumed.is_some_and(|resumed| resumed.epoch == indexed.frame.epoch)
    }
}

impl Events {
    /// A batch without events, which takes about so many.
    pub fn up_to(most: u64) -> Events {
        let times = usize::try_from(most.div_ceil(BATCH_EVENTS)).unwrap_or(1);
        Events {
            chunks: vec![],
            count: 0,
            bytes: 0,
            oldest_ms: None,
            followed: vec![],
            judged: None,
            follow: 0,
            most,
            most_bytes: BATCH_BYTES * times,
        }
    }

    fn is_empty(&self) -> bool {
        self.count == 0 && self.judged.as_ref().is_none_or(|judged| judged.is_empty())
    }

    fn follow(&mut self, meta: &EventMeta, frame: &[u8], received: SystemTime) {
        if meta.is_sampled() && self.followed.len() < self.follow {
            self.followed.extend(Followed::of(meta, frame, received));
        }
    }

    fn is_full(&self) -> bool {
        self.bytes >= self.most_bytes || self.count >= self.most
    }

    fn push(&mut self, indexed: &Indexed, (first, last): (usize, usize)) {
        let time = indexed.frame.time_ms;
        self.oldest_ms = Some(self.oldest_ms.map_or(time, |oldest| oldest.min(time)));
        self.chunks.push(indexed.slice(&indexed.events[first], &indexed.events[last]));
        if let Some(received) = indexed.followed {
            for event in &indexed.events[first..=last] {
                self.follow(&event.meta, &indexed.frame.events, received);
            }
        }
    }
}

/// The gap between what was handed on and where the log begins.
pub(super) fn gap_to(from: Position, to: Position) -> Gap {
    let missed = missed(from, to);
    let reason = if missed.is_some() { GapReason::HistoryExpired } else { GapReason::UnknownEpoch };
    Gap { reason, from, to, missed, from_ms: None, to_ms: unix_ms() }
}

fn missed(from: Position, to: Position) -> Option<u64> {
    (from.epoch == to.epoch).then(|| to.offset.0.saturating_sub(from.offset.0))
}
