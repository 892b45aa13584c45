//! The walker: a cursor over one JSON object that collects what is wrong instead of stopping at it.
//!
//! A decoder asks [`Fields`] for each key that it knows, with the range and the default. Whatever is wrong becomes a
//! violation, the default takes its place, and the decoder goes on; so one run finds everything. Keys that nobody asked for
//! are unknown. Since the decoder alone knows the keys, it is also the list of them: see [`super::keys()`].

mod values;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use serde_json::{Map, Value};

use super::{
    error::{Origin, Problem, Violation},
    json::join,
    keys::{Key, Kind, suggest},
};

/// What one decoding shares.
pub(super) struct Context<'d> {
    environment: &'d [(String, String)],
    /// Where the values came from that are not the file's, by path.
    origins: &'d BTreeMap<String, Origin>,
    violations: RefCell<Vec<Violation>>,
    keys: RefCell<Vec<Key>>,
}

impl<'d> Context<'d> {
    pub(super) fn new(
        environment: &'d [(String, String)],
        origins: &'d BTreeMap<String, Origin>,
    ) -> Context<'d> {
        Context { environment, origins, violations: RefCell::default(), keys: RefCell::default() }
    }

    /// Decodes the whole of `document`.
    pub(super) fn decode<T>(&self, document: &Value, read: impl FnOnce(&mut Fields<'_>) -> T) -> T {
        let mut fields = Fields::open(self, String::new(), Some(document));
        let decoded = read(&mut fields);
        fields.finish();
        decoded
    }

    /// What was wrong, in the order in which it was found.
    pub(super) fn into_violations(self) -> Vec<Violation> {
        self.violations.into_inner()
    }

    /// The keys that were asked for.
    pub(super) fn into_keys(self) -> Vec<Key> {
        self.keys.into_inner()
    }

    fn report(&self, path: &str, problem: Problem) {
        let origin = self.origins.get(path).cloned().unwrap_or_default();
        let violation = Violation { path: path.to_owned(), origin, problem };
        self.violations.borrow_mut().push(violation);
    }
}

/// A cursor over the keys of one object.
pub(super) struct Fields<'d> {
    context: &'d Context<'d>,
    path: String,
    object: Option<&'d Map<String, Value>>,
    asked: BTreeSet<&'static str>,
    /// Unknown keys are let through.
    open: bool,
}

/// A member of an array, and where violations of it are reported.
pub(super) enum Element<'e, 'd> {
    /// A text.
    Text(&'e mut Fields<'d>, &'e str),
    /// An object.
    Object(&'e mut Fields<'d>),
}

/// A value that is there, and not null.
struct Found<'d> {
    value: &'d Value,
    /// It was written as bare text, in a variable or on the command line, where there is no other way to write it.
    bare: bool,
}

impl<'d> Fields<'d> {
    fn open(context: &'d Context<'d>, path: String, value: Option<&'d Value>) -> Fields<'d> {
        let object = value.and_then(Value::as_object);
        if let (Some(value), None) = (value, object) {
            context.report(&path, mismatch(value, "an object"));
        }
        Fields { context, path, object, asked: BTreeSet::new(), open: false }
    }

    /// Reports the keys that nobody asked for.
    fn finish(self) {
        if self.open {
            return;
        }
        for key in self.object.into_iter().flat_map(Map::keys) {
            if !self.asked.contains(key.as_str()) {
                let (nearest, known) = suggest(&self.path, key, &self.asked);
                self.context.report(&join(&self.path, key), Problem::Unknown { nearest, known });
            }
        }
    }

    /// The variables in which secrets may lie.
    pub(super) fn environment(&self) -> &'d [(String, String)] {
        self.context.environment
    }

    /// Reports what is wrong with `key`; the whole object if it is empty.
    pub(super) fn fail(&self, key: &str, problem: Problem) {
        let path = if key.is_empty() { self.path.clone() } else { join(&self.path, key) };
        self.context.report(&path, problem);
    }

    /// Reports what is wrong at a full path.
    pub(super) fn fail_at(&self, path: &str, problem: Problem) {
        self.context.report(path, problem);
    }

    /// Whether nothing is wrong with any of `keys` so far: only then is it worth comparing them.
    pub(super) fn sound(&self, keys: &[&str]) -> bool {
        let violations = self.context.violations.borrow();
        let broken = |key: &&str| violations.iter().any(|v| v.path == join(&self.path, key));
        !keys.iter().any(broken)
    }

    /// Whether `key` was given, and is not null.
    pub(super) fn has(&self, key: &str) -> bool {
        self.object.and_then(|object| object.get(key)).is_some_and(|value| !value.is_null())
    }

    /// A key that other servers write and Trunkline has no use for.
    pub(super) fn ignore(&mut self, key: &'static str) {
        self.ask(key, Kind::Ignored, None);
    }

    /// The object's `@type`, which must be one of `types`. If it is not, the other keys are let through: nobody knows which
    /// belong here.
    pub(super) fn variant(&mut self, types: &[&'static str]) -> Option<&'static str> {
        let found = self.choice("@type", types);
        if found.is_none() {
            self.require_variant(types);
            self.let_through();
        }
        found
    }

    /// The object's `@type`, whatever it is; one of `types` would be understood.
    pub(super) fn any_variant(&mut self, types: &[&'static str]) -> Option<String> {
        let found = self.optional_text("@type");
        if found.is_none() {
            self.require_variant(types);
        }
        found
    }

    fn require_variant(&self, types: &[&'static str]) {
        if self.object.is_some() && !self.has("@type") {
            let expected = format!("one of {}", types.join(", "));
            self.fail("@type", Problem::Missing { expected });
        }
    }

    /// Lets all other keys through.
    pub(super) fn let_through(&mut self) {
        self.open = true;
    }

    /// The object at `key`; `read` sees an empty one if there is none.
    pub(super) fn group<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Fields<'_>) -> T,
    ) -> T {
        let found = self.ask(key, Kind::Group, None);
        self.enter(key, found, read)
    }

    /// The object at `key`, if there is one.
    pub(super) fn optional_group<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Fields<'_>) -> T,
    ) -> Option<T> {
        let found = self.ask(key, Kind::Group, None)?;
        Some(self.enter(key, Some(found), read))
    }

    fn enter<T>(
        &self,
        key: &str,
        found: Option<Found<'d>>,
        read: impl FnOnce(&mut Fields<'_>) -> T,
    ) -> T {
        let path = join(&self.path, key);
        let mut fields = Fields::open(self.context, path, found.map(|found| found.value));
        let decoded = read(&mut fields);
        fields.finish();
        decoded
    }

    fn read<T>(
        &mut self,
        key: &'static str,
        range: Option<String>,
        parse: impl FnOnce(&Found<'d>) -> Result<T, Problem>,
    ) -> Option<T> {
        let found = self.ask(key, Kind::Value, range)?;
        parse(&found).map_err(|problem| self.fail(key, problem)).ok()
    }

    /// The members of the array at `key`, each read by `read`; one that is neither text nor an object is reported, and has no
    /// place in what is returned but None. None if there is no array. `expected` says what a member is.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        mut read: impl FnMut(Element<'_, '_>) -> Option<T>,
    ) -> Option<Vec<Option<T>>> {
        let found = self.ask(key, Kind::List, None)?;
        let path = join(&self.path, key);
        let Value::Array(values) = found.value else {
            self.context.report(&path, mismatch(found.value, "an array"));
            return None;
        };
        let mut read_one = |(index, value): (usize, &Value)| {
            let path = format!("{path}[{index}]");
            match value {
                Value::String(text) => {
                    let mut fields = Fields::open(self.context, path, None);
                    read(Element::Text(&mut fields, text))
                }
                Value::Object(_) => {
                    let mut fields = Fields::open(self.context, path, Some(value));
                    let decoded = read(Element::Object(&mut fields));
                    fields.finish();
                    decoded
                }
                other => {
                    self.context.report(&path, mismatch(other, expected));
                    None
                }
            }
        };
        Some(values.iter().enumerate().map(&mut read_one).collect())
    }

    /// Looks up `key`, and remembers that it is known.
    fn ask(&mut self, key: &'static str, kind: Kind, range: Option<String>) -> Option<Found<'d>> {
        let path = join(&self.path, key);
        let bare = self.context.origins.contains_key(&path);
        self.asked.insert(key);
        self.context.keys.borrow_mut().push(Key::asked(&path, kind, range));
        let value = self.object?.get(key)?;
        (!value.is_null()).then_some(Found { value, bare })
    }

    fn is_null(&self, key: &str) -> bool {
        self.object.and_then(|object| object.get(key)).is_some_and(Value::is_null)
    }
}

fn mismatch(value: &Value, expected: &str) -> Problem {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a number with a fraction",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    Problem::Type { found, expected: expected.to_owned() }
}
