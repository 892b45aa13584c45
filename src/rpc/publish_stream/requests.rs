//! The requests of a `PublishStream`.

use std::{
    collections::VecDeque,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::Fuse};
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
        request::{Refusal, message, messages},
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
    /// What is waited for: a `trunkline.v1.WaitFor`.
    #[prost(int32, tag = "3")]
    pub wait_for: i32,
    /// For how long.
    #[prost(message, optional, tag = "4")]
    pub wait_timeout: Option<prost_types::Duration>,
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
pub struct Requests {
    connection: Fuse<Streaming<Result<Request, Error>>>,
    /// Those that were taken off the connection before they were asked for.
    waiting: VecDeque<Result<Request, Refusal>>,
    waiting_events: usize,
    waiting_bytes: usize,
}

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
                Ok(decode(bytes, &limits).map(|content| Request { size, content }))
            }
        };
        let connection = messages(headers, body, limits, BUFFER, request)?.fuse();
        let (waiting, waiting_events, waiting_bytes) = (VecDeque::new(), 0, 0);
        Ok(Requests { connection, waiting, waiting_events, waiting_bytes })
    }

    /// The next request; none after the last. Those that wait come first.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Request, Refusal>>> {
        let Some(request) = self.waiting.pop_front() else {
            return self.connection.poll_next_unpin(cx).map(Refusal::flatten);
        };
        let (events, bytes) = room_of(&request);
        self.waiting_events -= events;
        self.waiting_bytes -= bytes;
        Poll::Ready(Some(request))
    }

    /// Takes a request off the connection, to wait here. False if none is there.
    ///
    /// HTTP/2 ends the whole connection on which too many small frames are not read (h2's
    /// `too_many_data_frames`), and that may be shared by many clients.
    pub fn read_on(&mut self, cx: &mut Context<'_>) -> bool {
        let Poll::Ready(request) = self.connection.poll_next_unpin(cx) else { return false };
        let Some(request) = Refusal::flatten(request) else { return false };
        let (events, bytes) = room_of(&request);
        self.waiting_events += events;
        self.waiting_bytes += bytes;
        self.waiting.push_back(request);
        true
    }

    /// Events of the requests that wait, and their bytes.
    pub fn waiting(&self) -> (usize, usize) {
        (self.waiting_events, self.waiting_bytes)
    }
}

/// Events and bytes of a request. One without events takes room too.
fn room_of(request: &Result<Request, Refusal>) -> (usize, usize) {
    match request {
        Ok(Request { size, content: Content::Events(events) }) => {
            (events.events.len().max(1), *size)
        }
        Ok(Request { size, content: Content::Open(_) }) => (1, *size),
        Err(_) => (1, 0),
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
