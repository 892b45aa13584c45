//! What a request may do, and for how long.

use std::{sync::Arc, time::Duration};

use super::{Access, PeerCertificate};
use crate::access::rules::{Rule, Rules, refused, violation};
use crate::{
    config::{Operation, TokenHash},
    hub::scope::Scope,
    proto::v1,
    rpc::{error::Error, validate::Stamped},
};

/// What proved who sends a request.
#[derive(Clone, Debug)]
pub enum Credential {
    /// A token.
    Token(TokenHash),
    /// The certificate of its connection.
    Certificate(Arc<PeerCertificate>),
}

/// What the sender of a request may do. Stands in the extensions of each one, where there is authentication.
#[derive(Clone)]
pub struct Permit {
    pub(super) access: Arc<Access>,
    pub(super) identity: Arc<str>,
    pub(super) rules: Arc<Rules>,
    pub(super) credential: Credential,
}

impl Permit {
    /// Whether events may be published in the name of a node.
    pub fn check_publish(&self, node_id: &str, events: &[Stamped]) -> Result<(), Error> {
        self.rules
            .check_node_id(&self.identity, node_id)
            .inspect_err(|_| self.note(Rule::NodeIds))?;
        let events = events.iter().map(|event| (event.kind, &event.bytes[..]));
        self.rules.check_publish(events).inspect_err(|_| self.note(Rule::Publish))
    }

    /// Whether a stream may be opened in the name of a node with these roles, with this filter.
    pub fn check_subscribe(
        &self,
        node_id: &str,
        roles: &[String],
        filter: &v1::Filter,
    ) -> Result<(), Error> {
        self.rules
            .check_node_id(&self.identity, node_id)
            .inspect_err(|_| self.note(Rule::NodeIds))?;
        self.rules.check_roles(&self.identity, roles).inspect_err(|_| self.note(Rule::Roles))?;
        self.rules.check_filter(filter).inspect_err(|_| self.note(Rule::Receive))
    }

    /// Whether a stream may explain itself. It tells of events that its filter leaves out, those among them that its identity
    /// may not receive, so that somebody sees why.
    pub fn check_explain(&self, explain: bool) -> Result<(), Error> {
        if !explain || self.rules.allows(Operation::Explain) {
            return Ok(());
        }
        self.note(Rule::Operations);
        let what = "would tell of events that this identity may not receive";
        Err(refused(Rule::Operations, vec![violation("explain", what)]))
    }

    /// What a stream may deliver.
    pub fn receive(&self) -> &Arc<Scope> {
        &self.rules.receive
    }

    fn note(&self, rule: Rule) {
        self.access.refusals.note(rule, &self.identity, "not allowed");
    }

    fn is_valid(&self) -> bool {
        match &self.credential {
            Credential::Token(hash) => {
                self.access.owner(hash).is_some_and(|owner| Arc::ptr_eq(&owner, &self.rules))
            }
            Credential::Certificate(certificate) => self.access.holds(certificate),
        }
    }

    fn time_left(&self) -> Duration {
        // What is longer is looked at again.
        const LONG: Duration = Duration::from_hours(24);
        match &self.credential {
            Credential::Token(_) => LONG,
            // A little more, so that it is over then.
            Credential::Certificate(certificate) => {
                certificate.time_left().min(LONG) + Duration::from_millis(10)
            }
        }
    }

    /// Ends as soon as what proved the sender is not valid any more.
    pub async fn revoked(self) {
        let mut changed = self.access.changed.subscribe();
        while self.is_valid() {
            // Its sender is in `access`, which is held here.
            let _ = tokio::time::timeout(self.time_left(), changed.changed()).await;
        }
        self.access.refusals.note(
            Rule::Credentials,
            &self.identity,
            "no longer valid: the stream ends",
        );
    }
}
