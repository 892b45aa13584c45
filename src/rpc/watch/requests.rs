//! The requests of a `Watch` stream.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::Stream;
use http::HeaderMap;
use http_body::Body;
use tonic::{Status, Streaming};
use tower::BoxError;

use crate::{
    access::quota::InFlightRequest,
    config::Limits,
    errors::Error,
    port::requests::PREFIX,
    proto::v1,
    rpc::{
        lists,
        request::{BUFFER, Refusal, message, messages},
    },
};

/// One request.
#[derive(Debug)]
pub enum Request {
    /// The first one.
    Open(Box<v1::WatchOpen>),
    /// A change of the interest.
    Update(v1::InterestUpdate),
    /// A change with lists that are too long; it was not decoded.
    Refused {
        /// Its number.
        update_id: u64,
        /// True if more of it follows.
        incomplete: bool,
        /// What is wrong.
        error: Error,
    },
    /// What the node has processed, and what it reports of itself; empty: nothing.
    Acknowledge {
        /// The token.
        token: Bytes,
        /// An encoded `trunkline.v1.AgentReport`.
        agent: Bytes,
    },
}

/// The requests of a stream, read one after the other. Each counts against the quota of its
/// identity until it is decoded.
pub struct Requests(Streaming<Result<Request, Error>>);

/// `trunkline.v1.WatchRequest` with its content left encoded.
#[derive(Clone, PartialEq, prost::Message)]
struct Encoded {
    #[prost(bytes = "bytes", optional, tag = "1")]
    open: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "2")]
    update: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "3")]
    acknowledge: Option<Bytes>,
}

/// A `trunkline.v1.InterestUpdate` without its lists.
#[derive(Clone, PartialEq, prost::Message)]
struct UpdateHead {
    #[prost(uint64, tag = "1")]
    update_id: u64,
    #[prost(bool, tag = "5")]
    incomplete: bool,
}

/// `trunkline.v1.Acknowledge`.
#[derive(Clone, PartialEq, prost::Message)]
struct Acknowledged {
    #[prost(bytes = "bytes", tag = "1")]
    resume_token: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    agent: Bytes,
}

impl Requests {
    /// The requests in a body.
    pub fn new<B>(
        headers: &HeaderMap,
        body: B,
        limits: &Limits,
        in_flight: Arc<InFlightRequest>,
    ) -> Result<Requests, Status>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let request = {
            let limits = limits.clone();
            move |bytes: Bytes| {
                let size = PREFIX + bytes.len();
                let request = decode(bytes, &limits);
                in_flight.release(size);
                Ok(request)
            }
        };
        Ok(Requests(messages(headers, body, limits, BUFFER, request)?))
    }

    /// The next request; none after the last.
    pub async fn next(&mut self) -> Option<Result<Request, Refusal>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The next request; none after the last.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Request, Refusal>>> {
        Pin::new(&mut self.0).poll_next(cx).map(Refusal::flatten)
    }
}

/// Decodes a request, after its lists were counted.
fn decode(bytes: Bytes, limits: &Limits) -> Result<Request, Error> {
    let Encoded { open, update, acknowledge } = message(bytes)?;
    match (open, update, acknowledge) {
        (Some(open), None, None) => {
            lists::check_watch_open(&open, limits)?;
            Ok(Request::Open(Box::new(message(open)?)))
        }
        (None, Some(update), None) => match lists::check_update(&update, limits) {
            Ok(()) => Ok(Request::Update(message(update)?)),
            Err(error) => {
                let UpdateHead { update_id, incomplete } = message(update)?;
                Ok(Request::Refused { update_id, incomplete, error })
            }
        },
        (None, None, Some(acknowledge)) => {
            let Acknowledged { resume_token: token, agent } = message(acknowledge)?;
            Ok(Request::Acknowledge { token, agent })
        }
        _ => Err(Error::field("request", "must be one of open, update and acknowledge")),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::proto::v1::watch_request;

    fn decoded(request: watch_request::Request) -> Result<Request, Error> {
        let bytes = v1::WatchRequest { request: Some(request) }.encode_to_vec();
        decode(bytes.into(), &Limits::default())
    }

    fn accounts(count: usize) -> v1::Filter {
        v1::Filter { accounts: vec![String::new(); count], ..Default::default() }
    }

    #[test]
    fn requests_are_decoded_by_their_arms() {
        let open = v1::WatchOpen { accounts_named: true, ..Default::default() };
        match decoded(watch_request::Request::Open(open.clone())).unwrap() {
            Request::Open(decoded) => assert_eq!(*decoded, open),
            other => panic!("{other:?}"),
        }
        let update =
            v1::InterestUpdate { update_id: 7, add: Some(accounts(3)), ..Default::default() };
        match decoded(watch_request::Request::Update(update.clone())).unwrap() {
            Request::Update(decoded) => assert_eq!(decoded, update),
            other => panic!("{other:?}"),
        }
        let report = v1::AgentReport { subscribers: 3, ..Default::default() };
        let agent = Some(report.clone());
        let acknowledge = v1::Acknowledge { resume_token: vec![1, 2], agent };
        match decoded(watch_request::Request::Acknowledge(acknowledge)).unwrap() {
            Request::Acknowledge { token, agent } => {
                assert_eq!((token, agent), (vec![1, 2].into(), report.encode_to_vec().into()));
            }
            other => panic!("{other:?}"),
        }
        for bytes in [&[][..], &[4 << 3 | 2, 0], &[0xff; 20], &[2 << 3 | 2, 9]] {
            let error = decode(Bytes::copy_from_slice(bytes), &Limits::default()).unwrap_err();
            assert!(error.to_string().starts_with("request: "), "{error}");
        }
    }

    #[test]
    fn lists_that_are_too_long_are_not_decoded() {
        let subscribe =
            v1::SubscribeRequest { filter: Some(accounts(10_001)), ..Default::default() };
        let open = v1::WatchOpen { subscribe: Some(subscribe), ..Default::default() };
        let error = decoded(watch_request::Request::Open(open)).unwrap_err().to_string();
        assert_eq!(error, "filter.accounts: has 10001; the limit is 10000");
        let update = v1::InterestUpdate {
            update_id: 9,
            add: Some(accounts(10_001)),
            remove: Some(accounts(10_002)),
            ..Default::default()
        };
        match decoded(watch_request::Request::Update(update)).unwrap() {
            Request::Refused { update_id: 9, incomplete: false, error } => assert_eq!(
                error.to_string(),
                "add.accounts: has 10001; the limit is 10000; \
                 remove.accounts: has 10002; the limit is 10000"
            ),
            other => panic!("{other:?}"),
        }
    }
}
