//! What the identities may do: the rules of the configuration, compiled.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    config::{Auth, IdentityRules, Operation},
    hub::{event::EventView, scope::Scope},
    proto::v1,
    rpc::error::{Error, Violation},
};

/// Stands for the identity's name in a pattern of node ids or roles.
const IDENTITY: &str = "{identity}";

/// What one identity may do, or all whose names begin alike.
#[derive(Debug)]
pub struct Rules {
    /// Its name, perhaps with `*` at its end.
    pub name: Arc<str>,
    node_ids: Vec<String>,
    roles: Vec<String>,
    publish: Scope,
    /// What it may receive.
    pub receive: Arc<Scope>,
    operations: BTreeSet<Operation>,
}

/// The rules of all identities, as they stand in the configuration.
#[derive(Debug, Default)]
pub struct Book {
    /// In the order of the configuration.
    pub rules: Vec<Arc<Rules>>,
}

/// Which rule a request broke. They are counted by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A TLS handshake that came to nothing.
    Handshake,
    /// Who it is must be proven.
    Credentials,
    /// Node ids that it may speak for.
    NodeIds,
    /// Roles that its nodes may have.
    Roles,
    /// Events that it may publish.
    Publish,
    /// Events that it may receive.
    Receive,
    /// What else it may do.
    Operations,
}

impl Rule {
    /// All of them, in the order of their numbers.
    pub const ALL: [Rule; 7] = [
        Rule::Handshake,
        Rule::Credentials,
        Rule::NodeIds,
        Rule::Roles,
        Rule::Publish,
        Rule::Receive,
        Rule::Operations,
    ];

    /// As metrics and error details name it.
    pub fn name(self) -> &'static str {
        match self {
            Rule::Handshake => "handshake",
            Rule::Credentials => "credentials",
            Rule::NodeIds => "node_ids",
            Rule::Roles => "roles",
            Rule::Publish => "publish",
            Rule::Receive => "receive",
            Rule::Operations => "operations",
        }
    }
}

impl Book {
    /// Compiles what the configuration says.
    pub fn new(auth: &Auth) -> Book {
        Book { rules: auth.identities.iter().map(|rules| Arc::new(Rules::new(rules))).collect() }
    }

    /// The rules for the name in a certificate: those of that name, else those whose pattern fits and is the longest.
    pub fn of(&self, name: &str) -> Option<&Arc<Rules>> {
        let exact = self.rules.iter().find(|rules| &*rules.name == name);
        exact.or_else(|| {
            let fits = self.rules.iter().filter(|rules| {
                rules.name.strip_suffix('*').is_some_and(|prefix| name.starts_with(prefix))
            });
            fits.max_by_key(|rules| rules.name.len())
        })
    }
}

impl Rules {
    fn new(rules: &IdentityRules) -> Rules {
        Rules {
            name: rules.name.as_str().into(),
            node_ids: rules.node_ids.clone(),
            roles: rules.roles.clone(),
            publish: Scope::new(&rules.publish),
            receive: Arc::new(Scope::new(&rules.receive)),
            operations: rules.operations.clone(),
        }
    }

    /// Whether the identity of this name may do something.
    pub fn allows(&self, operation: Operation) -> bool {
        self.operations.contains(&operation)
    }

    /// Whether the identity of this name may speak for a node.
    pub fn check_node_id(&self, identity: &str, node_id: &str) -> Result<(), Error> {
        // Validation says what is wrong with one that is not there.
        if fits(&self.node_ids, identity, node_id) || node_id.is_empty() {
            return Ok(());
        }
        Err(refused(Rule::NodeIds, vec![violation("node_id", "is not one of this identity's")]))
    }

    /// Whether a node of the identity of this name may have the roles. The error names all that it may not.
    pub fn check_roles(&self, identity: &str, roles: &[String]) -> Result<(), Error> {
        let forbidden = |(_, role): &(usize, &String)| !fits(&self.roles, identity, role);
        let violations: Vec<_> = (roles.iter().enumerate().filter(forbidden))
            .map(|(index, _)| violation(format!("roles[{index}]"), "is not one of this identity's"))
            .collect();
        if violations.is_empty() { Ok(()) } else { Err(refused(Rule::Roles, violations)) }
    }

    /// Whether all events may be published: their kinds and their bytes. The error names all that may not.
    pub fn check_publish<'e>(
        &self,
        events: impl Iterator<Item = (u8, &'e [u8])>,
    ) -> Result<(), Error> {
        let inside = self.publish.looks_inside();
        let mut violations = Vec::new();
        for (index, (kind, bytes)) in events.enumerate() {
            let path = |field: &str| format!("events[{index}]{field}");
            if !self.publish.allows_kind(kind) {
                let kind = kind_name(i32::from(kind));
                violations.push(violation(path(""), format!("{kind} may not be published")));
            } else if inside
                && !EventView::peek(bytes).is_ok_and(|event| self.publish.allows(&event))
            {
                let kind = kind_name(i32::from(kind));
                let what = format!("{kind} of this account or type may not be published");
                violations.push(violation(path(""), what));
            }
        }
        if violations.is_empty() { Ok(()) } else { Err(refused(Rule::Publish, violations)) }
    }

    /// Whether everything that a filter asks for by name may be received. What it does not name is left out in silence.
    pub fn check_filter(&self, filter: &v1::Filter) -> Result<(), Error> {
        let mut violations = Vec::new();
        let mut forbidden = |field: String, what: String| {
            violations.push(violation(field, format!("{what} may not be received")));
        };
        for (index, kind) in filter.kinds.iter().enumerate() {
            // Validation has said what is no kind.
            if !u8::try_from(*kind).is_ok_and(|kind| self.receive.allows_kind(kind)) {
                forbidden(format!("filter.kinds[{index}]"), kind_name(*kind));
            }
        }
        for (index, account) in filter.accounts.iter().enumerate() {
            if !self.receive.allows_account(account.as_bytes()) {
                forbidden(format!("filter.accounts[{index}]"), "it".to_owned());
            }
        }
        for (index, pattern) in filter.custom_types.iter().enumerate() {
            if !self.receive.allows_some_type(pattern) {
                forbidden(format!("filter.custom_types[{index}]"), pattern.clone());
            }
        }
        if violations.is_empty() { Ok(()) } else { Err(refused(Rule::Receive, violations)) }
    }
}

/// Whether one of the patterns stands for a name.
fn fits(patterns: &[String], identity: &str, name: &str) -> bool {
    patterns.iter().any(|pattern| {
        // What the pattern says is decided before the identity is put in: its name is no pattern.
        let (pattern, open) = match pattern.strip_suffix('*') {
            Some(prefix) => (prefix, true),
            None => (pattern.as_str(), false),
        };
        let pattern = pattern.replace(IDENTITY, identity);
        if open { name.starts_with(&pattern) } else { name == pattern }
    })
}

/// What is told to who broke a rule.
pub fn refused(rule: Rule, violations: Vec<Violation>) -> Error {
    Error::NotAllowed { rule: rule.name(), violations }
}

/// One thing that is not allowed.
pub fn violation(field: impl Into<String>, description: impl Into<String>) -> Violation {
    Violation { field: field.into(), description: description.into() }
}

/// `mailbox_change`, or the number of a kind of a newer peer.
fn kind_name(number: i32) -> String {
    match v1::EventKind::try_from(number) {
        Ok(kind) => kind.as_str_name().trim_start_matches("EVENT_KIND_").to_ascii_lowercase(),
        Err(_) => format!("kind {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EventRules;

    fn rules(name: &str, node_ids: &[&str]) -> IdentityRules {
        IdentityRules {
            name: name.into(),
            tokens: vec![],
            node_ids: node_ids.iter().map(|&id| id.to_owned()).collect(),
            roles: vec![],
            publish: EventRules::default(),
            receive: EventRules::default(),
            operations: BTreeSet::new(),
        }
    }

    #[test]
    fn an_identity_speaks_for_the_nodes_of_its_patterns_and_no_other() {
        let own = Rules::new(&rules("mx", &["relay", "{identity}.*", "{identity}"]));
        for node in ["relay", "mx", "mx.1", ""] {
            assert!(own.check_node_id("mx", node).is_ok(), "{node}");
        }
        for node in ["relay2", "mx2", "m", "web", "{identity}", "*"] {
            assert!(own.check_node_id("mx", node).is_err(), "{node}");
        }
        // A name from a certificate is text, whatever it looks like.
        assert!(own.check_node_id("a*", "ab").is_err());
        assert!(own.check_node_id("a*", "a*").is_ok());
        assert!(Rules::new(&rules("mx", &[])).check_node_id("mx", "mx").is_err());
    }

    #[test]
    fn a_node_has_the_roles_of_its_identity_and_no_other() {
        let own = |roles: &[&str]| {
            let roles = roles.iter().map(|&role| role.to_owned()).collect();
            Rules::new(&IdentityRules { roles, ..rules("mx", &["*"]) })
        };
        let asked = ["imap", "mta-7", "admin", "mx"].map(str::to_owned);
        assert!(own(&["*"]).check_roles("mx", &asked).is_ok());
        assert!(own(&["imap", "mta-*", "admin", "{identity}"]).check_roles("mx", &asked).is_ok());
        assert!(own(&[]).check_roles("mx", &[]).is_ok());
        let told = |rules: Rules| match rules.check_roles("mx", &asked) {
            Err(Error::NotAllowed { rule: "roles", violations }) => {
                violations.into_iter().map(|violation| violation.field).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(told(own(&["mta-*", "adm"])), ["roles[0]", "roles[2]", "roles[3]"]);
        assert_eq!(told(own(&[])).len(), 4);
    }

    #[test]
    fn a_certificate_has_the_rules_of_its_name_or_of_the_longest_pattern() {
        let names = ["spiffe://a/*", "*", "spiffe://a/mail/*", "spiffe://a/mail/one"];
        let book = Book::new(&Auth { identities: names.map(|name| rules(name, &[])).to_vec() });
        let name = |name| book.of(name).map(|rules| rules.name.to_string());
        assert_eq!(name("spiffe://a/mail/one").as_deref(), Some("spiffe://a/mail/one"));
        assert_eq!(name("spiffe://a/mail/two").as_deref(), Some("spiffe://a/mail/*"));
        assert_eq!(name("spiffe://a/web").as_deref(), Some("spiffe://a/*"));
        assert_eq!(name("mx1").as_deref(), Some("*"));
        let exact = Book::new(&Auth { identities: vec![rules("mx1", &[])] });
        assert!(exact.of("mx").is_none() && exact.of("mx11").is_none());
    }
}
