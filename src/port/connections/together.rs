//! A connection and its requests, in one task.
//!
//! An event that goes out wakes its stream, which hands a message to the connection, which writes it: in one task that is one turn
//! on one core, and nothing goes through a queue of the runtime or wakes another of its threads on the way. The price is that a
//! connection never uses more than one core.

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

/// Who of a task is to be polled.
const CONNECTION: u8 = 1;
const REQUESTS: u8 = 2;
const LIFE: u8 = 4;
/// The task is in its turn, and looks once more before it ends it.
const IN_TURN: u8 = 8;

/// After so many rounds within one turn other tasks have theirs.
const ROUNDS: usize = 32;

/// So long answers are gathered at the most before they are written, while other requests are worked at.
const ANSWERS_WAIT: Duration = Duration::from_micros(100);

/// Requests that had no turn yet.
pub type Arrivals = Mutex<Vec<BoxFuture<'static, ()>>>;

/// Who is to be polled, of those that share a task.
#[derive(Default)]
struct Due {
    who: AtomicU8,
    task: AtomicWaker,
}

/// What one of them is woken with: the task itself is woken only outside of its turn, and once.
struct Bell {
    who: u8,
    due: Arc<Due>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Of a few that are waiting for the task only the first wakes it.
        if self.due.who.fetch_or(self.who, Ordering::AcqRel) == 0 {
            self.due.task.wake();
        }
    }
}

impl Due {
    fn bell(self: &Arc<Self>, who: u8) -> Waker {
        Waker::from(Arc::new(Bell { who, due: self.clone() }))
    }

    /// Those whose turn it is; none: the turn is over.
    fn next(&self) -> Option<u8> {
        loop {
            let who = self.who.swap(IN_TURN, Ordering::AcqRel) & !IN_TURN;
            if who != 0 {
                return Some(who);
            }
            let over =
                self.who.compare_exchange(IN_TURN, 0, Ordering::AcqRel, Ordering::Acquire).is_ok();
            if over {
                return None;
            }
        }
    }
}

/// Polls a connection and the requests that it brings until the connection has ended, or until `life` says that it is over. `life`
/// is polled as a future is, and may tell the connection something. A request that panics ends alone; those that are left at the end
/// are dropped.
pub async fn run<C: Future>(
    mut connection: Pin<&mut C>,
    arrivals: Arc<Arrivals>,
    mut life: impl FnMut(Pin<&mut C>, &mut Context<'_>) -> Poll<()>,
) {
    let due = Arc::new(Due::default());
    due.who.store(CONNECTION | LIFE, Ordering::Release);
    let (of_connection, of_requests, of_life) =
        (due.bell(CONNECTION), due.bell(REQUESTS), due.bell(LIFE));
    let mut requests = FuturesUnordered::new();
    std::future::poll_fn(|cx| {
        due.task.register(cx.waker());
        for _ in 0..ROUNDS {
            // What the runtime lets pass as one turn is over: whoever is polled now would only be put off.
            if !has_budget_remaining() {
                break;
            }
            let Some(who) = due.next() else { return Poll::Pending };
            if who & REQUESTS != 0 {
                let mut cx = Context::from_waker(&of_requests);
                // Mostly there is one, and then nobody waits for another.
                let mut until = None;
                while let Poll::Ready(Some(_)) = requests.poll_next_unpin(&mut cx) {
                    let now = Instant::now();
                    if now >= *until.get_or_insert(now + ANSWERS_WAIT) {
                        of_requests.wake_by_ref();
                        break;
                    }
                }
            }
            if who & CONNECTION != 0 {
                let mut cx = Context::from_waker(&of_connection);
                if connection.as_mut().poll(&mut cx).is_ready() {
                    return Poll::Ready(());
                }
                for request in arrivals.lock().drain(..) {
                    requests.push(AssertUnwindSafe(request).catch_unwind());
                    of_requests.wake_by_ref();
                }
            }
            if who & LIFE != 0 {
                let mut cx = Context::from_waker(&of_life);
                if life(connection.as_mut(), &mut cx).is_ready() {
                    return Poll::Ready(());
                }
                // It acts on what it was told when it is polled.
                of_connection.wake_by_ref();
            }
        }
        // The next turn comes after those of others.
        due.who.fetch_and(!IN_TURN, Ordering::AcqRel);
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
        sync::{Notify, oneshot},
        time::{sleep, timeout},
    };

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn forever<C>(_: Pin<&mut C>, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn arrive(arrivals: &Arrivals, request: impl Future<Output = ()> + Send + 'static) {
        arrivals.lock().push(Box::pin(request));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn everybody_who_is_woken_from_elsewhere_has_his_turn() {
        // Two that play ball with tasks of their own, which wake them in and outside of a turn.
        const BALLS: usize = 20_000;
        let arrivals = Arc::new(Arrivals::default());
        let done = Arc::new(Notify::new());
        let play = |count: usize| {
            let (there, mut balls) = tokio::sync::mpsc::channel::<usize>(1);
            let (back, mut returned) = tokio::sync::mpsc::channel::<usize>(1);
            tokio::spawn(async move {
                while let Some(ball) = balls.recv().await {
                    let _ = back.send(ball).await;
                }
            });
            async move {
                for ball in 0..count {
                    there.send(ball).await.expect("a player");
                    assert_eq!(returned.recv().await, Some(ball));
                }
            }
        };
        let request_done = done.clone();
        let game = play(BALLS);
        arrive(&arrivals, async move {
            game.await;
            request_done.notify_one();
        });
        let game = play(BALLS);
        let connection = pin!(async move {
            game.await;
            done.notified().await;
        });
        timeout(LIMIT, run(connection, arrivals, forever)).await.expect("both played to the end");
    }

    #[tokio::test]
    async fn a_request_that_panics_ends_alone() {
        let arrivals = Arc::new(Arrivals::default());
        let (tell, told) = oneshot::channel();
        arrive(&arrivals, async { panic!("as the test wants it") });
        arrive(&arrivals, async move {
            sleep(Duration::from_millis(1)).await;
            let _ = tell.send(());
        });
        let connection = pin!(async move { told.await.expect("the other request goes on") });
        timeout(LIMIT, run(connection, arrivals, forever)).await.expect("in time");
    }

    #[tokio::test]
    async fn one_that_is_always_ready_leaves_others_their_turns() {
        let arrivals = Arc::new(Arrivals::default());
        let turns = Arc::new(AtomicUsize::new(0));
        let counted = turns.clone();
        arrive(&arrivals, async move {
            std::future::poll_fn(|cx| -> Poll<()> {
                counted.fetch_add(1, Ordering::Relaxed);
                cx.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
        });
        let mut timer = pin!(sleep(Duration::from_millis(20)));
        let life =
            |_: Pin<&mut std::future::Pending<()>>, cx: &mut Context<'_>| timer.as_mut().poll(cx);
        timeout(LIMIT, run(pin!(std::future::pending()), arrivals, life)).await.expect("in time");
        assert!(turns.load(Ordering::Relaxed) > 2 * ROUNDS);
    }

    #[tokio::test]
    async fn a_connection_acts_on_what_it_is_told() {
        let told = Arc::new(AtomicUsize::new(0));
        let heard = told.clone();
        // Nothing else wakes it.
        let connection = pin!(std::future::poll_fn(|_| match heard.load(Ordering::Relaxed) {
            0 => Poll::Pending,
            _ => Poll::Ready(()),
        }));
        let mut timer = pin!(sleep(Duration::from_millis(1)));
        let life = |_: Pin<&mut _>, cx: &mut Context<'_>| {
            if told.load(Ordering::Relaxed) == 0 && timer.as_mut().poll(cx).is_ready() {
                told.store(1, Ordering::Relaxed);
            }
            Poll::Pending
        };
        timeout(LIMIT, run(connection, Arc::default(), life)).await.expect("in time");
    }

    #[tokio::test]
    async fn what_is_left_is_dropped_with_its_connection() {
        let arrivals = Arc::new(Arrivals::default());
        let (tell, told) = oneshot::channel::<()>();
        arrive(&arrivals, async move {
            std::future::pending::<()>().await;
            drop(tell);
        });
        let connection = pin!(sleep(Duration::from_millis(1)));
        timeout(LIMIT, run(connection, arrivals, forever)).await.expect("in time");
        assert!(told.await.is_err());
    }
}
