//! A subscriber, as the router sees it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering, fence},
    },
    task::{Context, Poll, Waker},
};

use futures_util::task::AtomicWaker;

use crate::hub::filter::{Audience, Filter};

/// Nothing is pending, or unread.
const NONE: u64 = u64::MAX;

/// A subscriber, as the router sees it.
pub(in crate::hub) struct Interest {
    pub(super) audience: Arc<Audience>,
    /// True if the stream sees every event, included or not.
    pub(super) watching: bool,
    /// The wanted kinds: the low half of their bits, and the high half.
    kinds: [AtomicU64; 2],
    /// By shard: the number of the first entry since the last read that may concern the subscriber,
    /// or [`NONE`].
    pending: Vec<AtomicU64>,
    /// By shard: the number of the first entry that the cursor is to read and has not read, or
    /// [`NONE`].
    unread: Vec<AtomicU64>,
    /// Odd while the cursor reads: what it has passed is then not known.
    reads: AtomicU64,
    task: AtomicWaker,
}

impl Interest {
    pub(in crate::hub) fn new(filter: &Filter, shards: usize) -> Interest {
        let interest = Interest {
            audience: filter.audience().clone(),
            watching: filter.is_watching(),
            kinds: Default::default(),
            pending: (0..shards).map(|_| AtomicU64::new(NONE)).collect(),
            unread: (0..shards).map(|_| AtomicU64::new(NONE)).collect(),
            reads: AtomicU64::new(0),
            task: AtomicWaker::new(),
        };
        interest.set_kinds(filter.kind_bits());
        interest
    }

    /// Sets the wanted kinds. An entry that is appended meanwhile may see a part of them; one that
    /// is appended after the caller has looked at the end of its log sees all.
    pub(super) fn set_kinds(&self, kinds: u128) {
        #[allow(clippy::cast_possible_truncation)] // the two halves
        let halves = [kinds as u64, (kinds >> 64) as u64];
        for (half, bits) in self.kinds.iter().zip(halves) {
            half.store(bits, Ordering::Relaxed);
        }
    }

    /// True if one of these kinds is wanted.
    pub(super) fn wants(&self, kinds: u128) -> bool {
        let [low, high] = [0, 1].map(|half: usize| self.kinds[half].load(Ordering::Relaxed));
        (u128::from(high) << 64 | u128::from(low)) & kinds != 0
    }

    /// Sets the pending bit of a shard for the entry with this number; returns the task to wake.
    pub(in crate::hub) fn set_pending(&self, shard: usize, number: u64) -> Option<Waker> {
        // Entries come in the order of the log, so the first number stays.
        let pending = &self.pending[shard];
        if pending.load(Ordering::Relaxed) != NONE {
            return None;
        }
        pending.store(number, Ordering::Release);
        self.task.take()
    }

    /// Clears the pending bit of a shard. Returns the first entry since the last call that may
    /// concern the subscriber. Called under the log's read lock, while no bit is set.
    pub(in crate::hub) fn take_pending(&self, shard: usize) -> Option<u64> {
        let pending = &self.pending[shard];
        if pending.load(Ordering::Acquire) == NONE {
            return None;
        }
        Some(pending.swap(NONE, Ordering::AcqRel))
    }

    /// Ready while something is pending in a shard that `reads_log` says reads its log; otherwise
    /// the task is woken when something is, or by [`Router::wake_all`](super::Router::wake_all).
    pub(in crate::hub) fn poll_pending(
        &self,
        cx: &mut Context<'_>,
        reads_log: impl Fn(usize) -> bool,
    ) -> Poll<()> {
        // Registered first, so that no bit is set between the check and the registration.
        self.task.register(cx.waker());
        let mut pending = self.pending.iter().enumerate();
        if pending.any(|(shard, first)| first.load(Ordering::Acquire) != NONE && reads_log(shard)) {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Records that the cursor begins to read, before it takes what is pending.
    pub(in crate::hub) fn begin_read(&self) {
        self.reads.fetch_add(1, Ordering::AcqRel);
    }

    /// Records that it has read, and reported what it has not read.
    pub(in crate::hub) fn end_read(&self) {
        self.reads.fetch_add(1, Ordering::Release);
    }

    /// True if the cursor has certainly read past the entry with this number, or has no need to.
    pub(in crate::hub) fn has_passed(&self, shard: usize, number: u64) -> bool {
        let before = self.reads.load(Ordering::Acquire);
        let passed = self.first_unread(shard) > number;
        fence(Ordering::Acquire);
        passed && before.is_multiple_of(2) && before == self.reads.load(Ordering::Relaxed)
    }

    /// Records the first entry that the cursor has not read.
    pub(in crate::hub) fn report(&self, shard: usize, unread: Option<u64>) {
        self.unread[shard].store(unread.unwrap_or(NONE), Ordering::Relaxed);
    }

    /// The number of the first entry that may concern the subscriber and that it has not read; past
    /// every entry if there is none.
    pub(in crate::hub) fn first_unread(&self, shard: usize) -> u64 {
        let unread = self.unread[shard].load(Ordering::Relaxed);
        unread.min(self.pending[shard].load(Ordering::Relaxed))
    }

    /// Wakes the subscriber's task.
    pub(super) fn wake(&self) {
        self.task.wake();
    }
}
