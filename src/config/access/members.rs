//! The members of the sets in `auth`: names, kinds, operations.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use trunkline_proto::kinds;

use super::{Kinds, Operation};
use crate::config::{
    error::{Problem, shown, wrong_choice},
    types::Members,
};

/// Ids are opaque strings of at most this many bytes, everywhere.
const MAX_ID_BYTES: usize = 128;

/// Names, some with `*` at the end.
pub(super) struct Names;

impl Members for Names {
    type Member = String;
    type All = Vec<String>;

    fn parse(&self, text: &str) -> Result<String, Problem> {
        check_pattern(text, MAX_ID_BYTES).map(|()| text.to_owned())
    }

    fn collect(&self, members: Vec<String>) -> Vec<String> {
        members
    }

    fn show(&self, all: &Vec<String>) -> Vec<String> {
        all.clone()
    }

    fn schema(&self) -> Value {
        json!({ "type": "string", "minLength": 1, "maxLength": MAX_ID_BYTES })
    }
}

/// Kinds of events.
pub(super) struct KindNames;

impl Members for KindNames {
    /// None is `*`.
    type Member = Option<u8>;
    type All = Kinds;

    fn parse(&self, text: &str) -> Result<Option<u8>, Problem> {
        let named = kind_names().find(|(name, _)| name == text).map(|(_, number)| number);
        let number = || text.parse().ok().filter(|number| kinds::is_number(*number));
        match named.or_else(number) {
            Some(number) => Ok(Some(number)),
            None if text == "*" => Ok(None),
            None => {
                let names: Vec<String> = kind_names().map(|(name, _)| name).collect();
                let mut allowed = vec!["*"];
                allowed.extend(names.iter().map(String::as_str));
                allowed.push("a number from 10 to 99");
                Err(wrong_choice(text, &allowed))
            }
        }
    }

    fn collect(&self, members: Vec<Option<u8>>) -> Kinds {
        let all = members.contains(&None);
        Kinds { all, numbers: members.into_iter().flatten().collect() }
    }

    fn show(&self, kinds: &Kinds) -> Vec<String> {
        let name = |number: &u8| {
            let named = kind_names().find(|(_, known)| known == number);
            named.map_or_else(|| number.to_string(), |(name, _)| name)
        };
        let all = kinds.all.then(|| "*".to_owned());
        all.into_iter().chain(kinds.numbers.iter().map(name)).collect()
    }

    fn schema(&self) -> Value {
        let mut words: Vec<String> = kind_names().map(|(name, _)| name).collect();
        words.push("*".to_owned());
        let number = json!({ "type": "string", "pattern": "^[+]?0*[1-9][0-9]$" });
        json!({ "anyOf": [{ "enum": words }, number] })
    }
}

/// Operations.
pub(super) struct Operations;

impl Members for Operations {
    type Member = Operation;
    type All = BTreeSet<Operation>;

    fn parse(&self, text: &str) -> Result<Operation, Problem> {
        let known = Operation::ALL.into_iter().find(|operation| operation.as_str() == text);
        known.ok_or_else(|| wrong_choice(text, &Operation::ALL.map(Operation::as_str)))
    }

    fn collect(&self, members: Vec<Operation>) -> BTreeSet<Operation> {
        members.into_iter().collect()
    }

    fn show(&self, all: &BTreeSet<Operation>) -> Vec<String> {
        all.iter().map(|operation| operation.as_str().to_owned()).collect()
    }

    fn schema(&self) -> Value {
        json!({ "enum": Operation::ALL.map(Operation::as_str) })
    }
}

/// Checks a name that may end with `*`.
pub(super) fn check_pattern(pattern: &str, max_bytes: usize) -> Result<(), Problem> {
    let invalid = |why: String| Err(Problem::Invalid(format!("{} {why}", shown(pattern))));
    if pattern.is_empty() {
        return invalid("is empty".to_owned());
    }
    if pattern.len() > max_bytes {
        return invalid(format!("has {} bytes; the limit is {max_bytes}", pattern.len()));
    }
    if pattern.chars().any(char::is_control) {
        return invalid("holds a control character".to_owned());
    }
    if pattern.strip_suffix('*').unwrap_or(pattern).contains('*') {
        return invalid("may have * at its end only".to_owned());
    }
    Ok(())
}

/// `mailbox_change`, and the number of that kind: the names of the arms of an event.
fn kind_names() -> impl Iterator<Item = (String, u8)> {
    kinds::TABLE.iter().map(|row| (row.name.to_owned(), row.number))
}
