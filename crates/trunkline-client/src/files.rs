//! Credentials in files that are replaced while a client runs.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{Credentials, mutex::Mutex};

/// How often the files are looked at, at most, while requests are made.
const INTERVAL: Duration = Duration::from_secs(1);

/// Files of credentials, which may be replaced while a client runs: certificates that are renewed,
/// tokens that are rotated. See [`Builder::credential_files`](crate::Builder::credential_files).
#[derive(Clone, Debug, Default)]
pub struct CredentialFiles {
    /// The authorities whose gateways are trusted (PEM); see [`Credentials::ca_certificate`].
    pub ca: Option<PathBuf>,
    /// The certificate that is presented, and its key (PEM); see
    /// [`Credentials::client_certificate`].
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// The bearer token. White space around it is removed.
    pub token: Option<PathBuf>,
}

/// What the files had.
#[derive(Clone, PartialEq, Eq)]
struct Contents {
    ca: Option<Vec<u8>>,
    certificate: Option<(Vec<u8>, Vec<u8>)>,
    token: Option<Vec<u8>>,
}

impl CredentialFiles {
    /// True if there is any.
    pub fn any(&self) -> bool {
        self.ca.is_some() || self.certificate.is_some() || self.token.is_some()
    }

    /// What they have now.
    ///
    /// # Errors
    ///
    /// Names the file that cannot be read, or what is wrong with it.
    pub fn credentials(&self) -> Result<Credentials, String> {
        self.read()?.apply(self, &Credentials::new())
    }

    fn read(&self) -> Result<Contents, String> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
        };
        let certificate = self.certificate.as_ref();
        Ok(Contents {
            ca: self.ca.as_ref().map(read).transpose()?,
            certificate: certificate
                .map(|(certificate, key)| Ok::<_, String>((read(certificate)?, read(key)?)))
                .transpose()?,
            token: self.token.as_ref().map(read).transpose()?,
        })
    }
}

impl Contents {
    /// The credentials with what the files have.
    fn apply(&self, files: &CredentialFiles, to: &Credentials) -> Result<Credentials, String> {
        let mut credentials = to.clone();
        if let Some(ca) = &self.ca {
            credentials = credentials.ca_certificate(ca.clone());
        }
        if let Some((certificate, key)) = &self.certificate {
            credentials = credentials.client_certificate(certificate.clone(), key.clone());
        }
        match &self.token {
            None => Ok(credentials),
            Some(token) => {
                let named = |why: String| {
                    let path = files.token.as_deref().unwrap_or(Path::new(""));
                    format!("{}: {why}", path.display())
                };
                let token = std::str::from_utf8(token).map_err(|why| named(why.to_string()))?;
                credentials.token(token).map_err(named)
            }
        }
    }
}

/// Looks at files of credentials, and gives out what they have when that has changed.
pub(super) struct Renewal {
    files: CredentialFiles,
    /// What the files do not have.
    others: Credentials,
    state: Mutex<State>,
}

struct State {
    looked: Instant,
    /// What was read last, be it usable or not.
    seen: Contents,
    /// The number of changes that were given out.
    changes: u64,
}

impl Renewal {
    /// Reads the files; returns the first credentials too.
    ///
    /// # Errors
    ///
    /// Names the file that cannot be read, or what is wrong with it.
    pub(super) fn new(
        files: CredentialFiles,
        others: Credentials,
    ) -> Result<(Renewal, Credentials), String> {
        let seen = files.read()?;
        let first = seen.apply(&files, &others)?;
        let state = Mutex::new(State { looked: Instant::now(), seen, changes: 0 });
        Ok((Renewal { files, others, state }, first))
    }

    /// The number of changes until now. Looks at the files if `at_once`, or if that was a second
    /// ago, and gives `changed` the new credentials if they have changed; an error of it keeps
    /// those of before. Files that cannot be read may be being replaced.
    pub(super) fn look(
        &self,
        at_once: bool,
        changed: impl FnOnce(&Credentials) -> Result<(), String>,
    ) -> u64 {
        let mut state = self.state.lock();
        if !at_once && state.looked.elapsed() < INTERVAL {
            return state.changes;
        }
        state.looked = Instant::now();
        let Ok(read) = self.files.read() else { return state.changes };
        if read == state.seen {
            return state.changes;
        }
        let taken = read.apply(&self.files, &self.others).and_then(|new| changed(&new));
        state.seen = read;
        match taken {
            Ok(()) => {
                state.changes += 1;
                tracing::info!("the files of credentials have changed: new requests have them");
            }
            Err(why) => tracing::warn!(why, "changed files of credentials cannot be used yet"),
        }
        state.changes
    }
}

impl std::fmt::Debug for Renewal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never what was read.
        f.debug_tuple("Renewal").field(&self.files).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_given_out_once_and_what_cannot_be_used_is_not() {
        let folder = std::env::temp_dir().join(format!("trunkline-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&folder).expect("a folder");
        let path = folder.join("token");
        let write = |token: &str| std::fs::write(&path, token).expect("a file");
        let files = CredentialFiles { token: Some(path.clone()), ..CredentialFiles::default() };
        let missing = Renewal::new(files.clone(), Credentials::new()).map(|_| ());
        assert!(missing.is_err_and(|why| why.contains("token")), "it names the file");

        write("first\n");
        let (renewal, _) = Renewal::new(files, Credentials::new()).expect("readable");
        let look = |at_once| {
            let mut given = 0;
            let changes = renewal.look(at_once, |_| {
                given += 1;
                Ok(())
            });
            (changes, given)
        };
        assert_eq!(look(true), (0, 0));
        write("second\n");
        assert_eq!(look(false), (0, 0), "it was looked at just now");
        assert_eq!(look(true), (1, 1));
        assert_eq!(look(true), (1, 0));
        write("wrong \u{7}\n");
        assert_eq!(look(true), (1, 0), "no header has that");
        std::fs::remove_file(&path).expect("a file");
        assert_eq!(look(true), (1, 0), "it may be being replaced");
        write("third");
        let refused = renewal.look(true, |_| Err("not now".into()));
        assert_eq!(refused, 1);
        write("fourth");
        assert_eq!(look(true), (2, 1));
        std::fs::remove_dir_all(&folder).expect("a folder");
    }
}
