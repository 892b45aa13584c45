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
mod interest;
mod publish;
mod publisher;
mod recent;
mod session;
mod subscribe;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tonic::{Status, service::interceptor::InterceptedService, transport::Channel};
use trunkline_proto::v1::coordination_service_client::CoordinationServiceClient;

pub use builder::Builder;
pub use credentials::{Bearer, Credentials};
pub use error::{Error, ErrorKind};
pub use interest::{Interest, InterestChange, Progress};
pub use publisher::{
    Acknowledgement, Publisher, PublisherOptions, Unacknowledged, Waiting, WhenFull,
};
pub use recent::RecentEvents;
pub use subscribe::{Notification, SubscribeOptions, Subscription};
pub use trunkline_proto::{kinds, v1};

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
    /// The index of the gateway that worked last: the next attempt begins there. Clones share it.
    preferred: Arc<AtomicUsize>,
}

#[derive(Clone, Debug)]
struct Gateway {
    address: String,
    channel: InterceptedService<Channel, Bearer>,
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
            let mut gateway = self.gateway(number);
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

    /// The gateway with this number. Attempts count up through the gateways, round and round.
    fn gateway(
        &self,
        number: usize,
    ) -> CoordinationServiceClient<InterceptedService<Channel, Bearer>> {
        let gateway = &self.gateways[number % self.gateways.len()];
        CoordinationServiceClient::new(gateway.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
    }

    fn address(&self, number: usize) -> &str {
        &self.gateways[number % self.gateways.len()].address
    }

    fn preferred(&self) -> usize {
        self.preferred.load(Ordering::Relaxed)
    }

    fn works(&self, number: usize) {
        self.preferred.store(number % self.gateways.len(), Ordering::Relaxed);
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
}
