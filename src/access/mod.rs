//! Authentication and authorisation: who may connect, and what each caller may do.
//!
//! A connection may present a certificate, each request a token. [`AccessLayer`] authenticates the
//! caller, refuses requests without a valid credential, and puts a [`Caller`] into the extensions
//! of each request that it passes on; with authentication it has a [`Grant`], by which the service
//! checks what the request may do. [`watch`] follows the files of certificates and tokens.

mod certificate;
mod grant;
mod identity;
mod layer;
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
    rules::{RuleSet, Rules},
    tokens::Tokens,
};
pub use self::{
    certificate::PeerCertificate,
    grant::Grant,
    identity::{Caller, Identity, Peer, peer_network},
    layer::{AccessLayer, OnRefused},
    refusals::Refusals,
    rules::Rule,
};
use crate::config::{Auth, Config, ServerTls, TokenHash, TokenSource};

/// Decides who may connect to this gateway.
pub struct Access {
    /// False where `auth` is not configured: every caller may do everything.
    authenticates: bool,
    tls: Option<ServerTls>,
    /// The contents of the files.
    credentials: RwLock<Arc<Credentials>>,
    /// The generation of the credentials in force. Open streams check theirs when it changes.
    changed: tokio::sync::watch::Sender<u64>,
    /// Counts and logs what was refused.
    pub refusals: Arc<Refusals>,
}

/// All valid credentials. Replaced as a whole when a file changes.
#[derive(Clone)]
struct Credentials {
    /// Grows with each change.
    generation: u64,
    /// What the rules and the tokens were made from.
    auth: Option<Auth>,
    rule_set: RuleSet,
    certificates: Option<Certificates>,
    /// Grows with each change of the certificates.
    certificates_generation: u64,
    /// All tokens: of the configuration, and of the files.
    tokens: Tokens,
    /// Tokens of the configuration itself.
    configured: Vec<(TokenHash, Arc<Rules>)>,
    /// Tokens of files.
    files: BTreeMap<PathBuf, TokenFile>,
}

#[derive(Clone)]
struct TokenFile {
    owners: Vec<Arc<Rules>>,
    hashes: Vec<TokenHash>,
}

impl Access {
    /// Compiles the configuration and reads the files of certificates. The error names the
    /// configuration key.
    pub fn new(config: &Config) -> Result<Access, String> {
        let mut credentials = Credentials::new(config.auth.as_ref(), &RuleSet::default())?;
        credentials.certificates = config.tls.as_ref().map(Certificates::load).transpose()?;
        Ok(Access {
            authenticates: config.auth.is_some(),
            tls: config.tls.clone(),
            credentials: RwLock::new(Arc::new(credentials)),
            changed: tokio::sync::watch::Sender::new(0),
            refusals: Arc::default(),
        })
    }

    /// The acceptor for TLS handshakes, and the generation of its certificates. None: the port is
    /// plain text.
    pub fn acceptor(&self) -> Option<(TlsAcceptor, u64)> {
        let credentials = self.credentials();
        let certificates = credentials.certificates.as_ref()?;
        Some((certificates.acceptor.clone(), credentials.certificates_generation))
    }

    fn credentials(&self) -> Arc<Credentials> {
        self.credentials.read().clone()
    }

    /// The rules of the identity that has this token.
    fn owner(&self, hash: &TokenHash) -> Option<Arc<Rules>> {
        self.credentials.read().tokens.owner(hash).cloned()
    }

    /// True while a client certificate is valid.
    fn is_valid(&self, certificate: &PeerCertificate) -> bool {
        let credentials = self.credentials();
        let verifier = credentials.certificates.as_ref().and_then(|all| all.verifier.as_deref());
        certificate.is_valid(verifier, credentials.certificates_generation)
    }

    /// True while an identity has these rules.
    fn has_rules(&self, rules: &Arc<Rules>) -> bool {
        self.credentials.read().rule_set.rules.iter().any(|known| Arc::ptr_eq(known, rules))
    }

    /// Takes the identities of another configuration: their rules and tokens. Streams of identities
    /// whose rules are others now end. True if something has changed. The error says why they
    /// cannot be used; nothing is changed then.
    fn reload(&self, auth: &Auth) -> Result<bool, String> {
        let before = self.credentials();
        let same =
            before.auth.as_ref().is_some_and(|before| without_files(before) == without_files(auth));
        if !self.authenticates || same {
            return Ok(false);
        }
        let next = Credentials::new(Some(auth), &before.rule_set)?;
        self.replace(|credentials| {
            let Credentials { auth, rule_set, configured, files, .. } = next;
            credentials.auth = auth;
            credentials.rule_set = rule_set;
            credentials.configured = configured;
            credentials.files = files;
        })?;
        Ok(true)
    }

    /// Replaces the credentials by changed ones. The error: a token in them belongs to two
    /// identities; nothing is changed then.
    fn replace(&self, change: impl FnOnce(&mut Credentials)) -> Result<(), String> {
        // Only the task that follows the files calls this, so that no change is lost.
        let mut credentials = (*self.credentials()).clone();
        change(&mut credentials);
        credentials.generation += 1;
        let indexed = credentials.index_tokens();
        indexed.map_err(|_| "another identity has a token in it".to_owned())?;
        let generation = credentials.generation;
        *self.credentials.write() = Arc::new(credentials);
        self.changed.send_replace(generation);
        Ok(())
    }
}

/// The identities without what is in files, which are followed by themselves.
fn without_files(auth: &Auth) -> Auth {
    let mut auth = auth.clone();
    for token in auth.identities.iter_mut().flat_map(|identity| &mut identity.tokens) {
        if matches!(token.source, TokenSource::File(_)) {
            token.hashes.clear();
        }
    }
    auth
}

impl Credentials {
    /// Compiles the rules, and indexes the tokens. Identities whose rules are those that they have
    /// in `before` keep them.
    fn new(auth: Option<&Auth>, before: &RuleSet) -> Result<Credentials, String> {
        let mut credentials = Credentials {
            generation: 0,
            auth: auth.cloned(),
            rule_set: auth.map(|auth| RuleSet::new(auth, before)).unwrap_or_default(),
            certificates: None,
            certificates_generation: 0,
            tokens: Tokens::default(),
            configured: vec![],
            files: BTreeMap::new(),
        };
        let identities = auth.iter().flat_map(|auth| &auth.identities);
        for (identity, rules) in identities.zip(&credentials.rule_set.rules) {
            for token in &identity.tokens {
                if let TokenSource::File(path) = &token.source {
                    let file = credentials.files.entry(path.clone()).or_insert_with(|| TokenFile {
                        owners: vec![],
                        hashes: token.hashes.clone(),
                    });
                    file.owners.push(rules.clone());
                } else {
                    let hashes = token.hashes.iter();
                    credentials.configured.extend(hashes.map(|hash| (*hash, rules.clone())));
                }
            }
        }
        let indexed = credentials.index_tokens();
        indexed.map_err(|_| "auth.identities: two identities have the same token".to_owned())?;
        Ok(credentials)
    }

    fn index_tokens(&mut self) -> Result<(), tokens::SharedToken> {
        let mut tokens = Tokens::default();
        for (hash, owner) in &self.configured {
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
