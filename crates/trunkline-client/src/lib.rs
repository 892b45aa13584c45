//! What a node in Rust uses: publishing that is safe to retry, and a stream that reconnects and resumes by itself.
//!
//! ```no_run
//! use trunkline_client::{
//!     Client, Notification, SubscribeOptions,
//!     proto::v1::{ChangedType, EventKind, MailboxChange},
//! };
//!
//! # async fn example() -> Result<(), trunkline_client::Error> {
//! let client = Client::builder("mx1.example.org")
//!     .gateway("http://10.0.0.1:7420")
//!     .gateway("http://10.0.0.2:7420")
//!     .role("imap")
//!     .build()?;
//!
//! let change = MailboxChange {
//!     account_id: "a1".into(),
//!     change_id: 7,
//!     changed_types: vec![ChangedType::Email.into()],
//! };
//! client.publish([change]).await?;
//!
//! let mut events = client.subscribe(SubscribeOptions::new().kind(EventKind::MailboxChange));
//! while let Some(notification) = events.next().await {
//!     match notification? {
//!         Notification::Event(event) => println!("{}: {:?}", event.source, event.kind),
//!         // Something will not come: load again what it may have concerned.
//!         Notification::Gap(gap) => println!("missed {:?} events", gap.missed_events),
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! `examples/mail_server.rs` is a whole node. This module stands on the generated code alone: it can be copied out of here.

mod backoff;
mod credentials;
mod error;
mod publish;
mod session;
mod subscribe;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tonic::{
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

use trunkline_proto::v1::coordination_service_client::CoordinationServiceClient;

pub use credentials::{Bearer, Credentials};
pub use error::{Error, ErrorKind};
pub use subscribe::{Notification, SubscribeOptions, Subscription};
/// The messages of the wire API, so that a node needs no other dependency.
pub use trunkline_proto as proto;

/// The gateway that is used where none is given.
const DEFAULT_GATEWAY: &str = "http://127.0.0.1:7420";

/// Larger than the largest batch that a gateway sends.
const MAX_MESSAGE: usize = 16 << 20;

/// What one stream may hold in the connection while nobody reads it. The connection holds many times that: a subscription
/// that is not read does not hold up what is published beside it.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// A connection on which nothing comes back is given up after these two together.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// A node's connection to the gateways. Clones share the connections: one to each gateway that was needed.
#[derive(Clone, Debug)]
pub struct Client {
    node_id: String,
    incarnation: String,
    version: String,
    roles: Vec<String>,
    publish_timeout: Duration,
    attempt_timeout: Duration,
    /// One for each gateway; connected when first used, and again after a loss.
    gateways: Vec<Gateway>,
    /// Which of them worked last: the next attempt begins there. Shared, so that nobody finds out twice.
    preferred: Arc<AtomicUsize>,
}

#[derive(Clone, Debug)]
struct Gateway {
    address: String,
    channel: InterceptedService<Channel, Bearer>,
}

/// Makes a [`Client`]: see [`Client::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    node_id: String,
    incarnation: String,
    version: String,
    roles: Vec<String>,
    publish_timeout: Duration,
    attempt_timeout: Duration,
    connect_timeout: Duration,
    addresses: Vec<String>,
    credentials: Credentials,
}

impl Client {
    /// Begins a client for the node with this id: at most 128 bytes, its own in the cluster, and the same after a restart.
    pub fn builder(node_id: impl Into<String>) -> Builder {
        Builder {
            node_id: node_id.into(),
            incarnation: uuid::Uuid::new_v4().to_string(),
            version: concat!("trunkline-client ", env!("CARGO_PKG_VERSION")).to_owned(),
            roles: vec![],
            publish_timeout: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(2),
            addresses: vec![],
            credentials: Credentials::default(),
        }
    }

    /// The node's id.
    pub fn node_id(&self) -> &str {
        &self.node_id
    }

    /// Identity of this start of the node's process.
    pub fn incarnation(&self) -> &str {
        &self.incarnation
    }

    /// The gateway with this number; they are taken in turn.
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

impl Builder {
    /// Adds a gateway, `http://10.0.0.1:7420`, `https://gateway.example.org:7420` or `10.0.0.1:7420`. The first one is used as long as it serves, then the next
    /// one, in turn; give each node another first one to spread them. Default: `http://127.0.0.1:7420` alone.
    #[must_use]
    pub fn gateway(mut self, address: impl Into<String>) -> Builder {
        self.addresses.push(address.into());
        self
    }

    /// Adds several gateways, as [`Builder::gateway`] does one.
    #[must_use]
    pub fn gateways<A: Into<String>>(mut self, addresses: impl IntoIterator<Item = A>) -> Builder {
        self.addresses.extend(addresses.into_iter().map(Into::into));
        self
    }

    /// How the node proves who it is, and which gateways it trusts. Default: none.
    #[must_use]
    pub fn credentials(mut self, credentials: Credentials) -> Builder {
        self.credentials = credentials;
        self
    }

    /// Adds a role of the node (`imap`, `mta`): events may be targeted at roles. Default: none.
    #[must_use]
    pub fn role(mut self, role: impl Into<String>) -> Builder {
        self.roles.push(role.into());
        self
    }

    /// What runs on the node, for people who look at the list of nodes (`imapd 2.4.1`); at most 128 bytes. Default: this
    /// library's version.
    #[must_use]
    pub fn client_version(mut self, version: impl Into<String>) -> Builder {
        self.version = version.into();
        self
    }

    /// Identity of this start of the process, at most 128 bytes: two live processes with one node id are told apart by it. Default:
    /// a random one.
    #[must_use]
    pub fn incarnation(mut self, incarnation: impl Into<String>) -> Builder {
        self.incarnation = incarnation.into();
        self
    }

    /// How long a publication is tried again, on all gateways in turn, before its error is given. Must be shorter than the
    /// gateways' `requestIdWindow`, or the last attempts may publish twice. Default: 30 s.
    #[must_use]
    pub fn publish_timeout(mut self, timeout: Duration) -> Builder {
        self.publish_timeout = timeout;
        self
    }

    /// How long one gateway may take to answer before the next one is tried. Default: 5 s.
    #[must_use]
    pub fn attempt_timeout(mut self, timeout: Duration) -> Builder {
        self.attempt_timeout = timeout;
        self
    }

    /// How long one connection may take to be made. Default: 2 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Builder {
        self.connect_timeout = timeout;
        self
    }

    /// Makes the client. Nothing is connected before it is used.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Address`]: an address is none.
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime.
    pub fn build(mut self) -> Result<Client, Error> {
        if self.addresses.is_empty() {
            self.addresses.push(DEFAULT_GATEWAY.into());
        }
        let connect = |address: &String| {
            let endpoint = endpoint(address)
                .and_then(|endpoint| self.credentials.apply(endpoint))
                .map_err(|why| Error::address(address, &why))?;
            let channel = endpoint
                .connect_timeout(self.connect_timeout)
                .tcp_nodelay(true)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .http2_keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT)
                .connect_lazy();
            let channel = InterceptedService::new(channel, self.credentials.bearer());
            Ok(Gateway { address: address.clone(), channel })
        };
        Ok(Client {
            gateways: self.addresses.iter().map(connect).collect::<Result<_, Error>>()?,
            preferred: Arc::default(),
            node_id: self.node_id,
            incarnation: self.incarnation,
            version: self.version,
            roles: self.roles,
            publish_timeout: self.publish_timeout,
            attempt_timeout: self.attempt_timeout,
        })
    }
}

/// The endpoint of an address: a URL, or a host and port alone.
fn endpoint(address: &str) -> Result<Endpoint, String> {
    let url = match address.split_once("://") {
        None => format!("http://{address}"),
        Some(("http" | "https", _)) => address.to_owned(),
        Some(_) => return Err("the scheme must be http or https".into()),
    };
    let endpoint = Endpoint::from_shared(url).map_err(|error| error.to_string())?;
    let uri = endpoint.uri();
    let host = uri.host().unwrap_or_default();
    if host.is_empty() {
        return Err("it names no host".into());
    }
    // What stands after the host is taken for a port only if it is one.
    if uri.port().is_none() && uri.authority().is_some_and(|all| !all.as_str().ends_with(host)) {
        return Err("the port is no number from 1 to 65535".into());
    }
    Ok(endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_are_urls_or_hosts() {
        let build = |address: &str| Client::builder("n").gateway(address).build();
        for address in
            ["http://10.0.0.1:7420", "10.0.0.1:7420", "gateway.example.org:7420", "[::1]:7420"]
        {
            build(address).expect(address);
        }
        for address in ["", "http://", "https://a:7420", "redis://a", "a b", "http://a:x"] {
            let error = build(address).expect_err(address);
            assert_eq!(error.kind(), ErrorKind::Address, "{address}");
            assert!(
                error.to_string().starts_with(&format!("{address:?} is no gateway's")),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn the_gateways_are_taken_in_turn_from_the_one_that_worked_last() {
        let client = Client::builder("n").gateways(["a:1", "b:2", "c:3"]).build().expect("built");
        assert_eq!((client.address(client.preferred()), client.address(4)), ("a:1", "b:2"));
        client.works(5);
        assert_eq!(client.clone().address(client.preferred()), "c:3");
    }
}
