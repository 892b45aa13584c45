//! Repair of holes: the shard waits while the reader fills the hole from history.

use std::{collections::VecDeque, time::Duration};

use super::{Done, Reader};
use crate::{
    bus::{
        ShardId,
        redis::{
            envelope::Envelope,
            history::{self, Reading},
        },
    },
    throttle::Throttle,
};

/// Envelopes, and bytes of them, that may wait for a shard while it is repaired. Envelopes beyond
/// that are dropped, and read from history.
const MAX_PENDING: usize = 4096;
const MAX_PENDING_BYTES: usize = 8 * 1024 * 1024;

/// The wait before a repair that failed is tried again.
const REPAIR_RETRY: Duration = Duration::from_millis(200);

/// Throttles the log lines about readings that fail.
static HISTORY: Throttle = Throttle::repeated();

/// Envelopes received during a repair.
#[derive(Default)]
pub(super) struct Pending {
    envelopes: VecDeque<Envelope>,
    bytes: usize,
    /// True if an envelope was dropped: history is to be read once more.
    pub overflowed: bool,
}

impl Pending {
    pub(super) fn add(&mut self, envelope: Envelope) {
        let bytes = envelope.size();
        if self.envelopes.len() >= MAX_PENDING || self.bytes + bytes > MAX_PENDING_BYTES {
            self.overflowed = true;
            return;
        }
        self.bytes += bytes;
        self.envelopes.push_back(envelope);
    }
}

impl Reader {
    /// Reads history from the last position on, unless a repair is under way.
    pub(super) fn repair(&mut self, shard: ShardId) {
        let state = &mut self.shards[shard.index()];
        if state.pending.is_none() {
            state.pending = Some(Pending::default());
            self.read_history(shard, Duration::ZERO);
        }
    }

    fn read_history(&mut self, shard: ShardId, delay: Duration) {
        let topology = self.parts.topology.clone();
        let names = self.parts.names[shard.index()].clone();
        let after = self.shards[shard.index()].order.position();
        self.tasks.spawn(async move {
            tokio::time::sleep(delay).await;
            Done::Repair(shard, history::read(&topology, &names, shard, after, false).await)
        });
    }

    /// Delivers what a reading brought, then the envelopes that waited for it.
    pub(super) fn repaired(&mut self, id: ShardId, reading: Result<Reading, String>) {
        let shard = &mut self.shards[id.index()];
        let reading = match reading {
            Ok(reading) => reading,
            Err(why) => {
                if let Some(left_out) = HISTORY.pass() {
                    tracing::warn!(shard = %id, why, left_out,
                        "history could not be read; trying again");
                }
                self.read_history(id, REPAIR_RETRY);
                return;
            }
        };
        let mut deliveries = Vec::with_capacity(reading.entries.len());
        let forged = reading.forged();
        for entry in &reading.entries {
            shard.order.take_history(entry, &mut deliveries);
        }
        if !reading.more {
            shard.order.finish_history(reading.tip, &mut deliveries);
        }
        let pending = shard.pending.take().unwrap_or_default();
        if forged > 0 {
            self.count_forged(id, forged);
        }
        if !deliveries.is_empty() {
            self.parts.liveness[id.index()].repaired();
        }
        for delivery in deliveries {
            self.deliver(id, delivery);
        }
        if reading.more || pending.overflowed {
            self.shards[id.index()].pending = Some(Pending { overflowed: false, ..pending });
            self.read_history(id, Duration::ZERO);
            return;
        }
        // An envelope that still does not follow is newer than the reading, or was never accepted:
        // the next reading shows which.
        for envelope in pending.envelopes {
            self.offer(id, envelope);
        }
    }
}
