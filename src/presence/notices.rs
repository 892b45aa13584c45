//! What the node of a stream is to be told beside its events.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

use crate::proto::v1;

/// The latest notice that a stream has not sent yet. A stream that does not read holds one, however many there were.
#[derive(Debug, Default)]
pub struct Notices {
    latest: Mutex<Latest>,
    /// Whether one waits: all that a busy stream looks at.
    waiting: AtomicBool,
    waker: AtomicWaker,
}

#[derive(Debug, Default)]
struct Latest {
    /// Boxed, since nearly every stream has none.
    waiting: Option<Box<v1::Notice>>,
    /// Of whom the node was told last, as a hash. Zero: of nobody.
    told: u64,
}

impl Notices {
    /// Tells the node of others, unless it was told of the same ones. Zero: there are none any more.
    pub(super) fn tell(&self, others: u64, notice: impl FnOnce() -> v1::Notice) {
        let mut latest = self.latest.lock();
        if latest.told == others {
            return;
        }
        latest.told = others;
        latest.waiting = Some(Box::new(notice()));
        self.waiting.store(true, Ordering::Relaxed);
        drop(latest);
        self.waker.wake();
    }

    /// Whether there may be something to take. Cheap, and may be late.
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Takes what is to be sent; where there is nothing, the task is woken when there is.
    pub fn poll_take(&self, cx: &mut Context<'_>) -> Poll<v1::Notice> {
        self.waker.register(cx.waker());
        let mut latest = self.latest.lock();
        self.waiting.store(false, Ordering::Relaxed);
        match latest.waiting.take() {
            Some(notice) => Poll::Ready(*notice),
            None => Poll::Pending,
        }
    }
}
