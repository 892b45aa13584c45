//! `trunkline status`.

use std::time::Duration;

use clap::Args;
use trunkline::proto::v1::GetStatusRequest;

use super::{Failure, Gateway, json};

#[derive(Args)]
#[command(after_help = "\
Examples:
  trunkline status                   exit code 0 if the gateway serves, 69 if it does not
  trunkline status --json | jq .shards")]
pub(super) struct Status {
    #[command(flatten)]
    gateway: Gateway,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) async fn run(&self) -> Result<(), Failure> {
        let mut client = self.gateway.connect().await?;
        let status = client.get_status(GetStatusRequest {}).await?.into_inner();
        if self.json {
            let json = json::to_json("GetStatusResponse", &status).map_err(Failure::Other)?;
            println!("{json:#}");
        } else {
            let state = if status.serving { "serving" } else { "NOT SERVING" };
            println!("gateway   {} (version {})", status.gateway_id, status.version);
            println!(
                "state     {state}{}{}",
                if status.reason.is_empty() { "" } else { ": " },
                status.reason
            );
            println!("bus       {}", status.bus);
            println!("streams   {} ({} events behind)", status.streams, status.behind_events);
            println!(
                "events    {} published, {} delivered",
                status.published_events, status.delivered_events
            );
            println!(
                "trouble   {} gaps, {} unreadable frames",
                status.bus_gaps, status.unreadable_frames
            );
            for link in &status.links {
                let state = if link.connected { "up" } else { "DOWN" };
                println!(
                    "link      {} ({}) {state}, {} reconnects",
                    link.address, link.purpose, link.reconnects
                );
            }
            for shard in &status.shards {
                let age = shard.proof_age.and_then(|age| Duration::try_from(age).ok());
                let proof = match age {
                    Some(age) if shard.proven => format!("proven {age:.1?} ago"),
                    Some(age) => format!("NOT PROVEN, last {age:.1?} ago"),
                    None => "NOT PROVEN yet".into(),
                };
                println!(
                    "shard     {} at {}-{}, {proof}, log {} events, {} repairs",
                    shard.shard, shard.epoch, shard.offset, shard.log_events, shard.repairs
                );
            }
        }
        if status.serving {
            return Ok(());
        }
        Err(Failure::NoGateway { address: self.gateway.gateway.clone(), why: status.reason })
    }
}
