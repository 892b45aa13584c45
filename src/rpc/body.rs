//! The bodies of responses: encoded messages, and the status that follows them.
//!
//! The messages of a stream go to HTTP/2 as they are. The server of tonic would copy each into a
//! buffer of the stream first.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::{Stream, future::BoxFuture};
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use tonic::{Code, Status};

use crate::rpc::{encoded::EncodedMessage, publish_stream::PublishStream, stream::Subscription};

/// The trailer of a load report (ORCA).
const LOAD: &str = "endpoint-load-metrics-bin";

/// The body of a response.
pub enum ResponseBody {
    /// Encoded messages, then a status; none once the status was sent.
    Messages(Option<Messages>),
    /// The body of a response that tonic makes.
    Tonic(tonic::body::Body),
}

/// Encoded messages to be sent.
pub enum Messages {
    /// The response of a unary method, none once it was sent, and the load of the gateway.
    Unary(Option<EncodedMessage>, Option<HeaderValue>),
    /// The responses of a stream.
    Stream(Box<Subscription>),
    /// The answers to published events.
    Publishing(Box<PublishStream>),
    /// The same, once it is open.
    Opening(BoxFuture<'static, Result<Subscription, Status>>),
}

impl ResponseBody {
    /// The body of a unary method's response, with a load report as
    /// [`LoadReports::trailer`](crate::observe::load::LoadReports::trailer) gives it.
    pub fn unary(message: &impl prost::Message, load: Option<HeaderValue>) -> ResponseBody {
        ResponseBody::Messages(Some(Messages::Unary(Some(EncodedMessage::message(message)), load)))
    }

    /// The body of a stream that is being opened.
    pub fn opening(
        stream: impl Future<Output = Result<Subscription, Status>> + Send + 'static,
    ) -> ResponseBody {
        ResponseBody::Messages(Some(Messages::Opening(Box::pin(stream))))
    }

    /// The body of a stream.
    pub fn stream(stream: Subscription) -> ResponseBody {
        ResponseBody::Messages(Some(Messages::Stream(Box::new(stream))))
    }
}

impl From<PublishStream> for ResponseBody {
    fn from(stream: PublishStream) -> ResponseBody {
        ResponseBody::Messages(Some(Messages::Publishing(Box::new(stream))))
    }
}

impl Default for ResponseBody {
    /// An empty body, of a response whose status is in its headers.
    fn default() -> ResponseBody {
        ResponseBody::Messages(None)
    }
}

impl From<tonic::body::Body> for ResponseBody {
    fn from(body: tonic::body::Body) -> ResponseBody {
        ResponseBody::Tonic(body)
    }
}

impl From<&'static str> for ResponseBody {
    /// Text that is not a message of gRPC.
    fn from(text: &'static str) -> ResponseBody {
        ResponseBody::Tonic(tonic::body::Body::new(text.to_owned()))
    }
}

impl Messages {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<EncodedMessage, Status>>> {
        loop {
            match self {
                Messages::Unary(message, _) => return Poll::Ready(message.take().map(Ok)),
                Messages::Stream(stream) => return Pin::new(&mut **stream).poll_next(cx),
                Messages::Publishing(stream) => return Pin::new(&mut **stream).poll_next(cx),
                Messages::Opening(opening) => match ready!(opening.as_mut().poll(cx)) {
                    Ok(stream) => *self = Messages::Stream(Box::new(stream)),
                    Err(status) => return Poll::Ready(Some(Err(status))),
                },
            }
        }
    }
}

impl Body for ResponseBody {
    type Data = EncodedMessage;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<EncodedMessage>, Status>>> {
        match self.get_mut() {
            ResponseBody::Tonic(body) => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                Poll::Ready(frame.map(|frame| Ok(frame?.map_data(EncodedMessage::Whole))))
            }
            ResponseBody::Messages(messages) => {
                let Some(left) = messages else { return Poll::Ready(None) };
                let status = match ready!(left.poll_next(cx)) {
                    Some(Ok(message)) => return Poll::Ready(Some(Ok(Frame::data(message)))),
                    Some(Err(status)) => status,
                    None => Status::new(Code::Ok, ""),
                };
                let mut trailers = HeaderMap::new();
                if let Some(Messages::Unary(_, Some(load))) = messages.take() {
                    trailers.insert(LOAD, load);
                }
                status.add_header(&mut trailers)?;
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ResponseBody::Messages(messages) => messages.is_none(),
            ResponseBody::Tonic(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ResponseBody::Messages(_) => SizeHint::default(),
            ResponseBody::Tonic(body) => body.size_hint(),
        }
    }
}
