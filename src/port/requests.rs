//! How much of a request may come, and how long it may take to.
//!
//! The bytes of every request are counted, from the first one on until it is answered, against what its identity and all of them
//! together may have: half a request, a request that waits for the bus and the filter of an open stream are memory alike. What a
//! message says that it has is counted as soon as it says so, since tonic makes room for all of it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep, timeout};
use tonic::Status;
use tower::{BoxError, Layer, Service};

use crate::{
    access::{
        Caller, Identity,
        quota::{Pending, Quotas},
    },
    observe::counters::Counters,
    port::connections::peer_of,
    rpc::{error::Error, limit::Limit, wire::PREFIX},
};

/// Wraps the gRPC services of a port.
#[derive(Clone, Debug)]
pub struct RequestsLayer {
    /// Who has how much.
    pub quotas: Arc<Quotas>,
    /// Where refusals are counted.
    pub counters: Arc<Counters>,
    /// How long a request may take to arrive.
    pub timeout: Duration,
    /// How many bytes a message may have; one that says more is refused before room is made for it.
    pub max_message: usize,
}

/// Puts a [`Pending`] into the extensions of each request, and counts its bytes there.
#[derive(Clone, Debug)]
pub struct Requests<S> {
    inner: S,
    layer: RequestsLayer,
}

/// The body of a request, counted and timed.
pub struct Metered<B> {
    body: Pin<Box<B>>,
    pending: Arc<Pending>,
    size: Size,
    counters: Arc<Counters>,
    timeout: Duration,
    /// Begins when the body is waited for: most come whole with their headers.
    timer: Option<Pin<Box<Sleep>>>,
}

/// How large a request is, from what has come of it.
#[derive(Debug, Default)]
struct Size {
    max_message: usize,
    /// What came of the first message's prefix.
    prefix: [u8; PREFIX],
    came: usize,
    /// The most that came or was announced.
    known: usize,
}

impl Size {
    /// Takes note of what came; returns by how much more the request is larger than was known.
    fn take(&mut self, data: &[u8]) -> usize {
        let rest = self.prefix.get_mut(self.came..).unwrap_or_default();
        rest.iter_mut().zip(data).for_each(|(slot, byte)| *slot = *byte);
        self.came += data.len();
        let [_, length @ ..] = self.prefix;
        let message = u32::from_be_bytes(length) as usize;
        let announced = if self.came < PREFIX || message > self.max_message { 0 } else { message };
        let known = self.came.max(PREFIX + announced);
        let more = known - self.known;
        self.known = known;
        more
    }
}

impl<S> Layer<S> for RequestsLayer {
    type Service = Requests<S>;

    fn layer(&self, inner: S) -> Requests<S> {
        Requests { inner, layer: self.clone() }
    }
}

impl<S, B> Service<Request<B>> for Requests<S>
where
    S: Service<Request<Metered<B>>, Response = Response<tonic::body::Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let RequestsLayer { quotas, counters, timeout: limit, max_message } = &self.layer;
        let share = match request.extensions().get().map(|caller: &Caller| &caller.identity) {
            Some(Identity::Anonymous(address)) => {
                quotas.of(&Identity::Anonymous(peer_of(*address)))
            }
            Some(named) => quotas.of(named),
            // Who comes from nowhere shares with all others who do.
            None => quotas.of(&Identity::Named("".into())),
        };
        let pending = Arc::new(quotas.request(share));
        request.extensions_mut().insert(pending.clone());
        let deadline = grpc_timeout(request.headers());
        let request = request.map(|body| Metered {
            body: Box::pin(body),
            pending,
            size: Size { max_message: *max_message, ..Size::default() },
            counters: counters.clone(),
            timeout: *limit,
            timer: None,
        });
        let answer = self.inner.call(request);
        match deadline {
            None => Box::pin(answer),
            Some(deadline) => Box::pin(async move {
                timeout(deadline, answer).await.unwrap_or_else(|_| {
                    Ok(Status::deadline_exceeded("the deadline of the request is over").into_http())
                })
            }),
        }
    }
}

impl<B> Metered<B> {
    fn refuse<T>(&self, error: Error) -> Poll<Option<Result<T, BoxError>>> {
        if let Error::Limit { limit, .. } = error {
            self.counters.refused(limit);
        }
        Poll::Ready(Some(Err(Status::from(error).into())))
    }
}

impl<B> Body for Metered<B>
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
            let limit = this.timeout;
            ready!(this.timer.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(cx));
            return this.refuse(Error::late(Limit::RequestTimeout, limit));
        };
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && let Err(error) = this.pending.add(this.size.take(data))
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

/// The deadline that a client sends with its request: digits and a unit.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    // At most eight digits, says the protocol; what is no number is no deadline.
    if digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_as_large_as_it_says_or_as_what_came_of_it() {
        let sizes = |parts: &[&[u8]]| -> Vec<usize> {
            let mut size = Size { max_message: 1000, ..Size::default() };
            parts.iter().map(|part| size.take(part)).collect()
        };
        // Whole; in parts, its prefix too; with more behind it than it said.
        assert_eq!(sizes(&[&[0, 0, 0, 0, 2, 7, 7]]), [7]);
        assert_eq!(sizes(&[&[0, 0], &[0, 3], &[232, 7], &[7; 900], &[7; 99]]), [5, 0, 1000, 0, 0]);
        assert_eq!(sizes(&[&[], &[0, 0, 0, 0, 2, 7], &[7; 10]]), [5, 2, 9]);
        // More than a message may have: no room is made.
        assert_eq!(sizes(&[&[0, 0, 0, 3, 233], &[7; 10]]), [5, 10]);
        assert_eq!(sizes(&[&[0, 255, 255, 255, 255, 7]]), [6]);
    }

    #[test]
    fn deadlines_are_read_as_the_protocol_writes_them() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            grpc_timeout(&headers)
        };
        assert_eq!(read("1S"), Some(Duration::from_secs(1)));
        assert_eq!(read("99999999H"), Some(Duration::from_hours(99_999_999)));
        assert_eq!(read("20M"), Some(Duration::from_mins(20)));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("7u"), Some(Duration::from_micros(7)));
        assert_eq!(read("0n"), Some(Duration::ZERO));
        for wrong in ["", "S", "1", "1s", "-1S", "+1S", "1.5S", "123456789S", " 1S"] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }
}
