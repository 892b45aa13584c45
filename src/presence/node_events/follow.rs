//! Follows the events about nodes that any gateway publishes, as a stream does.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt;
use prost::Message;
use tokio_util::sync::CancellationToken;
use trunkline_proto::kinds::{NODE_JOINED, NODE_LEFT};

use super::{JOINED, NodeEvents, StreamId, changes::LeftSeen, id_of, name};
use crate::{
    bus::{GapReason, Health},
    hub::{
        Begin, Hub, ReadOptions,
        cursor::{Cursor, Item},
        event::shard_of_nodes,
        filter::Filter,
    },
    presence::Nodes,
    proto::v1::{self, event::Kind},
};

/// The wait before history that could not be read is read again.
const RETRY: Duration = Duration::from_millis(500);

/// The wait before it is looked whether history was read to its end: a page without such events is
/// no item of the cursor.
const LOOK: Duration = Duration::from_millis(50);

/// Follows the events until `stop`.
pub async fn run(nodes: Arc<Nodes>, hub: Arc<Hub>, stop: CancellationToken) {
    let Some(events) = &nodes.events else { return };
    let follow = async {
        let _ = hub.bus().health().wait_for(Health::serves).await;
        // What left lately may still be in the records of others.
        let mut begin = Begin::OldestOf(shard_of_nodes(hub.bus().shards()));
        loop {
            match open(&hub, &begin).await {
                Ok(mut cursor) => {
                    follow(&nodes, events, &hub, &mut cursor).await;
                    begin = Begin::After(cursor.to_had());
                }
                Err(error) => tracing::debug!(%error, "events about nodes cannot be read"),
            }
            tokio::time::sleep(RETRY).await;
        }
    };
    stop.run_until_cancelled(follow).await;
}

async fn open(hub: &Arc<Hub>, begin: &Begin) -> Result<Cursor, crate::bus::AppendError> {
    let kinds = vec![NODE_JOINED.into(), NODE_LEFT.into()];
    let named = v1::Filter { kinds, ..Default::default() };
    let filter = Filter::new(&named, "", &[], true);
    Ok(hub.open(filter, begin, ReadOptions::default()).await?.cursor)
}

/// Follows the events of a cursor, until history cannot be read.
async fn follow(nodes: &Nodes, events: &NodeEvents, hub: &Hub, cursor: &mut Cursor) {
    let shard = shard_of_nodes(hub.bus().shards());
    loop {
        // Who asked before everything was read that is there.
        let asked = events.following.asked.load(Ordering::Acquire);
        let ready = cursor.next().now_or_never();
        let item = if let Some(item) = ready {
            item
        } else {
            let reads_logs = cursor.reads_logs();
            if reads_logs {
                events.following.followed.send_replace(asked);
            }
            tokio::select! {
                item = cursor.next() => item,
                () = events.following.wake.notified() => continue,
                () = tokio::time::sleep(LOOK), if !reads_logs => continue,
            }
        };
        match item {
            Ok(Item::Events(batch)) => {
                batch.chunks.iter().for_each(|chunk| nodes.follow_events(events, chunk));
            }
            Ok(Item::Gap(of, missing)) if of == shard => {
                events.departed.lock().are_uncertain(Instant::now());
                if missing.reason != GapReason::NotPublished {
                    nodes.join_anew();
                }
            }
            Ok(Item::Gap(..)) => {}
            Err(error) => {
                tracing::debug!(%error, "history of events about nodes cannot be read");
                return;
            }
        }
    }
}

impl Nodes {
    /// Takes in events, encoded as in a batch.
    fn follow_events(&self, events: &NodeEvents, chunk: &Bytes) {
        // What does not decode was made by no gateway.
        let batch = v1::EventBatch::decode(chunk.clone()).unwrap_or_default();
        for event in batch.events {
            match event.kind {
                Some(Kind::NodeJoined(joined)) => {
                    let id = StreamId::of(&joined.subscription_id);
                    events.departed.lock().joined(id);
                    let is_of = |returns| event.event_id == id_of(name(JOINED, id, returns));
                    if let Some(changes) = &mut self.local.lock().changes {
                        changes.joined_seen(id, is_of);
                    }
                }
                Some(Kind::NodeLeft(left)) => {
                    let id = StreamId::of(&left.subscription_id);
                    events.departed.lock().left(id, Instant::now());
                    events.lost.lock().left(id);
                    self.left_seen(id);
                }
                _ => {}
            }
        }
    }

    /// A stream is said to have left: if it is one of this gateway's, that is the last word, or it
    /// joins anew.
    fn left_seen(&self, id: StreamId) {
        let mut local = self.local.lock();
        let Some(changes) = &mut local.changes else { return };
        match changes.left_seen(id) {
            LeftSeen::Nothing => return,
            LeftSeen::Gone(number) => local.shards.remove(number),
            LeftSeen::Open(number, returns) => local.shards.returns(number, returns),
        }
        drop(local);
        self.changed.notify_one();
    }

    /// Events are lost, and perhaps those of this gateway's streams: all of them join anew.
    fn join_anew(&self) {
        let mut local = self.local.lock();
        let Some(changes) = &mut local.changes else { return };
        for (number, returns) in changes.all_anew() {
            local.shards.returns(number, returns);
        }
        drop(local);
        self.changed.notify_one();
    }
}
