//! What a request that was answered early has left unread of its body: it is read, and thrown away,
//! before the answer goes out. Otherwise HTTP/2 resets the stream behind the answer, and clients
//! that still send, curl among them, report the reset and throw the answer away; over HTTP/1.1 the
//! connection closes under them.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Body, extract::Request, middleware::Next, response::Response};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::oneshot;

use super::json_body::MAX_JSON;

/// Bytes that are read at most: somebody who sends more loses the answer.
const MAX_UNREAD: usize = 4 * MAX_JSON;

/// For how long the answer waits for them.
const MAX_WAIT: Duration = Duration::from_secs(2);

/// A body that comes back to who lent it.
struct Lent {
    body: Body,
    back: Option<oneshot::Sender<Body>>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(back) = self.back.take() {
            // Nobody waits for it any more: the request is over.
            let _ = back.send(std::mem::take(&mut self.body));
        }
    }
}

impl http_body::Body for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Reads the rest of the request's body before its answer is given. A body that the answer still
/// reads, that of a stream, is left to it.
pub async fn read_rest(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let (back, mut returned) = oneshot::channel();
    let body = Body::new(Lent { body, back: Some(back) });
    let response = next.run(Request::from_parts(head, body)).await;
    if let Ok(body) = returned.try_recv() {
        // Whatever comes of it, the answer is given.
        let _ = tokio::time::timeout(MAX_WAIT, throw_away(body)).await;
    }
    response
}

async fn throw_away(mut body: Body) {
    let mut read = 0;
    while read <= MAX_UNREAD
        && let Some(Ok(frame)) = body.frame().await
    {
        read += frame.data_ref().map_or(0, Bytes::len);
    }
}
