//! `frameKey`: the keys with which frames in Redis are authenticated.

use serde_json::{Map, Value};

use super::{
    declaration::Declaration,
    error::Problem,
    fields::Fields,
    secret::Secret,
    secret_key::{self, SecretKey},
    settings::Declared,
};

/// A shorter key could be guessed more easily than the authentication tag that it makes.
const MIN_KEY_BYTES: usize = 32;

/// `frameKey`, a secret with rules of its own.
pub(super) struct FrameKey;

const NAME: &str = "frameKey";

impl Declared for FrameKey {
    type Value = Option<Secret>;

    fn read(&self, fields: &mut Fields<'_>) -> Option<Secret> {
        let coordinator = fields.peek("coordinator");
        let bus = coordinator.and_then(|coordinator| coordinator.get("@type"));
        let embedded = coordinator.is_none() || bus.is_some_and(|bus| bus == "Embedded");
        let secret = fields.optional_group(NAME, |fields| {
            if embedded {
                fields.skip_lookups();
            }
            let set = ["secret", "variableName", "filePath"].iter().any(|key| fields.has(key));
            let secret = secret_key::read(fields);
            let words = secret.iter().flat_map(|secret| secret.expose().split_whitespace());
            if let Some(short) = words.map(str::len).find(|length| *length < MIN_KEY_BYTES) {
                let problem =
                    format!("holds a key of {short} bytes; each has at least {MIN_KEY_BYTES}");
                fields.fail("@type", Problem::Invalid(problem));
            }
            (set, secret)
        });
        let (set, secret) = secret?;
        if set && embedded {
            let problem = "has no effect: the bus is embedded, without Redis";
            fields.fail(NAME, Problem::Invalid(problem.to_owned()));
        }
        secret
    }

    fn show(&self, value: &Option<Secret>, object: &mut Map<String, Value>) {
        SecretKey(NAME).show(value, object);
    }

    fn describe(&self, doc: &'static str) -> Vec<Declaration> {
        SecretKey(NAME).describe(doc)
    }
}
