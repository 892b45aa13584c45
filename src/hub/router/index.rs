//! The index of subscribers by what they want: kinds, accounts, and types of custom events.

use std::{
    borrow::Borrow,
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::Arc,
};

use trunkline_proto::kinds::CUSTOM;

use super::{Interest, Pending, prefixes::Prefixes, subscribers::Subscribers};
use crate::hub::{
    event::TargetName,
    filter::Filter,
    kind_bits::{ACCOUNT_KINDS, kind_bit},
    log::IndexedFrame,
};

/// Names in the targets of one frame. With more, every subscriber that wants its kinds is notified.
const MAX_TARGETS: usize = 1024;

/// All subscribers, each in `all` and under every key for which it wants events.
#[derive(Default)]
pub(super) struct Index {
    next: u64,
    pub(super) all: HashMap<u64, Arc<Interest>>,
    /// By kinds: subscribers that want events of those kinds whatever their account or type.
    /// Looked up once per frame.
    by_kinds: HashMap<u128, Subscribers>,
    /// By account: subscribers that want certain accounts only, of the kinds that concern one.
    by_account: HashMap<Arc<[u8]>, Subscribers>,
    /// By type: subscribers that want certain types of custom events only.
    by_type: HashMap<Box<[u8]>, Subscribers>,
    /// By prefix: subscribers that want types with that prefix.
    by_prefix: Prefixes,
}

/// The nodes and roles that a frame is for, all of whose events are for certain nodes only.
struct Targets<'f> {
    node_ids: HashSet<&'f [u8]>,
    roles: HashSet<&'f [u8]>,
}

impl<'f> Targets<'f> {
    /// None: some event is for all nodes, or there are too many names.
    fn of(frame: &'f IndexedFrame) -> Option<Targets<'f>> {
        let mut targets = Targets { node_ids: HashSet::new(), roles: HashSet::new() };
        let mut left = MAX_TARGETS;
        for index in 0..frame.events.len() {
            let event = frame.view(index);
            if !event.has_target() {
                return None;
            }
            for name in event.target_names() {
                left = left.checked_sub(1)?;
                match name {
                    TargetName::NodeId(id) => targets.node_ids.insert(id),
                    TargetName::Role(role) => targets.roles.insert(role),
                };
            }
        }
        Some(targets)
    }

    fn name(&self, filter: &Filter) -> bool {
        filter.is_watching()
            || self.node_ids.contains(filter.node_id())
            || filter.roles().any(|role| self.roles.contains(role))
    }
}

impl Index {
    /// Adds a subscriber; returns its id.
    pub(super) fn insert(&mut self, interest: &Arc<Interest>) -> u64 {
        let id = self.next;
        self.next += 1;
        self.all.insert(id, interest.clone());
        let filter = &interest.filter;
        self.by_kinds.entry(filter.plain_kinds()).or_default().insert(id, interest.clone());
        for account in filter.accounts().into_iter().flatten() {
            self.by_account.entry(account.clone()).or_default().insert(id, interest.clone());
        }
        let Some((whole, prefixes)) = filter.custom_types() else { return id };
        for name in whole {
            self.by_type.entry(name.into()).or_default().insert(id, interest.clone());
        }
        for prefix in prefixes {
            self.by_prefix.insert(prefix, id, interest.clone());
        }
        id
    }

    pub(super) fn remove(&mut self, id: u64, filter: &Filter) {
        self.all.remove(&id);
        remove_from(&mut self.by_kinds, &filter.plain_kinds(), id);
        for account in filter.accounts().into_iter().flatten() {
            remove_from(&mut self.by_account, &**account, id);
        }
        let Some((whole, prefixes)) = filter.custom_types() else { return };
        for name in whole {
            remove_from(&mut self.by_type, name, id);
        }
        for prefix in prefixes {
            self.by_prefix.remove(prefix, id);
        }
    }

    /// Sets the pending bit of all subscribers that the frame may concern.
    pub(super) fn notify(&self, frame: &IndexedFrame, pending: &mut Pending) {
        let kinds = frame.summary.kinds;
        let targets = frame.summary.targeted.then(|| Targets::of(frame)).flatten();
        let is_target = |interest: &&Arc<Interest>| {
            targets.as_ref().is_none_or(|targets| targets.name(&interest.filter))
        };
        for (wanted, subscribers) in &self.by_kinds {
            if wanted & kinds != 0 {
                subscribers.iter().filter(is_target).for_each(|interest| pending.set(interest));
            }
        }
        let by_account = !self.by_account.is_empty() && kinds & ACCOUNT_KINDS != 0;
        let by_type = !(self.by_type.is_empty() && self.by_prefix.is_empty())
            && kinds & kind_bit(CUSTOM) != 0;
        if !by_account && !by_type {
            return;
        }
        let mut before = (&[][..], 0);
        for index in 0..frame.events.len() {
            let event = frame.view(index);
            // Adjacent events often have the same account or type: its subscribers are notified
            // already.
            let subject = (event.subject_bytes(), event.kind());
            if subject == std::mem::replace(&mut before, subject) {
                continue;
            }
            let account = event.account_bytes();
            if by_account && !account.is_empty() {
                set_of_kind(pending, self.by_account.get(account), event.kind());
            }
            if by_type && event.kind() == CUSTOM {
                let name = event.custom_type_bytes();
                set_of_kind(pending, self.by_type.get(name), CUSTOM);
                self.by_prefix.each_of(name, |subscribers| {
                    set_of_kind(pending, Some(subscribers), CUSTOM);
                });
            }
        }
    }

    /// True if no subscriber is left under any key.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
            && self.by_kinds.is_empty()
            && self.by_account.is_empty()
            && self.by_type.is_empty()
            && self.by_prefix.is_empty()
    }
}

/// Sets the pending bit of those of the subscribers that want this kind.
fn set_of_kind(pending: &mut Pending, subscribers: Option<&Subscribers>, kind: u8) {
    for interest in subscribers.into_iter().flat_map(Subscribers::iter) {
        if interest.filter.kind_bits() & kind_bit(kind) != 0 {
            pending.set(interest);
        }
    }
}

/// Removes a subscriber from under a key.
fn remove_from<K, Q>(subscribers: &mut HashMap<K, Subscribers>, key: &Q, id: u64)
where
    K: Borrow<Q> + Hash + Eq,
    Q: Hash + Eq + ?Sized,
{
    if let Some(same_key) = subscribers.get_mut(key) {
        same_key.remove(id);
        if same_key.is_empty() {
            subscribers.remove(key);
        }
    }
}
