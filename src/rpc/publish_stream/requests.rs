//! The requests of a `PublishStream`.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::Stream;
use http::HeaderMap;
use http_body::Body;
use tonic::{Status, Streaming};
use tower::BoxError;

use crate::{
    config::Limits,
    errors::Error,
    port::requests::PREFIX,
    proto::v1,
    rpc::{
        lists,
        request::{message, messages},
    },
};

/// The buffer in which requests arrive, in bytes: a busy producer sends many small ones at a time.
const BUFFER: usize = 8 * 1024;

/// One request, and the bytes that it counts for until it is answered.
#[derive(Debug)]
pub struct Request {
    /// Bytes of the message and its prefix.
    pub size: usize,
    /// The content.
    pub content: Content,
}

/// The content of a request.
#[derive(Debug)]
pub enum Content {
    /// The first request.
    Open(v1::PublishOpen),
    /// Events.
    Events(PublishEvents),
}

/// `trunkline.v1.PublishEvents` with its events left encoded.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PublishEvents {
    /// Sequence of the first event.
    #[prost(uint64, tag = "1")]
    pub first_sequence: u64,
    /// The events, as the node encoded them.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub events: Vec<Bytes>,
}

/// `trunkline.v1.PublishStreamRequest` with its content left encoded.
#[derive(Clone, PartialEq, prost::Message)]
struct Encoded {
    #[prost(bytes = "bytes", optional, tag = "1")]
    open: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "2")]
    events: Option<Bytes>,
}

/// The requests of a stream, one after the other.
pub struct Requests(Streaming<Request>);

impl Requests {
    /// The requests in a body.
    pub fn new<B>(headers: &HeaderMap, body: B, limits: &Limits) -> Result<Requests, Status>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let request = {
            let limits = limits.clone();
            move |bytes: Bytes| {
                let size = PREFIX + bytes.len();
                Ok(Request { size, content: decode(bytes, &limits)? })
            }
        };
        Ok(Requests(messages(headers, body, limits, BUFFER, request)?))
    }

    /// The next request; none after the last.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Request, Status>>> {
        Pin::new(&mut self.0).poll_next(cx)
    }
}

fn decode(bytes: Bytes, limits: &Limits) -> Result<Content, Error> {
    match message(bytes)? {
        Encoded { open: Some(open), events: None } => Ok(Content::Open(message(open)?)),
        Encoded { open: None, events: Some(events) } => {
            lists::check_stream_events(&events, limits)?;
            Ok(Content::Events(message(events)?))
        }
        _ => Err(Error::field("request", "must be one of open and events")),
    }
}
