//! `trunkline status`.

use std::{io::Write, time::Duration};

use clap::Args;
use trunkline::json;
use trunkline_proto::v1::{GetStatusRequest, LeaveReason};

use super::{Failure, GatewayArgs, agents, duration::two_units, visible, visible_json};

#[derive(Args)]
#[command(after_help = "\
Examples:
  trunkline status                   exit code 0 if the gateway serves, 69 if it does not
  trunkline status --json | jq .shards
  trunkline status --json | jq '.agents[].agent'

Agents of all gateways are listed, with the programs that they serve.")]
pub(super) struct Status {
    #[command(flatten)]
    gateway: GatewayArgs,
    /// Print JSON, errors too
    #[arg(long)]
    pub(super) json: bool,
}

impl Status {
    pub(super) async fn run(&self) -> Result<(), Failure> {
        let mut client = self.gateway.connect().await?;
        let status = client.get_status(GetStatusRequest {}).await?.into_inner();
        let agents = agents::list(&mut client).await?;
        let mut out = std::io::stdout().lock();
        if self.json {
            let mut json = json::to_json("GetStatusResponse", &status).map_err(Failure::Other)?;
            let agents = agents.iter().map(|node| json::to_json("Node", node));
            json["agents"] = agents.collect::<Result<Vec<_>, _>>().map_err(Failure::Other)?.into();
            writeln!(out, "{}", visible_json(&format!("{json:#}")))?;
        } else {
            let state = if status.serving { "serving" } else { "NOT SERVING" };
            let (id, version) = (visible(&status.gateway_id), visible(&status.version));
            writeln!(out, "gateway   {id} (version {version})")?;
            writeln!(
                out,
                "state     {state}{}{}",
                if status.reason.is_empty() { "" } else { ": " },
                visible(&status.reason)
            )?;
            writeln!(out, "bus       {}", visible(&status.bus))?;
            writeln!(out, "streams   {} ({} events behind)", status.streams, status.behind_events)?;
            writeln!(
                out,
                "events    {} published, {} delivered",
                status.published_events, status.delivered_events
            )?;
            writeln!(
                out,
                "gaps      {} sent to streams ({} events missed), {} on the bus",
                status.stream_gaps, status.missed_events, status.bus_gaps
            )?;
            for moves in &status.stream_moves {
                writeln!(
                    out,
                    "moves     {} streams asked to leave ({}), {} have",
                    moves.asked_streams,
                    leave_reason(moves.reason()),
                    moves.left_streams
                )?;
            }
            if status.rebalancing {
                writeln!(out, "moves     going on: other gateways have fewer streams")?;
            }
            writeln!(
                out,
                "problems  {} errors, {} unreadable frames",
                status.errors, status.unreadable_frames
            )?;
            for link in &status.links {
                let state = if link.connected { "up" } else { "DOWN" };
                writeln!(
                    out,
                    "link      {} ({}) {state}, {} reconnects",
                    visible(&link.address),
                    visible(&link.purpose),
                    link.reconnects
                )?;
            }
            for shard in &status.shards {
                let age = shard.proof_age.and_then(|age| Duration::try_from(age).ok());
                let state = match age {
                    Some(age) if shard.proven => format!("verified {} ago", two_units(age)),
                    Some(age) => format!("NOT VERIFIED, last {} ago", two_units(age)),
                    None => "NOT VERIFIED yet".into(),
                };
                writeln!(
                    out,
                    "shard     {} at {}-{}, {state}, log {} events, {} repairs",
                    shard.shard, shard.epoch, shard.offset, shard.log_events, shard.repairs
                )?;
            }
            for node in &agents {
                let Some(agent) = &node.agent else { continue };
                for (about, text) in agents::lines(node, agent) {
                    writeln!(out, "{about:9} {text}")?;
                }
            }
        }
        if status.serving {
            return Ok(());
        }
        Err(Failure::Unavailable { address: self.gateway.address(), why: status.reason })
    }
}

/// Why streams were asked to leave.
fn leave_reason(reason: LeaveReason) -> &'static str {
    match reason {
        LeaveReason::Unspecified => "a reason that this version does not know",
        LeaveReason::Stopping => "the gateway is being stopped",
        LeaveReason::Rebalance => "other gateways have fewer",
        LeaveReason::MaxAge => "limits.maxStreamAge",
    }
}
