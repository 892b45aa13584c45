//! Waiting until nodes have an event (`wait_for`), over all gateways.
//!
//! The gateway that is asked stamps the event with the name of its wait. Each gateway that receives
//! it follows which of its streams have it ([`Waits`](crate::hub::waits::Waits)), and leaves one
//! message for the gateway that was asked: when all have, or when the publisher is about to give
//! up. The gateway that was asked knows the others from an exchange that it makes after the event
//! was accepted: who had a stream before that is in it.

use std::{
    cell::LazyCell,
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{NodeEntry, Nodes, others::Member};
use crate::{
    bus::{MemberId, SharedBus},
    hub::{
        Hub,
        event::{WaitName, WaitStamp},
        waits::{Looked, StreamKey},
    },
    proto::{bus_v1::DeliveryState, v1},
};

/// Node ids that an answer names, and bytes of each.
const MAX_NAMED: usize = 100;
const MAX_ID: usize = 128;

/// Bytes of a message between gateways that is read.
const MAX_MESSAGE: usize = 32 * 1024;

/// How often streams, and the messages of others, are looked at: at first, and while a wait lasts.
const SHORT: Duration = Duration::from_millis(2);
const LONG: Duration = Duration::from_millis(20);

/// The age of a wait from which on it is looked at less often.
const LASTING: Duration = Duration::from_millis(200);

/// The part of a publisher's time after which a gateway says how far its nodes have come.
const GIVES_UP: f64 = 0.8;

/// The time after the start in which a stream is not opened before other gateways know this one.
const ANNOUNCE: Duration = Duration::from_secs(3);

/// The time in which a gateway that asks is looked up.
const LOOK_UP: Duration = Duration::from_secs(1);

/// How long a wait is followed after its publisher's time is over.
const GRACE: Duration = Duration::from_secs(1);

/// The waits that were asked for at this gateway, and the exchanges that they ask for.
pub(super) struct Delivery {
    /// This gateway, as a member.
    pub member: MemberId,
    last_number: AtomicU64,
    asked: Mutex<HashMap<u64, Asked>>,
    /// Notified when a wait begins, and when an exchange is asked for.
    begun: Notify,
    pub exchange_asked: Notify,
    /// The number of exchanges that were asked for, and of those of which one has begun after.
    asked_exchanges: AtomicU64,
    made_exchanges: watch::Sender<Option<u64>>,
    /// Until then streams wait for the first exchange.
    announce_until: tokio::time::Instant,
}

/// A wait that was asked for here.
struct Asked {
    states: HashMap<MemberId, DeliveryState>,
    changed: Arc<Notify>,
    begun: Instant,
}

/// A publisher's wait. It ends when this is dropped.
pub struct Wait {
    nodes: Arc<Nodes>,
    name: WaitName,
    acknowledged: bool,
    timeout: Duration,
    changed: Arc<Notify>,
}

/// What this gateway knows of the streams of a wait.
#[derive(Default)]
struct Followed {
    /// The streams by their keys, once they were seen in the list.
    entries: HashMap<StreamKey, Arc<NodeEntry>>,
    /// True if it was said how far they had come when the publisher's time was nearly over.
    gave_up: bool,
}

impl Delivery {
    pub(super) fn new() -> Delivery {
        Delivery {
            member: MemberId(rand::random()),
            last_number: AtomicU64::new(0),
            asked: Mutex::default(),
            begun: Notify::new(),
            exchange_asked: Notify::new(),
            asked_exchanges: AtomicU64::new(0),
            made_exchanges: watch::Sender::new(None),
            announce_until: tokio::time::Instant::now() + ANNOUNCE,
        }
    }

    /// The number of exchanges that were asked for: the one that begins now counts for them.
    pub(super) fn exchange_begins(&self) -> u64 {
        self.asked_exchanges.load(Ordering::Acquire)
    }

    /// Records that an exchange succeeded that began with this number.
    pub(super) fn exchange_made(&self, number: u64) {
        self.made_exchanges.send_replace(Some(number));
    }

    /// Ready when an exchange has succeeded that began after this call.
    pub(super) async fn exchanged(&self) {
        let number = self.asked_exchanges.fetch_add(1, Ordering::AcqRel) + 1;
        self.exchange_asked.notify_one();
        // The sender lives as long as this.
        let _ = self.made_exchanges.subscribe().wait_for(|made| *made >= Some(number)).await;
    }

    /// Takes what a gateway says.
    fn take(&self, state: DeliveryState) {
        if let Some(asked) = self.asked.lock().get_mut(&state.wait) {
            asked.states.insert(MemberId(state.member), state);
            asked.changed.notify_one();
        }
    }
}

impl Wait {
    /// The stamp of one of `count` events.
    pub fn stamp(&self, index: usize, count: usize) -> WaitStamp {
        let narrow = |number| u16::try_from(number).unwrap_or(u16::MAX);
        WaitStamp {
            name: self.name,
            acknowledged: self.acknowledged,
            index: narrow(index),
            count: narrow(count),
            timeout: self.timeout,
        }
    }

    /// Waits for the nodes, after the events were accepted. `others`: there can be other gateways.
    pub async fn report(self, others: bool) -> v1::DeliveryReport {
        let until = tokio::time::Instant::now() + self.timeout;
        let mut expected = None;
        let all = async {
            if others {
                self.nodes.delivery.exchanged().await;
            }
            // Those that come later have no node that had a stream before.
            let expected = expected.insert(self.gateways());
            while !expected.keys().all(|member| self.state(*member).is_some_and(|s| s.complete)) {
                self.changed.notified().await;
            }
        };
        let complete = tokio::time::timeout_at(until, all).await.is_ok();
        let mut report = v1::DeliveryReport { complete, ..Default::default() };
        let mut pending = BTreeSet::new();
        for (member, gateway_id) in expected.unwrap_or_else(|| self.gateways()) {
            let Some(state) = self.state(member) else {
                report.silent_gateway_ids.push(gateway_id);
                continue;
            };
            report.concerned_nodes = report.concerned_nodes.saturating_add(state.concerned_nodes);
            report.done_nodes = report.done_nodes.saturating_add(state.done_nodes);
            pending.extend(state.pending_node_ids);
        }
        report.silent_gateway_ids.sort();
        report.pending_node_ids = pending.into_iter().take(MAX_NAMED).collect();
        report
    }

    /// The gateways that are known now, which must say something, with their ids.
    fn gateways(&self) -> BTreeMap<MemberId, String> {
        let own = (self.nodes.delivery.member, self.nodes.gateway.about.gateway_id.clone());
        self.nodes.others.view(|view| {
            let id = |(id, other): (&MemberId, &Member)| (*id, other.record.gateway_id.clone());
            view.members.iter().map(id).chain([own]).collect()
        })
    }

    /// What a gateway has said.
    fn state(&self, member: MemberId) -> Option<DeliveryState> {
        let asked = self.nodes.delivery.asked.lock();
        asked.get(&self.name.number)?.states.get(&member).cloned()
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.nodes.delivery.asked.lock().remove(&self.name.number);
    }
}

impl Nodes {
    /// Ready when the other gateways can know this one, so that they wait for its streams; or when
    /// the gateway has tried for long enough.
    pub async fn announced(&self) {
        let mut made = self.delivery.made_exchanges.subscribe();
        let announced = made.wait_for(Option::is_some);
        let _ = tokio::time::timeout_at(self.delivery.announce_until, announced).await;
    }

    /// Begins a wait, before its events are published.
    pub fn begin_wait(self: &Arc<Self>, acknowledged: bool, timeout: Duration) -> Wait {
        let number = self.delivery.last_number.fetch_add(1, Ordering::Relaxed) + 1;
        let changed = Arc::new(Notify::new());
        let asked =
            Asked { states: HashMap::new(), changed: changed.clone(), begun: Instant::now() };
        self.delivery.asked.lock().insert(number, asked);
        self.delivery.begun.notify_one();
        let name = WaitName { asked: self.delivery.member, number };
        Wait { nodes: self.clone(), name, acknowledged, timeout, changed }
    }
}

/// Follows the events of waits at this gateway's streams, and says how far they have come, until
/// `stop`.
pub async fn follow(nodes: Arc<Nodes>, hub: Arc<Hub>, bus: SharedBus, stop: CancellationToken) {
    let mut followed: HashMap<WaitName, Followed> = HashMap::new();
    let follow = async {
        loop {
            if hub.waits().is_empty() {
                followed.clear();
                hub.waits().begun().await;
            }
            let (youngest, messages) = nodes.look_at_waits(&hub, &mut followed);
            for (asked, messages) in messages {
                // Names come with events, which are input like any other. One that is not known has
                // just started, if it is one.
                let is_known = || nodes.others.view(|view| view.members.contains_key(&asked));
                if !is_known() {
                    let _ = tokio::time::timeout(LOOK_UP, nodes.delivery.exchanged()).await;
                }
                let is_known = is_known();
                if let Some(members) = bus.members().filter(|_| is_known)
                    && let Err(error) = members.leave_messages(asked, messages).await
                {
                    tracing::debug!(%error, "the gateway that asks was not answered");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause(youngest)) => {}
                () = hub.waits().begun() => {}
            }
        }
    };
    stop.run_until_cancelled(follow).await;
}

/// Takes what other gateways say of the waits that were asked for here, until `stop`.
pub async fn collect(nodes: Arc<Nodes>, bus: SharedBus, stop: CancellationToken) {
    let Some(members) = bus.members() else { return };
    let delivery = &nodes.delivery;
    let collect = async {
        loop {
            let youngest = delivery.asked.lock().values().map(|asked| asked.begun.elapsed()).min();
            let Some(youngest) = youngest else {
                delivery.begun.notified().await;
                continue;
            };
            match members.take_messages(delivery.member).await {
                Ok(messages) => {
                    let readable = messages.iter().filter(|bytes| bytes.len() <= MAX_MESSAGE);
                    readable.filter_map(read).for_each(|state| delivery.take(state));
                }
                Err(error) => tracing::debug!(%error, "what other gateways say was not read"),
            }
            tokio::select! {
                () = tokio::time::sleep(pause(youngest)) => {}
                () = delivery.begun.notified() => {}
            }
        }
    };
    stop.run_until_cancelled(collect).await;
}

/// What a gateway says. None: no gateway says such a thing.
fn read(bytes: &Bytes) -> Option<DeliveryState> {
    let mut state = DeliveryState::decode(bytes.clone()).ok()?;
    state.pending_node_ids.truncate(MAX_NAMED);
    state.pending_node_ids.retain(|id| id.len() <= MAX_ID);
    Some(state)
}

fn pause(age: Duration) -> Duration {
    if age < LASTING { SHORT } else { LONG }
}

impl Nodes {
    /// Looks at all waits: the age of the youngest, and what is to be said to other gateways.
    fn look_at_waits(
        &self,
        hub: &Hub,
        followed: &mut HashMap<WaitName, Followed>,
    ) -> (Duration, BTreeMap<MemberId, Vec<Bytes>>) {
        let mut messages: BTreeMap<MemberId, Vec<Bytes>> = BTreeMap::new();
        let looked = hub.waits().look();
        let youngest = looked.iter().map(|wait| wait.age).min().unwrap_or_default();
        // Made where a stream is seen for the first time.
        let streams = LazyCell::new(|| self.by_key());
        let own = self.delivery.member;
        for wait in looked {
            let name = wait.stamp.name;
            let of_wait = followed.entry(name).or_default();
            let state = of_wait.state(own, |key| streams.get(key), &wait);
            let gives_up = wait.age >= wait.stamp.timeout.mul_f64(GIVES_UP);
            if state.complete || gives_up && !of_wait.gave_up {
                of_wait.gave_up = true;
                if name.asked == own {
                    self.delivery.take(state.clone());
                } else {
                    let message = state.encode_to_vec().into();
                    messages.entry(name.asked).or_default().push(message);
                }
            }
            if state.complete || wait.age > wait.stamp.timeout + GRACE {
                hub.waits().forget(name);
                followed.remove(&name);
            }
        }
        (youngest, messages)
    }

    /// The streams by the keys under which waits note them.
    fn by_key(&self) -> HashMap<StreamKey, Arc<NodeEntry>> {
        self.all().into_iter().map(|entry| (entry.progress.key(), entry)).collect()
    }
}

impl Followed {
    /// How far the nodes of this gateway have come.
    fn state<'s>(
        &mut self,
        member: MemberId,
        stream: impl Fn(&StreamKey) -> Option<&'s Arc<NodeEntry>>,
        wait: &Looked,
    ) -> DeliveryState {
        // Whether each node has it with all of its streams.
        let mut done: BTreeMap<String, bool> = BTreeMap::new();
        let mut unnamed = false;
        for key in wait.pending.keys().chain(&wait.taken) {
            if let Entry::Vacant(vacant) = self.entries.entry(*key)
                && let Some(entry) = stream(key)
            {
                vacant.insert(entry.clone());
            }
            let is_there = wait.pending.get(key);
            let Some(entry) = self.entries.get(key) else {
                // Not in the list so far; one that ended before it was is no node.
                unnamed |= is_there == Some(&true);
                continue;
            };
            let has = is_there.is_none()
                && (!wait.stamp.acknowledged || entry.has_acknowledged(wait.stamp.name));
            let all = done.entry(entry.node.node_id.clone()).or_insert(true);
            *all &= has;
        }
        let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let pending: Vec<&String> =
            done.iter().filter(|(_, has)| !**has).map(|(id, _)| id).collect();
        DeliveryState {
            wait: wait.stamp.name.number,
            member: member.0,
            complete: wait.whole && pending.is_empty() && !unnamed,
            concerned_nodes: count(done.len()),
            done_nodes: count(done.len() - pending.len()),
            pending_node_ids: pending.into_iter().take(MAX_NAMED).cloned().collect(),
        }
    }
}
