//! Knows which subscribers an event may concern, so that nobody else is woken for it.
//!
//! The router errs on the side of waking: whether an event is delivered is the filter's to say, when the cursor reads it. A
//! subscriber that was not told of anything since its last look has nothing to read, and skips to the log's end at no cost.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::RwLock;
use tokio::sync::Notify;

use super::{
    filter::{Filter, kind_bit},
    log::{Content, Entry},
};
use crate::bus::ShardId;

/// Nothing concerns the subscriber.
const CLEAN: u64 = u64::MAX;

/// A subscriber, as the router knows it.
pub(super) struct Interest {
    pub filter: Filter,
    /// By shard: the number of the first entry since the last look that may concern it; [`CLEAN`] if none does.
    dirty: Vec<AtomicU64>,
    /// By shard: the number of the first entry that the cursor knows of and has not read; [`CLEAN`] if there is none.
    unread: Vec<AtomicU64>,
    wake: Notify,
}

/// All subscribers of a gateway.
#[derive(Default)]
pub(super) struct Router {
    table: RwLock<Table>,
}

/// Subscribers, each with its id.
type Listeners = Vec<(u64, Arc<Interest>)>;

#[derive(Default)]
struct Table {
    next: u64,
    /// Those who want events of any account: asked for each frame, by its kinds.
    broad: HashMap<u64, Arc<Interest>>,
    /// Those who want certain accounts only, by account: asked for the events of that account.
    by_account: HashMap<Box<[u8]>, Listeners>,
    /// The same ones, for the events that concern no account.
    narrow: HashMap<u64, Arc<Interest>>,
}

/// Ends a registration when it is dropped.
pub(super) struct Registration {
    id: u64,
    router: Arc<Router>,
    pub interest: Arc<Interest>,
}

impl Interest {
    /// The first entry of the shard that may concern the subscriber, since this was last asked. Called under the log's read
    /// lock, where nobody marks.
    pub(super) fn take_mark(&self, shard: usize) -> Option<u64> {
        let first = self.dirty[shard].swap(CLEAN, Ordering::AcqRel);
        (first != CLEAN).then_some(first)
    }

    /// Waits until something was marked, or returns at once if that happened since the last call.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Says how far the cursor is.
    pub(super) fn report(&self, shard: usize, unread: Option<u64>) {
        self.unread[shard].store(unread.unwrap_or(CLEAN), Ordering::Relaxed);
    }

    /// The number of the first entry that may concern the subscriber and that it has not read; past every entry if there is
    /// none.
    pub(super) fn first_unread(&self, shard: usize) -> u64 {
        let unread = self.unread[shard].load(Ordering::Relaxed);
        unread.min(self.dirty[shard].load(Ordering::Relaxed))
    }

    fn mark(&self, shard: usize, number: u64) {
        // Marks come in the order of the log, so the first one stays.
        if self.dirty[shard].load(Ordering::Relaxed) == CLEAN {
            self.dirty[shard].store(number, Ordering::Release);
            self.wake.notify_one();
        }
    }
}

impl Router {
    /// Adds a subscriber, of which nothing is marked yet.
    pub(super) fn register(self: &Arc<Self>, filter: Filter, shards: usize) -> Registration {
        let interest = Arc::new(Interest {
            filter,
            dirty: (0..shards).map(|_| AtomicU64::new(CLEAN)).collect(),
            unread: (0..shards).map(|_| AtomicU64::new(CLEAN)).collect(),
            wake: Notify::new(),
        });
        let mut table = self.table.write();
        let id = table.next;
        table.next += 1;
        match interest.filter.accounts() {
            None => {
                table.broad.insert(id, interest.clone());
            }
            Some(accounts) => {
                for account in accounts {
                    let listeners = table.by_account.entry(account.into()).or_default();
                    listeners.push((id, interest.clone()));
                }
                table.narrow.insert(id, interest.clone());
            }
        }
        Registration { id, router: self.clone(), interest }
    }

    /// Marks an entry for all whom it may concern. Called under the log's write lock, so that a cursor never sees the entry
    /// without the mark or the mark without the entry.
    /// Returns the kinds of the entry's events, each as [`kind_bit`] gives it.
    pub(super) fn announce(&self, shard: ShardId, entry: &Entry, number: u64) -> u128 {
        let shard = shard.index();
        let table = self.table.read();
        let indexed = match &entry.content {
            Content::Frame(indexed) | Content::Again(indexed) => indexed,
            // Gaps concern everybody; an epoch nobody.
            Content::Gap(_) => {
                table
                    .broad
                    .values()
                    .chain(table.narrow.values())
                    .for_each(|i| i.mark(shard, number));
                return 0;
            }
            Content::Epoch => return 0,
        };
        let kinds =
            indexed.events.iter().fold(0, |kinds, event| kinds | kind_bit(event.meta.kind()));
        for interest in table.broad.values() {
            if interest.filter.kind_bits() & kinds != 0 {
                interest.mark(shard, number);
            }
        }
        if table.narrow.is_empty() {
            return kinds;
        }
        let mut without_account = 0_u128;
        for event in &indexed.events {
            let view = event.meta.view(&indexed.frame.events);
            let account = view.account_bytes();
            if account.is_empty() {
                without_account |= kind_bit(view.kind());
            }
            for (_, interest) in table.by_account.get(account).into_iter().flatten() {
                interest.mark(shard, number);
            }
        }
        if without_account != 0 {
            for interest in table.narrow.values() {
                if interest.filter.kind_bits() & without_account != 0 {
                    interest.mark(shard, number);
                }
            }
        }
        kinds
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut table = self.router.table.write();
        if table.broad.remove(&self.id).is_some() {
            return;
        }
        table.narrow.remove(&self.id);
        for account in self.interest.filter.accounts().into_iter().flatten() {
            if let Some(listeners) = table.by_account.get_mut(account) {
                listeners.retain(|(id, _)| *id != self.id);
                if listeners.is_empty() {
                    table.by_account.remove(account);
                }
            }
        }
    }
}
