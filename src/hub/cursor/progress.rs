//! The backlog of a cursor, as observers see it.

use std::sync::Arc;

use crate::hub::{Hub, router::Interest, waits::StreamKey};

/// How far a cursor is behind, for observers.
#[derive(Clone)]
pub struct Progress {
    pub(super) hub: Arc<Hub>,
    pub(super) interest: Arc<Interest>,
}

impl Progress {
    /// Names the stream among those that waits note.
    pub fn key(&self) -> StreamKey {
        StreamKey::of(&self.interest)
    }

    /// The number of events in the logs from the first that may concern the subscriber and was not
    /// offered to it yet.
    pub fn behind(&self) -> u64 {
        let shards = self.hub.logs.iter().enumerate();
        shards.map(|(shard, log)| log.events_from(self.interest.first_unread(shard))).sum()
    }

    /// The age of the oldest of these events at `now_ms`, in milliseconds; 0 if there are none.
    pub fn lag_ms(&self, now_ms: u64) -> u64 {
        let shards = self.hub.logs.iter().enumerate();
        let oldest =
            shards.filter_map(|(shard, log)| log.made_from(self.interest.first_unread(shard)));
        oldest.min().map_or(0, |oldest| now_ms.saturating_sub(oldest))
    }
}
