//! One declaration is all that a key needs: everything else is made from it.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use super::schema::Validator;
use crate::config::{
    Key,
    fields::Context,
    keys,
    keys::keys_of,
    schema::object_schema,
    settings::{Settings, key, settings},
    types::{duration, number},
    units::{HOUR, SECOND},
};

settings! {
    /// A group with a key of each kind.
    pub struct Example {
        /// Limit of attempts, see [Retries](#retries). `0` is none.
        pub max_attempts: u32 = key("maxAttempts", number(0..=5), 3),
        /// The wait
        /// between two attempts.
        pub wait: Duration = key("wait", duration(SECOND..=HOUR), 2 * SECOND),
    }
}

fn read(document: &Value) -> Result<Example, Vec<String>> {
    let origins = BTreeMap::new();
    let context = Context::new(&[], &origins, keys());
    let example = context.read(document, Example::read);
    let lines: Vec<String> = context.into_violations().iter().map(ToString::to_string).collect();
    if lines.is_empty() { Ok(example) } else { Err(lines) }
}

#[test]
fn one_declaration_makes_the_reader_with_its_default_and_its_limits() {
    let wait = Duration::from_secs(2);
    assert_eq!(Example::default(), Example { max_attempts: 3, wait });
    let set = read(&json!({ "maxAttempts": 5, "wait": "1m" }));
    assert_eq!(set, Ok(Example { max_attempts: 5, wait: Duration::from_mins(1) }));
    let lines = read(&json!({ "maxAttempts": 6, "wait": "2h", "maxAttempt": 1 })).unwrap_err();
    let expected = [
        "maxAttempts: 6 is out of range: at least 0, at most 5",
        "wait: 2h is out of range: at least 1s, at most 1h",
        "maxAttempt: is not known; did you mean maxAttempts?",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn one_declaration_makes_the_effective_configuration() {
    let shown = Value::Object(Example::default().show());
    assert_eq!(shown, json!({ "maxAttempts": 3, "wait": "2s" }));
}

#[test]
fn one_declaration_makes_the_variable_the_flag_and_the_row_of_the_reference() {
    let keys = keys_of(&Example::describe());
    let variables: Vec<_> = keys.iter().filter_map(Key::variable).collect();
    assert_eq!(variables, ["TRUNKLINE_MAX_ATTEMPTS", "TRUNKLINE_WAIT"]);
    assert_eq!(keys[0].help(), "Limit of attempts, see Retries. 0 is none. [default: 3]");
    let row = "| `wait` | duration | `2s` | 1s to 1h | The wait between two attempts. |\n";
    assert_eq!(super::documentation::row(&keys[1]), row);
}

#[test]
fn one_declaration_makes_the_schema() {
    let schema = object_schema(&Example::describe(), None);
    let attempts = json!({
        "type": ["integer", "null"], "minimum": 0, "maximum": 5, "default": 3,
        "description": "Limit of attempts, see Retries. 0 is none.",
    });
    assert_eq!(schema["properties"]["maxAttempts"], attempts);
    let validator = Validator::new(schema);
    assert_eq!(validator.refuses(&json!({ "maxAttempts": 5, "wait": 1000 })), None);
    for wrong in [json!({ "maxAttempts": 6 }), json!({ "wait": 999 }), json!({ "waits": 1000 })] {
        assert!(validator.refuses(&wrong).is_some(), "{wrong}");
    }
}
