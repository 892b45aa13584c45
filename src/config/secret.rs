//! A secret, and where it came from. It shows itself to nobody who does not ask.

use std::{
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use super::{
    error::{Problem, shown},
    fields::Fields,
};

/// What stands in place of a secret wherever it is shown.
pub(super) const MASK: &str = "***";

/// The variants of `authSecret`.
pub(super) const SECRET_TYPES: [&str; 4] = ["None", "Value", "EnvironmentVariable", "File"];

/// A longer file is no secret: somebody named the wrong one.
const LONGEST_FILE: u64 = 64 * 1024;

/// A password. `Debug` and `Display` show `***`, whatever it is.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    value: String,
    source: SecretSource,
}

/// Where a secret was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// In the configuration itself.
    Value,
    /// In the environment variable of this name.
    EnvironmentVariable(String),
    /// In this file.
    File(PathBuf),
}

impl Secret {
    /// A secret that was given as it is.
    pub fn new(value: impl Into<String>) -> Secret {
        Secret { value: value.into(), source: SecretSource::Value }
    }

    /// The secret itself. For the server that asks for it, and for nothing else.
    pub fn expose(&self) -> &str {
        &self.value
    }

    /// Where it was found.
    pub fn source(&self) -> &SecretSource {
        &self.source
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({MASK})")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

/// Whether `text` is what stands for a secret in output, ours or another server's, instead of one.
pub(super) fn is_mask(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c == '*')
}

/// Reads the fields of an `authSecret`. With `resolve` the variable or file is read too; without it a secret that lies
/// elsewhere is left there, and None is returned for it.
pub(super) fn decode(fields: &mut Fields<'_>, resolve: bool) -> Option<Secret> {
    match fields.variant(&SECRET_TYPES)? {
        "Value" => {
            let value = fields.required_text("secret", "the secret")?;
            check(&value).map_err(|problem| fields.fail("secret", problem)).ok()?;
            Some(Secret { value, source: SecretSource::Value })
        }
        "EnvironmentVariable" => {
            let name = fields.required_text("variableName", "the name of a variable")?;
            let read = || read_variable(&name, fields.environment());
            let value = resolve.then(read)?;
            let value = value.map_err(|problem| fields.fail("variableName", problem)).ok()?;
            Some(Secret { value, source: SecretSource::EnvironmentVariable(name) })
        }
        "File" => {
            let path = PathBuf::from(fields.required_text("filePath", "the path of a file")?);
            let value = resolve.then(|| read_file(&path))?;
            let value = value.map_err(|problem| fields.fail("filePath", problem)).ok()?;
            Some(Secret { value, source: SecretSource::File(path) })
        }
        _ => None,
    }
}

fn read_variable(name: &str, environment: &[(String, String)]) -> Result<String, Problem> {
    let found = environment.iter().find(|(known, _)| known == name);
    let Some((_, value)) = found else {
        return Err(Problem::Invalid(format!("the variable {} is not set", shown(name))));
    };
    check(value).map(|()| value.clone())
}

fn read_file(path: &Path) -> Result<String, Problem> {
    let mut text = String::new();
    // A limit, for who names a device.
    let read =
        File::open(path).and_then(|file| file.take(LONGEST_FILE + 1).read_to_string(&mut text));
    let name = shown(&path.to_string_lossy());
    let read = read.map_err(|error| Problem::Invalid(format!("{name} cannot be read: {error}")))?;
    if read as u64 > LONGEST_FILE {
        return Err(Problem::Invalid(format!("{name} is longer than 64KiB")));
    }
    // Editors end a file with a line feed, which no password has.
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
