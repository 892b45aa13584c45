//! Notifications to the node of a stream, besides its events.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

use crate::{leave::Leave, proto::v1};

/// What the task of a stream is notified of.
#[derive(Clone, Debug)]
pub enum Notification {
    /// To be passed on to the node.
    Notice(v1::Notice),
    /// The stream is asked to leave.
    Leave(Leave),
}

/// The latest notification that a stream has not sent yet. A stream whose client does not read
/// holds one, however many there were.
#[derive(Debug, Default)]
pub struct Notifications {
    latest: Mutex<Latest>,
    /// True if one is pending: all that a busy stream looks at.
    is_pending: AtomicBool,
    waker: AtomicWaker,
}

#[derive(Debug, Default)]
struct Latest {
    /// Boxed, since nearly every stream has none.
    pending: Option<Box<v1::Notice>>,
    /// A hash of the processes that the last notification named. Zero: of none.
    processes: u64,
    leave: Option<Box<Leave>>,
}

impl Notifications {
    /// Notifies the node of other processes, unless the last notification named the same ones. Zero
    /// means that there are none any more.
    pub(super) fn notify(&self, processes: u64, notice: impl FnOnce() -> v1::Notice) {
        let mut latest = self.latest.lock();
        if latest.processes == processes {
            return;
        }
        latest.processes = processes;
        latest.pending = Some(Box::new(notice()));
        self.is_pending.store(true, Ordering::Relaxed);
        drop(latest);
        self.waker.wake();
    }

    /// Asks the stream to leave.
    pub(super) fn leave(&self, leave: Leave) {
        self.latest.lock().leave = Some(Box::new(leave));
        self.is_pending.store(true, Ordering::Relaxed);
        self.waker.wake();
    }

    /// True if a notification may be pending. Cheap, and may be late.
    pub fn is_pending(&self) -> bool {
        self.is_pending.load(Ordering::Relaxed)
    }

    /// Takes the pending notification. If there is none, the task is woken by the next one.
    pub fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Notification> {
        self.waker.register(cx.waker());
        let mut latest = self.latest.lock();
        self.is_pending.store(false, Ordering::Relaxed);
        if let Some(leave) = latest.leave.take() {
            return Poll::Ready(Notification::Leave(*leave));
        }
        match latest.pending.take() {
            Some(notice) => Poll::Ready(Notification::Notice(*notice)),
            None => Poll::Pending,
        }
    }
}
