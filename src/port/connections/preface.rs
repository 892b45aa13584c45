//! The first bytes of a connection: they show whether the client speaks HTTP/2.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::{activity::Activity, peer::Transport};

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

/// The bytes of a connection. Records when the client has sent its connection preface.
#[derive(Debug)]
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
}

impl PrefaceIo {
    /// Wraps the bytes of a new connection.
    pub fn new(io: Transport, activity: Arc<Activity>) -> PrefaceIo {
        let missing = PREFACE.len() + FRAME_HEADER_LEN;
        PrefaceIo { io, activity, first: *PREFACE, read: 0, returned: 0, missing }
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
        if this.missing > 0 {
            let more = buffer.filled().len() - before;
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
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
