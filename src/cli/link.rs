//! `trunkline link`.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use trunkline::{
    admin_port,
    link::{self, Link as Running, LinkError},
};
use trunkline_client::{Builder, Client, CredentialFiles, ErrorKind};
use trunkline_proto::v1::EventKind;

use super::{Failure, Form, connection::parse_address, kinds::parse_kind, log::LogArgs};

/// Megabytes that may be in flight, at most.
const MAX_IN_FLIGHT: u32 = 1024;

#[derive(Args)]
#[command(after_help = "\
Carries events from one deployment to another over a line that may be long and is cut at times. It
resumes without loss or repeat, also after a crash: what it has under way is in the state file. What
the source reports as a gap is a gap at the destination. docs/regions.md says what it promises.

Each deployment needs a name (the key `deployment` of all its gateways). Both directions are two
links, each with a state file of its own. A link that begins without a state begins with what is
published from then on, and reports a gap first.

Examples:
  trunkline link --from https://eu --to https://us --state /var/lib/trunkline/eu-us
  trunkline link --from eu-1,eu-2 --to us-1 --state eu-us --kinds blocked-ip,certificate-change
  trunkline link --from eu-1 --from-token-file eu.token --to us-1 --to-token-file us.token \\
    --state eu-us")]
pub(super) struct Link {
    /// Address of a gateway of the source: 10.0.0.1, 10.0.0.1:7420 or a URL. Several, separated by
    /// commas, are tried in turn
    #[arg(long, value_name = "ADDRESS", required = true, value_delimiter = ',',
          value_parser = parse_address)]
    from: Vec<String>,
    /// Address of a gateway of the destination; several alike
    #[arg(long, value_name = "ADDRESS", required = true, value_delimiter = ',',
          value_parser = parse_address)]
    to: Vec<String>,
    /// File with the state of this link, which it creates
    #[arg(long, value_name = "FILE")]
    state: PathBuf,
    /// Kinds of events to carry: blocked-ip, mailbox-change, ... [default: all]
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = parse_kind)]
    kinds: Vec<EventKind>,
    /// Accounts to carry, of kinds that concern one [default: all]
    #[arg(long, value_name = "ACCOUNT", value_delimiter = ',')]
    accounts: Vec<String>,
    /// Roles for which the link stands: events that are for one of them are carried too [default:
    /// none, and events for certain nodes only are not carried]
    #[arg(long, value_name = "ROLE", value_delimiter = ',')]
    roles: Vec<String>,
    /// Also carry what other links have brought to the source. There must be one way from each
    /// deployment to each other one, or events come more than once
    #[arg(long)]
    transit: bool,
    /// Node id of the link, the same after a restart [default: link-<source>-<destination>]
    #[arg(long, value_name = "ID")]
    node_id: Option<String>,
    /// Megabytes of events that may be under way
    #[arg(long, value_name = "MIB", default_value_t = 32,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_IN_FLIGHT)))]
    in_flight: u32,
    /// Authority that signed the certificate of the source: a PEM file [default: those that this
    /// system trusts]
    #[arg(long, value_name = "FILE")]
    from_tls_ca: Option<PathBuf>,
    /// Client certificate for the source: a PEM file
    #[arg(long, value_name = "FILE", requires = "from_tls_key")]
    from_tls_cert: Option<PathBuf>,
    /// Private key of that certificate: a PEM file
    #[arg(long, value_name = "FILE", requires = "from_tls_cert")]
    from_tls_key: Option<PathBuf>,
    /// File with the bearer token for the source
    #[arg(long, value_name = "FILE")]
    from_token_file: Option<PathBuf>,
    /// Authority that signed the certificate of the destination: a PEM file [default: those that
    /// this system trusts]
    #[arg(long, value_name = "FILE")]
    to_tls_ca: Option<PathBuf>,
    /// Client certificate for the destination: a PEM file
    #[arg(long, value_name = "FILE", requires = "to_tls_key")]
    to_tls_cert: Option<PathBuf>,
    /// Private key of that certificate: a PEM file
    #[arg(long, value_name = "FILE", requires = "to_tls_cert")]
    to_tls_key: Option<PathBuf>,
    /// File with the bearer token for the destination
    #[arg(long, value_name = "FILE")]
    to_token_file: Option<PathBuf>,
    /// Address of the link's admin port, with /livez, /readyz and /metrics [default: none]
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    #[command(flatten)]
    log: LogArgs,
}

impl Link {
    pub(super) fn form(&self) -> Form {
        self.log.form()
    }

    pub(super) async fn run(&self) -> Result<(), Failure> {
        self.log.around(self.serve()).await
    }

    async fn serve(&self) -> Result<(), Failure> {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let from = CredentialFiles {
            ca: self.from_tls_ca.clone(),
            certificate: self.from_tls_cert.clone().zip(self.from_tls_key.clone()),
            token: self.from_token_file.clone(),
        };
        let to = CredentialFiles {
            ca: self.to_tls_ca.clone(),
            certificate: self.to_tls_cert.clone().zip(self.to_tls_key.clone()),
            token: self.to_token_file.clone(),
        };
        let in_flight = self.in_flight << 20;
        let options = link::Options {
            kinds: self.kinds.clone(),
            accounts: self.accounts.clone(),
            transit: self.transit,
            node_id: self.node_id.clone(),
            in_flight: in_flight as usize,
            state: self.state.clone(),
        };
        // A quarter is enough for a round trip: the rest is for what the destination has not
        // answered.
        let window = in_flight / 4;
        let from = builder("--from", &self.from, from)?.stream_window(window);
        let from = self.roles.iter().fold(from, Builder::role);
        let build = |side, builder: Builder| {
            builder.build().map_err(|error| Failure::Usage(format!("{side}: {error}")))
        };
        let to = builder("--to", &self.to, to)?;
        let link = Running::new(build("--from", from)?, build("--to", to)?, options);
        let stop = CancellationToken::new();
        let _ended = stop.clone().drop_guard();
        if let Some(address) = self.admin {
            let listener = TcpListener::bind(address).await;
            let wrong = |error| Failure::Usage(format!("--admin {address}: {error}"));
            let listener = listener.map_err(wrong)?;
            tokio::spawn(admin_port::serve(listener, link.admin(), stop.clone()));
        }
        let stopping = stop.child_token();
        let mut running = std::pin::pin!(link.run(stopping.clone()));
        tokio::select! {
            ended = &mut running => return ended.map_err(|error| failure(&error)),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopping.cancel();
        running.await.map_err(|error| failure(&error))
    }
}

/// The client of one side.
fn builder(side: &str, addresses: &[String], files: CredentialFiles) -> Result<Builder, Failure> {
    let credentials = files.credentials().map_err(Failure::Usage)?;
    let url = |address: &String| {
        let wrong = |why| Failure::Usage(format!("{side} {address}: {why}"));
        credentials.url(address).map_err(wrong)
    };
    let urls: Vec<String> = addresses.iter().map(url).collect::<Result<_, _>>()?;
    Ok(Client::builder("link")
        .gateways(urls)
        .in_order()
        .credential_files(files)
        .client_version(concat!("trunkline link ", env!("CARGO_PKG_VERSION"))))
}

fn failure(error: &LinkError) -> Failure {
    match error {
        LinkError::Refused { error: refused, .. } if refused.kind() == ErrorKind::Unavailable => {
            Failure::Other(error.to_string())
        }
        LinkError::Refused { side, error: refused } => match refused.status() {
            Some(status) => {
                let message = format!("{side}: {}", status.message());
                Failure::Gateway(tonic::Status::new(status.code(), message))
            }
            None => Failure::Other(error.to_string()),
        },
        LinkError::Unnamed { .. }
        | LinkError::Itself(_)
        | LinkError::Replaced { .. }
        | LinkError::State { .. }
        | LinkError::TakenOver { .. } => Failure::Configuration(error.to_string()),
    }
}
