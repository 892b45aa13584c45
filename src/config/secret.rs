//! Secrets, and how they are kept out of all output.

use std::{fmt, path::PathBuf};

use super::secret_key;

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
            SecretSource::File(path) => {
                secret_key::read_file(path).map_err(|problem| problem.to_string())
            }
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
