//! Who is connected: to this gateway, and to the others.
//!
//! The streams of this gateway are listed while they are open. What a gateway knows of the others it reads from the bus's store,
//! where each puts down its own part ([`membership`]); a list over all of them is made when it is asked for ([`list`]).

mod duplicates;
pub mod list;
pub mod membership;
mod notices;
mod others;
mod pages;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use self::{duplicates::Duplicates, notices::Notices, others::Others, pages::Pages};
use crate::observe::recent::{EndedStream, Ending, Recent};
use crate::{hub::cursor::Progress, proto::v1};

pub use self::list::{PageStart, Query};

/// Node id and subscription id: the order in which nodes are listed.
type Key = (String, String);

/// Accounts and custom types of a filter that are shown.
const SHOWN: usize = 16;

/// A stream whose lag is this or more counts as behind.
const BEHIND: Duration = Duration::from_secs(5);

/// What a gateway says of itself.
#[derive(Clone, Debug)]
pub struct About {
    /// Its id.
    pub gateway_id: String,
    /// Where it listens; empty if that says nothing to others.
    pub address: String,
    /// When it started.
    pub started: SystemTime,
}

/// The streams of this gateway, and what is known of the others'.
pub struct Nodes {
    about: About,
    local: Mutex<Local>,
    others: Others,
    duplicates: Duplicates,
    /// Wakes who tells the others.
    changed: Notify,
}

/// The streams of this gateway.
#[derive(Default)]
struct Local {
    entries: BTreeMap<Key, Arc<NodeEntry>>,
    /// The same streams as the others are told of them.
    pages: Pages,
    /// The number of the last stream.
    last_number: u64,
}

/// One stream, as others may see it.
pub struct NodeEntry {
    /// What does not change, without what all streams of the gateway have in common.
    node: v1::Node,
    /// The stream's number at this gateway.
    number: u64,
    since: Instant,
    delivered: AtomicU64,
    progress: Progress,
    notices: Notices,
}

/// What changes all the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Figure {
    delivered: u64,
    behind: u64,
    lag_ms: u64,
}

/// Keeps a stream in the list until it is dropped.
pub struct Listed {
    nodes: Arc<Nodes>,
    key: Key,
    entry: Arc<NodeEntry>,
    recent: Arc<Recent>,
    /// Why the stream ends, once that is known.
    ending: Ending,
}

/// More streams are open than may be.
#[derive(Debug)]
pub struct TooMany;

impl Nodes {
    /// An empty list. Two processes with one node id are told so when both have been there for `takeover`: the time after which
    /// a connection that died has been found.
    pub fn new(about: About, takeover: Duration) -> Nodes {
        Nodes {
            about,
            local: Mutex::default(),
            others: Others::default(),
            duplicates: Duplicates::new(takeover),
            changed: Notify::new(),
        }
    }

    /// Lists a stream, unless `most` are listed. Its end is told to `recent`.
    pub fn enter(
        self: &Arc<Self>,
        mut node: v1::Node,
        progress: Progress,
        most: usize,
        recent: Arc<Recent>,
    ) -> Result<Listed, TooMany> {
        show_part(&mut node);
        let key = (node.node_id.clone(), node.subscription_id.clone());
        let mut local = self.local.lock();
        if local.entries.len() >= most {
            return Err(TooMany);
        }
        local.last_number += 1;
        let entry = Arc::new(NodeEntry {
            node,
            number: local.last_number,
            since: Instant::now(),
            delivered: AtomicU64::new(0),
            progress,
            notices: Notices::default(),
        });
        local.entries.insert(key.clone(), entry.clone());
        local.pages.add(&entry);
        let known = local.with_id(&key.0).nth(1).is_some();
        drop(local);
        // After it is listed: one of two who come at once sees the other.
        if known || self.others.have(&key.0) {
            self.duplicates.suspect(&key.0);
        }
        self.changed.notify_one();
        Ok(Listed { nodes: self.clone(), key, entry, recent, ending: Ending::ClientWent })
    }

    /// How many streams are open on this gateway.
    pub fn count(&self) -> usize {
        self.local.lock().entries.len()
    }

    /// How many events they together have still to be offered.
    pub fn behind(&self) -> u64 {
        self.behind_each().sum()
    }

    /// How many events each of them has still to be offered.
    pub fn behind_each(&self) -> impl Iterator<Item = u64> + use<> {
        self.all().into_iter().map(|entry| entry.behind())
    }

    /// How many node ids have more than one live process, on all gateways, as far as this one knows.
    pub fn duplicate_ids(&self) -> usize {
        self.duplicates.count()
    }

    /// The streams of this gateway, in their order.
    pub fn all(&self) -> Vec<Arc<NodeEntry>> {
        self.local.lock().entries.values().cloned().collect()
    }
}

impl Local {
    /// The streams of a node.
    fn with_id(&self, node_id: &str) -> impl Iterator<Item = &Arc<NodeEntry>> {
        let from = (node_id.to_owned(), String::new());
        self.entries
            .range(from..)
            .map(|(_, entry)| entry)
            .take_while(move |entry| entry.node.node_id == node_id)
    }
}

impl NodeEntry {
    /// How many events it was sent.
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// How many events it has still to be offered.
    pub fn behind(&self) -> u64 {
        self.progress.behind()
    }

    fn figure(&self, now_ms: u64) -> Figure {
        Figure {
            delivered: self.delivered(),
            behind: self.behind(),
            lag_ms: self.progress.lag_ms(now_ms),
        }
    }
}

impl Listed {
    /// Counts events that were sent.
    pub fn delivered(&self, count: u64) {
        self.entry.delivered.fetch_add(count, Ordering::Relaxed);
    }

    /// Says why the stream is about to end. Where nobody does, its client went.
    pub fn ends(&mut self, why: Ending) {
        self.ending = why;
    }

    /// The stream, as it is listed.
    pub fn node(&self) -> &v1::Node {
        &self.entry.node
    }

    /// What its node is to be told.
    pub fn notices(&self) -> &Notices {
        &self.entry.notices
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut local = self.nodes.local.lock();
        local.entries.remove(&self.key);
        local.pages.remove(self.entry.number);
        drop(local);
        self.nodes.changed.notify_one();
        let (at, node) = (SystemTime::now(), &self.entry.node);
        let since = node.connect_time.and_then(|time| SystemTime::try_from(time).ok());
        self.recent.ended(EndedStream {
            at,
            node_id: node.node_id.clone(),
            peer: node.peer.clone(),
            lasted: since.and_then(|since| at.duration_since(since).ok()).unwrap_or_default(),
            delivered: self.entry.delivered(),
            why: self.ending,
        });
    }
}

/// Keeps of a filter what a list shows of it: a page of nodes must not weigh what ten thousand accounts of each weigh.
fn show_part(node: &mut v1::Node) {
    let Some(filter) = &mut node.filter else { return };
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    node.filter_accounts = count(filter.accounts.len());
    node.filter_custom_types = count(filter.custom_types.len());
    for names in [&mut filter.accounts, &mut filter.custom_types] {
        names.truncate(SHOWN);
        names.shrink_to_fit();
    }
}

/// A time as protobuf says it.
pub fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    time.into()
}

fn duration(duration: Duration) -> prost_types::Duration {
    // Too long for protobuf is longer than any process runs.
    prost_types::Duration::try_from(duration).unwrap_or_default()
}
