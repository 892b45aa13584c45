//! `Publish`: checks a request, groups its events by shard, and appends them to the bus.

use std::time::SystemTime;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::Instant;
use trunkline_proto::kinds;

use crate::{
    access::Caller,
    bus::{AppendError, Appended, Batch, Position, ShardId},
    errors::Error,
    hub::event::{EventView, Malformed, shard_of},
    observe::counters::KindCounts,
    proto::v1,
    rpc::{
        Context,
        messages::wire_position,
        request::PublishRequest,
        traces::Publishing,
        validate::{self, StampedEvent},
    },
    trace_context::IncomingTrace,
};

/// The events of a request that go to one shard.
struct ShardBatch {
    shard: ShardId,
    /// The index of each event in the request.
    indexes: Vec<usize>,
    batch: Batch,
}

impl Context {
    /// Publishes the events of a request. Returns once the bus has accepted all of them.
    pub async fn publish(
        &self,
        request: PublishRequest,
        caller: &Caller,
        mut trace: Option<IncomingTrace>,
    ) -> Result<v1::PublishResponse, Error> {
        self.gateway.refuse_if_draining()?;
        let now = SystemTime::now();
        let mut publishing = Publishing::begin(&self.tracer, &mut trace, now);
        let published = self.append(request, caller, trace.as_ref(), now, &mut publishing).await;
        publishing.end(&published);
        published
    }

    async fn append(
        &self,
        request: PublishRequest,
        caller: &Caller,
        trace: Option<&IncomingTrace>,
        now: SystemTime,
        publishing: &mut Publishing,
    ) -> Result<v1::PublishResponse, Error> {
        let begun = Instant::now();
        if let Some(grant) = &caller.grant {
            grant.check_publisher(&request.node_id)?;
        }
        let views = peek(&request.events, self.limits.max_events_per_request);
        if let Some(grant) = &caller.grant {
            grant.check_events(&views)?;
        }
        let publish = validate::publish(&request, &views, &self.limits, now, trace)?;
        publishing.join(&request.node_id, &publish);
        self.quotas.publish(caller.in_flight.quota(), publish.events.len())?;
        let hub = self.gateway.hub()?;
        let mut counts = KindCounts::default();
        publish.events.iter().for_each(|event| counts.add(event.kind));
        let count = publish.events.len();
        let shards = hub.bus().shards();
        let batches = by_shard(publish.events, publish.request_id, shards, publishing);
        let appends = batches.into_iter().map(|ShardBatch { shard, indexes, batch }| async move {
            (shard, indexes, hub.bus().append(shard, batch).await)
        });
        let positions = positions(count, join_all(appends).await)?;
        self.records.counters.published(&counts, begun.elapsed());
        Ok(v1::PublishResponse { positions })
    }
}

/// Peeks at each event, once: the rules, validation, routing and the stamp share what it finds.
/// Events past `max` are left out, since the request is invalid then.
fn peek(events: &[Bytes], max: usize) -> Vec<Result<EventView<'_>, Malformed>> {
    events.iter().take(max).map(|event| EventView::peek(event)).collect()
}

/// The batches of events for each shard, in the order of the request.
fn by_shard(
    events: Vec<StampedEvent>,
    request_id: Option<[u8; 16]>,
    shards: u16,
    publishing: &Publishing,
) -> Vec<ShardBatch> {
    let mut batches: Vec<ShardBatch> = Vec::new();
    let mut batch_of: Vec<Option<usize>> = vec![None; usize::from(shards)];
    for (index, event) in events.into_iter().enumerate() {
        let shard = shard_of(event.key_hash, shards);
        let at = *batch_of[shard.index()].get_or_insert_with(|| {
            let batch = Batch { events: vec![], request_id, retain: vec![], trace: None };
            batches.push(ShardBatch { shard, indexes: vec![], batch });
            batches.len() - 1
        });
        let ShardBatch { indexes, batch, .. } = &mut batches[at];
        indexes.push(index);
        if kinds::of(event.kind).is_some_and(|row| row.keeps_last) {
            batch.retain.push((batch.events.len(), event.kind));
        }
        publishing.trace(batch, event.traced);
        batch.events.push(event.bytes);
    }
    batches
}

/// The position of each event of a request, from the results of its appends.
fn positions(
    count: usize,
    results: Vec<(ShardId, Vec<usize>, Result<Appended, AppendError>)>,
) -> Result<Vec<v1::Position>, Error> {
    let mut positions = vec![v1::Position::default(); count];
    let (mut accepted, mut failed) = (0, None);
    for (shard, indexes, result) in results {
        match result {
            Ok(Appended { epoch, first }) => {
                accepted += 1;
                for (nth, index) in indexes.into_iter().enumerate() {
                    let position = Position { epoch, offset: first.plus(nth as u64) };
                    positions[index] = wire_position(shard, position);
                }
            }
            // An unknown outcome of one part makes that of the request unknown.
            Err(error) if !matches!(failed, Some(AppendError::OutcomeUnknown(_))) => {
                failed = Some(error);
            }
            Err(_) => {}
        }
    }
    match failed {
        None => Ok(positions),
        Some(AppendError::Unavailable(why)) if accepted > 0 => {
            Err(Error::OutcomeUnknown(format!("part of the request was accepted; {why}")))
        }
        Some(error) => Err(error.into()),
    }
}
