//! The index of subscribers by account, in many small parts: whoever changes the accounts of a
//! stream locks one part at a time, for one account, and never for long.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;

use crate::hub::accounts::{AccountKey, AccountSet, ByShortKey};

/// Parts of the index. With ten million accounts one has ten thousand, which take well below 100 us
/// to move when it grows.
const PARTS: usize = 1024;

/// Set in the value of an account that several subscribers want: the rest is their number in
/// [`Part::several`].
const SEVERAL: u32 = 1 << 31;

/// The number under which a subscriber's accounts are indexed.
pub(super) type Slot = u32;

/// Subscribers by the short keys of the accounts that they want.
pub(super) struct AccountIndex {
    parts: Box<[RwLock<Part>]>,
    /// Accounts of all subscribers.
    count: AtomicUsize,
}

/// A part of the index.
#[derive(Default)]
struct Part {
    /// A slot, or [`SEVERAL`]. Most accounts have one subscriber: their entries stay small.
    slots: ByShortKey<u32>,
    /// The slots of the accounts that several subscribers want.
    several: Vec<Vec<Slot>>,
    /// Indexes of `several` that are not used.
    free: Vec<u32>,
}

impl Default for AccountIndex {
    fn default() -> AccountIndex {
        let parts = (0..PARTS).map(|_| RwLock::default()).collect();
        AccountIndex { parts, count: AtomicUsize::new(0) }
    }
}

impl AccountIndex {
    /// True if nobody wants certain accounts.
    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Adds an account that a subscriber wants.
    pub(super) fn insert(&self, key: AccountKey, slot: Slot) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.part(key.short()).write().insert(key.short(), slot);
    }

    /// Removes an account that was inserted for a subscriber.
    pub(super) fn remove(&self, key: AccountKey, slot: Slot) {
        if self.part(key.short()).write().remove(key.short(), slot) {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Calls `see` with the slot of each subscriber that wants the account with this name, and
    /// hardly ever with another one.
    pub(super) fn each_of(&self, name: &[u8], mut see: impl FnMut(Slot)) {
        let key = AccountKey::short_of(name);
        let part = self.part(key).read();
        match part.slots.get(&key) {
            Some(several) if several & SEVERAL != 0 => {
                let slots = part.several.get((several & !SEVERAL) as usize);
                slots.into_iter().flatten().for_each(|slot| see(*slot));
            }
            Some(slot) => see(*slot),
            None => {}
        }
    }

    /// Adds all accounts of a set.
    pub(super) fn insert_all(&self, accounts: &AccountSet, slot: Slot) {
        accounts.iter().for_each(|key| self.insert(key, slot));
    }

    fn part(&self, key: u64) -> &RwLock<Part> {
        // Bits that the tables do not use for themselves.
        &self.parts[(key >> 40) as usize % PARTS]
    }
}

impl Part {
    fn insert(&mut self, key: u64, slot: Slot) {
        let Some(value) = self.slots.get_mut(&key) else {
            self.slots.insert(key, slot);
            return;
        };
        if *value & SEVERAL != 0 {
            self.several[(*value & !SEVERAL) as usize].push(slot);
            return;
        }
        let both = vec![*value, slot];
        let index = self.free.pop().unwrap_or_else(|| {
            self.several.push(vec![]);
            u32::try_from(self.several.len() - 1).unwrap_or(0)
        });
        self.several[index as usize] = both;
        *value = index | SEVERAL;
    }

    /// False if it was not there.
    fn remove(&mut self, key: u64, slot: Slot) -> bool {
        let Some(value) = self.slots.get_mut(&key) else { return false };
        if *value & SEVERAL == 0 {
            let found = *value == slot;
            if found {
                self.slots.remove(&key);
                self.shrink();
            }
            return found;
        }
        let index = *value & !SEVERAL;
        let slots = &mut self.several[index as usize];
        let Some(at) = slots.iter().position(|known| *known == slot) else { return false };
        slots.swap_remove(at);
        if let [only] = slots[..] {
            *value = only;
            *slots = vec![];
            self.free.push(index);
        }
        true
    }

    /// Gives back the memory of accounts that nobody wants any more.
    fn shrink(&mut self) {
        if self.slots.len() * 4 < self.slots.capacity() {
            self.slots.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    /// Bytes of the tables of accounts, as hashbrown makes them: powers of two of places, of which
    /// 7/8 are used, with a byte of control for each.
    fn table_bytes(capacity: usize, entry: usize) -> usize {
        let places = if capacity < 8 { capacity + 1 } else { capacity / 7 * 8 };
        places * (entry + 1) + 16
    }

    #[test]
    fn an_account_takes_at_most_what_is_counted_for_it() {
        let (index, mut set) = (AccountIndex::default(), AccountSet::default());
        let mut next = 0_u64;
        for count in [100_000, 250_000, 470_000, 500_000, 940_000, 1_000_000] {
            while set.len() < count {
                let key = AccountKey::of(&next.to_be_bytes());
                next += 1;
                set.insert(key);
                index.insert(key, 7);
            }
            let parts = index.parts.iter().map(|part| part.read().slots.capacity());
            let indexed: usize = parts.map(|capacity| table_bytes(capacity, 16)).sum();
            let fixed = PARTS * size_of::<RwLock<Part>>();
            let held: usize = set.capacities().map(|capacity| table_bytes(capacity, 16)).sum();
            let each = (held + indexed + fixed) / count;
            assert!(each <= crate::hub::accounts::ACCOUNT_COST, "{count}: {each} bytes each");
        }
    }

    proptest! {
        #[test]
        fn an_account_has_the_slots_that_were_inserted_and_not_removed(
            steps in prop::collection::vec((any::<bool>(), 0..4_u8, 0..4_u32), 0..60),
        ) {
            let index = AccountIndex::default();
            let mut expected: BTreeMap<u8, BTreeSet<Slot>> = BTreeMap::new();
            for (add, account, slot) in steps {
                let key = AccountKey::of(&[account]);
                let slots = expected.entry(account).or_default();
                if add {
                    // As the accounts of a stream: each once.
                    if slots.insert(slot) {
                        index.insert(key, slot);
                    }
                } else {
                    slots.remove(&slot);
                    index.remove(key, slot);
                }
            }
            for account in 0..4 {
                let mut found = Vec::new();
                index.each_of(&[account], |slot| found.push(slot));
                found.sort_unstable();
                let slots = expected.remove(&account).unwrap_or_default();
                prop_assert_eq!(&found, &slots.iter().copied().collect::<Vec<_>>());
                for slot in &slots {
                    index.remove(AccountKey::of(&[account]), *slot);
                }
            }
            prop_assert!(index.is_empty());
            let parts = index.parts.iter().map(|part| part.read());
            for part in parts {
                prop_assert!(part.slots.is_empty());
                prop_assert_eq!(part.free.len(), part.several.len());
            }
        }
    }
}
