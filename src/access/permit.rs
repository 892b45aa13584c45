//! What a request may do, and for how long.

use std::{sync::Arc, time::Duration};

use super::{Access, PeerCertificate};
use crate::access::rules::{Rule, Rules, refused, violation};
use crate::{
    config::{Operation, TokenHash},
    errors::Error,
    hub::{
        event::{EventView, Malformed},
        scope::Scope,
    },
    proto::v1,
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
    /// Checks that anything may be published in the name of a node.
    pub fn check_publisher(&self, node_id: &str) -> Result<(), Error> {
        self.check_node_id(node_id)?;
        self.rules.check_publishes().inspect_err(|_| self.note(Rule::Publish))
    }

    /// Checks that events may be published. Malformed ones are left to validation.
    pub fn check_events(&self, events: &[Result<EventView<'_>, Malformed>]) -> Result<(), Error> {
        self.rules.check_events(events).inspect_err(|_| self.note(Rule::Publish))
    }

    /// Checks that a stream may be opened: its node id, its roles, its filter and its explanations.
    /// What is invalid is left to validation.
    pub fn check_subscribe(&self, request: &v1::SubscribeRequest) -> Result<(), Error> {
        self.check_node_id(&request.node_id)?;
        self.rules
            .check_roles(&self.identity, &request.roles)
            .inspect_err(|_| self.note(Rule::Roles))?;
        if let Some(filter) = &request.filter {
            self.rules.check_filter(filter).inspect_err(|_| self.note(Rule::Receive))?;
        }
        self.check_explain(request.explain)
    }

    fn check_node_id(&self, node_id: &str) -> Result<(), Error> {
        self.rules.check_node_id(&self.identity, node_id).inspect_err(|_| self.note(Rule::NodeIds))
    }

    /// Whether a stream may explain itself. It tells of events that its filter leaves out, those among them that its identity
    /// may not receive, so that somebody sees why.
    fn check_explain(&self, explain: bool) -> Result<(), Error> {
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
