//! Wakes the subscribers that an event may concern, and no others.
//!
//! The router may wake a subscriber in vain, but never misses one: the filter decides about each
//! event when the cursor reads it. A subscriber with nothing pending since its last read has
//! nothing to read, and skips to the end of the log at no cost.

mod accounts;
mod index;
mod interest;
mod prefixes;
mod registration;
mod subscribers;

use std::{sync::Arc, task::Waker};

use parking_lot::RwLock;

use self::{accounts::AccountIndex, index::Index};
pub(super) use self::{interest::Interest, registration::Registration};
use super::{
    filter::Filter,
    log::{Content, Entry},
};
use crate::bus::ShardId;

/// All subscribers of a gateway.
#[derive(Default)]
pub(super) struct Router {
    index: RwLock<Index>,
    /// By account: subscribers that want certain accounts only, of the kinds that concern one.
    accounts: AccountIndex,
}

/// Takes the subscribers that an entry may concern, some of them more than once.
trait Concerned {
    fn take(&mut self, interest: &Arc<Interest>);
}

/// Sets the pending bits for one entry, and collects the tasks to wake.
struct Pending {
    shard: usize,
    number: u64,
    tasks: Vec<Waker>,
}

impl Concerned for Pending {
    fn take(&mut self, interest: &Arc<Interest>) {
        self.tasks.extend(interest.set_pending(self.shard, self.number));
    }
}

impl Concerned for Vec<Arc<Interest>> {
    fn take(&mut self, interest: &Arc<Interest>) {
        self.push(interest.clone());
    }
}

impl Router {
    /// Adds a subscriber, for which nothing is pending yet.
    pub(super) fn register(self: &Arc<Self>, filter: Filter, shards: usize) -> Registration {
        Registration::new(self.clone(), filter, shards)
    }

    /// Sets the pending bit of all subscribers that an entry may concern; returns the tasks to
    /// wake. Called under the log's write lock, so that a cursor never sees the entry without the
    /// bit or the bit without the entry.
    pub(super) fn notify(&self, shard: ShardId, entry: &Entry, number: u64) -> Vec<Waker> {
        let mut pending = Pending { shard: shard.index(), number, tasks: vec![] };
        let index = self.index.read();
        match &entry.content {
            Content::Frame(frame) if entry.follows.is_none() && !frame.has_report() => {
                index.each_concerned(frame, &self.accounts, &mut pending);
            }
            // Every subscriber must read it.
            _ => index.all().for_each(|interest| pending.take(interest)),
        }
        pending.tasks
    }

    /// The subscribers that the events of an entry may concern, some of them more than once.
    pub(super) fn concerned(&self, entry: &Entry) -> Vec<Arc<Interest>> {
        let mut concerned = Vec::new();
        if let Content::Frame(frame) = &entry.content {
            self.index.read().each_concerned(frame, &self.accounts, &mut concerned);
        }
        concerned
    }

    /// Wakes the tasks of all subscribers.
    pub(super) fn wake_all(&self) {
        self.index.read().all().for_each(|interest| interest.wake());
    }

    /// True if no subscriber is left under any key.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.index.read().is_empty() && self.accounts.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Wake};

    use bytes::Bytes;
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::{
        bus::{Delivery, Epoch, Frame, Offset, put_event},
        hub::log::IndexedFrame,
        proto::v1::{self, event::Kind},
    };

    struct NoTask;

    impl Wake for NoTask {
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
            provenance: None,
            events: Bytes::from(bytes),
        }))
    }

    fn frame_of(entry: &Entry) -> &IndexedFrame {
        match &entry.content {
            Content::Frame(frame) => frame,
            other => panic!("{other:?} is no frame"),
        }
    }

    /// True if the entry becomes pending for a subscriber with this filter. Checks that its task is
    /// then among those to wake, and that the registration ends.
    fn is_pending(filter: &Filter, entry: &Entry) -> bool {
        let router = Arc::new(Router::default());
        let registration = router.register(filter.clone(), 1);
        let waker = Arc::new(NoTask).into();
        assert!(
            registration
                .interest
                .poll_pending(&mut Context::from_waker(&waker), |_| true)
                .is_pending()
        );
        let woken = router.notify(ShardId(0), entry, 5).len();
        let pending = registration.interest.take_pending(0);
        assert_eq!(pending, (woken == 1).then_some(5));
        drop(registration);
        assert!(router.is_empty());
        pending.is_some()
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
        fn a_subscriber_that_wants_an_event_is_woken(
            filter in filters(),
            events in prop::collection::vec(events(), 1..8),
        ) {
            let entry = entry(&events);
            let frame = frame_of(&entry);
            let wanted = (0..events.len()).any(|nth| filter.matches(&frame.view(nth)));
            prop_assert!(is_pending(&filter, &entry) || !wanted);
        }

        #[test]
        fn a_frame_that_is_included_whole_has_only_events_that_match(
            filter in filters(),
            events in prop::collection::vec(events(), 1..8),
        ) {
            let entry = entry(&events);
            let frame = frame_of(&entry);
            if filter.includes_whole(frame) {
                prop_assert!((0..events.len()).all(|nth| filter.matches(&frame.view(nth))));
            }
        }
    }

    #[test]
    fn no_subscriber_is_woken_for_events_that_its_filter_excludes() {
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
        assert!(is_pending(&accounts, &entry(&[change("b"), change("a")])));
        assert!(!is_pending(&accounts, &entry(&[change("b"), change("")])));
        let types = vec!["com.a.*".into(), "org".into()];
        let types = filter(v1::Filter { custom_types: types, ..Default::default() });
        assert!(is_pending(&types, &entry(&[custom("com.a.b")])));
        assert!(is_pending(&types, &entry(&[custom("org")])));
        assert!(!is_pending(&types, &entry(&[custom("com.b"), custom("org.a"), custom("com.a")])));
        let kinds = filter(v1::Filter { kinds: vec![10], ..Default::default() });
        assert!(is_pending(&kinds, &entry(&[custom("x"), change("a")])));
        assert!(!is_pending(&kinds, &entry(&[custom("x")])));
        let everything = filter(v1::Filter::default());
        let to = |node_ids: &[&str], roles: &[&str]| {
            let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
            let target = v1::Target { node_ids: names(node_ids), roles: names(roles) };
            v1::Event { target: Some(target), ..change("a") }
        };
        assert!(is_pending(&everything, &entry(&[to(&["you"], &[]), to(&[], &["imap"])])));
        assert!(!is_pending(&everything, &entry(&[to(&["you"], &[]), to(&[], &["smtp"])])));
    }
}
