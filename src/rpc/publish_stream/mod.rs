//! `PublishStream`: events go up, cumulative acknowledgements come down.
//!
//! The requests that are there together become one batch for each shard, so a stream of single
//! events costs the bus no more than a request of many. A few batches may be under way; what
//! arrives meanwhile waits here. While the window is full nothing more is read: the connection
//! holds the producer back.

mod batches;
mod requests;

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use futures_util::{
    Stream, StreamExt,
    future::{BoxFuture, FutureExt},
    stream::FuturesUnordered,
};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tonic::Status;

use self::{
    batches::{Gathered, Group, Numbers},
    requests::{Content, PublishEvents, Request},
};
use crate::{
    access::{Caller, quota::StreamPermit},
    bus::{PublisherId, SharedBus, StreamNumber},
    errors::{CredentialError, Error},
    hub::producers::Claim,
    leave::{ConnectionLeave, Leave, LeaveReason, StreamOnConnection},
    lifecycle::{Drain, Lifecycle},
    observe::counters::Method,
    proto::v1::{self, publish_stream_response::Response},
    rpc::{
        Context, encoded::EncodedMessage, messages, publish::bound_id, request::Refusal,
        stream::Revoked, validate,
    },
};

pub use self::requests::Requests;

/// Events, and bytes of requests, that one stream may have without an answer.
const WINDOW_EVENTS: usize = 16_384;
const WINDOW_BYTES: usize = 8 << 20;

/// Events that nodes are waited for. With more, nothing is read until some have come.
const MAX_WAITS: usize = 1024;

/// Groups under way at a time. What arrives meanwhile makes the next one larger.
const MAX_GROUPS: usize = 4;

/// Bytes of requests that are taken off the connection while they cannot be taken into a group: a
/// window of small ones. Larger ones can wait in the connection.
const READ_ON_BYTES: usize = 2 << 20;

/// The time that the events of a stream wait for its number. It goes on without one: the shard that
/// gives it may be away while others are not.
const NUMBER_TIMEOUT: Duration = Duration::from_secs(1);

/// A stream of one producer.
pub struct PublishStream {
    context: Arc<Context>,
    caller: Caller,
    requests: Requests,
    /// Set by the first request.
    open: Option<Open>,
    /// Requests that came and are not under way yet.
    gathered: Gathered,
    /// A request that waits for the rate of its identity, and the events that are still to be paid.
    held: Option<(PublishEvents, usize)>,
    groups: VecDeque<Group>,
    /// The waits for nodes of events that were accepted, with the sequences of these.
    waits: FuturesUnordered<BoxFuture<'static, v1::DeliveryReport>>,
    window_bytes: usize,
    /// Responses to be sent.
    outbox: VecDeque<Response>,
    /// True while requests are read.
    reads: bool,
    /// The end of the stream, once everything under way is answered: none is a success.
    end: Option<Error>,
    ended: bool,
    revoked: Option<Revoked>,
    /// Ready when the gateway drains, or the connection is asked to leave; none after that.
    asked: Option<BoxFuture<'static, Option<(Instant, Leave)>>>,
    leave: Option<(Instant, Leave)>,
    timer: Pin<Box<Sleep>>,
}

/// What the first request said.
struct Open {
    node_id: String,
    positions: bool,
    numbers: Numbers,
    /// Where the producer has an id: its stream's number on the bus, until it is there.
    unnumbered: Option<BoxFuture<'static, Option<StreamNumber>>>,
    producer: Option<Claim>,
    taken_over: Option<Revoked>,
    on_connection: StreamOnConnection,
    _permit: StreamPermit,
    _counted: Counted,
}

/// Counts an open stream.
struct Counted(Arc<Context>);

impl Counted {
    fn new(context: &Arc<Context>) -> Counted {
        context.records.counters.publish_stream_opened();
        Counted(context.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.records.counters.publish_stream_ended();
    }
}

impl PublishStream {
    /// A stream over its requests.
    pub fn new(context: Arc<Context>, caller: Caller, requests: Requests) -> PublishStream {
        let limits = &context.limits;
        let leave = context.leave_at_age();
        let revoked = caller.grant.as_ref();
        PublishStream {
            window_bytes: WINDOW_BYTES.min(limits.max_pending_bytes_per_identity / 2),
            revoked: revoked.map(|grant| -> Revoked { Box::pin(grant.clone().revoked()) }),
            asked: Some(Box::pin(asked(context.gateway.clone(), caller.peer.leaving.clone()))),
            timer: Box::pin(sleep_until(Instant::now())),
            context,
            caller,
            requests,
            open: None,
            gathered: Gathered::default(),
            held: None,
            groups: VecDeque::new(),
            waits: FuturesUnordered::new(),
            outbox: VecDeque::new(),
            reads: true,
            end: None,
            ended: false,
            leave,
        }
    }
}

/// Returns when the stream is asked to leave, once that is known: by a drain, or with its
/// connection.
async fn asked(
    gateway: Arc<Lifecycle>,
    connection: Arc<ConnectionLeave>,
) -> Option<(Instant, Leave)> {
    let mut drain = gateway.drain();
    tokio::select! {
        drain = drain.wait_for(Option::is_some) => {
            let drain: Drain = (*drain.ok()?)?;
            Some((drain.leave_at(), gateway.stopping_by(drain)))
        }
        () = connection.all_asked().cancelled() => Some((Instant::now(), connection.asked()?)),
    }
}

/// Has the stream of a publisher numbered.
async fn number(bus: SharedBus, publisher: PublisherId) -> Option<StreamNumber> {
    timeout(NUMBER_TIMEOUT, bus.number_stream(publisher)).await.ok().flatten()
}

impl Stream for PublishStream {
    type Item = Result<EncodedMessage, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(response) = this.outbox.pop_front() {
                let response = v1::PublishStreamResponse { response: Some(response) };
                return Poll::Ready(Some(Ok(EncodedMessage::message(&response))));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            if let Err(status) = this.advance(cx) {
                this.finish();
                return Poll::Ready(Some(Err(status)));
            }
            if !this.outbox.is_empty() {
                continue;
            }
            let waits = this.end.is_none() && !this.waits.is_empty();
            if !this.reads && this.groups.is_empty() && !waits {
                this.finish();
                return Poll::Ready(this.end.take().map(|error| Err(this.failed(error))));
            }
            return Poll::Pending;
        }
    }
}

impl PublishStream {
    /// Takes answers, and then requests. The error ends the stream.
    fn advance(&mut self, cx: &mut TaskContext<'_>) -> Result<(), Status> {
        if let Some(error) = self.interrupted(cx) {
            return Err(self.failed(error));
        }
        self.answered(cx);
        if !self.outbox.is_empty() {
            return Ok(());
        }
        self.leave_if_due(cx);
        while self.reads && self.groups.len() < MAX_GROUPS && self.may_read() {
            let read = self.read(cx)?;
            if let Some(group) = self.next_group(cx) {
                self.groups.push_back(group);
            } else if read.is_pending() {
                break;
            }
            if !self.outbox.is_empty() {
                break;
            }
        }
        let waits = self.open.as_ref().is_some_and(|open| open.unnumbered.is_some());
        if self.groups.len() == MAX_GROUPS || self.held.is_some() || waits {
            self.read_on(cx);
        }
        // Some are answered at once.
        self.answered(cx);
        while let Poll::Ready(Some(report)) = self.waits.poll_next_unpin(cx) {
            self.outbox.push_back(Response::Delivery(report));
        }
        Ok(())
    }

    /// The reason why the stream may not go on.
    fn interrupted(&mut self, cx: &mut TaskContext<'_>) -> Option<Error> {
        let is_over = |future: &mut Option<Revoked>, cx: &mut TaskContext<'_>| {
            let over = future.as_mut().is_some_and(|future| future.as_mut().poll(cx).is_ready());
            if over {
                *future = None;
            }
            over
        };
        if is_over(&mut self.revoked, cx) {
            return Some(Error::Unauthenticated(CredentialError::Revoked));
        }
        let open = self.open.as_mut()?;
        is_over(&mut open.taken_over, cx).then_some(Error::TakenOver)
    }

    /// Takes the answers of the bus, in order. After one that failed nothing more is accepted:
    /// what is behind it is given up, and comes again on another stream.
    fn answered(&mut self, cx: &mut TaskContext<'_>) {
        let Some(open) = &self.open else { return };
        let (mut sequence, mut positions) = (None, Vec::new());
        while let Some(group) = self.groups.front_mut() {
            let Poll::Ready(answer) = group.poll(cx) else { break };
            let Some(group) = self.groups.pop_front() else { break };
            self.caller.in_flight.release(group.bytes);
            match answer {
                Ok(theirs) => {
                    for (sequence, wait) in group.waits {
                        let (context, caller) = (self.context.clone(), self.caller.clone());
                        self.waits.push(Box::pin(async move {
                            let report = context.delivered(wait, &caller).await;
                            v1::DeliveryReport { sequence, ..report }
                        }));
                    }
                    sequence = Some(group.last);
                    self.context.records.counters.published(&group.counts, group.begun.elapsed());
                    if open.positions {
                        positions.extend(theirs);
                    }
                }
                Err(error) => {
                    self.groups.clear();
                    self.reads = false;
                    self.end = Some(error);
                }
            }
        }
        let Some(sequence) = sequence else { return };
        if let Some(producer) = &open.producer {
            producer.accepted(sequence);
        }
        self.outbox.push_back(Response::Accepted(v1::PublishAccepted { sequence, positions }));
    }

    /// Stops reading once this stream is asked to leave.
    fn leave_if_due(&mut self, cx: &mut TaskContext<'_>) {
        if let Some(asked) = &mut self.asked
            && let Poll::Ready(asked) = asked.as_mut().poll(cx)
        {
            self.asked = None;
            // What comes first counts: this, or the limit of its age.
            let both = [self.leave, asked].into_iter().flatten();
            self.leave = both.min_by_key(|(at, _)| *at);
        }
        let Some((at, leave)) = self.leave.filter(|_| self.reads) else { return };
        if at > Instant::now() {
            if self.timer.deadline() != at {
                self.timer.as_mut().reset(at);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return;
            }
        }
        if let Some(open) = &mut self.open
            && leave.reason != LeaveReason::Stopping
        {
            open.on_connection.leaves(leave);
        }
        let retry_after = leave.reconnect_delay;
        let gateway = self.context.nodes.gateway_to(leave);
        self.outbox.push_back(Response::Draining(messages::draining(leave, gateway)));
        self.reads = false;
        self.end = Some(Error::Draining { retry_after });
    }

    /// True if one more request may be taken into a group.
    fn may_read(&self) -> bool {
        self.requests.waiting().0 > 0 || self.has_room()
    }

    /// True if one more request may be taken off the connection: what has no answer leaves room
    /// for it.
    fn has_room(&self) -> bool {
        let under_way = self.groups.iter().map(|group| (group.events, group.bytes));
        let here = [self.requests.waiting(), (self.gathered.events, self.gathered.bytes)];
        let (events, bytes) = under_way
            .chain(here)
            .fold((0, 0), |sum, (events, bytes)| (sum.0 + events, sum.1 + bytes));
        events + self.context.limits.max_events_per_request <= WINDOW_EVENTS
            && self.waits.len() < MAX_WAITS
            && bytes < self.window_bytes
    }

    /// Reads what has arrived, up to a group. Pending if nothing more can be read now.
    fn read(&mut self, cx: &mut TaskContext<'_>) -> Result<Poll<()>, Status> {
        loop {
            // Also where the group is full: what was read last belongs to it.
            if !self.is_numbered(cx) || !self.pay(cx) {
                return Ok(Poll::Pending);
            }
            if self.gathered.is_full() || !self.may_read() {
                return Ok(Poll::Ready(()));
            }
            let Request { size, content } = match self.requests.poll_next(cx) {
                Poll::Ready(Some(Ok(request))) => request,
                Poll::Ready(Some(Err(Refusal::Of(error)))) => return Err(self.failed(error)),
                Poll::Ready(Some(Err(Refusal::Read(status)))) => return Err(status),
                Poll::Ready(None) => {
                    self.reads = false;
                    return Ok(Poll::Ready(()));
                }
                Poll::Pending => return Ok(Poll::Pending),
            };
            match content {
                Content::Open(open) => {
                    let opened = self.opened(open).map_err(|error| self.failed(error))?;
                    self.caller.in_flight.release(size);
                    self.outbox.push_back(Response::Opened(opened));
                }
                Content::Events(events) => {
                    self.gathered.bytes += size;
                    self.gathered.events += events.events.len();
                    self.check(&events).map_err(|error| self.failed(error))?;
                    let owed = events.events.len();
                    self.held = Some((events, owed));
                }
            }
        }
    }

    /// False while the stream waits for its number.
    fn is_numbered(&mut self, cx: &mut TaskContext<'_>) -> bool {
        let Some(open) = &mut self.open else { return true };
        let Some(unnumbered) = &mut open.unnumbered else { return true };
        let Poll::Ready(number) = unnumbered.poll_unpin(cx) else { return false };
        open.unnumbered = None;
        if let (Some(number), Some(producer)) = (number, &open.producer) {
            producer.numbered(number);
            open.numbers.numbered(number);
        }
        true
    }

    /// Takes requests off the connection, which is shared and must not be blocked by them.
    fn read_on(&mut self, cx: &mut TaskContext<'_>) {
        let may_wait = |requests: &Requests| requests.waiting().1 < READ_ON_BYTES;
        while self.reads && may_wait(&self.requests) && self.has_room() {
            if !self.requests.read_on(cx) {
                break;
            }
        }
    }

    /// Opens the stream.
    fn opened(&mut self, open: v1::PublishOpen) -> Result<v1::PublishOpened, Error> {
        if self.open.is_some() {
            return Err(Error::field("open", "the stream is open already"));
        }
        self.context.gateway.refuse_if_draining()?;
        if let Some(grant) = &self.caller.grant {
            grant.check_publisher(&open.node_id)?;
        }
        let publisher = validate::publish_open(&open)?;
        let quotas = &self.context.quotas;
        let permit = quotas.stream(self.caller.in_flight.quota(), &self.caller.peer.streams)?;
        let hub = self.context.gateway.hub()?;
        let bus = hub.bus();
        let publisher =
            publisher.map(|id| bound_id(b"trunkline publisher", id, &open.node_id, &self.caller));
        let claimed = publisher.map(|publisher| hub.producers().claim(publisher));
        let accepted_sequence = claimed.as_ref().map_or(0, |(_, accepted)| *accepted);
        let producer = claimed.map(|(producer, _)| producer);
        let on_connection = self.caller.peer.leaving.enter(&open.node_id);
        self.open = Some(Open {
            numbers: Numbers::new(publisher, bus.shards()),
            unnumbered: publisher.map(|publisher| number(bus.clone(), publisher).boxed()),
            node_id: open.node_id,
            positions: open.positions,
            taken_over: producer
                .as_ref()
                .map(|producer| -> Revoked { Box::pin(producer.taken_over()) }),
            producer,
            on_connection,
            _permit: permit,
            _counted: Counted::new(&self.context),
        });
        Ok(v1::PublishOpened {
            gateway_id: self.context.gateway.about.gateway_id.clone(),
            accepted_sequence,
            window_events: u32::try_from(WINDOW_EVENTS).unwrap_or(u32::MAX),
            window_bytes: self.window_bytes as u64,
            deployment: self.context.gateway.about.deployment.clone(),
        })
    }

    /// Checks what concerns all events of a request.
    fn check(&mut self, events: &PublishEvents) -> Result<(), Error> {
        let Some(open) = &mut self.open else {
            return Err(Error::field("request", "the first request must be open"));
        };
        open.numbers.check(events, self.context.limits.max_events_per_request)
    }

    /// Pays for the request that was read last out of the rate of its identity, and gathers its
    /// events. False if the rate is used up: then nothing is read for a time.
    fn pay(&mut self, cx: &mut TaskContext<'_>) -> bool {
        let Some((_, owed)) = &mut self.held else { return true };
        let quotas = &self.context.quotas;
        while *owed > 0 {
            let part = (*owed).min(quotas.burst());
            match quotas.publish(self.caller.in_flight.quota(), part) {
                Ok(()) => *owed -= part,
                Err(error) => {
                    let wait = error.retry_after().unwrap_or_default();
                    self.timer.as_mut().reset(Instant::now() + wait);
                    if self.timer.as_mut().poll(cx).is_pending() {
                        return false;
                    }
                }
            }
        }
        let held = self.held.take();
        if let (Some((events, _)), Some(open)) = (held, &mut self.open) {
            let rejected = open.numbers.gather(
                &events,
                &open.node_id,
                &self.context,
                &self.caller,
                &mut self.gathered,
            );
            if rejected.is_empty() {
                return true;
            }
            let requester = self.caller.requester().node(&open.node_id);
            for (sequence, error) in rejected {
                self.context.records.refused(Method::PublishStream, &requester, &error);
                if let Some(producer) = &open.producer {
                    producer.rejected(sequence);
                }
                let status = Some(messages::status_of(error));
                let rejected = v1::PublishRejected { sequence, status };
                self.outbox.push_back(Response::Rejected(rejected));
            }
        }
        true
    }

    /// What was gathered, on its way.
    fn next_group(&mut self, cx: &mut TaskContext<'_>) -> Option<Group> {
        // What the last request brought waits for its rate.
        if self.held.is_some() || self.gathered.events == 0 {
            return None;
        }
        let gathered = std::mem::take(&mut self.gathered);
        Some(gathered.send(self.context.clone(), cx))
    }

    fn failed(&self, error: Error) -> Status {
        let node_id = self.open.as_ref().map_or("", |open| &*open.node_id);
        let requester = self.caller.requester().node(node_id);
        self.context.records.refused(Method::PublishStream, &requester, &error);
        error.into()
    }

    /// Ends the stream: what is under way is given up, and other streams of the producer may go on.
    fn finish(&mut self) {
        self.ended = true;
        self.groups.clear();
        self.waits.clear();
        self.open = None;
    }
}
