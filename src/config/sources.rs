//! File, environment and command line, merged into one document.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::{
    error::{Origin, Problem, Violation, shown_key},
    json, keys,
    keys::{Key, Kind, VARIABLE_PREFIX, variable_name},
    nearest::nearest,
};

/// Variables that the command line reads itself.
const CLI_VARIABLES: [&str; 9] = [
    "TRUNKLINE_CHANNEL",
    "TRUNKLINE_CONFIG",
    "TRUNKLINE_GATEWAY",
    "TRUNKLINE_REDIS",
    "TRUNKLINE_TLS_CA",
    "TRUNKLINE_TLS_CERT",
    "TRUNKLINE_TLS_KEY",
    "TRUNKLINE_TOKEN",
    "TRUNKLINE_TOKEN_FILE",
];

/// The prefix of the variables of the tests.
const TEST_PREFIX: &str = "TRUNKLINE_TEST_";

/// The key that names the variant of an object.
const TYPE: &str = "@type";

/// The sources of a configuration. A later one overrides an earlier one: file, environment,
/// command line.
#[derive(Clone, Default)]
pub struct Sources {
    /// The JSON file; None: the same as an empty one.
    pub file: Option<PathBuf>,
    /// The environment: name and value. Those whose name begins with `TRUNKLINE_` set keys; secrets
    /// may be in any. An empty value counts as not set.
    pub env: Vec<(String, String)>,
    /// The settings of the command line: the path of a key (`coordinator.timeout`) and its value. A
    /// later one wins.
    pub overrides: Vec<(String, String)>,
}

impl Sources {
    /// The environment of this process. What is not UTF-8 is replaced, not left out.
    pub fn process_environment() -> Vec<(String, String)> {
        let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect()
    }

    /// Sets the key at `path`, as a flag of the command line does.
    pub fn set(&mut self, path: impl Into<String>, value: impl Into<String>) {
        self.overrides.push((path.into(), value.into()));
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may be secrets.
        let names = |pairs: &[(String, String)]| -> Vec<String> {
            pairs.iter().map(|(name, _)| name.clone()).collect()
        };
        f.debug_struct("Sources")
            .field("file", &self.file)
            .field("env", &names(&self.env))
            .field("overrides", &names(&self.overrides))
            .finish()
    }
}

/// All sources in one document.
pub(super) struct Layers {
    /// None if the file cannot be read: then the keys are not checked.
    pub(super) document: Option<Value>,
    /// The sources of the values that do not come from the file, by path.
    pub(super) origins: BTreeMap<String, Origin>,
    pub(super) violations: Vec<Violation>,
}

impl Layers {
    pub(super) fn of(sources: &Sources) -> Layers {
        let mut layers = Layers::empty();
        if let Some(path) = &sources.file {
            layers.document = layers.read_file(path);
        }
        layers.merge_all(sources)
    }

    /// As `of`, with a `text` of that name in place of the file.
    pub(super) fn over(name: &str, text: &[u8], sources: &Sources) -> Layers {
        let mut layers = Layers::empty();
        layers.document = layers.read_text(name, text);
        layers.merge_all(sources)
    }

    fn empty() -> Layers {
        let document = Some(Value::Object(Map::new()));
        Layers { document, origins: BTreeMap::new(), violations: Vec::new() }
    }

    fn merge_all(self, sources: &Sources) -> Layers {
        let mut layers = self;
        // The command line may name the variables that hold secrets, so unknown variables are
        // reported after it.
        let variables = layers.merge_environment(&sources.env);
        layers.merge_overrides(&sources.overrides);
        layers.report_unknown_variables(&variables);
        layers
    }

    fn read_file(&mut self, path: &Path) -> Option<Value> {
        let name = path.display().to_string();
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) => {
                self.report(&name, Origin::File, Problem::Unreadable(error.to_string()));
                return None;
            }
        };
        self.read_text(&name, &text)
    }

    fn read_text(&mut self, name: &str, text: &[u8]) -> Option<Value> {
        match json::parse(text) {
            Ok(document) => {
                for path in document.duplicates {
                    self.report(&path, Origin::File, Problem::Duplicate);
                }
                Some(document.value)
            }
            Err(error) => {
                self.report(name, Origin::File, syntax_problem(&error));
                None
            }
        }
    }

    /// Sets the keys that variables name. Returns the names of variables that name none.
    fn merge_environment<'e>(&mut self, environment: &'e [(String, String)]) -> Vec<&'e str> {
        let by_variable: BTreeMap<String, &Key> =
            keys().iter().filter_map(|key| Some((key.variable()?, key))).collect();
        let ours = environment.iter().filter(|(name, value)| {
            name.starts_with(VARIABLE_PREFIX) && !value.is_empty() && !is_foreign(name, value)
        });
        let (known, unknown): (Vec<_>, Vec<_>) =
            ours.partition(|(name, _)| by_variable.contains_key(name));
        let pairs = known.into_iter().map(|(name, value)| {
            (by_variable[name].path.as_str(), value.as_str(), Origin::Variable(name.clone()))
        });
        self.merge(pairs.collect());
        unknown.into_iter().map(|(name, _)| name.as_str()).collect()
    }

    fn merge_overrides(&mut self, overrides: &[(String, String)]) {
        let mut pairs = Vec::new();
        for (path, value) in overrides {
            match keys().iter().find(|key| key.path == *path) {
                Some(key) if matches!(key.kind, Kind::Value | Kind::Ignored) => {
                    pairs.push((key.path.as_str(), value.as_str(), Origin::Flag));
                }
                Some(_) => {
                    let keys = members(path).map(|key| key.path.clone()).collect();
                    self.report(path, Origin::Flag, group_problem(keys));
                }
                None => {
                    let settable = keys().iter().filter(|key| key.kind == Kind::Value);
                    let nearest = nearest(path, settable.map(|key| key.path.as_str()));
                    let problem = unknown(nearest, &top_level());
                    let shown: Vec<_> = path.split('.').map(shown_key).collect();
                    self.report(&shown.join("."), Origin::Flag, problem);
                }
            }
        }
        self.merge(pairs);
    }

    /// Sets the keys of one source, given as path and value; types first, since a new type empties
    /// its object.
    fn merge(&mut self, mut pairs: Vec<(&str, &str, Origin)>) {
        let is_type = |path: &str| path.rsplit('.').next() == Some(TYPE);
        pairs.sort_by_key(|(path, ..)| !is_type(path));
        for (path, value, origin) in pairs {
            let Some(document) = &mut self.document else { return };
            let segments: Vec<&str> = path.split('.').collect();
            let Some(emptied) = patch(document, &segments, value) else { continue };
            if emptied {
                let object = path.trim_end_matches(TYPE);
                self.origins.retain(|path, _| !path.starts_with(object));
            }
            self.origins.insert(path.to_owned(), origin);
        }
    }

    /// Reports the variables that set nothing, except those that hold a secret.
    fn report_unknown_variables(&mut self, variables: &[&str]) {
        let mut secrets = BTreeSet::new();
        if let Some(document) = &self.document {
            collect_secret_variables(document, &mut secrets);
        }
        let unknown_names: Vec<_> =
            variables.iter().filter(|name| !secrets.contains(**name)).copied().collect();
        for name in unknown_names {
            let group = keys().iter().find(|key| {
                matches!(key.kind, Kind::Group | Kind::List) && variable_name(&key.path) == *name
            });
            let problem = if let Some(group) = group {
                group_problem(members(&group.path).filter_map(Key::variable).collect())
            } else {
                let known: Vec<String> = keys().iter().filter_map(Key::variable).collect();
                let some: Vec<_> = top_level().iter().map(|path| variable_name(path)).collect();
                unknown(nearest(name, known.iter().map(String::as_str)), &some)
            };
            self.report(&shown_key(name), Origin::Variable(name.to_owned()), problem);
        }
    }

    fn report(&mut self, path: &str, origin: Origin, problem: Problem) {
        self.violations.push(Violation { path: path.to_owned(), origin, problem });
    }
}

/// Sets the value at the path `segments` to `text`, and makes missing objects. A `@type` that
/// differs from the present one empties its object first: the other keys belong to another variant.
/// Returns whether it did; None if the path leads through a value that is not an object, which the
/// reader will report.
fn patch(document: &mut Value, segments: &[&str], text: &str) -> Option<bool> {
    let (last, parents) = segments.split_last()?;
    let mut object = document.as_object_mut()?;
    for segment in parents {
        let child = object.entry(*segment).or_insert(Value::Null);
        if child.is_null() {
            *child = Value::Object(Map::new());
        }
        object = child.as_object_mut()?;
    }
    // There is no other way to write null in a variable or a flag.
    let value = if text == "null" { Value::Null } else { Value::String(text.to_owned()) };
    let emptied = *last == TYPE && object.get(TYPE).is_some_and(|standing| *standing != value);
    if emptied {
        object.clear();
    }
    object.insert((*last).to_owned(), value);
    Some(emptied)
}

/// The problem of a single value for a group with these keys, or for a list, which has none.
fn group_problem(keys: Vec<String>) -> Problem {
    if keys.is_empty() {
        Problem::Invalid("is a list of objects; it can be set in the file only".to_owned())
    } else {
        Problem::Group { keys }
    }
}

/// The names of all variables in which the document's secrets are.
fn collect_secret_variables<'v>(value: &'v Value, names: &mut BTreeSet<&'v str>) {
    let object = match value {
        Value::Object(object) => object,
        Value::Array(values) => {
            return values.iter().for_each(|value| collect_secret_variables(value, names));
        }
        _ => return,
    };
    for (key, value) in object {
        match value {
            Value::String(name) if key == "variableName" => {
                names.insert(name);
            }
            other => collect_secret_variables(other, names),
        }
    }
}

/// The keys of the group at `path`.
fn members(path: &str) -> impl Iterator<Item = &'static Key> {
    let prefix = format!("{path}.");
    keys().iter().filter(move |key| key.kind == Kind::Value && key.path.starts_with(&prefix))
}

/// The keys to name where none is similar.
fn top_level() -> Vec<String> {
    let single = |key: &&Key| key.kind == Kind::Value && !key.path.contains('.');
    keys().iter().filter(single).map(|key| key.path.clone()).collect()
}

fn unknown(nearest: Option<&str>, some: &[String]) -> Problem {
    let known = if nearest.is_some() { vec![] } else { some.to_vec() };
    Problem::Unknown { nearest: nearest.map(str::to_owned), known }
}

/// True for a variable that is not meant to set a key: one of the command line, of the tests, or of
/// those that Kubernetes and Docker make for a service whose name begins with `trunkline`
/// (`TRUNKLINE_SERVICE_HOST`, `TRUNKLINE_PORT_7420_TCP_ADDR`, ...).
fn is_foreign(name: &str, value: &str) -> bool {
    if CLI_VARIABLES.contains(&name) || name.starts_with(TEST_PREFIX) {
        return true;
    }
    let protocol = |text: &str| ["TCP", "UDP", "SCTP"].iter().any(|p| text.starts_with(p));
    let numbered_port = name.split_once("_PORT_").is_some_and(|(_, rest)| {
        rest.split_once('_').is_some_and(|(number, rest)| {
            number.bytes().all(|b| b.is_ascii_digit()) && protocol(rest)
        })
    });
    let url = value.split_once("://").is_some_and(|(scheme, _)| protocol(&scheme.to_uppercase()));
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && url)
        || numbered_port
}

fn syntax_problem(error: &serde_json::Error) -> Problem {
    // serde_json appends line and column, which the problem holds in fields of their own.
    let text = error.to_string();
    let why = text.split(" at line ").next().unwrap_or_default().to_owned();
    Problem::Syntax { line: error.line(), column: error.column(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_has_no_values() {
        let mut sources =
            Sources { env: vec![("SECRET_NAME".into(), "hunter2".into())], ..Sources::default() };
        sources.set("coordinator.url", "redis://:hunter2@localhost");
        let shown = format!("{sources:?}");
        assert!(shown.contains("SECRET_NAME") && shown.contains("coordinator.url"), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn the_process_environment_is_read() {
        assert!(Sources::process_environment().iter().any(|(name, _)| name == "PATH"));
    }

    #[test]
    fn variables_of_an_orchestrator_are_ignored() {
        for (name, value) in [
            ("TRUNKLINE_SERVICE_HOST", "10.0.0.1"),
            ("TRUNKLINE_SERVICE_PORT", "7420"),
            ("TRUNKLINE_SERVICE_PORT_GRPC", "7420"),
            ("TRUNKLINE_PORT", "tcp://10.0.0.1:7420"),
            ("TRUNKLINE_PORT_7420_TCP", "tcp://10.0.0.1:7420"),
            ("TRUNKLINE_PORT_7420_TCP_PROTO", "tcp"),
            ("TRUNKLINE_ADMIN_SERVICE_HOST", "10.0.0.1"),
            ("TRUNKLINE_ADMIN_PORT_7421_TCP_ADDR", "10.0.0.1"),
            ("TRUNKLINE_CONFIG", "/etc/trunkline.json"),
            ("TRUNKLINE_GATEWAY", "http://127.0.0.1:7420"),
            ("TRUNKLINE_TEST_REDIS_URL", "redis://127.0.0.1"),
        ] {
            assert!(is_foreign(name, value), "{name}");
        }
        for (name, value) in [
            ("TRUNKLINE_PORT", "7420"),
            ("TRUNKLINE_LISTEN", "127.0.0.1:7420"),
            ("TRUNKLINE_PORT_RANGE", "7420"),
            ("TRUNKLINE_CONFIGURATION", "/etc/trunkline.json"),
        ] {
            assert!(!is_foreign(name, value), "{name}");
        }
    }

    #[test]
    fn no_key_has_a_variable_that_an_orchestrator_makes() {
        for variable in keys().iter().filter_map(Key::variable) {
            assert!(!is_foreign(&variable, "tcp://10.0.0.1:7420"), "{variable}");
        }
    }
}
