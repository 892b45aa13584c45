//! `trunkline bench`: puts load on a running gateway, and measures throughput and latency.

mod clock;
mod load;
mod outcome;
mod pace;
mod publishers;
mod received;
mod subscribers;
#[cfg(test)]
mod tests;

use std::time::Duration;

use clap::Args;

use self::load::Load;
pub(super) use self::{
    outcome::{milliseconds, quantiles},
    received::histogram,
};
use super::{Failure, GatewayArgs, duration::parse_duration};

/// Time limit for the opening of a stream and for the answer to a request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Args)]
#[command(after_help = "\
Publishes custom events of a type of its own, trunkline.bench.<id>, and subscribes to that type
alone. Other nodes whose filter does not exclude the type receive the events too; mail servers
ignore them. If other nodes are connected, --yes is required. The events stay in the history of the
bus until it expires.

Without --rate, each publisher keeps --in-flight requests in flight, and waits while subscribers are
far behind; latency counts from the time at which a request is sent. With --rate, it counts from the
time at which an event was due to be sent, whether earlier requests are answered or not.

Examples:
  trunkline bench                    one publisher to ten subscribers, as fast as possible
  trunkline bench --rate 1000 --subscribers 100 --for 30s
                                     the latency at a steady rate
  trunkline bench --batch 100 --publishers 4 --json
                                     100 events per request; the figures as JSON")]
pub(super) struct Bench {
    #[command(flatten)]
    gateway: GatewayArgs,
    /// Publishers, each on a connection of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    publishers: u32,
    /// Subscribers; each receives every event
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    subscribers: u32,
    /// Subscribers per connection
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    per_connection: u32,
    /// Events per second, of all publishers together [default: as fast as they are acknowledged]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Events per request
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: u32,
    /// Requests in flight per publisher; with --rate, at most this many of all publishers
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    in_flight: Option<u32>,
    /// Bytes of payload per event
    #[arg(
        long,
        default_value_t = 128,
        value_parser = clap::value_parser!(u32).range(0..=16_777_216)
    )]
    size: u32,
    /// Duration of the load: 10s, 5m
    #[arg(
        long = "for",
        value_name = "DURATION",
        default_value = "10s",
        value_parser = parse_duration
    )]
    length: Duration,
    /// Run even if other nodes are connected
    #[arg(long)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl Bench {
    pub(super) async fn run(&self) -> Result<(), Failure> {
        if self.length.is_zero() {
            return Err(Failure::Usage("--for must not be zero".into()));
        }
        let id = uuid::Uuid::new_v4().simple().to_string()[..8].to_owned();
        self.gateway.refuse_to_disturb(&event_type(&id), self.yes).await?;
        eprintln!(
            "publishing custom events of the type {} for {:?}; stop it with Ctrl-C",
            event_type(&id),
            self.length
        );
        let load = Load::start(self, &id).await?;
        let measured = load.measure(self.length).await;
        let outcome = load.finish(measured).await;
        outcome.print(self.json)?;
        outcome.result()
    }
}

/// The custom type of the events of the benchmark with this id.
fn event_type(id: &str) -> String {
    format!("trunkline.bench.{id}")
}
