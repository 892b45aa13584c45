//! The streams of this gateway as the others are told of them: on pages, so that who comes or goes costs one page.
//!
//! A stream stays on its page. A page has a revision, and is told again when it is not the one that the others have.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message;

use super::NodeEntry;
use crate::proto::bus_v1::{MemberShard, NodeRecord};

/// The number of the page of figures; the others follow.
pub const FIGURES: u32 = 0;

/// Streams, and about how many bytes, of a page.
const PAGE_NODES: usize = 64;
const PAGE_BYTES: usize = 32 * 1024;

/// Bytes, about, that a gateway tells of its streams: a hundred thousand usual ones.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// The pages.
#[derive(Default)]
pub struct Pages {
    /// Page number and size of each stream, by its number.
    positions: HashMap<u64, (u32, usize)>,
    /// The pages, from number 1 on. Numbers are not used again while the gateway runs with other revisions, so empty ones stay.
    filled: Vec<Page>,
    /// Indexes of pages with room, so that the first one is filled first.
    room: BTreeSet<usize>,
    bytes: usize,
    /// Streams for which there was no room.
    waiting: BTreeMap<u64, Arc<NodeEntry>>,
}

#[derive(Default)]
struct Page {
    nodes: Vec<Arc<NodeEntry>>,
    bytes: usize,
    /// Rises with each change.
    revision: u64,
    /// The revision that the others can read; zero: none.
    told: u64,
}

/// What is to be told.
pub struct Draft {
    /// Page numbers and bytes; none: the page is no more.
    pub pages: Vec<(u32, Option<Bytes>)>,
    /// All pages that can be read when that is told, with their revisions.
    pub readable: Vec<(u32, u64)>,
    /// Whether there is more than one telling may hold.
    pub more: bool,
    /// The revision of each page in `pages`.
    revisions: Vec<u64>,
}

impl Pages {
    /// Adds a stream.
    pub fn add(&mut self, entry: &Arc<NodeEntry>) {
        let size = entry.node.encoded_len() + 16;
        if self.bytes + size > MAX_BYTES {
            self.waiting.insert(entry.number, entry.clone());
            return;
        }
        let index = self.room.first().copied().unwrap_or_else(|| {
            self.filled.push(Page::default());
            self.room.insert(self.filled.len() - 1);
            self.filled.len() - 1
        });
        let page = &mut self.filled[index];
        page.nodes.push(entry.clone());
        page.bytes += size;
        page.revision += 1;
        self.bytes += size;
        if !page.has_room() {
            self.room.remove(&index);
        }
        self.positions.insert(entry.number, (number(index), size));
    }

    /// Removes the stream with this number.
    pub fn remove(&mut self, stream: u64) {
        let Some((page_number, size)) = self.positions.remove(&stream) else {
            self.waiting.remove(&stream);
            return;
        };
        let index = page_number as usize - 1;
        let page = &mut self.filled[index];
        page.nodes.retain(|entry| entry.number != stream);
        page.bytes -= size;
        page.revision += 1;
        self.bytes -= size;
        if page.has_room() {
            self.room.insert(index);
        }
        // A few at a time: each that goes lets one in, and no more than that.
        if let Some((_, entry)) = self.waiting.pop_first() {
            self.add(&entry);
        }
    }

    /// How many streams the others are not told of.
    pub fn unlisted(&self) -> usize {
        self.waiting.len()
    }

    /// What is to be told: of about `budget` bytes, or of one page if that is larger.
    pub fn draft(&self, budget: usize) -> Draft {
        let mut draft = Draft { pages: vec![], readable: vec![], more: false, revisions: vec![] };
        let mut bytes = 0;
        for (index, page) in self.filled.iter().enumerate() {
            let number = number(index);
            let mut told = page.told;
            if page.is_news() {
                if draft.pages.is_empty() || bytes + page.bytes <= budget {
                    bytes += page.bytes;
                    draft.pages.push((number, page.encode()));
                    draft.revisions.push(page.revision);
                    told = page.revision;
                } else {
                    draft.more = true;
                }
            }
            if told != 0 && !(page.nodes.is_empty() && told == page.revision) {
                draft.readable.push((number, told));
            }
        }
        draft
    }

    /// The others can read what was drafted.
    pub fn told(&mut self, draft: &Draft) {
        for ((number, bytes), revision) in draft.pages.iter().zip(&draft.revisions) {
            self.filled[*number as usize - 1].told = if bytes.is_some() { *revision } else { 0 };
        }
    }

    /// The others can read nothing any more.
    pub fn forgotten(&mut self) {
        self.filled.iter_mut().for_each(|page| page.told = 0);
    }
}

impl Page {
    fn has_room(&self) -> bool {
        self.nodes.len() < PAGE_NODES && self.bytes < PAGE_BYTES
    }

    fn is_news(&self) -> bool {
        if self.nodes.is_empty() { self.told != 0 } else { self.told != self.revision }
    }

    fn encode(&self) -> Option<Bytes> {
        if self.nodes.is_empty() {
            return None;
        }
        let record = |entry: &Arc<NodeEntry>| NodeRecord {
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
