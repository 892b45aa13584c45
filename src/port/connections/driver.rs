//! The connection driver: polls a connection and its requests in one task.
//!
//! An event that goes out wakes its stream, which hands a message to the connection, which writes
//! it. In one task that is one poll on one core: nothing goes through a queue of the runtime or
//! wakes another of its threads. The price is that a connection never uses more than one core.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered, task::AtomicWaker,
};
use parking_lot::Mutex;
use tokio::task::coop::has_budget_remaining;

/// The parts of the task, as bits of [`Wakeups`].
const CONNECTION: u8 = 1;
const REQUESTS: u8 = 2;
const LIFECYCLE: u8 = 4;
/// Set while the task is being polled: it looks for further wake-ups before it returns.
const POLLING: u8 = 8;

/// Rounds within one poll of the task; then it yields to other tasks.
const MAX_ROUNDS: usize = 32;

/// How long responses may be collected before the connection writes them, while further requests
/// are being polled.
const MAX_WRITE_DELAY: Duration = Duration::from_micros(100);

/// Requests that have not been polled yet.
pub type NewRequests = Mutex<Vec<BoxFuture<'static, ()>>>;

/// The parts of the task that have been woken.
#[derive(Default)]
struct Wakeups {
    parts: AtomicU8,
    task: AtomicWaker,
}

/// Wakes one part. The task itself is woken once, and only while it is not being polled.
struct PartWaker {
    part: u8,
    wakeups: Arc<Wakeups>,
}

impl Wake for PartWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Bits that are set already mean that the task is awake.
        if self.wakeups.parts.fetch_or(self.part, Ordering::AcqRel) == 0 {
            self.wakeups.task.wake();
        }
    }
}

impl Wakeups {
    fn waker(self: &Arc<Self>, part: u8) -> Waker {
        Waker::from(Arc::new(PartWaker { part, wakeups: self.clone() }))
    }

    /// Takes the parts that have been woken. None: there are none, and the next wake-up wakes the
    /// task.
    fn take(&self) -> Option<u8> {
        loop {
            let parts = self.parts.swap(POLLING, Ordering::AcqRel) & !POLLING;
            if parts != 0 {
                return Some(parts);
            }
            let idle = self.parts.compare_exchange(POLLING, 0, Ordering::AcqRel, Ordering::Acquire);
            if idle.is_ok() {
                return None;
            }
        }
    }
}

/// Polls a connection and the requests that it brings until the connection has ended or
/// `lifecycle` is ready. `lifecycle` is polled like a future and may change the connection.
///
/// A request that panics ends alone. Requests that are unfinished at the end are dropped.
pub async fn run<C: Future>(
    mut connection: Pin<&mut C>,
    new_requests: Arc<NewRequests>,
    mut lifecycle: impl FnMut(Pin<&mut C>, &mut Context<'_>) -> Poll<()>,
) {
    let wakeups = Arc::new(Wakeups::default());
    wakeups.parts.store(CONNECTION | LIFECYCLE, Ordering::Release);
    let (connection_waker, requests_waker, lifecycle_waker) =
        (wakeups.waker(CONNECTION), wakeups.waker(REQUESTS), wakeups.waker(LIFECYCLE));
    let mut requests = FuturesUnordered::new();
    std::future::poll_fn(|cx| {
        wakeups.task.register(cx.waker());
        for _ in 0..MAX_ROUNDS {
            // Without budget tokio's resources return Pending and wake again at once.
            if !has_budget_remaining() {
                break;
            }
            let Some(parts) = wakeups.take() else { return Poll::Pending };
            if parts & REQUESTS != 0 {
                let mut cx = Context::from_waker(&requests_waker);
                // Set by the first request that ends: mostly it is the only one, and nothing waits.
                let mut deadline = None;
                while let Poll::Ready(Some(_)) = requests.poll_next_unpin(&mut cx) {
                    let now = Instant::now();
                    if now >= *deadline.get_or_insert(now + MAX_WRITE_DELAY) {
                        requests_waker.wake_by_ref();
                        break;
                    }
                }
            }
            if parts & CONNECTION != 0 {
                let mut cx = Context::from_waker(&connection_waker);
                if connection.as_mut().poll(&mut cx).is_ready() {
                    return Poll::Ready(());
                }
                for request in new_requests.lock().drain(..) {
                    requests.push(AssertUnwindSafe(request).catch_unwind());
                    requests_waker.wake_by_ref();
                }
            }
            if parts & LIFECYCLE != 0 {
                let mut cx = Context::from_waker(&lifecycle_waker);
                if lifecycle(connection.as_mut(), &mut cx).is_ready() {
                    return Poll::Ready(());
                }
                // A change of the connection, such as a graceful shutdown, happens when it is
                // polled.
                connection_waker.wake_by_ref();
            }
        }
        // Yields: other tasks are polled first.
        wakeups.parts.fetch_and(!POLLING, Ordering::AcqRel);
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use tokio::{
        sync::{Notify, mpsc, oneshot},
        time::{sleep, timeout},
    };

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn forever<C>(_: Pin<&mut C>, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn add(new_requests: &NewRequests, request: impl Future<Output = ()> + Send + 'static) {
        new_requests.lock().push(Box::pin(request));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn wake_ups_from_other_tasks_are_never_lost() {
        // The connection and a request each send numbers to a task that returns them, so that they
        // are woken both while the driver is being polled and while it is not.
        const NUMBERS: usize = 20_000;
        let new_requests = Arc::new(NewRequests::default());
        let done = Arc::new(Notify::new());
        let ping_pong = || {
            let (to_echo, mut numbers) = mpsc::channel::<usize>(1);
            let (from_echo, mut returned) = mpsc::channel::<usize>(1);
            tokio::spawn(async move {
                while let Some(number) = numbers.recv().await {
                    let _ = from_echo.send(number).await;
                }
            });
            async move {
                for number in 0..NUMBERS {
                    to_echo.send(number).await.expect("the echo task runs");
                    assert_eq!(returned.recv().await, Some(number));
                }
            }
        };
        let request_done = done.clone();
        let of_request = ping_pong();
        add(&new_requests, async move {
            of_request.await;
            request_done.notify_one();
        });
        let of_connection = ping_pong();
        let connection = pin!(async move {
            of_connection.await;
            done.notified().await;
        });
        timeout(LIMIT, run(connection, new_requests, forever)).await.expect("both finish in time");
    }

    #[tokio::test]
    async fn a_request_that_panics_ends_no_other_request() {
        let new_requests = Arc::new(NewRequests::default());
        let (finish, finished) = oneshot::channel();
        add(&new_requests, async { panic!("as the test wants it") });
        add(&new_requests, async move {
            sleep(Duration::from_millis(1)).await;
            let _ = finish.send(());
        });
        let connection = pin!(async move { finished.await.expect("the other request goes on") });
        timeout(LIMIT, run(connection, new_requests, forever)).await.expect("in time");
    }

    #[tokio::test]
    async fn a_request_that_is_always_ready_starves_no_other_task() {
        let new_requests = Arc::new(NewRequests::default());
        let polls = Arc::new(AtomicUsize::new(0));
        let counted = polls.clone();
        add(&new_requests, async move {
            std::future::poll_fn(|cx| -> Poll<()> {
                counted.fetch_add(1, Ordering::Relaxed);
                cx.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
        });
        let mut timer = pin!(sleep(Duration::from_millis(20)));
        let lifecycle =
            |_: Pin<&mut std::future::Pending<()>>, cx: &mut Context<'_>| timer.as_mut().poll(cx);
        let connection = pin!(std::future::pending());
        timeout(LIMIT, run(connection, new_requests, lifecycle)).await.expect("in time");
        assert!(polls.load(Ordering::Relaxed) > 2 * MAX_ROUNDS);
    }

    #[tokio::test]
    async fn the_connection_is_polled_after_its_lifecycle() {
        let changed = Arc::new(AtomicUsize::new(0));
        let seen = changed.clone();
        // Nothing else wakes it.
        let connection = pin!(std::future::poll_fn(|_| match seen.load(Ordering::Relaxed) {
            0 => Poll::Pending,
            _ => Poll::Ready(()),
        }));
        let mut timer = pin!(sleep(Duration::from_millis(1)));
        let lifecycle = |_: Pin<&mut _>, cx: &mut Context<'_>| {
            if changed.load(Ordering::Relaxed) == 0 && timer.as_mut().poll(cx).is_ready() {
                changed.store(1, Ordering::Relaxed);
            }
            Poll::Pending
        };
        timeout(LIMIT, run(connection, Arc::default(), lifecycle)).await.expect("in time");
    }

    #[tokio::test]
    async fn unfinished_requests_are_dropped_with_their_connection() {
        let new_requests = Arc::new(NewRequests::default());
        let (held, dropped) = oneshot::channel::<()>();
        add(&new_requests, async move {
            std::future::pending::<()>().await;
            drop(held);
        });
        let connection = pin!(sleep(Duration::from_millis(1)));
        timeout(LIMIT, run(connection, new_requests, forever)).await.expect("in time");
        assert!(dropped.await.is_err());
    }
}
