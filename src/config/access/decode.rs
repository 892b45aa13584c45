//! `tls` and `auth`.

use std::collections::{BTreeMap, BTreeSet};

use trunkline_proto::kinds;

use super::{
    Allow, Auth, Deny, EventRules, IdentityRules, Kinds, Operation, ServerTls, Token, TokenHash,
    TokenSource,
};
use crate::config::{
    bus::check_pem,
    error::{Problem, shown},
    fields::{Element, Fields},
    nearest::nearest,
    secret,
};

/// Names are those of certificates, which hold long URIs.
const LONGEST_NAME: usize = 512;

/// Ids are opaque strings of at most this many bytes, everywhere.
const LONGEST_ID: usize = 128;

/// What `clientCertificates` may say.
pub(in crate::config) const REQUIRED: &str = "required";
pub(in crate::config) const OPTIONAL: &str = "optional";

/// Reads `tls`. None: there is no certificate, so the port is plain text.
pub(in crate::config) fn decode_tls(top: &mut Fields<'_>) -> Option<ServerTls> {
    top.group("tls", |fields| {
        let mut file = |key, label| {
            let path = fields.optional_path(key)?;
            if let Err(why) = check_pem(&path, label) {
                fields.fail(key, Problem::Invalid(why));
            }
            Some(path)
        };
        let certificate = file("certificate", "CERTIFICATE");
        let private_key = file("privateKey", "PRIVATE KEY");
        let client_ca = file("clientCa", "CERTIFICATE");
        let certificates = fields.choice("clientCertificates", &[REQUIRED, OPTIONAL]);
        for (there, missing) in [
            ("certificate", "privateKey"),
            ("privateKey", "certificate"),
            ("clientCa", "certificate"),
        ] {
            if fields.has(there) && !fields.has(missing) && fields.sound(&[missing]) {
                let expected = format!("the PEM file that belongs to {there}");
                fields.fail(missing, Problem::Missing { expected });
            }
        }
        Some(ServerTls {
            certificate: certificate?,
            private_key: private_key?,
            client_ca,
            client_certificate_required: certificates != Some(OPTIONAL),
        })
    })
}

/// Reads `auth`. None: nobody is asked who he is.
pub(in crate::config) fn decode_auth(top: &mut Fields<'_>) -> Option<Auth> {
    let identities = top.optional_group("auth", |fields| {
        let expected = "an object with the name and the rights of an identity";
        let identities = fields.list("identities", expected, |element| match element {
            Element::Object(fields) => decode_identity(fields),
            Element::Text(fields, _) => {
                fields.fail("", Problem::Type { found: "a string", expected: expected.to_owned() });
                None
            }
        });
        if identities.as_ref().is_some_and(Vec::is_empty) && fields.sound(&["identities"]) {
            let expected = "at least one identity; without one nobody could do anything".to_owned();
            fields.fail("identities", Problem::Missing { expected });
        }
        identities
    });
    let identities = identities.flatten()?;
    for (index, identity) in identities.iter().enumerate() {
        let Some(identity) = identity else { continue };
        let mut before = identities[..index].iter().flatten();
        if before.any(|other| other.name == identity.name) {
            let problem = format!("{} is the name of another identity too", shown(&identity.name));
            top.fail_at(&format!("auth.identities[{index}].name"), Problem::Invalid(problem));
        }
    }
    let mut owners: BTreeMap<TokenHash, usize> = BTreeMap::new();
    for (index, identity) in identities.iter().enumerate() {
        for hash in identity.iter().flat_map(|identity| &identity.tokens).flat_map(|t| &t.hashes) {
            let owner = *owners.entry(*hash).or_insert(index);
            if owner != index {
                let problem = format!("a token is one of auth.identities[{owner}] too");
                top.fail_at(&format!("auth.identities[{index}].tokens"), Problem::Invalid(problem));
            }
        }
    }
    // A broken one has a violation.
    Some(Auth { identities: identities.into_iter().flatten().collect() })
}

fn decode_identity(fields: &mut Fields<'_>) -> Option<IdentityRules> {
    let expected = "the identity's name";
    let name = fields.required_text("name", expected).filter(|name| {
        check_pattern(name, LONGEST_NAME).map_err(|why| fields.fail("name", why)).is_ok()
    });
    let tokens = decode_tokens(fields);
    if !tokens.is_empty() && name.as_ref().is_some_and(|name| name.ends_with('*')) {
        let problem = "cannot prove a name that ends with *, which stands for certificates";
        fields.fail("tokens", Problem::Invalid(problem.to_owned()));
    }
    let node_ids = names(fields, "nodeIds", LONGEST_ID).unwrap_or_default();
    let roles = names(fields, "roles", LONGEST_ID).unwrap_or_default();
    let publish = fields.group("publish", decode_events);
    let receive = fields.group("receive", decode_events);
    let operations = decode_operations(fields);
    Some(IdentityRules { name: name?, tokens, node_ids, roles, publish, receive, operations })
}

fn decode_tokens(fields: &mut Fields<'_>) -> Vec<Token> {
    let expected =
        "a secret such as {\"@type\": \"File\", \"filePath\": ...}, or sha256: and a hash";
    let tokens = fields.list("tokens", expected, |element| match element {
        Element::Text(fields, text) if text.starts_with("sha256:") => {
            match TokenHash::parse(text) {
                Ok(hash) => Some(Token { hashes: vec![hash], source: TokenSource::Hash }),
                Err(why) => {
                    fields.fail("", Problem::Invalid(why));
                    None
                }
            }
        }
        // It may be a token: nothing of it is repeated.
        Element::Text(fields, _) => {
            let expected = expected.to_owned();
            fields.fail("", Problem::Type { found: "a string", expected });
            None
        }
        Element::Object(fields) => {
            let secret = secret::decode(fields, true)?;
            let source = TokenSource::from(secret.source());
            let (key, hashes) = match source {
                TokenSource::File(_) => ("filePath", TokenHash::parse_file(secret.expose())),
                TokenSource::EnvironmentVariable(_) => {
                    ("variableName", TokenHash::parse(secret.expose()).map(|hash| vec![hash]))
                }
                _ => ("secret", TokenHash::parse(secret.expose()).map(|hash| vec![hash])),
            };
            match hashes {
                Ok(hashes) if hashes.is_empty() => {
                    let problem = "the file holds no token".to_owned();
                    fields.fail(key, Problem::Invalid(problem));
                    None
                }
                Ok(hashes) => Some(Token { hashes, source }),
                Err(why) => {
                    fields.fail(key, Problem::Invalid(why));
                    None
                }
            }
        }
    });
    tokens.into_iter().flatten().flatten().collect()
}

fn decode_events(fields: &mut Fields<'_>) -> EventRules {
    let allow = fields.group("allow", |fields| Allow {
        kinds: decode_kinds(fields),
        accounts: names(fields, "accounts", LONGEST_ID),
        custom_types: names(fields, "customTypes", LONGEST_ID),
    });
    let deny = fields.group("deny", |fields| Deny {
        kinds: decode_kinds(fields),
        accounts: names(fields, "accounts", LONGEST_ID).unwrap_or_default(),
        custom_types: names(fields, "customTypes", LONGEST_ID).unwrap_or_default(),
    });
    EventRules { allow, deny }
}

fn decode_kinds(fields: &mut Fields<'_>) -> Kinds {
    let mut kinds = Kinds::default();
    for (path, word) in fields.set("kinds").unwrap_or_default() {
        if word == "*" {
            kinds.all = true;
        } else if let Some(number) = kind_number(&word) {
            kinds.numbers.insert(number);
        } else {
            let names: Vec<String> = kind_names().map(|(name, _)| name).collect();
            let near = nearest(&word, names.iter().map(String::as_str)).map(str::to_owned);
            let mut allowed = vec!["*".to_owned()];
            allowed.extend(names);
            allowed.push("a number from 10 to 99".to_owned());
            let problem = Problem::Choice { found: shown(&word), allowed, nearest: near };
            fields.fail_at(&path, problem);
        }
    }
    kinds
}

fn decode_operations(fields: &mut Fields<'_>) -> BTreeSet<Operation> {
    let mut operations = BTreeSet::new();
    for (path, word) in fields.set("operations").unwrap_or_default() {
        let known = Operation::ALL.into_iter().find(|operation| operation.as_str() == word);
        if let Some(operation) = known {
            operations.insert(operation);
        } else {
            let allowed = Operation::ALL.map(|operation| operation.as_str().to_owned());
            let nearest = nearest(&word, allowed.iter().map(String::as_str)).map(str::to_owned);
            let allowed = allowed.to_vec();
            fields.fail_at(&path, Problem::Choice { found: shown(&word), allowed, nearest });
        }
    }
    operations
}

/// A set of names, some with `*` at the end.
fn names(fields: &mut Fields<'_>, key: &'static str, most: usize) -> Option<Vec<String>> {
    let members = fields.set(key)?;
    for (path, name) in &members {
        if let Err(problem) = check_pattern(name, most) {
            fields.fail_at(path, problem);
        }
    }
    Some(members.into_iter().map(|(_, name)| name).collect())
}

fn check_pattern(pattern: &str, most: usize) -> Result<(), Problem> {
    let invalid = |why: String| Err(Problem::Invalid(format!("{} {why}", shown(pattern))));
    if pattern.is_empty() {
        return invalid("is empty".to_owned());
    }
    if pattern.len() > most {
        return invalid(format!("has {} bytes; the limit is {most}", pattern.len()));
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
pub(in crate::config) fn kind_names() -> impl Iterator<Item = (String, u8)> {
    kinds::TABLE.iter().map(|row| (row.name.to_owned(), row.number))
}

fn kind_number(word: &str) -> Option<u8> {
    let named = kind_names().find(|(name, _)| name == word).map(|(_, number)| number);
    named.or_else(|| word.parse().ok().filter(|number| kinds::is_number(*number)))
}
