//! What happens on one connection, as far as its life depends on it.

use std::{
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use crate::observe::counters::Counters;
use crate::port::connections::together::Arrivals;

/// What a client of HTTP/2 sends before anything else.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The head of a frame: every client's first one is SETTINGS.
const FRAME_HEAD: usize = 9;

/// What happened so far on one connection.
#[derive(Debug, Default)]
pub struct Activity {
    /// Whether the client has said what every client says first.
    greeted: AtomicBool,
    /// Requests that are not wholly answered.
    under_way: AtomicUsize,
    /// Requests so far.
    begun: AtomicU64,
}

/// Keeps a request under way.
#[derive(Debug)]
struct UnderWay {
    activity: Arc<Activity>,
    counters: Arc<Counters>,
}

impl Activity {
    /// Whether HTTP/2 has begun.
    pub fn has_greeted(&self) -> bool {
        self.greeted.load(Ordering::Relaxed)
    }

    /// How many requests there were, if none is under way now.
    pub fn at_rest(&self) -> Option<u64> {
        let begun = self.begun.load(Ordering::Relaxed);
        (self.under_way.load(Ordering::Relaxed) == 0).then_some(begun)
    }
}

impl UnderWay {
    fn begin(activity: &Arc<Activity>, counters: &Arc<Counters>) -> UnderWay {
        activity.begun.fetch_add(1, Ordering::Relaxed);
        activity.under_way.fetch_add(1, Ordering::Relaxed);
        counters.begun();
        UnderWay { activity: activity.clone(), counters: counters.clone() }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.activity.under_way.fetch_sub(1, Ordering::Relaxed);
        self.counters.over();
    }
}

/// Takes the requests of one connection: hyper hands each of them over as one future, which ends when it is wholly answered, was
/// reset, or its connection is gone.
#[derive(Clone)]
pub struct Runner {
    /// Where they wait for their first turn, as long as there is one. Weak: a request may hold a runner itself.
    pub arrivals: Weak<Arrivals>,
    /// Those of this one.
    pub activity: Arc<Activity>,
    /// Where all are counted.
    pub counters: Arc<Counters>,
}

impl<F> hyper::rt::Executor<F> for Runner
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, request: F) {
        let under_way = UnderWay::begin(&self.activity, &self.counters);
        let Some(arrivals) = self.arrivals.upgrade() else { return };
        arrivals.lock().push(Box::pin(async move {
            let _under_way = under_way;
            request.await;
        }));
    }
}

/// How a client begins to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/2.
    Http2,
    /// Something else; HTTP/1 is worth an answer.
    Other,
}

/// A connection's bytes, watched until its client has greeted.
#[derive(Debug)]
pub struct Watched<IO> {
    io: IO,
    activity: Arc<Activity>,
    /// What was read to see how the client speaks: its first bytes, of which so many were read, and so many handed on.
    first: [u8; PREFACE.len()],
    read: usize,
    handed: usize,
    /// Bytes that are still missing from the greeting.
    missing: usize,
}

impl<IO> Watched<IO> {
    /// Watches `io`.
    pub fn new(io: IO, activity: Arc<Activity>) -> Watched<IO> {
        let missing = PREFACE.len() + FRAME_HEAD;
        Watched { io, activity, first: *PREFACE, read: 0, handed: 0, missing }
    }
}

impl<IO: Connected> Connected for Watched<IO> {
    type ConnectInfo = IO::ConnectInfo;

    fn connect_info(&self) -> IO::ConnectInfo {
        self.io.connect_info()
    }
}

impl<IO: AsyncRead + Unpin> Watched<IO> {
    /// Reads until it is plain how the client speaks. What was read is read again afterwards.
    pub async fn listen(&mut self) -> std::io::Result<Speaks> {
        loop {
            if self.read == PREFACE.len() {
                return Ok(Speaks::Http2);
            }
            let more = self.io.read(&mut self.first[self.read..]).await?;
            self.read += more;
            if more == 0 || !PREFACE.starts_with(&self.first[..self.read]) {
                return Ok(Speaks::Other);
            }
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let this = &mut *self;
        let polled = if this.handed < this.read {
            let first = &this.first[this.handed..this.read];
            let first = &first[..first.len().min(buffer.remaining())];
            buffer.put_slice(first);
            this.handed += first.len();
            Poll::Ready(Ok(()))
        } else {
            Pin::new(&mut this.io).poll_read(cx, buffer)
        };
        if this.missing > 0 {
            let more = buffer.filled().len() - before;
            this.missing = this.missing.saturating_sub(more);
            if this.missing == 0 {
                this.activity.greeted.store(true, Ordering::Relaxed);
            }
        }
        polled
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
