//! Passwords that may change while the gateway runs: those of Redis.

use std::{path::PathBuf, time::Duration};

use serde_json::{Map, Value, json};

use super::{
    declaration::{Declaration, Shape, Variant, Variants},
    error::{Problem, mismatch},
    fields::{Fields, Found},
    secret::Secret,
    secret_key,
    settings::{Declared, Settings, key, required, settings},
    types::{ValueType, duration},
    units::{MINUTE, SECOND},
};

/// A password of Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Password {
    /// A secret; one in a file may change.
    Secret(Secret),
    /// What a command prints.
    Command(LoginCommand),
}

settings! {
    /// A command that prints a login.
    pub struct LoginCommand {
        /// Of `Command`: the absolute path of the program. It is run without a shell, and prints a
        /// JSON object: see [Passwords that
        /// expire](operations.md#passwords-that-expire).
        pub path: PathBuf = required("path", ProgramPath, "the absolute path of a program"),
        /// Of `Command`: its arguments.
        pub args: Vec<String> = key("args", Texts, ()),
        /// Of `Command`: limit of the time in which it ends; it is killed then.
        pub timeout: Duration =
            key("timeout", duration(SECOND / 10..=MINUTE), 10 * SECOND),
    }
}

/// A key whose object names a password of Redis; None where it names none.
pub(super) struct PasswordKey(pub(super) &'static str);

impl Declared for PasswordKey {
    type Value = Option<Password>;

    fn read(&self, fields: &mut Fields<'_>) -> Option<Password> {
        let read =
            fields.optional_group(self.0, |fields| match fields.variant(&variants().names())? {
                "Command" => {
                    let command = LoginCommand::read(fields);
                    fields.sound(&["path", "args"]).then_some(Password::Command(command))
                }
                other => secret_key::read_variant(other, fields).map(Password::Secret),
            });
        read.flatten()
    }

    fn show(&self, value: &Option<Password>, object: &mut Map<String, Value>) {
        let shown = match value {
            None => secret_key::show_source(None),
            Some(Password::Secret(secret)) => secret_key::show_source(Some(secret.source())),
            Some(Password::Command(command)) => {
                let mut shown = Map::from_iter([("@type".to_owned(), json!("Command"))]);
                shown.extend(command.show());
                Value::Object(shown)
            }
        };
        object.insert(self.0.to_owned(), shown);
    }

    fn describe(&self, doc: &'static str) -> Vec<Declaration> {
        vec![Declaration::new(self.0, doc, Shape::Variants(variants()))]
    }
}

fn variants() -> Variants {
    let mut variants = secret_key::variants(true);
    variants.meaning = "The source of the secret: `None`, `Value`, `EnvironmentVariable`, `File` \
                        or `Command`. Required in the object.";
    variants.known.push(Variant {
        name: "Command",
        meaning: "A command prints the secret, and when it expires.",
        keys: Some(LoginCommand::describe()),
    });
    variants
}

/// The path of a program.
struct ProgramPath;

impl ValueType for ProgramPath {
    type Value = PathBuf;
    type Literal = ();

    fn name(&self) -> &'static str {
        "path"
    }

    fn read(&self, found: &Found<'_>) -> Option<PathBuf> {
        let path = PathBuf::from(found.text()?);
        let relative = || Problem::Invalid("is not an absolute path".to_owned());
        found.or_report(if path.is_absolute() { Ok(path) } else { Err(relative()) })
    }

    fn value_of(&self, (): &()) -> PathBuf {
        PathBuf::new()
    }

    fn show(&self, value: &PathBuf) -> Value {
        json!(value.to_string_lossy())
    }

    fn schema(&self) -> Value {
        json!({ "type": ["string"], "pattern": "^/" })
    }
}

/// Texts in order.
struct Texts;

impl ValueType for Texts {
    type Value = Vec<String>;
    type Literal = ();

    fn name(&self) -> &'static str {
        "texts"
    }

    fn read(&self, found: &Found<'_>) -> Option<Vec<String>> {
        if found.value.is_object() {
            // Its members have no order.
            found.report(mismatch(found.value, "an array of strings"));
            return None;
        }
        let members = found.members()?;
        Some(members.into_iter().map(|(_, text)| text.to_owned()).collect())
    }

    fn value_of(&self, (): &()) -> Vec<String> {
        vec![]
    }

    fn show(&self, value: &Vec<String>) -> Value {
        json!(value)
    }

    fn schema(&self) -> Value {
        json!({ "type": ["array"], "items": { "type": "string" } })
    }
}
