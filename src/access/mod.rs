//! Who may connect, and what they may do.
//!
//! A connection may bring a certificate, each request a token. [`AccessLayer`] finds out whose they are, refuses who has none,
//! and puts a [`Caller`] into the extensions of every request that it lets through; with authentication a [`Permit`] too, by which
//! the service asks what its request may. [`watch`] follows the files of certificates and tokens.

mod certificate;
mod identity;
mod layer;
mod permit;
pub mod quota;
mod refusals;
mod rules;
mod tokens;
mod watch;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use parking_lot::RwLock;
use tokio_rustls::TlsAcceptor;

use self::{
    certificate::Certificates,
    rules::{Book, Rules},
    tokens::Tokens,
};
pub use self::{
    certificate::PeerCertificate,
    identity::{Caller, ConnectionId, Identity},
    layer::AccessLayer,
    permit::Permit,
    refusals::Refusals,
    rules::Rule,
};
use crate::config::{Config, ServerTls, TokenHash, TokenSource};

/// Who may connect to this gateway.
pub struct Access {
    /// Whether anybody is asked who he is.
    authenticates: bool,
    book: Book,
    tls: Option<ServerTls>,
    /// What the files say.
    proofs: RwLock<Arc<Proofs>>,
    /// The number of the proofs in force; who holds a stream open looks again when it changes.
    changed: tokio::sync::watch::Sender<u64>,
    /// Those who were turned away.
    pub refusals: Refusals,
}

/// What proves who somebody is. Exchanged as a whole when a file changes.
#[derive(Clone)]
struct Proofs {
    number: u64,
    /// The number of the certificates among them.
    certificates_number: u64,
    certificates: Option<Certificates>,
    tokens: Tokens,
    /// Tokens that stand in the configuration itself.
    fixed: Vec<(TokenHash, Arc<Rules>)>,
    /// By file: tokens, and whose they are.
    files: BTreeMap<PathBuf, TokenFile>,
}

#[derive(Clone)]
struct TokenFile {
    owners: Vec<Arc<Rules>>,
    hashes: Vec<TokenHash>,
}

impl Access {
    /// Who may connect, says the configuration; reads the files of certificates. The error names the key.
    pub fn new(config: &Config) -> Result<Access, String> {
        let book = config.auth.as_ref().map(Book::new).unwrap_or_default();
        let certificates = config.tls.as_ref().map(Certificates::load).transpose()?;
        let mut proofs = Proofs {
            number: 0,
            certificates_number: 0,
            certificates,
            tokens: Tokens::default(),
            fixed: vec![],
            files: BTreeMap::new(),
        };
        let identities = config.auth.iter().flat_map(|auth| &auth.identities);
        for (identity, rules) in identities.zip(&book.rules) {
            for token in &identity.tokens {
                if let TokenSource::File(path) = &token.source {
                    let file = proofs.files.entry(path.clone()).or_insert_with(|| TokenFile {
                        owners: vec![],
                        hashes: token.hashes.clone(),
                    });
                    file.owners.push(rules.clone());
                } else {
                    proofs.fixed.extend(token.hashes.iter().map(|hash| (*hash, rules.clone())));
                }
            }
        }
        proofs.index().map_err(|_| "auth.identities: two of them have one token".to_owned())?;
        Ok(Access {
            authenticates: config.auth.is_some(),
            book,
            tls: config.tls.clone(),
            proofs: RwLock::new(Arc::new(proofs)),
            changed: tokio::sync::watch::Sender::new(0),
            refusals: Refusals::default(),
        })
    }

    /// What answers the handshake of a new connection, and the number of its certificates; none: the port is plain text.
    pub fn acceptor(&self) -> Option<(TlsAcceptor, u64)> {
        let proofs = self.proofs();
        let certificates = proofs.certificates.as_ref()?;
        Some((certificates.acceptor.clone(), proofs.certificates_number))
    }

    fn proofs(&self) -> Arc<Proofs> {
        self.proofs.read().clone()
    }

    /// Whose token it is.
    fn owner(&self, hash: &TokenHash) -> Option<Arc<Rules>> {
        self.proofs.read().tokens.owner(hash).cloned()
    }

    /// Whether a certificate still holds.
    fn holds(&self, certificate: &PeerCertificate) -> bool {
        let proofs = self.proofs();
        let verifier = proofs.certificates.as_ref().and_then(|all| all.verifier.as_deref());
        certificate.holds(verifier, proofs.certificates_number)
    }

    /// Puts other proofs in force.
    fn exchange(
        &self,
        change: impl FnOnce(&mut Proofs) -> Result<(), String>,
    ) -> Result<(), String> {
        // Only the task that follows the files does this.
        let mut proofs = (*self.proofs()).clone();
        change(&mut proofs)?;
        proofs.number += 1;
        proofs.index().map_err(|_| "a token in it is another identity's too".to_owned())?;
        let number = proofs.number;
        *self.proofs.write() = Arc::new(proofs);
        self.changed.send_replace(number);
        Ok(())
    }
}

impl Proofs {
    fn index(&mut self) -> Result<(), tokens::Shared> {
        let mut tokens = Tokens::default();
        for (hash, owner) in &self.fixed {
            tokens.add(*hash, owner)?;
        }
        for file in self.files.values() {
            for hash in &file.hashes {
                for owner in &file.owners {
                    tokens.add(*hash, owner)?;
                }
            }
        }
        self.tokens = tokens;
        Ok(())
    }
}
