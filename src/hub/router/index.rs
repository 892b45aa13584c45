//! The index of subscribers by what they want: kinds, accounts, and types of custom events.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::Arc,
};

use trunkline_proto::kinds::CUSTOM;

use super::{Interest, Pending};
use crate::hub::{
    filter::Filter,
    kind_bits::{ACCOUNT_KINDS, kind_bit},
    log::IndexedFrame,
};

/// Subscribers by their ids.
type Subscribers = HashMap<u64, Arc<Interest>>;

/// All subscribers, each in `all` and under every key for which it wants events.
#[derive(Default)]
pub(super) struct Index {
    next: u64,
    pub(super) all: Subscribers,
    /// By kinds: subscribers that want events of those kinds whatever their account or type.
    /// Looked up once per frame.
    by_kinds: HashMap<u128, Subscribers>,
    /// By account: subscribers that want certain accounts only, of the kinds that concern one.
    by_account: HashMap<Box<[u8]>, Subscribers>,
    /// By type: subscribers that want certain types of custom events only.
    by_type: HashMap<Box<[u8]>, Subscribers>,
    /// By length and prefix: subscribers that want types with that prefix.
    by_prefix: BTreeMap<usize, HashMap<Box<[u8]>, Subscribers>>,
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
            self.by_account.entry(account.into()).or_default().insert(id, interest.clone());
        }
        let Some((whole, prefixes)) = filter.custom_types() else { return id };
        for name in whole {
            self.by_type.entry(name.into()).or_default().insert(id, interest.clone());
        }
        for prefix in prefixes {
            let same_length = self.by_prefix.entry(prefix.len()).or_default();
            same_length.entry(prefix.into()).or_default().insert(id, interest.clone());
        }
        id
    }

    pub(super) fn remove(&mut self, id: u64, filter: &Filter) {
        self.all.remove(&id);
        remove_from(&mut self.by_kinds, &filter.plain_kinds(), id);
        for account in filter.accounts().into_iter().flatten() {
            remove_from(&mut self.by_account, account, id);
        }
        let Some((whole, prefixes)) = filter.custom_types() else { return };
        for name in whole {
            remove_from(&mut self.by_type, name, id);
        }
        for prefix in prefixes {
            let Some(same_length) = self.by_prefix.get_mut(&prefix.len()) else { continue };
            remove_from(same_length, prefix, id);
            if same_length.is_empty() {
                self.by_prefix.remove(&prefix.len());
            }
        }
    }

    /// Sets the pending bit of all subscribers that the frame may concern.
    pub(super) fn notify(&self, frame: &IndexedFrame, pending: &mut Pending) {
        let kinds = frame.summary.kinds;
        for (wanted, subscribers) in &self.by_kinds {
            if wanted & kinds != 0 {
                for interest in subscribers.values().filter(|interest| interest.may_want(frame)) {
                    pending.set(interest);
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
                for (length, prefixes) in self.by_prefix.range(..=name.len()) {
                    set_of_kind(pending, prefixes.get(&name[..*length]), CUSTOM);
                }
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
    for interest in subscribers.into_iter().flat_map(HashMap::values) {
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
        same_key.remove(&id);
        if same_key.is_empty() {
            subscribers.remove(key);
        }
    }
}
