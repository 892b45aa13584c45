//! Keys whose object names the source of a secret.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use super::{
    declaration::{Declaration, Shape, Variant, Variants},
    error::{Problem, shown},
    fields::Fields,
    secret::{MASK, Secret, SecretSource, is_mask},
    settings::{Declared, Required, required},
    types::{Text, any_text},
};

/// A longer file is not a secret: the path is a wrong one.
const MAX_FILE_BYTES: u64 = 64 * 1024;

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
    match fields.variant(&variants(true).names())? {
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
            let value = read_file(&path);
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

/// The secret in a file.
pub(super) fn read_file(path: &Path) -> Result<String, Problem> {
    let mut text = String::new();
    // With a limit, in case the path is that of a device.
    let read =
        File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text));
    let name = shown(&path.to_string_lossy());
    let read = read.map_err(|error| Problem::Invalid(format!("{name} cannot be read: {error}")))?;
    if read as u64 > MAX_FILE_BYTES {
        return Err(Problem::Invalid(format!("{name} is longer than 64KiB")));
    }
    // Editors end a file with a line feed, which is not part of the password.
    text.truncate(text.trim_end().len());
    check(&text).map(|()| text)
}

fn check(secret: &str) -> Result<(), Problem> {
    if secret.is_empty() {
        Err(Problem::Invalid("the secret is empty".to_owned()))
    } else if is_mask(secret) {
        Err(Problem::Invalid("the secret is masked: put the real one in its place".to_owned()))
    } else {
        Ok(())
    }
}
