//! Follows the files of certificates and tokens, so that they are exchanged without a restart.
//!
//! The contents are compared, not the times. A change counts once two looks in a row have found the same: whoever writes a file, or
//! a certificate and then its key, is not interrupted. What cannot be used is told once, and what was in force stays so; but a token
//! file that is empty or gone means that its tokens are taken back.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::Access;
use crate::access::certificate::Certificates;
use crate::config::TokenHash;

/// A longer file is none of ours: somebody named the wrong one.
const MAX_LEN: u64 = 1024 * 1024;

/// What stands for the contents of a file; none for one that cannot be read. The contents themselves are kept by nobody.
type Print = Option<TokenHash>;

struct Watcher {
    access: Arc<Access>,
    /// What was last dealt with, and what the last look has found.
    settled: BTreeMap<PathBuf, Print>,
    last: BTreeMap<PathBuf, Print>,
}

impl Access {
    /// Follows the files until `ended`.
    pub async fn watch(self: Arc<Self>, interval: Duration, ended: CancellationToken) {
        let first = look(self.files());
        // What was read at the start is what is there now, or is found to differ from it at the next look.
        let mut watcher = Watcher { access: self, settled: first.clone(), last: first };
        if watcher.settled.is_empty() {
            return;
        }
        watcher.reread();
        loop {
            tokio::select! {
                () = ended.cancelled() => return,
                () = tokio::time::sleep(interval) => {}
            }
            let files = watcher.access.files();
            // Disks may hang; streams must not.
            let Ok(now) = tokio::task::spawn_blocking(move || look(files)).await else { return };
            watcher.found(now);
        }
    }

    /// All that may change.
    fn files(&self) -> BTreeSet<PathBuf> {
        let mut files: BTreeSet<PathBuf> = self.proofs().files.keys().cloned().collect();
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
    /// What may have changed between the reading of the configuration and the first look.
    fn reread(&mut self) {
        let files: Vec<PathBuf> = self.access.proofs().files.keys().cloned().collect();
        for file in files {
            self.tokens(&file);
        }
    }

    fn found(&mut self, now: BTreeMap<PathBuf, Print>) {
        let stable = now == self.last;
        self.last = now;
        if !stable || self.settled == self.last {
            return;
        }
        let changed: Vec<PathBuf> = self
            .last
            .iter()
            .filter(|(path, print)| self.settled.get(*path) != Some(*print))
            .map(|(path, _)| path.clone())
            .collect();
        self.settled.clone_from(&self.last);
        let of_tls = self.access.tls_files();
        if changed.iter().any(|path| of_tls.contains(path)) {
            self.certificates();
        }
        for path in changed.iter().filter(|path| !of_tls.contains(path)) {
            self.tokens(path);
        }
    }

    fn certificates(&self) {
        let Some(tls) = &self.access.tls else { return };
        let exchanged = Certificates::load(tls).and_then(|certificates| {
            self.access.exchange(|proofs| {
                proofs.certificates_number += 1;
                proofs.certificates = Some(certificates);
                Ok(())
            })
        });
        match exchanged {
            Ok(()) => {
                tracing::info!("the certificates have changed: new connections see the new ones");
            }
            Err(why) => {
                tracing::error!(%why, "the certificates have changed and cannot be used; those from before stay in force");
            }
        }
    }

    fn tokens(&self, path: &Path) {
        let hashes = match read(path) {
            // No error repeats a line.
            Some(text) => match std::str::from_utf8(&text) {
                Ok(text) => TokenHash::parse_file(text),
                Err(_) => Err("it is no text".to_owned()),
            },
            None => Ok(vec![]),
        };
        let before = self.access.proofs();
        let unchanged = |hashes: &Vec<TokenHash>| {
            before.files.get(path).is_some_and(|file| file.hashes == *hashes)
        };
        let count = hashes.as_ref().map_or(0, Vec::len);
        let exchanged = match hashes {
            Ok(hashes) if unchanged(&hashes) => return,
            Ok(hashes) => self.access.exchange(|proofs| {
                if let Some(file) = proofs.files.get_mut(path) {
                    file.hashes = hashes;
                }
                Ok(())
            }),
            Err(why) => Err(why),
        };
        let file = path.display();
        match exchanged {
            Ok(()) if count == 0 => {
                tracing::warn!(%file, "a token file is empty or gone: its tokens are not valid any more");
            }
            Ok(()) => tracing::info!(%file, tokens = count, "a token file has changed"),
            Err(why) => {
                tracing::error!(%file, %why, "a token file has changed and cannot be used; its tokens from before stay valid");
            }
        }
    }
}

fn look(files: BTreeSet<PathBuf>) -> BTreeMap<PathBuf, Print> {
    let print = |path: &Path| read(path).map(|contents| TokenHash::of(&contents));
    files.into_iter().map(|path| (path.clone(), print(&path))).collect()
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut contents = Vec::new();
    std::fs::File::open(path).ok()?.take(MAX_LEN).read_to_end(&mut contents).ok()?;
    Some(contents)
}
