//! What answers are made of.
//!
//! The messages of a stream go to HTTP/2 as they are, [`Piece`] by piece. The generated server would copy each into a buffer of
//! the stream first; so its answer to `Subscribe` is an empty one that carries the stream beside it, and the stream is put into
//! its place where all answers leave.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::Stream;
use http::{HeaderMap, Response};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tonic::{Code, Status};

use crate::rpc::{stream::Subscription, wire::Piece};

/// A stream on its way through the generated server, in the extensions of its answer.
#[derive(Clone)]
struct Carried(Arc<Mutex<Option<Box<Subscription>>>>);

/// The body of an answer.
pub enum Outgoing {
    /// The messages of a stream, and how it ended; none when that was said.
    Stream(Option<Box<Subscription>>),
    /// Whatever tonic made.
    Other(tonic::body::Body),
}

/// The answer that carries `subscription`.
pub fn carry<T>(stream: T, subscription: Subscription) -> tonic::Response<T> {
    let mut response = tonic::Response::new(stream);
    response.extensions_mut().insert(Carried(Arc::new(Mutex::new(Some(Box::new(subscription))))));
    response
}

/// The answer as it leaves.
pub fn outgoing(mut response: Response<tonic::body::Body>) -> Response<Outgoing> {
    let carried = response.extensions_mut().remove::<Carried>();
    match carried.and_then(|carried| carried.0.lock().take()) {
        Some(subscription) => response.map(|_| Outgoing::Stream(Some(subscription))),
        None => response.map(Outgoing::Other),
    }
}

impl Body for Outgoing {
    type Data = Piece;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, Status>>> {
        match self.get_mut() {
            Outgoing::Other(body) => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                Poll::Ready(frame.map(|frame| Ok(frame?.map_data(Piece::Whole))))
            }
            Outgoing::Stream(stream) => {
                let Some(subscription) = stream else { return Poll::Ready(None) };
                let end = match ready!(Pin::new(&mut **subscription).poll_next(cx)) {
                    Some(Ok(piece)) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
                    Some(Err(status)) => status,
                    None => Status::new(Code::Ok, ""),
                };
                *stream = None;
                let mut trailers = HeaderMap::new();
                end.add_header(&mut trailers)?;
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Outgoing::Stream(stream) => stream.is_none(),
            Outgoing::Other(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Outgoing::Stream(_) => SizeHint::default(),
            Outgoing::Other(body) => body.size_hint(),
        }
    }
}
