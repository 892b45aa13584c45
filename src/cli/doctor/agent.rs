//! An agent, as the mail server of this host finds it: its port, its password, and the way through
//! it to the gateways and back.
//!
//! Both ways take a change of an account that no mail server has, so that nodes have nothing to do.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_util::either::Either;
use trunkline::{
    agent::formats::{Format, agora::Agora},
    bus::Finding,
};
use trunkline_client::{Notification, SubscribeOptions, Subscription};
use trunkline_proto::v1::{AgentReport, ChangedType, EventKind, MailboxChange, Node, event::Kind};

use super::Report;
use crate::cli::{Failure, GatewayArgs, agents, visible};

/// The checks, in their order.
const PORT: &str = "agent";
const PASSWORD: &str = "agent password";
const UP: &str = "agent, up";
const DOWN: &str = "agent, down";
const STATE: &str = "agent state";

/// Time limit of each check.
const LIMIT: Duration = Duration::from_secs(5);

/// The sender of doctor's messages: leases of mail servers begin at 0, and the agent has the next.
const SENDER: u16 = u16::MAX - 1;

/// The account whose changes doctor publishes: the last one that the format can write.
const ACCOUNT: &str = "4294967295";

/// Bytes of a reply.
const MAX_REPLY: u64 = 1 << 20;

/// The agent to check.
#[derive(Args)]
pub(super) struct AgentArgs {
    /// Check only the agent at this address (127.0.0.1:6380, or unix: and a path), through the
    /// gateways of --gateway
    #[arg(long, value_name = "ADDRESS")]
    pub(super) agent: Option<String>,
    /// File with the password that the mail server gives to the agent
    #[arg(long, value_name = "FILE", requires = "agent")]
    agent_password_file: Option<PathBuf>,
    /// User that the mail server gives with it
    #[arg(long, default_value = "default", requires = "agent_password_file")]
    agent_user: String,
}

/// Checks an agent.
pub(super) async fn examine(
    address: &str,
    args: &AgentArgs,
    gateway: &GatewayArgs,
    report: &mut Report,
) -> Result<(), Failure> {
    let password = args.agent_password_file.as_deref().map(read).transpose()?;
    let credentials = password.as_ref().map(|password| (&*args.agent_user, &**password));
    report.begins(PORT);
    if let Some(connection) = port(address, credentials, report).await {
        round_trips(address, connection, credentials, gateway, report).await?;
    }
    report.expect(&[PORT, PASSWORD, UP, DOWN, STATE], "the agent is not reached");
    Ok(())
}

fn read(path: &Path) -> Result<String, Failure> {
    let wrong = |error| Failure::Usage(format!("{}: {error}", path.display()));
    Ok(std::fs::read_to_string(path).map_err(wrong)?.trim_end().to_owned())
}

/// Checks the port and the password. None if no agent can be used there.
async fn port(
    address: &str,
    credentials: Option<(&str, &str)>,
    report: &mut Report,
) -> Option<Resp> {
    let mut connection = match timeout(LIMIT, Resp::connect(address)).await {
        Ok(Ok(connection)) => connection,
        failed => {
            let why = match failed {
                Ok(Err(error)) => error.to_string(),
                _ => format!("no answer within {LIMIT:?}"),
            };
            let advice = "start `trunkline agent` on this host, with this address as --listen";
            report.found(Finding::failure(PORT, format!("{address}: {why}"), advice));
            return None;
        }
    };
    let first = connection.ask(&[b"PING"]).await;
    match (&first, credentials) {
        (Ok(Reply::Error(error)), None) if error.starts_with("NOAUTH") => {
            report.found(Finding::ok(PORT, format!("{address} answers")));
            let advice = "give it with --agent-password-file, and in the URL of the mail server";
            report.found(Finding::failure(PASSWORD, "the agent needs a password", advice));
            return None;
        }
        (Ok(_), Some((user, password))) => {
            let auth = [&b"AUTH"[..], user.as_bytes(), password.as_bytes()];
            match connection.ask(&auth).await {
                Ok(Reply::Text(_)) => {
                    report.found(Finding::ok(PASSWORD, format!("user {user:?} may connect")));
                }
                Ok(Reply::Error(error)) => {
                    let advice = "use the password of the agent's --password-file, and its --user";
                    report.found(Finding::failure(PASSWORD, error, advice));
                    return None;
                }
                other => {
                    report.found(Finding::failure(PASSWORD, unexpected(other), ""));
                    return None;
                }
            }
        }
        (Ok(Reply::Text(_)), None) => {
            let seen = "none is needed, on loopback alone";
            report.found(Finding::ok(PASSWORD, seen));
        }
        _ => {}
    }
    match connection.ask(&[b"INFO"]).await {
        Ok(Reply::Text(info)) if info.contains("server_name:trunkline") => {
            let version = info.lines().find_map(|line| line.strip_prefix("trunkline_version:"));
            let version = visible(version.unwrap_or("unknown")).into_owned();
            report.found(Finding::ok(PORT, format!("{address} is an agent, version {version}")));
            Some(connection)
        }
        Ok(Reply::Text(_)) => {
            let advice = "stop that server, or give the agent and the mail server another port";
            let seen = format!("{address} is a Redis server, not an agent");
            report.found(Finding::failure(PORT, seen, advice));
            None
        }
        other => {
            let advice = "check what listens there";
            let seen = format!("{address}: {}", unexpected(other));
            report.found(Finding::failure(PORT, seen, advice));
            None
        }
    }
}

/// Checks the way from the mail server to the gateways, and the way back.
async fn round_trips(
    address: &str,
    mut connection: Resp,
    credentials: Option<(&str, &str)>,
    gateway: &GatewayArgs,
    report: &mut Report,
) -> Result<(), Failure> {
    let node_id = format!("doctor-{}", std::process::id());
    let client = gateway
        .builder(node_id)?
        .client_version(concat!("trunkline doctor ", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| Failure::Usage(error.to_string()))?;
    report.begins(UP);
    let options = SubscribeOptions::new().kind(EventKind::MailboxChange).account(ACCOUNT);
    let mut events = client.subscribe(options);
    if let Err(why) = within(subscribed(&mut events)).await {
        let advice = "check --gateway, and the flags for TLS and tokens";
        let seen = format!("gateway {}: {why}", gateway.address());
        report.found(Finding::failure(UP, seen, advice));
        return Ok(());
    }
    let format = Agora { sender: SENDER, ..Agora::default() };
    let channel = format.channel();
    let change_id = u64::from(rand::random::<u32>()) + 1;
    let published = async {
        for message in format.encode(&[change(change_id)]).messages {
            match connection.ask(&[b"PUBLISH", channel.as_bytes(), &message]).await {
                Ok(Reply::Number) => {}
                other => return Err(format!("PUBLISH: {}", unexpected(other))),
            }
        }
        received(&mut events, change_id).await
    };
    report.found(match within(published).await {
        Ok(source) => {
            let source = visible(&source).into_owned();
            Finding::ok(UP, format!("a message published here arrived at a gateway, of {source}"))
        }
        Err(why) => {
            let advice = "see the log of the agent: it says why no gateway takes its events";
            Finding::failure(UP, why, advice)
        }
    });

    report.begins(DOWN);
    let change_id = change_id + 1;
    let delivered = async {
        let mut subscriber = Resp::connect(address).await.map_err(|error| error.to_string())?;
        if let Some((user, password)) = credentials {
            let auth = [&b"AUTH"[..], user.as_bytes(), password.as_bytes()];
            subscriber.ask(&auth).await.map_err(|error| error.to_string())?;
        }
        let subscribe = [&b"SUBSCRIBE"[..], channel.as_bytes()];
        subscriber.ask(&subscribe).await.map_err(|error| error.to_string())?;
        client.publish([change(change_id)]).await.map_err(|error| error.to_string())?;
        loop {
            let message = subscriber.message().await.map_err(|error| error.to_string())?;
            // An agent writes as another sender, and may put other events beside it.
            let Ok(decoded) = format.decode(&message) else { continue };
            if decoded.events.flatten().any(|kind| is_change(&kind, change_id)) {
                return Ok(());
            }
        }
    };
    report.found(match within(delivered).await {
        Ok(()) => Finding::ok(DOWN, "an event published at a gateway arrived here as a message"),
        Err(why) => {
            let advice = "check that the agent's gateways and those of --gateway are of one \
                          deployment, and that the agent may subscribe";
            Finding::failure(DOWN, why, advice)
        }
    });

    report.begins(STATE);
    let found = within(async {
        let mut client = gateway.connect().await.map_err(|failure| failure.to_string())?;
        loop {
            let nodes = agents::list(&mut client).await.map_err(|status| status.to_string())?;
            if let Some(found) = nodes.into_iter().find_map(own_agent) {
                return Ok(found);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    report.found(match found.await {
        Ok((node, agent)) => state(&node, &agent),
        Err(why) => Finding::not_checked(
            STATE,
            why,
            "the gateway must be of this release, and let this identity list nodes",
        ),
    });
    Ok(())
}

/// The node, if it is the agent at which doctor published.
fn own_agent(mut node: Node) -> Option<(Node, AgentReport)> {
    let agent = node.agent.take()?;
    let own = SENDER.to_string();
    agent.programs.iter().any(|program| program.program_id == own).then_some((node, agent))
}

fn state(node: &Node, agent: &AgentReport) -> Finding {
    let own = SENDER.to_string();
    let programs = agent.programs.iter().filter(|program| program.program_id != own);
    let ids: Vec<&str> = programs.clone().map(|program| program.program_id.as_str()).collect();
    let duplicates: Vec<&str> = programs
        .filter(|program| program.duplicate)
        .map(|program| program.program_id.as_str())
        .collect();
    let of = match &ids[..] {
        [] => "no mail server has published yet".to_owned(),
        ids => format!("mail servers {}", ids.join(", ")),
    };
    let seen = format!("{} on {}: {of}", node.node_id, agent.host);
    if !duplicates.is_empty() {
        let ids = duplicates.join(", ");
        let advice = "give each mail server a node id of its own";
        return Finding::failure(STATE, format!("{seen}; two processes use id {ids}"), advice);
    }
    if agent.undecodable_messages + agent.rejected_events + agent.lost_events > 0 {
        let seen = format!(
            "{seen}; {} messages could not be read, {} events were rejected, {} given up",
            agent.undecodable_messages, agent.rejected_events, agent.lost_events
        );
        let advice = "see the log of the agent; check its --mail-server, and the rules of gateways";
        return Finding::warning(STATE, seen, advice);
    }
    Finding::ok(STATE, format!("{seen}; {}", agents::waiting(agent)))
}

fn change(change_id: u64) -> Kind {
    MailboxChange {
        account_id: ACCOUNT.to_owned(),
        change_id,
        changed_types: vec![ChangedType::Email.into()],
        ..Default::default()
    }
    .into()
}

fn is_change(kind: &Kind, change_id: u64) -> bool {
    matches!(kind, Kind::MailboxChange(change)
        if change.account_id == ACCOUNT && change.change_id == change_id)
}

/// Waits until the stream of events is open.
async fn subscribed(events: &mut Subscription) -> Result<(), String> {
    loop {
        match events.next().await {
            Some(Ok(Notification::Subscribed(_))) => return Ok(()),
            Some(Ok(Notification::Reconnecting { reason, .. })) => return Err(reason),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error.to_string()),
            None => return Err("the stream ended".to_owned()),
        }
    }
}

/// Waits for doctor's change; the node that published it.
async fn received(events: &mut Subscription, change_id: u64) -> Result<String, String> {
    loop {
        match events.next().await {
            Some(Ok(Notification::Event(event))) => {
                if event.kind.as_ref().is_some_and(|kind| is_change(kind, change_id)) {
                    return Ok(event.source);
                }
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error.to_string()),
            None => return Err("the stream ended".to_owned()),
        }
    }
}

async fn within<T>(check: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    timeout(LIMIT, check).await.unwrap_or_else(|_| Err(format!("nothing came within {LIMIT:?}")))
}

/// A connection that speaks Redis' protocol.
struct Resp(BufReader<Either<TcpStream, UnixStream>>);

enum Reply {
    Text(String),
    Number,
    Error(String),
    Bulk(Vec<u8>),
    Array(Vec<Reply>),
}

fn unexpected(reply: std::io::Result<Reply>) -> String {
    match reply {
        Ok(Reply::Error(error)) => visible(&error).into_owned(),
        Ok(_) => "an unexpected answer".to_owned(),
        Err(error) => error.to_string(),
    }
}

impl Resp {
    async fn connect(address: &str) -> std::io::Result<Resp> {
        let stream = match address.strip_prefix("unix:") {
            Some(path) => Either::Right(UnixStream::connect(path).await?),
            None => Either::Left(TcpStream::connect(address).await?),
        };
        Ok(Resp(BufReader::new(stream)))
    }

    async fn ask(&mut self, command: &[&[u8]]) -> std::io::Result<Reply> {
        let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
        for argument in command {
            bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
            bytes.extend_from_slice(argument);
            bytes.extend_from_slice(b"\r\n");
        }
        self.0.get_mut().write_all(&bytes).await?;
        match timeout(LIMIT, self.reply()).await {
            Ok(Ok(Reply::Bulk(text))) => {
                Ok(Reply::Text(String::from_utf8_lossy(&text).into_owned()))
            }
            Ok(reply) => reply,
            Err(_) => Err(std::io::Error::other(format!("no answer within {LIMIT:?}"))),
        }
    }

    /// The payload of the next message.
    async fn message(&mut self) -> std::io::Result<Vec<u8>> {
        loop {
            if let Reply::Array(parts) = self.reply().await?
                && let [Reply::Bulk(what), _, Reply::Bulk(payload)] = &parts[..]
                && what == b"message"
            {
                return Ok(payload.clone());
            }
        }
    }

    async fn reply(&mut self) -> std::io::Result<Reply> {
        let wrong = || std::io::Error::other("it does not speak Redis' protocol");
        let mut line = Vec::new();
        (&mut self.0).take(MAX_REPLY).read_until(b'\n', &mut line).await?;
        let line = line.strip_suffix(b"\r\n").ok_or_else(wrong)?;
        let (kind, text) = line.split_first().ok_or_else(wrong)?;
        let text = String::from_utf8_lossy(text).into_owned();
        Ok(match kind {
            b'+' => Reply::Text(text),
            b'-' => Reply::Error(text),
            b':' => Reply::Number,
            b'$' => {
                let length: u64 = text.parse().map_err(|_| wrong())?;
                if length > MAX_REPLY {
                    return Err(wrong());
                }
                let mut bytes = Vec::new();
                (&mut self.0).take(length + 2).read_to_end(&mut bytes).await?;
                bytes.truncate(usize::try_from(length).unwrap_or_default());
                Reply::Bulk(bytes)
            }
            b'*' => {
                let length: usize = text.parse().map_err(|_| wrong())?;
                let mut parts = Vec::new();
                // Replies to doctor's commands have at most three parts, which are no arrays.
                for _ in 0..length.min(3) {
                    parts.push(Box::pin(self.reply()).await?);
                }
                Reply::Array(parts)
            }
            _ => return Err(wrong()),
        })
    }
}
