//! The events of one request, or of a part of a stream, by shard.

use futures_util::future::join_all;
use trunkline_proto::kinds;

use super::{messages::wire_position, traces::Publishing, validate::StampedEvent};
use crate::{
    bus::{AppendError, Appended, Batch, Position, RequestId, ShardId},
    errors::Error,
    lifecycle::Lifecycle,
    proto::v1,
};

/// Events that go to one shard together.
pub struct ShardBatch {
    /// The shard.
    pub shard: ShardId,
    /// The place of each event among those of all shards.
    pub places: Vec<usize>,
    /// The events.
    pub batch: Batch,
}

/// What became of events of several shards.
pub struct Outcome {
    /// The position of each event, by its place. That of one which was accepted before as a part of
    /// something else has epoch 0.
    pub positions: Vec<v1::Position>,
    /// Whether each was accepted, by its place.
    pub accepted: Vec<bool>,
    /// The reason why some were not.
    pub failed: Option<AppendError>,
}

impl ShardBatch {
    /// No events yet.
    pub fn new(shard: ShardId, request_id: Option<RequestId>) -> ShardBatch {
        let (events, runs, retain) = (vec![], vec![], vec![]);
        let batch = Batch { events, request_id, runs, retain, trace: None };
        ShardBatch { shard, places: vec![], batch }
    }

    /// Adds an event.
    pub fn add(&mut self, place: usize, event: StampedEvent, publishing: &Publishing) {
        let batch = &mut self.batch;
        self.places.push(place);
        if kinds::of(event.kind).is_some_and(|row| row.keeps_last) {
            batch.retain.push((batch.events.len(), event.kind));
        }
        publishing.trace(batch, event.traced);
        batch.events.push(event.bytes);
    }
}

/// Appends the batches of `count` events. Each is in the queue of its shard after the first poll.
pub async fn append(
    gateway: &Lifecycle,
    batches: Vec<ShardBatch>,
    count: usize,
) -> Result<Outcome, Error> {
    let bus = gateway.hub()?.bus();
    let appends = batches.into_iter().map(|ShardBatch { shard, places, batch }| async move {
        let result = tokio::select! {
            biased;
            result = bus.append(shard, batch) => result,
            () = gateway.stopping() => {
                let why = "the gateway stopped before the bus had answered";
                Err(AppendError::OutcomeUnknown(why.into()))
            }
        };
        (places, shard, result)
    });
    Ok(Outcome::of(count, join_all(appends).await))
}

impl Outcome {
    /// What became of `count` events, from the places and the result of each batch.
    pub fn of(
        count: usize,
        results: Vec<(Vec<usize>, ShardId, Result<Appended, AppendError>)>,
    ) -> Outcome {
        let mut outcome = Outcome {
            positions: vec![v1::Position::default(); count],
            accepted: vec![false; count],
            failed: None,
        };
        for (places, shard, result) in results {
            match result {
                Ok(appended) => {
                    for (nth, place) in (0..).zip(places) {
                        outcome.positions[place] = position(shard, appended, nth);
                        outcome.accepted[place] = true;
                    }
                }
                Err(error) => {
                    let known = outcome.failed.as_ref().map_or(0, weight);
                    if known <= weight(&error) {
                        outcome.failed = Some(error);
                    }
                }
            }
        }
        outcome
    }
}

/// Which of several errors is that of the whole: an unknown outcome of one part makes that of the
/// whole unknown, unless there is no use in another attempt.
fn weight(error: &AppendError) -> u8 {
    match error {
        AppendError::TakenOver => 2,
        AppendError::OutcomeUnknown(_) => 1,
        _ => 0,
    }
}

fn position(shard: ShardId, appended: Appended, nth: u64) -> v1::Position {
    if appended == Appended::UNKNOWN {
        return v1::Position { shard: shard.0.into(), epoch: 0, offset: 0 };
    }
    let offset = appended.first.plus(nth);
    wire_position(shard, Position { epoch: appended.epoch, offset })
}
