//! The options of a client.

use std::{sync::Arc, time::Duration};

use rand::seq::SliceRandom;
use tonic::{Status, transport::Endpoint};

use super::{
    Client, CredentialFiles, Credentials, Error, ErrorKind, Gateway, backoff, connection,
    files::Renewal, mutex::Mutex,
};

/// The gateway if none is given.
const DEFAULT_GATEWAY: &str = "http://127.0.0.1:7420";

/// The flow-control window of one stream. That of the connection is many times larger: a
/// subscription that is not read does not hold up publishing on the same connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// The largest flow-control window of a stream: that of the connection is twice as large at least,
/// and HTTP/2 has none of 2 GiB.
const MAX_WINDOW: u32 = 512 << 20;

/// A connection without any answer is closed after these two together.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// The options of a [`Client`]: see [`Client::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    node_id: String,
    incarnation: String,
    version: String,
    roles: Vec<String>,
    publish_timeout: Duration,
    attempt_timeout: Duration,
    reconnect_wait: Duration,
    connect_timeout: Duration,
    stream_window: u32,
    addresses: Vec<String>,
    in_order: bool,
    credentials: Credentials,
    files: CredentialFiles,
}

impl Builder {
    pub(super) fn new(node_id: String) -> Builder {
        Builder {
            node_id,
            incarnation: uuid::Uuid::new_v4().to_string(),
            version: concat!("trunkline-client ", env!("CARGO_PKG_VERSION")).to_owned(),
            roles: vec![],
            publish_timeout: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(5),
            reconnect_wait: backoff::MAX,
            connect_timeout: Duration::from_secs(2),
            stream_window: STREAM_WINDOW,
            addresses: vec![],
            in_order: false,
            credentials: Credentials::default(),
            files: CredentialFiles::default(),
        }
    }

    /// Adds a gateway: `https://gateway.example.org`, `http://10.0.0.1:7420`, or `10.0.0.1` (see
    /// [`Credentials::url`]). One is used as long as it serves, then the next one, in turn; each
    /// client has a random order, so that nodes spread over the gateways: see
    /// [`Builder::in_order`]. Default: `http://127.0.0.1:7420` alone.
    #[must_use]
    pub fn gateway(mut self, address: impl Into<String>) -> Builder {
        self.addresses.push(address.into());
        self
    }

    /// Adds several gateways; see [`Builder::gateway`].
    #[must_use]
    pub fn gateways<A: Into<String>>(mut self, addresses: impl IntoIterator<Item = A>) -> Builder {
        self.addresses.extend(addresses.into_iter().map(Into::into));
        self
    }

    /// Uses the gateways in the order in which they were added: the first one as long as it serves.
    #[must_use]
    pub fn in_order(mut self) -> Builder {
        self.in_order = true;
        self
    }

    /// Sets the node's credentials, and the authorities that it trusts. Default: none.
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

    /// Sets the name and version of the node's software, which the list of nodes shows (`imapd
    /// 2.4.1`); at most 128 bytes. Default: this library's version.
    #[must_use]
    pub fn client_version(mut self, version: impl Into<String>) -> Builder {
        self.version = version.into();
        self
    }

    /// Sets the identity of this start of the process, at most 128 bytes. It distinguishes two live
    /// processes with the same node id. Default: a random one.
    #[must_use]
    pub fn incarnation(mut self, incarnation: impl Into<String>) -> Builder {
        self.incarnation = incarnation.into();
        self
    }

    /// Sets the time after which publishing fails; until then it is retried, on all gateways in
    /// turn. Must be shorter than the gateways' `requestIdWindow`, or the last attempts may publish
    /// twice. Default: 30 s.
    #[must_use]
    pub fn publish_timeout(mut self, timeout: Duration) -> Builder {
        self.publish_timeout = timeout;
        self
    }

    /// Sets the time after which an attempt is given up and the next gateway is tried. Default: 5
    /// s.
    #[must_use]
    pub fn attempt_timeout(mut self, timeout: Duration) -> Builder {
        self.attempt_timeout = timeout;
        self
    }

    /// Sets the longest wait between two attempts, unless a gateway asks for a longer one. With
    /// many nodes, short waits are many attempts while no gateway serves. Default: 2 s.
    #[must_use]
    pub fn reconnect_wait(mut self, wait: Duration) -> Builder {
        self.reconnect_wait = wait;
        self
    }

    /// Sets the timeout for connecting. Default: 2 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Builder {
        self.connect_timeout = timeout;
        self
    }

    /// Sets how many bytes a gateway may send on one stream before the node has read them. Over a
    /// long line, no more than this comes in one round trip. Default: 1 MiB.
    #[must_use]
    pub fn stream_window(mut self, bytes: u32) -> Builder {
        self.stream_window = bytes.clamp(STREAM_WINDOW, MAX_WINDOW);
        self
    }

    /// Reads credentials from files, which may be replaced while the client runs: certificates
    /// that are renewed, tokens that are rotated. They come in place of what
    /// [`Builder::credentials`] has. Default: none.
    ///
    /// The files are looked at when a request is made or a stream opened, once a second at most;
    /// streams that are open stay open. A stream that a gateway ends since its token or
    /// certificate is not valid any more is opened again if the files have another one by then.
    /// Files that cannot be read or used are passed over until they can be.
    #[must_use]
    pub fn credential_files(mut self, files: CredentialFiles) -> Builder {
        self.files = files;
        self
    }

    /// Builds the client. It connects when it is first used.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Address`] if an address is not valid, and [`ErrorKind::Denied`] if a file of
    /// credentials cannot be read.
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime.
    pub fn build(mut self) -> Result<Client, Error> {
        if self.addresses.is_empty() {
            self.addresses.push(DEFAULT_GATEWAY.into());
        }
        if !self.in_order {
            self.addresses.shuffle(&mut rand::rng());
        }
        let (renewal, credentials) = if self.files.any() {
            let read = Renewal::new(self.files, self.credentials);
            let (renewal, first) =
                read.map_err(|why| Error::new(ErrorKind::Denied, Status::unauthenticated(why)))?;
            (Some(Arc::new(renewal)), first)
        } else {
            (None, self.credentials)
        };
        let connect = |address: &String| {
            let wrong = |why: String| Error::address(address, &why);
            let endpoint = credentials
                .url(address)
                .and_then(|url| Endpoint::from_shared(url).map_err(|error| error.to_string()))
                .map_err(wrong)?;
            let authority = endpoint.uri().authority().map(ToString::to_string);
            let endpoint = endpoint
                .connect_timeout(self.connect_timeout)
                .tcp_nodelay(true)
                .initial_stream_window_size(self.stream_window)
                .initial_connection_window_size(CONNECTION_WINDOW.max(2 * self.stream_window))
                .http2_keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT);
            let channel = connection(&endpoint, &credentials).map_err(wrong)?;
            let channel = Arc::new(Mutex::new(channel));
            let (address, authority) = (address.clone(), authority.unwrap_or_default());
            Ok(Gateway { address, authority, id: Arc::default(), endpoint, channel })
        };
        Ok(Client {
            gateways: self.addresses.iter().map(connect).collect::<Result<_, Error>>()?,
            renewal,
            preferred: Arc::default(),
            node_id: self.node_id,
            incarnation: self.incarnation,
            version: self.version,
            roles: self.roles,
            publish_timeout: self.publish_timeout,
            attempt_timeout: self.attempt_timeout,
            reconnect_wait: self.reconnect_wait,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[tokio::test]
    async fn clients_spread_over_the_gateways_unless_these_are_in_order() {
        let addresses = ["a:1", "b:2", "c:3", "d:4"];
        let order = |builder: Builder| -> Vec<String> {
            let client = builder.gateways(addresses).build().expect("built");
            (0..addresses.len()).map(|number| client.address(number).to_owned()).collect()
        };
        let mut first: Vec<String> = Vec::new();
        // Each is first with a probability of 1/4: one that never is would be one of 10^12 runs.
        for _ in 0..100 {
            let mut all = order(Client::builder("n"));
            first.push(all[0].clone());
            all.sort();
            assert_eq!(all, addresses);
        }
        first.sort();
        first.dedup();
        assert_eq!(first, addresses);
        assert_eq!(order(Client::builder("n").in_order()), addresses);
    }

    #[tokio::test]
    async fn addresses_are_urls_or_hosts() {
        let build = |address: &str| Client::builder("n").gateway(address).build();
        for address in
            ["http://10.0.0.1:7420", "10.0.0.1:7420", "gateway.example.org", "[::1]:7420"]
        {
            build(address).expect(address);
        }
        for address in ["", "http://", "redis://a", "a b", "http://a:x"] {
            let error = build(address).expect_err(address);
            assert_eq!(error.kind(), ErrorKind::Address, "{address}");
            assert!(
                error.to_string().starts_with(&format!("{address:?} is no gateway's")),
                "{error}"
            );
        }
    }
}
