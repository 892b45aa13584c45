//! The streams of this gateway as other gateways read them: in member shards, so that a stream that
//! opens or closes costs one of them.
//!
//! A stream stays in its member shard. That is written again when its revision differs from the one
//! that the others can read.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use prost::Message;

use super::NodeEntry;
use crate::proto::bus_v1::{MemberShard, NodeRecord};

/// The number of the member shard with the stats of all streams; the others follow.
pub const STATS_SHARD: u32 = 0;

/// Streams of a member shard: the fewer, the less is read when one of them changes; and the more
/// member shards does the record name, which is read then too. So it grows with the streams that
/// there are, and stays between these.
const SHARD_NODES: std::ops::RangeInclusive<usize> = 4..=64;

/// For each so many streams of the gateway a member shard takes one more.
const STREAMS_A_SHARD_NODE: usize = 64;

/// Approximate bytes of a member shard.
const SHARD_BYTES: usize = 32 * 1024;

/// Approximate bytes that a gateway publishes about its streams: a hundred thousand usual ones.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// The member shards of this gateway.
#[derive(Default)]
pub struct OwnShards {
    /// The member shard and the size of each stream, by the number of the stream.
    streams: HashMap<u64, (u32, usize)>,
    /// The member shards, from number 1 on. An empty one stays: its number must not come back with
    /// an earlier revision.
    shards: Vec<OwnShard>,
    /// Indexes of member shards with space left, so that the first one is filled first.
    with_space: BTreeSet<usize>,
    bytes: usize,
    /// Streams that are in no member shard, for lack of space.
    unlisted: BTreeMap<u64, Arc<NodeEntry>>,
}

#[derive(Default)]
struct OwnShard {
    nodes: Vec<Arc<NodeEntry>>,
    bytes: usize,
    /// Rises with each change.
    revision: u64,
    /// The revision that the others can read; zero if they can read none.
    published: u64,
}

/// The next update of this gateway's member shards.
pub struct Draft {
    /// The member shards that changed, by number; None removes one.
    pub changes: Vec<(u32, Option<Bytes>)>,
    /// All member shards that can be read after the update, with their revisions.
    pub readable: Vec<(u32, u64)>,
    /// True if there are more changes than one update may hold.
    pub has_more: bool,
    /// The revision of each of `changes`.
    revisions: Vec<u64>,
}

impl OwnShards {
    /// Adds a stream.
    pub fn add(&mut self, entry: &Arc<NodeEntry>) {
        let size = entry.node.encoded_len() + 16;
        if self.bytes + size > MAX_BYTES {
            self.unlisted.insert(entry.number, entry.clone());
            return;
        }
        let most = self.most_nodes();
        let has_space = |index: &usize| self.shards[*index].has_space(most);
        // Those that are filled were filled when there were more streams.
        let index = self.with_space.iter().copied().find(has_space).unwrap_or_else(|| {
            self.shards.push(OwnShard::default());
            self.with_space.insert(self.shards.len() - 1);
            self.shards.len() - 1
        });
        let shard = &mut self.shards[index];
        shard.nodes.push(entry.clone());
        shard.bytes += size;
        shard.revision += 1;
        self.bytes += size;
        if !shard.has_space(most) {
            self.with_space.remove(&index);
        }
        self.streams.insert(entry.number, (number(index), size));
    }

    /// Removes the stream with this number.
    pub fn remove(&mut self, stream: u64) {
        let Some((shard_number, size)) = self.streams.remove(&stream) else {
            self.unlisted.remove(&stream);
            return;
        };
        let index = shard_number as usize - 1;
        let shard = &mut self.shards[index];
        shard.nodes.retain(|entry| entry.number != stream);
        shard.bytes -= size;
        shard.revision += 1;
        self.bytes -= size;
        if shard.has_space(*SHARD_NODES.end()) {
            self.with_space.insert(index);
        }
        // One at a time: each stream that closes lets one in.
        if let Some((_, entry)) = self.unlisted.pop_first() {
            self.add(&entry);
        }
    }

    /// True if the stream with this number is in a member shard.
    pub fn lists(&self, stream: u64) -> bool {
        self.streams.contains_key(&stream)
    }

    /// Records the returns of a stream: its member shard is written again.
    pub fn returns(&mut self, stream: u64, returns: u32) {
        let Some((shard_number, _)) = self.streams.get(&stream) else { return };
        let shard = &mut self.shards[*shard_number as usize - 1];
        if let Some(entry) = shard.nodes.iter().find(|entry| entry.number == stream) {
            entry.returns.store(returns, Ordering::Relaxed);
            shard.revision += 1;
        }
    }

    /// The number of streams that a member shard takes at most, now.
    fn most_nodes(&self) -> usize {
        let (least, most) = SHARD_NODES.into_inner();
        (self.streams.len() / STREAMS_A_SHARD_NODE).clamp(least, most)
    }

    /// The number of streams that are in no member shard.
    pub fn unlisted(&self) -> usize {
        self.unlisted.len()
    }

    /// The next update: of about `max_bytes`, or of one member shard if that is larger.
    pub fn draft(&self, max_bytes: usize) -> Draft {
        let mut draft =
            Draft { changes: vec![], readable: vec![], has_more: false, revisions: vec![] };
        let mut bytes = 0;
        for (index, shard) in self.shards.iter().enumerate() {
            let number = number(index);
            let mut published = shard.published;
            if shard.is_changed() {
                if draft.changes.is_empty() || bytes + shard.bytes <= max_bytes {
                    bytes += shard.bytes;
                    draft.changes.push((number, shard.encode()));
                    draft.revisions.push(shard.revision);
                    published = shard.revision;
                } else {
                    draft.has_more = true;
                }
            }
            if published != 0 && !(shard.nodes.is_empty() && published == shard.revision) {
                draft.readable.push((number, published));
            }
        }
        draft
    }

    /// Records that the others can read what was drafted.
    pub fn published(&mut self, draft: &Draft) {
        for ((number, bytes), revision) in draft.changes.iter().zip(&draft.revisions) {
            let published = if bytes.is_some() { *revision } else { 0 };
            self.shards[*number as usize - 1].published = published;
        }
    }

    /// Records that the others can read nothing any more.
    pub fn lost(&mut self) {
        self.shards.iter_mut().for_each(|shard| shard.published = 0);
    }
}

impl OwnShard {
    fn has_space(&self, most_nodes: usize) -> bool {
        self.nodes.len() < most_nodes && self.bytes < SHARD_BYTES
    }

    fn is_changed(&self) -> bool {
        if self.nodes.is_empty() { self.published != 0 } else { self.published != self.revision }
    }

    fn encode(&self) -> Option<Bytes> {
        if self.nodes.is_empty() {
            return None;
        }
        let record = |entry: &Arc<NodeEntry>| NodeRecord {
            returns: entry.returns.load(Ordering::Relaxed),
            number: entry.number,
            node: entry.node.encode_to_vec().into(),
        };
        let nodes = self.nodes.iter().map(record).collect();
        Some(MemberShard { revision: self.revision, nodes }.encode_to_vec().into())
    }
}

fn number(index: usize) -> u32 {
    u32::try_from(index + 1).unwrap_or(u32::MAX)
}
