//! The events of a stream on their way: gathered by shard, and appended.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::SystemTime,
};

use bytes::BytesMut;
use tokio::{task::coop::unconstrained, time::Instant};

use super::requests::PublishEvents;
use crate::{
    access::Caller,
    bus::{Batch, MAX_SEQUENCE, Numbering, PublisherId, ShardId, StreamNumber},
    errors::Error,
    hub::event::{EventView, shard_of},
    observe::counters::KindCounts,
    presence::delivery::Wait,
    proto::v1,
    rpc::{
        Context,
        shard_batch::{self, Outcome, ShardBatch},
        traces::Publishing,
        validate::{self, EventIds, Origin, StampedEvent},
    },
};

/// Events and bytes of one group: about a frame.
const GROUP_EVENTS: usize = 2000;
const GROUP_BYTES: usize = 256 << 10;

/// The sequences of a stream.
pub struct Numbers {
    publisher: Option<PublisherId>,
    /// The stream's number on the bus; 0 if it has none.
    stream: StreamNumber,
    shards: u16,
    ids: EventIds,
    /// The sequence of the next event; none before the first one.
    next: Option<u64>,
    /// For the bus; none before the first event, and where the producer has no id.
    numbering: Option<Numbering>,
    /// The room in which events are decoded.
    event: v1::Event,
}

/// Events that have arrived and are not under way.
#[derive(Default)]
pub struct Gathered {
    /// Events of the requests, and their bytes.
    pub events: usize,
    /// Bytes of the requests.
    pub bytes: usize,
    last: u64,
    /// Places are those among the events that were not rejected.
    batches: Vec<ShardBatch>,
    counts: KindCounts,
    /// Accepted events, without those that were rejected.
    stamped: usize,
    /// The sequences of the events that are waited for, and their waits.
    pub waits: Vec<(u64, Wait)>,
}

/// Events under way, of all shards.
pub struct Group {
    /// The last sequence.
    pub last: u64,
    /// Events, those that were rejected too.
    pub events: usize,
    /// Bytes of the requests.
    pub bytes: usize,
    /// Events by kind.
    pub counts: KindCounts,
    /// The time at which it was sent.
    pub begun: Instant,
    /// The sequences of the events that are waited for, and their waits.
    pub waits: Vec<(u64, Wait)>,
    answer: Pin<Box<dyn Future<Output = Answer> + Send>>,
    /// An answer that came before it was asked for.
    early: Option<Answer>,
}

type Answer = Result<Vec<v1::Position>, Error>;

impl Numbers {
    /// The numbers of a stream that has none yet.
    pub fn new(publisher: Option<PublisherId>, shards: u16) -> Numbers {
        let (ids, event) = (EventIds::of(publisher), v1::Event::default());
        Numbers { publisher, stream: 0, shards, ids, next: None, numbering: None, event }
    }

    /// The bus has numbered the stream, before its first events.
    pub fn numbered(&mut self, stream: StreamNumber) {
        self.stream = stream;
    }

    /// Checks that a request follows the one before.
    pub fn check(&mut self, request: &PublishEvents, max: usize) -> Result<(), Error> {
        let PublishEvents { first_sequence: first, events, .. } = request;
        if events.is_empty() || events.len() > max {
            let why = format!("has {}, must have 1 to {max}", events.len());
            return Err(Error::field("events", why));
        }
        if let Some(next) = self.next.filter(|next| next != first) {
            let why = format!("is {first}, must be {next}: sequences follow one another");
            return Err(Error::field("first_sequence", why));
        }
        let next = first.saturating_add(events.len() as u64);
        if *first == 0 || next > MAX_SEQUENCE {
            let why = format!("is {first}, must be from 1, and all sequences below 2^53");
            return Err(Error::field("first_sequence", why));
        }
        if self.next.is_none() {
            let publisher = self.publisher;
            self.numbering = publisher
                .map(|publisher| Numbering::new(publisher, self.stream, *first, self.shards));
        }
        self.next = Some(next);
        Ok(())
    }

    /// Adds the events of a request to those that are gathered. Returns those that are rejected.
    pub fn gather(
        &mut self,
        request: &PublishEvents,
        node_id: &str,
        context: &Context,
        caller: &Caller,
        gathered: &mut Gathered,
    ) -> Vec<(u64, Error)> {
        let mut rejected = Vec::new();
        let origin = Origin { node_id, now: SystemTime::now(), trace: None };
        let publishing = Publishing::of_stream(&context.tracer);
        let mut buffer = BytesMut::new();
        let waits = || validate::wait(request.wait_for, request.wait_timeout.as_ref());
        for (sequence, (index, bytes)) in
            (request.first_sequence..).zip(request.events.iter().enumerate())
        {
            let view = [EventView::peek(bytes)];
            let allowed = caller.grant.as_ref().map_or(Ok(()), |grant| grant.check_events(&view));
            let ids = &self.ids;
            let number = usize::try_from(sequence).unwrap_or(usize::MAX);
            let wait = allowed.and_then(|()| waits());
            let wait = wait.map(|wait| {
                wait.map(|(acknowledged, time)| context.nodes.begin_wait(acknowledged, time))
            });
            let stamped = wait.and_then(|wait| {
                let waiter = wait.as_ref().map(|wait| wait.stamp(0, 1));
                let event = validate::stream_event(
                    (index, bytes),
                    &view[0],
                    &mut self.event,
                    &context.limits,
                    (&origin, waiter),
                    &mut buffer,
                    || ids.of_event(number),
                )?;
                gathered.waits.extend(wait.map(|wait| (sequence, wait)));
                Ok(event)
            });
            let stamped = stamped.and_then(|event| fits(context, event, index, self.shards));
            gathered.last = sequence;
            match stamped {
                Ok((shard, event)) => {
                    let batch = gathered.add(shard, event, &publishing);
                    if let Some(numbering) = &mut self.numbering {
                        numbering.add(shard, sequence, &mut batch.runs);
                    }
                }
                Err(error) => {
                    if let Some(numbering) = &mut self.numbering {
                        numbering.reject(sequence);
                    }
                    rejected.push((sequence, error));
                }
            }
        }
        rejected
    }
}

/// The shard of an event, if its bus takes one so large.
fn fits(
    context: &Context,
    event: StampedEvent,
    index: usize,
    shards: u16,
) -> Result<(ShardId, StampedEvent), Error> {
    let shard = shard_of(event.key_hash, shards);
    let limit = context.gateway.hub()?.bus().max_event_bytes(shard);
    match limit.filter(|limit| event.bytes.len() > *limit) {
        None => Ok((shard, event)),
        Some(limit) => Err(Error::PayloadTooLarge {
            what: format!("events[{index}]"),
            limit,
            actual: event.bytes.len(),
        }),
    }
}

impl Gathered {
    /// True if no more is to be added.
    pub fn is_full(&self) -> bool {
        self.events >= GROUP_EVENTS || self.bytes >= GROUP_BYTES
    }

    fn add(&mut self, shard: ShardId, event: StampedEvent, publishing: &Publishing) -> &mut Batch {
        let known = self.batches.iter().position(|batch| batch.shard == shard);
        let index = known.unwrap_or(self.batches.len());
        if known.is_none() {
            self.batches.push(ShardBatch::new(shard, None));
        }
        self.counts.add(event.kind);
        let batch = &mut self.batches[index];
        batch.add(self.stamped, event, publishing);
        self.stamped += 1;
        &mut batch.batch
    }

    /// Sends it: it is in the queue of each shard before this returns, so that groups keep their
    /// order. For that it is polled without the budget of the task, which may be used up.
    pub fn send(self, context: Arc<Context>, cx: &mut TaskContext<'_>) -> Group {
        let Gathered { events, bytes, last, batches, counts, stamped, waits } = self;
        let mut group = Group {
            last,
            events,
            bytes,
            counts,
            begun: Instant::now(),
            waits,
            answer: Box::pin(unconstrained(append(context, batches, stamped))),
            early: None,
        };
        if let Poll::Ready(answer) = group.answer.as_mut().poll(cx) {
            group.early = Some(answer);
        }
        group
    }
}

impl Group {
    /// The answer of the bus: the position of each event that was not rejected.
    pub fn poll(&mut self, cx: &mut TaskContext<'_>) -> Poll<Answer> {
        match self.early.take() {
            Some(answer) => Poll::Ready(answer),
            None => self.answer.as_mut().poll(cx),
        }
    }
}

async fn append(context: Arc<Context>, batches: Vec<ShardBatch>, stamped: usize) -> Answer {
    let Outcome { positions, failed, .. } =
        shard_batch::append(&context.gateway, batches, stamped).await?;
    failed.map_or(Ok(positions), |error| Err(error.into()))
}
