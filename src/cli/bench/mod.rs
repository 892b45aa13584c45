//! `trunkline bench`: load for a gateway that runs, and what it makes of it.

mod clock;
// Parts of it are for benches/side_by_side alone, which has this file too.
#[allow(dead_code)]
mod heard;
mod load;
mod outcome;
mod pace;
#[cfg(test)]
mod tests;

use std::time::Duration;

use clap::Args;
use trunkline_proto::v1::ListNodesRequest;

use self::load::Load;
use super::{Failure, Gateway, subscribe::parse_duration};

/// Names of nodes that are told to whoever would disturb them.
const NAMED: usize = 5;

#[derive(Args)]
#[command(after_help = "\
Publishes custom events of a type of its own, trunkline.bench.<id>, and subscribes to that type alone. Other nodes that hold a
stream without a filter of custom types get the events too; mail servers pass over them. Where such nodes may be connected,
--yes is asked for. What is published stays in the history of the bus until it expires.

Without --rate, each publisher has --in-flight requests under way, and waits while subscribers are far behind; latency counts
from when a request is sent. With --rate it counts from when an event was to be sent, whatever the answers do.

Examples:
  trunkline bench                                             one publisher to ten subscribers, as fast as it goes
  trunkline bench --rate 1000 --subscribers 100 --for 30s     the latency at a steady rate
  trunkline bench --batch 100 --publishers 4 --json           100 events a request; the figures as JSON")]
pub(super) struct Bench {
    #[command(flatten)]
    gateway: Gateway,
    /// Publishers, each on a connection of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    publishers: u32,
    /// Subscribers; each gets every event
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    subscribers: u32,
    /// Subscribers on one connection
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    per_connection: u32,
    /// Events a second, of all publishers together [default: as fast as they are acknowledged]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Events of a request
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: u32,
    /// Requests that a publisher has under way; with --rate, that all have at the most
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    in_flight: Option<u32>,
    /// Bytes of content of an event
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(0..=16_777_216))]
    size: u32,
    /// For how long: 10s, 5m
    #[arg(long = "for", value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    length: Duration,
    /// Even if other nodes are connected
    #[arg(long)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Bench {
    pub(super) async fn run(&self) -> Result<(), Failure> {
        if self.length.is_zero() {
            return Err(Failure::Usage("--for must be longer than nothing".into()));
        }
        let id = uuid::Uuid::new_v4().simple().to_string()[..8].to_owned();
        self.ask(&id).await?;
        eprintln!(
            "publishing custom events of the type {} for {:?}; end it with Ctrl-C",
            load::event_type(&id),
            self.length
        );
        let load = Load::start(self, &id).await?;
        let measured = load.measure(self.length).await;
        let outcome = load.end(measured).await;
        outcome.print(self.json)?;
        outcome.verdict()
    }

    /// Refuses to disturb other nodes unless told to.
    async fn ask(&self, id: &str) -> Result<(), Failure> {
        let mut client = self.gateway.connect().await?;
        if self.yes {
            return Ok(());
        }
        let request = ListNodesRequest { page_size: 1_000, ..ListNodesRequest::default() };
        let page = client.list_nodes(request).await?.into_inner();
        let Some(last) = page.nodes.len().checked_sub(1) else { return Ok(()) };
        let named = page.nodes.iter().take(NAMED).map(|node| node.node_id.as_str());
        let named = named.collect::<Vec<_>>().join(", ");
        let (count, more) = match last + 1 {
            _ if !page.next_page_token.is_empty() => ("more than 1000 nodes".to_owned(), ", ..."),
            1 => ("1 node".to_owned(), ""),
            count if count > NAMED => (format!("{count} nodes"), ", ..."),
            count => (format!("{count} nodes"), ""),
        };
        Err(Failure::Usage(format!(
            "connected: {count} ({named}{more}). Those without a filter of custom types would get every event \
             of {}; say --yes to go on",
            load::event_type(id)
        )))
    }
}
