#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]
//!
//! # Errors
//!
//! An [`Error`] has a [kind](ErrorKind) that tells what to do about it:
//!
//! ```
//! use std::time::Duration;
//!
//! use trunkline_client::{Client, ErrorKind, v1::QueueRefresh};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), trunkline_client::Error> {
//! // No gateway is there.
//! let client = Client::builder("mx1.example.org")
//!     .gateway("127.0.0.1:1")
//!     .publish_timeout(Duration::from_millis(100))
//!     .build()?;
//! let error = client.publish([QueueRefresh {}]).await.expect_err("no gateway");
//! assert_eq!(error.kind(), ErrorKind::Unavailable);
//! # Ok(())
//! # }
//! ```

mod backoff;
mod builder;
mod credentials;
mod error;
mod files;
mod interest;
mod mutex;
mod publish;
mod publisher;
mod recent;
mod session;
mod subscribe;

use std::{
    sync::{
        Arc, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tonic::{
    Code, Status,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};
use trunkline_proto::v1::coordination_service_client::CoordinationServiceClient;

pub use builder::Builder;
pub use credentials::{Bearer, Credentials};
pub use error::{Error, ErrorKind};
pub use files::CredentialFiles;
pub use interest::{Interest, InterestChange, Progress};
pub use publisher::{
    Acknowledgement, Publisher, PublisherOptions, Unacknowledged, Waiting, WhenFull,
};
pub use recent::RecentEvents;
pub use subscribe::{Notification, SubscribeOptions, Subscription};
pub use trunkline_proto::{kinds, v1};

use self::{files::Renewal, mutex::Mutex};

/// Larger than the largest batch of a gateway.
const MAX_MESSAGE: usize = 16 << 20;

/// A node's connection to the gateways. Clones share the connections: one to each gateway that was
/// needed.
#[derive(Clone, Debug)]
pub struct Client {
    node_id: String,
    incarnation: String,
    version: String,
    roles: Vec<String>,
    publish_timeout: Duration,
    attempt_timeout: Duration,
    reconnect_wait: Duration,
    /// One for each gateway. They connect when first used, and again after a loss.
    gateways: Vec<Gateway>,
    /// Where credentials are in files. Clones share it.
    renewal: Option<Arc<Renewal>>,
    /// The index of the gateway that worked last: the next attempt begins there. Clones share it.
    preferred: Arc<AtomicUsize>,
}

#[derive(Clone, Debug)]
struct Gateway {
    address: String,
    /// Host and port, as gateways name one another.
    authority: String,
    /// Its id, once it has said it. Clones share it.
    id: Arc<Mutex<Option<String>>>,
    /// How it is connected to, but for the credentials.
    endpoint: Endpoint,
    /// Clones share it.
    channel: Arc<Mutex<Connection>>,
}

/// The connection to a gateway, with the token of the requests.
type Connection = InterceptedService<Channel, Bearer>;

impl Gateway {
    /// Connects with these credentials when it is used next. Streams that are open stay open.
    fn connect_with(&self, credentials: &Credentials) -> Result<(), String> {
        let channel = connection(&self.endpoint, credentials)?;
        *self.channel.lock() = channel;
        Ok(())
    }

    /// Its id, once it has said it.
    fn id(&self) -> MutexGuard<'_, Option<String>> {
        self.id.lock()
    }
}

/// A connection that is made when it is used first.
fn connection(endpoint: &Endpoint, credentials: &Credentials) -> Result<Connection, String> {
    let channel = credentials.apply(endpoint.clone())?.connect_lazy();
    Ok(InterceptedService::new(channel, credentials.bearer()))
}

impl Client {
    /// Begins a client for the node with this id: at most 128 bytes, unique in the cluster, and the
    /// same after a restart.
    pub fn builder(node_id: impl Into<String>) -> Builder {
        Builder::new(node_id.into())
    }

    /// The same connections, for another node.
    #[must_use]
    pub fn for_node(&self, node_id: impl Into<String>) -> Client {
        Client { node_id: node_id.into(), ..self.clone() }
    }

    /// The status of a gateway: of the one that worked last, else of the next one that answers.
    ///
    /// # Errors
    ///
    /// That of the last gateway, if none answers.
    pub async fn status(&self) -> Result<v1::GetStatusResponse, Error> {
        let (first, mut last) = (self.preferred(), Status::unavailable("no gateway"));
        for number in first..first + self.gateways.len() {
            let (mut gateway, _) = self.gateway(number);
            let asked = gateway.get_status(v1::GetStatusRequest {});
            match tokio::time::timeout(self.attempt_timeout, asked).await {
                Ok(Ok(status)) => {
                    self.works(number);
                    return Ok(status.into_inner());
                }
                Ok(Err(status)) => last = status,
                Err(_) => last = Status::deadline_exceeded("no answer in time"),
            }
        }
        Err(Error::new(error::final_kind(&last).unwrap_or(ErrorKind::Unavailable), last))
    }

    /// The node's id.
    pub fn node_id(&self) -> &str {
        &self.node_id
    }

    /// The identity of this start of the node's process.
    pub fn incarnation(&self) -> &str {
        &self.incarnation
    }

    /// The gateway with this number, and how often the credentials had changed until then. Attempts
    /// count up through the gateways, round and round.
    fn gateway(&self, number: usize) -> (CoordinationServiceClient<Connection>, u64) {
        let changes = self.renew(false);
        let channel = self.gateways[number % self.gateways.len()].channel.lock().clone();
        let client = CoordinationServiceClient::new(channel);
        (client.max_decoding_message_size(MAX_MESSAGE), changes)
    }

    /// Looks whether files of credentials have changed: each second at most, unless `at_once`. New
    /// requests have what is in them then. The number of changes until now.
    fn renew(&self, at_once: bool) -> u64 {
        let Some(renewal) = &self.renewal else { return 0 };
        renewal.look(at_once, |credentials| {
            self.gateways.iter().try_for_each(|gateway| gateway.connect_with(credentials))
        })
    }

    /// The kind of a status that is final for a request which was sent after so many changes of
    /// the credentials: one that was refused for those of before is sent again with new ones.
    fn final_kind(&self, status: &Status, changes: u64) -> Option<ErrorKind> {
        let kind = error::final_kind(status)?;
        let is_renewed = status.code() == Code::Unauthenticated && self.renew(true) != changes;
        (!is_renewed).then_some(kind)
    }

    fn address(&self, number: usize) -> &str {
        &self.gateways[number % self.gateways.len()].address
    }

    fn preferred(&self) -> usize {
        self.preferred.load(Ordering::Relaxed)
    }

    /// A gateway has opened a stream, and said its id.
    fn works_as(&self, number: usize, gateway_id: &str) {
        self.works(number);
        let mut id = self.gateways[number % self.gateways.len()].id();
        if id.as_deref() != Some(gateway_id) {
            *id = Some(gateway_id.to_owned());
        }
    }

    fn works(&self, number: usize) {
        self.preferred.store(number % self.gateways.len(), Ordering::Relaxed);
    }

    /// The number of the gateway to try after this one: the one that it named, else one that this
    /// client has not used yet, which may be it, and without a name the next one.
    fn after(&self, number: usize, named: Option<&v1::OtherGateway>) -> usize {
        let next = number + 1;
        let Some(named) = named else { return next };
        let mut others = next..next + self.gateways.len() - 1;
        let at = |number: usize| &self.gateways[number % self.gateways.len()];
        let is_named = |number: &usize| {
            let gateway = at(*number);
            (!named.address.is_empty() && gateway.authority == named.address)
                || gateway.id().as_ref() == Some(&named.gateway_id)
        };
        let is_unknown = |number: &usize| at(*number).id().is_none();
        others.clone().find(is_named).or_else(|| others.find(is_unknown)).unwrap_or(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn attempts_use_the_gateways_in_turn_from_the_one_that_worked_last() {
        let client =
            Client::builder("n").gateways(["a:1", "b:2", "c:3"]).in_order().build().expect("built");
        assert_eq!((client.address(client.preferred()), client.address(4)), ("a:1", "b:2"));
        client.works(5);
        assert_eq!(client.clone().address(client.preferred()), "c:3");
    }

    #[tokio::test]
    async fn the_gateway_that_another_one_names_is_next_if_the_client_knows_it() {
        let client = Client::builder("n")
            .gateways(["10.0.0.1:1", "10.0.0.2:2", "10.0.0.3:3"])
            .in_order()
            .build()
            .expect("built");
        let named = |gateway_id: &str, address: &str| v1::OtherGateway {
            gateway_id: gateway_id.into(),
            address: address.into(),
        };
        let after = |number, named: &v1::OtherGateway| {
            client.address(client.after(number, Some(named))).to_owned()
        };
        assert_eq!(client.address(client.after(3, None)), "10.0.0.2:2");
        assert_eq!(after(3, &named("", "10.0.0.3:3")), "10.0.0.3:3");
        // One that it does not know may be any that it has not used.
        client.works_as(0, "a");
        client.works_as(1, "b");
        assert_eq!(after(3, &named("x", "192.0.2.1:1")), "10.0.0.3:3");
        client.works_as(2, "c");
        assert_eq!(after(3, &named("c", "")), "10.0.0.3:3");
        assert_eq!(after(3, &named("x", "192.0.2.1:1")), "10.0.0.2:2");
        // Never itself, unless it is the only one.
        assert_eq!(after(3, &named("a", "")), "10.0.0.2:2");
        let one = Client::builder("n").gateway("10.0.0.1:1").build().expect("built");
        assert_eq!(one.after(5, Some(&named("a", "10.0.0.1:1"))), 6);
    }
}
