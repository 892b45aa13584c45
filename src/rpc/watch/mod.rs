//! `Watch`: a stream whose interest changes while it lives.
//!
//! Requests are read where the stream is pulled, between two of its responses: a node that does not
//! read its responses stops the flow of its requests, and costs what its connection buffers.

mod acknowledgements;
mod interest;
mod requests;

use std::{
    collections::VecDeque,
    task::{Context as TaskContext, Poll},
};

pub use self::{
    acknowledgements::Acknowledgements,
    interest::{Checked, Interest, Named, Rules, Update},
    requests::{Request, Requests},
};
use crate::{
    access::Grant,
    bus::{AppendError, ShardId},
    errors::Error,
    hub::cursor::{Cursor, Item, Missing},
    rpc::request::Refusal,
};

/// Responses with events after which requests are looked at, though more events are there.
const MAX_IN_A_ROW: u32 = 8;

/// The side of a stream that its node sends on.
pub struct Watch {
    /// None once the node has closed its side.
    requests: Option<Requests>,
    grant: Option<Grant>,
    /// The interest.
    pub interest: Interest,
    /// What the node has processed.
    pub acknowledgements: Acknowledgements,
    /// An update that waits until the one before has delivered all that it added.
    waiting: Option<Request>,
    /// Delivers the events of added interest that began before the present; the stream waits.
    behind: Option<Box<Cursor>>,
    /// What a token says was behind, until it is clear that it goes on.
    given_up: VecDeque<(ShardId, Missing)>,
    in_a_row: u32,
}

impl Watch {
    /// The requests of a stream that is open: `waiting` is an update that came with its opening.
    pub fn new(
        requests: Requests,
        grant: Option<Grant>,
        interest: Interest,
        acknowledgements: Acknowledgements,
        waiting: Option<Request>,
    ) -> Watch {
        Watch {
            requests: Some(requests),
            grant,
            interest,
            acknowledgements,
            waiting,
            behind: None,
            given_up: VecDeque::new(),
            in_a_row: 0,
        }
    }

    /// Keeps gaps of a part of the interest that was behind, if an update may go on with it.
    /// Returns those that are to be sent.
    pub fn take_over(
        &mut self,
        gaps: VecDeque<(ShardId, Missing)>,
    ) -> VecDeque<(ShardId, Missing)> {
        if self.waiting.is_none() {
            return gaps;
        }
        self.given_up = gaps;
        VecDeque::new()
    }

    /// The gaps of a part of the interest that was behind and does not go on.
    pub fn given_up(&mut self) -> VecDeque<(ShardId, Missing)> {
        std::mem::take(&mut self.given_up)
    }

    /// The rules of the caller, where there are some.
    pub fn grant(&self) -> Option<Grant> {
        self.grant.clone()
    }

    /// True if requests are to be looked at before more events are sent.
    pub fn is_due(&self) -> bool {
        self.in_a_row >= MAX_IN_A_ROW || (self.waiting.is_some() && self.behind.is_none())
    }

    /// Counts a response with events.
    pub fn sent(&mut self, events: u64, cursor: &Cursor) {
        self.in_a_row += 1;
        self.acknowledgements.sent(events, cursor, self.behind.as_deref());
    }

    /// The part of the interest that is behind.
    pub fn behind(&self) -> Option<&Cursor> {
        self.behind.as_deref()
    }

    /// Begins to deliver the events of added interest since a token.
    pub fn begin_behind(&mut self, behind: Cursor) {
        self.given_up.clear();
        self.behind = Some(Box::new(behind));
    }

    /// The next request. One that changes the interest waits while a part of it is behind, or while
    /// `busy`.
    pub fn poll_request(
        &mut self,
        cx: &mut TaskContext<'_>,
        busy: bool,
    ) -> Poll<Result<Request, Refusal>> {
        self.in_a_row = 0;
        let busy = busy || self.behind.is_some();
        if self.waiting.is_some() && busy {
            return Poll::Pending;
        }
        if let Some(request) = self.waiting.take() {
            return Poll::Ready(Ok(request));
        }
        let Some(requests) = &mut self.requests else { return Poll::Pending };
        match requests.poll_next(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                // The stream goes on as a `Subscribe`.
                self.requests = None;
                Poll::Pending
            }
            Poll::Ready(Some(Ok(request))) if busy && request.changes_interest() => {
                self.waiting = Some(request);
                Poll::Pending
            }
            Poll::Ready(Some(request)) => Poll::Ready(request),
        }
    }

    /// The next item of the part of the interest that is behind; none if no part is.
    pub fn poll_behind(
        &mut self,
        cx: &mut TaskContext<'_>,
        stream: &mut Cursor,
    ) -> Option<Poll<Result<Item, AppendError>>> {
        loop {
            let behind = self.behind.as_mut()?;
            let polled = if behind.has_caught_up() { Poll::Pending } else { behind.poll_next(cx) };
            match polled {
                Poll::Pending if behind.has_caught_up() => {
                    self.behind = None;
                    return None;
                }
                Poll::Ready(Ok(Item::Gap(shard, missing))) => {
                    let end = stream.positions()[shard.index()];
                    if let Some(missing) = missing.up_to(end) {
                        return Some(Poll::Ready(Ok(Item::Gap(shard, missing))));
                    }
                }
                Poll::Ready(Ok(Item::Events(events))) => {
                    stream.delivered_elsewhere(events.count);
                    return Some(Poll::Ready(Ok(Item::Events(events))));
                }
                polled => return Some(polled),
            }
        }
    }
}

impl Request {
    fn changes_interest(&self) -> bool {
        matches!(self, Request::Update(_) | Request::Refused { .. })
    }
}

/// The error of a second `open`.
pub fn second_open() -> Error {
    Error::field("open", "the stream is open: a second one is not possible")
}
