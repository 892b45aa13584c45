//! The tokens that are valid now.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::Arc,
};

use subtle::ConstantTimeEq;

use crate::access::rules::Rules;
use crate::config::TokenHash;

/// Finds out whose a token is. Knows hashes alone.
///
/// The place of a hash is chosen with a key that is made at random for each process, and what lies there is compared in constant
/// time: how long a look takes tells nothing of any token.
#[derive(Clone, Default)]
pub struct Tokens {
    key: RandomState,
    places: HashMap<u64, Vec<(TokenHash, Arc<Rules>)>>,
}

/// A token that two identities have.
#[derive(Debug, PartialEq, Eq)]
pub struct Shared;

impl Tokens {
    /// Adds a token of an identity.
    pub fn add(&mut self, hash: TokenHash, owner: &Arc<Rules>) -> Result<(), Shared> {
        if let Some(other) = self.owner(&hash) {
            return if Arc::ptr_eq(other, owner) { Ok(()) } else { Err(Shared) };
        }
        let place = self.key.hash_one(hash.bytes());
        self.places.entry(place).or_default().push((hash, owner.clone()));
        Ok(())
    }

    /// Whose it is.
    pub fn owner(&self, hash: &TokenHash) -> Option<&Arc<Rules>> {
        let place = self.places.get(&self.key.hash_one(hash.bytes()))?;
        let mut owner = None;
        for (known, rules) in place {
            if bool::from(known.bytes()[..].ct_eq(&hash.bytes()[..])) {
                owner = Some(rules);
            }
        }
        owner
    }
}
