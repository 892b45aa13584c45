//! What a request may do, and for how long.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use tonic::Status;

use super::{
    Access, PeerCertificate,
    rules::{Rule, Rules, refused, violation},
};
use crate::{
    config::TokenHash,
    hub::scope::Scope,
    proto::v1,
    server::{
        error::{Error, Unproven},
        validate::Stamped,
    },
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

    /// Whether a stream may be opened in the name of a node, with this filter.
    pub fn check_subscribe(&self, node_id: &str, filter: &v1::Filter) -> Result<(), Error> {
        self.rules
            .check_node_id(&self.identity, node_id)
            .inspect_err(|_| self.note(Rule::NodeIds))?;
        self.rules.check_filter(filter).inspect_err(|_| self.note(Rule::Receive))
    }

    /// Whether a stream may explain what it leaves out: that would tell of events that its identity may not receive.
    pub fn check_explain(&self, explain: bool) -> Result<(), Error> {
        if !explain {
            return Ok(());
        }
        self.note(Rule::Receive);
        let what = "would tell of events that this identity may not receive";
        Err(refused(Rule::Receive, vec![violation("explain", what)]))
    }

    /// What a stream may deliver.
    pub fn receive(&self) -> &Arc<Scope> {
        &self.rules.receive
    }

    /// A stream that ends with an error as soon as what proved its sender is not valid any more.
    pub fn guard<S: Stream>(self, stream: S) -> Guarded<S> {
        Guarded { stream: Box::pin(stream), revoked: Some(Box::pin(self.revoked())) }
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

    async fn revoked(self) {
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

/// See [`Permit::guard`].
pub struct Guarded<S> {
    stream: Pin<Box<S>>,
    /// None: it was told.
    revoked: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<S: Stream<Item = Result<T, Status>>, T> Stream for Guarded<S> {
    type Item = Result<T, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let Some(revoked) = &mut this.revoked else { return Poll::Ready(None) };
        if revoked.as_mut().poll(cx).is_ready() {
            this.revoked = None;
            return Poll::Ready(Some(Err(Error::Unproven(Unproven::Revoked).into())));
        }
        this.stream.as_mut().poll_next(cx)
    }
}
