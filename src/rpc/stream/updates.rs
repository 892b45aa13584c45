//! Requests on an open stream: updates of its interest, and acknowledgements.

use std::{
    task::{Context as TaskContext, Poll, ready},
    time::SystemTime,
};

use tonic::Status;

use super::{State, Subscription};
use crate::{
    bus::AppendError,
    errors::Error,
    hub::cursor::Item,
    proto::v1::{self, subscribe_response::Response},
    rpc::{
        encoded::EncodedMessage,
        request::Refusal,
        watch::{Checked, Request, Rules, Update, second_open},
    },
};

/// Requests without an answer that are read at once.
const MAX_AT_ONCE: usize = 32;

impl Subscription {
    /// True if a part of the interest is behind.
    pub(super) fn is_behind(&self) -> bool {
        self.watch.as_ref().is_some_and(|watch| watch.behind().is_some())
    }

    /// The next item: of the part of the interest that is behind, if one is.
    pub(super) fn poll_cursor(
        &mut self,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Result<Item, AppendError>> {
        if let Some(watch) = &mut self.watch
            && let Some(polled) = watch.poll_behind(cx, &mut self.cursor)
        {
            return polled;
        }
        self.cursor.poll_next(cx)
    }

    /// Reads requests, up to the next answer.
    pub(super) fn poll_requests(
        &mut self,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Result<EncodedMessage, Status>> {
        for _ in 0..MAX_AT_ONCE {
            let Some(watch) = &mut self.watch else { return Poll::Pending };
            let request = match ready!(watch.poll_request(cx, self.cursor.has_first())) {
                Ok(request) => request,
                Err(Refusal::Of(error)) => return Poll::Ready(Err(self.fail(error))),
                // The connection, as a rule: the record of the stream says so.
                Err(Refusal::Read(status)) => {
                    self.state = State::Ended;
                    return Poll::Ready(Err(status));
                }
            };
            match self.take_request(request) {
                Ok(None) => {}
                Ok(Some(answer)) => return Poll::Ready(Ok(EncodedMessage::response(answer))),
                Err(error) => return Poll::Ready(Err(self.fail(error))),
            }
        }
        // Others have their turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Does what a request asks for; returns its answer, if it has one.
    fn take_request(&mut self, request: Request) -> Result<Option<Response>, Error> {
        let Some(watch) = &mut self.watch else { return Ok(None) };
        let checked = match request {
            Request::Open(_) => return Err(second_open()),
            Request::Acknowledge { token, agent } => {
                let deployment = self.context.deployment;
                watch.acknowledgements.acknowledge(&token, deployment, &self.cursor)?;
                let (sent, acknowledged) = watch.acknowledgements.counts();
                self.listed.acknowledged(sent, acknowledged, SystemTime::now());
                if !agent.is_empty() {
                    let wrong = |why| Error::field("acknowledge.agent", why);
                    self.listed.reported(agent).map_err(wrong)?;
                }
                return Ok(None);
            }
            Request::Refused { update_id, incomplete, error } => {
                watch.interest.refuse(update_id, incomplete, error)
            }
            Request::Update(update) => {
                let grant = watch.grant();
                let rules = Rules {
                    limits: &self.context.limits,
                    deployment: self.context.deployment,
                    grant: grant.as_ref(),
                    check_kinds: &|filter| self.context.check_node_events(filter),
                };
                watch.interest.check(&update, self.cursor.filter(), &rules)
            }
        };
        Ok(match checked {
            Checked::Part => None,
            Checked::Rejected(rejected) => {
                self.gaps.extend(watch.given_up());
                Some(Response::InterestRejected(rejected))
            }
            Checked::Update(update) => Some(Response::InterestUpdated(self.update(update))),
        })
    }

    /// Makes an update: from here on, events are filtered by the new interest.
    fn update(&mut self, update: Update) -> v1::InterestUpdated {
        let Update { id, changes, since, after } = update;
        let late = self.cursor.update(changes, since.as_ref());
        let filter = self.cursor.filter();
        self.options.kinds = filter.kind_numbers();
        let accounts = if after.names_accounts() { filter.account_count() } else { 0 };
        let mut custom_types = 0;
        if let Some(watch) = &mut self.watch {
            watch.interest.updated(after, accounts, self.cursor.past_bytes());
            custom_types = watch.interest.custom_types();
            if let Some(late) = late {
                self.gaps.extend(late.gaps);
                watch.begin_behind(late.cursor);
            }
        }
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        self.listed.updated(count(accounts), count(custom_types));
        v1::InterestUpdated {
            update_id: id,
            resume_token: self.token(),
            accounts: count(accounts),
            custom_types: count(custom_types),
        }
    }
}
