//! `trunkline subscribe`.

use std::{
    io::{self, Write},
    os::fd::AsFd,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::{Args, ValueEnum};
use tokio::{
    io::Interest,
    net::unix::pipe::Sender,
    signal::unix::{SignalKind, signal},
};
use trunkline_client::RecentEvents;
use trunkline_proto::v1::{
    Overflow, Start, SubscribeRequest, SubscribeResponse, subscribe_response::Response,
};

use super::{
    Failure, GatewayArgs, NodeArgs, duration::parse_duration, explain, interest::InterestArgs,
    json, visible_json,
};

#[derive(Args)]
#[command(after_help = "\
Prints events to standard output, one JSON object per line; gaps and other notifications to
standard error. An event that comes again, with the same source and id, is printed once.

Examples:
  trunkline subscribe --kind blocked-ip --kind certificate-change
  trunkline subscribe --account a1 --max-events 1
  trunkline subscribe --custom-type 'com.example.*' --for 10s
  trunkline subscribe --node-id mx1 --role imap --account a1 --explain
  trunkline subscribe | jq -c 'select(.mailboxChange)' | trunkline publish --gateway other:7420 -")]
#[allow(clippy::struct_excessive_bools)] // flags
pub(super) struct Subscribe {
    #[command(flatten)]
    gateway: GatewayArgs,
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    interest: InterestArgs,
    /// Position to start from
    #[arg(long, value_enum, default_value_t = StartArg::Latest)]
    start: StartArg,
    /// Continue after this token (base64, as --all shows it)
    #[arg(long, value_name = "TOKEN", value_parser = parse_token)]
    resume: Option<Token>,
    /// Exit after this many events
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    max_events: u64,
    /// Exit after this time: 10s, 5m
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    max_duration: Option<Duration>,
    /// Reaction of the gateway when this subscriber falls too far behind
    #[arg(long, value_enum, default_value_t = OverflowArg::Gap)]
    overflow: OverflowArg,
    /// Print `subscribed` and heartbeats too, to standard error
    #[arg(long)]
    heartbeats: bool,
    /// Print whole responses to standard output, with resume tokens
    #[arg(long)]
    all: bool,
    /// Print the filter decision for each event, with its reasons, instead of the events
    #[arg(long)]
    explain: bool,
    /// With --explain: print JSON objects, not lines of text
    #[arg(long, requires = "explain")]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum StartArg {
    Latest,
    Oldest,
}

#[derive(Clone, Copy, ValueEnum)]
enum OverflowArg {
    Gap,
    Disconnect,
    Merge,
}

impl Subscribe {
    pub(super) async fn run(&self) -> Result<(), Failure> {
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            result = self.print_all() => result,
            // The usual ways to end it: Ctrl-C, a supervisor, a closed pipe.
            _ = tokio::signal::ctrl_c() => Ok(()),
            _ = terminate.recv() => Ok(()),
            () = stdout_closed() => Ok(()),
        }
    }

    async fn print_all(&self) -> Result<(), Failure> {
        let request = self.request();
        let mut client = self.gateway.connect().await?;
        let mut stream = client.subscribe(request).await?.into_inner();
        let mut recent = RecentEvents::new();
        while let Some(response) = stream.message().await? {
            self.print(&response, &mut recent)?;
        }
        Ok(())
    }

    fn request(&self) -> SubscribeRequest {
        let resume_token = self.resume.clone().map(|token| token.0).unwrap_or_default();
        let start = match self.start {
            StartArg::Latest => Start::Latest,
            StartArg::Oldest => Start::Oldest,
        };
        let overflow = match self.overflow {
            OverflowArg::Gap => Overflow::Gap,
            OverflowArg::Disconnect => Overflow::Disconnect,
            OverflowArg::Merge => Overflow::Merge,
        };
        SubscribeRequest {
            node_id: self.node.id(),
            incarnation: uuid::Uuid::new_v4().to_string(),
            client_version: concat!("trunkline subscribe ", env!("CARGO_PKG_VERSION")).to_owned(),
            roles: self.interest.role.clone(),
            filter: Some(self.interest.filter()),
            include_own_events: self.interest.include_own,
            explain: self.explain,
            resume_token,
            start: start.into(),
            max_events: self.max_events,
            max_duration: self.max_duration.and_then(|d| d.try_into().ok()),
            overflow: overflow.into(),
            ..Default::default()
        }
    }

    fn print(
        &self,
        response: &SubscribeResponse,
        recent: &mut RecentEvents,
    ) -> Result<(), Failure> {
        let to_json = |response: &SubscribeResponse| {
            let json = json::response_to_json(response).map_err(Failure::Other)?.to_string();
            Ok::<_, Failure>(visible_json(&json).into_owned())
        };
        let mut out = io::stdout().lock();
        if self.all {
            writeln!(out, "{}", to_json(response)?)?;
            return Ok(out.flush()?);
        }
        match &response.response {
            // The explanation covers them.
            Some(Response::Events(_)) if self.explain => {}
            Some(Response::Explanation(explanation)) => {
                drop(out);
                return explain::print_all(explanation, self.json);
            }
            Some(Response::Events(batch)) => {
                for event in batch.events.iter().filter(|event| recent.is_new(event)) {
                    let json = json::event_to_json(event).map_err(Failure::Other)?.to_string();
                    writeln!(out, "{}", visible_json(&json))?;
                }
                // The reader of a pipe gets each event when it arrives.
                out.flush()?;
            }
            Some(Response::Heartbeat(_) | Response::Subscribed(_)) if !self.heartbeats => {}
            _ => writeln!(io::stderr(), "{}", to_json(response)?)?,
        }
        Ok(())
    }
}

/// A resume token, decoded.
#[derive(Clone)]
struct Token(Vec<u8>);

fn parse_token(text: &str) -> Result<Token, String> {
    STANDARD.decode(text).map(Token).map_err(|error| format!("not base64: {error}"))
}

/// Waits until the reader of standard output has closed it; forever where that cannot be observed,
/// as with a file.
///
/// A failed write would show it too, but only at the next event: `subscribe | head -1` would wait
/// for a second one.
async fn stdout_closed() {
    // Unchecked leaves the pipe in blocking mode, which `print` needs; nothing is written here.
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    if let Ok(stdout) = stdout.and_then(Sender::from_owned_fd_unchecked)
        && stdout.ready(Interest::ERROR).await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}
