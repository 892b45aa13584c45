//! The rules of the identities: `auth` of the configuration, compiled.

use std::{collections::BTreeSet, sync::Arc};

use trunkline_proto::kinds;

use crate::{
    config::{Auth, IdentityRules, Operation},
    errors::{Error, Violation, Violations},
    hub::{
        event::{EventView, Malformed},
        scope::Scope,
    },
    proto::v1,
};

/// A placeholder for the identity's name in patterns of node ids and roles.
const IDENTITY: &str = "{identity}";

/// The rules of one identity, or of all identities whose names have the same prefix.
#[derive(Debug)]
pub struct Rules {
    /// The name, or a prefix and `*`.
    pub name: Arc<str>,
    node_ids: Vec<String>,
    roles: Vec<String>,
    publish: Scope,
    /// The events that it may receive.
    pub receive: Arc<Scope>,
    operations: BTreeSet<Operation>,
    /// What all this was made from, without tokens.
    source: IdentityRules,
}

/// The rules of all identities.
#[derive(Clone, Debug, Default)]
pub struct RuleSet {
    /// In the order of the configuration.
    pub rules: Vec<Arc<Rules>>,
}

/// The rule that refused a connection, a request or a stream. Refusals are counted by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The TLS handshake must succeed.
    Handshake,
    /// The caller must have a valid credential.
    Credentials,
    /// Node ids that the identity may use.
    NodeIds,
    /// Roles that its nodes may have.
    Roles,
    /// Events that it may publish.
    Publish,
    /// Events that it may receive.
    Receive,
    /// Other methods that it may call.
    Operations,
}

impl Rule {
    /// All rules, in the order of their numbers.
    pub const ALL: [Rule; 7] = [
        Rule::Handshake,
        Rule::Credentials,
        Rule::NodeIds,
        Rule::Roles,
        Rule::Publish,
        Rule::Receive,
        Rule::Operations,
    ];

    /// The name in metrics, logs and error details.
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

impl RuleSet {
    /// Compiles the configuration. What was compiled `before` from the same rules is used again.
    pub fn new(auth: &Auth, before: &RuleSet) -> RuleSet {
        let compiled = |identity: &IdentityRules| {
            let source = IdentityRules { tokens: vec![], ..identity.clone() };
            let known = before.rules.iter().find(|rules| rules.source == source);
            known.cloned().unwrap_or_else(|| Arc::new(Rules::new(source)))
        };
        RuleSet { rules: auth.identities.iter().map(compiled).collect() }
    }

    /// The rules for the name in a certificate: those of exactly this name, else those with the
    /// longest matching pattern.
    pub fn of(&self, name: &str) -> Option<&Arc<Rules>> {
        let exact = self.rules.iter().find(|rules| &*rules.name == name);
        exact.or_else(|| {
            let matching = self.rules.iter().filter(|rules| {
                rules.name.strip_suffix('*').is_some_and(|prefix| name.starts_with(prefix))
            });
            matching.max_by_key(|rules| rules.name.len())
        })
    }
}

impl Rules {
    fn new(rules: IdentityRules) -> Rules {
        let mut receive = Scope::new(&rules.receive);
        if !rules.operations.contains(&Operation::ListNodes) {
            receive = receive.without_nodes();
        }
        Rules {
            name: rules.name.as_str().into(),
            node_ids: rules.node_ids.clone(),
            roles: rules.roles.clone(),
            publish: Scope::new(&rules.publish),
            receive: Arc::new(receive),
            operations: rules.operations.clone(),
            source: rules,
        }
    }

    /// True if this operation is allowed.
    pub fn allows(&self, operation: Operation) -> bool {
        self.operations.contains(&operation)
    }

    /// Checks that the identity of this name may use a node id.
    pub fn check_node_id(&self, identity: &str, node_id: &str) -> Result<(), Error> {
        // Validation refuses a missing node id, and says so.
        if matches_any(&self.node_ids, identity, node_id) || node_id.is_empty() {
            return Ok(());
        }
        Err(refused(
            Rule::NodeIds,
            vec![violation("node_id", "this identity may not use this node id")],
        ))
    }

    /// Checks that nodes of the identity of this name may have these roles. The error names all
    /// roles that they may not have.
    pub fn check_roles(&self, identity: &str, roles: &[String]) -> Result<(), Error> {
        let mut violations = Violations::default();
        for (index, role) in roles.iter().enumerate() {
            if !matches_any(&self.roles, identity, role) {
                let what = "this identity may not have this role";
                violations.add(format_args!("roles[{index}]"), what);
            }
            if violations.is_full() {
                break;
            }
        }
        all_allowed(Rule::Roles, violations)
    }

    /// Checks that events of some kind may be published.
    pub fn check_publishes(&self) -> Result<(), Error> {
        if self.publish.allows_some() {
            return Ok(());
        }
        let what = "this identity may not publish events";
        Err(refused(Rule::Publish, vec![violation("events", what)]))
    }

    /// Checks that all these events may be published. The error names all events that may not.
    pub fn check_events(&self, events: &[Result<EventView<'_>, Malformed>]) -> Result<(), Error> {
        let mut violations = Violations::default();
        for (index, event) in events.iter().enumerate() {
            // Validation refuses malformed events, and those without a kind.
            let Ok(event) = event else { continue };
            let kind = event.kind();
            if kind == 0 || self.publish.allows(event) {
                continue;
            }
            let name = kinds::label(i32::from(kind));
            let what = if self.publish.allows_kind(kind) {
                format!("{name} of this account or type may not be published")
            } else {
                format!("{name} may not be published")
            };
            violations.add(format_args!("events[{index}]"), what);
            if violations.is_full() {
                break;
            }
        }
        all_allowed(Rule::Publish, violations)
    }

    /// Checks that everything that a filter names may be received. The error names all that may
    /// not. A filter that names nothing is always allowed: the stream leaves out what it may not
    /// receive.
    pub fn check_filter(&self, filter: &v1::Filter) -> Result<(), Error> {
        let mut violations = Violations::default();
        let mut forbidden = |list: &str, index: usize, what: &str| {
            let what = format!("{what} may not be received");
            violations.add(format_args!("filter.{list}[{index}]"), what);
            violations.is_full()
        };
        for (index, kind) in filter.kinds.iter().enumerate() {
            // Validation refuses numbers that cannot be a kind.
            let number = u8::try_from(*kind).ok().filter(|number| kinds::NUMBERS.contains(number));
            if number.is_some_and(|number| !self.receive.allows_kind(number))
                && forbidden("kinds", index, &kinds::label(*kind))
            {
                break;
            }
        }
        for (index, account) in filter.accounts.iter().enumerate() {
            if !self.receive.allows_account(account.as_bytes())
                && forbidden("accounts", index, "this account")
            {
                break;
            }
        }
        for (index, pattern) in filter.custom_types.iter().enumerate() {
            if !self.receive.allows_some_type(pattern) && forbidden("custom_types", index, pattern)
            {
                break;
            }
        }
        all_allowed(Rule::Receive, violations)
    }
}

/// True if one of the patterns matches the name.
fn matches_any(patterns: &[String], identity: &str, name: &str) -> bool {
    patterns.iter().any(|pattern| {
        // A trailing `*` is a wildcard in the pattern, but not in the identity's name.
        let (pattern, is_prefix) = match pattern.strip_suffix('*') {
            Some(prefix) => (prefix, true),
            None => (pattern.as_str(), false),
        };
        let pattern = pattern.replace(IDENTITY, identity);
        if is_prefix { name.starts_with(&pattern) } else { name == pattern }
    })
}

/// The error for a caller that breaks a rule, if there are violations.
fn all_allowed(rule: Rule, violations: Violations) -> Result<(), Error> {
    violations.found().map_or(Ok(()), |found| Err(refused(rule, found)))
}

/// The error for a caller that breaks a rule.
pub fn refused(rule: Rule, violations: Vec<Violation>) -> Error {
    Error::NotAllowed { rule: rule.name(), violations }
}

/// One thing that is not allowed.
pub fn violation(field: impl Into<String>, description: impl Into<String>) -> Violation {
    Violation { field: field.into(), description: description.into() }
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
    fn an_identity_may_use_node_ids_that_match_its_patterns_and_no_other() {
        let own = Rules::new(rules("mx", &["relay", "{identity}.*", "{identity}"]));
        for node in ["relay", "mx", "mx.1", ""] {
            assert!(own.check_node_id("mx", node).is_ok(), "{node}");
        }
        for node in ["relay2", "mx2", "m", "web", "{identity}", "*"] {
            assert!(own.check_node_id("mx", node).is_err(), "{node}");
        }
        // A name from a certificate is never a pattern.
        assert!(own.check_node_id("a*", "ab").is_err());
        assert!(own.check_node_id("a*", "a*").is_ok());
        assert!(Rules::new(rules("mx", &[])).check_node_id("mx", "mx").is_err());
    }

    #[test]
    fn a_node_may_have_roles_that_match_the_patterns_of_its_identity_and_no_other() {
        let own = |roles: &[&str]| {
            let roles = roles.iter().map(|&role| role.to_owned()).collect();
            Rules::new(IdentityRules { roles, ..rules("mx", &["*"]) })
        };
        let asked = ["imap", "mta-7", "admin", "mx"].map(str::to_owned);
        assert!(own(&["*"]).check_roles("mx", &asked).is_ok());
        assert!(own(&["imap", "mta-*", "admin", "{identity}"]).check_roles("mx", &asked).is_ok());
        assert!(own(&[]).check_roles("mx", &[]).is_ok());
        let refused = |rules: Rules| match rules.check_roles("mx", &asked) {
            Err(Error::NotAllowed { rule: "roles", violations }) => {
                violations.into_iter().map(|violation| violation.field).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(own(&["mta-*", "adm"])), ["roles[0]", "roles[2]", "roles[3]"]);
        assert_eq!(refused(own(&[])).len(), 4);
    }

    #[test]
    fn a_certificate_gets_the_rules_of_its_name_or_of_the_longest_matching_pattern() {
        let names = ["spiffe://a/*", "*", "spiffe://a/mail/*", "spiffe://a/mail/one"];
        let identities = names.map(|name| rules(name, &[])).to_vec();
        let rule_set = RuleSet::new(&Auth { identities }, &RuleSet::default());
        let name = |name| rule_set.of(name).map(|rules| rules.name.to_string());
        assert_eq!(name("spiffe://a/mail/one").as_deref(), Some("spiffe://a/mail/one"));
        assert_eq!(name("spiffe://a/mail/two").as_deref(), Some("spiffe://a/mail/*"));
        assert_eq!(name("spiffe://a/web").as_deref(), Some("spiffe://a/*"));
        assert_eq!(name("mx1").as_deref(), Some("*"));
        let identities = vec![rules("mx1", &[])];
        let exact = RuleSet::new(&Auth { identities }, &RuleSet::default());
        assert!(exact.of("mx").is_none() && exact.of("mx11").is_none());
    }
}
