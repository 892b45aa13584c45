//! One `Subscribe` stream.
//!
//! The stream is pulled: it asks its cursor for the next batch only when the one before was taken by the connection. A reader
//! that stops costs what its connection buffers, and nothing else.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use futures_util::Stream;
use rand::Rng;
use tokio::{
    sync::watch,
    time::{Instant, Sleep},
};
use tonic::Status;

use crate::{
    access::quota::{Pending, Seat},
    observe::{counters::Method, lines::StreamLine, recent::Ending},
    presence::{Listed, timestamp},
    rpc::{
        error::{Error, Unproven},
        explain::Explainer,
        follow,
        service::Shared,
        wire::Piece,
    },
};
use crate::{
    bus::{AppendError, Gap, GapReason, Position, ShardId},
    hub::{
        cursor::{Cursor, Item},
        judged::Judged,
        token,
    },
    proto::v1::{self, subscribe_response},
};

/// How a gateway goes away.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// When the streams begin to be told.
    pub start: Instant,
    /// Over how long they are told.
    pub spread: Duration,
    /// When the gateway will be gone.
    pub deadline: SystemTime,
}

/// What a stream was asked for, beside its cursor.
pub struct Terms {
    /// A heartbeat is sent after so long without anything else.
    pub heartbeat: Duration,
    /// When the stream ends by itself.
    pub end: Option<Instant>,
    /// What happens to who is too slow.
    pub overflow: v1::Overflow,
    /// Ends when its sender may have it no more; none if nobody asked who that is.
    pub revoked: Option<Revoked>,
    /// Whether it tells what became of every event.
    pub explain: bool,
    /// The kinds of the filter, for gaps.
    pub kinds: Vec<i32>,
    /// Whether it was to continue after a token.
    pub with_token: bool,
    /// The first message.
    pub subscribed: v1::Subscribed,
    /// Its lines in the log.
    pub line: StreamLine,
}

/// See [`Terms::revoked`].
pub type Revoked = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One stream.
pub struct Subscription {
    shared: Arc<Shared>,
    cursor: Cursor,
    listed: Listed,
    terms: Terms,
    drain: watch::Receiver<Option<Drain>>,
    /// Where it began.
    begin: Vec<Position>,
    /// When this stream is to be told of the drain.
    leave: Option<(Instant, Drain)>,
    last_sent: Instant,
    /// Fires when there may be something to do that no event wakes the stream for. It is not set anew with each message: when it
    /// fires, the stream looks at what is due.
    timer: Pin<Box<Sleep>>,
    /// What became of all events; none if nobody asked.
    explainer: Option<Explainer>,
    /// The cursor's places, while a token is made of them.
    positions: Vec<Position>,
    next: Next,
    /// What it counts as, while it lasts.
    _held: (Seat, Arc<Pending>),
}

/// What comes next.
enum Next {
    Subscribed,
    Anything,
    /// The stream was told of the drain: it ends with this error.
    Drained,
    End,
}

/// The stream of a subscription.
pub fn stream(
    shared: Arc<Shared>,
    cursor: Cursor,
    listed: Listed,
    terms: Terms,
    held: (Seat, Arc<Pending>),
) -> Subscription {
    let drain = shared.drain.subscribe();
    let begin = cursor.positions();
    let explainer = terms.explain.then(|| Explainer::new(Instant::now()));
    let timer = Box::pin(tokio::time::sleep_until(Instant::now()));
    Subscription {
        shared,
        cursor,
        listed,
        terms,
        drain,
        positions: begin.clone(),
        begin,
        leave: None,
        last_sent: Instant::now(),
        timer,
        explainer,
        next: Next::Subscribed,
        _held: held,
    }
}

impl Stream for Subscription {
    type Item = Result<Piece, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(revoked) = &mut this.terms.revoked
            && revoked.as_mut().poll(cx).is_ready()
        {
            this.terms.revoked = None;
            this.next = Next::End;
            return Poll::Ready(Some(Err(this.error(Error::Unproven(Unproven::Revoked)))));
        }
        match this.next {
            Next::Subscribed => {
                this.next = Next::Anything;
                let mut subscribed = this.terms.subscribed.clone();
                subscribed.resume_token = this.token();
                let first = subscribe_response::Response::Subscribed(subscribed);
                this.last_sent = Instant::now();
                Poll::Ready(Some(Ok(Piece::other(first))))
            }
            Next::Anything => this.poll_anything(cx),
            Next::Drained => {
                this.next = Next::End;
                Poll::Ready(Some(Err(this.error(Error::draining(this.shared.reconnect_delay())))))
            }
            Next::End => Poll::Ready(None),
        }
    }
}

impl Subscription {
    fn poll_anything(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, Status>>> {
        if self.cursor.is_finished() {
            self.listed.ends(Ending::MaxEvents);
            self.terms.line.ends("it had all the events that it asked for");
            return Poll::Ready(self.explanation().map(Ok));
        }
        loop {
            let now = Instant::now();
            if let Some(leaving) = self.leaving(now) {
                return Poll::Ready(Some(Ok(leaving)));
            }
            if self.terms.end.is_some_and(|end| end <= now) {
                self.listed.ends(Ending::MaxDuration);
                self.terms.line.ends("its time is over");
                return Poll::Ready(self.explanation().map(Ok));
            }
            if let Some(explanation) = self.due_explanation(now) {
                self.last_sent = now;
                return Poll::Ready(Some(Ok(explanation)));
            }
            if self.listed.notices().is_waiting()
                && let Poll::Ready(notice) = self.listed.notices().poll_take(cx)
            {
                self.last_sent = now;
                return Poll::Ready(Some(Ok(notice_of(notice))));
            }
            if let Poll::Ready(item) = self.cursor.poll_next(cx) {
                // Of events that are all withheld there is nothing to send but the explanation.
                let Some(message) = self.item(item) else { continue };
                self.last_sent = now;
                return Poll::Ready(Some(message));
            }
            if self.last_sent + self.terms.heartbeat <= now {
                self.last_sent = now;
                return Poll::Ready(Some(Ok(self.heartbeat())));
            }
            // After the events, which pay nothing for being woken by it.
            if let Poll::Ready(notice) = self.listed.notices().poll_take(cx) {
                self.last_sent = now;
                return Poll::Ready(Some(Ok(notice_of(notice))));
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let next = self.next_deadline();
            self.timer.as_mut().reset(next);
        }
    }

    /// The message that the gateway is going away, once it is this stream's turn to be told. Events that are there do not keep it.
    fn leaving(&mut self, now: Instant) -> Option<Piece> {
        if self.drain.has_changed().unwrap_or(false) {
            self.plan_leave();
        }
        let (_, drain) = self.leave.filter(|(at, _)| *at <= now)?;
        self.next = Next::Drained;
        Some(self.draining(drain))
    }

    fn item(&mut self, item: Result<Item, AppendError>) -> Option<Result<Piece, Status>> {
        Some(match item {
            Ok(Item::Events(mut events)) => {
                if let Some(judged) = events.judged.take() {
                    self.explain(*judged);
                }
                if events.count == 0 {
                    return None;
                }
                if !events.followed.is_empty() {
                    let node = self.listed.node();
                    follow::delivered(&self.shared.tracer, &events.followed, node);
                }
                self.terms.line.sent(events.count);
                self.listed.delivered(events.count);
                self.shared.counters.delivered(events.count, events.oldest_ms);
                self.cursor.positions_into(&mut self.positions);
                Ok(Piece::events(events, self.shared.deployment, &self.positions))
            }
            Ok(Item::Gap(shard, gap)) => self.gap(shard, &gap),
            Err(error) => {
                self.next = Next::End;
                Err(self.error(error.into()))
            }
        })
    }

    fn explain(&mut self, judged: Judged) {
        let Some(explainer) = &mut self.explainer else { return };
        explainer.add(judged);
        if let Some(due) = explainer.due()
            && due < self.timer.deadline()
        {
            self.timer.as_mut().reset(due);
        }
    }

    /// The explanation that is due, if one is. Looked at before each look at the cursor, which is told how many verdicts to bring.
    fn due_explanation(&mut self, now: Instant) -> Option<Piece> {
        let explainer = self.explainer.as_mut()?;
        self.cursor.allow_verdicts(explainer.room(now));
        explainer.due().filter(|due| *due <= now)?;
        self.explanation()
    }

    /// What became of the events that were passed, if that is to be told and was not.
    fn explanation(&mut self) -> Option<Piece> {
        self.explainer.as_ref()?.due()?;
        let token = self.token();
        let explanation = self.explainer.as_mut()?.take(Instant::now(), token);
        Some(Piece::other(subscribe_response::Response::Explanation(explanation)))
    }

    fn next_deadline(&self) -> Instant {
        let heartbeat = self.last_sent + self.terms.heartbeat;
        let leave = self.leave.map(|(at, _)| at);
        let explain = self.explainer.as_ref().and_then(Explainer::due);
        [leave, self.terms.end, explain].into_iter().flatten().fold(heartbeat, Instant::min)
    }

    fn plan_leave(&mut self) {
        let Some(drain) = *self.drain.borrow_and_update() else { return };
        // Spread, so that the nodes do not all arrive elsewhere at once.
        let part = rand::rng().random_range(0.0..1.0);
        self.leave = Some((drain.start + drain.spread.mul_f64(part), drain));
        let next = self.next_deadline();
        self.timer.as_mut().reset(next);
    }

    fn token(&self) -> Vec<u8> {
        self.shared.token(&self.cursor.positions())
    }

    /// What ends the stream.
    fn error(&mut self, error: Error) -> Status {
        self.listed.ends(Ending::Error(error.reason()));
        self.terms.line.ends(error.reason());
        self.shared.counters.failed(Method::Subscribe, &error);
        error.into()
    }

    fn heartbeat(&self) -> Piece {
        Piece::other(subscribe_response::Response::Heartbeat(v1::Heartbeat {
            resume_token: self.token(),
            gateway_time: Some(timestamp(SystemTime::now())),
        }))
    }

    fn draining(&self, drain: Drain) -> Piece {
        Piece::other(subscribe_response::Response::Draining(v1::Draining {
            reason: "the gateway is being stopped".into(),
            deadline: Some(timestamp(drain.deadline)),
            reconnect_delay: prost_types::Duration::try_from(self.shared.reconnect_delay()).ok(),
        }))
    }

    fn gap(&mut self, shard: ShardId, gap: &Gap) -> Result<Piece, Status> {
        // What the token had missed already is told: or else its node, which comes back with it, could never come back.
        let of_token = self.terms.with_token
            && !self.terms.subscribed.resumed
            && self.begin.get(shard.index()) == Some(&gap.from);
        if self.terms.overflow == v1::Overflow::Disconnect
            && gap.reason == GapReason::HistoryExpired
            && !of_token
        {
            self.next = Next::End;
            return Err(self.error(Error::too_slow(gap.missed)));
        }
        self.shared.counters.gap(gap.reason, gap.missed);
        self.shared.recent.gap(self.listed.node(), shard, gap.reason, gap.missed);
        self.terms.line.gap(shard, gap);
        Ok(Piece::other(subscribe_response::Response::Gap(v1::Gap {
            reason: reason(gap.reason).into(),
            shard: shard.0.into(),
            kinds: self.terms.kinds.clone(),
            missed_events: gap.missed,
            from: Some(wire_position(shard, gap.from)),
            to: Some(wire_position(shard, gap.to)),
            from_time: gap.from_ms.map(milliseconds),
            to_time: Some(milliseconds(gap.to_ms)),
            action: v1::GapAction::Resync.into(),
            resume_token: self.token(),
        })))
    }
}

fn notice_of(notice: v1::Notice) -> Piece {
    Piece::other(subscribe_response::Response::Notice(notice))
}

/// A place, as the wire names it.
pub fn wire_position(shard: ShardId, position: Position) -> v1::Position {
    v1::Position { shard: shard.0.into(), epoch: position.epoch.0, offset: position.offset.0 }
}

fn reason(reason: GapReason) -> v1::GapReason {
    match reason {
        GapReason::HistoryExpired => v1::GapReason::HistoryExpired,
        GapReason::EpochChanged => v1::GapReason::EpochChanged,
        GapReason::UnknownEpoch => v1::GapReason::UnknownEpoch,
        GapReason::Unreadable => v1::GapReason::Unreadable,
    }
}

fn milliseconds(ms: u64) -> prost_types::Timestamp {
    timestamp(SystemTime::UNIX_EPOCH + Duration::from_millis(ms))
}

/// The token of places, for a deployment.
pub fn encode_token(deployment: u32, positions: &[Position]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(token::encoded_len(positions));
    token::encode(deployment, positions, &mut bytes);
    bytes
}
