//! What the other gateways have said of themselves, as it was last read.
//!
//! While the bus is down nothing is forgotten: the age of what is known tells. Memory is bounded, whatever stands in the store.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::RwLock;
use prost::Message;

use super::{Figure, Key};
use crate::presence::pages::FIGURES;
use crate::{
    bus::{Exchange, MemberId},
    proto::{
        bus_v1::{self, MemberRecord, MemberShard},
        v1,
    },
};

/// Gateways that are known at most.
const MAX_GATEWAYS: usize = 1024;

/// Bytes of all pages, about, that are kept at most: 400,000 usual nodes.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// Bytes of one page, and of one page of figures, that are read at most.
const MAX_PAGE_BYTES: usize = 256 * 1024;
const MAX_FIGURES_BYTES: usize = 4 * 1024 * 1024;

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
    /// Since the store has forgotten this gateway, who is missing there may only have to come back: until when.
    lenient_until: Option<Instant>,
}

/// Another gateway.
pub struct Member {
    pub head: MemberRecord,
    /// When it last renewed its part.
    pub heard: Instant,
    raw_head: Bytes,
    pages: HashMap<u32, Page>,
    figures_revision: u64,
    pub figures: HashMap<u64, Figure>,
}

/// A node of another gateway.
#[derive(Clone)]
pub struct Other {
    pub member: MemberId,
    /// The stream's number at its gateway.
    pub number: u64,
    /// When it was first seen here.
    pub since: Instant,
    node: Bytes,
}

struct Page {
    revision: u64,
    bytes: usize,
    keys: Vec<Arc<Key>>,
}

/// A page that is to be read.
pub type Wanted = (MemberId, u32);

impl Others {
    /// Whether any of them has this node.
    pub fn have(&self, node_id: &str) -> bool {
        self.0.read().with_id(node_id).next().is_some()
    }

    /// Looks at what is known.
    pub fn view<T>(&self, look: impl FnOnce(&View) -> T) -> T {
        look(&self.0.read())
    }

    /// Takes the heads that an exchange found, and says which pages are to be read.
    pub fn heads(
        &self,
        own: MemberId,
        ttl: Duration,
        exchange: Exchange,
        now: Instant,
    ) -> Vec<Wanted> {
        let view = &mut *self.0.write();
        if !exchange.taken {
            view.lenient_until = Some(now + ttl);
        }
        let lenient = view.lenient_until.is_some_and(|until| now < until);
        let mut missing: HashSet<MemberId> = view.members.keys().copied().collect();
        for found in exchange.members {
            let id = found.member;
            if id == own {
                continue;
            }
            let heard = now.checked_sub(found.age).unwrap_or(now);
            match view.members.get_mut(&id) {
                Some(member) if member.raw_head == found.head => member.heard = heard,
                // One that cannot be read is a later version's, or nobody's.
                _ => match MemberRecord::decode(found.head.clone()) {
                    Ok(head) if head.left => {
                        view.forget(id);
                        continue;
                    }
                    Ok(head) => view.adopt(id, head, found.head, heard),
                    Err(_) => {}
                },
            }
            missing.remove(&id);
        }
        // A store that forgot this gateway forgot the others too: they have as long to come back as they have to renew.
        if !lenient {
            for id in missing {
                view.forget(id);
            }
        }
        view.wanted()
    }

    /// Takes a page that was read; none: it is not there, which the next head explains. Calls `new` with the id of each
    /// node that was not known before.
    pub fn page(
        &self,
        (id, number): Wanted,
        bytes: Option<Bytes>,
        now: Instant,
        new: impl FnMut(&str),
    ) {
        let Some(bytes) = bytes else { return };
        let view = &mut *self.0.write();
        // What cannot be read is a later version's, or nobody's.
        if number == FIGURES {
            view.take_figures(id, &bytes);
        } else if bytes.len() <= MAX_PAGE_BYTES
            && let Ok(page) = MemberShard::decode(bytes)
        {
            view.take_page(id, number, page, now, new);
        }
    }
}

impl View {
    /// The streams of a node.
    pub fn with_id(&self, node_id: &str) -> impl Iterator<Item = (&Arc<Key>, &Other)> {
        let from = (node_id.to_owned(), String::new());
        self.nodes.range(from..).take_while(move |(key, _)| key.0 == node_id)
    }

    fn adopt(&mut self, id: MemberId, head: MemberRecord, raw_head: Bytes, heard: Instant) {
        if !self.members.contains_key(&id) && self.members.len() >= MAX_GATEWAYS {
            return;
        }
        let member = self.members.entry(id).or_insert_with(|| Member {
            head: MemberRecord::default(),
            heard,
            raw_head: Bytes::new(),
            pages: HashMap::new(),
            figures_revision: 0,
            figures: HashMap::new(),
        });
        let no_more: Vec<u32> =
            member.pages.keys().filter(|page| !head.shards.contains(page)).copied().collect();
        (member.head, member.raw_head, member.heard) = (head, raw_head, heard);
        for page in no_more {
            self.drop_page(id, page);
        }
    }

    /// The pages of which another revision is to be read than is known.
    fn wanted(&self) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        for (id, member) in &self.members {
            let told = member.head.shards.iter().zip(&member.head.revisions);
            let old = |(page, revision): &(&u32, &u64)| match **page {
                FIGURES => member.figures_revision < **revision,
                page => member.pages.get(&page).is_none_or(|known| known.revision < **revision),
            };
            wanted.extend(told.filter(old).map(|(page, _)| (*id, *page)));
        }
        wanted
    }

    fn take_figures(&mut self, id: MemberId, bytes: &[u8]) {
        let Some(member) = self.members.get_mut(&id) else { return };
        if bytes.len() > MAX_FIGURES_BYTES {
            return;
        }
        let Ok(figures) = bus_v1::MemberStats::decode(bytes) else { return };
        member.figures_revision = figures.revision;
        let mut number = 0_u64;
        let numbers = figures.numbers.iter().map(|difference| {
            number = number.wrapping_add(*difference);
            number
        });
        let columns = figures.delivered_events.iter().zip(&figures.behind_events);
        let rows = numbers.zip(columns.zip(&figures.lag_ms));
        member.figures = rows
            .map(|(number, ((delivered, behind), lag_ms))| {
                let lag_ms = (*lag_ms).min(MAX_LAG_MS);
                (number, Figure { delivered: *delivered, behind: *behind, lag_ms })
            })
            .collect();
    }

    fn take_page(
        &mut self,
        id: MemberId,
        number: u32,
        page: MemberShard,
        now: Instant,
        mut new: impl FnMut(&str),
    ) {
        if !self.members.contains_key(&id) {
            return;
        }
        let before = self.drop_page(id, number);
        let (mut keys, mut bytes) = (Vec::with_capacity(page.nodes.len()), 0);
        for record in page.nodes {
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
                node: record.node,
            };
            self.nodes.insert(key.clone(), other);
            keys.push(key);
        }
        self.bytes += bytes;
        if let Some(member) = self.members.get_mut(&id) {
            member.pages.insert(number, Page { revision: page.revision, bytes, keys });
        }
    }

    /// Forgets the nodes of a page, and says since when each was known.
    fn drop_page(&mut self, id: MemberId, number: u32) -> HashMap<Arc<Key>, Instant> {
        let page = self.members.get_mut(&id).and_then(|member| member.pages.remove(&number));
        let Some(page) = page else { return HashMap::new() };
        self.bytes -= page.bytes;
        let mut known = HashMap::new();
        for key in page.keys {
            // Unless another gateway says that it has the same stream, which would be a lie.
            if self.nodes.get(&*key).is_some_and(|node| node.member == id)
                && let Some(node) = self.nodes.remove(&*key)
            {
                known.insert(key, node.since);
            }
        }
        known
    }

    fn forget(&mut self, id: MemberId) {
        let pages: Vec<u32> = self
            .members
            .get(&id)
            .map_or_else(Vec::new, |member| member.pages.keys().copied().collect());
        for page in pages {
            self.drop_page(id, page);
        }
        self.members.remove(&id);
    }
}

impl Other {
    /// The node, without what its gateway's head and figures say.
    pub fn node(&self) -> v1::Node {
        // It could be read when it was taken.
        v1::Node::decode(&self.node[..]).unwrap_or_default()
    }
}
