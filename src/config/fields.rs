//! The walker: a cursor over one JSON object that collects what is wrong instead of stopping at it.
//!
//! A decoder asks [`Fields`] for each key that it knows, with the range and the default. Whatever is wrong becomes a
//! violation, the default takes its place, and the decoder goes on; so one run finds everything. Keys that nobody asked for
//! are unknown. Since the decoder alone knows the keys, it is also the list of them: see [`super::keys`].

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    net::SocketAddr,
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use serde_json::{Map, Value};

use super::{
    error::{Origin, Problem, Violation, shown},
    json::join,
    keys::{Key, Kind, suggest},
    nearest::nearest,
    units::{format_duration, format_size, parse_duration, parse_size},
};

/// A float from here on (2^63) was a whole number once.
const LARGE: f64 = 9_223_372_036_854_775_808.0;

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

    /// Whether nothing is wrong with any of `keys` so far: only then is it worth comparing them.
    pub(super) fn sound(&self, keys: &[&str]) -> bool {
        let violations = self.context.violations.borrow();
        let broken = |key: &&str| violations.iter().any(|v| v.path == join(&self.path, key));
        !keys.iter().any(|key| broken(key))
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

    pub(super) fn optional_text(&mut self, key: &'static str) -> Option<String> {
        self.read(key, None, |found| match found.value {
            Value::String(text) => Ok(text.clone()),
            other => Err(mismatch(other, "a string")),
        })
    }

    /// A text; if there is none that is `expected` and missing.
    pub(super) fn required_text(&mut self, key: &'static str, expected: &str) -> Option<String> {
        let text = self.optional_text(key);
        if text.is_none() && !self.has(key) {
            self.fail(key, Problem::Missing { expected: expected.to_owned() });
        }
        text
    }

    /// A text that `check` accepts, or says in words why not.
    pub(super) fn checked_text(
        &mut self,
        key: &'static str,
        check: impl FnOnce(&str) -> Result<(), Problem>,
    ) -> Option<String> {
        let text = self.optional_text(key)?;
        check(&text).map_err(|problem| self.fail(key, problem)).ok()?;
        Some(text)
    }

    pub(super) fn optional_path(&mut self, key: &'static str) -> Option<PathBuf> {
        self.optional_text(key).map(PathBuf::from)
    }

    pub(super) fn choice(
        &mut self,
        key: &'static str,
        allowed: &[&'static str],
    ) -> Option<&'static str> {
        let text = self.optional_text(key)?;
        let found = allowed.iter().find(|word| **word == text);
        if found.is_none() {
            let nearest = nearest(&text, allowed.iter().copied()).map(str::to_owned);
            let allowed = allowed.iter().map(|&word| word.to_owned()).collect();
            self.fail(key, Problem::Choice { found: shown(&text), allowed, nearest });
        }
        found.copied()
    }

    pub(super) fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        let read = self.read(key, None, |found| match found.value {
            Value::Bool(value) => Ok(*value),
            Value::String(text) if found.bare && text == "true" => Ok(true),
            Value::String(text) if found.bare && text == "false" => Ok(false),
            other => Err(mismatch(other, "true or false")),
        });
        read.unwrap_or(default)
    }

    pub(super) fn optional_number<T>(
        &mut self,
        key: &'static str,
        range: RangeInclusive<T>,
    ) -> Option<T>
    where
        T: TryFrom<u64> + PartialOrd + Display + Copy,
    {
        let out_of_range = |found: String| Problem::Range {
            found,
            least: range.start().to_string(),
            most: range.end().to_string(),
        };
        self.read(key, Some(range_text(range.start(), range.end())), |found| {
            let number = match found.integer() {
                Some(Ok(number)) => number,
                Some(Err(other)) => return Err(out_of_range(other)),
                None => return Err(mismatch(found.value, "a whole number")),
            };
            match T::try_from(number) {
                Ok(value) if range.contains(&value) => Ok(value),
                _ => Err(out_of_range(number.to_string())),
            }
        })
    }

    pub(super) fn number<T>(&mut self, key: &'static str, range: RangeInclusive<T>, default: T) -> T
    where
        T: TryFrom<u64> + PartialOrd + Display + Copy,
    {
        self.optional_number(key, range).unwrap_or(default)
    }

    /// A number of bytes.
    pub(super) fn size(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        default: u64,
    ) -> u64 {
        let (least, most) = (format_size(*range.start()), format_size(*range.end()));
        let read = self.read(key, Some(range_text(&least, &most)), |found| {
            let size = match (found.value, found.integer()) {
                (_, Some(Ok(number))) => Some(Ok(number)),
                (Value::Number(_), Some(Err(other))) => Some(Err(other)),
                (Value::String(text), _) => parse_size(text).map(Ok),
                _ => None,
            };
            match size {
                Some(Ok(size)) if range.contains(&size) => Ok(size),
                Some(Ok(size)) => Err(Problem::Range { found: format_size(size), least, most }),
                Some(Err(found)) => Err(Problem::Range { found, least, most }),
                None => {
                    Err(unreadable(found.value, "a size: bytes, or such as 64KiB, 64MiB, 1GiB"))
                }
            }
        });
        read.unwrap_or(default)
    }

    pub(super) fn optional_duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let (least, most) = (format_duration(*range.start()), format_duration(*range.end()));
        self.read(key, Some(range_text(&least, &most)), |found| {
            let duration = match (found.value, found.integer()) {
                (_, Some(Ok(millis))) => Some(Ok(Duration::from_millis(millis))),
                (Value::Number(_), Some(Err(other))) => Some(Err(other)),
                (Value::String(text), _) => parse_duration(text).map(Ok),
                _ => None,
            };
            match duration {
                Some(Ok(duration)) if range.contains(&duration) => Ok(duration),
                Some(Ok(other)) => {
                    Err(Problem::Range { found: format_duration(other), least, most })
                }
                Some(Err(found)) => Err(Problem::Range { found, least, most }),
                None => Err(unreadable(
                    found.value,
                    "a duration: milliseconds, or such as 500ms, 10s, 5m, 1h, 1d",
                )),
            }
        })
    }

    pub(super) fn duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        self.optional_duration(key, range).unwrap_or(default)
    }

    /// A duration for which null means that there is no limit, which is not the default.
    pub(super) fn nullable_duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
        default: Option<Duration>,
    ) -> Option<Duration> {
        let null = self.is_null(key);
        let read = self.optional_duration(key, range);
        if null { None } else { read.or(default) }
    }

    /// An address with its port, for which null means that there is none, which is not the default.
    pub(super) fn nullable_address(
        &mut self,
        key: &'static str,
        default: Option<SocketAddr>,
    ) -> Option<SocketAddr> {
        let null = self.is_null(key);
        let read = self.optional_address(key);
        if null { None } else { read.or(default) }
    }

    pub(super) fn optional_address(&mut self, key: &'static str) -> Option<SocketAddr> {
        self.read(key, None, |found| {
            let address = found.value.as_str().and_then(|text| text.parse().ok());
            address.ok_or_else(|| {
                unreadable(
                    found.value,
                    "an IP address with a port, such as 127.0.0.1:7420, 0.0.0.0:7420 or [::]:7420",
                )
            })
        })
    }

    /// The members of a set, each with its path: an array, or an object whose members are true. Bare text is split at commas.
    pub(super) fn set(&mut self, key: &'static str) -> Option<Vec<(String, String)>> {
        let found = self.ask(key, Kind::Value, None)?;
        let path = join(&self.path, key);
        let mut members = Vec::new();
        // A member may be a URL with a password, so it is named by its place.
        let place = |index: usize| format!("{path}[{index}]");
        match found.value {
            Value::Array(values) => {
                for (index, value) in values.iter().enumerate() {
                    match value {
                        Value::String(text) => members.push((place(index), text.clone())),
                        other => self.context.report(&place(index), mismatch(other, "a string")),
                    }
                }
            }
            Value::Object(object) => {
                for (index, (member, value)) in object.iter().enumerate() {
                    match value {
                        Value::Bool(true) => members.push((place(index), member.clone())),
                        Value::Bool(false) => {}
                        other => {
                            self.context.report(&place(index), mismatch(other, "true or false"));
                        }
                    }
                }
            }
            Value::String(text) if found.bare => {
                let texts = text.split(',').map(str::trim).filter(|text| !text.is_empty());
                members.extend(texts.map(|text| (path.clone(), text.to_owned())));
            }
            other => {
                let expected = "an array of strings, or an object such as {\"...\": true}";
                self.context.report(&path, mismatch(other, expected));
                return None;
            }
        }
        Some(members)
    }

    /// Reports what is wrong at `path`, which [`Fields::set`] gave.
    pub(super) fn fail_at(&self, path: &str, key: &str, problem: Problem) {
        // A variable or flag holds the whole set.
        let whole = join(&self.path, key);
        let path = if self.context.origins.contains_key(&whole) { &whole } else { path };
        self.context.report(path, problem);
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

    /// Looks up `key`, and remembers that it is known.
    fn ask(&mut self, key: &'static str, kind: Kind, range: Option<String>) -> Option<Found<'d>> {
        let path = join(&self.path, key);
        let bare = self.context.origins.contains_key(&path);
        self.asked.insert(key);
        self.context.keys.borrow_mut().push(Key { path, kind, range });
        let value = self.object?.get(key)?;
        (!value.is_null()).then_some(Found { value, bare })
    }

    fn is_null(&self, key: &str) -> bool {
        self.object.and_then(|object| object.get(key)).is_some_and(Value::is_null)
    }
}

impl Found<'_> {
    /// The whole number that this is; as text if it is none that fits. None if it is no number.
    fn integer(&self) -> Option<Result<u64, String>> {
        match self.value {
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => Some(Ok(number)),
                (None, Some(negative)) => Some(Err(negative.to_string())),
                // What does not fit into 64 bits has become a float.
                (None, None) => {
                    let large = number.as_f64().is_some_and(|number| number.abs() >= LARGE);
                    large.then(|| Err(number.to_string()))
                }
            },
            Value::String(text) if self.bare => {
                let digits = text.strip_prefix('-').unwrap_or(text);
                let number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
                number.then(|| text.parse().map_err(|_| shown(text)))
            }
            _ => None,
        }
    }
}

fn range_text(least: impl Display, most: impl Display) -> String {
    format!("{least} to {most}")
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

/// A text that does not parse, or something that is no text.
fn unreadable(value: &Value, expected: &str) -> Problem {
    match value {
        Value::String(text) => Problem::Invalid(format!("{} is not {expected}", shown(text))),
        other => mismatch(other, expected),
    }
}
