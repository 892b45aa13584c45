//! Sets of accounts, by their keys: a stream may have a million of them.
//!
//! A key is a hash of the account's name with 128 bits, made with two secrets of the process:
//! nobody can find two names with one key, and two that have one by chance are not to be expected
//! in the life of the universe. So the names themselves are not kept, and an account takes the same
//! memory however long its name is.

use std::{
    collections::{HashMap, HashSet, hash_map::RandomState},
    hash::{BuildHasher, BuildHasherDefault, Hasher},
    sync::LazyLock,
};

/// Bytes that an account of a stream takes at most: its key in the set of the stream, and its entry
/// in the router's index. Both are tables that are at least 7/16 full as they grow, with 17 bytes
/// for each place.
pub const ACCOUNT_COST: usize = 80;

/// The most accounts of a set with one table.
const MAX_UNDIVIDED: usize = 4096;

/// The tables of a larger set, one for each value of a byte: each grows by itself, so that no
/// single step takes long.
const TABLES: usize = 256;

static SECRETS: LazyLock<[RandomState; 2]> = LazyLock::new(Default::default);

/// The key of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AccountKey(u128);

/// Accounts.
#[derive(Clone, Debug)]
pub struct AccountSet {
    /// One table, or [`TABLES`].
    tables: Vec<HashSet<AccountKey, BuildHasherDefault<KeyHasher>>>,
    len: usize,
}

/// A map by the short keys of accounts.
pub(super) type ByShortKey<V> = HashMap<u64, V, BuildHasherDefault<KeyHasher>>;

/// Keys are hashes already.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyHasher(u64);

impl AccountKey {
    /// The key of the account with this name.
    pub fn of(name: &[u8]) -> AccountKey {
        let [high, low] = [0, 1].map(|nth: usize| u128::from(SECRETS[nth].hash_one(name)));
        AccountKey(high << 64 | low)
    }

    /// A part of the key that other accounts have too, by chance.
    pub(super) fn short(self) -> u64 {
        #[allow(clippy::cast_possible_truncation)] // the low half
        let low = self.0 as u64;
        low
    }

    /// The short key of the account with this name.
    pub(super) fn short_of(name: &[u8]) -> u64 {
        SECRETS[1].hash_one(name)
    }

    fn table(self) -> usize {
        // Bits that the tables do not use for themselves.
        usize::from(self.0.to_be_bytes()[0])
    }
}

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }

    fn write_u128(&mut self, key: u128) {
        #[allow(clippy::cast_possible_truncation)] // the low half
        let low = key as u64;
        self.0 = low;
    }
}

impl Default for AccountSet {
    fn default() -> AccountSet {
        AccountSet { tables: vec![HashSet::default()], len: 0 }
    }
}

impl AccountSet {
    /// The number of accounts.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// True if an account is in it.
    pub fn contains(&self, name: &[u8]) -> bool {
        !self.is_empty() && self.has(AccountKey::of(name))
    }

    /// True if the account with this key is in it.
    pub fn has(&self, key: AccountKey) -> bool {
        self.tables[self.table_of(key)].contains(&key)
    }

    /// Adds an account; false if it was there.
    pub fn insert(&mut self, key: AccountKey) -> bool {
        if self.len == MAX_UNDIVIDED && self.tables.len() == 1 {
            self.divide();
        }
        let table = self.table_of(key);
        let added = self.tables[table].insert(key);
        self.len += usize::from(added);
        added
    }

    /// Removes an account; false if it was not there.
    pub fn remove(&mut self, key: AccountKey) -> bool {
        let index = self.table_of(key);
        let table = &mut self.tables[index];
        let removed = table.remove(&key);
        self.len -= usize::from(removed);
        if removed && table.len() * 4 < table.capacity() {
            table.shrink_to_fit();
        }
        removed
    }

    /// The accounts, in no order.
    pub fn iter(&self) -> impl Iterator<Item = AccountKey> + '_ {
        self.tables.iter().flatten().copied()
    }

    /// How many accounts each table has room for.
    #[cfg(test)]
    pub(super) fn capacities(&self) -> impl Iterator<Item = usize> + '_ {
        self.tables.iter().map(HashSet::capacity)
    }

    fn table_of(&self, key: AccountKey) -> usize {
        if self.tables.len() == 1 { 0 } else { key.table() }
    }

    fn divide(&mut self) {
        let all = std::mem::take(&mut self.tables);
        self.tables = vec![HashSet::default(); TABLES];
        for key in all.into_iter().flatten() {
            self.tables[key.table()].insert(key);
        }
    }
}

impl<'a> FromIterator<&'a [u8]> for AccountSet {
    fn from_iter<T: IntoIterator<Item = &'a [u8]>>(names: T) -> AccountSet {
        let mut set = AccountSet::default();
        for name in names {
            set.insert(AccountKey::of(name));
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_any_size_has_what_was_added_and_not_removed() {
        let name = |n: usize| format!("account-{n}").into_bytes();
        let mut set = AccountSet::default();
        assert!(!set.contains(b"") && set.is_empty());
        for n in 0..2 * MAX_UNDIVIDED {
            assert!(set.insert(AccountKey::of(&name(n))), "{n} is new");
            assert!(!set.insert(AccountKey::of(&name(n / 2))), "{n} was there");
        }
        for n in (0..2 * MAX_UNDIVIDED).step_by(3) {
            assert!(set.remove(AccountKey::of(&name(n))) && !set.remove(AccountKey::of(&name(n))));
        }
        let left = |n: usize| !n.is_multiple_of(3);
        assert!((0..2 * MAX_UNDIVIDED).all(|n| set.contains(&name(n)) == left(n)));
        assert!(!set.contains(&name(2 * MAX_UNDIVIDED)));
        assert_eq!(set.len(), (0..2 * MAX_UNDIVIDED).filter(|n| left(*n)).count());
        assert_eq!(set.iter().count(), set.len());
        let all: Vec<AccountKey> = set.iter().collect();
        assert!(all.into_iter().all(|key| set.remove(key)));
        assert!(set.is_empty() && set.tables.iter().all(|table| table.capacity() < 16));
    }

    #[test]
    fn the_short_key_is_a_part_of_the_key() {
        for name in [&b"a"[..], b"", b"an account with a long name"] {
            assert_eq!(AccountKey::of(name).short(), AccountKey::short_of(name));
        }
    }
}
