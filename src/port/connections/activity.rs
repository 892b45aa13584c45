//! Tracks the requests of one connection, on which its lifetime depends.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use crate::port::{connections::driver::NewRequests, counters::Counters};

/// The state of one connection that decides how long it may stay.
#[derive(Debug, Default)]
pub struct Activity {
    preface_received: AtomicBool,
    in_flight: AtomicUsize,
    started: AtomicU64,
}

/// Counts a request as in flight until it is dropped.
#[derive(Debug)]
struct InFlightGuard {
    activity: Arc<Activity>,
    counters: Arc<Counters>,
}

impl Activity {
    /// Records that the client has sent its HTTP/2 connection preface.
    pub fn record_preface(&self) {
        self.preface_received.store(true, Ordering::Relaxed);
    }

    /// True once the client has sent its HTTP/2 connection preface.
    pub fn preface_received(&self) -> bool {
        self.preface_received.load(Ordering::Relaxed)
    }

    /// The number of requests that are not finished.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// The number of requests so far, if none is in flight now.
    pub fn requests_if_idle(&self) -> Option<u64> {
        let started = self.started.load(Ordering::Relaxed);
        (self.in_flight.load(Ordering::Relaxed) == 0).then_some(started)
    }
}

impl InFlightGuard {
    fn new(activity: &Arc<Activity>, counters: &Arc<Counters>) -> InFlightGuard {
        activity.started.fetch_add(1, Ordering::Relaxed);
        activity.in_flight.fetch_add(1, Ordering::Relaxed);
        counters.request_started();
        InFlightGuard { activity: activity.clone(), counters: counters.clone() }
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.activity.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.counters.request_finished();
    }
}

/// Takes the requests of one connection from hyper and queues them for the connection driver.
/// hyper hands over each request as one future, which ends when its response is sent, its stream
/// is reset, or its connection is closed.
#[derive(Clone)]
pub struct RequestExecutor {
    /// The queue. Weak, since a queued request may itself hold an executor.
    pub new_requests: Weak<NewRequests>,
    /// The activity of this connection.
    pub activity: Arc<Activity>,
    /// Counts the requests of all connections.
    pub counters: Arc<Counters>,
}

impl<F> hyper::rt::Executor<F> for RequestExecutor
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, request: F) {
        let guard = InFlightGuard::new(&self.activity, &self.counters);
        let Some(new_requests) = self.new_requests.upgrade() else { return };
        new_requests.lock().push(Box::pin(async move {
            let _guard = guard;
            request.await;
        }));
    }
}
