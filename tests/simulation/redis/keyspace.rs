//! The keys of a server, their values, and when they expire.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::{Text, reply::error, streams::Stream};

/// All keys, and the clock by which they expire.
#[derive(Clone, Debug)]
pub struct Keyspace {
    /// Shared with snapshots until it changes.
    entries: Arc<BTreeMap<Text, Arc<Entry>>>,
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
    String(Text),
    Hash(BTreeMap<Text, Text>),
    List(VecDeque<Text>),
    Stream(Stream),
}

/// A type of value: how it is taken out of a [`Value`], and put in.
pub trait Typed: Default {
    fn of(value: &Value) -> Option<&Self>;
    fn of_mut(value: &mut Value) -> Option<&mut Self>;
    fn into_value(self) -> Value;
    /// A value of this type is removed with its last element.
    fn is_gone(&self) -> bool;
}

macro_rules! typed {
    ($type:ty, $variant:ident, |$value:ident| $gone:expr) => {
        impl Typed for $type {
            fn of(value: &Value) -> Option<&Self> {
                match value {
                    Value::$variant(inner) => Some(inner),
                    _ => None,
                }
            }
            fn of_mut(value: &mut Value) -> Option<&mut Self> {
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

typed!(Text, String, |_value| false);
typed!(BTreeMap<Text, Text>, Hash, |value| value.is_empty());
typed!(VecDeque<Text>, List, |value| value.is_empty());
typed!(Stream, Stream, |_value| false);

impl Default for Keyspace {
    fn default() -> Keyspace {
        Keyspace { entries: Arc::default(), micros: 0, stream_node_entries: 100 }
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
        match self.entries.get(key) {
            None => Ok(None),
            Some(entry) => match T::of(&entry.value) {
                Some(value) => Ok(Some(read(value))),
                None => Err(error::WRONG_TYPE.into()),
            },
        }
    }

    /// Changes the value of a key, which is made where there is none, and removed when nothing is
    /// left of it.
    pub fn change<T: Typed, R>(
        &mut self,
        key: &Text,
        change: impl FnOnce(&mut T) -> Result<R, String>,
    ) -> Result<R, String> {
        self.expire(key);
        let entries = Arc::make_mut(&mut self.entries);
        let Some(entry) = entries.get_mut(key) else {
            let mut fresh = T::default();
            let changed = change(&mut fresh)?;
            if !fresh.is_gone() {
                let entry = Entry { value: fresh.into_value(), expires: None };
                entries.insert(key.clone(), Arc::new(entry));
            }
            return Ok(changed);
        };
        if T::of(&entry.value).is_none() {
            return Err(error::WRONG_TYPE.into());
        }
        let value = T::of_mut(&mut Arc::make_mut(entry).value).ok_or(error::WRONG_TYPE)?;
        let changed = change(value)?;
        if value.is_gone() {
            entries.remove(key);
        }
        Ok(changed)
    }

    /// Sets a string, whatever was there.
    pub fn set(&mut self, key: &Text, value: Text, expires: Option<u64>) {
        let entry = Arc::new(Entry { value: Value::String(value), expires });
        Arc::make_mut(&mut self.entries).insert(key.clone(), entry);
    }

    /// Removes a key; false where there is none.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        self.expire(key);
        self.entries.contains_key(key) && Arc::make_mut(&mut self.entries).remove(key).is_some()
    }

    /// Removes all keys.
    pub fn clear(&mut self) {
        self.entries = Arc::default();
    }

    /// Sets when a key expires; false where there is none.
    pub fn set_expiry(&mut self, key: &[u8], expires: u64) -> bool {
        self.expire(key);
        let entry = Arc::make_mut(&mut self.entries).get_mut(key);
        entry.map(|entry| Arc::make_mut(entry).expires = Some(expires)).is_some()
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
        let names: Vec<_> = self.entries.keys().map(|name| name.to_vec()).collect();
        names.into_iter().filter(|name| self.has(name)).collect()
    }

    fn expire(&mut self, key: &[u8]) {
        let now = self.millis();
        let expired = |entry: &Arc<Entry>| entry.expires.is_some_and(|at| at <= now);
        if self.entries.get(key).is_some_and(expired) {
            Arc::make_mut(&mut self.entries).remove(key);
        }
    }
}
