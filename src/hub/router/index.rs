//! The index of subscribers by what they want: kinds, and types of custom events.

use std::{
    borrow::Borrow,
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::Arc,
};

use trunkline_proto::kinds::CUSTOM;

use super::{
    Concerned, Interest,
    accounts::{AccountIndex, Slot},
    prefixes::Prefixes,
    subscribers::Subscribers,
};
use crate::hub::{
    event::TargetName,
    kind_bits::{ACCOUNT_KINDS, kind_bit},
    log::IndexedFrame,
};

/// Names in the targets of one frame. With more, every subscriber that wants its kinds is notified.
const MAX_TARGETS: usize = 1024;

/// All subscribers, each in a slot of its own (another one for its accounts) and under every key
/// for which it wants events.
#[derive(Default)]
pub(super) struct Index {
    slots: Vec<Option<Arc<Interest>>>,
    /// Slots without a subscriber.
    free: Vec<Slot>,
    /// By kinds: subscribers that want events of those kinds whatever their account or type.
    /// Looked up once per frame.
    by_kinds: HashMap<u128, Subscribers>,
    /// By type: subscribers that want certain types of custom events only.
    by_type: HashMap<Box<[u8]>, Subscribers>,
    /// By prefix: subscribers that want types with that prefix.
    by_prefix: Prefixes,
}

/// A key of the index.
#[derive(Clone, Copy)]
pub(super) enum Key<'a> {
    Kinds(u128),
    Name(&'a [u8]),
    Prefix(&'a [u8]),
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

    fn name(&self, interest: &Interest) -> bool {
        let audience = &interest.audience;
        interest.watching
            || self.node_ids.contains(&*audience.node_id)
            || audience.roles.iter().any(|role| self.roles.contains(&**role))
    }
}

impl Index {
    /// Gives a subscriber a slot.
    pub(super) fn add(&mut self, interest: &Arc<Interest>) -> Slot {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            // As many slots as there are streams, twice.
            Slot::try_from(self.slots.len() - 1).unwrap_or(Slot::MAX)
        });
        self.slots[slot as usize] = Some(interest.clone());
        slot
    }

    /// Frees a slot under which nothing is indexed any more.
    pub(super) fn free(&mut self, slot: Slot) {
        self.slots[slot as usize] = None;
        self.free.push(slot);
    }

    /// All subscribers; some of them twice.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Interest>> {
        self.slots.iter().flatten()
    }

    /// Adds a subscriber under a key.
    pub(super) fn insert(&mut self, id: Slot, interest: &Arc<Interest>, key: Key<'_>) {
        let (id, interest) = (u64::from(id), interest.clone());
        match key {
            Key::Kinds(kinds) => self.by_kinds.entry(kinds).or_default().insert(id, interest),
            Key::Name(name) => self.by_type.entry(name.into()).or_default().insert(id, interest),
            Key::Prefix(prefix) => self.by_prefix.insert(prefix, id, interest),
        }
    }

    /// Removes a subscriber from under a key.
    pub(super) fn remove(&mut self, id: Slot, key: Key<'_>) {
        let id = u64::from(id);
        match key {
            Key::Kinds(kinds) => remove_from(&mut self.by_kinds, &kinds, id),
            Key::Name(name) => remove_from(&mut self.by_type, name, id),
            Key::Prefix(prefix) => self.by_prefix.remove(prefix, id),
        }
    }

    /// Hands on all subscribers that the frame may concern.
    pub(super) fn each_concerned(
        &self,
        frame: &IndexedFrame,
        accounts: &AccountIndex,
        concerned: &mut impl Concerned,
    ) {
        let kinds = frame.summary.kinds;
        let targets = frame.summary.targeted.then(|| Targets::of(frame)).flatten();
        let is_target = |interest: &&Arc<Interest>| {
            targets.as_ref().is_none_or(|targets| targets.name(interest))
        };
        for (wanted, subscribers) in &self.by_kinds {
            if wanted & kinds != 0 {
                subscribers.iter().filter(is_target).for_each(|interest| concerned.take(interest));
            }
        }
        let by_account = !accounts.is_empty() && kinds & ACCOUNT_KINDS != 0;
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
                let bit = kind_bit(event.kind());
                accounts.each_of(account, |slot| {
                    let interest = self.slots.get(slot as usize).and_then(Option::as_ref);
                    if let Some(interest) = interest.filter(|interest| interest.wants(bit)) {
                        concerned.take(interest);
                    }
                });
            }
            if by_type && event.kind() == CUSTOM {
                let name = event.custom_type_bytes();
                take_of_kind(concerned, self.by_type.get(name), CUSTOM);
                self.by_prefix.each_of(name, |subscribers| {
                    take_of_kind(concerned, Some(subscribers), CUSTOM);
                });
            }
        }
    }

    /// True if no subscriber is left under any key.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.slots.len() == self.free.len()
            && self.by_kinds.is_empty()
            && self.by_type.is_empty()
            && self.by_prefix.is_empty()
    }
}

/// Hands on those of the subscribers that want this kind.
fn take_of_kind(concerned: &mut impl Concerned, subscribers: Option<&Subscribers>, kind: u8) {
    for interest in subscribers.into_iter().flat_map(Subscribers::iter) {
        if interest.wants(kind_bit(kind)) {
            concerned.take(interest);
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
