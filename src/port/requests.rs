//! Limits of a request: its bytes, and the time that it may take to arrive.
//!
//! The bytes of every request in flight count against the quota of its identity and against that of
//! all requests. They count until the request is answered: half a request, a request that waits for
//! the bus and the filter of an open stream all take memory. The length that a message announces
//! counts as soon as it is announced, since tonic allocates all of it then. On a stream of requests
//! each message counts until the service has decoded it, and the time is that of one message.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{BufMut, Bytes};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep, timeout_at};
use tonic::Status;
use tower::{BoxError, Layer, Service};

use super::deadline::{Deadline, DeadlineBody, OnExpired, grpc_timeout};
use crate::{
    access::{Caller, quota::InFlightRequest},
    errors::{Error, Limit},
    port::counters::Counters,
};

/// Bytes of the prefix of a gRPC message: a flag for compression, and the length of the message.
pub const PREFIX: usize = 5;

/// Writes the prefix of a message of this many bytes.
pub fn put_prefix(message: usize, to: &mut Vec<u8>) {
    to.put_u8(0);
    // No message comes near the 4 GiB that the prefix can name.
    to.put_u32(u32::try_from(message).unwrap_or(u32::MAX));
}

/// Wraps the gRPC services of a port in [`RequestLimits`].
#[derive(Clone)]
pub struct RequestLimitsLayer {
    /// Counts refused requests.
    pub counters: Arc<Counters>,
    /// How long the body of a request may take to arrive.
    pub timeout: Duration,
    /// Bytes that a message may have. One that announces more is refused before it is allocated.
    pub max_message: usize,
    /// True for the path of a method that changes something: at its deadline it may have done so.
    pub changes: fn(&str) -> bool,
    /// True for the path of a method that takes a stream of requests.
    pub streams: fn(&str) -> bool,
    /// Notified of requests whose deadline was over.
    pub on_expired: OnExpired,
}

/// Counts the bytes of each request's body for its [`Caller`], and ends it at its deadline.
#[derive(Clone)]
pub struct RequestLimits<S> {
    inner: S,
    layer: RequestLimitsLayer,
}

/// The body of a request, with its bytes counted and its time limited.
pub struct LimitedBody<B> {
    body: Pin<Box<B>>,
    in_flight: Arc<InFlightRequest>,
    size: BodySize,
    counters: Arc<Counters>,
    timeout: Duration,
    /// Starts when the body is first waited for: most bodies arrive with their headers.
    timer: Option<Pin<Box<Sleep>>>,
}

/// The size of a body.
#[derive(Debug)]
enum BodySize {
    /// Of the only message.
    One(Size),
    /// Of messages, one after the other.
    Many(StreamSize),
}

impl BodySize {
    fn add(&mut self, data: &[u8]) -> Result<usize, Error> {
        match self {
            BodySize::One(size) => size.add(data),
            BodySize::Many(size) => size.add(data),
        }
    }

    /// True if nothing need come: the peer may be silent for as long as it likes.
    fn may_pause(&self) -> bool {
        matches!(self, BodySize::Many(size) if size.is_between_messages())
    }
}

/// The sizes of the messages of a stream.
#[derive(Debug, Default)]
struct StreamSize {
    max_message: usize,
    /// Bytes of the next message's prefix that have arrived.
    prefix: Vec<u8>,
    /// Bytes of the message that are still to come.
    left: usize,
    /// True after the first message has arrived.
    begun: bool,
}

impl StreamSize {
    /// Adds bytes that have arrived. Returns the size of all messages that begin in them, with
    /// their prefixes.
    fn add(&mut self, mut data: &[u8]) -> Result<usize, Error> {
        let mut begun = 0;
        while !data.is_empty() {
            if self.left > 0 {
                let taken = self.left.min(data.len());
                data = &data[taken..];
                self.left -= taken;
            } else {
                let taken = data.len().min(PREFIX - self.prefix.len());
                self.prefix.extend_from_slice(&data[..taken]);
                data = &data[taken..];
                let Ok([_, length @ ..]) = <[u8; PREFIX]>::try_from(&self.prefix[..]) else {
                    break;
                };
                self.prefix.clear();
                self.left = announced(length, self.max_message)?;
                begun += PREFIX + self.left;
            }
            self.begun |= self.left == 0 && self.prefix.is_empty();
        }
        Ok(begun)
    }

    fn is_between_messages(&self) -> bool {
        self.begun && self.left == 0 && self.prefix.is_empty()
    }
}

/// The length that a message announces, if it may have that.
fn announced(length: [u8; PREFIX - 1], limit: usize) -> Result<usize, Error> {
    let actual = u32::from_be_bytes(length) as usize;
    if actual > limit {
        return Err(Error::PayloadTooLarge { what: "request".into(), limit, actual });
    }
    Ok(actual)
}

/// The size of a request, as far as it is known.
#[derive(Debug, Default)]
struct Size {
    max_message: usize,
    /// The bytes of the first message's prefix that have arrived.
    prefix: [u8; PREFIX],
    received: usize,
    /// The larger of what has arrived and what was announced.
    known: usize,
}

impl Size {
    /// Adds bytes that have arrived. Returns by how many bytes the known size has grown; the error
    /// is for a message that announces more than it may have.
    fn add(&mut self, data: &[u8]) -> Result<usize, Error> {
        let rest = self.prefix.get_mut(self.received..).unwrap_or_default();
        rest.iter_mut().zip(data).for_each(|(slot, byte)| *slot = *byte);
        self.received += data.len();
        let [_, length @ ..] = self.prefix;
        let mut length_announced = 0;
        if self.received >= PREFIX {
            length_announced = announced(length, self.max_message)?;
        }
        let known = self.received.max(PREFIX + length_announced);
        let more = known - self.known;
        self.known = known;
        Ok(more)
    }
}

impl<S> Layer<S> for RequestLimitsLayer {
    type Service = RequestLimits<S>;

    fn layer(&self, inner: S) -> RequestLimits<S> {
        RequestLimits { inner, layer: self.clone() }
    }
}

impl<S, B, O> Service<Request<B>> for RequestLimits<S>
where
    S: Service<Request<LimitedBody<B>>, Response = Response<O>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    O: Default + Send + 'static,
{
    type Response = Response<DeadlineBody<O>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let RequestLimitsLayer { counters, timeout: limit, max_message, on_expired, .. } =
            &self.layer;
        let (in_flight, requester) = match Caller::of(request.extensions()) {
            Ok(caller) => (caller.in_flight.clone(), caller.requester()),
            Err(status) => return Box::pin(std::future::ready(Ok(status.into_http()))),
        };
        let deadline =
            grpc_timeout(request.headers()).and_then(|timeout| Instant::now().checked_add(timeout));
        let size = if (self.layer.streams)(request.uri().path()) {
            BodySize::Many(StreamSize { max_message: *max_message, ..StreamSize::default() })
        } else {
            BodySize::One(Size { max_message: *max_message, ..Size::default() })
        };
        let path = deadline.map(|_| request.uri().path().to_owned()).unwrap_or_default();
        let (may_be_done, on_expired) = ((self.layer.changes)(&path), on_expired.clone());
        let request = request.map(|body| LimitedBody {
            body: Box::pin(body),
            in_flight,
            size,
            counters: counters.clone(),
            timeout: *limit,
            timer: None,
        });
        let answer = self.inner.call(request);
        Box::pin(async move {
            let Some(at) = deadline else {
                return Ok(answer.await?.map(|body| DeadlineBody::new(body, None)));
            };
            let expired = move |error: &Error| on_expired(&path, &requester, error);
            let Ok(answer) = timeout_at(at, answer).await else {
                let error = Error::DeadlineExceeded { may_be_done };
                expired(&error);
                return Ok(Status::from(error).into_http());
            };
            let deadline = Deadline::new(at, expired);
            Ok(answer?.map(|body| DeadlineBody::new(body, Some(deadline))))
        })
    }
}

impl<B> LimitedBody<B> {
    fn refuse<T>(&self, error: Error) -> Poll<Option<Result<T, BoxError>>> {
        if let Error::Limit { limit, .. } = error {
            self.counters.refused(limit);
        }
        Poll::Ready(Some(Err(Status::from(error).into())))
    }
}

impl<B> Body for LimitedBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let Poll::Ready(frame) = this.body.as_mut().poll_frame(cx) else {
            if this.size.may_pause() {
                this.timer = None;
                return Poll::Pending;
            }
            let limit = this.timeout;
            ready!(this.timer.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(cx));
            return this.refuse(Error::late(Limit::RequestTimeout, limit));
        };
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && let Err(error) = this.size.add(data).and_then(|more| this.in_flight.add(more))
        {
            return this.refuse(error);
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add_all(max_message: usize, parts: &[&[u8]]) -> Result<Vec<usize>, Error> {
        let mut size = Size { max_message, ..Size::default() };
        parts.iter().map(|part| size.add(part)).collect()
    }

    #[test]
    fn a_request_counts_what_it_announces_or_what_arrives_if_that_is_more() {
        let sizes = |parts: &[&[u8]]| add_all(1000, parts).unwrap();
        // Whole; in parts, its prefix too; with more bytes behind it than it announced.
        assert_eq!(sizes(&[&[0, 0, 0, 0, 2, 7, 7]]), [7]);
        assert_eq!(sizes(&[&[0, 0], &[0, 3], &[232, 7], &[7; 900], &[7; 99]]), [5, 0, 1000, 0, 0]);
        assert_eq!(sizes(&[&[], &[0, 0, 0, 0, 2, 7], &[7; 10]]), [5, 2, 9]);
    }

    #[test]
    fn messages_of_a_stream_count_when_they_are_announced_however_they_are_cut() {
        let whole: Vec<u8> = [&[0, 0, 0, 0, 2, 7, 7][..], &[0; 5], &[0, 0, 0, 0, 1, 7]].concat();
        for cut in 1..=whole.len() {
            let mut size = StreamSize { max_message: 2, ..StreamSize::default() };
            assert!(!size.is_between_messages(), "the first message is awaited");
            let parts = whole.chunks(cut).map(|part| size.add(part).unwrap());
            assert_eq!(parts.sum::<usize>(), whole.len());
            assert!(size.is_between_messages());
            assert_eq!(size.add(&[0, 0]).unwrap(), 0);
            assert!(!size.is_between_messages());
            assert!(size.add(&[0, 0, 3]).is_err());
        }
    }

    #[test]
    fn a_message_that_announces_too_much_is_refused_with_its_size() {
        let refused = |parts: &[&[u8]]| Status::from(add_all(64, parts).unwrap_err());
        let status = refused(&[&[0, 0, 0, 35, 40]]);
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert_eq!(status.message(), "request has 9000 bytes; the limit is 64");
        // In parts; as much as a prefix can say.
        let status = refused(&[&[0, 0, 0], &[0, 65]]);
        assert_eq!(status.message(), "request has 65 bytes; the limit is 64");
        let status = refused(&[&[0, 255, 255, 255, 255, 7]]);
        assert_eq!(status.message(), "request has 4294967295 bytes; the limit is 64");
    }
}
