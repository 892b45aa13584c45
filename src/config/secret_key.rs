//! Keys whose object names the source of a secret.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::{
    declaration::{Declaration, Shape, Variant, Variants},
    error::{Problem, shown},
    fields::Fields,
    secret::{self, MASK, Secret, SecretSource},
    settings::{Declared, Required, required},
    types::{Text, any_text},
};

/// A key whose object names a secret; None where it names none.
pub(super) struct SecretKey(pub(super) &'static str);

impl Declared for SecretKey {
    type Value = Option<Secret>;

    fn read(&self, fields: &mut Fields<'_>) -> Option<Secret> {
        fields.optional_group(self.0, read).flatten()
    }

    fn show(&self, value: &Option<Secret>, object: &mut Map<String, Value>) {
        object.insert(self.0.to_owned(), show_source(value.as_ref().map(Secret::source)));
    }

    fn describe(&self, doc: &'static str) -> Vec<Declaration> {
        vec![Declaration::new(self.0, doc, Shape::Variants(variants(true)))]
    }
}

fn value_key() -> Required<Text> {
    required("secret", any_text(), "the secret")
}

fn variable_key() -> Required<Text> {
    required("variableName", any_text(), "the name of a variable")
}

fn file_key() -> Required<Text> {
    required("filePath", any_text(), "the path of a file")
}

/// The ways to name a secret.
pub(super) fn variants(none_is_default: bool) -> Variants {
    let variant = |name, meaning, keys| Variant { name, meaning, keys: Some(keys) };
    let file = "Of `File`: the path of the file. White space at its end is removed.";
    Variants {
        meaning: "The source of the secret: `None`, `Value`, `EnvironmentVariable` or `File`. \
                  Required in the object.",
        default: none_is_default.then_some("None"),
        common: vec![],
        known: vec![
            variant("None", "There is no secret.", vec![]),
            variant(
                "Value",
                "The configuration has the secret itself.",
                value_key().describe("Of `Value`: the secret itself."),
            ),
            variant(
                "EnvironmentVariable",
                "The secret is the value of a variable.",
                variable_key().describe("Of `EnvironmentVariable`: the name of the variable."),
            ),
            variant("File", "The secret is the content of a file.", file_key().describe(file)),
        ],
        open: false,
    }
}

/// Reads the object of a secret. Without [`Fields::lookups`] variables and files are left alone,
/// and the secret in one of them is None.
pub(super) fn read(fields: &mut Fields<'_>) -> Option<Secret> {
    let name = fields.variant(&variants(true).names())?;
    read_variant(name, fields)
}

/// Reads the keys of a variant.
pub(super) fn read_variant(name: &str, fields: &mut Fields<'_>) -> Option<Secret> {
    match name {
        "Value" => {
            let value = value_key().read(fields);
            if !fields.sound(&["secret"]) {
                return None;
            }
            check(&value).map_err(|problem| fields.fail("secret", problem)).ok()?;
            Some(Secret::new(value))
        }
        "EnvironmentVariable" => {
            let name = variable_key().read(fields);
            if !fields.lookups() || !fields.sound(&["variableName"]) {
                return None;
            }
            let value = read_variable(&name, fields.environment());
            let value = value.map_err(|problem| fields.fail("variableName", problem)).ok()?;
            Some(Secret::from_source(value, SecretSource::EnvironmentVariable(name)))
        }
        "File" => {
            let path = PathBuf::from(file_key().read(fields));
            if !fields.lookups() || !fields.sound(&["filePath"]) {
                return None;
            }
            let name = shown(&path.to_string_lossy());
            let value = secret::read_file(&path, &name).map_err(Problem::Invalid);
            let value = value.map_err(|problem| fields.fail("filePath", problem)).ok()?;
            Some(Secret::from_source(value, SecretSource::File(path)))
        }
        _ => None,
    }
}

/// The object of a secret: the name of its source, or the mask.
pub(super) fn show_source(source: Option<&SecretSource>) -> Value {
    match source {
        None => json!({ "@type": "None" }),
        Some(SecretSource::Value) => json!({ "@type": "Value", "secret": MASK }),
        Some(SecretSource::EnvironmentVariable(name)) => {
            json!({ "@type": "EnvironmentVariable", "variableName": name })
        }
        Some(SecretSource::File(path)) => {
            json!({ "@type": "File", "filePath": path.to_string_lossy() })
        }
    }
}

fn read_variable(name: &str, environment: &[(String, String)]) -> Result<String, Problem> {
    let found = environment.iter().find(|(known, _)| known == name);
    let Some((_, value)) = found else {
        return Err(Problem::Invalid(format!("the variable {} is not set", shown(name))));
    };
    check(value).map(|()| value.clone())
}

fn check(secret: &str) -> Result<(), Problem> {
    secret::check(secret).map_err(Problem::Invalid)
}
