//! The interest that a stream had before.
//!
//! A stream passes each event with the interest that it has there. Of its last changes it knows
//! where each took effect and what it changed, so that it can tell whether it has had an event that
//! it passed: interest that is added from an earlier position on repeats nothing. Of what it passed
//! before, it cannot tell: that is the *floor*.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use trunkline_proto::kinds::concerns_account;

use super::{Change, Filter};
use crate::{
    bus::Position,
    hub::{
        accounts::{ACCOUNT_COST, AccountKey, AccountSet},
        event::EventView,
        had::{Had, HadAt},
        token::{self, ResumeToken},
    },
};

/// Bytes that the past of one stream takes at most: that of some 3,000 accounts, or of some hundred
/// updates. The oldest is forgotten first.
const MAX_BYTES: usize = 128 * 1024;

/// Bytes of an update besides what it refers to, and of an account in it.
const UPDATE_COST: usize = size_of::<Updated>() + size_of::<Filter>();
const CHANGE_COST: usize = size_of::<AccountChange>();

/// The last changes of a stream's interest.
#[derive(Default)]
pub(in crate::hub) struct Past {
    /// The token of the place up to which nothing is known; none if nothing was had before.
    floor: Option<Box<[u8]>>,
    /// By the order in which they took effect.
    updates: VecDeque<Updated>,
    /// The number of the first of them.
    first: u64,
    /// The accounts that they added and removed, in order.
    accounts: VecDeque<AccountChange>,
}

/// An update that took effect.
struct Updated {
    /// The token of the place.
    place: Box<[u8]>,
    /// The filter before, if more than its accounts changed.
    filter: Option<Box<Filter>>,
    /// The accounts before, if all were replaced.
    replaced: Option<Accounts>,
    /// The token of the place where the interest that it added began, if it was an earlier one.
    since: Option<Box<[u8]>>,
}

/// An account that an update, with this number, added or removed.
#[derive(Clone, Copy)]
struct AccountChange {
    key: AccountKey,
    update: u64,
    added: bool,
}

/// Accounts of a filter; `None`: all.
type Accounts = Option<Arc<AccountSet>>;

/// What a stream passed, and with what interest: the past as it is when an update adds interest
/// that begins at an earlier position.
pub(in crate::hub) struct Passed {
    /// The last of them is that update.
    updates: Vec<PassedUpdate>,
    accounts: HashMap<AccountKey, Vec<(usize, bool)>>,
    /// The present filter, whatever its accounts.
    now: Filter,
}

/// See [`Updated`].
struct PassedUpdate {
    had: Vec<Had>,
    filter: Option<Filter>,
    replaced: Option<Accounts>,
    since: Option<Vec<Had>>,
}

impl Past {
    /// The past of a stream that has had what a stream before it had.
    pub(in crate::hub) fn after<'a>(had: impl ExactSizeIterator<Item = HadAt<'a>>) -> Past {
        Past { floor: Some(encoded(had)), ..Past::default() }
    }

    /// Up to where nothing is known of what was had; none if nothing was.
    pub(in crate::hub) fn floor(&self) -> Option<Vec<Had>> {
        self.floor.as_deref().map(decoded)
    }

    /// Begins an update of this filter.
    pub(in crate::hub) fn begin(&mut self, filter: &Filter, changes: &[Change]) {
        let more = changes.iter().any(Change::concerns_more_than_accounts);
        let filter = more.then(|| Box::new(filter.without_accounts()));
        let update = Updated { place: Box::default(), filter, replaced: None, since: None };
        self.updates.push_back(update);
    }

    /// The update adds or removes an account.
    pub(in crate::hub) fn changes(&mut self, key: AccountKey, added: bool) {
        // What was replaced says it all.
        if self.updates.back().is_some_and(|update| update.replaced.is_none()) {
            self.accounts.push_back(AccountChange { key, update: self.last(), added });
        }
    }

    /// The update replaces all accounts.
    pub(in crate::hub) fn replaces(&mut self, accounts: Accounts) {
        if let Some(update) = self.updates.back_mut() {
            update.replaced.get_or_insert(accounts);
        }
    }

    /// The update takes effect where the stream has had this.
    pub(in crate::hub) fn end<'a>(&mut self, had: impl ExactSizeIterator<Item = HadAt<'a>>) {
        if let Some(update) = self.updates.back_mut() {
            update.place = encoded(had);
        }
    }

    /// The interest that the update adds begins after this.
    pub(in crate::hub) fn begins_after(&mut self, had: &[Had]) {
        if let Some(update) = self.updates.back_mut() {
            update.since = Some(encoded(had.iter().map(|had| had.at(Position::UNKNOWN))));
        }
    }

    /// Forgets what is too much.
    pub(in crate::hub) fn trim(&mut self) {
        let mut bytes = self.bytes();
        while bytes > MAX_BYTES
            && let Some(update) = self.updates.pop_front()
        {
            bytes -= update.bytes();
            let of_it = self.accounts.partition_point(|change| change.update == self.first);
            bytes -= of_it * CHANGE_COST;
            self.accounts.drain(..of_it);
            self.first += 1;
            self.floor = Some(update.place);
        }
    }

    /// Bytes that it takes.
    pub(in crate::hub) fn bytes(&self) -> usize {
        let updates = self.updates.iter().map(Updated::bytes).sum::<usize>();
        updates + self.accounts.len() * CHANGE_COST
    }

    /// What the stream has passed, up to an update that has just taken effect on this filter.
    pub(in crate::hub) fn passed(&self, now: &Filter) -> Passed {
        let mut accounts: HashMap<_, Vec<_>> = HashMap::new();
        for AccountChange { key, update, added } in &self.accounts {
            let index = usize::try_from(update - self.first).unwrap_or(usize::MAX);
            accounts.entry(*key).or_default().push((index, *added));
        }
        let updates = self.updates.iter().map(|update| PassedUpdate {
            had: decoded(&update.place),
            filter: update.filter.as_deref().cloned(),
            replaced: update.replaced.clone(),
            since: update.since.as_deref().map(decoded),
        });
        Passed { updates: updates.collect(), accounts, now: now.without_accounts() }
    }

    fn last(&self) -> u64 {
        self.first + (self.updates.len() as u64).saturating_sub(1)
    }
}

impl Updated {
    fn bytes(&self) -> usize {
        let filter = self.filter.as_ref().map_or(0, |filter| filter.types_bytes());
        let replaced = self.replaced.iter().flatten().map(|accounts| accounts.len());
        let since = self.since.as_ref().map_or(0, |since| since.len());
        let replaced = replaced.sum::<usize>() * ACCOUNT_COST;
        UPDATE_COST + self.place.len() + since + filter + replaced
    }
}

impl Passed {
    /// True if the event with this name is one that the update adds, and that the stream has passed
    /// and not had; `now` is the present filter, which includes it.
    pub(in crate::hub) fn left_out(
        &self,
        shard: usize,
        name: Position,
        event: &EventView<'_>,
        now: &Filter,
    ) -> bool {
        // What one update had passed, the next one has.
        let at = self.updates.partition_point(|update| !update.had[shard].has(name));
        if at == self.updates.len() {
            return false;
        }
        let key = concerns_account(event.kind()).then(|| AccountKey::of(event.account_bytes()));
        let last = self.updates.len() - 1;
        let included = |at: usize| self.included(at, event, key, now);
        // Delivered late, after an update that added it.
        let came_late = |at: usize| {
            let since = self.updates[at].since.as_ref();
            since.is_some_and(|since| !since[shard].has(name)) && !included(at) && included(at + 1)
        };
        !included(last) && !included(at) && !(at..last).any(came_late)
    }

    /// The place of the last update before the present one up to which the stream may have had
    /// something of what that adds; none if it has had nothing of it.
    pub(in crate::hub) fn had_some_of_it(&self) -> Option<&[Had]> {
        let (now, before) = self.updates.split_last()?;
        let last = before.len();
        let rfind = |found: &dyn Fn(&PassedUpdate) -> bool| before.iter().rposition(found);
        let of_filter = now.filter.as_ref().and_then(|_| rfind(&|update| update.filter.is_some()));
        let replaced = rfind(&|update| update.replaced.is_some());
        let mut adds = false;
        let mut of_accounts = None;
        for changes in self.accounts.values() {
            let added = changes.last().is_some_and(|(update, added)| *update == last && *added);
            adds |= added;
            if added || now.replaced.is_some() {
                let removed = changes.iter().rfind(|(update, added)| *update < last && !added);
                of_accounts = of_accounts.max(removed.map(|(update, _)| *update));
            }
        }
        let replaced = replaced.filter(|_| adds || now.replaced.is_some());
        let last = of_filter.max(of_accounts).max(replaced)?;
        Some(&before[last].had)
    }

    /// True if the filter before the update with this index included the event.
    fn included(
        &self,
        at: usize,
        event: &EventView<'_>,
        key: Option<AccountKey>,
        now: &Filter,
    ) -> bool {
        let filter = self.updates[at..].iter().find_map(|update| update.filter.as_ref());
        filter.unwrap_or(&self.now).matches(event)
            && key.is_none_or(|key| self.had_account(at, key, now))
    }

    fn had_account(&self, at: usize, key: AccountKey, now: &Filter) -> bool {
        let replaced = self.updates[at..].iter().position(|update| update.replaced.is_some());
        let end = replaced.map_or(usize::MAX, |after| at + after);
        let changes = self.accounts.get(&key).map_or(&[][..], |changes| changes);
        if let Some((_, added)) = changes.iter().find(|(update, _)| (at..=end).contains(update)) {
            return !added;
        }
        match self.updates.get(end).and_then(|update| update.replaced.as_ref()) {
            Some(accounts) => accounts.as_ref().is_none_or(|accounts| accounts.has(key)),
            None => now.has_account(key),
        }
    }
}

/// Places take less memory as tokens.
fn encoded<'a>(had: impl ExactSizeIterator<Item = HadAt<'a>>) -> Box<[u8]> {
    let mut bytes = Vec::new();
    token::encode(0, had, &mut bytes);
    bytes.into()
}

fn decoded(token: &[u8]) -> Vec<Had> {
    ResumeToken::decode(token, 0).map(|token| token.shards).unwrap_or_default()
}
