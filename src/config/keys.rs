//! All declared keys with their full paths, and what is made of a path: the name of an environment
//! variable, the suggestion for an unknown key, the help of a flag.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    declaration::{Declaration, Shape, Variants, plain_text},
    json::join,
    nearest::{nearest, same},
};

/// The prefix of all environment variables.
pub(super) const VARIABLE_PREFIX: &str = "TRUNKLINE_";

/// One key of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The full path: `history.maxAge`; of the objects of a list `auth.identities[].name`.
    pub path: String,
    pub(super) kind: Kind,
    /// The type of its values: `duration`.
    pub type_name: &'static str,
    /// The default, as the document would hold it. None where the key is required or is a group.
    pub default: Option<Value>,
    /// The limits of a number, a size, a duration or the length of a text: `1s to 1h`.
    pub range: Option<String>,
    /// Its meaning, in Markdown.
    pub meaning: String,
    /// The types of the bus that have this key; empty for all other keys.
    pub(super) variants: Vec<&'static str>,
}

/// Kinds of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A single value, or a set.
    Value,
    /// An object.
    Group,
    /// Anything; Trunkline has no use for it.
    Ignored,
    /// An array of objects, in the file only.
    List,
    /// A key of the objects of a list.
    OfList,
}

impl Key {
    /// The environment variable that sets the key: `TRUNKLINE_HISTORY__MAX_AGE`. None for a group.
    pub fn variable(&self) -> Option<String> {
        (self.kind == Kind::Value).then(|| variable_name(&self.path))
    }

    /// The meaning with the default, for the help of a flag that sets the key.
    pub fn help(&self) -> String {
        let meaning = plain_text(&self.meaning);
        match self.default_text() {
            Some(default) => format!("{meaning} [default: {default}]"),
            None => meaning,
        }
    }

    /// The default as it is written in a variable.
    pub(super) fn default_text(&self) -> Option<String> {
        let default = self.default.as_ref()?;
        Some(default.as_str().map_or_else(|| default.to_string(), str::to_owned))
    }
}

/// All keys of some declarations, in their order; of an object with variants, those of all
/// variants.
pub(super) fn keys_of(declarations: &[Declaration]) -> Vec<Key> {
    let mut list = List { keys: vec![], variant: None };
    list.add_all("", declarations);
    list.keys
}

/// The keys so far, and the outermost variant that the next ones belong to.
struct List {
    keys: Vec<Key>,
    variant: Option<&'static str>,
}

impl List {
    fn add_all(&mut self, parent: &str, declarations: &[Declaration]) {
        for declaration in declarations {
            let Declaration { name, meaning, shape } = declaration;
            let path =
                if parent.is_empty() { (*name).to_owned() } else { format!("{parent}.{name}") };
            match shape {
                Shape::Value(value) => {
                    self.add(Key {
                        default: value.default.clone(),
                        range: value.range.clone(),
                        ..entry(path, Kind::Value, value.type_name, meaning)
                    });
                }
                Shape::Ignored => self.add(entry(path, Kind::Ignored, "any", meaning)),
                shape => self.add_object(&path, meaning, shape),
            }
        }
    }

    fn add_object(&mut self, path: &str, meaning: &str, shape: &Shape) {
        match shape {
            Shape::Group { keys, default } => {
                let group = entry(path.to_owned(), Kind::Group, "object", meaning);
                self.add(Key { default: default.clone(), ..group });
                self.add_all(path, keys);
            }
            Shape::Variants(variants) => {
                self.add(entry(path.to_owned(), Kind::Group, "object", meaning));
                self.add_variants(path, variants);
            }
            Shape::List { item, .. } => {
                self.add(entry(path.to_owned(), Kind::List, "list", meaning));
                let path = format!("{path}[]");
                match &**item {
                    Shape::Group { keys, .. } => self.add_all(&path, keys),
                    Shape::Variants(variants) => self.add_variants(&path, variants),
                    _ => {}
                }
            }
            Shape::Value(_) | Shape::Ignored => {}
        }
    }

    fn add_variants(&mut self, path: &str, variants: &Variants) {
        let default = variants.default.map(|default| json!(default));
        let type_path = format!("{path}.@type");
        self.add(Key { default, ..entry(type_path, Kind::Value, "word", variants.meaning) });
        self.add_all(path, &variants.common);
        for variant in &variants.known {
            let outer = self.variant;
            self.variant = outer.or(Some(variant.name));
            self.add_all(path, variant.keys.as_deref().unwrap_or_default());
            self.variant = outer;
        }
    }

    /// Adds a key, or its variant where another variant has the key too.
    fn add(&mut self, key: Key) {
        match self.keys.iter_mut().find(|known| known.path == key.path) {
            Some(known) => {
                let more = self.variant.filter(|variant| !known.variants.contains(variant));
                known.variants.extend(more);
            }
            None => self.keys.push(Key { variants: self.variant.into_iter().collect(), ..key }),
        }
    }
}

fn entry(path: String, kind: Kind, type_name: &'static str, meaning: &str) -> Key {
    let kind = if path.contains("[]") { Kind::OfList } else { kind };
    let (meaning, variants) = (meaning.to_owned(), vec![]);
    Key { path, kind, type_name, default: None, range: None, meaning, variants }
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

/// A path without the indices of lists: `auth.identities[3].name` as `auth.identities[].name`.
fn without_indices(path: &str) -> String {
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

/// The one of `keys` that the unknown `key` of the object at `parent` most likely means: one of its
/// `siblings` by name, or one of another object by path; and if none is similar, all siblings.
pub(super) fn suggest(
    keys: &[Key],
    parent: &str,
    key: &str,
    siblings: &BTreeSet<&'static str>,
) -> (Option<String>, Vec<String>) {
    if let Some(sibling) = siblings.iter().find(|sibling| same(sibling, key)) {
        return (Some((*sibling).to_owned()), vec![]);
    }
    let path = without_indices(&join(parent, key));
    let elsewhere =
        |known: &&Key| known.path.rsplit('.').next().is_some_and(|last| same(last, key));
    // A key of another variant of the same object cannot be moved to the right place.
    if !keys.iter().any(|known| known.path == path)
        && let Some(known) = keys.iter().find(elsewhere)
    {
        return (Some(known.path.clone()), vec![]);
    }
    match nearest(key, siblings.iter().copied()) {
        Some(sibling) => (Some(sibling.to_owned()), vec![]),
        None => (None, siblings.iter().map(|&sibling| sibling.to_owned()).collect()),
    }
}
