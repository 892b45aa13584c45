//! Repair of holes: the shard waits while the reader fills the hole from history.

use std::time::{Duration, Instant};

use super::{Done, Reader};
use crate::{
    bus::{
        Delivery, ShardId,
        redis::history::{self, Reading},
        unix_ms,
    },
    throttle::Throttle,
};

/// The wait before a repair that failed is tried again.
const REPAIR_RETRY: Duration = Duration::from_millis(200);

/// Throttles the log lines about readings that fail.
static HISTORY: Throttle = Throttle::repeated();

impl Reader {
    pub(super) fn read_history(&mut self, shard: ShardId, delay: Duration) {
        let topology = self.parts.topology.clone();
        let names = self.parts.names[shard.index()].clone();
        let after = self.shards[shard.index()].read_from();
        self.tasks.spawn(async move {
            tokio::time::sleep(delay).await;
            Done::Repair(shard, history::read(&topology, &names, shard, after, false).await)
        });
    }

    /// Takes what a reading brought.
    pub(super) fn repaired(&mut self, id: ShardId, reading: Result<Reading, String>) {
        match reading {
            Ok(reading) => {
                let mut memory = self.parts.memory[id.index()].lock();
                let now = Instant::now();
                let found = self.shards[id.index()].repaired(reading, &mut memory, now);
                drop(memory);
                if !found.deliveries.is_empty() {
                    self.parts.liveness[id.index()].repaired();
                }
                let events = found.deliveries.iter().map(|delivery| match delivery {
                    Delivery::Frame(frame) if !frame.is_copy() => frame.count,
                    _ => 0,
                });
                let events = events.sum();
                if events > 0 {
                    self.parts.incidents.lock().repaired(unix_ms(), id, events);
                }
                self.found(id, found);
            }
            Err(why) => {
                if let Some(left_out) = HISTORY.pass() {
                    tracing::warn!(shard = %id, why, left_out,
                        "history could not be read; trying again");
                }
                self.read_history(id, REPAIR_RETRY);
            }
        }
    }
}
