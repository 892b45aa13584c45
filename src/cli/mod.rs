//! The command line.

mod bench;
mod check;
mod config;
mod doctor;
mod explain;
mod json;
mod kinds;
mod nodes;
mod publish;
mod serve;
mod status;
mod subscribe;
mod top;

use std::{
    error::Error as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use tonic::{
    Code, Status,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};
use trunkline_client::{Bearer, Credentials};
use trunkline_proto::v1::coordination_service_client::CoordinationServiceClient;

/// How long a connection to a gateway may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Messages of a subscription may be large; the gateway bounds them.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;

const EXAMPLES: &str = "\
Examples:
  trunkline                                          serve on 127.0.0.1:7420 with the embedded bus
  trunkline serve --redis redis://127.0.0.1:6379     serve, with other gateways, over Redis
  trunkline check --config trunkline.json            all errors, or the effective configuration
  trunkline doctor --config trunkline.json           look at Redis and all else, and say what to do
  trunkline subscribe | jq .mailboxChange            watch events, one JSON object a line
  trunkline publish mailbox-change --account a1 --change-id 7 --types email
  trunkline subscribe --max-events 10 | trunkline publish -
  trunkline status
  trunkline bench --rate 1000 --subscribers 100      the latency of a gateway at a steady rate

Exit codes:
  0   done
  1   failed for another reason
  2   the command line is wrong
  3   the gateway refused the request: something in it is wrong
  69  the gateway or its bus is not available
  78  the configuration is wrong";

/// Keeps the servers of a cluster in step: a gRPC gateway over Redis pub/sub.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a gateway (what `trunkline` alone does)
    Serve(serve::Serve),
    /// Reports all errors of a configuration, or prints the effective one, without secrets
    Check(check::Check),
    /// Prints the JSON Schema of the configuration, or the effective configuration
    Config(config::Config),
    /// Looks at a deployment from here, and says what is wrong and what to do
    Doctor(doctor::Doctor),
    /// Publishes events
    Publish(publish::Publish),
    /// Prints events as they come, one JSON object a line
    Subscribe(subscribe::Subscribe),
    /// Says whether a node gets an event, and if not, why not
    Explain(explain::Explain),
    /// Says how a gateway does
    Status(status::Status),
    /// Lists the nodes that hold a stream
    Nodes(nodes::Nodes),
    /// Shows how a gateway and its nodes do, live
    Top(top::Top),
    /// Loads a gateway, and says what it makes of it
    Bench(bench::Bench),
}

/// A connection to a gateway.
type Client = CoordinationServiceClient<InterceptedService<Channel, Bearer>>;

/// Which gateway is talked to.
#[derive(Args)]
#[allow(clippy::struct_field_names)] // the names of fields are those of flags
struct Gateway {
    /// Address of the gateway: 10.0.0.1:7420, or a URL
    #[arg(
        long,
        env = "TRUNKLINE_GATEWAY",
        default_value = "http://127.0.0.1:7420",
        value_parser = parse_gateway,
        global = true
    )]
    gateway: String,
    /// Who signs the gateway's certificate: a PEM file. For https
    #[arg(long, env = "TRUNKLINE_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    #[command(flatten)]
    proof: Proof,
}

/// What is shown to a gateway that asks who this is.
#[derive(Args)]
struct Proof {
    /// The certificate to show to the gateway: a PEM file
    #[arg(long, env = "TRUNKLINE_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The key of that certificate: a PEM file
    #[arg(long, env = "TRUNKLINE_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The file with the token to show to the gateway; or set `TRUNKLINE_TOKEN` to the token itself
    #[arg(long, env = "TRUNKLINE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Who this is.
#[derive(Args)]
struct Node {
    /// This node's id [default: cli-<process id>]
    #[arg(long)]
    node_id: Option<String>,
}

impl Node {
    fn id(&self) -> String {
        self.node_id.clone().unwrap_or_else(|| format!("cli-{}", std::process::id()))
    }
}

/// Why a command did not do what it was to do.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Something else.
    #[error("{0}")]
    Other(String),
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// The input is wrong.
    #[error("{0}")]
    Input(String),
    /// The configuration is wrong.
    #[error("{0}")]
    Configuration(String),
    /// There is no gateway.
    #[error("{address}: {why}")]
    NoGateway { address: String, why: String },
    /// The gateway answered with an error.
    #[error("{:?}: {}", .0.code(), .0.message())]
    Gateway(#[from] Status),
    /// Nobody reads what is printed any more, which is no error.
    #[error("the reader went away")]
    BrokenPipe,
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Failure::Other(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Input(_) => 3,
            Failure::Configuration(_) => 78,
            Failure::NoGateway { .. } => 69,
            Failure::Gateway(status) => match status.code() {
                Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated => 3,
                Code::Unavailable => 69,
                // The connection broke: this is no gateway's word.
                _ if status.source().is_some() => 69,
                _ => 1,
            },
            Failure::BrokenPipe => 0,
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Failure::BrokenPipe;
        }
        Failure::Other(error.to_string())
    }
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let mut cli = Cli::parse();
    if cli.command.is_none() {
        // Parsed, and not made up: `serve` has variables of the environment.
        cli = Cli::parse_from(["trunkline", "serve"]);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("trunkline: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = match cli.command {
        Some(command) => runtime.block_on(run(command)),
        None => Ok(()),
    };
    // A task that waits for standard input would keep the process.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !matches!(failure, Failure::BrokenPipe) {
                for line in failure.to_string().lines() {
                    eprintln!("trunkline: {line}");
                }
            }
            failure.code().into()
        }
    }
}

async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(serve) => serve.run().await,
        Command::Check(check) => check.run(),
        Command::Config(config) => config.run(),
        Command::Doctor(doctor) => doctor.run().await,
        Command::Publish(publish) => publish.run().await,
        Command::Subscribe(subscribe) => subscribe.run().await,
        Command::Explain(explain) => explain.run(),
        Command::Status(status) => status.run().await,
        Command::Nodes(nodes) => nodes.run().await,
        Command::Top(top) => top.run().await,
        Command::Bench(bench) => bench.run().await,
    }
}

impl Gateway {
    async fn connect(&self) -> Result<Client, Failure> {
        let failed = |why: String| Failure::NoGateway { address: self.gateway.clone(), why };
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

    /// What the flags and variables say.
    fn credentials(&self) -> Result<Credentials, Failure> {
        let credentials = self.proof.credentials()?;
        Ok(match &self.tls_ca {
            Some(path) => credentials.ca_certificate(read(path)?),
            None => credentials,
        })
    }
}

impl Proof {
    /// What the flags and variables say. No token stands on a command line, where everybody can read it.
    fn credentials(&self) -> Result<Credentials, Failure> {
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
fn parse_gateway(text: &str) -> Result<String, String> {
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

/// An error with what caused it: tonic's own text says only "transport error".
fn describe(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", describe(source)),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_exit_code_stands_in_the_help() {
        let failures = [
            Failure::Other(String::new()),
            Failure::Usage(String::new()),
            Failure::Input(String::new()),
            Failure::Configuration(String::new()),
            Failure::NoGateway { address: String::new(), why: String::new() },
            Failure::Gateway(Status::invalid_argument("")),
            Failure::Gateway(Status::unavailable("")),
        ];
        for failure in failures {
            let line = format!("\n  {} ", failure.code());
            assert!(EXAMPLES.contains(line.trim_end()), "{failure:?} {line}");
        }
    }
}
