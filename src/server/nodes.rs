//! Who is connected to this gateway.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::Mutex;

use super::recent::{EndedStream, Ending, Recent};
use crate::{hub::cursor::Progress, proto::v1};

/// Parts node id and subscription id in a page token: no id has control characters.
const BETWEEN: char = '\n';

/// One stream, as others may see it.
pub struct NodeEntry {
    /// What does not change; `delivered_events` and `behind_events` are filled in when it is listed.
    node: v1::Node,
    delivered: AtomicU64,
    progress: Progress,
}

/// The streams of this gateway, by node id and subscription id: the order in which they are listed.
#[derive(Default)]
pub struct Nodes {
    entries: Mutex<BTreeMap<(String, String), Arc<NodeEntry>>>,
}

/// Keeps a stream in the list until it is dropped.
pub struct Listed {
    nodes: Arc<Nodes>,
    key: (String, String),
    entry: Arc<NodeEntry>,
    recent: Arc<Recent>,
    /// Why the stream ends, once that is known.
    ending: Ending,
}

/// Where a page begins.
#[derive(Debug, Default)]
pub struct PageStart {
    /// The last node of the page before; none for the first page.
    after: Option<(String, String)>,
}

/// More streams are open than may be.
#[derive(Debug)]
pub struct TooMany;

impl Nodes {
    /// Lists a stream, unless `most` are listed. Its end is told to `recent`.
    pub fn enter(
        self: &Arc<Self>,
        node: v1::Node,
        progress: Progress,
        most: usize,
        recent: Arc<Recent>,
    ) -> Result<Listed, TooMany> {
        let key = (node.node_id.clone(), node.subscription_id.clone());
        let entry = Arc::new(NodeEntry { node, delivered: AtomicU64::new(0), progress });
        let mut entries = self.entries.lock();
        if entries.len() >= most {
            return Err(TooMany);
        }
        entries.insert(key.clone(), entry.clone());
        Ok(Listed { nodes: self.clone(), key, entry, recent, ending: Ending::ClientWent })
    }

    /// How many streams are open.
    pub fn count(&self) -> usize {
        self.entries.lock().len()
    }

    /// How many events they together have still to be offered.
    pub fn behind(&self) -> u64 {
        self.behind_each().sum()
    }

    /// How many events each of them has still to be offered.
    pub fn behind_each(&self) -> impl Iterator<Item = u64> + use<> {
        self.all().into_iter().map(|entry| entry.behind())
    }

    /// The streams, in their order.
    pub fn all(&self) -> Vec<Arc<NodeEntry>> {
        self.entries.lock().values().cloned().collect()
    }

    /// A page of at most `size` nodes, and the token of the next page; empty if there is none.
    pub fn page(&self, start: PageStart, size: usize) -> (Vec<v1::Node>, String) {
        let entries: Vec<_> = {
            let entries = self.entries.lock();
            let from = start.after.map_or(Bound::Unbounded, Bound::Excluded);
            let range = entries.range((from, Bound::Unbounded));
            range.take(size + 1).map(|(_, entry)| entry.clone()).collect()
        };
        let more = entries.len() > size;
        let nodes: Vec<_> = entries.iter().take(size).map(|entry| entry.describe()).collect();
        let next = nodes.last().filter(|_| more).map(PageStart::encode_after);
        (nodes, next.unwrap_or_default())
    }
}

impl PageStart {
    /// Reads a page token; None: it is none of ours. The empty one stands for the first page.
    pub fn decode(token: &str) -> Option<PageStart> {
        if token.is_empty() {
            return Some(PageStart::default());
        }
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
        let (node, subscription) = text.split_once(BETWEEN)?;
        Some(PageStart { after: Some((node.to_owned(), subscription.to_owned())) })
    }

    /// The token of the page that begins after this node: opaque to clients, and safe in a URL (AIP-158).
    fn encode_after(last: &v1::Node) -> String {
        URL_SAFE_NO_PAD.encode(format!("{}{BETWEEN}{}", last.node_id, last.subscription_id))
    }
}

impl NodeEntry {
    /// The stream, without what changes.
    pub fn node(&self) -> &v1::Node {
        &self.node
    }

    /// How many events it was sent.
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// How many events it has still to be offered.
    pub fn behind(&self) -> u64 {
        self.progress.behind()
    }

    fn describe(&self) -> v1::Node {
        v1::Node {
            delivered_events: self.delivered(),
            behind_events: self.behind(),
            ..self.node.clone()
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
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.nodes.entries.lock().remove(&self.key);
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

/// A time as protobuf says it.
pub fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    time.into()
}
