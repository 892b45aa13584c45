//! One `Subscribe` or `Watch` stream.
//!
//! The stream is pulled: it asks its cursor for the next batch only when the connection has taken
//! the one before. A client that stops reading costs what its connection buffers, and nothing else.

mod updates;

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use futures_util::Stream;
use tokio::{
    sync::watch,
    time::{Instant, Sleep},
};
use tonic::Status;

use crate::{
    access::quota::{InFlightRequest, StreamPermit},
    bus::{AppendError, GapReason, Health, Position, ShardId},
    errors::{CredentialError, Error},
    hub::{
        cursor::{Cursor, Item, Missing},
        explanation::Explanation,
    },
    leave::Leave,
    lifecycle::Drain,
    observe::{recent::Ending, streams::StreamRecord},
    presence::{CurrentPosition, Listed, Notification},
    proto::v1::{self, subscribe_response::Response},
    rpc::{Context, encoded::EncodedMessage, explain::Explainer, messages, traces, watch::Watch},
};

/// The options of a stream, from its request.
pub struct StreamOptions {
    /// A heartbeat is sent after this time without another message.
    pub heartbeat: Duration,
    /// The stream ends at this time.
    pub end: Option<Instant>,
    /// The treatment of a client that is too slow.
    pub overflow: v1::Overflow,
    /// Ready when the credential of the caller is revoked; none where authentication is off.
    pub revoked: Option<Revoked>,
    /// True if the stream explains why it delivers or withholds each event.
    pub explain: bool,
    /// Where the list of the nodes that are there goes on; none once it is complete, and where it
    /// was not asked for.
    pub current: Option<CurrentPosition>,
    /// The kinds of the filter, for gaps.
    pub kinds: Vec<i32>,
    /// True if the request has a resume token.
    pub with_token: bool,
    /// The first message, still without its token.
    pub subscribed: v1::Subscribed,
}

/// See [`StreamOptions::revoked`].
pub type Revoked = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One stream.
pub struct Subscription {
    context: Arc<Context>,
    cursor: Cursor,
    listed: Listed,
    record: StreamRecord,
    options: StreamOptions,
    drain: watch::Receiver<Option<Drain>>,
    health: watch::Receiver<Health>,
    /// The shards that are not verified, as reported to the node last.
    unverified: Vec<u32>,
    /// The places at which the stream began.
    begin: Vec<Position>,
    /// The time at which this stream is asked to leave, and what for.
    leave: Option<(Instant, Leave)>,
    last_sent: Instant,
    /// Fires when something may be due that no event wakes the stream for. It is not reset with
    /// each message: when it fires, the stream looks at what is due.
    timer: Pin<Box<Sleep>>,
    /// The nodes of the list that were sent.
    current_nodes: u64,
    /// Collects explanations; none unless the request asks for them.
    explainer: Option<Explainer>,
    /// Gaps to be sent before anything else.
    gaps: VecDeque<(ShardId, Missing)>,
    /// Receives updates of the interest; none if it never changes.
    watch: Option<Box<Watch>>,
    state: State,
    /// The permit of the stream, and the bytes of its request: both count until the stream ends.
    _held: (StreamPermit, Arc<InFlightRequest>),
}

/// The next message.
enum State {
    /// `Subscribed`.
    Opening,
    /// Whatever is due.
    Open,
    /// The client was asked to leave: the stream ends with an error, which names this delay.
    Drained(Duration),
    /// None: the stream has ended.
    Ended,
}

impl Subscription {
    /// The stream over a cursor, with the health of the bus that the cursor reads.
    pub fn new(
        context: Arc<Context>,
        health: watch::Receiver<Health>,
        cursor: Cursor,
        listed: Listed,
        record: StreamRecord,
        options: StreamOptions,
        held: (StreamPermit, Arc<InFlightRequest>),
    ) -> Subscription {
        let begin = cursor.positions();
        let leave = context.leave_at_age();
        Subscription {
            health,
            unverified: vec![],
            drain: context.gateway.drain(),
            explainer: options.explain.then(|| Explainer::new(Instant::now())),
            timer: Box::pin(tokio::time::sleep_until(Instant::now())),
            context,
            cursor,
            listed,
            record,
            options,
            begin,
            leave,
            last_sent: Instant::now(),
            current_nodes: 0,
            gaps: VecDeque::new(),
            watch: None,
            state: State::Opening,
            _held: held,
        }
    }

    /// The same with gaps that are sent first, and with what receives updates.
    pub fn beginning_with(
        self,
        gaps: VecDeque<(ShardId, Missing)>,
        watch: Option<Watch>,
    ) -> Subscription {
        let watch = watch.map(Box::new);
        self.listed.watches(watch.is_some());
        Subscription { gaps, watch, ..self }
    }
}

impl Stream for Subscription {
    type Item = Result<EncodedMessage, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(revoked) = &mut this.options.revoked
            && revoked.as_mut().poll(cx).is_ready()
        {
            this.options.revoked = None;
            let error = Error::Unauthenticated(CredentialError::Revoked);
            return Poll::Ready(Some(Err(this.fail(error))));
        }
        match this.state {
            State::Opening => {
                this.state = State::Open;
                this.last_sent = Instant::now();
                let mut subscribed = this.options.subscribed.clone();
                subscribed.resume_token = this.token();
                this.look_at_shards();
                subscribed.unverified_shards.clone_from(&this.unverified);
                let first = Response::Subscribed(subscribed);
                Poll::Ready(Some(Ok(EncodedMessage::response(first))))
            }
            State::Open => this.poll_open(cx),
            State::Drained(retry_after) => {
                Poll::Ready(Some(Err(this.fail(Error::Draining { retry_after }))))
            }
            State::Ended => Poll::Ready(None),
        }
    }
}

impl Subscription {
    /// The next message of an open stream.
    fn poll_open(
        &mut self,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<EncodedMessage, Status>>> {
        if self.cursor.is_finished() {
            self.record.ends(Ending::MaxEvents);
            return Poll::Ready(self.explanation().map(Ok));
        }
        loop {
            let now = Instant::now();
            if let Some(leaving) = self.leaving(now) {
                return Poll::Ready(Some(Ok(leaving)));
            }
            if self.options.end.is_some_and(|end| end <= now) {
                self.record.ends(Ending::MaxDuration);
                return Poll::Ready(self.explanation().map(Ok));
            }
            if let Some(current) = self.current_page() {
                self.last_sent = now;
                return Poll::Ready(Some(Ok(current)));
            }
            if let Some(explanation) = self.due_explanation(now) {
                self.last_sent = now;
                return Poll::Ready(Some(Ok(explanation)));
            }
            if self.listed.notifications().is_pending()
                && let Poll::Ready(notification) = self.listed.notifications().poll_take(cx)
            {
                return Poll::Ready(Some(Ok(self.notified(notification, now))));
            }
            if self.health.has_changed().unwrap_or(false) && self.look_at_shards() {
                self.last_sent = now;
                return Poll::Ready(Some(Ok(self.heartbeat())));
            }
            if let Some((shard, gap)) = self.gaps.pop_front() {
                self.last_sent = now;
                return Poll::Ready(Some(self.gap(shard, &gap)));
            }
            if self.watch.as_ref().is_some_and(|watch| watch.is_due())
                && let Poll::Ready(answer) = self.poll_requests(cx)
            {
                self.last_sent = now;
                return Poll::Ready(Some(answer));
            }
            if let Poll::Ready(item) = self.poll_cursor(cx) {
                // Events that are all withheld leave nothing to send but their explanation.
                let Some(message) = self.item(item) else { continue };
                self.last_sent = now;
                return Poll::Ready(Some(message));
            }
            if let Poll::Ready(answer) = self.poll_requests(cx) {
                self.last_sent = now;
                return Poll::Ready(Some(answer));
            }
            if self.last_sent + self.options.heartbeat <= now {
                self.last_sent = now;
                return Poll::Ready(Some(Ok(self.heartbeat())));
            }
            // After the events, so that they do not pay for registering this waker.
            if let Poll::Ready(notification) = self.listed.notifications().poll_take(cx) {
                return Poll::Ready(Some(Ok(self.notified(notification, now))));
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let next = self.next_deadline();
            self.timer.as_mut().reset(next);
        }
    }

    /// The next page of the nodes that are there, and after the last one that it was; none where
    /// they were not asked for. Events that are due come after it.
    fn current_page(&mut self) -> Option<EncodedMessage> {
        let position = self.options.current.as_mut()?;
        let Some(nodes) = self.context.nodes.current_page(position) else {
            self.options.current = None;
            let nodes = self.current_nodes;
            return Some(EncodedMessage::response(Response::CurrentNodes(v1::CurrentNodes {
                nodes,
            })));
        };
        self.current_nodes += nodes.len() as u64;
        let events = nodes.into_iter().map(v1::Event::from).collect();
        let batch = v1::EventBatch { events, resume_token: self.token() };
        Some(EncodedMessage::response(Response::Events(batch)))
    }

    /// `Draining`, once this stream is asked to leave. Events that are due do not delay it.
    fn leaving(&mut self, now: Instant) -> Option<EncodedMessage> {
        if self.drain.has_changed().unwrap_or(false) {
            self.plan_leave();
        }
        let (_, leave) = self.leave.filter(|(at, _)| *at <= now)?;
        Some(self.leave_now(leave))
    }

    /// `Draining`: the last message before the end of the stream.
    fn leave_now(&mut self, leave: Leave) -> EncodedMessage {
        self.state = State::Drained(leave.reconnect_delay);
        self.listed.leaves(leave);
        let gateway = self.context.nodes.gateway_to(leave);
        EncodedMessage::response(Response::Draining(messages::draining(leave, gateway)))
    }

    /// The message for a notification.
    fn notified(&mut self, notification: Notification, now: Instant) -> EncodedMessage {
        self.last_sent = now;
        match notification {
            Notification::Notice(notice) => EncodedMessage::response(Response::Notice(notice)),
            Notification::Leave(leave) => self.leave_now(leave),
        }
    }

    /// The message of an item of the cursor.
    fn item(&mut self, item: Result<Item, AppendError>) -> Option<Result<EncodedMessage, Status>> {
        Some(match item {
            Ok(Item::Events(mut events)) => {
                if let Some(explanation) = events.explanation.take() {
                    self.explain(*explanation);
                }
                if events.count == 0 {
                    return None;
                }
                if !events.traced.is_empty() {
                    let node = self.listed.node();
                    traces::delivered(&self.context.tracer, &events.traced, node);
                }
                self.record.delivered(events.count, events.oldest_ms);
                self.listed.delivered(events.count);
                if let Some(watch) = &mut self.watch {
                    watch.sent(events.count, &self.cursor);
                    let (sent, acknowledged) = watch.acknowledgements.counts();
                    self.listed.sent(sent, acknowledged, &events.waited);
                }
                let behind = self.watch.as_ref().and_then(|watch| watch.behind());
                let (had, behind) = (self.cursor.had(), behind.map(Cursor::had_behind));
                Ok(EncodedMessage::events(events, self.context.deployment, had, behind))
            }
            Ok(Item::Gap(shard, gap)) => self.gap(shard, &gap),
            Err(error) => Err(self.fail(error.into())),
        })
    }

    fn explain(&mut self, explanation: Explanation) {
        let Some(explainer) = &mut self.explainer else { return };
        explainer.add(explanation);
        if let Some(due) = explainer.due()
            && due < self.timer.deadline()
        {
            self.timer.as_mut().reset(due);
        }
    }

    /// The explanation that is due, if one is. Comes before each poll of the cursor, and sets how
    /// many verdicts that may bring.
    fn due_explanation(&mut self, now: Instant) -> Option<EncodedMessage> {
        let explainer = self.explainer.as_mut()?;
        self.cursor.limit_decisions(explainer.available(now));
        explainer.due().filter(|due| *due <= now)?;
        self.explanation()
    }

    /// The explanation of the events that were read since the last one, if there are any.
    fn explanation(&mut self) -> Option<EncodedMessage> {
        self.explainer.as_ref()?.due()?;
        let token = self.token();
        let explanation = self.explainer.as_mut()?.take(Instant::now(), token);
        Some(EncodedMessage::response(Response::Explanation(explanation)))
    }

    fn next_deadline(&self) -> Instant {
        let heartbeat = self.last_sent + self.options.heartbeat;
        let leave = self.leave.map(|(at, _)| at);
        let explain = self.explainer.as_ref().and_then(Explainer::due);
        [leave, self.options.end, explain].into_iter().flatten().fold(heartbeat, Instant::min)
    }

    fn plan_leave(&mut self) {
        let Some(drain) = *self.drain.borrow_and_update() else { return };
        let at = drain.leave_at();
        if self.leave.is_none_or(|(earlier, _)| at < earlier) {
            self.leave = Some((at, self.context.gateway.stopping_by(drain)));
        }
        let next = self.next_deadline();
        self.timer.as_mut().reset(next);
    }

    fn token(&self) -> Vec<u8> {
        let behind = self.watch.as_ref().and_then(|watch| watch.behind());
        messages::resume_token(self.context.deployment, &self.cursor, behind)
    }

    /// Ends the stream with an error.
    fn fail(&mut self, error: Error) -> Status {
        self.state = State::Ended;
        self.record.failed(&error);
        error.into()
    }

    /// Takes in which shards are verified. True if others are not than were reported to the node.
    fn look_at_shards(&mut self) -> bool {
        let unverified: Vec<u32> = match &*self.health.borrow_and_update() {
            Health::Ready => vec![],
            Health::Partial { unverified, .. } => {
                unverified.iter().map(|shard| shard.0.into()).collect()
            }
            Health::NotReady(_) => (0..).take(self.begin.len()).collect(),
        };
        let changed = unverified != self.unverified;
        self.unverified = unverified;
        changed
    }

    fn heartbeat(&self) -> EncodedMessage {
        let heartbeat = messages::heartbeat(self.token(), self.unverified.clone());
        EncodedMessage::response(Response::Heartbeat(heartbeat))
    }

    fn gap(&mut self, shard: ShardId, gap: &Missing) -> Result<EncodedMessage, Status> {
        // A gap that the token already had is sent: a node that is disconnected for it would come
        // back with the same token for ever.
        let of_token = self.is_behind()
            || self.options.with_token
                && !self.options.subscribed.resumed
                && self.begin.get(shard.index()) == Some(&gap.place);
        if self.options.overflow == v1::Overflow::Disconnect
            && gap.reason == GapReason::HistoryExpired
            && !of_token
        {
            return Err(self.fail(Error::SubscriberTooSlow { missed: gap.missed }));
        }
        self.record.gap(shard, gap);
        let gap = messages::gap(shard, gap, &self.options.kinds, self.token());
        Ok(EncodedMessage::response(Response::Gap(gap)))
    }
}
