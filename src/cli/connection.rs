//! The flags of all commands that talk to a gateway, and the connection that they ask for.

use std::{error::Error as _, path::PathBuf, time::Duration};

use clap::Args;
use tokio::time::timeout;
use tonic::{
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use trunkline_client::{Bearer, Builder, CredentialFiles, Credentials};
use trunkline_proto::v1::{
    ListNodesRequest, coordination_service_client::CoordinationServiceClient,
};

use super::{
    failure::{Failure, describe},
    next,
};

/// Limit for opening a connection to a gateway.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest message that is accepted; the gateway bounds the batches of a subscription below it.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// Nodes that the refusal to disturb them names.
const MAX_NAMED: usize = 5;

/// A connection to a gateway.
pub(super) type Client = CoordinationServiceClient<InterceptedService<Channel, Bearer>>;

/// The gateway to connect to.
#[derive(Args)]
pub(super) struct GatewayArgs {
    /// Address of the gateway: 10.0.0.1, 10.0.0.1:7420 or a URL. Several, separated by commas, are
    /// tried in turn
    #[arg(
        long,
        env = "TRUNKLINE_GATEWAY",
        value_name = "ADDRESS",
        default_value = "http://127.0.0.1:7420",
        value_delimiter = ',',
        value_parser = parse_address,
        global = true
    )]
    gateway: Vec<String>,
    /// Authority that signed the gateway's certificate: a PEM file. For https [default: those that
    /// this system trusts]
    #[arg(long, env = "TRUNKLINE_TLS_CA", value_name = "FILE", global = true)]
    tls_ca: Option<PathBuf>,
    #[command(flatten)]
    pub(super) credentials: CredentialArgs,
}

/// The credentials for a gateway that requires them.
#[derive(Args)]
pub(super) struct CredentialArgs {
    /// Client certificate: a PEM file
    #[arg(long, env = "TRUNKLINE_TLS_CERT", value_name = "FILE", global = true)]
    pub(super) tls_cert: Option<PathBuf>,
    /// Private key of the client certificate: a PEM file
    #[arg(long, env = "TRUNKLINE_TLS_KEY", value_name = "FILE", global = true)]
    pub(super) tls_key: Option<PathBuf>,
    /// File with the bearer token; or set `TRUNKLINE_TOKEN` to the token itself
    #[arg(long, env = "TRUNKLINE_TOKEN_FILE", value_name = "FILE", global = true)]
    token_file: Option<PathBuf>,
}

/// The node that this command is for the gateway.
#[derive(Args, Default)]
pub(super) struct NodeArgs {
    /// This node's id [default: cli-<process id>]
    #[arg(long, global = true)]
    node_id: Option<String>,
}

impl NodeArgs {
    pub(super) fn id(&self) -> String {
        self.node_id.clone().unwrap_or_else(|| format!("cli-{}", std::process::id()))
    }
}

impl GatewayArgs {
    /// The addresses of the gateways, as they were given.
    pub(super) fn address(&self) -> String {
        self.gateway.join(", ")
    }

    /// The URLs of the gateways.
    pub(super) fn urls(&self, credentials: &Credentials) -> Result<Vec<String>, Failure> {
        self.gateway.iter().map(|address| url(address, credentials)).collect()
    }

    /// The addresses of the gateways, one by one.
    pub(super) fn addresses(&self) -> &[String] {
        &self.gateway
    }

    /// Connects to one of [`GatewayArgs::addresses`].
    pub(super) async fn connect_to(&self, address: &str) -> Result<Client, Failure> {
        let credentials = self.credentials()?;
        match connect(url(address, &credentials)?, &credentials).await {
            Err(Failure::Other(why)) => Err(Failure::Unavailable { address: address.into(), why }),
            other => other,
        }
    }

    /// Connects to the first of the gateways that can be reached.
    pub(super) async fn connect(&self) -> Result<Client, Failure> {
        let credentials = self.credentials()?;
        let mut errors = Vec::new();
        for (address, url) in self.gateway.iter().zip(self.urls(&credentials)?) {
            match connect(url, &credentials).await {
                Ok(client) => return Ok(client),
                Err(Failure::Other(why)) if self.gateway.len() == 1 => errors.push(why),
                Err(Failure::Other(why)) => errors.push(format!("{address}: {why}")),
                Err(other) => return Err(other),
            }
        }
        Err(Failure::Unavailable { address: self.address(), why: errors.join("; ") })
    }

    /// Refuses to disturb the nodes that are connected by events of this type, unless `yes` is
    /// given.
    pub(super) async fn refuse_to_disturb(
        &self,
        event_type: &str,
        yes: bool,
    ) -> Result<(), Failure> {
        let mut client = self.connect().await?;
        if yes {
            return Ok(());
        }
        let request = ListNodesRequest { page_size: 1_000, ..ListNodesRequest::default() };
        let page = client.list_nodes(request).await?.into_inner();
        let Some(last) = page.nodes.len().checked_sub(1) else { return Ok(()) };
        let named = page.nodes.iter().take(MAX_NAMED).map(|node| node.node_id.as_str());
        let named = named.collect::<Vec<_>>().join(", ");
        let (count, more) = match last + 1 {
            _ if !page.next_page_token.is_empty() => ("more than 1000 nodes".to_owned(), ", ..."),
            1 => ("1 node".to_owned(), ""),
            count if count > MAX_NAMED => (format!("{count} nodes"), ", ..."),
            count => (format!("{count} nodes"), ""),
        };
        Err(Failure::Usage(format!(
            "connected: {count} ({named}{more}). Those without a filter of custom types would \
             receive every event of {event_type}; give --yes to continue"
        )))
    }

    /// A client that reconnects by itself.
    pub(super) fn client(&self, node: &NodeArgs) -> Result<Builder, Failure> {
        Ok(self.builder(node.id())?.in_order())
    }

    /// As [`GatewayArgs::client`], for the node with this id.
    pub(super) fn builder(&self, node_id: String) -> Result<Builder, Failure> {
        let credentials = self.credentials()?;
        let builder = trunkline_client::Client::builder(node_id);
        let builder = builder.gateways(self.urls(&credentials)?).credentials(credentials);
        // They may be replaced while a command runs, for weeks perhaps.
        Ok(builder.credential_files(self.files()))
    }

    /// The credentials that flags and environment variables name.
    pub(super) fn credentials(&self) -> Result<Credentials, Failure> {
        self.credentials.with(&self.files())
    }

    fn files(&self) -> CredentialFiles {
        CredentialFiles { ca: self.tls_ca.clone(), ..self.credentials.files() }
    }
}

impl CredentialArgs {
    /// Reads the files. A token is never a flag, since every user of the machine can read the
    /// command lines of processes.
    pub(super) fn read(&self) -> Result<Credentials, Failure> {
        self.with(&self.files())
    }

    fn files(&self) -> CredentialFiles {
        CredentialFiles {
            ca: None,
            certificate: self.tls_cert.clone().zip(self.tls_key.clone()),
            token: self.token_file.clone(),
        }
    }

    fn with(&self, files: &CredentialFiles) -> Result<Credentials, Failure> {
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            let why = "--tls-cert and --tls-key: one is of no use without the other";
            return Err(Failure::Usage(why.into()));
        }
        let credentials = files.credentials().map_err(Failure::Usage)?;
        let token = std::env::var("TRUNKLINE_TOKEN").ok().filter(|token| !token.is_empty());
        match token.filter(|_| self.token_file.is_none()) {
            Some(token) => credentials.token(&token).map_err(Failure::Usage),
            None => Ok(credentials),
        }
    }
}

/// The URL of a gateway's address.
fn url(address: &str, credentials: &Credentials) -> Result<String, Failure> {
    let wrong = |why| Failure::Usage(format!("--gateway {address}: {why}"));
    credentials.url(address).map_err(wrong)
}

async fn connect(url: String, credentials: &Credentials) -> Result<Client, Failure> {
    let tls = url.starts_with("https:");
    let endpoint = Endpoint::from_shared(url).map_err(|error| Failure::Usage(error.to_string()))?;
    let endpoint = credentials.apply(endpoint).map_err(Failure::Usage)?;
    let channel = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .connect()
        .await
        .map_err(|error| Failure::Other(describe(&error)))?;
    speaks_grpc(channel.clone(), tls).await.map_err(Failure::Other)?;
    let client = CoordinationServiceClient::with_interceptor(channel, credentials.bearer());
    Ok(client.max_decoding_message_size(MAX_MESSAGE))
}

/// Fails if what listens there does not speak gRPC, or not in this way: a connection is opened
/// before the other side has said anything. Any answer will do; every caller may ask for health.
async fn speaks_grpc(channel: Channel, tls: bool) -> Result<(), String> {
    let check = HealthCheckRequest::default();
    let mut client = HealthClient::new(channel);
    match timeout(CONNECT_TIMEOUT, client.check(check)).await {
        Err(_) => Err(format!("no answer within {CONNECT_TIMEOUT:?}")),
        // tonic made this status because the connection broke.
        Ok(Err(status)) if status.source().is_some() => {
            let what = if tls { next::CLOSED_AFTER_TLS } else { next::NOT_GRPC };
            Err(format!("{what} ({})", describe(&status)))
        }
        Ok(_) => Ok(()),
    }
}

/// The address of a gateway, if it is one.
pub(super) fn parse_address(text: &str) -> Result<String, String> {
    let like = "like 10.0.0.1, 10.0.0.1:7420, http://10.0.0.1:7420 or https://gateway:7420";
    match Credentials::new().url(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(why) => Err(format!("{why}; an address is {like}")),
    }
}
