//! Opens a `Watch` stream: its first requests, until its interest is complete.

use std::sync::Arc;

use tokio::time::{Instant, timeout_at};
use tonic::Status;

use super::Opening;
use crate::{
    access::Caller,
    errors::{Error, Limit},
    hub::{accounts::AccountKey, cursor::Cursor, filter::Filter},
    observe::counters::Method,
    proto::v1,
    rpc::{
        Context,
        lists::{MAX_KINDS, MAX_PATTERNS},
        request::Refusal,
        stream::Subscription,
        validate,
        watch::{Acknowledgements, Interest, Named, Request, Requests, Watch, second_open},
    },
};

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
            let interest = Interest::new(*named, &request.filter, accounts.len(), last_id, held);
            let acknowledgements = Acknowledgements::new(cursor.positions());
            let waiting = waiting.map(Request::Update);
            Some(Watch::new(requests, grant, interest, acknowledgements, waiting))
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
        let first = requests.next().await.transpose()?;
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
            let update = match requests.next().await.transpose()? {
                Some(Request::Update(update)) => update,
                Some(Request::Refused { error, .. }) => return Err(error.into()),
                Some(Request::Open(_)) => return Err(second_open().into()),
                Some(Request::Acknowledge { .. }) => {
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
