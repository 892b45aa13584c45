//! Secrets, and how they are kept out of all output.

use std::{
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

/// A longer file is not a secret: the path is a wrong one.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Shown in place of every secret.
pub(super) const MASK: &str = "***";

/// A password. `Debug` and `Display` show `***`, whatever it is.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    value: String,
    source: SecretSource,
}

/// The source of a secret.
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
    /// A secret of the configuration itself.
    pub fn new(value: impl Into<String>) -> Secret {
        Secret { value: value.into(), source: SecretSource::Value }
    }

    /// A secret that was found at `source`.
    pub(super) fn from_source(value: String, source: SecretSource) -> Secret {
        Secret { value, source }
    }

    /// The secret itself: for the server that asks for it only.
    pub fn expose(&self) -> &str {
        &self.value
    }

    /// True if it is in a file, which may change.
    pub fn is_in_file(&self) -> bool {
        matches!(self.source, SecretSource::File(_))
    }

    /// The secret as its source has it now: a file is read again. The error says why the file
    /// cannot be used, and repeats nothing of it.
    pub fn read_again(&self) -> Result<String, String> {
        match &self.source {
            SecretSource::File(path) => read_file(path, &path.display().to_string()),
            _ => Ok(self.value.clone()),
        }
    }

    /// Its source.
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

/// True for the mask of a secret in output, ours or that of another server.
pub(super) fn is_mask(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c == '*')
}

/// The secret in the file that errors call `name`.
pub(super) fn read_file(path: &Path, name: &str) -> Result<String, String> {
    let mut text = String::new();
    // With a limit, in case the path is that of a device.
    let read =
        File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text));
    let read = read.map_err(|error| format!("{name} cannot be read: {error}"))?;
    if read as u64 > MAX_FILE_BYTES {
        return Err(format!("{name} is longer than 64KiB"));
    }
    // Editors end a file with a line feed, which is not part of the password.
    text.truncate(text.trim_end().len());
    check(&text).map(|()| text)
}

/// The reason why a text cannot be a secret, if it cannot.
pub(super) fn check(secret: &str) -> Result<(), String> {
    if secret.is_empty() {
        Err("the secret is empty".to_owned())
    } else if is_mask(secret) {
        Err("the secret is masked: put the real one in its place".to_owned())
    } else {
        Ok(())
    }
}
