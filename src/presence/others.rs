//! The other gateways and their nodes, as they were last read.
//!
//! While the bus is down nothing is removed: its age shows. Memory is bounded, whatever is in the
//! store.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::RwLock;
use prost::Message;

use super::{Key, StreamStats, WatchStats, shards::STATS_SHARD};
use crate::{
    bus::{self, Exchange, MemberId},
    proto::{
        bus_v1::{MemberRecord, MemberShard, MemberStats},
        v1,
    },
};

/// Bytes of the texts in the record of a gateway.
const MAX_TEXT_BYTES: usize = 256;

/// A gateway that has not renewed its record for this time, in which it would have done so twice,
/// is silent to the store: it says so once, and from then on its age is known exactly.
pub const STALE_AFTER: Duration = Duration::from_secs(4);

/// Gateways that are kept.
const MAX_GATEWAYS: usize = 1024;

/// Approximate bytes of all member shards that are kept: 400,000 usual nodes.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// Bytes of one member shard, and of the stats of one gateway, that are read.
const MAX_SHARD_BYTES: usize = 256 * 1024;
const MAX_STATS_BYTES: usize = 4 * 1024 * 1024;

/// No lag is longer than a year.
const MAX_LAG_MS: u64 = 366 * 24 * 3_600_000;

/// The other gateways and their nodes.
#[derive(Default)]
pub struct Others(RwLock<View>);

#[derive(Default)]
pub struct View {
    pub members: BTreeMap<MemberId, Member>,
    pub nodes: BTreeMap<Arc<Key>, Other>,
    bytes: usize,
    /// Until then missing members are kept: the store lost this gateway's record, and has probably
    /// lost theirs too.
    keep_missing_until: Option<Instant>,
}

/// Another gateway.
pub struct Member {
    pub record: MemberRecord,
    /// When it last renewed its record, as far as is known: one that was not silent at the last
    /// exchange counts as renewed then.
    pub renewed: Instant,
    silent: bool,
    raw_record: Bytes,
    shards: HashMap<u32, Shard>,
    /// When its stats were last read.
    stats_read: Option<Instant>,
    pub stats: HashMap<u64, StreamStats>,
    /// What agents report of themselves, by the numbers of their streams.
    pub agents: HashMap<u64, Bytes>,
}

/// A node of another gateway.
#[derive(Clone)]
pub struct Other {
    pub member: MemberId,
    /// The stream's number at its gateway.
    pub number: u64,
    /// When this gateway first saw it.
    pub since: Instant,
    /// See `NodeRecord.returns`.
    returns: u32,
    node: Bytes,
}

/// A member shard that was read.
struct Shard {
    revision: u64,
    bytes: usize,
    keys: Vec<Arc<Key>>,
}

/// What an exchange leads to.
#[derive(Default)]
pub struct Applied {
    /// The member shards that are outdated.
    pub outdated: Vec<ShardName>,
    /// Gateways that are gone and publish events about nodes.
    pub lost: Vec<LostMember>,
    /// Where there are such: those that are there and publish them too.
    pub alive: Vec<MemberId>,
}

/// A gateway that is gone.
pub struct LostMember {
    pub member: MemberId,
    pub gateway_id: String,
    /// True if it said so itself.
    pub left: bool,
    /// Its streams, as far as they were known: keys, encoded nodes, and returns.
    pub nodes: Vec<(Arc<Key>, Bytes, u32)>,
}

/// The name of a member shard: its member, and its number there.
pub type ShardName = (MemberId, u32);

impl Others {
    /// True if another gateway has a stream of this node.
    pub fn have(&self, node_id: &str) -> bool {
        self.0.read().with_id(node_id).next().is_some()
    }

    /// The gateways that serve, in the order of their ids, with the streams that they have.
    pub fn serving(&self) -> Vec<(MemberId, u64)> {
        let view = self.0.read();
        let serving = view.members.iter().filter(|(_, member)| {
            member.record.state() == v1::GatewayState::Serving && !member.silent
        });
        serving.map(|(id, member)| (*id, u64::from(member.record.streams))).collect()
    }

    /// Reads the current view.
    pub fn view<T>(&self, look: impl FnOnce(&View) -> T) -> T {
        look(&self.0.read())
    }

    /// Applies the records of an exchange.
    pub fn apply(&self, own: MemberId, ttl: Duration, exchange: Exchange, now: Instant) -> Applied {
        let view = &mut *self.0.write();
        let mut gone: Vec<(MemberId, bool)> = Vec::new();
        if !exchange.taken {
            view.keep_missing_until = Some(now + ttl);
        }
        let keep_missing = view.keep_missing_until.is_some_and(|until| now < until);
        let mut missing: HashSet<MemberId> = HashSet::new();
        if exchange.all {
            missing.extend(view.members.keys());
        } else {
            for member in view.members.values_mut().filter(|member| !member.silent) {
                member.renewed = now;
            }
        }
        for found in exchange.members {
            let id = found.member;
            if id == own {
                continue;
            }
            if !view.apply_found(id, found, now) {
                gone.push((id, true));
            }
            missing.remove(&id);
        }
        // A store that lost this gateway's record has lost those of others too: they have one time
        // to live to renew theirs.
        if !keep_missing {
            missing.extend(exchange.gone);
            gone.extend(missing.into_iter().map(|id| (id, false)));
        }
        let lost = gone.into_iter().filter_map(|(id, left)| view.remove(id, left)).collect();
        view.applied(lost)
    }

    /// The gateways whose stats were not read for `age`, those that wait longest first, but at most
    /// `max`.
    pub fn stats_due(&self, age: Duration, max: usize, now: Instant) -> Vec<MemberId> {
        let view = self.0.read();
        let age_of = |member: &Member| member.stats_read.map(|read| now.duration_since(read));
        let mut due: Vec<_> = view
            .members
            .iter()
            .filter(|(_, member)| age_of(member).is_none_or(|known| known >= age))
            .map(|(id, member)| (member.stats_read, *id))
            .collect();
        due.sort();
        due.into_iter().take(max).map(|(_, id)| id).collect()
    }

    /// Applies a member shard that was read; None: it does not exist, which the next record
    /// explains. Calls `new` with the id of each node that was not known before.
    pub fn apply_shard(
        &self,
        (id, number): ShardName,
        bytes: Option<Bytes>,
        now: Instant,
        new: impl FnMut(&str),
    ) {
        let view = &mut *self.0.write();
        if number == STATS_SHARD {
            return view.apply_stats(id, bytes, now);
        }
        // One that cannot be decoded is from a later version, or not from a gateway.
        if let Some(bytes) = bytes
            && bytes.len() <= MAX_SHARD_BYTES
            && let Ok(shard) = MemberShard::decode(bytes)
        {
            view.apply_shard(id, number, shard, now, new);
        }
    }
}

/// False for a record that no gateway writes: a list of gateways has all of their texts.
fn is_readable(record: &MemberRecord) -> bool {
    let texts = [&record.gateway_id, &record.version, &record.address];
    texts.iter().all(|text| text.len() <= MAX_TEXT_BYTES)
}

impl View {
    /// The streams of a node.
    pub fn with_id(&self, node_id: &str) -> impl Iterator<Item = (&Arc<Key>, &Other)> {
        let from = (node_id.to_owned(), String::new());
        self.nodes.range(from..).take_while(move |(key, _)| key.0 == node_id)
    }

    /// Applies the record of a gateway. Returns false if it has left.
    fn apply_found(&mut self, id: MemberId, found: bus::MemberRecord, now: Instant) -> bool {
        let renewed = now.checked_sub(found.age).unwrap_or(now);
        let known = self.members.get(&id);
        if known.is_none_or(|member| member.raw_record != found.record) {
            // One that cannot be decoded is from a later version, or not from a gateway.
            match MemberRecord::decode(found.record.clone()) {
                Ok(record) if record.left => return false,
                Ok(record) if is_readable(&record) => {
                    self.apply_record(id, record, found.record, renewed);
                }
                Ok(_) | Err(_) => return true,
            }
        }
        if let Some(member) = self.members.get_mut(&id) {
            (member.renewed, member.silent) = (renewed, found.age >= STALE_AFTER);
        }
        true
    }

    fn apply_record(
        &mut self,
        id: MemberId,
        record: MemberRecord,
        raw_record: Bytes,
        renewed: Instant,
    ) {
        if !self.members.contains_key(&id) && self.members.len() >= MAX_GATEWAYS {
            return;
        }
        let member = self.members.entry(id).or_insert_with(|| Member {
            record: MemberRecord::default(),
            renewed,
            silent: false,
            raw_record: Bytes::new(),
            shards: HashMap::new(),
            stats_read: None,
            stats: HashMap::new(),
            agents: HashMap::new(),
        });
        let removed: Vec<u32> = member
            .shards
            .keys()
            .filter(|number| !record.shards.contains(number))
            .copied()
            .collect();
        (member.record, member.raw_record, member.renewed) = (record, raw_record, renewed);
        for number in removed {
            self.remove_shard(id, number);
        }
    }

    /// The member shards that are known in an earlier revision than their record names.
    fn outdated(&self) -> Vec<ShardName> {
        let mut outdated = Vec::new();
        for (id, member) in &self.members {
            let named = member.record.shards.iter().zip(&member.record.revisions);
            let is_outdated = |(number, revision): &(&u32, &u64)| {
                // Gateways of earlier versions name their stats too.
                let known = member.shards.get(number);
                **number != STATS_SHARD && known.is_none_or(|known| known.revision < **revision)
            };
            outdated.extend(named.filter(is_outdated).map(|(number, _)| (*id, *number)));
        }
        outdated
    }

    fn apply_stats(&mut self, id: MemberId, bytes: Option<Bytes>, now: Instant) {
        let Some(member) = self.members.get_mut(&id) else { return };
        member.stats_read = Some(now);
        let Some(bytes) = bytes else { return };
        if bytes.len() > MAX_STATS_BYTES {
            return;
        }
        let Ok(stats) = MemberStats::decode(bytes) else { return };
        let mut number = 0_u64;
        let numbers = stats.numbers.iter().map(|difference| {
            number = number.wrapping_add(*difference);
            number
        });
        let columns = stats.delivered_events.iter().zip(&stats.behind_events);
        let rows = numbers.zip(columns.zip(&stats.lag_ms));
        member.stats = rows
            .map(|(number, ((delivered, behind), lag_ms))| {
                let lag_ms = (*lag_ms).min(MAX_LAG_MS);
                (
                    number,
                    StreamStats { delivered: *delivered, behind: *behind, lag_ms, watch: None },
                )
            })
            .collect();
        member.agents.clear();
        for record in stats.watches {
            if let Some(known) = member.stats.get_mut(&record.number) {
                known.watch = Some(WatchStats::of_record(&record));
                if !record.agent.is_empty() {
                    member.agents.insert(record.number, record.agent);
                }
            }
        }
    }

    fn apply_shard(
        &mut self,
        id: MemberId,
        number: u32,
        shard: MemberShard,
        now: Instant,
        mut new: impl FnMut(&str),
    ) {
        if !self.members.contains_key(&id) {
            return;
        }
        let before = self.remove_shard(id, number);
        let (mut keys, mut bytes) = (Vec::with_capacity(shard.nodes.len()), 0);
        for record in shard.nodes {
            let Ok(node) = v1::Node::decode(&record.node[..]) else { continue };
            let size = record.node.len() + node.node_id.len() + 200;
            if self.bytes + bytes + size > MAX_BYTES {
                break;
            }
            bytes += size;
            let key = Arc::new((node.node_id, node.subscription_id));
            let since = before.get(&*key).copied();
            if since.is_none() {
                new(&key.0);
            }
            let other = Other {
                member: id,
                number: record.number,
                since: since.unwrap_or(now),
                returns: record.returns,
                node: record.node,
            };
            self.nodes.insert(key.clone(), other);
            keys.push(key);
        }
        self.bytes += bytes;
        if let Some(member) = self.members.get_mut(&id) {
            member.shards.insert(number, Shard { revision: shard.revision, bytes, keys });
        }
    }

    /// Removes the nodes of a member shard. Returns since when each was known.
    fn remove_shard(&mut self, id: MemberId, number: u32) -> HashMap<Arc<Key>, Instant> {
        let shard = self.members.get_mut(&id).and_then(|member| member.shards.remove(&number));
        let Some(shard) = shard else { return HashMap::new() };
        self.bytes -= shard.bytes;
        let mut known = HashMap::new();
        for key in shard.keys {
            // Unless another gateway names the same stream, which would be a lie.
            if self.nodes.get(&*key).is_some_and(|node| node.member == id)
                && let Some(node) = self.nodes.remove(&*key)
            {
                known.insert(key, node.since);
            }
        }
        known
    }

    fn applied(&self, lost: Vec<LostMember>) -> Applied {
        let publish = |(id, member): (&MemberId, &Member)| member.record.node_events.then_some(*id);
        let alive = if lost.is_empty() {
            vec![]
        } else {
            self.members.iter().filter_map(publish).collect()
        };
        Applied { outdated: self.outdated(), lost, alive }
    }

    /// Removes a gateway. Returns it if it published events about its nodes.
    fn remove(&mut self, id: MemberId, left: bool) -> Option<LostMember> {
        let member = self.members.get(&id)?;
        let mut nodes = Vec::new();
        if member.record.node_events {
            for key in member.shards.values().flat_map(|shard| &shard.keys) {
                let node = self.nodes.get(&**key).filter(|node| node.member == id);
                nodes.extend(node.map(|node| (key.clone(), node.node.clone(), node.returns)));
            }
        }
        let gateway_id = member.record.gateway_id.clone();
        let shards: Vec<u32> = self
            .members
            .get(&id)
            .map_or_else(Vec::new, |member| member.shards.keys().copied().collect());
        for number in shards {
            self.remove_shard(id, number);
        }
        self.members.remove(&id);
        (!nodes.is_empty()).then_some(LostMember { member: id, gateway_id, left, nodes })
    }
}

impl Other {
    /// The node, without what its gateway's record and stats add.
    pub fn node(&self) -> v1::Node {
        // It was decoded when it was applied.
        v1::Node::decode(&self.node[..]).unwrap_or_default()
    }
}
