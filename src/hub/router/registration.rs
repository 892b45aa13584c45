//! A subscriber's registration with the router, and its changes.

use std::{collections::HashSet, sync::Arc};

use tokio::runtime::Handle;

use super::{Interest, Router, accounts::Slot, index::Key};
use crate::hub::{
    accounts::{AccountKey, AccountSet},
    filter::{Change, Filter, Past},
};

/// The most accounts that are removed from the index at once. More are removed by a task, which
/// gives way to others each time.
const MAX_AT_ONCE: usize = 512;

/// Keys that are added or removed at once: some microseconds.
const MAX_KEYS: usize = 32;

/// A subscriber's registration. Dropping it ends it.
pub(in crate::hub) struct Registration {
    id: Slot,
    /// The slot of its accounts, if it has some.
    accounts: Option<Slot>,
    router: Arc<Router>,
    pub(in crate::hub) filter: Filter,
    pub(in crate::hub) interest: Arc<Interest>,
}

/// What an update has removed from the filter and not yet from the router. Dropped after the cursor
/// has looked at the ends of the logs: an account that is removed and added again is never missed.
#[must_use]
pub(in crate::hub) struct Removed {
    router: Arc<Router>,
    slot: Option<Slot>,
    accounts: HashSet<AccountKey>,
    /// The accounts before the whole interest was replaced, with their slot.
    replaced: Vec<(Slot, Arc<AccountSet>)>,
    id: Slot,
    filter: KindsAndTypes,
}

/// The keys of a filter in the index besides its accounts.
#[derive(Default)]
struct KindsAndTypes {
    plain_kinds: u128,
    names: HashSet<Box<[u8]>>,
    prefixes: HashSet<Box<[u8]>>,
}

impl KindsAndTypes {
    fn of(filter: &Filter) -> KindsAndTypes {
        let (names, prefixes) = match filter.custom_types() {
            Some((names, prefixes)) => {
                (names.map(Box::from).collect(), prefixes.map(Box::from).collect())
            }
            None => Default::default(),
        };
        KindsAndTypes { plain_kinds: filter.plain_kinds(), names, prefixes }
    }
}

impl Registration {
    pub(super) fn new(router: Arc<Router>, filter: Filter, shards: usize) -> Registration {
        let interest = Arc::new(Interest::new(&filter, shards));
        let (id, accounts) = {
            let mut index = router.index.write();
            (index.add(&interest), filter.accounts().is_some().then(|| index.add(&interest)))
        };
        router.insert(id, &interest, &KindsAndTypes::of(&filter));
        if let (Some(accounts), Some(slot)) = (filter.accounts(), accounts) {
            router.accounts.insert_all(accounts, slot);
        }
        Registration { id, accounts, router, filter, interest }
    }

    /// Changes the filter, in order, and registers what is added. Returns what is to be removed
    /// once the cursor has looked at the ends of the logs. `past` learns which accounts change.
    pub(in crate::hub) fn update(&mut self, changes: Vec<Change>, past: &mut Past) -> Removed {
        let index = &self.router.accounts;
        let keys = KindsAndTypes::of(&self.filter);
        let kinds = self.filter.kind_bits();
        let mut removed = Removed {
            router: self.router.clone(),
            slot: self.accounts,
            accounts: HashSet::new(),
            replaced: vec![],
            id: self.id,
            filter: KindsAndTypes::default(),
        };
        for change in changes {
            if change.replaces() {
                let replaced = self.filter.replace_accounts(&change);
                past.replaces(replaced.clone());
                let slot = self.accounts.take();
                if let Some(accounts) = self.filter.accounts() {
                    let slot = self.router.index.write().add(&self.interest);
                    index.insert_all(accounts, slot);
                    self.accounts = Some(slot);
                }
                if let Some(slot) = slot {
                    removed.accounts.drain().for_each(|key| index.remove(key, slot));
                    removed.replaced.push((slot, replaced.unwrap_or_default()));
                }
                removed.slot = self.accounts;
            }
            let slot = self.accounts;
            self.filter.change(change, |key, added| {
                past.changes(key, added);
                let Some(slot) = slot else { return };
                if !added {
                    removed.accounts.insert(key);
                } else if !removed.accounts.remove(&key) {
                    index.insert(key, slot);
                }
            });
        }
        let now = KindsAndTypes::of(&self.filter);
        self.interest.set_kinds(kinds | self.filter.kind_bits());
        self.router.insert(self.id, &self.interest, &now.without(&keys));
        removed.filter = keys.without(&now);
        removed
    }

    /// Sets the wanted kinds to those of the filter, after those of an update were added.
    pub(in crate::hub) fn set_kinds(&self) {
        self.interest.set_kinds(self.filter.kind_bits());
    }
}

impl Router {
    /// Adds a subscriber under keys, a few at a time: nobody waits long for the index.
    fn insert(&self, id: Slot, interest: &Arc<Interest>, keys: &KindsAndTypes) {
        for keys in keys.keys().chunks(MAX_KEYS) {
            let mut index = self.index.write();
            for key in keys {
                index.insert(id, interest, *key);
            }
        }
    }

    /// Removes a subscriber from under keys in the same way.
    fn remove(&self, id: Slot, keys: &KindsAndTypes) {
        for keys in keys.keys().chunks(MAX_KEYS) {
            let mut index = self.index.write();
            for key in keys {
                index.remove(id, *key);
            }
        }
    }
}

impl KindsAndTypes {
    /// The keys of the index.
    pub(super) fn keys(&self) -> Vec<Key<'_>> {
        let kinds = (self.plain_kinds != 0).then_some(Key::Kinds(self.plain_kinds));
        let names = self.names.iter().map(|name| Key::Name(name));
        kinds.into_iter().chain(names).chain(self.prefixes.iter().map(|p| Key::Prefix(p))).collect()
    }

    /// Those that another one has not. `plain_kinds` is one key: 0, which no event has, if it is
    /// the same.
    fn without(&self, other: &KindsAndTypes) -> KindsAndTypes {
        let same = self.plain_kinds == other.plain_kinds;
        KindsAndTypes {
            plain_kinds: if same { 0 } else { self.plain_kinds },
            names: self.names.difference(&other.names).cloned().collect(),
            prefixes: self.prefixes.difference(&other.prefixes).cloned().collect(),
        }
    }
}

impl Drop for Removed {
    fn drop(&mut self) {
        self.router.remove(self.id, &self.filter);
        if let Some(slot) = self.slot {
            for key in self.accounts.drain() {
                self.router.accounts.remove(key, slot);
            }
        }
        for (slot, accounts) in self.replaced.drain(..) {
            remove_all(&self.router, slot, accounts);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.router.remove(self.id, &KindsAndTypes::of(&self.filter));
        self.router.index.write().free(self.id);
        if let Some(slot) = self.accounts {
            let accounts = self.filter.accounts().cloned().unwrap_or_default();
            remove_all(&self.router, slot, accounts);
        }
    }
}

/// Removes all accounts of a slot from the index, and frees it: at once if they are few, else by a
/// task of its own, which ends when that is done.
fn remove_all(router: &Arc<Router>, slot: Slot, accounts: Arc<AccountSet>) {
    let remove = move |router: &Router, key| router.accounts.remove(key, slot);
    let runtime = Handle::try_current().ok().filter(|_| accounts.len() > MAX_AT_ONCE);
    let Some(runtime) = runtime else {
        accounts.iter().for_each(|key| remove(router, key));
        router.index.write().free(slot);
        return;
    };
    let router = router.clone();
    runtime.spawn(async move {
        for (nth, key) in accounts.iter().enumerate() {
            if nth % MAX_AT_ONCE == MAX_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            remove(&router, key);
        }
        router.index.write().free(slot);
    });
}
