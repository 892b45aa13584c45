//! The flags of all commands that talk to a gateway, and the connection that they ask for.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use tonic::{
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};
use trunkline_client::{Bearer, Credentials};
use trunkline_proto::v1::coordination_service_client::CoordinationServiceClient;

use super::failure::{Failure, describe};

/// Limit for opening a connection to a gateway.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest message that is accepted; the gateway bounds the batches of a subscription below it.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// A connection to a gateway.
pub(super) type Client = CoordinationServiceClient<InterceptedService<Channel, Bearer>>;

/// The gateway to connect to.
#[derive(Args)]
#[allow(clippy::struct_field_names)] // the names of fields are those of flags
pub(super) struct GatewayArgs {
    /// Address of the gateway: 10.0.0.1:7420, or a URL
    #[arg(
        long,
        env = "TRUNKLINE_GATEWAY",
        default_value = "http://127.0.0.1:7420",
        value_parser = parse_address,
        global = true
    )]
    pub(super) gateway: String,
    /// Authority that signed the gateway's certificate: a PEM file. For https
    #[arg(long, env = "TRUNKLINE_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    #[command(flatten)]
    credentials: CredentialArgs,
}

/// The credentials for a gateway that requires them.
#[derive(Args)]
pub(super) struct CredentialArgs {
    /// Client certificate: a PEM file
    #[arg(long, env = "TRUNKLINE_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub(super) tls_cert: Option<PathBuf>,
    /// Private key of the client certificate: a PEM file
    #[arg(long, env = "TRUNKLINE_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub(super) tls_key: Option<PathBuf>,
    /// File with the bearer token; or set `TRUNKLINE_TOKEN` to the token itself
    #[arg(long, env = "TRUNKLINE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// The node that this command is for the gateway.
#[derive(Args)]
pub(super) struct NodeArgs {
    /// This node's id [default: cli-<process id>]
    #[arg(long)]
    node_id: Option<String>,
}

impl NodeArgs {
    pub(super) fn id(&self) -> String {
        self.node_id.clone().unwrap_or_else(|| format!("cli-{}", std::process::id()))
    }
}

impl GatewayArgs {
    pub(super) async fn connect(&self) -> Result<Client, Failure> {
        let failed = |why: String| Failure::Unavailable { address: self.gateway.clone(), why };
        let endpoint = Endpoint::from_shared(self.gateway.clone())
            .map_err(|error| failed(error.to_string()))?;
        let credentials = self.credentials()?;
        let endpoint = credentials.apply(endpoint).map_err(Failure::Usage)?;
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .connect()
            .await
            .map_err(|error| failed(describe(&error)))?;
        let client = CoordinationServiceClient::with_interceptor(channel, credentials.bearer());
        Ok(client.max_decoding_message_size(MAX_MESSAGE))
    }

    /// The credentials that flags and environment variables name.
    pub(super) fn credentials(&self) -> Result<Credentials, Failure> {
        let credentials = self.credentials.read()?;
        Ok(match &self.tls_ca {
            Some(path) => credentials.ca_certificate(read(path)?),
            None => credentials,
        })
    }
}

impl CredentialArgs {
    /// Reads the files. A token is never a flag, since every user of the machine can read the
    /// command lines of processes.
    pub(super) fn read(&self) -> Result<Credentials, Failure> {
        let mut credentials = Credentials::new();
        if let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) {
            credentials = credentials.client_certificate(read(certificate)?, read(key)?);
        }
        let token = match &self.token_file {
            Some(path) => Some(String::from_utf8_lossy(&read(path)?).into_owned()),
            None => std::env::var("TRUNKLINE_TOKEN").ok().filter(|token| !token.is_empty()),
        };
        if let Some(token) = token {
            credentials = credentials.token(&token).map_err(Failure::Usage)?;
        }
        Ok(credentials)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))
}

/// The URL of a gateway, from a URL or from a host and port.
fn parse_address(text: &str) -> Result<String, String> {
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(
            "must be like 10.0.0.1:7420, http://10.0.0.1:7420 or https://gateway:7420".into()
        );
    }
    let endpoint = Endpoint::from_shared(url.clone()).map_err(|error| error.to_string())?;
    match endpoint.uri().host() {
        None | Some("") => Err("names no host".into()),
        Some(_) => Ok(url),
    }
}
