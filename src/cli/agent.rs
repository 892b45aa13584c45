//! `trunkline agent`.

use std::{net::SocketAddr, path::PathBuf, pin::pin, time::Duration};

use clap::Args;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use trunkline::{
    admin_port,
    agent::{
        formats::agora::{Agora, Version},
        serve,
        session::Credentials,
    },
    config::{Config, Sources},
};

use super::{Failure, Form, GatewayArgs, log::Log};

/// The longest wait before an agent looks for a gateway again: a mail server hears nothing until
/// then, and there is one agent on each of its hosts.
const RECONNECT_WAIT: Duration = Duration::from_millis(200);

#[derive(Args)]
#[command(after_help = "\
Speaks Redis' protocol to the mail server of this host, and is a node of Trunkline on the other
side. The mail server needs one change, its URL of Redis as coordinator: redis://127.0.0.1:6380.
docs/agent.md says what it does, and what it does not do yet.

What the mail server publishes is answered at once, and waits for a gateway for up to ten minutes.
Whatever it may have missed, it is brought up to date.

Examples:
  trunkline agent --gateway https://gateway-1,https://gateway-2
  trunkline agent --mail-server 0.16.19 --node-id mx1 --token-file token
  trunkline agent --listen 10.0.0.5:6380 --password-file password")]
pub(super) struct Agent {
    #[command(flatten)]
    gateway: GatewayArgs,
    /// This node's id, the same after a restart [default: agent-<name of the host>]
    #[arg(long)]
    node_id: Option<String>,
    /// Address that the mail server connects to
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:6380")]
    listen: SocketAddr,
    /// Release of the mail server (Stalwart) on this host: 0.15, 0.16, 0.16.19
    #[arg(long, value_name = "RELEASE", default_value = "0.16")]
    mail_server: Version,
    /// File with the password that the mail server gives; needed unless --listen is on loopback
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// User that the mail server gives with it
    #[arg(long, default_value = "default", requires = "password_file")]
    user: String,
    /// Address of the agent's admin port, with /livez, /readyz and /metrics [default: none]
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    /// Format of the log: text or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Level of the log: error, warn, info, debug
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

impl Agent {
    pub(super) fn form(&self) -> Form {
        if self.log_format.as_deref() == Some("json") { Form::Log } else { Form::Text }
    }

    pub(super) async fn run(&self) -> Result<(), Failure> {
        let mut sources = Sources::default();
        for (key, value) in [("logFormat", &self.log_format), ("logLevel", &self.log_level)] {
            if let Some(value) = value {
                sources.set(key, value);
            }
        }
        let config = Config::load(&sources);
        let config = config.map_err(|error| Failure::Configuration(error.to_string()))?;
        let log = Log::start(&config)?;
        let result = self.serve().await;
        log.flush();
        result
    }

    async fn serve(&self) -> Result<(), Failure> {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let client = self
            .gateway
            .builder(self.node_id()?)?
            .client_version(concat!("trunkline agent ", env!("CARGO_PKG_VERSION")))
            .reconnect_wait(RECONNECT_WAIT)
            .build()
            .map_err(|error| Failure::Usage(error.to_string()))?;
        let format = Agora { version: self.mail_server, ..Agora::default() };
        let options = serve::Options {
            credentials: self.credentials()?,
            host: host(),
            ..serve::Options::new(Box::new(format))
        };
        let node_id = client.node_id().to_owned();
        let agent = serve::Agent::new(client, options);
        let wrong = |error| Failure::Usage(format!("--listen {}: {error}", self.listen));
        let listener = TcpListener::bind(self.listen).await.map_err(wrong)?;
        let (address, gateways) = (self.listen, self.gateway.address());
        let release = self.mail_server;
        tracing::info!(%address, gateways, node_id, %release, "the agent listens");
        let stop = CancellationToken::new();
        let ended = stop.clone().drop_guard();
        if let Some(address) = self.admin {
            let wrong = |error| Failure::Usage(format!("--admin {address}: {error}"));
            let listener = TcpListener::bind(address).await.map_err(wrong)?;
            tokio::spawn(admin_port::serve(listener, agent.admin(), stop.clone()));
        }
        let mut serving = pin!(agent.serve(listener, stop.clone()));
        tokio::select! {
            served = &mut serving => return served.map_err(wrong),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        drop(ended);
        serving.await.map_err(wrong)
    }

    /// The id of the flag, or that of this host.
    fn node_id(&self) -> Result<String, Failure> {
        if let Some(node_id) = &self.node_id {
            return Ok(node_id.clone());
        }
        match host().as_str() {
            "" => Err(Failure::Usage("this host has no name: give the agent a --node-id".into())),
            name => Ok(format!("agent-{name}")),
        }
    }

    fn credentials(&self) -> Result<Option<Credentials>, Failure> {
        let Some(path) = &self.password_file else { return Ok(None) };
        let wrong =
            |why: String| Failure::Usage(format!("--password-file {}: {why}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        match text.trim_end() {
            "" => Err(wrong("it is empty".to_owned())),
            password => {
                Ok(Some(Credentials { user: self.user.clone(), password: password.to_owned() }))
            }
        }
    }
}

/// The name of this host; empty if it has none.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}
