//! The keys of a server, their values, and when they expire.

use std::collections::{BTreeMap, VecDeque};

use super::{reply::error, streams::Stream};

/// All keys, and the clock by which they expire.
#[derive(Clone, Debug)]
pub struct Keyspace {
    entries: BTreeMap<Vec<u8>, Entry>,
    /// Microseconds since 1970.
    pub micros: u64,
    /// See `Server::set_stream_node_entries`.
    pub stream_node_entries: usize,
}

#[derive(Clone, Debug)]
struct Entry {
    value: Value,
    /// Milliseconds since 1970 from which the key is gone.
    expires: Option<u64>,
}

/// A value of any type that gateways use.
#[derive(Clone, Debug)]
pub enum Value {
    String(Vec<u8>),
    Hash(BTreeMap<Vec<u8>, Vec<u8>>),
    List(VecDeque<Vec<u8>>),
    Stream(Stream),
}

/// A type of value: how it is taken out of a [`Value`], and put in.
pub trait Typed: Default {
    fn of(value: &mut Value) -> Option<&mut Self>;
    fn into_value(self) -> Value;
    /// A value of this type is removed with its last element.
    fn is_gone(&self) -> bool;
}

macro_rules! typed {
    ($type:ty, $variant:ident, |$value:ident| $gone:expr) => {
        impl Typed for $type {
            fn of(value: &mut Value) -> Option<&mut Self> {
                match value {
                    Value::$variant(inner) => Some(inner),
                    _ => None,
                }
            }
            fn into_value(self) -> Value {
                Value::$variant(self)
            }
            fn is_gone(&self) -> bool {
                let $value = self;
                $gone
            }
        }
    };
}

typed!(Vec<u8>, String, |_value| false);
typed!(BTreeMap<Vec<u8>, Vec<u8>>, Hash, |value| value.is_empty());
typed!(VecDeque<Vec<u8>>, List, |value| value.is_empty());
typed!(Stream, Stream, |_value| false);

impl Default for Keyspace {
    fn default() -> Keyspace {
        Keyspace { entries: BTreeMap::new(), micros: 0, stream_node_entries: 100 }
    }
}

impl Keyspace {
    /// The clock in milliseconds.
    pub fn millis(&self) -> u64 {
        self.micros / 1000
    }

    /// Reads the value of a key; none where there is none.
    pub fn read<T: Typed, R>(
        &mut self,
        key: &[u8],
        read: impl FnOnce(&T) -> R,
    ) -> Result<Option<R>, String> {
        self.expire(key);
        match self.entries.get_mut(key) {
            None => Ok(None),
            Some(entry) => match T::of(&mut entry.value) {
                Some(value) => Ok(Some(read(value))),
                None => Err(error::WRONG_TYPE.into()),
            },
        }
    }

    /// Changes the value of a key, which is made where there is none, and removed when nothing is
    /// left of it.
    pub fn change<T: Typed, R>(
        &mut self,
        key: &[u8],
        change: impl FnOnce(&mut T) -> Result<R, String>,
    ) -> Result<R, String> {
        self.expire(key);
        let mut fresh = Entry { value: T::default().into_value(), expires: None };
        let entry = self.entries.get_mut(key);
        let is_new = entry.is_none();
        let value = T::of(&mut entry.unwrap_or(&mut fresh).value).ok_or(error::WRONG_TYPE)?;
        let changed = change(value)?;
        let gone = value.is_gone();
        if gone {
            self.entries.remove(key);
        } else if is_new {
            self.entries.insert(key.to_vec(), fresh);
        }
        Ok(changed)
    }

    /// Sets a string, whatever was there.
    pub fn set(&mut self, key: &[u8], value: Vec<u8>, expires: Option<u64>) {
        self.entries.insert(key.to_vec(), Entry { value: Value::String(value), expires });
    }

    /// Removes a key; false where there is none.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        self.expire(key);
        self.entries.remove(key).is_some()
    }

    /// Removes all keys.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// Sets when a key expires; false where there is none.
    pub fn set_expiry(&mut self, key: &[u8], expires: u64) -> bool {
        self.expire(key);
        let entry = self.entries.get_mut(key);
        entry.map(|entry| entry.expires = Some(expires)).is_some()
    }

    /// Milliseconds until a key expires, as PTTL answers: -1 for a key that does not, -2 for none.
    pub fn time_to_live(&mut self, key: &[u8]) -> i64 {
        self.expire(key);
        let now = self.millis();
        match self.entries.get(key).map(|entry| entry.expires) {
            None => -2,
            Some(None) => -1,
            Some(Some(at)) => i64::try_from(at - now).expect("a time"),
        }
    }

    /// True for a key that is there.
    pub fn has(&mut self, key: &[u8]) -> bool {
        self.expire(key);
        self.entries.contains_key(key)
    }

    /// The names of all keys, in order.
    pub fn names(&mut self) -> Vec<Vec<u8>> {
        let names: Vec<_> = self.entries.keys().cloned().collect();
        names.into_iter().filter(|name| self.has(name)).collect()
    }

    fn expire(&mut self, key: &[u8]) {
        let now = self.millis();
        let expired = |entry: &Entry| entry.expires.is_some_and(|at| at <= now);
        if self.entries.get(key).is_some_and(expired) {
            self.entries.remove(key);
        }
    }
}
