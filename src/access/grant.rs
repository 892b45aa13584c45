//! What the rules allow the caller of a request, and for how long.

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

/// The credential that authenticated a request.
#[derive(Clone, Debug)]
pub enum Credential {
    /// A token.
    Token(TokenHash),
    /// The client certificate of the connection.
    Certificate(Arc<PeerCertificate>),
}

/// The rules of an authenticated caller, where `auth` is configured.
///
/// The checks count what they refuse. Their errors name everything in a request that is not
/// allowed; validation, which comes later, refuses what is invalid.
#[derive(Clone)]
pub struct Grant {
    pub(super) access: Arc<Access>,
    pub(super) identity: Arc<str>,
    pub(super) rules: Arc<Rules>,
    pub(super) credential: Credential,
}

impl Grant {
    /// The name of the caller's identity.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Checks that events of some kind may be published under this node id.
    pub fn check_publisher(&self, node_id: &str) -> Result<(), Error> {
        self.check_node_id(node_id)?;
        self.rules.check_publishes().inspect_err(|_| self.record(Rule::Publish))
    }

    /// Checks that these events may be published. Malformed ones are left to validation.
    pub fn check_events(&self, events: &[Result<EventView<'_>, Malformed>]) -> Result<(), Error> {
        self.rules.check_events(events).inspect_err(|_| self.record(Rule::Publish))
    }

    /// Checks that a stream may be opened: its node id, roles, filter and explanations. What is
    /// invalid is left to validation.
    pub fn check_subscribe(&self, request: &v1::SubscribeRequest) -> Result<(), Error> {
        self.check_node_id(&request.node_id)?;
        self.rules
            .check_roles(&self.identity, &request.roles)
            .inspect_err(|_| self.record(Rule::Roles))?;
        if let Some(filter) = &request.filter {
            self.rules.check_filter(filter).inspect_err(|_| self.record(Rule::Receive))?;
        }
        self.check_explain(request.explain)
    }

    /// Checks what an update adds to the interest of a stream.
    pub fn check_interest(&self, added: &v1::Filter) -> Result<(), Error> {
        self.rules.check_filter(added).inspect_err(|_| self.record(Rule::Receive))
    }

    fn check_node_id(&self, node_id: &str) -> Result<(), Error> {
        self.rules
            .check_node_id(&self.identity, node_id)
            .inspect_err(|_| self.record(Rule::NodeIds))
    }

    /// Checks that a stream may explain its filter decisions, where it asks for that. Explanations
    /// show events that the stream does not deliver, also those that its identity may not receive.
    fn check_explain(&self, explain: bool) -> Result<(), Error> {
        if !explain || self.rules.allows(Operation::Explain) {
            return Ok(());
        }
        self.record(Rule::Operations);
        let what = "would show events that this identity may not receive";
        Err(refused(Rule::Operations, vec![violation("explain", what)]))
    }

    /// True if the caller may list nodes.
    pub fn may_list_nodes(&self) -> bool {
        self.rules.allows(Operation::ListNodes)
    }

    /// The events that a stream may deliver.
    pub fn receive(&self) -> &Arc<Scope> {
        &self.rules.receive
    }

    fn record(&self, rule: Rule) {
        self.access.refusals.record(rule, &self.identity, "not allowed");
    }

    fn is_valid(&self) -> bool {
        match &self.credential {
            Credential::Token(hash) => {
                self.access.owner(hash).is_some_and(|owner| Arc::ptr_eq(&owner, &self.rules))
            }
            Credential::Certificate(certificate) => {
                self.access.is_valid(certificate) && self.access.has_rules(&self.rules)
            }
        }
    }

    /// The time until the next check of the credential.
    fn time_left(&self) -> Duration {
        const MAX_WAIT: Duration = Duration::from_hours(24);
        match &self.credential {
            Credential::Token(_) => MAX_WAIT,
            // A little more, so that the certificate has expired by then.
            Credential::Certificate(certificate) => {
                certificate.time_left().min(MAX_WAIT) + Duration::from_millis(10)
            }
        }
    }

    /// Ends as soon as the credential is no longer valid.
    pub async fn revoked(self) {
        let mut changed = self.access.changed.subscribe();
        while self.is_valid() {
            // It cannot be closed: `self.access` holds its sender.
            let _ = tokio::time::timeout(self.time_left(), changed.changed()).await;
        }
        self.access.refusals.record(
            Rule::Credentials,
            &self.identity,
            "the credential is no longer valid: the stream ends",
        );
    }
}
