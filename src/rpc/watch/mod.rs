//! `Watch`: a stream whose interest changes while it lives.
//!
//! Requests are read where the stream is pulled, between two of its responses: a node that does not
//! read its responses stops the flow of its requests, and costs what its connection buffers.

mod acknowledgements;
mod interest;
mod requests;

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context as TaskContext, Poll},
};

use tokio::time::{Instant, timeout_at};
use tonic::Status;

pub use self::{
    acknowledgements::Acknowledgements,
    interest::{Checked, Interest, Named, Rules, Update},
    requests::{Request, Requests},
};
use crate::{
    access::{Caller, Grant},
    bus::{AppendError, ShardId},
    errors::{Error, Limit},
    hub::{
        accounts::AccountKey,
        cursor::{Cursor, Item, Missing},
        filter::{Before, Filter},
        had::Had,
    },
    observe::counters::Method,
    proto::v1,
    rpc::{
        Context,
        lists::{MAX_KINDS, MAX_PATTERNS},
        stream::Subscription,
        subscribe::Opening,
        validate,
    },
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

impl Context {
    /// Opens the stream that the first requests ask for.
    pub async fn watch(
        self: Arc<Self>,
        mut requests: Requests,
        caller: Caller,
    ) -> Result<Subscription, Status> {
        let limit = self.limits.request_timeout;
        let late = |_| Error::late(Limit::RequestTimeout, limit);
        let records = self.records.clone();
        let requester = caller.requester();
        let refused = |error: &Error| records.refused(Method::Watch, &requester, error);
        let begun = self.begin_watch(&mut requests, &caller);
        let begun = timeout_at(Instant::now() + limit, begun).await;
        let (opening, last_id, waiting) =
            begun.map_err(late).inspect_err(refused)?.map_err(|refusal| match refusal {
                Refusal::Of(error) => {
                    refused(&error);
                    error.into()
                }
                Refusal::Read(status) => status,
            })?;
        let grant = caller.grant.clone();
        let in_flight = caller.in_flight.clone();
        let watch = move |opening: &Opening, cursor: &Cursor| {
            let Opening { named, accounts, held, request, .. } = opening;
            let held = (in_flight, *held);
            Some(Watch {
                requests: Some(requests),
                grant,
                interest: Interest::new(*named, &request.filter, accounts.len(), last_id, held),
                acknowledgements: Acknowledgements::new(cursor.positions()),
                waiting: waiting.map(Request::Update),
                behind: None,
                given_up: VecDeque::new(),
                in_a_row: 0,
            })
        };
        let opened = self.open_stream(opening, &caller, Method::Watch, watch).await;
        Ok(opened.inspect_err(refused)?)
    }

    /// Reads requests until the interest is complete. Returns the number of the last update, and
    /// that update if its interest begins before the present: the stream is opened without it.
    async fn begin_watch(
        &self,
        requests: &mut Requests,
        caller: &Caller,
    ) -> Result<(Opening, u64, Option<v1::InterestUpdate>), Refusal> {
        let first = requests.next().await.transpose().map_err(Refusal::Read)?;
        let Some(Request::Open(open)) = first else {
            return Err(Error::field("request", "must begin with open").into());
        };
        let Some(subscribe) = open.subscribe else {
            return Err(Error::field("open.subscribe", "is required").into());
        };
        let named = Named { accounts: open.accounts_named, custom_types: open.custom_types_named };
        let mut opening = self.begin_stream(subscribe, named, caller)?;
        let (mut incomplete, mut last_id) = (open.incomplete, 0);
        while incomplete {
            let update = match requests.next().await.transpose().map_err(Refusal::Read)? {
                Some(Request::Update(update)) => update,
                Some(Request::Refused { error, .. }) => return Err(error.into()),
                Some(Request::Open(_)) => return Err(second_open().into()),
                Some(Request::Acknowledge(_)) => {
                    return Err(Error::field("acknowledge", "the stream is not open yet").into());
                }
                None => {
                    let why = "no update without `incomplete` came: the interest is not complete";
                    return Err(Error::field("open.incomplete", why).into());
                }
            };
            incomplete = update.incomplete;
            if !update.since.is_empty() && !incomplete {
                // Checked as an update of an open stream.
                return Ok((opening, last_id, Some(update)));
            }
            if update.update_id <= last_id {
                let why = format!("is {}, must be higher than {last_id}", update.update_id);
                return Err(Error::field("update_id", why).into());
            }
            last_id = update.update_id;
            opening.add(&update, self, caller)?;
        }
        Ok((opening, last_id, None))
    }
}

/// The reason why a stream is not opened.
enum Refusal {
    /// This error.
    Of(Error),
    /// Its requests could not be read.
    Read(Status),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        Refusal::Of(error)
    }
}

impl Opening {
    /// Adds a part of the interest.
    fn add(
        &mut self,
        update: &v1::InterestUpdate,
        context: &Context,
        caller: &Caller,
    ) -> Result<(), Error> {
        let limits = &context.limits;
        validate::update(update, limits, context.deployment)?;
        if update.replace || update.remove.as_ref().is_some_and(|r| *r != v1::Filter::default()) {
            let why = "a stream whose interest is not complete has nothing to remove";
            return Err(Error::field(if update.replace { "replace" } else { "remove" }, why));
        }
        let Some(add) = &update.add else { return Ok(()) };
        if let Some(grant) = &caller.grant {
            grant.check_interest(add)?;
        }
        let held = Filter::held_bytes(add.accounts.len(), &add.custom_types);
        caller.in_flight.add(held)?;
        self.held += held;
        for account in &add.accounts {
            self.accounts.insert(AccountKey::of(account.as_bytes()));
        }
        let filter = &mut self.request.filter;
        filter.kinds.extend(&add.kinds);
        for pattern in &add.custom_types {
            if !filter.custom_types.contains(pattern) {
                filter.custom_types.push(pattern.clone());
            }
        }
        for (field, count, max) in [
            ("add.accounts", self.accounts.len(), limits.max_accounts_per_stream),
            ("add.kinds", filter.kinds.len(), MAX_KINDS),
            ("add.custom_types", filter.custom_types.len(), MAX_PATTERNS),
        ] {
            if count > max {
                let why = format!("the stream would have {count}; the limit is {max}");
                return Err(Error::field(field, why));
            }
        }
        Ok(())
    }
}

impl Watch {
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
    pub fn begin_behind(&mut self, cursor: &Cursor, since: &[Had], before: Before) {
        self.given_up.clear();
        self.behind = Some(Box::new(cursor.backfill(since, before)));
    }

    /// The next request. One that changes the interest waits while a part of it is behind, or while
    /// `busy`.
    pub fn poll_request(
        &mut self,
        cx: &mut TaskContext<'_>,
        busy: bool,
    ) -> Poll<Result<Request, Status>> {
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
