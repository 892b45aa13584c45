//! What a node in Rust uses: publishing that is safe to retry, and a stream that reconnects and resumes by itself.
//!
//! Stands on the generated code alone.

mod backoff;
mod publish;
mod subscribe;

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::proto::v1::coordination_service_client::CoordinationServiceClient;

pub use publish::PublishError;
pub use subscribe::{Notification, SubscribeError, SubscribeOptions, Subscription};

/// A node's connection to the gateways. Clones share the connections.
#[derive(Clone, Debug)]
pub struct Client {
    node_id: String,
    incarnation: String,
    roles: Vec<String>,
    publish_timeout: Duration,
    /// One for each gateway; connected when first used, and again after a loss.
    channels: Vec<Channel>,
}

/// Makes a [`Client`].
#[derive(Clone, Debug)]
pub struct Builder {
    node_id: String,
    incarnation: String,
    roles: Vec<String>,
    publish_timeout: Duration,
    connect_timeout: Duration,
    endpoints: Vec<String>,
}

/// An address that is none.
#[derive(Debug, thiserror::Error)]
#[error("{address:?} is no gateway's address: {why}")]
pub struct AddressError {
    address: String,
    why: String,
}

impl Client {
    /// Begins a client for the node with this id.
    pub fn builder(node_id: impl Into<String>) -> Builder {
        Builder {
            node_id: node_id.into(),
            incarnation: uuid::Uuid::new_v4().to_string(),
            roles: vec![],
            publish_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(2),
            endpoints: vec![],
        }
    }

    /// The gateway of the nth attempt: they are tried in turn.
    fn gateway(&self, attempt: usize) -> CoordinationServiceClient<Channel> {
        let channel = self.channels[attempt % self.channels.len()].clone();
        CoordinationServiceClient::new(channel).max_decoding_message_size(16 * 1024 * 1024)
    }
}

impl Builder {
    /// Adds a gateway: `http://10.0.0.1:7420`. The first one is used while it serves. Default: `http://127.0.0.1:7420`.
    #[must_use]
    pub fn gateway(mut self, address: impl Into<String>) -> Builder {
        self.endpoints.push(address.into());
        self
    }

    /// Adds a role of the node: events may be targeted at roles.
    #[must_use]
    pub fn role(mut self, role: impl Into<String>) -> Builder {
        self.roles.push(role.into());
        self
    }

    /// Identity of this start of the process. Default: a random one.
    #[must_use]
    pub fn incarnation(mut self, incarnation: impl Into<String>) -> Builder {
        self.incarnation = incarnation.into();
        self
    }

    /// How long a publication is tried again before its error is given. Default: 30 s.
    #[must_use]
    pub fn publish_timeout(mut self, timeout: Duration) -> Builder {
        self.publish_timeout = timeout;
        self
    }

    /// How long one connection may take to be made. Default: 2 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Builder {
        self.connect_timeout = timeout;
        self
    }

    /// Makes the client. Nothing is connected before it is used. Must be called within a Tokio runtime.
    ///
    /// # Errors
    ///
    /// An address is none.
    pub fn build(mut self) -> Result<Client, AddressError> {
        if self.endpoints.is_empty() {
            self.endpoints.push("http://127.0.0.1:7420".into());
        }
        let connect = |address: &String| {
            let endpoint = Endpoint::from_shared(address.clone()).map_err(|error| {
                AddressError { address: address.clone(), why: error.to_string() }
            })?;
            Ok(endpoint.connect_timeout(self.connect_timeout).tcp_nodelay(true).connect_lazy())
        };
        Ok(Client {
            channels: self.endpoints.iter().map(connect).collect::<Result<_, AddressError>>()?,
            node_id: self.node_id,
            incarnation: self.incarnation,
            roles: self.roles,
            publish_timeout: self.publish_timeout,
        })
    }
}
