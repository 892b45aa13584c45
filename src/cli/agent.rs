//! `trunkline agent`.

mod file;

use std::{io::ErrorKind, net::SocketAddr, path::PathBuf, pin::pin, time::Duration};

use bytes::Bytes;
use clap::Args;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use trunkline::{
    admin_port,
    agent::{
        formats::{
            Opaque,
            agora::{AGENT, Agora, Version},
        },
        serve::{self, Address, Join, Listener, StateFolder},
        session::Credentials,
    },
    config::RedisUrl,
};

pub(super) use self::file::with_file;
use super::{Failure, Form, GatewayArgs, log::LogArgs, serve::secret_url};

/// The longest wait before an agent looks for a gateway again: a mail server hears nothing until
/// then, and there is one agent on each of its hosts.
const RECONNECT_WAIT: Duration = Duration::from_millis(200);

/// The wait before an admin port that another process has is tried again.
const ADMIN_WAIT: Duration = Duration::from_millis(100);

#[derive(Args)]
#[command(after_help = "\
Speaks Redis' protocol to the mail server of this host, and is a node of Trunkline on the other
side. The mail server needs one change, its URL of Redis as coordinator: redis://127.0.0.1:6380.
docs/agent.md says what it does, and what it does not.

What the mail server publishes is answered at once, and waits for a gateway for up to ten minutes.
Whatever it may have missed, it is brought up to date.

Sockets that systemd passes (LISTEN_FDS) are used in place of --listen. With --state-dir, a new
process that is started with the same flags takes over from the running one: no connection is
refused meanwhile, and nothing that waits is lost.

Examples:
  trunkline agent --gateway https://gateway-1,https://gateway-2
  trunkline agent --mail-server 0.16.19 --node-id mx1 --token-file token
  trunkline agent --listen 10.0.0.5:6380 --password-file password
  trunkline agent --listen unix:/run/trunkline/agent.sock --state-dir /run/trunkline
  trunkline agent --carry app.jobs=reload --channel redis://redis.internal:6379")]
pub(super) struct Agent {
    /// JSON file whose keys are these flags ({"stateDir": "/run/trunkline"}); a flag takes the
    /// place of its key
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    gateway: GatewayArgs,
    /// This node's id, the same after a restart [default: agent-<name of the host>]
    #[arg(long)]
    node_id: Option<String>,
    /// Address that the mail server connects to, or unix: and a path; several with commas between
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:6380", value_delimiter = ',')]
    listen: Vec<Address>,
    /// Permissions of the files of Unix sockets
    #[arg(long, value_name = "MODE", default_value = "660", value_parser = parse_mode)]
    socket_mode: u32,
    /// Folder of this agent alone, where the next process finds what this one leaves
    #[arg(long, value_name = "FOLDER")]
    state_dir: Option<PathBuf>,
    /// Release of the mail server (Stalwart) on this host: 0.15, 0.16, 0.16.19
    #[arg(long, value_name = "RELEASE", default_value = "0.16")]
    mail_server: Version,
    /// URL of a Redis that other nodes of the mail server still use: the agent joins its channel.
    /// One with a password is given in the variable `TRUNKLINE_CHANNEL`, or in a file
    #[arg(long, value_name = "URL", conflicts_with = "channel_file")]
    channel: Option<String>,
    /// File with that URL
    #[arg(long, value_name = "FILE")]
    channel_file: Option<PathBuf>,
    /// Node id of the agent among those of the mail server, which no node has
    #[arg(long, value_name = "NUMBER", default_value_t = AGENT)]
    channel_id: u16,
    /// Another channel to carry, and after `=` the message that heals its programs; may be repeated
    #[arg(long, value_name = "NAME[=MESSAGE]")]
    carry: Vec<String>,
    /// File with the password that the mail server gives; needed unless --listen is on loopback
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// User that the mail server gives with it
    #[arg(long, default_value = "default", requires = "password_file")]
    user: String,
    /// Address of the agent's admin port, with /livez, /readyz and /metrics [default: none]
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    #[command(flatten)]
    log: LogArgs,
}

impl Agent {
    pub(super) fn form(&self) -> Form {
        self.log.form()
    }

    pub(super) async fn run(&self) -> Result<(), Failure> {
        self.log.around(self.serve()).await
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
        let format = Agora { version: self.mail_server, sender: self.channel_id };
        let mut options = serve::Options {
            credentials: self.credentials()?,
            host: host(),
            join: self.join()?,
            ..serve::Options::new(Box::new(format))
        };
        for carried in &self.carry {
            let format = opaque(carried);
            let format = format.and_then(|format| options.carry(Box::new(format)));
            format.map_err(|why| Failure::Usage(format!("--carry {carried}: {why}")))?;
        }
        let wrong = |error| Failure::Usage(format!("--listen {}: {error}", self.addresses()));
        let passed = Listener::passed()
            .map_err(|error| Failure::Usage(format!("a socket of LISTEN_FDS: {error}")))?;
        let addresses = passed.iter().map(Listener::address);
        for address in addresses.chain(self.listen.iter().filter(|_| passed.is_empty())) {
            options.check(address).map_err(wrong)?;
        }
        let folder = self.folder()?;
        let admin = match self.admin {
            Some(address) => self.bind_admin(address).await?,
            None => None,
        };
        // From here on, the agent before has ended: what can be wrong was found out by now.
        let (listeners, before) = match &folder {
            Some(folder) if passed.is_empty() => {
                folder.begin(&self.listen, self.socket_mode).await.map_err(wrong)?
            }
            folder => {
                let bind = |address| Listener::bind(address, self.socket_mode);
                let listeners = if passed.is_empty() {
                    self.listen.iter().map(bind).collect::<Result<_, _>>().map_err(wrong)?
                } else {
                    passed
                };
                let before = folder.as_ref().map(StateFolder::load).transpose();
                (listeners, before.map_err(|error| self.wrong_folder(&error))?.flatten())
            }
        };
        let addresses: Vec<_> = listeners.iter().map(|each| each.address().to_string()).collect();
        let (addresses, gateways) = (addresses.join(", "), self.gateway.address());
        let (node_id, release) = (client.node_id().to_owned(), self.mail_server);
        let agent = serve::Agent::after(before, client, options);
        tracing::info!(addresses, gateways, node_id, %release, "the agent listens");
        let stop = CancellationToken::new();
        let ended = stop.clone().drop_guard();
        if let Some(address) = self.admin {
            tokio::spawn(serve_admin(address, admin, agent.clone(), stop.clone()));
        }
        let mut serving = pin!(agent.serve(listeners, folder, stop.clone()));
        tokio::select! {
            served = &mut serving => return served.map_err(|error| self.wrong_folder(&error)),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        drop(ended);
        serving.await.map_err(|error| self.wrong_folder(&error))
    }

    /// The listener of the admin port; none if a process has it that this one may take over from.
    async fn bind_admin(&self, address: SocketAddr) -> Result<Option<TcpListener>, Failure> {
        match TcpListener::bind(address).await {
            Ok(listener) => Ok(Some(listener)),
            Err(error) if error.kind() == ErrorKind::AddrInUse && self.state_dir.is_some() => {
                tracing::info!(%address, "the admin port follows when no other process has it");
                Ok(None)
            }
            Err(error) => Err(Failure::Usage(format!("--admin {address}: {error}"))),
        }
    }

    fn addresses(&self) -> String {
        self.listen.iter().map(Address::to_string).collect::<Vec<_>>().join(",")
    }

    fn folder(&self) -> Result<Option<StateFolder>, Failure> {
        let folder = self.state_dir.as_ref().map(StateFolder::open).transpose();
        folder.map_err(|error| self.wrong_folder(&error))
    }

    fn wrong_folder(&self, error: &std::io::Error) -> Failure {
        let folder = self
            .state_dir
            .as_ref()
            .map_or_else(String::new, |folder| format!("--state-dir {}: ", folder.display()));
        Failure::Usage(format!("{folder}{error}"))
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

    /// The Redis whose channel is joined.
    fn join(&self) -> Result<Option<Join>, Failure> {
        let file = self.channel_file.as_deref();
        let given = self.channel.as_deref();
        let flags = ("--channel", "--channel-file", "TRUNKLINE_CHANNEL");
        let Some(url) = secret_url(flags, given, file)? else { return Ok(None) };
        let wrong = |why: String| Failure::Usage(format!("the URL of --channel: {why}"));
        let url = RedisUrl::parse(&url).map_err(|error| wrong(error.to_string()))?;
        Join::new(url.as_str_with_password(), url.to_string()).map(Some).map_err(wrong)
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

/// Serves the admin port, once the process that has it has ended.
async fn serve_admin(
    address: SocketAddr,
    mut listener: Option<TcpListener>,
    agent: serve::Agent,
    stop: CancellationToken,
) {
    let listener = loop {
        if let Some(listener) = listener {
            break listener;
        }
        tokio::time::sleep(ADMIN_WAIT).await;
        listener = TcpListener::bind(address).await.ok();
    };
    admin_port::serve(listener, agent.admin(), stop).await;
}

/// The name of this host; empty if it has none.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// A channel, and after `=` what heals its programs.
fn opaque(text: &str) -> Result<Opaque, String> {
    let (channel, healing) = match text.split_once('=') {
        Some((channel, healing)) => (channel, Some(Bytes::copy_from_slice(healing.as_bytes()))),
        None => (text, None),
    };
    Opaque::new(channel, healing)
}

fn parse_mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| "must be a number in octal digits, such as 660".to_owned())
}
