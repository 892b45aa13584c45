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
use trunkline_proto::{
    kinds,
    v1::{
        Filter, Overflow, Start, SubscribeRequest, SubscribeResponse, subscribe_response::Response,
    },
};

use super::{Failure, Gateway, Node, explain, json};

#[derive(Args)]
#[command(after_help = "\
Events go to standard output, one JSON object a line; gaps and the like to standard error.

Examples:
  trunkline subscribe --kind blocked-ip --kind certificate-change
  trunkline subscribe --account a1 --max-events 1
  trunkline subscribe --custom-type 'com.example.*' --for 10s
  trunkline subscribe --node-id mx1 --role imap --account a1 --explain
  trunkline subscribe | jq -c 'select(.mailboxChange)' | trunkline publish --gateway http://other:7420 -")]
#[allow(clippy::struct_excessive_bools)] // flags
pub(super) struct Subscribe {
    #[command(flatten)]
    gateway: Gateway,
    #[command(flatten)]
    node: Node,
    #[command(flatten)]
    wanted: Wanted,
    /// Where to begin
    #[arg(long, value_enum, default_value_t = From::Latest)]
    start: From,
    /// Continue after this token (base64, as --all shows it)
    #[arg(long, value_name = "TOKEN", value_parser = parse_token)]
    resume: Option<Token>,
    /// End after so many events
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    max_events: u64,
    /// End after so long: 10s, 5m
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    max_duration: Option<Duration>,
    /// What to do on falling too far behind
    #[arg(long, value_enum, default_value_t = OnOverflow::Gap)]
    overflow: OnOverflow,
    /// Print openings and heartbeats too, on standard error
    #[arg(long)]
    heartbeats: bool,
    /// Print whole responses on standard output, with tokens
    #[arg(long)]
    all: bool,
    /// Say of every event whether this node gets it, and if not, why not, instead of printing the events
    #[arg(long)]
    explain: bool,
    /// With --explain: one JSON object an event, not a line of text
    #[arg(long, requires = "explain")]
    json: bool,
}

/// Which events a node wants.
#[derive(Args)]
pub(super) struct Wanted {
    /// Only these kinds: mailbox-change, email-delivery, ... or a number
    #[arg(long, value_parser = parse_kind)]
    kind: Vec<i32>,
    /// Only these accounts, of the kinds that concern one
    #[arg(long)]
    account: Vec<String>,
    /// Only these types of custom events, whole or with * at the end
    #[arg(long)]
    custom_type: Vec<String>,
    /// A role of this node
    #[arg(long)]
    pub role: Vec<String>,
    /// This node's own events too
    #[arg(long)]
    pub include_own: bool,
}

impl Wanted {
    /// As a stream asks for them.
    pub(super) fn filter(&self) -> Filter {
        Filter {
            kinds: self.kind.clone(),
            accounts: self.account.clone(),
            custom_types: self.custom_type.clone(),
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum From {
    Latest,
    Oldest,
}

#[derive(Clone, Copy, ValueEnum)]
enum OnOverflow {
    Gap,
    Disconnect,
    Merge,
}

/// The number of a kind, by its name or as it is.
pub(super) fn parse_kind(text: &str) -> Result<i32, String> {
    let named = kinds::named(text).map(|row| row.kind.into());
    named.or_else(|| text.parse().ok()).ok_or_else(|| {
        let names: Vec<_> = kinds::TABLE.iter().map(kinds::Row::cli_name).collect();
        format!("no such kind; try {}", names.join(", "))
    })
}

/// Reads `500ms`, `10s`, `5m` or `1h`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| "must be like 500ms, 10s, 5m or 1h")?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        "h" => Ok(Duration::from_secs(number.saturating_mul(3600))),
        _ => Err("must be like 500ms, 10s, 5m or 1h".into()),
    }
}

impl Subscribe {
    pub(super) async fn run(&self) -> Result<(), Failure> {
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            result = self.follow() => result,
            // Whoever watches ends it so: by a key, by a supervisor, or by reading no more.
            _ = tokio::signal::ctrl_c() => Ok(()),
            _ = terminate.recv() => Ok(()),
            () = reader_gone() => Ok(()),
        }
    }

    async fn follow(&self) -> Result<(), Failure> {
        let request = self.request();
        let mut client = self.gateway.connect().await?;
        let mut stream = client.subscribe(request).await?.into_inner();
        while let Some(response) = stream.message().await? {
            self.print(&response)?;
        }
        Ok(())
    }

    fn request(&self) -> SubscribeRequest {
        let resume_token = self.resume.clone().map(|token| token.0).unwrap_or_default();
        let start = match self.start {
            From::Latest => Start::Latest,
            From::Oldest => Start::Oldest,
        };
        let overflow = match self.overflow {
            OnOverflow::Gap => Overflow::Gap,
            OnOverflow::Disconnect => Overflow::Disconnect,
            OnOverflow::Merge => Overflow::Merge,
        };
        SubscribeRequest {
            node_id: self.node.id(),
            incarnation: uuid::Uuid::new_v4().to_string(),
            client_version: concat!("trunkline subscribe ", env!("CARGO_PKG_VERSION")).to_owned(),
            roles: self.wanted.role.clone(),
            filter: Some(self.wanted.filter()),
            include_own_events: self.wanted.include_own,
            explain: self.explain,
            resume_token,
            start: start.into(),
            max_events: self.max_events,
            max_duration: self.max_duration.and_then(|d| d.try_into().ok()),
            overflow: overflow.into(),
            ..Default::default()
        }
    }

    fn print(&self, response: &SubscribeResponse) -> Result<(), Failure> {
        let whole =
            |response: &SubscribeResponse| json::response_to_json(response).map_err(Failure::Other);
        let mut out = io::stdout().lock();
        if self.all {
            writeln!(out, "{}", whole(response)?)?;
            return Ok(out.flush()?);
        }
        match &response.response {
            // A verdict tells of each of them.
            Some(Response::Events(_)) if self.explain => {}
            Some(Response::Explanation(explanation)) => {
                drop(out);
                return explain::print_all(explanation, self.json);
            }
            Some(Response::Events(batch)) => {
                for event in &batch.events {
                    let json = json::event_to_json(event).map_err(Failure::Other)?;
                    writeln!(out, "{json}")?;
                }
                // A reader at the other end of a pipe sees each event when it comes.
                out.flush()?;
            }
            Some(Response::Heartbeat(_) | Response::Subscribed(_)) if !self.heartbeats => {}
            _ => writeln!(io::stderr(), "{}", whole(response)?)?,
        }
        Ok(())
    }
}

/// A resume token, decoded.
#[derive(Clone)]
struct Token(Vec<u8>);

fn parse_token(text: &str) -> Result<Token, String> {
    STANDARD.decode(text).map(Token).map_err(|error| format!("no base64: {error}"))
}

/// Waits until nobody reads standard output any more. Where that cannot be told (a file), it waits for ever.
///
/// Writing would tell too, but only when the next event comes: `subscribe | head -1` would wait for a second one.
async fn reader_gone() {
    // Unchecked leaves it blocking, as the writer wants it; here nothing is written.
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    if let Ok(stdout) = stdout.and_then(Sender::from_owned_fd_unchecked)
        && stdout.ready(Interest::ERROR).await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_known_by_name_and_by_number() {
        assert_eq!(parse_kind("mailbox-change"), Ok(10));
        assert_eq!(parse_kind("custom"), Ok(20));
        assert_eq!(parse_kind("42"), Ok(42));
        assert!(parse_kind("mailbox").is_err());
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert!(parse_duration("10").is_err());
        assert!(parse_duration("s").is_err());
    }
}
