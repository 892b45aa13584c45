//! Supervision: deaf subscriptions, and the health of all shards.

use std::{mem, time::Instant};

use super::{Reader, ShardReader};
use crate::{
    bus::{Health, ShardId, redis::liveness::Received, unix_ms},
    throttle::Throttle,
};

static DEAF: Throttle = Throttle::repeated();

impl Reader {
    /// Records what arrived on the channel of a shard.
    pub(super) fn received(&self, shard: ShardId, received: Received) {
        let verified = self.parts.liveness[shard.index()].received(received);
        if verified && *self.parts.health.borrow() != Health::Ready {
            self.update_health();
        }
    }

    /// Renews deaf subscriptions, and updates the health.
    pub(super) fn supervise(&mut self) {
        let classic = self.parts.settings.cluster && !self.parts.settings.sharded;
        let mut deaf = None;
        for running in self.subscriptions.values() {
            let is_deaf = |shard: &&ShardId| {
                let arrivals = running.link.arrivals(**shard);
                arrivals.is_some_and(|seen| self.parts.liveness[shard.index()].is_deaf(&seen))
            };
            if let Some(shard) = running.shards.iter().find(is_deaf) {
                if let Some(left_out) = DEAF.pass() {
                    tracing::warn!(server = running.address, %shard, left_out,
                        "this subscription does not receive what Redis accepts: reconnecting");
                }
                running.shards.iter().for_each(|shard| {
                    self.parts.liveness[shard.index()].deaf(&running.address);
                });
                if classic {
                    deaf = Some(running.address.clone());
                } else {
                    running.link.renew();
                }
            }
        }
        if let Some(address) = deaf {
            // Any other server gets the messages too, unless it has lost sight of the cluster.
            self.deaf.insert(address.clone(), Instant::now());
            self.plan();
            // There may be no other.
            let same = self.subscriptions.values().filter(|running| running.address == address);
            same.for_each(|running| running.link.renew());
        } else if classic
            && self.subscriptions.values().all(|running| running.link.since().is_none())
        {
            self.plan();
        }
        self.update_health();
    }

    /// Sets the health: ready if every shard is verified. Records which are.
    fn update_health(&self) {
        let all_started = self.shards.iter().all(ShardReader::is_started);
        let paths: Vec<_> = self.parts.liveness.iter().map(|path| path.problem()).collect();
        {
            let now = unix_ms();
            let mut incidents = self.parts.incidents.lock();
            for (shard, problem) in paths.iter().enumerate() {
                incidents.path(now, ShardId::at_index(shard), problem.as_deref());
            }
        }
        let mut problems = paths.into_iter().enumerate().filter_map(|(shard, problem)| {
            let waits = || !self.shards[shard].is_started();
            let why = || waits().then(|| "its position is not known yet".to_owned());
            let why = problem.or_else(why)?;
            Some((ShardId::at_index(shard), format!("shard {shard}: {why}")))
        });
        let health = match problems.next() {
            None => Health::Ready,
            Some((first, why)) => {
                let mut unverified = vec![first];
                unverified.extend(problems.map(|(shard, _)| shard));
                if all_started && unverified.len() < self.shards.len() {
                    Health::Partial { unverified, why }
                } else {
                    Health::NotReady(why)
                }
            }
        };
        self.parts.health.send_if_modified(|before| {
            // The reason contains a time: if only that changed, watchers are not woken.
            let changed = match (&*before, &health) {
                (
                    Health::Partial { unverified: before, .. },
                    Health::Partial { unverified, .. },
                ) => before != unverified,
                (before, after) => mem::discriminant(before) != mem::discriminant(after),
            };
            *before = health;
            changed
        });
    }
}
