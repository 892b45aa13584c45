//! Who may connect: TLS of the gRPC port, and what each identity may do.

mod decode;
mod token;

use std::{collections::BTreeSet, path::PathBuf};

pub(super) use self::decode::{decode_auth, decode_tls, kind_names};
pub use self::token::{Token, TokenHash, TokenSource};

/// TLS of the gRPC port. All are PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// What the gateway shows to nodes: its certificate first, then those that lead to an authority.
    pub certificate: PathBuf,
    /// The key of the certificate.
    pub private_key: PathBuf,
    /// Who signs the certificates of nodes. None: they are not asked for one.
    pub client_ca: Option<PathBuf>,
    /// Whether a node without a certificate is turned away, where they are asked for one.
    pub client_certificate_required: bool,
}

/// What each identity may do. Who is none of them may do nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// At least one, each with another name.
    pub identities: Vec<IdentityRules>,
}

/// What one identity may do, or all whose names begin alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityRules {
    /// Its name, which a token has from here and a certificate brings. With `*` at its end it stands for all certificates whose
    /// name begins so.
    pub name: String,
    /// What proves it, beside a certificate. All are valid at once.
    pub tokens: Vec<Token>,
    /// The node ids that it may speak for; `*` may stand at the end, and `{identity}` is the identity's name.
    pub node_ids: Vec<String>,
    /// The roles that its nodes may have, written as the node ids are: what is targeted at a role reaches those who have it.
    pub roles: Vec<String>,
    /// The events that it may publish.
    pub publish: EventRules,
    /// The events that it may receive.
    pub receive: EventRules,
    /// What else it may do.
    pub operations: BTreeSet<Operation>,
}

/// Which events: those that are allowed, without those that are denied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventRules {
    /// What is allowed.
    pub allow: Allow,
    /// What is denied, allowed or not.
    pub deny: Deny,
}

/// Allowed is what is of one of the kinds, of one of the accounts if it concerns one, and of one of the types if it is custom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allow {
    /// The kinds; none by default.
    pub kinds: Kinds,
    /// Accounts, with `*` at the end for all that begin so. None: all.
    pub accounts: Option<Vec<String>>,
    /// Custom types, with `*` at the end for all that begin so. None: all.
    pub custom_types: Option<Vec<String>>,
}

/// Denied is what is of one of the kinds, or of one of the accounts, or of one of the custom types.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deny {
    /// The kinds.
    pub kinds: Kinds,
    /// Accounts, with `*` at the end for all that begin so.
    pub accounts: Vec<String>,
    /// Custom types, with `*` at the end for all that begin so.
    pub custom_types: Vec<String>,
}

/// Some kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kinds {
    /// All that there are or will be.
    pub all: bool,
    /// The numbers of those that were named.
    pub numbers: BTreeSet<u8>,
}

/// What is a right of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// `ListNodes`.
    ListNodes,
    /// `GetStatus`.
    GetStatus,
    /// The reflection service: what the API looks like.
    Reflection,
    /// Streams that explain themselves: they tell of events that their filter leaves out.
    Explain,
}

impl Operation {
    /// All of them.
    pub const ALL: [Operation; 4] =
        [Operation::ListNodes, Operation::GetStatus, Operation::Reflection, Operation::Explain];

    /// As it is written: `listNodes`.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::ListNodes => "listNodes",
            Operation::GetStatus => "getStatus",
            Operation::Reflection => "reflection",
            Operation::Explain => "explain",
        }
    }
}
