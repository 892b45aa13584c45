//! `Publish`: checks a request, groups its events by shard, and appends them to the bus.

use std::time::SystemTime;

use bytes::Bytes;
use ring::digest;
use tokio::time::Instant;

use crate::{
    access::{Caller, Grant},
    bus::Bus,
    errors::{AcceptedEvents, Error},
    hub::event::{EventView, Malformed, shard_of},
    observe::counters::KindCounts,
    presence::delivery::Wait,
    proto::v1,
    rpc::{
        Context,
        request::PublishRequest,
        shard_batch::{self, Outcome, ShardBatch},
        traces::Publishing,
        validate::{self, StampedEvent},
    },
    trace_context::IncomingTrace,
};

/// Encoded bytes of the events of one batch, as they came; one event may have more. Redis takes at
/// least 1 MiB at once, whatever it is set to. All gateways cut a request at the same events, so
/// that a retry on another one finds what was accepted.
pub(super) const BATCH_BYTES: usize = 512 << 10;

impl Context {
    /// Publishes the events of a request. Returns once the bus has accepted all of them.
    pub async fn publish(
        &self,
        request: &PublishRequest,
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
        request: &PublishRequest,
        caller: &Caller,
        trace: Option<&IncomingTrace>,
        now: SystemTime,
        publishing: &mut Publishing,
    ) -> Result<v1::PublishResponse, Error> {
        let begun = Instant::now();
        if let Some(grant) = &caller.grant {
            grant.check_publisher(&request.node_id)?;
        }
        // Before anything looks at the events: a request that is refused costs its rate as well.
        self.quotas.publish(caller.in_flight.quota(), request.events.len())?;
        let views = peek(&request.events, self.limits.max_events_per_request);
        if let Some(grant) = &caller.grant {
            grant.check_events(&views)?;
        }
        let begin_wait = |acknowledged, timeout| self.nodes.begin_wait(acknowledged, timeout);
        let publish = validate::publish(request, &views, &self.limits, now, trace, begin_wait)?;
        publishing.join(&request.node_id, &publish);
        let hub = self.gateway.hub()?;
        let mut counts = KindCounts::default();
        publish.events.iter().for_each(|event| counts.add(event.kind));
        let count = publish.events.len();
        let shards = hub.bus().shards();
        let request_id = publish.request_id;
        let request_id =
            request_id.map(|id| bound_id(b"trunkline request", id, &request.node_id, caller));
        let sizes: Vec<usize> = request.events.iter().map(Bytes::len).collect();
        let batches = by_shard(publish.events, &sizes, request_id, shards, publishing);
        check_sizes(&**hub.bus(), &batches)?;
        let outcome = shard_batch::append(&self.gateway, batches, count).await?;
        let positions = positions(outcome)?;
        self.records.counters.published(&counts, begun.elapsed());
        let delivery = match publish.wait {
            None => None,
            Some(wait) => Some(self.delivered(wait, caller).await),
        };
        Ok(v1::PublishResponse { positions, delivery })
    }
}

impl Context {
    /// Waits until nodes have events that were accepted, or until the gateway stops. Names none to
    /// a caller that may not list them.
    pub(super) async fn delivered(&self, wait: Wait, caller: &Caller) -> v1::DeliveryReport {
        let others = self.gateway.hub().is_ok_and(|hub| hub.bus().members().is_some());
        let mut report = tokio::select! {
            report = wait.report(others) => report,
            () = self.gateway.stopping() => v1::DeliveryReport {
                silent_gateway_ids: vec![self.gateway.about.gateway_id.clone()],
                ..Default::default()
            },
        };
        if caller.grant.as_ref().is_some_and(|grant| !grant.may_list_nodes()) {
            report.pending_node_ids.clear();
        }
        report
    }
}

/// Peeks at each event, once: the rules, validation, routing and the stamp share what it finds.
/// Events past `max` are left out, since the request is invalid then.
fn peek(events: &[Bytes], max: usize) -> Vec<Result<EventView<'_>, Malformed>> {
    events.iter().take(max).map(|event| EventView::peek(event)).collect()
}

/// The id under which a request, or a producer, is recorded: bound to its node and its identity, so
/// that nobody else's request is taken for a retry of this one. A retry may come from another
/// address, so without authentication the node id alone stands for the identity.
///
/// All gateways of a deployment, of all versions, must agree here.
pub(super) fn bound_id(
    domain: &'static [u8],
    id: [u8; 16],
    node_id: &str,
    caller: &Caller,
) -> [u8; 16] {
    let identity = caller.grant.as_ref().map(Grant::identity);
    let mut digest = digest::Context::new(&digest::SHA256);
    digest.update(domain);
    // Each text with its length before it, so that no two pairs of them are the same bytes.
    for text in [identity, Some(node_id)] {
        digest.update(&[u8::from(text.is_some())]);
        let text = text.unwrap_or_default();
        digest.update(&(text.len() as u64).to_be_bytes());
        digest.update(text.as_bytes());
    }
    digest.update(&id);
    let mut bound = [0; 16];
    bound.copy_from_slice(&digest.finish().as_ref()[..16]);
    bound
}

/// The batches of events for each shard, in the order of the request. `sizes` has the bytes of each
/// event as it came.
fn by_shard(
    events: Vec<StampedEvent>,
    sizes: &[usize],
    request_id: Option<[u8; 16]>,
    shards: u16,
    publishing: &Publishing,
) -> Vec<ShardBatch> {
    let mut batches: Vec<ShardBatch> = Vec::new();
    // The last batch of each shard, its number among those of the shard, and its bytes.
    let mut last: Vec<Option<(usize, u64, usize)>> = vec![None; usize::from(shards)];
    for (index, event) in events.into_iter().enumerate() {
        let shard = shard_of(event.key_hash, shards);
        let size = sizes.get(index).copied().unwrap_or(event.bytes.len());
        let (at, number, bytes) = match last[shard.index()] {
            Some((at, number, bytes)) if bytes + size <= BATCH_BYTES => (at, number, bytes),
            before => {
                let number = before.map_or(0, |(_, number, _)| number + 1);
                let request_id = request_id.map(|id| id_of_part(id, number));
                batches.push(ShardBatch::new(shard, request_id));
                (batches.len() - 1, number, 0)
            }
        };
        last[shard.index()] = Some((at, number, bytes + size));
        batches[at].add(index, event, publishing);
    }
    batches
}

/// The id of a part of a request: that of the request for the first one.
fn id_of_part(mut id: [u8; 16], number: u64) -> [u8; 16] {
    // Spread over all bits: the ids of a client may differ in few.
    let bits = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    id[8..].iter_mut().zip(bits).for_each(|(byte, bits)| *byte ^= bits);
    id
}

/// Refuses a request with an event that the bus cannot take, before anything of it is appended.
fn check_sizes(bus: &dyn Bus, batches: &[ShardBatch]) -> Result<(), Error> {
    for ShardBatch { shard, places, batch } in batches {
        let Some(limit) = bus.max_event_bytes(*shard) else { continue };
        for (index, event) in places.iter().zip(&batch.events) {
            if event.len() > limit {
                let (what, actual) = (format!("events[{index}]"), event.len());
                return Err(Error::PayloadTooLarge { what, limit, actual });
            }
        }
    }
    Ok(())
}

/// The position of each event of a request. The error says which events were accepted.
fn positions(outcome: Outcome) -> Result<Vec<v1::Position>, Error> {
    let Outcome { positions, accepted, failed } = outcome;
    match failed {
        None => Ok(positions),
        Some(error) if accepted.contains(&true) => Err(Error::PartlyAccepted {
            accepted: AcceptedEvents(accepted),
            cause: Box::new(error.into()),
        }),
        Some(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::{AppendError, Appended, Epoch, Offset, ShardId};

    /// The answer to a request with two events for each result, which alternate.
    fn answer(results: Vec<Result<Appended, AppendError>>) -> Result<Vec<v1::Position>, Error> {
        let (count, shards) = (2 * results.len(), results.len());
        let parts = results.into_iter().zip(0..).map(|(result, shard)| {
            (vec![usize::from(shard), usize::from(shard) + shards], ShardId(shard), result)
        });
        positions(Outcome::of(count, parts.collect()))
    }

    fn appended(first: u64) -> Appended {
        Appended { epoch: Epoch(7), first: Offset(first) }
    }

    #[test]
    fn a_request_of_which_all_parts_were_accepted_is_answered_with_positions() {
        let positions = answer(vec![Ok(appended(1)), Ok(appended(5))]).unwrap();
        let position = |shard, offset| v1::Position { shard, epoch: 7, offset };
        assert_eq!(positions, [position(0, 1), position(1, 5), position(0, 2), position(1, 6)]);
    }

    #[test]
    fn the_error_says_what_was_accepted_whatever_stopped_the_rest() {
        let why = || String::from("why");
        for (error, reason) in [
            (AppendError::Unavailable(why()), "PARTLY_ACCEPTED"),
            (AppendError::Closed, "PARTLY_ACCEPTED"),
            (AppendError::OutcomeUnknown(why()), "OUTCOME_UNKNOWN"),
        ] {
            let results = vec![Err(error), Ok(appended(1)), Err(AppendError::Closed)];
            let error = answer(results).unwrap_err();
            assert_eq!(error.reason(), reason);
            let Error::PartlyAccepted { accepted, .. } = error else { panic!("{error:?}") };
            assert_eq!(accepted.0, [false, true, false, false, true, false]);
        }
    }

    #[test]
    fn the_parts_of_a_request_have_ids_of_their_own() {
        let ids: Vec<_> = (0..1000).map(|number| id_of_part([7; 16], number)).collect();
        assert_eq!(ids[0], [7; 16]);
        let different: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(different.len(), ids.len());
    }

    #[test]
    fn a_request_of_which_nothing_was_accepted_has_the_error_of_the_bus() {
        let refused = || Err(AppendError::Unavailable("why".into()));
        assert_eq!(answer(vec![refused(), refused()]).unwrap_err().reason(), "BUS_UNAVAILABLE");
        let closed = || Err(AppendError::Closed);
        assert_eq!(answer(vec![closed(), closed()]).unwrap_err().reason(), "DRAINING");
        let unknown = Err(AppendError::OutcomeUnknown("why".into()));
        assert_eq!(answer(vec![unknown, closed()]).unwrap_err().reason(), "OUTCOME_UNKNOWN");
    }
}
