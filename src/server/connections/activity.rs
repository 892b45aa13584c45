//! What happens on one connection, as far as its life depends on it.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::task::TaskTracker;

use crate::server::counters::Counters;

/// What a client of HTTP/2 sends before anything else: its preface, and the head of its SETTINGS.
const HANDSHAKE_BYTES: usize = 24 + 9;

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

/// Runs the requests of one connection: hyper hands each of them over as one future, which ends when it is wholly answered, was
/// reset, or its connection is gone.
#[derive(Clone, Debug)]
pub struct Runner {
    /// Those of all connections.
    pub tasks: TaskTracker,
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
        self.tasks.spawn(async move {
            let _under_way = under_way;
            request.await
        });
    }
}

/// A connection's bytes, watched until its client has greeted.
#[derive(Debug)]
pub struct Watched<IO> {
    io: IO,
    activity: Arc<Activity>,
    /// Bytes that are still missing from the greeting.
    missing: usize,
}

impl<IO> Watched<IO> {
    /// Watches `io`.
    pub fn new(io: IO, activity: Arc<Activity>) -> Watched<IO> {
        Watched { io, activity, missing: HANDSHAKE_BYTES }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buffer);
        if self.missing > 0 {
            self.missing = self.missing.saturating_sub(buffer.filled().len() - before);
            if self.missing == 0 {
                self.activity.greeted.store(true, Ordering::Relaxed);
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
