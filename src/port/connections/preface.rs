//! The first bytes of a connection: they show whether the client speaks HTTP/2.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, Waker},
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::{activity::Activity, driver::NewRequests, peer::Transport};

/// The first bytes of every HTTP/2 client (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The length of a frame header. The preface of a client ends with a SETTINGS frame.
const FRAME_HEADER_LEN: usize = 9;

/// The protocol of a client, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/2.
    Http2,
    /// Anything else. It is answered as HTTP/1.
    Other,
}

/// Bytes that are read from a client of HTTP/2 before its requests are accepted and the gateway's
/// own frames are written.
///
/// A request of few bytes takes memory until it is accepted, and may be answered with a frame that
/// has to wait until the client reads. So what waits is limited by what a client has sent, and not
/// by counting its mistakes: a load balancer has those of all its clients on one connection, over
/// months.
const MAX_AHEAD: usize = 64 * 1024;

/// Requests that a client has cancelled and that are not finished yet, before more is read.
const MAX_CANCELLED: usize = 256;

/// The bytes of a connection. Records when the client has sent its connection preface, and holds a
/// client back that does not read its answers.
pub struct PrefaceIo {
    io: Transport,
    activity: Arc<Activity>,
    /// The bytes that [`PrefaceIo::detect`] has read: the first `read` bytes, of which `returned`
    /// have been returned by `poll_read` since.
    first: [u8; PREFACE.len()],
    read: usize,
    returned: usize,
    /// Bytes of the connection preface that are still to come.
    missing: usize,
    /// Bytes that were read since the connection last looked at everything else.
    ahead: usize,
    /// True after [`MAX_AHEAD`], until then.
    paused: bool,
    /// The requests that were accepted and are not polled yet, and how many may be unfinished; none
    /// before HTTP/2 begins.
    requests: Option<(Weak<NewRequests>, usize)>,
    /// True while the client does not take what is written.
    blocked: bool,
    /// Woken when it does again.
    reader: Option<Waker>,
}

impl PrefaceIo {
    /// Wraps the bytes of a new connection.
    pub fn new(io: Transport, activity: Arc<Activity>) -> PrefaceIo {
        let missing = PREFACE.len() + FRAME_HEADER_LEN;
        PrefaceIo {
            io,
            activity,
            first: *PREFACE,
            read: 0,
            returned: 0,
            missing,
            ahead: 0,
            paused: false,
            requests: None,
            blocked: false,
            reader: None,
        }
    }

    /// True if nothing has arrived.
    pub fn is_unused(&self) -> bool {
        self.read == 0
    }

    /// Begins to hold the client back: HTTP/2 puts the requests that it accepts there, of which
    /// `max` may be open. More are unfinished only where their client has cancelled them.
    pub fn limit_reading(&mut self, new_requests: Weak<NewRequests>, max: usize) {
        self.requests = Some((new_requests, max + MAX_CANCELLED));
    }

    /// Records the result of a write or a flush.
    fn wrote<T>(&mut self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.blocked = result.is_pending();
        if !self.blocked
            && let Some(reader) = self.reader.take()
        {
            reader.wake();
        }
        result
    }

    /// True if everything else comes before more is read: writing, and accepting requests. Within
    /// one poll of the connection it stays true, since it accepts requests one by one and would
    /// read after each.
    fn is_ahead(&mut self, cx: &Context<'_>) -> bool {
        let Some((new_requests, max)) = &self.requests else { return false };
        if self.ahead < MAX_AHEAD {
            return false;
        }
        let is_busy = || {
            let accepting = |requests: Arc<NewRequests>| !requests.lock().is_empty();
            new_requests.upgrade().is_some_and(accepting) || self.activity.in_flight() > *max
        };
        if self.paused && !self.blocked && !is_busy() {
            (self.paused, self.ahead) = (false, 0);
            return false;
        }
        self.paused = true;
        if self.blocked {
            self.reader = Some(cx.waker().clone());
        } else {
            cx.waker().wake_by_ref();
        }
        true
    }

    /// Reads until the protocol is certain. `poll_read` returns these bytes once more.
    pub async fn detect(&mut self) -> io::Result<Protocol> {
        loop {
            if self.read == PREFACE.len() {
                return Ok(Protocol::Http2);
            }
            let more = self.io.read(&mut self.first[self.read..]).await?;
            self.read += more;
            if more == 0 || !PREFACE.starts_with(&self.first[..self.read]) {
                return Ok(Protocol::Other);
            }
        }
    }
}

impl AsyncRead for PrefaceIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_ahead(cx) {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let this = &mut *self;
        let polled = if this.returned < this.read {
            let first = &this.first[this.returned..this.read];
            let first = &first[..first.len().min(buffer.remaining())];
            buffer.put_slice(first);
            this.returned += first.len();
            Poll::Ready(Ok(()))
        } else {
            Pin::new(&mut this.io).poll_read(cx, buffer)
        };
        let more = buffer.filled().len() - before;
        this.ahead += more;
        if this.missing > 0 {
            this.missing = this.missing.saturating_sub(more);
            if this.missing == 0 {
                this.activity.record_preface();
            }
        }
        polled
    }
}

impl AsyncWrite for PrefaceIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, buffers);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.wrote(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
