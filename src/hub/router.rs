//! Knows which subscribers an event may concern, so that nobody else is woken for it.
//!
//! The router errs on the side of waking: whether an event is delivered is the filter's to say, when the cursor reads it. A
//! subscriber that was not told of anything since its last look has nothing to read, and skips to the log's end at no cost.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

use futures_util::task::AtomicWaker;
use parking_lot::RwLock;

use super::{
    event::CUSTOM,
    filter::{ACCOUNT_KINDS, Filter, kind_bit},
    log::{Content, Entry, Indexed},
};
use crate::bus::ShardId;

/// Nothing concerns the subscriber.
const CLEAN: u64 = u64::MAX;

/// Of a frame with targets so many events are asked, for each subscriber, whether they concern it. In a larger one some will.
const ASKED_EVENTS: usize = 64;

/// A subscriber, as the router knows it.
pub(super) struct Interest {
    pub filter: Filter,
    /// By shard: the number of the first entry since the last look that may concern it; [`CLEAN`] if none does.
    dirty: Vec<AtomicU64>,
    /// By shard: the number of the first entry that the cursor knows of and has not read; [`CLEAN`] if there is none.
    unread: Vec<AtomicU64>,
    task: AtomicWaker,
}

/// All subscribers of a gateway.
#[derive(Default)]
pub(super) struct Router {
    table: RwLock<Table>,
}

/// Subscribers, each with its id.
type Listeners = HashMap<u64, Arc<Interest>>;

/// Each subscriber stands in `all`, and wherever an event that it wants is looked for.
#[derive(Default)]
struct Table {
    next: u64,
    all: Listeners,
    /// By kinds: who wants events of those kinds, whatever their account or type. Asked once a frame.
    by_kinds: HashMap<u128, Listeners>,
    /// Who wants certain accounts only, for the kinds that concern one. Asked for the events of that account.
    by_account: HashMap<Box<[u8]>, Listeners>,
    /// Who wants certain types of custom events only. Asked for the events of that type.
    by_type: HashMap<Box<[u8]>, Listeners>,
    /// The same, for types that begin so; by length.
    by_prefix: BTreeMap<usize, HashMap<Box<[u8]>, Listeners>>,
}

/// Ends a registration when it is dropped.
pub(super) struct Registration {
    id: u64,
    router: Arc<Router>,
    pub interest: Arc<Interest>,
}

/// Who is to be woken for an entry.
#[derive(Default)]
struct Marking {
    shard: usize,
    number: u64,
    tasks: Vec<Waker>,
}

impl Interest {
    /// The first entry of the shard that may concern the subscriber, since this was last asked. Called under the log's read
    /// lock, where nobody marks.
    pub(super) fn take_mark(&self, shard: usize) -> Option<u64> {
        let dirty = &self.dirty[shard];
        if dirty.load(Ordering::Acquire) == CLEAN {
            return None;
        }
        Some(dirty.swap(CLEAN, Ordering::AcqRel))
    }

    /// Ready while something is marked; else the task is woken when something is, or by [`Router::wake_all`].
    pub(super) fn poll_marked(&self, cx: &mut Context<'_>) -> Poll<()> {
        // First, so that no mark falls between.
        self.task.register(cx.waker());
        if self.dirty.iter().any(|first| first.load(Ordering::Acquire) != CLEAN) {
            return Poll::Ready(());
        }
        Poll::Pending
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

    /// Has the subscriber's task look up.
    pub(super) fn wake(&self) {
        self.task.wake();
    }

    /// Whether an event of the frame is for the subscriber, as far as it is worth while to ask.
    fn may_want(&self, indexed: &Indexed) -> bool {
        !indexed.summary.targeted
            || self.filter.is_watching()
            || indexed.events.len() > ASKED_EVENTS
            || (0..indexed.events.len()).any(|nth| self.filter.matches(&indexed.view(nth)))
    }
}

impl Marking {
    fn mark(&mut self, interest: &Interest) {
        // Marks come in the order of the log, so the first one stays.
        let dirty = &interest.dirty[self.shard];
        if dirty.load(Ordering::Relaxed) == CLEAN {
            dirty.store(self.number, Ordering::Release);
            self.tasks.extend(interest.task.take());
        }
    }

    /// Marks those of the listeners who want this kind.
    fn mark_each(&mut self, listeners: Option<&Listeners>, kind: u8) {
        for interest in listeners.into_iter().flat_map(HashMap::values) {
            if interest.filter.kind_bits() & kind_bit(kind) != 0 {
                self.mark(interest);
            }
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
            task: AtomicWaker::new(),
        });
        let mut table = self.table.write();
        let id = table.next;
        table.next += 1;
        table.insert(id, &interest);
        Registration { id, router: self.clone(), interest }
    }

    /// Marks an entry for all whom it may concern, and returns the tasks to be woken. Called under the log's write lock, so that
    /// a cursor never sees the entry without the mark or the mark without the entry.
    pub(super) fn announce(&self, shard: ShardId, entry: &Entry, number: u64) -> Vec<Waker> {
        let mut marking = Marking { shard: shard.index(), number, tasks: vec![] };
        match &entry.content {
            Content::Frame(indexed) | Content::Again(indexed) => {
                self.table.read().announce(indexed, &mut marking);
            }
            // Gaps concern everybody; an epoch nobody.
            Content::Gap(_) => {
                self.table.read().all.values().for_each(|interest| marking.mark(interest));
            }
            Content::Epoch => {}
        }
        marking.tasks
    }

    /// Has every subscriber's task look up.
    pub(super) fn wake_all(&self) {
        self.table.read().all.values().for_each(|interest| interest.wake());
    }
}

impl Table {
    fn announce(&self, indexed: &Indexed, marking: &mut Marking) {
        let kinds = indexed.summary.kinds;
        for (wanted, listeners) in &self.by_kinds {
            if wanted & kinds != 0 {
                for interest in listeners.values().filter(|interest| interest.may_want(indexed)) {
                    marking.mark(interest);
                }
            }
        }
        let by_account = !self.by_account.is_empty() && kinds & ACCOUNT_KINDS != 0;
        let by_type = !(self.by_type.is_empty() && self.by_prefix.is_empty())
            && kinds & kind_bit(CUSTOM) != 0;
        if !by_account && !by_type {
            return;
        }
        let mut before = (&[][..], 0);
        for nth in 0..indexed.events.len() {
            let event = indexed.view(nth);
            // Events of one account or type often follow each other: its listeners are marked already.
            let subject = (event.subject_bytes(), event.kind());
            if subject == std::mem::replace(&mut before, subject) {
                continue;
            }
            let account = event.account_bytes();
            if by_account && !account.is_empty() {
                marking.mark_each(self.by_account.get(account), event.kind());
            }
            if by_type && event.kind() == CUSTOM {
                let name = event.custom_type_bytes();
                marking.mark_each(self.by_type.get(name), CUSTOM);
                for (length, prefixes) in self.by_prefix.range(..=name.len()) {
                    marking.mark_each(prefixes.get(&name[..*length]), CUSTOM);
                }
            }
        }
    }

    fn insert(&mut self, id: u64, interest: &Arc<Interest>) {
        self.all.insert(id, interest.clone());
        let filter = &interest.filter;
        self.by_kinds.entry(filter.plain_kinds()).or_default().insert(id, interest.clone());
        for account in filter.accounts().into_iter().flatten() {
            self.by_account.entry(account.into()).or_default().insert(id, interest.clone());
        }
        let Some((whole, prefixes)) = filter.custom_types() else { return };
        for name in whole {
            self.by_type.entry(name.into()).or_default().insert(id, interest.clone());
        }
        for prefix in prefixes {
            let same_length = self.by_prefix.entry(prefix.len()).or_default();
            same_length.entry(prefix.into()).or_default().insert(id, interest.clone());
        }
    }

    fn remove(&mut self, id: u64, filter: &Filter) {
        self.all.remove(&id);
        withdraw(&mut self.by_kinds, &filter.plain_kinds(), id);
        for account in filter.accounts().into_iter().flatten() {
            withdraw(&mut self.by_account, account, id);
        }
        let Some((whole, prefixes)) = filter.custom_types() else { return };
        for name in whole {
            withdraw(&mut self.by_type, name, id);
        }
        for prefix in prefixes {
            let Some(same_length) = self.by_prefix.get_mut(&prefix.len()) else { continue };
            withdraw(same_length, prefix, id);
            if same_length.is_empty() {
                self.by_prefix.remove(&prefix.len());
            }
        }
    }
}

/// Takes a subscriber out of those who listen under a key.
fn withdraw<K, Q>(listeners: &mut HashMap<K, Listeners>, key: &Q, id: u64)
where
    K: std::borrow::Borrow<Q> + std::hash::Hash + Eq,
    Q: std::hash::Hash + Eq + ?Sized,
{
    if let Some(same_key) = listeners.get_mut(key) {
        same_key.remove(&id);
        if same_key.is_empty() {
            listeners.remove(key);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.router.table.write().remove(self.id, &self.interest.filter);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use bytes::Bytes;
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::{
        bus::{Delivery, Epoch, Frame, Offset, put_event},
        proto::v1::{self, event::Kind},
    };

    struct Nobody;

    impl Wake for Nobody {
        fn wake(self: Arc<Self>) {}
    }

    fn entry(events: &[v1::Event]) -> Entry {
        let mut bytes = Vec::new();
        for event in events {
            put_event(&mut bytes, &event.encode_to_vec());
        }
        Entry::new(Delivery::Frame(Frame {
            epoch: Epoch(1),
            first: Offset(1),
            count: events.len() as u64,
            time_ms: 0,
            origin: None,
            events: Bytes::from(bytes),
        }))
    }

    fn indexed(entry: &Entry) -> &Indexed {
        match &entry.content {
            Content::Frame(indexed) => indexed,
            other => panic!("{other:?} is no frame"),
        }
    }

    /// Whether the entry marks a lone subscriber with this filter, and whether its task is among those to be woken.
    fn marks(filter: &Filter, entry: &Entry) -> bool {
        let router = Arc::new(Router::default());
        let registration = router.register(filter.clone(), 1);
        let waker = Arc::new(Nobody).into();
        assert!(registration.interest.poll_marked(&mut Context::from_waker(&waker)).is_pending());
        let woken = router.announce(ShardId(0), entry, 5).len();
        let mark = registration.interest.take_mark(0);
        assert_eq!(mark, (woken == 1).then_some(5));
        drop(registration);
        let table = router.table.read();
        assert!(table.all.is_empty() && table.by_kinds.is_empty() && table.by_account.is_empty());
        assert!(table.by_type.is_empty() && table.by_prefix.is_empty());
        mark.is_some()
    }

    fn names() -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec("[ab]{1,2}", 0..3)
    }

    fn events() -> impl Strategy<Value = v1::Event> {
        let target = prop::option::of((names(), names()));
        ("[ab]{1,2}", "[ab]{0,3}", 0..4_u8, target).prop_map(|(source, subject, kind, target)| {
            let kind = match kind {
                0 => Kind::MailboxChange(v1::MailboxChange {
                    account_id: subject,
                    ..Default::default()
                }),
                1 => Kind::EmailDelivery(v1::EmailDelivery {
                    account_id: subject,
                    ..Default::default()
                }),
                2 => Kind::QueueRefresh(v1::QueueRefresh {}),
                _ => Kind::Custom(v1::CustomEvent { r#type: subject, ..Default::default() }),
            };
            let target = target.map(|(node_ids, roles)| v1::Target { node_ids, roles });
            v1::Event { source, target, kind: Some(kind), ..Default::default() }
        })
    }

    fn filters() -> impl Strategy<Value = Filter> {
        let kinds = prop::collection::vec(prop::sample::select(vec![10, 11, 19, 20]), 0..3);
        let types = prop::collection::vec("[ab]{0,2}[ab*]", 0..3);
        (kinds, names(), types, "[ab]{1,2}", names(), any::<bool>()).prop_map(
            |(kinds, accounts, custom_types, node, roles, own)| {
                let wire = v1::Filter { kinds, accounts, custom_types };
                Filter::new(&wire, &node, &roles, own)
            },
        )
    }

    proptest! {
        #[test]
        fn whoever_wants_an_event_is_woken(
            filter in filters(),
            events in prop::collection::vec(events(), 1..8),
        ) {
            let entry = entry(&events);
            let frame = indexed(&entry);
            let wanted = (0..events.len()).any(|nth| filter.matches(&frame.view(nth)));
            prop_assert!(marks(&filter, &entry) || !wanted);
        }

        #[test]
        fn a_frame_that_is_included_whole_is_wanted_event_by_event(
            filter in filters(),
            events in prop::collection::vec(events(), 1..8),
        ) {
            let entry = entry(&events);
            let frame = indexed(&entry);
            if filter.includes_whole(frame) {
                prop_assert!((0..events.len()).all(|nth| filter.matches(&frame.view(nth))));
            }
        }
    }

    #[test]
    fn nobody_is_woken_for_what_its_filter_excludes() {
        let change = |account: &str| v1::Event {
            source: "publisher".into(),
            kind: Some(Kind::MailboxChange(v1::MailboxChange {
                account_id: account.into(),
                ..Default::default()
            })),
            ..Default::default()
        };
        let custom = |name: &str| v1::Event {
            kind: Some(Kind::Custom(v1::CustomEvent { r#type: name.into(), ..Default::default() })),
            ..Default::default()
        };
        let filter = |wire: v1::Filter| Filter::new(&wire, "me", &["imap".into()], false);
        let accounts = filter(v1::Filter { accounts: vec!["a".into()], ..Default::default() });
        assert!(marks(&accounts, &entry(&[change("b"), change("a")])));
        assert!(!marks(&accounts, &entry(&[change("b"), change("")])));
        let types = vec!["com.a.*".into(), "org".into()];
        let types = filter(v1::Filter { custom_types: types, ..Default::default() });
        assert!(marks(&types, &entry(&[custom("com.a.b")])));
        assert!(marks(&types, &entry(&[custom("org")])));
        assert!(!marks(&types, &entry(&[custom("com.b"), custom("org.a"), custom("com.a")])));
        let kinds = filter(v1::Filter { kinds: vec![10], ..Default::default() });
        assert!(marks(&kinds, &entry(&[custom("x"), change("a")])));
        assert!(!marks(&kinds, &entry(&[custom("x")])));
        let everything = filter(v1::Filter::default());
        let to = |node_ids: &[&str], roles: &[&str]| {
            let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
            let target = v1::Target { node_ids: names(node_ids), roles: names(roles) };
            v1::Event { target: Some(target), ..change("a") }
        };
        assert!(marks(&everything, &entry(&[to(&["you"], &[]), to(&[], &["imap"])])));
        assert!(!marks(&everything, &entry(&[to(&["you"], &[]), to(&[], &["smtp"])])));
    }
}
