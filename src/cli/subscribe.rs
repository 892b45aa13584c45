//! `trunkline subscribe`.

mod follow;
mod printer;

use std::{path::PathBuf, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::{Args, ValueEnum};
use futures_util::FutureExt;
use tokio::time::timeout;
use trunkline_client::{Builder, Error, Notification, SubscribeOptions, Subscription};
use trunkline_proto::v1::{Filter, Overflow, Start};

use self::printer::Printer;
use super::{
    Failure, GatewayArgs, NodeArgs, duration::parse_duration, interest::InterestArgs,
    until_ended::until_ended,
};

#[derive(Args)]
#[command(after_help = "\
Prints events to standard output, one JSON object per line, or with --pretty over several lines;
`publish -` reads both. Gaps and other notifications go to standard error, as JSON too. An event
that comes again, with the same source and id, is printed once.

When the stream is lost (the gateway drains, crashes or is not reached), another one is opened, on
the next of the gateways in --gateway, and resumes after the last event. Events that are lost are
reported as a gap. With --once, the end of the stream is the end of the command: exit code 69.

Examples:
  trunkline subscribe --kind blocked-ip --kind certificate-change
  trunkline subscribe --account a1 --max-events 1
  trunkline subscribe --custom-type 'com.example.*' --for 10s
  trunkline subscribe --gateway gateway-1,gateway-2
  trunkline subscribe --follow-interest accounts.txt
  trunkline subscribe --kind node-joined --kind node-left --current-nodes
  trunkline subscribe --kind custom --pretty
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
    /// Events of the accounts in this file, one a line, as it changes; kinds that concern no
    /// account are delivered regardless
    #[arg(long, value_name = "FILE", conflicts_with = "account")]
    follow_interest: Option<PathBuf>,
    /// Position to start from
    #[arg(long, value_enum, default_value_t = StartArg::Latest)]
    start: StartArg,
    /// Continue after this token (base64, as --all shows it)
    #[arg(long, value_name = "TOKEN", value_parser = parse_token)]
    resume: Option<Token>,
    /// Begin with the nodes that are there, on each stream; with --kind node-joined
    #[arg(long)]
    current_nodes: bool,
    /// Exit when the stream ends, instead of opening another one
    #[arg(long)]
    once: bool,
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
    /// Print whole responses to standard output, gaps included, with resume tokens
    #[arg(long)]
    all: bool,
    /// Print each event over several lines, indented; with --all, each response
    #[arg(long, conflicts_with = "explain")]
    pretty: bool,
    /// Print the filter decision for each event, with its reasons, instead of the events
    #[arg(long)]
    explain: bool,
    /// Print errors as JSON too, and the filter decisions of --explain
    #[arg(long)]
    pub(super) json: bool,
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
        until_ended(self.print_all()).await
    }

    async fn print_all(&self) -> Result<(), Failure> {
        // A wrong address fails at once; a gateway that goes away later is waited for.
        self.gateway.connect().await?;
        let client = self.gateway.client(&self.node)?;
        let client = self.interest.role.iter().fold(client, Builder::role);
        let client = client
            .client_version(concat!("trunkline subscribe ", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Failure::Usage(error.to_string()))?;
        let followed = async {
            let Some(file) = &self.follow_interest else {
                return self.follow(client.subscribe(self.options())).await;
            };
            let accounts = follow::accounts_in(file).map_err(|why| {
                Failure::Input(format!("--follow-interest {}: {why}", file.display()))
            })?;
            let filter = Filter { accounts: accounts.clone(), ..self.interest.filter() };
            let (subscription, interest) = client.watch(self.options().filter(filter));
            tokio::select! {
                ended = self.follow(subscription) => ended,
                error = follow::follow(file, accounts, &interest) => Err(failure(&error)),
            }
        };
        match self.max_duration {
            None => followed.await,
            Some(limit) => timeout(limit, followed).await.unwrap_or(Ok(())),
        }
    }

    fn options(&self) -> SubscribeOptions {
        let mut options = SubscribeOptions::new()
            .filter(self.interest.filter())
            .resume_token(self.resume.clone().map(|token| token.0).unwrap_or_default())
            .max_events(self.max_events)
            .start(match self.start {
                StartArg::Latest => Start::Latest,
                StartArg::Oldest => Start::Oldest,
            })
            .overflow(match self.overflow {
                OverflowArg::Gap => Overflow::Gap,
                OverflowArg::Disconnect => Overflow::Disconnect,
                OverflowArg::Merge => Overflow::Merge,
            });
        if self.interest.include_own {
            options = options.include_own_events();
        }
        if self.explain {
            options = options.explain();
        }
        if self.current_nodes {
            options = options.current_nodes();
        }
        options
    }

    /// Prints what arrives, until the subscription ends.
    async fn follow(&self, mut subscription: Subscription) -> Result<(), Failure> {
        let mut printer = Printer::new(self);
        let mut opened = false;
        loop {
            // Events that arrived together are printed together.
            let next = if let Some(next) = subscription.next().now_or_never() {
                next
            } else {
                printer.flush()?;
                subscription.next().await
            };
            let notification = match next {
                None => return printer.flush(),
                Some(Err(error)) => {
                    printer.flush()?;
                    return Err(failure(&error));
                }
                Some(Ok(notification)) => notification,
            };
            if self.once
                && let Notification::Reconnecting { reason, .. } = &notification
            {
                printer.flush()?;
                let (address, why) = (self.gateway.address(), reason.clone());
                return Err(Failure::Unavailable { address, why });
            }
            opened |= matches!(notification, Notification::Subscribed(_));
            if !opened && matches!(notification, Notification::Gap(_)) {
                let why = "the gateway cannot read this resume_token: print one anew with --all";
                return Err(Failure::Input(format!("--resume: {why}")));
            }
            printer.take(notification, subscription.resume_token())?;
        }
    }
}

fn failure(error: &Error) -> Failure {
    match error.status() {
        Some(status) => Failure::Gateway(status.clone()),
        None => Failure::Other(error.to_string()),
    }
}

/// A resume token, decoded.
#[derive(Clone)]
struct Token(Vec<u8>);

fn parse_token(text: &str) -> Result<Token, String> {
    STANDARD.decode(text).map(Token).map_err(|error| format!("not base64: {error}"))
}
