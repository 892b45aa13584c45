//! The merge rules that rows of the table name. Where a later event says all that an earlier one
//! said, the earlier one may be left out for a stream that fell behind.

use crate::v1::{CacheInvalidation, EmailDelivery, MailboxChange, cache_invalidation::Scope};

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

/// The state of the later event, and the union of the changed types. A state that is lower, or 0,
/// is no error: ids of states need not be numbers that rise, and 0 says that the state is unknown.
pub(super) fn join_mailbox_changes(earlier: &MailboxChange, later: &mut MailboxChange) -> Merge {
    // No types: anything may have changed, and that stays so.
    if earlier.changed_types.is_empty() || later.changed_types.is_empty() {
        later.changed_types.clear();
        return Merge::Joined;
    }
    for changed in &earlier.changed_types {
        if !later.changed_types.contains(changed) {
            later.changed_types.push(*changed);
        }
    }
    if later.changed_types.len() > MAX_TYPES {
        later.changed_types.clear();
    }
    Merge::Joined
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
