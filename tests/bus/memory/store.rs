//! What the servers of the bus would hold: the shards and the members of one deployment.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::encoding::{WireType, encode_key, encode_varint};
use tokio::sync::watch;
use trunkline::{
    bus::{
        Appended, Batch, Delivery, Epoch, Exchange, Frame, Gap, GapReason, HistoryPage, MemberId,
        MemberRecord, MemberUpdate, Offset, Position, RequestId, Retained, ShardId,
    },
    config::Config,
};

/// The number of entries for gateways that are behind.
const MAX_ENTRIES: usize = 100_000;

pub struct Store {
    shards: Vec<Mutex<Shard>>,
    members: Mutex<HashMap<MemberId, Stored>>,
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
    retained: BTreeMap<u8, (Position, Bytes)>,
}

#[derive(Clone)]
enum Entry {
    Frame(Frame),
    EpochStart { at: Position, previous: Position },
}

struct Stored {
    deadline: Instant,
    written: Instant,
    number: u64,
    record: Bytes,
    shards: HashMap<u32, Bytes>,
}

/// A reader of a shard: what it has had.
#[derive(Clone, Default)]
pub struct Reader {
    pub at: Position,
    /// The last position that it had of each epoch that has ended.
    ended: Vec<Position>,
}

impl Entry {
    fn position(&self) -> Position {
        match self {
            Entry::Frame(frame) => frame.last(),
            Entry::EpochStart { at, .. } => *at,
        }
    }
}

impl Store {
    pub fn new(config: &Config) -> Arc<Store> {
        let shard = || {
            let end = Position { epoch: Epoch(now_ms()), offset: Offset(0) };
            let start = Entry::EpochStart { at: end, previous: Position::UNKNOWN };
            Mutex::new(Shard {
                end,
                entries: VecDeque::from([start]),
                max_history: usize::try_from(config.history.max_frames).unwrap_or(usize::MAX),
                requests: HashMap::new(),
                request_id_window: config.request_id_window,
                retained: BTreeMap::new(),
            })
        };
        Arc::new(Store {
            shards: (0..config.shards.unwrap_or(1)).map(|_| shard()).collect(),
            members: Mutex::default(),
            version: watch::Sender::new(0),
        })
    }

    pub fn shards(&self) -> u16 {
        u16::try_from(self.shards.len()).expect("few shards")
    }

    pub fn end(&self, shard: ShardId) -> Position {
        self.shards[shard.index()].lock().end
    }

    pub fn append(&self, shard: ShardId, batch: &Batch) -> Appended {
        let mut state = self.shards[shard.index()].lock();
        let window = state.request_id_window;
        state.requests.retain(|_, (at, _)| at.elapsed() < window);
        if let Some((_, before)) = batch.request_id.and_then(|id| state.requests.get(&id)) {
            return *before;
        }
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
        appended
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
            let at = Position::new(now_ms().max(before.epoch.0 + 1), 0);
            state.entries.push_back(Entry::EpochStart { at, previous });
            state.end = at;
            if restored {
                for frame in lost.into_iter().rev() {
                    let origin = frame.origin.unwrap_or_else(|| frame.last());
                    state.push(frame.count, frame.events, Some(origin));
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
        Exchange { taken, members: members.collect() }
    }

    pub fn member_shards(&self, member: MemberId, numbers: &[u32]) -> Vec<Option<Bytes>> {
        let members = self.members.lock();
        let stored = members.get(&member);
        numbers.iter().map(|number| stored?.shards.get(number).cloned()).collect()
    }
}

impl Shard {
    fn push(&mut self, count: u64, events: Bytes, origin: Option<Position>) -> Appended {
        let appended = Appended { epoch: self.end.epoch, first: self.end.offset.plus(1) };
        self.end.offset = self.end.offset.plus(count);
        self.entries.push_back(Entry::Frame(Frame {
            epoch: appended.epoch,
            first: appended.first,
            count,
            time_ms: now_ms(),
            origin,
            events,
        }));
        if self.entries.len() > MAX_ENTRIES {
            self.entries.pop_front();
        }
        appended
    }
}

impl Reader {
    /// A reader that has had everything up to a position, or begins with the oldest entry.
    pub fn after(at: Position) -> Reader {
        Reader { at, ended: vec![at] }
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
                return HistoryPage { deliveries, next: self.at, at_end: false };
            }
            match entry {
                Entry::Frame(frame) => {
                    bytes += frame.events.len();
                    self.frame(frame, &mut deliveries);
                }
                Entry::EpochStart { at, previous } => {
                    self.epoch(*at, *previous, &mut deliveries);
                }
            }
        }
        HistoryPage { deliveries, next: self.at, at_end: true }
    }

    fn frame(&mut self, frame: &Frame, out: &mut Vec<Delivery>) {
        let before = Position::new(frame.epoch.0, frame.first.0 - 1);
        if before > self.at {
            self.skip(before, GapReason::HistoryExpired, out);
        }
        self.at = frame.last();
        let had = frame.origin.is_some_and(|origin| {
            let ended = self.ended.iter();
            ended.clone().any(|end| end.epoch == origin.epoch && origin.offset <= end.offset)
        });
        let frame = frame.clone();
        out.push(if had { Delivery::Restored(frame) } else { Delivery::Frame(frame) });
    }

    fn epoch(&mut self, at: Position, previous: Position, out: &mut Vec<Delivery>) {
        if !self.at.is_known() {
            self.at = at;
            return;
        }
        if previous.epoch == self.at.epoch {
            if previous > self.at {
                self.skip(previous, GapReason::HistoryExpired, out);
            }
            self.ended.push(self.at);
            self.at = at;
            out.push(Delivery::Epoch(at));
        } else {
            self.skip(at, GapReason::EpochChanged, out);
        }
    }

    fn skip(&mut self, to: Position, reason: GapReason, out: &mut Vec<Delivery>) {
        if self.at.is_known() {
            let same = to.epoch == self.at.epoch;
            out.push(Delivery::Gap(Gap {
                reason,
                from: self.at,
                to,
                missed: same.then(|| to.offset.0 - self.at.offset.0),
                from_ms: None,
                to_ms: now_ms(),
            }));
        }
        if to.epoch != self.at.epoch {
            self.ended.push(self.at);
        }
        self.at = to;
    }
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
