//! `gatewayId`: the name of this gateway, made up where none is set.

use serde_json::{Map, Value};
use uuid::Uuid;

use super::{
    declaration::Declaration,
    fields::Fields,
    rules::check_id,
    settings::{Declared, Nullable, optional},
    types::{Text, short_text},
};

const NAME: &str = "gatewayId";

/// Ids are opaque strings of at most this many bytes, everywhere.
const MAX_ID_BYTES: usize = 128;

/// The name of this gateway.
pub(super) struct GatewayId(Nullable<Text>);

pub(super) fn gateway_id() -> GatewayId {
    GatewayId(optional(NAME, short_text(MAX_ID_BYTES, check_id)))
}

impl Declared for GatewayId {
    type Value = String;

    fn read(&self, fields: &mut Fields<'_>) -> String {
        self.0.read(fields).unwrap_or_else(random_id)
    }

    fn show(&self, value: &String, object: &mut Map<String, Value>) {
        self.0.show(&Some(value.clone()), object);
    }

    fn describe(&self, doc: &'static str) -> Vec<Declaration> {
        self.0.describe(doc)
    }
}

/// True when the name of this gateway was made up. It is not a key of its own.
pub(super) struct IsRandom;

impl Declared for IsRandom {
    type Value = bool;

    fn read(&self, fields: &mut Fields<'_>) -> bool {
        !fields.has(NAME)
    }

    /// A random name is another one at the next start, so it is taken out again: in a copy of the
    /// document it would be the name of two gateways.
    fn show(&self, value: &bool, object: &mut Map<String, Value>) {
        if *value {
            object.insert(NAME.to_owned(), Value::Null);
        }
    }

    fn describe(&self, _doc: &'static str) -> Vec<Declaration> {
        vec![]
    }
}

/// A name for a gateway that has none: `gw-` and 48 random bits, so that even a thousand gateways
/// share none in practice.
fn random_id() -> String {
    let id = Uuid::new_v4().simple().to_string();
    format!("gw-{}", &id[20..])
}
