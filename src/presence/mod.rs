//! The nodes that are connected to this gateway and to the others.
//!
//! The streams of this gateway are listed while they are open. Gateways publish their streams to
//! one another in the store of the bus ([`membership`]); a list of all of them is made when a
//! request asks for it ([`list`]).

mod agents;
mod balance;
pub mod delivery;
mod duplicates;
pub mod list;
pub mod membership;
pub mod moves;
pub mod node_events;
mod notifications;
mod others;
mod shards;
mod watch;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use self::watch::WatchState;
pub use self::watch::WatchStats;
use self::{
    agents::Agents,
    delivery::Delivery,
    duplicates::Duplicates,
    moves::{Asked, Moves},
    node_events::{NodeEvents, StreamId, changes::Changes},
    notifications::Notifications,
    others::Others,
    shards::OwnShards,
};
use crate::{
    bus::MemberId,
    hub::cursor::Progress,
    leave::{ConnectionLeave, Leave, LeaveReason, StreamOnConnection},
    lifecycle::Lifecycle,
    proto::v1::{self, NodeLeftReason},
};

pub use self::{
    list::{PageStart, Query},
    node_events::CurrentPosition,
    notifications::Notification,
};

/// Node id and subscription id: the order in which nodes are listed.
type Key = (String, String);

/// Accounts and custom types of a filter that a list shows.
const MAX_SHOWN: usize = 16;

/// The lag from which a stream counts as behind.
const BEHIND_LAG: Duration = Duration::from_secs(5);

/// The streams of this gateway and, as far as they are known, those of the others.
pub struct Nodes {
    gateway: Arc<Lifecycle>,
    max_streams: usize,
    local: Mutex<Local>,
    others: Others,
    duplicates: Duplicates,
    agents: Agents,
    /// Notified when a stream opens or closes.
    changed: Notify,
    /// When somebody last asked for a list.
    looked: Mutex<Option<Instant>>,
    delivery: Delivery,
    /// Streams that were asked to leave.
    pub moves: Moves,
    /// None if gateways publish no events about nodes.
    events: Option<NodeEvents>,
}

/// The streams of this gateway.
#[derive(Default)]
struct Local {
    entries: BTreeMap<Key, Arc<NodeEntry>>,
    /// The same streams, as they are published to the other gateways.
    shards: OwnShards,
    /// Which of their changes are published as events; none if they are not.
    changes: Option<Changes<Arc<NodeEntry>>>,
    /// The number of the last stream.
    last_number: u64,
}

/// One stream.
pub struct NodeEntry {
    /// The fields that do not change, without those that all streams of the gateway share.
    node: v1::Node,
    /// The stream's number at this gateway.
    number: u64,
    since: Instant,
    delivered: AtomicU64,
    /// See `NodeRecord.returns`.
    returns: AtomicU32,
    /// True if its node was asked to go elsewhere.
    drained: AtomicBool,
    /// Of a `Watch` stream.
    watch: OnceLock<WatchState>,
    progress: Progress,
    notifications: Notifications,
    /// Its connection, and whether it was asked to leave.
    connection: Arc<ConnectionLeave>,
    asked: Asked,
}

/// The values of a stream that change all the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct StreamStats {
    delivered: u64,
    behind: u64,
    lag_ms: u64,
    /// Of a `Watch` stream.
    watch: Option<WatchStats>,
}

/// Keeps a stream in the list until it is dropped.
pub struct Listed {
    nodes: Arc<Nodes>,
    key: Key,
    entry: Arc<NodeEntry>,
    on_connection: StreamOnConnection,
}

/// As many streams are open as may be.
#[derive(Debug)]
pub struct TooMany;

impl Nodes {
    /// An empty list. Two processes with one node id are notified when both have been connected for
    /// `takeover`: the time after which a dead connection has certainly been closed. With
    /// `node_events`, changes are published as events about nodes.
    pub fn new(
        gateway: Arc<Lifecycle>,
        max_streams: usize,
        takeover: Duration,
        node_events: bool,
    ) -> Nodes {
        let changes = node_events.then(Changes::default);
        Nodes {
            gateway,
            max_streams,
            local: Mutex::new(Local { changes, ..Local::default() }),
            others: Others::default(),
            duplicates: Duplicates::new(takeover),
            agents: Agents::new(takeover),
            changed: Notify::new(),
            looked: Mutex::new(None),
            delivery: Delivery::new(),
            moves: Moves::default(),
            events: node_events.then(NodeEvents::default),
        }
    }

    /// Lists a stream of a connection, unless as many as may be open are listed.
    pub fn enter(
        self: &Arc<Self>,
        mut node: v1::Node,
        progress: Progress,
        connection: &Arc<ConnectionLeave>,
    ) -> Result<Listed, TooMany> {
        show_part(&mut node);
        let key = (node.node_id.clone(), node.subscription_id.clone());
        let mut local = self.local.lock();
        if local.entries.len() >= self.max_streams {
            return Err(TooMany);
        }
        local.last_number += 1;
        let entry = Arc::new(NodeEntry {
            node,
            number: local.last_number,
            since: Instant::now(),
            delivered: AtomicU64::new(0),
            returns: AtomicU32::new(0),
            drained: AtomicBool::new(false),
            watch: OnceLock::new(),
            progress,
            notifications: Notifications::default(),
            connection: connection.clone(),
            asked: Asked::default(),
        });
        local.entries.insert(key.clone(), entry.clone());
        local.shards.add(&entry);
        if let Some(changes) = &mut local.changes {
            changes.opened(entry.number, StreamId::of(&key.1), entry.clone());
        }
        let known = local.with_id(&key.0).nth(1).is_some();
        drop(local);
        // After it is listed: one of two that connect at the same time sees the other.
        if known || self.others.have(&key.0) {
            self.duplicates.suspect(&key.0);
        }
        self.changed.notify_one();
        let on_connection = connection.enter(&key.0);
        Ok(Listed { nodes: self.clone(), key, entry, on_connection })
    }

    /// Records that somebody looks at a list, which keeps the stats of other gateways' streams
    /// young.
    fn look(&self) {
        *self.looked.lock() = Some(Instant::now());
    }

    /// True if somebody did so within this time.
    fn were_looked_at(&self, within: Duration) -> bool {
        self.looked.lock().is_some_and(|looked| looked.elapsed() < within)
    }

    /// The number of streams that may be open.
    pub fn max_streams(&self) -> usize {
        self.max_streams
    }

    /// The number of streams that are open on this gateway.
    pub fn count(&self) -> usize {
        self.local.lock().entries.len()
    }

    /// The number of events that all of them together have not read yet.
    pub fn behind(&self) -> u64 {
        self.behind_each().sum()
    }

    /// The number of those that are `Watch` streams, and of the events that their nodes have not
    /// acknowledged.
    pub fn watches(&self) -> (u64, u64) {
        let all = self.all();
        let watches = all.iter().filter_map(|entry| entry.watch.get());
        watches.fold((0, 0), |(count, events), watch| {
            (count + 1, events + watch.stats().unacknowledged)
        })
    }

    /// The number of events that each of them has not read yet.
    pub fn behind_each(&self) -> impl Iterator<Item = u64> + use<> {
        self.all().into_iter().map(|entry| entry.behind())
    }

    /// The number of node ids that several live processes use, on all gateways.
    pub fn duplicate_ids(&self) -> usize {
        self.duplicates.count()
    }

    /// The gateway that a stream should go to which is asked to leave, if one is named.
    pub fn gateway_to(&self, leave: Leave) -> Option<v1::OtherGateway> {
        let id = MemberId(leave.to?);
        self.others.view(|view| {
            let record = &view.members.get(&id)?.record;
            let (gateway_id, address) = (record.gateway_id.clone(), record.address.clone());
            Some(v1::OtherGateway { gateway_id, address })
        })
    }

    /// Asks a stream to leave, and those of its node on the same connection with it, unless several
    /// nodes use that. Returns how many were asked: none where it has ended.
    fn ask(&self, entry: &Arc<NodeEntry>, leave: Leave) -> u64 {
        // One that ends leaves the list first: none is asked whose end was counted.
        let local = self.local.lock();
        let together = |other: &&Arc<NodeEntry>| {
            Arc::ptr_eq(other, entry)
                || Arc::ptr_eq(&other.connection, &entry.connection)
                    && entry.connection.is_of_one_node()
        };
        let of_node: Vec<_> = local.with_id(&entry.node.node_id).filter(together).collect();
        if !of_node.iter().any(|other| Arc::ptr_eq(other, entry)) {
            return 0;
        }
        let asked = of_node.into_iter().filter(|stream| self.moves.ask(stream, leave));
        asked.count() as u64
    }

    /// The streams of this gateway, in the order of their keys.
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
    /// The number of events that were sent on it.
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// The number of events that it has not read yet.
    pub fn behind(&self) -> u64 {
        self.progress.behind()
    }

    /// What its node reports of itself; empty if that is nothing.
    fn agent(&self) -> Bytes {
        self.watch.get().map(WatchState::agent).unwrap_or_default()
    }

    fn stats(&self, now_ms: u64) -> StreamStats {
        StreamStats {
            delivered: self.delivered(),
            behind: self.behind(),
            lag_ms: self.progress.lag_ms(now_ms),
            watch: self.watch.get().map(WatchState::stats),
        }
    }
}

impl Listed {
    /// Counts events that were sent.
    pub fn delivered(&self, count: u64) {
        self.entry.delivered.fetch_add(count, Ordering::Relaxed);
    }

    /// The stream, as it is listed.
    pub fn node(&self) -> &v1::Node {
        &self.entry.node
    }

    /// Records that its node is asked to go on elsewhere, which the stream has begun to do.
    pub fn leaves(&mut self, leave: Leave) {
        self.entry.drained.store(true, Ordering::Relaxed);
        self.nodes.moves.leaves(&self.entry.asked, leave.reason);
        if leave.reason != LeaveReason::Stopping {
            self.on_connection.leaves(leave);
        }
    }

    /// Notifications to its node.
    pub fn notifications(&self) -> &Notifications {
        &self.entry.notifications
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let drained =
            self.entry.drained.load(Ordering::Relaxed) || self.nodes.gateway.is_draining();
        let reason = if drained { NodeLeftReason::Drained } else { NodeLeftReason::Closed };
        let number = self.entry.number;
        let mut local = self.nodes.local.lock();
        local.entries.remove(&self.key);
        // Its record stays until it is published that it has left.
        if local.changes.as_mut().is_none_or(|changes| changes.closed(number, reason)) {
            local.shards.remove(number);
        }
        drop(local);
        self.nodes.moves.ended(&self.entry.asked);
        self.nodes.changed.notify_one();
        if let Some(events) = &self.nodes.events {
            events.wake.notify_one();
        }
    }
}

/// Keeps of a filter only what a list shows: a page of nodes must not carry ten thousand accounts
/// of each.
fn show_part(node: &mut v1::Node) {
    let Some(filter) = &mut node.filter else { return };
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    // More than the filter names, if it came in several parts.
    node.filter_accounts = count(filter.accounts.len()).max(node.filter_accounts);
    node.filter_custom_types = count(filter.custom_types.len());
    for names in [&mut filter.accounts, &mut filter.custom_types] {
        names.truncate(MAX_SHOWN);
        names.shrink_to_fit();
    }
}

/// A time, as protobuf has it.
pub fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    time.into()
}

fn duration(duration: Duration) -> prost_types::Duration {
    // Too long for protobuf is longer than any process runs.
    prost_types::Duration::try_from(duration).unwrap_or_default()
}
