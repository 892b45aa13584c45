//! Follows the files of certificates and tokens, so that they are replaced without a restart.
//!
//! Contents are compared, not modification times. A change takes effect once two checks in a row
//! have found the same contents, so that a file, or a certificate and then its key, is not read
//! while it is being written. A file that cannot be used is logged once, and what was valid before
//! stays valid; but a token file that is empty or missing revokes its tokens.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Access;
use crate::access::certificate::Certificates;
use crate::config::{Auth, Config, TokenHash};

/// Bytes that are read of a file. A certificate or token file is never longer.
const MAX_LEN: u64 = 1024 * 1024;

/// The hash of a file's contents, so that the contents are not kept; None where the file cannot be
/// read.
type Fingerprint = Option<TokenHash>;

struct Watcher {
    access: Arc<Access>,
    /// The contents that are in force or were refused.
    handled: BTreeMap<PathBuf, Fingerprint>,
    /// The contents that the last check has found.
    last: BTreeMap<PathBuf, Fingerprint>,
}

impl Access {
    /// Follows the files until `ended`. Takes the identities of each configuration in `rereads`,
    /// and reads all files again then, without waiting for a second check.
    pub async fn watch(
        self: Arc<Self>,
        interval: Duration,
        mut rereads: mpsc::Receiver<Config>,
        ended: CancellationToken,
    ) {
        let first = fingerprints(self.files());
        // A change of certificates between start-up and this first check is found when the files
        // change next; token files are read again at once.
        let mut watcher = Watcher { access: self, handled: first.clone(), last: first };
        watcher.reload_all_tokens();
        loop {
            let config = tokio::select! {
                () = ended.cancelled() => return,
                Some(config) = rereads.recv() => Some(config),
                () = tokio::time::sleep(interval) => None,
            };
            if let Some(auth) = config.as_ref().and_then(|config| config.auth.as_ref()) {
                watcher.reload_identities(auth);
            }
            let files = watcher.access.files();
            // Reading may block, on a network file system for instance.
            let read = tokio::task::spawn_blocking(move || fingerprints(files));
            let Ok(now) = read.await else { return };
            if config.is_some() {
                watcher.last.clone_from(&now);
            }
            watcher.check(now);
        }
    }

    /// All files that are followed.
    fn files(&self) -> BTreeSet<PathBuf> {
        let mut files: BTreeSet<PathBuf> = self.credentials().files.keys().cloned().collect();
        files.extend(self.tls_files());
        files
    }

    fn tls_files(&self) -> Vec<PathBuf> {
        let Some(tls) = &self.tls else { return vec![] };
        let mut files = vec![tls.certificate.clone(), tls.private_key.clone()];
        files.extend(tls.client_ca.clone());
        files
    }
}

impl Watcher {
    /// Takes the identities of another configuration.
    fn reload_identities(&mut self, auth: &Auth) {
        match self.access.reload(auth) {
            Ok(false) => {}
            Ok(true) => {
                let count = auth.identities.len();
                tracing::info!(count, "the identities have changed: their rules are in force");
            }
            Err(why) => tracing::error!(
                %why,
                "the identities have changed and cannot be used; the previous ones stay in force"
            ),
        }
    }

    /// Reads all token files, which may have changed since the configuration was read.
    fn reload_all_tokens(&mut self) {
        let files: Vec<PathBuf> = self.access.credentials().files.keys().cloned().collect();
        for file in files {
            self.reload_tokens(&file);
        }
    }

    /// Reloads the files that have changed, once they are stable.
    fn check(&mut self, now: BTreeMap<PathBuf, Fingerprint>) {
        let stable = now == self.last;
        self.last = now;
        if !stable || self.handled == self.last {
            return;
        }
        let changed: Vec<PathBuf> = self
            .last
            .iter()
            .filter(|(path, fingerprint)| self.handled.get(*path) != Some(*fingerprint))
            .map(|(path, _)| path.clone())
            .collect();
        self.handled.clone_from(&self.last);
        let of_tls = self.access.tls_files();
        if changed.iter().any(|path| of_tls.contains(path)) {
            self.reload_certificates();
        }
        for path in changed.iter().filter(|path| !of_tls.contains(path)) {
            self.reload_tokens(path);
        }
    }

    fn reload_certificates(&self) {
        let Some(tls) = &self.access.tls else { return };
        let replaced = Certificates::load(tls).and_then(|certificates| {
            self.access.replace(|credentials| {
                credentials.certificates_generation += 1;
                credentials.certificates = Some(certificates);
            })
        });
        match replaced {
            Ok(()) => {
                tracing::info!("the certificates have changed: new connections see the new ones");
            }
            Err(why) => tracing::error!(
                %why,
                "the certificates have changed and cannot be used; the previous ones stay in force"
            ),
        }
    }

    fn reload_tokens(&self, path: &Path) {
        let hashes = match read(path) {
            // Its errors never contain a line of the file.
            Some(text) => match std::str::from_utf8(&text) {
                Ok(text) => TokenHash::parse_file(text),
                Err(_) => Err("the file is not UTF-8 text".to_owned()),
            },
            None => Ok(vec![]),
        };
        let before = self.access.credentials();
        let unchanged = |hashes: &Vec<TokenHash>| {
            before.files.get(path).is_some_and(|file| file.hashes == *hashes)
        };
        let count = hashes.as_ref().map_or(0, Vec::len);
        let replaced = match hashes {
            Ok(hashes) if unchanged(&hashes) => return,
            Ok(hashes) => self.access.replace(|credentials| {
                if let Some(file) = credentials.files.get_mut(path) {
                    file.hashes = hashes;
                }
            }),
            Err(why) => Err(why),
        };
        let file = path.display();
        match replaced {
            Ok(()) if count == 0 => {
                tracing::warn!(%file, "a token file is empty or missing: its tokens are revoked");
            }
            Ok(()) => tracing::info!(%file, tokens = count, "a token file has changed"),
            Err(why) => tracing::error!(
                %file,
                %why,
                "a token file has changed and cannot be used; its previous tokens stay valid"
            ),
        }
    }
}

fn fingerprints(files: BTreeSet<PathBuf>) -> BTreeMap<PathBuf, Fingerprint> {
    let fingerprint = |path: &Path| read(path).map(|contents| TokenHash::of(&contents));
    files.into_iter().map(|path| (path.clone(), fingerprint(&path))).collect()
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut contents = Vec::new();
    std::fs::File::open(path).ok()?.take(MAX_LEN).read_to_end(&mut contents).ok()?;
    Some(contents)
}
