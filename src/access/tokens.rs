//! The tokens that are valid now.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{Hash, Hasher},
    sync::Arc,
};

use subtle::ConstantTimeEq;

use crate::access::rules::Rules;
use crate::config::TokenHash;

/// Finds the rules of a token. Holds hashes of tokens, not the tokens.
///
/// The duration of a lookup says nothing about any token: the map hashes its keys with a secret
/// that is random in each process, and keys are compared in constant time.
#[derive(Clone, Default)]
pub struct Tokens(HashMap<Key, Arc<Rules>>);

#[derive(Clone)]
struct Key(TokenHash);

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.bytes().hash(state);
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        self.0.bytes()[..].ct_eq(&other.0.bytes()[..]).into()
    }
}

impl Eq for Key {}

/// Two identities have the same token.
#[derive(Debug, PartialEq, Eq)]
pub struct SharedToken;

impl Tokens {
    /// Adds a token of an identity. The error: another identity has the same token.
    pub fn add(&mut self, hash: TokenHash, owner: &Arc<Rules>) -> Result<(), SharedToken> {
        match self.0.entry(Key(hash)) {
            Entry::Occupied(other) if !Arc::ptr_eq(other.get(), owner) => Err(SharedToken),
            Entry::Occupied(_) => Ok(()),
            Entry::Vacant(entry) => {
                entry.insert(owner.clone());
                Ok(())
            }
        }
    }

    /// The rules of the identity that has this token.
    pub fn owner(&self, hash: &TokenHash) -> Option<&Arc<Rules>> {
        self.0.get(&Key(*hash))
    }
}
