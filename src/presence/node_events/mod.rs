//! `node_joined` and `node_left`: the changes of the list of nodes as events of the bus.
//!
//! Each gateway publishes those of its own streams ([`changes`]), and one of them those of a
//! gateway that is gone ([`lost`]). All of them follow these events ([`follow`]): who published
//! what, and which streams have left ([`departed`]). A list with which a stream begins is that of
//! `ListNodes`, as far as it is known by events ([`current`]).

pub mod changes;
mod current;
mod departed;
pub mod follow;
pub mod lost;
pub mod publish;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Instant, SystemTime},
};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use ring::digest::{SHA256, digest};
use tokio::sync::{Notify, watch};

use self::{changes::Changes, departed::Departed, lost::LostStreams};
use super::{
    Nodes,
    others::{Applied, LostMember},
};
use crate::{
    bus::RequestId,
    proto::v1::{self, NodeLeftReason, event::Kind},
};

pub use self::current::CurrentPosition;

/// Bytes of an id, and the number of roles: of a node that a gateway has accepted.
const MAX_ID: usize = 128;
const MAX_ROLES: usize = 64;

/// The beginning of the names of events.
const JOINED: &str = "node_joined";
const LEFT: &str = "node_left";

/// A stream, by its subscription id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u128);

/// What gateways need to publish events about nodes.
#[derive(Default)]
pub struct NodeEvents {
    /// Notified when there may be something to publish.
    pub wake: Notify,
    pub departed: Mutex<Departed>,
    pub lost: Mutex<LostStreams<LostStream>>,
    following: Following,
    /// Others may have taken this gateway for lost: what they published comes first.
    catches_up: AtomicBool,
    /// The id of the report that events were given up, until it is published.
    report: Mutex<Option<RequestId>>,
    counters: Counters,
}

/// How far the events were followed.
#[derive(Default)]
struct Following {
    /// The number of those who asked, and of those among them for whom all was followed that was
    /// there when they asked.
    asked: AtomicU64,
    followed: watch::Sender<u64>,
    wake: Notify,
}

/// A stream of a gateway that is gone.
#[derive(Clone)]
pub struct LostStream {
    gateway_id: Arc<str>,
    /// An encoded `trunkline.v1.Node`.
    node: Bytes,
    returns: u32,
    reason: NodeLeftReason,
}

#[derive(Debug, Default)]
struct Counters {
    joined: AtomicU64,
    left: AtomicU64,
    given_up: AtomicU64,
}

/// The events about nodes, counted: those that this gateway published, those that wait for it, and
/// the times that some were given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeEventCounts {
    /// `node_joined` that were published.
    pub joined: u64,
    /// `node_left` that were published.
    pub left: u64,
    /// Events that wait.
    pub waiting: usize,
    /// The reports that some were given up.
    pub given_up: u64,
}

impl StreamId {
    /// The stream with this subscription id.
    pub fn of(subscription_id: &str) -> StreamId {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest(&SHA256, subscription_id.as_bytes()).as_ref()[..16]);
        StreamId(u128::from_be_bytes(bytes))
    }
}

impl NodeEvents {
    /// Records that this gateway gives events up.
    fn give_up(&self) {
        self.report.lock().get_or_insert_with(rand::random);
        self.wake.notify_one();
    }

    /// Records that an exchange showed that others may have taken this gateway for lost.
    pub fn may_be_lost(&self) {
        self.catches_up.store(true, Ordering::Release);
    }

    /// Ready when all events were followed that are in the log now.
    async fn followed(&self) {
        let number = self.following.asked.fetch_add(1, Ordering::AcqRel) + 1;
        self.following.wake.notify_one();
        // The sender lives as long as this.
        let _ = self.following.followed.subscribe().wait_for(|done| *done >= number).await;
    }
}

impl Nodes {
    /// True if gateways publish events about nodes here.
    pub fn have_events(&self) -> bool {
        self.events.is_some()
    }

    /// Counts the events about nodes; none where this gateway publishes none.
    pub fn event_counts(&self) -> Option<NodeEventCounts> {
        let events = self.events.as_ref()?;
        let own = self.local.lock().changes.as_ref().map_or(0, Changes::waiting);
        let Counters { joined, left, given_up } = &events.counters;
        Some(NodeEventCounts {
            joined: joined.load(Ordering::Relaxed),
            left: left.load(Ordering::Relaxed),
            waiting: own + events.lost.lock().count(),
            given_up: given_up.load(Ordering::Relaxed),
        })
    }

    /// An exchange of records begins, under the lock of what it writes.
    pub(super) fn exchange_begins(local: &mut super::Local) {
        let super::Local { changes, shards, .. } = local;
        if let Some(changes) = changes {
            changes.exchange_begins(|number| shards.lists(number));
        }
    }

    /// It has ended: the records were written, or perhaps not.
    pub(super) fn exchange_ended(&self, written: bool) {
        let Some(events) = &self.events else { return };
        if let Some(changes) = &mut self.local.lock().changes {
            changes.exchange_ended(written);
        }
        events.wake.notify_one();
    }

    /// Takes over the streams of gateways that an exchange found to be gone.
    pub(super) fn take_lost(&self, applied: &mut Applied) {
        let Some(events) = &self.events else { return };
        for lost in std::mem::take(&mut applied.lost) {
            let alive = applied.alive.iter().copied();
            let now = Instant::now();
            let Some(due) = lost::due(lost.member, self.delivery.member, alive, now) else {
                continue;
            };
            let LostMember { gateway_id, left, nodes, .. } = lost;
            let gateway_id: Arc<str> = gateway_id.into();
            let reason = if left { NodeLeftReason::Drained } else { NodeLeftReason::Lost };
            let departed = events.departed.lock();
            let streams = nodes.into_iter().filter_map(|(key, node, returns)| {
                let id = StreamId::of(&key.1);
                let gateway_id = gateway_id.clone();
                let stream = LostStream { gateway_id, node, returns, reason };
                (!departed.have(id)).then_some((id, stream))
            });
            let complete = events.lost.lock().add(due, streams);
            drop(departed);
            if !complete {
                events.give_up();
            }
        }
        events.wake.notify_one();
    }
}

/// The name of an event: the same whoever publishes it.
fn name(what: &str, id: StreamId, returns: u32) -> RequestId {
    let parts = [what.as_bytes(), &id.0.to_be_bytes(), &returns.to_be_bytes()];
    name_of(&parts.concat())
}

fn name_of(bytes: &[u8]) -> RequestId {
    let mut name = [0; 16];
    name.copy_from_slice(&digest(&SHA256, bytes).as_ref()[..16]);
    name
}

fn joined(node: &v1::Node, gateway_id: &str) -> v1::NodeJoined {
    v1::NodeJoined {
        node_id: node.node_id.clone(),
        incarnation: node.incarnation.clone(),
        roles: node.roles.clone(),
        gateway_id: gateway_id.to_owned(),
        subscription_id: node.subscription_id.clone(),
        connect_time: node.connect_time,
        peer: node.peer.clone(),
        current: false,
    }
}

fn left(node: v1::Node, gateway_id: &str, reason: NodeLeftReason) -> v1::NodeLeft {
    v1::NodeLeft {
        node_id: node.node_id,
        incarnation: node.incarnation,
        roles: node.roles,
        gateway_id: gateway_id.to_owned(),
        subscription_id: node.subscription_id,
        reason: reason.into(),
    }
}

/// An event that no node publishes, with an id that is its name.
fn event(kind: impl Into<Kind>, name: RequestId) -> Bytes {
    let event = v1::Event {
        event_id: id_of(name),
        publish_time: Some(super::timestamp(SystemTime::now())),
        kind: Some(kind.into()),
        ..Default::default()
    };
    event.encode_to_vec().into()
}

/// The id of the event with a name.
fn id_of(name: RequestId) -> String {
    uuid::Builder::from_custom_bytes(name).into_uuid().to_string()
}

/// True if a gateway may have accepted the node. What others write in their records is input.
fn is_sound(node: &v1::Node) -> bool {
    let ids = [&node.node_id, &node.incarnation, &node.subscription_id, &node.peer];
    node.roles.len() <= MAX_ROLES && ids.into_iter().chain(&node.roles).all(|id| id.len() <= MAX_ID)
}
