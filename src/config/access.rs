//! `tls` and `auth`: who may connect, and the rights of each identity.

mod members;
mod token;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

pub use self::token::{Token, TokenHash, TokenSource};
use self::{
    members::{KindNames, Names, Operations},
    token::Tokens,
};
use super::{
    error::{Problem, shown},
    fields::Fields,
    settings::{Declared, described, group, key, list, optional, required, settings},
    types::{Choice, Pem, Set, text},
};

/// Names are those of certificates, which hold long URIs.
const MAX_NAME_BYTES: usize = 512;

settings! {
    /// TLS of the gRPC port.
    pub struct ServerTls checked by check_server_tls {
        /// The gateway's own certificate, then those that lead to an authority. Without one, the
        /// port is plain text.
        pub certificate: PathBuf = key("certificate", Pem("CERTIFICATE"), ""),
        /// The key of the certificate.
        pub private_key: PathBuf = key("privateKey", Pem("PRIVATE KEY"), ""),
        /// The authorities that sign the certificates of nodes. Without one, nodes are not asked
        /// for a certificate. Needs `auth`.
        pub client_ca: Option<PathBuf> = optional("clientCa", Pem("CERTIFICATE")),
        /// `required`: every connection needs a certificate, those of load balancers that ask for
        /// health too. `optional`: a connection without a certificate needs a token.
        pub client_certificate_required: bool =
            key("clientCertificates", Choice(&[("required", true), ("optional", false)]), true),
    }
}

impl ServerTls {
    /// True when the port has TLS.
    pub(super) fn is_set(&self) -> bool {
        !self.certificate.as_os_str().is_empty() && !self.private_key.as_os_str().is_empty()
    }
}

settings! {
    /// The rights of each identity. All others may do nothing.
    pub struct Auth checked by check_identities {
        /// At least one identity, each with another name.
        pub identities: Vec<IdentityRules> =
            list("identities", "an object with the name and the rights of an identity"),
    }
}

settings! {
    /// The rights of one identity, or of all whose names have one beginning.
    pub struct IdentityRules checked by check_identity {
        /// The name in a certificate, or the name that a token proves. The name in a certificate is
        /// its first URI, such as a SPIFFE id, as it is; else its first DNS name; else its common
        /// name with `CN=` before it (`CN=mx1`). With `*` at its end it stands for all certificates
        /// whose name has that beginning; an exact name is matched first, then the longest.
        pub name: String = required("name", text(check_name), "the identity's name"),
        /// Tokens of the identity, all valid at once: objects as [Secrets](#secrets) has them (a
        /// file holds one token or `sha256:` hash a line; lines that begin with `#` are ignored),
        /// or the text `sha256:` and the hash of a token (`sha256sum` of it without a line feed, in
        /// hexadecimal). A token has 16 to 1024 visible characters, and one owner.
        pub tokens: Vec<Token> = Tokens("tokens"),
        /// The node ids that it may publish and subscribe as. `*` may stand at the end;
        /// `{identity}` is its name.
        pub node_ids: Vec<String> = key("nodeIds", Set(Names), []),
        /// The roles that its nodes may have, written as `nodeIds` are. Events that are targeted at
        /// a role are delivered to the nodes that have it.
        pub roles: Vec<String> = key("roles", Set(Names), []),
        /// The events that it may publish.
        pub publish: EventRules = group("publish"),
        /// The events that it may receive.
        pub receive: EventRules = group("receive"),
        /// `listNodes`, `getStatus`, `reflection` (the description of the API) and `explain`:
        /// streams that report of every event whether it is delivered, `subscribe --explain`. These
        /// report kind, id, source, account and type of events that the identity may not receive,
        /// too, and nothing else of them.
        pub operations: BTreeSet<Operation> = key("operations", Set(Operations), []),
    }
}

settings! {
    /// Events: those that are allowed, without those that are denied.
    pub struct EventRules {
        /// The events that are allowed: those of one of the kinds, of one of the accounts if they
        /// concern an account, and of one of the types if they are custom.
        pub allow: Allow = group("allow"),
        /// The events that are denied, allowed or not: those of one of the kinds, of one of the
        /// accounts, or of one of the custom types.
        pub deny: Deny = group("deny"),
    }
}

settings! {
    /// Events that are allowed.
    pub struct Allow {
        /// Kinds of events.
        pub kinds: Kinds = kinds_key(),
        /// Accounts, with `*` at the end for all that have that beginning. `null`: all.
        pub accounts: Option<Vec<String>> = optional("accounts", Set(Names)),
        /// Custom types, with `*` at the end for all that have that beginning. `null`: all.
        pub custom_types: Option<Vec<String>> = optional("customTypes", Set(Names)),
    }
}

settings! {
    /// Events that are denied.
    pub struct Deny {
        /// Kinds of events.
        pub kinds: Kinds = kinds_key(),
        /// Accounts, with `*` at the end for all that have that beginning.
        pub accounts: Vec<String> = key("accounts", Set(Names), []),
        /// Custom types, with `*` at the end for all that have that beginning.
        pub custom_types: Vec<String> = key("customTypes", Set(Names), []),
    }
}

fn kinds_key() -> impl Declared<Value = Kinds> {
    described(
        "Kinds (`mailbox_change`), numbers of kinds of a later version, or `*`.",
        key("kinds", Set(KindNames), []),
    )
}

/// Kinds of events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kinds {
    /// True for all kinds, later ones included.
    pub all: bool,
    /// The numbers of the kinds that were named.
    pub numbers: BTreeSet<u8>,
}

/// Rights other than those to publish and to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// `ListNodes`.
    ListNodes,
    /// `GetStatus`.
    GetStatus,
    /// The reflection service: the description of the API.
    Reflection,
    /// Streams that report the events that their filter leaves out.
    Explain,
}

impl Operation {
    /// All of them.
    pub const ALL: [Operation; 4] =
        [Operation::ListNodes, Operation::GetStatus, Operation::Reflection, Operation::Explain];

    /// Its word in the configuration: `listNodes`.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::ListNodes => "listNodes",
            Operation::GetStatus => "getStatus",
            Operation::Reflection => "reflection",
            Operation::Explain => "explain",
        }
    }
}

fn check_server_tls(_: &mut ServerTls, fields: &Fields<'_>) {
    for (present, missing) in
        [("certificate", "privateKey"), ("privateKey", "certificate"), ("clientCa", "certificate")]
    {
        if fields.has(present) && !fields.has(missing) && fields.sound(&[missing]) {
            let expected = format!("the PEM file that belongs to {present}");
            fields.fail(missing, Problem::Missing { expected });
        }
    }
}

fn check_identities(auth: &mut Auth, fields: &Fields<'_>) {
    if auth.identities.is_empty() && fields.has("identities") && fields.sound(&["identities"]) {
        let expected = "at least one identity; without one no node could do anything".to_owned();
        fields.fail("identities", Problem::Missing { expected });
    }
    let mut names = BTreeSet::new();
    let mut owners: BTreeMap<TokenHash, usize> = BTreeMap::new();
    for (index, identity) in auth.identities.iter().enumerate() {
        let fail = |key: &str, problem: String| {
            fields.fail_at(&format!("auth.identities[{index}].{key}"), Problem::Invalid(problem));
        };
        // The name of an identity that is broken is empty.
        if !identity.name.is_empty() && !names.insert(&identity.name) {
            fail("name", format!("{} is the name of another identity too", shown(&identity.name)));
        }
        for hash in identity.tokens.iter().flat_map(|token| &token.hashes) {
            let owner = *owners.entry(*hash).or_insert(index);
            if owner != index {
                fail("tokens", format!("a token is one of auth.identities[{owner}] too"));
            }
        }
    }
}

fn check_identity(identity: &mut IdentityRules, fields: &Fields<'_>) {
    if !identity.tokens.is_empty() && identity.name.ends_with('*') {
        let problem = "cannot authenticate a name that ends with *, which matches certificates";
        fields.fail("tokens", Problem::Invalid(problem.to_owned()));
    }
}

fn check_name(name: &str) -> Result<(), Problem> {
    members::check_pattern(name, MAX_NAME_BYTES)
}
