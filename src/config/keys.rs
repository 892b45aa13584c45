//! All keys that there are. Nobody keeps a list of them: the decoder is run over one document of each shape, and tells.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use serde_json::json;

use super::{
    bus::{BUS_TYPES, STORE_TYPES},
    decode::decode,
    fields::Context,
    json::join,
    nearest::{nearest, same},
    secret::SECRET_TYPES,
};

/// What the names of all environment variables begin with.
pub(super) const VARIABLE_PREFIX: &str = "TRUNKLINE_";

/// One key of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The full path: `history.maxAge`.
    pub path: String,
    /// What stands there.
    pub(super) kind: Kind,
    /// The range, if it is a number, a size or a duration: `1 to 8192`.
    pub range: Option<String>,
}

/// What can stand at a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A single value, or a set.
    Value,
    /// An object.
    Group,
    /// Anything; nobody looks at it.
    Ignored,
    /// An array of objects. It stands in the file alone.
    List,
    /// A key of the objects of an array: `auth.identities[].name`.
    OfList,
}

impl Key {
    /// The key that a decoder asks for at `path`. Those of all members of an array are one.
    pub(super) fn asked(path: &str, kind: Kind, range: Option<String>) -> Key {
        let path = general(path);
        let kind = if path.contains("[]") { Kind::OfList } else { kind };
        Key { path, kind, range }
    }

    /// The environment variable that sets the key: `TRUNKLINE_HISTORY__MAX_AGE`. None for a group.
    pub fn variable(&self) -> Option<String> {
        (self.kind == Kind::Value).then(|| variable_name(&self.path))
    }
}

/// All keys, in the order in which they are read; of `coordinator` and `inMemoryStore`, those of all variants.
pub fn keys() -> &'static [Key] {
    static KEYS: LazyLock<Vec<Key>> = LazyLock::new(survey);
    &KEYS
}

fn survey() -> Vec<Key> {
    let origins = BTreeMap::new();
    let mut keys: Vec<Key> = Vec::new();
    for group in ["coordinator", "inMemoryStore"] {
        for bus in BUS_TYPES.iter().chain(&STORE_TYPES) {
            for secret in SECRET_TYPES {
                // Nothing but types, so that no key is unknown: a suggestion would ask for this list.
                let mut shape = json!({ group: { "@type": bus } });
                shape["frameKey"] = json!({ "@type": secret });
                shape["otlp"]["headerSecret"] = json!({ "@type": secret });
                if *bus == "RedisCluster" {
                    shape[group]["authSecret"] = json!({ "@type": secret });
                }
                shape["auth"] = json!({ "identities": [{ "tokens": [{ "@type": secret }] }] });
                let context = Context::new(&[], &origins);
                context.decode(&shape, decode);
                for key in context.into_keys() {
                    if !keys.iter().any(|known| known.path == key.path) {
                        keys.push(key);
                    }
                }
            }
        }
    }
    keys
}

/// A path without the numbers of members of arrays: `auth.identities[3].name` as `auth.identities[].name`.
fn general(path: &str) -> String {
    let mut general = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('[') {
        general.push_str(before);
        general.push('[');
        rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    general.push_str(rest);
    general
}

/// `history.maxAge` as `TRUNKLINE_HISTORY__MAX_AGE`.
pub(super) fn variable_name(path: &str) -> String {
    let mut name = VARIABLE_PREFIX.to_owned();
    for c in path.chars() {
        match c {
            '.' => name.push_str("__"),
            '@' => {}
            c => {
                if c.is_ascii_uppercase() {
                    name.push('_');
                }
                name.push(c.to_ascii_uppercase());
            }
        }
    }
    name
}

/// What was meant by the unknown `key` of the object at `parent`, where `siblings` are known: one of those by its name, or one
/// elsewhere by its path; and if nothing is like it, what is known there.
pub(super) fn suggest(
    parent: &str,
    key: &str,
    siblings: &BTreeSet<&'static str>,
) -> (Option<String>, Vec<String>) {
    if let Some(sibling) = siblings.iter().find(|sibling| same(sibling, key)) {
        return (Some((*sibling).to_owned()), vec![]);
    }
    let path = general(&join(parent, key));
    // A key of another variant of the same object is not to be had by moving it.
    let elsewhere =
        |known: &&Key| known.path.rsplit('.').next().is_some_and(|last| same(last, key));
    if !keys().iter().any(|known| known.path == path)
        && let Some(known) = keys().iter().find(elsewhere)
    {
        return (Some(known.path.clone()), vec![]);
    }
    match nearest(key, siblings.iter().copied()) {
        Some(sibling) => (Some(sibling.to_owned()), vec![]),
        None => (None, siblings.iter().map(|&sibling| sibling.to_owned()).collect()),
    }
}
