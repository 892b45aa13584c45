//! One `Subscribe` stream.
//!
//! The stream is pulled: it asks its cursor for the next batch only when the one before was taken by the connection. A reader
//! that stops costs what its connection buffers, and nothing else.

use std::{
    future::poll_fn,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::Stream;
use rand::Rng;
use tokio::{sync::watch, time::Instant};
use tonic::Status;

use super::{
    counters::Method,
    error::Error,
    nodes::{Listed, timestamp},
    service::Shared,
    wire::Response,
};
use crate::{
    bus::{AppendError, Gap, GapReason, Place, ShardId},
    hub::{
        cursor::{Cursor, Item},
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
    /// The kinds of the filter, for gaps.
    pub kinds: Vec<i32>,
    /// Whether it was to continue after a token.
    pub with_token: bool,
    /// The first message.
    pub subscribed: v1::Subscribed,
}

/// A stream's state between two messages.
struct Subscription {
    shared: Arc<Shared>,
    cursor: Cursor,
    listed: Listed,
    terms: Terms,
    drain: watch::Receiver<Option<Drain>>,
    /// Where it began.
    begin: Vec<Place>,
    /// When this stream is to be told of the drain.
    leave: Option<(Instant, Drain)>,
    last_sent: Instant,
    next: Next,
}

/// What comes next.
enum Next {
    Subscribed,
    Anything,
    /// The stream was told of the drain: it ends with this error.
    Drained,
    End,
}

/// What a stream waits for.
enum Event {
    Item(Result<Item, AppendError>),
    Heartbeat,
    Notice(v1::Notice),
    Deadline,
    DrainKnown,
    Leave,
}

/// The stream of a subscription.
pub fn stream(
    shared: Arc<Shared>,
    cursor: Cursor,
    listed: Listed,
    terms: Terms,
) -> impl Stream<Item = Result<Response, Status>> + Send {
    let drain = shared.drain.subscribe();
    let state = Subscription {
        shared,
        begin: cursor.places(),
        cursor,
        listed,
        terms,
        drain,
        leave: None,
        last_sent: Instant::now(),
        next: Next::Subscribed,
    };
    futures_util::stream::unfold(state, |mut state| async move {
        let message = state.message().await?;
        state.last_sent = Instant::now();
        Some((message, state))
    })
}

impl Subscription {
    async fn message(&mut self) -> Option<Result<Response, Status>> {
        match self.next {
            Next::Subscribed => {
                self.next = Next::Anything;
                let mut subscribed = self.terms.subscribed.clone();
                subscribed.resume_token = self.token();
                Some(Ok(Response::other(subscribe_response::Response::Subscribed(subscribed))))
            }
            Next::Anything => self.anything().await,
            Next::Drained => {
                self.next = Next::End;
                Some(Err(self.error(Error::draining(self.shared.reconnect_delay()))))
            }
            Next::End => None,
        }
    }

    async fn anything(&mut self) -> Option<Result<Response, Status>> {
        if self.cursor.is_finished() {
            return None;
        }
        loop {
            match self.wait().await {
                Event::Item(Ok(Item::Events(events))) => {
                    self.listed.delivered(events.count);
                    self.shared.counters.delivered(events.count, events.oldest_ms);
                    return Some(Ok(Response::events(events, &self.token())));
                }
                Event::Item(Ok(Item::Gap(shard, gap))) => return Some(self.gap(shard, &gap)),
                Event::Item(Err(error)) => {
                    self.next = Next::End;
                    return Some(Err(self.error(error.into())));
                }
                Event::Heartbeat => return Some(Ok(self.heartbeat())),
                Event::Notice(notice) => {
                    let notice = subscribe_response::Response::Notice(notice);
                    return Some(Ok(Response::other(notice)));
                }
                Event::Deadline => return None,
                Event::DrainKnown => self.plan_leave(),
                Event::Leave => {
                    self.next = Next::Drained;
                    return self.leave.map(|(_, drain)| Ok(self.draining(drain)));
                }
            }
        }
    }

    async fn wait(&mut self) -> Event {
        let far = Instant::now() + Duration::from_hours(24);
        let leave = self.leave.map(|(at, _)| at);
        tokio::select! {
            biased;
            changed = self.drain.changed(), if leave.is_none() => match changed {
                Ok(()) => Event::DrainKnown,
                // The gateway is gone without a drain: nothing more will come.
                Err(_) => Event::Deadline,
            },
            () = tokio::time::sleep_until(leave.unwrap_or(far)), if leave.is_some() => Event::Leave,
            () = tokio::time::sleep_until(self.terms.end.unwrap_or(far)), if self.terms.end.is_some() => {
                Event::Deadline
            }
            item = self.cursor.next() => Event::Item(item),
            // After the events, which pay nothing for it; a stream that is never idle is told at its next pause.
            notice = poll_fn(|cx| self.listed.notices().poll_take(cx)) => Event::Notice(notice),
            () = tokio::time::sleep_until(self.last_sent + self.terms.heartbeat) => Event::Heartbeat,
        }
    }

    fn plan_leave(&mut self) {
        let Some(drain) = *self.drain.borrow_and_update() else { return };
        // Spread, so that the nodes do not all arrive elsewhere at once.
        let part = rand::rng().random_range(0.0..1.0);
        self.leave = Some((drain.start + drain.spread.mul_f64(part), drain));
    }

    fn token(&self) -> Vec<u8> {
        self.shared.token(&self.cursor.places())
    }

    /// What ends the stream.
    fn error(&self, error: Error) -> Status {
        self.shared.counters.failed(Method::Subscribe, &error);
        error.into()
    }

    fn heartbeat(&self) -> Response {
        Response::other(subscribe_response::Response::Heartbeat(v1::Heartbeat {
            resume_token: self.token(),
            gateway_time: Some(timestamp(SystemTime::now())),
        }))
    }

    fn draining(&self, drain: Drain) -> Response {
        Response::other(subscribe_response::Response::Draining(v1::Draining {
            reason: "the gateway is being stopped".into(),
            deadline: Some(timestamp(drain.deadline)),
            reconnect_delay: prost_types::Duration::try_from(self.shared.reconnect_delay()).ok(),
        }))
    }

    fn gap(&mut self, shard: ShardId, gap: &Gap) -> Result<Response, Status> {
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
        let node = self.listed.node();
        tracing::info!(node = node.node_id, subscription = node.subscription_id, %shard,
            reason = %gap.reason, missed = gap.missed, "a stream is told a gap");
        Ok(Response::other(subscribe_response::Response::Gap(v1::Gap {
            reason: reason(gap.reason).into(),
            shard: shard.0.into(),
            kinds: self.terms.kinds.clone(),
            missed_events: gap.missed,
            from: Some(position(shard, gap.from)),
            to: Some(position(shard, gap.to)),
            from_time: gap.from_ms.map(milliseconds),
            to_time: Some(milliseconds(gap.to_ms)),
            action: v1::GapAction::Resync.into(),
            resume_token: self.token(),
        })))
    }
}

/// A place, as the wire names it.
pub fn position(shard: ShardId, place: Place) -> v1::Position {
    v1::Position { shard: shard.0.into(), epoch: place.epoch.0, offset: place.offset.0 }
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
pub fn encode_token(deployment: u32, places: &[Place]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(token::encoded_len(places));
    token::encode(deployment, places, &mut bytes);
    bytes
}
