//! A reader of one JSON object that collects violations instead of stopping at the first.
//!
//! [`super::settings`] asks [`Fields`] for each declared key. A broken value becomes a violation
//! and the reading goes on, so that one run finds everything. Keys that nothing asked for are
//! unknown.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use serde_json::{Map, Value};

use super::{
    error::{Origin, Problem, Violation, mismatch, wrong_choice},
    json::join,
    keys::{Key, suggest},
};

/// A float from here on (2^63) was written as a whole number.
const LARGE: f64 = 9_223_372_036_854_775_808.0;

/// Shared by all objects of one document.
pub(super) struct Context<'d> {
    environment: &'d [(String, String)],
    /// The sources of the values that do not come from the file, by path.
    origins: &'d BTreeMap<String, Origin>,
    /// The keys to suggest for an unknown one.
    keys: &'d [Key],
    violations: RefCell<Vec<Violation>>,
}

impl<'d> Context<'d> {
    pub(super) fn new(
        environment: &'d [(String, String)],
        origins: &'d BTreeMap<String, Origin>,
        keys: &'d [Key],
    ) -> Context<'d> {
        Context { environment, origins, keys, violations: RefCell::default() }
    }

    /// Reads the whole of `document`.
    pub(super) fn read<T>(&self, document: &Value, read: impl FnOnce(&mut Fields<'_>) -> T) -> T {
        let mut fields = Fields::open(self, String::new(), Some(document), true);
        let decoded = read(&mut fields);
        fields.finish();
        decoded
    }

    /// All violations, in the order in which they were found.
    pub(super) fn into_violations(self) -> Vec<Violation> {
        self.violations.into_inner()
    }

    fn report(&self, path: &str, problem: Problem) {
        let origin = self.origins.get(path).cloned().unwrap_or_default();
        let violation = Violation { path: path.to_owned(), origin, problem };
        self.violations.borrow_mut().push(violation);
    }
}

/// The keys of one object.
pub(super) struct Fields<'d> {
    context: &'d Context<'d>,
    path: String,
    object: Option<&'d Map<String, Value>>,
    asked: BTreeSet<&'static str>,
    /// True when unknown keys are accepted.
    open: bool,
    /// True when the files and variables that are named here are read.
    lookups: bool,
}

/// A member of an array, and the reader that reports its violations.
pub(super) enum Element<'e, 'd> {
    /// A string.
    Text(&'e mut Fields<'d>, &'e str),
    /// An object.
    Object(&'e mut Fields<'d>),
}

/// A value that is there and not null.
pub(super) struct Found<'d> {
    pub(super) value: &'d Value,
    /// True for text of a variable or of the command line, which has no types.
    pub(super) bare: bool,
    /// True when the file that is named here is to be read.
    pub(super) lookups: bool,
    path: String,
    context: &'d Context<'d>,
}

impl<'d> Fields<'d> {
    fn open(
        context: &'d Context<'d>,
        path: String,
        value: Option<&'d Value>,
        lookups: bool,
    ) -> Fields<'d> {
        let object = value.and_then(Value::as_object);
        if let (Some(value), None) = (value, object) {
            context.report(&path, mismatch(value, "an object"));
        }
        Fields { context, path, object, asked: BTreeSet::new(), open: false, lookups }
    }

    /// Reports the keys that nothing asked for.
    fn finish(self) {
        if self.open {
            return;
        }
        for key in self.object.into_iter().flat_map(Map::keys) {
            if !self.asked.contains(key.as_str()) {
                let (nearest, known) = suggest(self.context.keys, &self.path, key, &self.asked);
                self.context.report(&join(&self.path, key), Problem::Unknown { nearest, known });
            }
        }
    }

    /// The environment variables that may hold secrets.
    pub(super) fn environment(&self) -> &'d [(String, String)] {
        self.context.environment
    }

    /// True when the files and variables that are named here are to be read.
    pub(super) fn lookups(&self) -> bool {
        self.lookups
    }

    /// Leaves the files and variables that are named here alone from now on.
    pub(super) fn skip_lookups(&mut self) {
        self.lookups = false;
    }

    /// Reports what is wrong with `key`, or with the whole object if `key` is empty.
    pub(super) fn fail(&self, key: &str, problem: Problem) {
        let path = if key.is_empty() { self.path.clone() } else { join(&self.path, key) };
        self.context.report(&path, problem);
    }

    /// Reports what is wrong with `key` of the object at `group`.
    pub(super) fn fail_in(&self, group: &str, key: &str, problem: Problem) {
        self.context.report(&join(&join(&self.path, group), key), problem);
    }

    /// Reports what is wrong with `key` of a member of the list at `list`.
    pub(super) fn fail_in_list(&self, list: &str, index: usize, key: &str, problem: Problem) {
        let path = format!("{}[{index}].{key}", join(&self.path, list));
        self.context.report(&path, problem);
    }

    /// Reports what is wrong at a full path.
    pub(super) fn fail_at(&self, path: &str, problem: Problem) {
        self.context.report(path, problem);
    }

    /// True when no violation of any of `keys` was found so far: only then are they compared.
    pub(super) fn sound(&self, keys: &[&str]) -> bool {
        let violations = self.context.violations.borrow();
        let broken = |key: &&str| violations.iter().any(|v| v.path == join(&self.path, key));
        !keys.iter().any(broken)
    }

    /// True when no violation in the object at `key` was found so far.
    pub(super) fn all_sound(&self, key: &str) -> bool {
        let path = join(&self.path, key);
        let violations = self.context.violations.borrow();
        !violations.iter().any(|violation| {
            violation
                .path
                .strip_prefix(&path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }

    /// True when `key` was given, and is not null.
    pub(super) fn has(&self, key: &str) -> bool {
        self.peek(key).is_some()
    }

    /// True when `key` was given as null.
    pub(super) fn is_null(&self, key: &str) -> bool {
        self.object.and_then(|object| object.get(key)).is_some_and(Value::is_null)
    }

    /// The value at `key` that is not null, without making the key a known one.
    pub(super) fn peek(&self, key: &str) -> Option<&'d Value> {
        self.object?.get(key).filter(|value| !value.is_null())
    }

    /// Makes `key` a known one, and returns its value where there is one that is not null.
    pub(super) fn value(&mut self, key: &'static str) -> Option<Found<'d>> {
        self.asked.insert(key);
        let value = self.peek(key)?;
        let path = join(&self.path, key);
        let (context, lookups) = (self.context, self.lookups);
        let bare = context.origins.contains_key(&path);
        Some(Found { value, bare, lookups, path, context })
    }

    /// The object's `@type`, which must be one of `types`. Where it is not, the other keys are
    /// accepted: they may belong to any type.
    pub(super) fn variant(&mut self, types: &[&'static str]) -> Option<&'static str> {
        let name = self.any_variant(types)?;
        let found = types.iter().find(|known| **known == name).copied();
        if found.is_none() {
            self.fail("@type", wrong_choice(&name, types));
            self.let_through();
        }
        found
    }

    /// The object's `@type`, whatever it is; the violation of a missing one names `types`.
    pub(super) fn any_variant(&mut self, types: &[&'static str]) -> Option<String> {
        let found = self.value("@type").and_then(|found| found.text().map(str::to_owned));
        if found.is_none() {
            if self.object.is_some() && !self.has("@type") {
                let expected = format!("one of {}", types.join(", "));
                self.fail("@type", Problem::Missing { expected });
            }
            self.let_through();
        }
        found
    }

    /// Accepts all other keys.
    pub(super) fn let_through(&mut self) {
        self.open = true;
    }

    /// The object at `key`; `read` sees an empty one if there is none.
    pub(super) fn group<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Fields<'_>) -> T,
    ) -> T {
        let found = self.value(key);
        self.enter(key, found, read)
    }

    /// The object at `key`, if there is one.
    pub(super) fn optional_group<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Fields<'_>) -> T,
    ) -> Option<T> {
        let found = self.value(key)?;
        Some(self.enter(key, Some(found), read))
    }

    fn enter<T>(
        &self,
        key: &str,
        found: Option<Found<'d>>,
        read: impl FnOnce(&mut Fields<'_>) -> T,
    ) -> T {
        let path = join(&self.path, key);
        let value = found.map(|found| found.value);
        let mut fields = Fields::open(self.context, path, value, self.lookups);
        let decoded = read(&mut fields);
        fields.finish();
        decoded
    }

    /// The members of the array at `key`, each read by `read`, and None for a broken one;
    /// `expected` describes one of them. None if there is no array.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        mut read: impl FnMut(Element<'_, '_>) -> Option<T>,
    ) -> Option<Vec<Option<T>>> {
        let found = self.value(key)?;
        let Value::Array(values) = found.value else {
            found.report(mismatch(found.value, "an array"));
            return None;
        };
        let mut read_one = |(index, value): (usize, &Value)| {
            let path = found.member(index);
            match value {
                Value::String(text) => {
                    let mut fields = Fields::open(self.context, path, None, self.lookups);
                    read(Element::Text(&mut fields, text))
                }
                Value::Object(_) => {
                    let mut fields = Fields::open(self.context, path, Some(value), self.lookups);
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
}

impl<'d> Found<'d> {
    /// Reports what is wrong with the value.
    pub(super) fn report(&self, problem: Problem) {
        self.context.report(&self.path, problem);
    }

    /// Reports what is wrong at a full path.
    pub(super) fn report_at(&self, path: &str, problem: Problem) {
        self.context.report(path, problem);
    }

    /// The result's value; its problem is reported.
    pub(super) fn or_report<T>(&self, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.report(problem)).ok()
    }

    /// The string that this is. Anything else is reported.
    pub(super) fn text(&self) -> Option<&'d str> {
        self.or_report(self.value.as_str().ok_or_else(|| mismatch(self.value, "a string")))
    }

    /// The whole number that this is; as text if it does not fit. None if it is not a number.
    pub(super) fn integer(&self) -> Option<Result<u64, String>> {
        match self.value {
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => Some(Ok(number)),
                (None, Some(negative)) => Some(Err(negative.to_string())),
                // A number that does not fit into 64 bits has become a float.
                (None, None) => {
                    let large = number.as_f64().is_some_and(|number| number.abs() >= LARGE);
                    large.then(|| Err(number.to_string()))
                }
            },
            Value::String(text) if self.bare => {
                let digits = text.strip_prefix('-').unwrap_or(text);
                let number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
                number.then(|| text.parse().map_err(|_| super::error::shown(text)))
            }
            _ => None,
        }
    }

    /// The members of a set, each with its path: an array of strings, or an object whose values
    /// are booleans. Bare text is split at commas. None if there is no set, or only broken members.
    pub(super) fn members(&self) -> Option<Vec<(String, &'d str)>> {
        let mut members = Vec::new();
        let mut broken = false;
        let mut wrong = |index: usize, value: &Value, expected: &str| {
            broken = true;
            self.context.report(&self.member(index), mismatch(value, expected));
        };
        match self.value {
            Value::Array(values) => {
                for (index, value) in values.iter().enumerate() {
                    match value {
                        Value::String(text) => members.push((self.member(index), text.as_str())),
                        other => wrong(index, other, "a string"),
                    }
                }
            }
            Value::Object(object) => {
                for (index, (member, value)) in object.iter().enumerate() {
                    match value {
                        Value::Bool(true) => members.push((self.member(index), member.as_str())),
                        Value::Bool(false) => {}
                        other => wrong(index, other, "true or false"),
                    }
                }
            }
            Value::String(text) if self.bare => {
                let texts = text.split(',').map(str::trim).filter(|text| !text.is_empty());
                members.extend(texts.map(|text| (self.path.clone(), text)));
            }
            other => {
                let expected = "an array of strings, or an object such as {\"...\": true}";
                self.report(mismatch(other, expected));
                return None;
            }
        }
        // A set that is broken is not reported as empty too.
        (!broken || !members.is_empty()).then_some(members)
    }

    /// The path of a member. A member may be a URL with a password, so its index names it.
    fn member(&self, index: usize) -> String {
        format!("{}[{index}]", self.path)
    }
}
