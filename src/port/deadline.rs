//! The deadline of a request, and the end of responses that are not complete by then. tonic has it
//! only in its own server, which is not used here.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;

use crate::errors::{Error, Requester};

/// Reports that the deadline of a request to this path, of this sender, was over.
pub type OnExpired = std::sync::Arc<dyn Fn(&str, &Requester, &Error) + Send + Sync>;

/// The `grpc-timeout` of a request: at most eight digits and a unit. None: the header is missing or
/// malformed.
pub fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
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

/// The body of a response that ends with `DEADLINE_EXCEEDED` at the deadline of its request. What
/// made it is dropped then.
pub struct DeadlineBody<B> {
    /// None once it was dropped.
    body: Option<B>,
    deadline: Option<Box<Deadline>>,
}

/// The end of a response, and whom to tell.
pub struct Deadline {
    timer: Pin<Box<Sleep>>,
    expired: Box<dyn Fn(&Error) + Send + Sync>,
}

impl Deadline {
    /// A deadline, and what is called when a response was not complete by then.
    pub fn new(at: Instant, expired: impl Fn(&Error) + Send + Sync + 'static) -> Deadline {
        Deadline { timer: Box::pin(sleep_until(at)), expired: Box::new(expired) }
    }
}

impl<B> DeadlineBody<B> {
    /// A body, and its deadline if it has one.
    pub fn new(body: B, deadline: Option<Deadline>) -> DeadlineBody<B> {
        DeadlineBody { body: Some(body), deadline: deadline.map(Box::new) }
    }
}

impl<B: Default> Default for DeadlineBody<B> {
    fn default() -> DeadlineBody<B> {
        DeadlineBody::new(B::default(), None)
    }
}

impl<B: From<&'static str>> From<&'static str> for DeadlineBody<B> {
    fn from(text: &'static str) -> DeadlineBody<B> {
        DeadlineBody::new(B::from(text), None)
    }
}

impl<B> Body for DeadlineBody<B>
where
    B: Body<Error = Status> + Unpin,
{
    type Data = B::Data;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, Status>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        // First, so that a body that is always ready does not outlive it.
        if let Some(deadline) = &mut this.deadline
            && deadline.timer.as_mut().poll(cx).is_ready()
            && !body.is_end_stream()
        {
            this.body = None;
            let error = Error::DeadlineExceeded { may_be_done: false };
            (deadline.expired)(&error);
            let mut trailers = HeaderMap::new();
            Status::from(error).add_header(&mut trailers)?;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Pin::new(body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeout_is_read_as_the_protocol_defines_it() {
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
