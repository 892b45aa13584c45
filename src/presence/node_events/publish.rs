//! Publishes the events about nodes: those of this gateway's streams, and those of gateways that
//! are gone.
//!
//! What the bus does not take is published again, under the same name, until it does: it is
//! appended once. What waits is bounded; where that is not enough, a report says that events were
//! given up, which streams get as a gap.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::join_all;
use prost::Message;
use tokio_util::sync::CancellationToken;
use trunkline_proto::kinds::{NODE_JOINED, NODE_LEFT};

use super::{
    JOINED, LEFT, NodeEvents, StreamId, changes::Draft, event, is_sound, joined, left, name,
    name_of,
};
use crate::{
    bus::{AppendError, Batch, RequestId, ShardId},
    hub::{Hub, event::shard_of_nodes},
    presence::{NodeEntry, Nodes},
    proto::v1::{self, NodeLeftReason},
};

/// The wait before what the bus did not take is published again.
const RETRY: Duration = Duration::from_millis(500);

/// Streams of gateways that are gone that are published together.
const MAX_LOST: usize = 128;

/// `node_joined` that have one name: a few hundred KiB of the largest.
const MAX_TOGETHER: usize = 32;

/// The time in which a gateway that stops publishes that its streams have left.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// The same for one attempt.
const ATTEMPT: Duration = Duration::from_secs(10);

/// What is published together.
enum Work {
    Own(Draft<Arc<NodeEntry>>),
    Lost(Vec<LostEvent>),
    Report(RequestId),
}

/// `node_left` of a stream of a gateway that is gone, under its name. No event: no gateway wrote
/// the stream's record.
struct LostEvent {
    id: StreamId,
    name: RequestId,
    event: Option<Bytes>,
}

/// Publishes until `stop`; then that all streams of this gateway have left. Cancels `published` at
/// its end.
pub async fn run(
    nodes: Arc<Nodes>,
    hub: Arc<Hub>,
    stop: CancellationToken,
    published: CancellationToken,
) {
    let _published = published.drop_guard();
    let Some(events) = &nodes.events else { return };
    let publisher = Publisher { nodes: &nodes, events, hub: &hub };
    stop.run_until_cancelled(publisher.publish_all()).await;
    nodes.close_all();
    let _ = tokio::time::timeout(LEAVE_TIMEOUT, publisher.publish_rest()).await;
}

struct Publisher<'a> {
    nodes: &'a Nodes,
    events: &'a NodeEvents,
    hub: &'a Hub,
}

impl Publisher<'_> {
    /// Publishes whatever there is, and waits for more.
    async fn publish_all(&self) {
        let mut failing = false;
        loop {
            let done = self.publish_next().await;
            match done {
                Some(Ok(())) if failing => {
                    failing = false;
                    tracing::info!("events about nodes are published again");
                }
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "events about nodes cannot be published");
                    }
                    tokio::time::sleep(RETRY).await;
                }
                None => {
                    let due = self.events.lost.lock().next_due();
                    let due = async {
                        match due {
                            Some(due) => tokio::time::sleep_until(due.into()).await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        () = self.events.wake.notified() => {}
                        () = due => {}
                    }
                }
            }
        }
    }

    /// Publishes what this gateway's streams still wait for.
    async fn publish_rest(&self) {
        while let Some(done) = self.publish_next().await {
            match done {
                Err(AppendError::Closed) => return,
                Err(_) => tokio::time::sleep(RETRY / 10).await,
                Ok(()) => {}
            }
        }
    }

    /// Publishes what comes next; none if there is nothing.
    async fn publish_next(&self) -> Option<Result<(), AppendError>> {
        let shard = shard_of_nodes(self.hub.bus().shards());
        let work = self.nodes.next_work(self.events)?;
        if self.events.catches_up.load(Ordering::Acquire) {
            // What others published of this gateway's streams decides what is to be published.
            if let Err(error) = self.hub.reach_tip(shard).await {
                return Some(Err(error));
            }
            self.events.followed().await;
            self.events.catches_up.store(false, Ordering::Release);
            return Some(Ok(()));
        }
        Some(match work {
            Work::Own(draft) => self.publish_own(shard, &draft).await,
            Work::Lost(streams) => self.publish_lost(shard, streams).await,
            Work::Report(id) => self.publish_report(shard, id).await,
        })
    }

    async fn publish_own(
        &self,
        shard: ShardId,
        draft: &Draft<Arc<NodeEntry>>,
    ) -> Result<(), AppendError> {
        let gateway_id = &self.nodes.gateway.about.gateway_id;
        let join = |change: &super::changes::Change<Arc<NodeEntry>>| {
            let name = name(JOINED, change.id, change.returns);
            (name, event(joined(&change.stream.node, gateway_id), name))
        };
        // One name for several of them: they are published together until it is known what became
        // of all.
        let joining = draft.joined.chunks(MAX_TOGETHER).map(|some| {
            let (names, events): (Vec<_>, Vec<_>) = some.iter().map(join).unzip();
            batch(events, name_of(&names.concat()))
        });
        let leaving = draft.left.iter().map(|(change, reason)| {
            let name = name(LEFT, change.id, change.returns);
            batch(vec![event(left(change.stream.node.clone(), gateway_id, *reason), name)], name)
        });
        // In the queue of their shard in this order.
        let joins = joining.len();
        let results = self.append_all(shard, joining.chain(leaving)).await;
        let (of_joined, of_left) = results.split_at(joins);
        let joined = of_joined.iter().all(Result::is_ok);
        let left: Vec<bool> = of_left.iter().map(Result::is_ok).collect();
        if joined {
            count(&self.events.counters.joined, draft.joined.len());
        }
        count(&self.events.counters.left, left.iter().filter(|left| **left).count());
        self.nodes.settle(joined, &left);
        results.into_iter().find_map(Result::err).map_or(Ok(()), Err)
    }

    async fn publish_lost(
        &self,
        shard: ShardId,
        streams: Vec<LostEvent>,
    ) -> Result<(), AppendError> {
        let (mut ids, mut batches) = (Vec::new(), Vec::new());
        for LostEvent { id, name, event } in streams {
            match event {
                Some(event) => {
                    ids.push(id);
                    batches.push(batch(vec![event], name));
                }
                None => self.events.lost.lock().left(id),
            }
        }
        let results = self.append_all(shard, batches.into_iter()).await;
        let done = ids.iter().zip(&results).filter(|(_, result)| result.is_ok());
        let done: Vec<StreamId> = done.map(|(id, _)| *id).collect();
        count(&self.events.counters.left, done.len());
        let mut lost = self.events.lost.lock();
        for id in done {
            lost.left(id);
        }
        drop(lost);
        results.into_iter().find_map(Result::err).map_or(Ok(()), Err)
    }

    async fn publish_report(&self, shard: ShardId, id: RequestId) -> Result<(), AppendError> {
        let kinds = vec![NODE_JOINED.into(), NODE_LEFT.into()];
        let report = v1::MissedEvents { missed_events: None, kinds };
        let batches = [batch(vec![event(report, id)], id)];
        for result in self.append_all(shard, batches.into_iter()).await {
            result?;
        }
        *self.events.report.lock() = None;
        count(&self.events.counters.given_up, 1);
        tracing::warn!("events about nodes were given up: too many waited");
        Ok(())
    }

    async fn append_all(
        &self,
        shard: ShardId,
        batches: impl Iterator<Item = Batch>,
    ) -> Vec<Result<(), AppendError>> {
        let appends = batches.map(async |batch| {
            let appended = self.hub.bus().append(shard, batch);
            match tokio::time::timeout(ATTEMPT, appended).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(AppendError::TooLarge { limit, actual })) => {
                    // It will not be smaller.
                    tracing::error!(limit, actual, "an event about nodes is too large for the bus");
                    Ok(())
                }
                Ok(Err(error)) => Err(error),
                Err(_) => Err(AppendError::OutcomeUnknown("no answer in time".into())),
            }
        });
        join_all(appends).await
    }
}

fn count(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

impl Nodes {
    /// What is to be published next. Those of others come first, since they end.
    fn next_work(&self, events: &NodeEvents) -> Option<Work> {
        let due = events.lost.lock().due(MAX_LOST, Instant::now());
        if !due.is_empty() {
            let streams = due.into_iter().map(|(id, lost)| {
                let node = v1::Node::decode(lost.node.clone()).ok().filter(is_sound);
                let name = name(LEFT, id, lost.returns);
                let left = |node| event(left(node, &lost.gateway_id, lost.reason), name);
                LostEvent { id, name, event: node.map(left) }
            });
            return Some(Work::Lost(streams.collect()));
        }
        if let Some(changes) = &mut self.local.lock().changes {
            if changes.take_gave_up() {
                events.give_up();
            }
            if let Some(draft) = changes.draft() {
                return Some(Work::Own(draft.clone()));
            }
        }
        events.report.lock().map(Work::Report)
    }

    /// Records what was published of this gateway's streams.
    fn settle(&self, joined: bool, left: &[bool]) {
        if let Some(changes) = &mut self.local.lock().changes {
            changes.settle(joined, left);
        }
    }

    /// The gateway stops: what is left of its streams leaves.
    fn close_all(&self) {
        let mut local = self.local.lock();
        let Some(changes) = &mut local.changes else { return };
        let gone = changes.close_all(NodeLeftReason::Drained);
        for number in gone {
            local.shards.remove(number);
        }
    }
}

fn batch(events: Vec<Bytes>, name: RequestId) -> Batch {
    let (request_id, runs, retain) = (Some(name), vec![], vec![]);
    Batch { events, request_id, runs, retain, trace: None }
}
