//! What a `Watch` stream adds to the list: its updates, and what its node has acknowledged.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Listed, NodeEntry, agents, timestamp};
use crate::{
    hub::event::{WaitName, WaitStamp},
    proto::{bus_v1, v1},
};

/// Waits whose events are remembered for a stream.
const MAX_WAITED: usize = 4096;

/// The last millisecond of the year 9999, after which protobuf has no times.
const MAX_TIME_MS: u64 = 253_402_300_799_999;

/// The values of a `Watch` stream, which change all the time.
#[derive(Debug, Default)]
pub(super) struct WatchState {
    unacknowledged: AtomicU64,
    /// Of all events of the stream.
    acknowledged: AtomicU64,
    /// For each wait the number of the stream's events up to the last one that it waits for.
    waited: Mutex<HashMap<WaitName, u64>>,
    acknowledge_ms: AtomicU64,
    updates: AtomicU32,
    accounts: AtomicU32,
    custom_types: AtomicU32,
    /// What its node reports of itself: an encoded `trunkline.v1.AgentReport`. Empty: nothing.
    agent: Mutex<Bytes>,
}

/// The same at one time, without the report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatchStats {
    /// Events that were sent and not acknowledged.
    pub unacknowledged: u64,
    /// The time of the last acknowledgement, in milliseconds since 1970; 0 if there was none.
    pub acknowledge_ms: u64,
    /// Updates of the interest.
    pub updates: u32,
    /// Accounts of the interest after them; 0 where all are included.
    pub accounts: u32,
    /// Custom types of it; 0 where all are included.
    pub custom_types: u32,
}

impl WatchState {
    pub(super) fn stats(&self) -> WatchStats {
        WatchStats {
            unacknowledged: self.unacknowledged.load(Ordering::Relaxed),
            acknowledge_ms: self.acknowledge_ms.load(Ordering::Relaxed),
            updates: self.updates.load(Ordering::Relaxed),
            accounts: self.accounts.load(Ordering::Relaxed),
            custom_types: self.custom_types.load(Ordering::Relaxed),
        }
    }

    fn count(&self, sent: u64, acknowledged: u64) {
        self.acknowledged.store(acknowledged, Ordering::Release);
        self.unacknowledged.store(sent.saturating_sub(acknowledged), Ordering::Relaxed);
    }

    /// True if the node has acknowledged all events of a wait that were sent to it.
    pub(super) fn has_acknowledged(&self, wait: WaitName) -> bool {
        let acknowledged = self.acknowledged.load(Ordering::Acquire);
        self.waited.lock().get(&wait).is_some_and(|events| *events <= acknowledged)
    }

    /// What its node reports of itself; empty if that is nothing.
    pub(super) fn agent(&self) -> Bytes {
        self.agent.lock().clone()
    }
}

impl WatchStats {
    /// Describes them in a list of nodes.
    pub(super) fn describe(self, node: &mut v1::Node) {
        node.watch = true;
        node.unacknowledged_events = self.unacknowledged;
        node.interest_updates = self.updates;
        let time = |ms: u64| UNIX_EPOCH + Duration::from_millis(ms.min(MAX_TIME_MS));
        let acknowledged = (self.acknowledge_ms > 0).then_some(self.acknowledge_ms);
        node.acknowledge_time = acknowledged.map(|ms| timestamp(time(ms)));
        if self.updates > 0 {
            node.filter_accounts = self.accounts;
            node.filter_custom_types = self.custom_types;
        }
    }

    /// The record that other gateways read, with a report of its node.
    pub(super) fn to_record(self, number: u64, agent: Bytes) -> bus_v1::WatchStats {
        bus_v1::WatchStats {
            number,
            unacknowledged_events: self.unacknowledged,
            acknowledge_time_ms: self.acknowledge_ms,
            interest_updates: self.updates,
            accounts: self.accounts,
            custom_types: self.custom_types,
            agent,
        }
    }

    /// The values in a record of another gateway.
    pub(super) fn of_record(record: &bus_v1::WatchStats) -> WatchStats {
        WatchStats {
            unacknowledged: record.unacknowledged_events,
            acknowledge_ms: record.acknowledge_time_ms,
            updates: record.interest_updates,
            accounts: record.accounts,
            custom_types: record.custom_types,
        }
    }
}

impl NodeEntry {
    /// True if its node has acknowledged all events of a wait that were sent to it.
    pub(super) fn has_acknowledged(&self, wait: WaitName) -> bool {
        self.watch.get().is_some_and(|watch| watch.has_acknowledged(wait))
    }
}

impl Listed {
    /// Says what kind of stream it is.
    pub fn watches(&self, watches: bool) {
        if watches {
            let _ = self.entry.watch.set(WatchState::default());
        }
    }

    /// Records that events were sent, some of which publishers wait for: how many there are now,
    /// and how many of them are acknowledged.
    pub fn sent(&self, sent: u64, acknowledged: u64, waited: &[WaitStamp]) {
        let Some(watch) = self.entry.watch.get() else { return };
        watch.count(sent, acknowledged);
        if waited.is_empty() {
            return;
        }
        let mut known = watch.waited.lock();
        if known.len() + waited.len() > MAX_WAITED {
            known.retain(|_, events| *events > acknowledged);
        }
        if known.len() < MAX_WAITED {
            known.extend(waited.iter().map(|stamp| (stamp.name, sent)));
        }
    }

    /// Records an acknowledgement: of how many events of all that were sent.
    pub fn acknowledged(&self, sent: u64, acknowledged: u64, now: SystemTime) {
        let Some(watch) = self.entry.watch.get() else { return };
        let ms = now.duration_since(UNIX_EPOCH).map_or(1, |since| since.as_millis());
        watch.acknowledge_ms.store(u64::try_from(ms).unwrap_or(u64::MAX), Ordering::Relaxed);
        watch.count(sent, acknowledged);
    }

    /// Records what the node reports of itself.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn reported(&self, agent: Bytes) -> Result<(), String> {
        agents::check(&agent)?;
        if let Some(watch) = self.entry.watch.get() {
            *watch.agent.lock() = agent;
        }
        Ok(())
    }

    /// Records an update, after which the interest has so many names.
    pub fn updated(&self, accounts: u32, custom_types: u32) {
        let Some(watch) = self.entry.watch.get() else { return };
        watch.accounts.store(accounts, Ordering::Relaxed);
        watch.custom_types.store(custom_types, Ordering::Relaxed);
        watch.updates.fetch_add(1, Ordering::Relaxed);
    }
}
