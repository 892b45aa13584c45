//! The merge rules that rows of the table name. Where a later event says all that an earlier one
//! said, the earlier one may be left out for a stream that fell behind.

use crate::v1::{
    CacheInvalidation, EmailDelivery, MailboxChange, cache_invalidation::Scope,
    mailbox_change::TypeState,
};

/// The most entries of a merged cache invalidation; a published one may have as many.
const MAX_ENTRIES: usize = 1000;

/// The most changed types of a merged change. One with more lists none, which means that anything
/// may have changed.
const MAX_TYPES: usize = 64;

/// The outcome of a merge rule for two events of one kind, one account and one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// The later event now says all that both said. The earlier one is left out.
    Joined,
    /// Both stay. Events that follow are merged into the later one.
    Apart,
    /// Both stay. Events that follow are merged into the earlier one: the later one is never
    /// merged.
    Aside,
}

/// The later event says it all.
pub(super) fn replace<M>(_earlier: &M, _later: &mut M) -> Merge {
    Merge::Joined
}

/// The union of the changed types, each with its own latest state. A state that is lower, or 0, is
/// no error: states need not be numbers that rise, and 0 says that the state is unknown.
pub(super) fn join_mailbox_changes(earlier: &MailboxChange, later: &mut MailboxChange) -> Merge {
    let mut states = TypeStates::of(later);
    states.extend_with(TypeStates::of(earlier));
    states.write(later);
    Merge::Joined
}

/// What a change says of each type: the reading of `MailboxChange.type_states`, and its inverse.
struct TypeStates {
    /// The state of all types that are not in `named`, if any type may have changed.
    others: Option<u64>,
    /// Types and their states, each type once.
    named: Vec<(i32, u64)>,
}

impl TypeStates {
    fn of(change: &MailboxChange) -> TypeStates {
        let entry = change.type_states.iter().find(|entry| entry.changed_types.is_empty());
        let fallback = entry.map_or(change.change_id, |entry| entry.change_id);
        let any = change.changed_types.is_empty();
        let mut states = TypeStates { others: any.then_some(fallback), named: Vec::new() };
        for entry in &change.type_states {
            for changed in &entry.changed_types {
                if any || change.changed_types.contains(changed) {
                    states.add(*changed, entry.change_id);
                }
            }
        }
        // In the order in which the event names them.
        let stated = std::mem::take(&mut states.named);
        for changed in &change.changed_types {
            let own = stated.iter().find(|(named, _)| named == changed);
            states.add(*changed, own.map_or(fallback, |(_, state)| *state));
        }
        if any {
            states.named = stated;
        }
        states
    }

    /// Adds a type, unless it is there.
    fn add(&mut self, changed: i32, state: u64) {
        if !self.named.iter().any(|(named, _)| *named == changed) {
            self.named.push((changed, state));
        }
    }

    /// Adds what an earlier change says of types of which these say nothing.
    fn extend_with(&mut self, earlier: TypeStates) {
        if self.others.is_some() {
            return;
        }
        self.others = earlier.others;
        for (changed, state) in earlier.named {
            self.add(changed, state);
        }
    }

    /// Writes the types and states to a change, whose `change_id` stays.
    fn write(self, change: &mut MailboxChange) {
        change.changed_types.clear();
        change.type_states.clear();
        let TypeStates { mut others, mut named } = self;
        if named.len() > MAX_TYPES {
            // Anything may have changed, and what state it has is not said.
            (others, named) = (Some(0), Vec::new());
        }
        let fallback = others.unwrap_or(change.change_id);
        if fallback != change.change_id {
            let entry = TypeState { change_id: fallback, changed_types: Vec::new() };
            change.type_states.push(entry);
        }
        for (changed, state) in named {
            if others.is_none() {
                change.changed_types.push(changed);
            }
            if state == fallback {
                continue;
            }
            let same = |entry: &&mut TypeState| {
                entry.change_id == state && !entry.changed_types.is_empty()
            };
            match change.type_states.iter_mut().find(same) {
                Some(entry) => entry.changed_types.push(changed),
                None => change
                    .type_states
                    .push(TypeState { change_id: state, changed_types: vec![changed] }),
            }
        }
    }
}

/// The state of the later event; the message only if both name the same one.
pub(super) fn join_email_deliveries(earlier: &EmailDelivery, later: &mut EmailDelivery) -> Merge {
    if later.email_id != earlier.email_id {
        later.email_id.clear();
    }
    Merge::Joined
}

/// The union of the entries, as far as it fits into one event. An invalidation of everything is not
/// merged.
pub(super) fn join_cache_invalidations(
    earlier: &CacheInvalidation,
    later: &mut CacheInvalidation,
) -> Merge {
    let is_everything =
        |event: &CacheInvalidation| matches!(event.scope(), Scope::All | Scope::AllNegative);
    if is_everything(later) {
        return Merge::Aside;
    }
    if is_everything(earlier) {
        return Merge::Apart;
    }
    let fresh = earlier.entries.iter().filter(|entry| !later.entries.contains(entry));
    let fresh: Vec<_> = fresh.cloned().collect();
    if fresh.len() + later.entries.len() > MAX_ENTRIES {
        return Merge::Apart;
    }
    later.entries.splice(0..0, fresh);
    Merge::Joined
}
