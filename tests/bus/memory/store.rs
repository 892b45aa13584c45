//! What the servers of the bus would hold: the shards and the members of one deployment.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::encoding::{WireType, encode_key, encode_varint};
use tokio::sync::watch;
use trunkline::{
    bus::{
        AppendError, Appended, Batch, Delivery, Epoch, EpochStart, Exchange, Frame, Gap, GapReason,
        HistoryPage, Lost, MemberId, MemberRecord, MemberUpdate, Name, Offset, Position,
        Provenance, PublisherId, Publishers, RequestId, Retained, ShardId, StreamNumber,
    },
    config::Config,
};

/// The number of entries for gateways that are behind.
const MAX_ENTRIES: usize = 100_000;

pub struct Store {
    shards: Vec<Mutex<Shard>>,
    members: Mutex<HashMap<MemberId, Stored>>,
    messages: Mutex<HashMap<MemberId, Vec<Bytes>>>,
    /// The streams that have published, in this order, and the number of the last that began.
    streams: Mutex<Vec<(PublisherId, StreamNumber)>>,
    last_stream: AtomicU64,
    /// Changes with every append.
    pub version: watch::Sender<u64>,
}

struct Shard {
    end: Position,
    entries: VecDeque<Entry>,
    /// The number of entries that a page of history can have.
    max_history: usize,
    requests: HashMap<RequestId, (Instant, Appended)>,
    request_id_window: Duration,
    publishers: Publishers,
    retained: BTreeMap<u8, (Position, Bytes)>,
}

#[derive(Clone)]
enum Entry {
    Frame(Frame),
    EpochStart(EpochStart),
    /// These events are lost.
    Note(Position, Lost),
}

struct Stored {
    deadline: Instant,
    written: Instant,
    number: u64,
    record: Bytes,
    shards: HashMap<u32, Bytes>,
}

/// A reader of a shard, at a place of its line.
#[derive(Clone, Default)]
pub struct Reader {
    pub at: Position,
}

impl Entry {
    fn position(&self) -> Position {
        match self {
            Entry::Frame(frame) => frame.last(),
            Entry::EpochStart(start) => start.position,
            Entry::Note(at, _) => *at,
        }
    }

    /// The last name that it has, or tells as lost.
    fn last_name(&self) -> Position {
        match self {
            Entry::Frame(frame) => frame.name_of(frame.count - 1),
            Entry::EpochStart(start) => start.previous,
            Entry::Note(_, lost) => Position { epoch: lost.epoch, offset: lost.last },
        }
    }
}

impl Store {
    pub fn new(config: &Config) -> Arc<Store> {
        let shard = || {
            let end = Position { epoch: Epoch(now_ms()), offset: Offset(0) };
            let start = EpochStart { position: end, previous: Position::UNKNOWN, ends: vec![] };
            Mutex::new(Shard {
                end,
                entries: VecDeque::from([Entry::EpochStart(start)]),
                max_history: usize::try_from(config.history.max_frames).unwrap_or(usize::MAX),
                requests: HashMap::new(),
                publishers: Publishers::default(),
                request_id_window: config.request_id_window,
                retained: BTreeMap::new(),
            })
        };
        Arc::new(Store {
            shards: (0..config.shards.unwrap_or(1)).map(|_| shard()).collect(),
            members: Mutex::default(),
            messages: Mutex::default(),
            streams: Mutex::default(),
            last_stream: AtomicU64::new(0),
            version: watch::Sender::new(0),
        })
    }

    pub fn shards(&self) -> u16 {
        u16::try_from(self.shards.len()).expect("few shards")
    }

    pub fn end(&self, shard: ShardId) -> Position {
        self.shards[shard.index()].lock().end
    }

    /// What a gateway begins with.
    pub fn start(&self, shard: ShardId) -> EpochStart {
        let state = self.shards[shard.index()].lock();
        EpochStart { position: state.end, previous: Position::UNKNOWN, ends: state.ends() }
    }

    pub fn number_stream(&self) -> StreamNumber {
        self.last_stream.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The streams that have published, but the first `known` of them.
    pub fn streams(&self, known: usize) -> Vec<(PublisherId, StreamNumber)> {
        self.streams.lock()[known..].to_vec()
    }

    pub fn append(&self, shard: ShardId, mut batch: Batch) -> Result<Appended, AppendError> {
        let mut state = self.shards[shard.index()].lock();
        let window = state.request_id_window;
        state.requests.retain(|_, (at, _)| at.elapsed() < window);
        if let Some((_, before)) = batch.request_id.and_then(|id| state.requests.get(&id)) {
            return Ok(*before);
        }
        let is_partial = state.publishers.cover(&mut batch)?;
        if batch.events.is_empty() {
            return Ok(Appended::UNKNOWN);
        }
        self.streams.lock().extend(batch.runs.iter().map(|run| (run.publisher, run.stream)));
        let appended = state.push(batch.events.len() as u64, body(&batch.events), None);
        if let Some(id) = batch.request_id {
            state.requests.insert(id, (Instant::now(), appended));
        }
        for (index, key) in &batch.retain {
            let offset = appended.first.plus(*index as u64);
            let position = Position { epoch: appended.epoch, offset };
            state.retained.insert(*key, (position, batch.events[*index].clone()));
        }
        drop(state);
        self.version.send_modify(|version| *version += 1);
        Ok(if is_partial { Appended::UNKNOWN } else { appended })
    }

    pub fn lose_tail(&self, frames: usize, restored: bool) {
        for shard in &self.shards {
            let mut state = shard.lock();
            let before = state.end;
            let mut lost = Vec::new();
            while lost.len() < frames
                && matches!(state.entries.back(), Some(Entry::Frame(_)))
                && let Some(Entry::Frame(frame)) = state.entries.pop_back()
            {
                lost.push(frame);
            }
            let previous = state.entries.back().map_or(Position::UNKNOWN, Entry::position);
            let position = Position::new(now_ms().max(before.epoch.0 + 1), 0);
            let start = EpochStart { position, previous, ends: state.ends() };
            state.entries.push_back(Entry::EpochStart(start));
            state.end = position;
            for frame in lost.into_iter().rev() {
                let (first, last) = (frame.name_of(0), frame.name_of(frame.count - 1));
                if restored {
                    let name = Name {
                        epoch: first.epoch,
                        first: first.offset,
                        count: frame.count,
                        left: vec![],
                    };
                    let provenance = Provenance { name: Some(name), ..Provenance::default() };
                    state.push(frame.count, frame.events, Some(provenance.into()));
                } else {
                    let at = state.end.offset.plus(1);
                    state.end.offset = at;
                    let lost = Lost { epoch: first.epoch, first: first.offset, last: last.offset };
                    let note = Entry::Note(state.end, lost);
                    state.entries.push_back(note);
                }
            }
        }
        self.version.send_modify(|version| *version += 1);
    }

    /// Everything that follows what a gateway has had.
    pub fn live(&self, shard: ShardId, reader: &mut Reader) -> Vec<Delivery> {
        let state = self.shards[shard.index()].lock();
        reader.page(state.entries.iter(), usize::MAX).deliveries
    }

    /// A page of what history keeps.
    pub fn page(&self, shard: ShardId, after: Position, max_bytes: usize) -> HistoryPage {
        let state = self.shards[shard.index()].lock();
        let expired = state.entries.len().saturating_sub(state.max_history);
        Reader::after(after).page(state.entries.iter().skip(expired), max_bytes)
    }

    pub fn retained(&self, shard: ShardId) -> Vec<Retained> {
        let state = self.shards[shard.index()].lock();
        let retained = state.retained.iter();
        retained
            .map(|(key, (position, event))| Retained {
                key: *key,
                position: *position,
                event: event.clone(),
            })
            .collect()
    }

    pub fn exchange(&self, update: MemberUpdate) -> Exchange {
        let mut members = self.members.lock();
        let now = Instant::now();
        members.retain(|_, stored| stored.deadline >= now);
        let before = members.remove(&update.member);
        let (taken, mut shards) = match (update.follows, &before) {
            (None, _) => (true, HashMap::new()),
            (Some(number), Some(stored)) if stored.number == number => {
                (true, stored.shards.clone())
            }
            _ => (false, HashMap::new()),
        };
        if taken {
            for (number, bytes) in update.shards {
                match bytes {
                    Some(bytes) => shards.insert(number, bytes),
                    None => shards.remove(&number),
                };
            }
            let stored = Stored {
                deadline: now + update.ttl,
                written: now,
                number: update.number,
                record: update.record,
                shards,
            };
            members.insert(update.member, stored);
        } else if let Some(before) = before {
            members.insert(update.member, before);
        }
        let members = members.iter().map(|(id, stored)| MemberRecord {
            member: *id,
            age: stored.written.elapsed(),
            record: stored.record.clone(),
        });
        let members = members.collect();
        Exchange { taken, all: true, members, gone: vec![], known: None }
    }

    pub fn leave_messages(&self, to: MemberId, messages: Vec<Bytes>) {
        self.messages.lock().entry(to).or_default().extend(messages);
    }

    pub fn take_messages(&self, own: MemberId) -> Vec<Bytes> {
        self.messages.lock().remove(&own).unwrap_or_default()
    }

    pub fn member_shards(&self, member: MemberId, numbers: &[u32]) -> Vec<Option<Bytes>> {
        let members = self.members.lock();
        let stored = members.get(&member);
        numbers.iter().map(|number| stored?.shards.get(number).cloned()).collect()
    }
}

impl Shard {
    /// For each epoch the last name.
    fn ends(&self) -> Vec<Position> {
        let mut ends: BTreeMap<Epoch, Offset> = BTreeMap::new();
        for entry in &self.entries {
            for name in [entry.position(), entry.last_name()] {
                let end = ends.entry(name.epoch).or_default();
                *end = (*end).max(name.offset);
            }
        }
        ends.remove(&Epoch::NONE);
        ends.into_iter().map(|(epoch, offset)| Position { epoch, offset }).collect()
    }

    fn push(&mut self, count: u64, events: Bytes, provenance: Option<Box<Provenance>>) -> Appended {
        let appended = Appended { epoch: self.end.epoch, first: self.end.offset.plus(1) };
        self.end.offset = self.end.offset.plus(count);
        self.entries.push_back(Entry::Frame(Frame {
            epoch: appended.epoch,
            first: appended.first,
            count,
            time_ms: now_ms(),
            provenance,
            events,
        }));
        if self.entries.len() > MAX_ENTRIES {
            self.entries.pop_front();
        }
        appended
    }
}

impl Reader {
    /// A reader that is at a position, or begins with the oldest entry.
    pub fn after(at: Position) -> Reader {
        Reader { at }
    }

    /// The deliveries that follow, from entries in their order.
    fn page<'a>(
        &mut self,
        entries: impl Iterator<Item = &'a Entry>,
        max_bytes: usize,
    ) -> HistoryPage {
        let mut deliveries = Vec::new();
        let mut bytes = 0;
        for entry in entries {
            if entry.position() <= self.at {
                continue;
            }
            if bytes >= max_bytes {
                return HistoryPage { deliveries, next: self.at, at_end: false, ends: vec![] };
            }
            match entry {
                Entry::Frame(frame) => {
                    bytes += frame.events.len();
                    self.expired_before(frame.epoch, frame.first, &mut deliveries);
                    deliveries.push(Delivery::Frame(frame.clone()));
                }
                Entry::EpochStart(start) => {
                    // An epoch that is not on this line is not continued by it.
                    if self.at.is_known() && start.previous.epoch >= self.at.epoch {
                        let next = start.previous.offset.plus(1);
                        self.expired_before(start.previous.epoch, next, &mut deliveries);
                    }
                    deliveries.push(Delivery::Epoch(start.clone()));
                }
                Entry::Note(at, lost) => {
                    self.expired_before(at.epoch, at.offset, &mut deliveries);
                    let gap = gap(GapReason::EpochChanged, vec![*lost], false, *at);
                    deliveries.push(Delivery::Gap(gap));
                }
            }
            self.at = entry.position();
        }
        HistoryPage { deliveries, next: self.at, at_end: true, ends: vec![] }
    }

    /// Tells what is not kept any more between this place and a later one.
    fn expired_before(&self, epoch: Epoch, next: Offset, out: &mut Vec<Delivery>) {
        let before = Position { epoch, offset: Offset(next.0 - 1) };
        if !self.at.is_known() || before <= self.at {
            return;
        }
        let same = epoch == self.at.epoch;
        let first = if same { self.at.offset.plus(1) } else { Offset(1) };
        let lost = Lost { epoch, first, last: before.offset };
        let lost = if lost.count() > 0 { vec![lost] } else { vec![] };
        out.push(Delivery::Gap(gap(GapReason::HistoryExpired, lost, !same, before)));
    }
}

fn gap(reason: GapReason, lost: Vec<Lost>, more: bool, position: Position) -> Gap {
    Gap { reason, lost, more, position, from_ms: None, to_ms: now_ms() }
}

/// Events as they are encoded in `trunkline.v1.EventBatch`.
fn body(events: &[Bytes]) -> Bytes {
    let mut body = Vec::new();
    for event in events {
        encode_key(1, WireType::LengthDelimited, &mut body);
        encode_varint(event.len() as u64, &mut body);
        body.extend_from_slice(event);
    }
    body.into()
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    u64::try_from(since.as_millis()).expect("a clock before the year 500 million")
}
