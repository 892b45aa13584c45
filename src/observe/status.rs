//! The answer of `GetStatus`, which the page shows too.

use super::counters::Counters;
use crate::{
    hub::Hub,
    leave::LeaveReason,
    lifecycle::Lifecycle,
    presence::{Nodes, moves::Moves, timestamp},
    proto::v1,
};

/// The status of this gateway now.
pub fn status(gateway: &Lifecycle, nodes: &Nodes, counters: &Counters) -> v1::GetStatusResponse {
    let reason = gateway.why_not_serving();
    let gaps = counters.gaps_of_all_reasons();
    let mut response = v1::GetStatusResponse {
        gateway_id: gateway.about.gateway_id.clone(),
        deployment: gateway.about.deployment.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        start_time: Some(timestamp(gateway.about.started)),
        uptime: prost_types::Duration::try_from(gateway.about.uptime()).ok(),
        stream_gaps: gaps.gaps,
        missed_events: gaps.missed_events,
        errors: counters.errors_of_all_methods(),
        published_by_kind: kind_counts(counters),
        streams: u32::try_from(nodes.count()).unwrap_or(u32::MAX),
        behind_events: nodes.behind(),
        published_events: counters.published_events(),
        delivered_events: counters.delivered_events(),
        serving: reason.is_none(),
        reason: reason.or_else(|| gateway.why_partial()).unwrap_or_default(),
        stream_moves: stream_moves(&nodes.moves),
        rebalancing: nodes.moves.is_moving(),
        ..Default::default()
    };
    if let Some(hub) = gateway.hub.get() {
        describe_bus(hub, &mut response);
    }
    response
}

/// The part of the status that there is once the bus has started.
fn describe_bus(hub: &Hub, response: &mut v1::GetStatusResponse) {
    let bus = hub.bus();
    response.bus = bus.kind().into();
    let status = bus.status();
    response.bus_gaps = status.gaps.iter().map(|count| count.gaps).sum();
    response.unreadable_frames = status.unreadable;
    response.links = status
        .links
        .into_iter()
        .map(|link| v1::BusLink {
            address: link.address,
            purpose: link.purpose.into(),
            connected: link.connected,
            reconnects: link.reconnects,
        })
        .collect();
    response.shards = status
        .shards
        .iter()
        .zip(hub.logs())
        .zip(0..)
        .map(|((shard, log), id)| {
            let extent = log.extent();
            v1::ShardStatus {
                shard: id,
                epoch: extent.end.epoch.0,
                offset: extent.end.offset.0,
                proof_age: shard
                    .verified_age
                    .and_then(|age| prost_types::Duration::try_from(age).ok()),
                proven: shard.verified,
                log_events: extent.events as u64,
                log_bytes: extent.bytes as u64,
                repairs: shard.repairs,
                received_events: extent.total,
                log_limit_events: log.capacity().events as u64,
                log_limit_bytes: log.capacity().bytes as u64,
                epoch_changes: extent.epoch_changes,
            }
        })
        .collect();
    let unverified = status.shards.iter().zip(0..).filter(|(shard, _)| !shard.verified);
    response.unverified_shards = unverified.map(|(_, id)| id).collect();
}

/// Streams that were asked to leave, by the reasons of which there are any.
fn stream_moves(moves: &Moves) -> Vec<v1::StreamMoves> {
    let of = |reason: LeaveReason| v1::StreamMoves {
        reason: match reason {
            LeaveReason::Stopping => v1::LeaveReason::Stopping,
            LeaveReason::Rebalance => v1::LeaveReason::Rebalance,
            LeaveReason::MaxAge => v1::LeaveReason::MaxAge,
        }
        .into(),
        asked_streams: moves.asked(reason),
        left_streams: moves.ended_after(reason),
    };
    LeaveReason::ALL.map(of).into_iter().filter(|moves| moves.asked_streams > 0).collect()
}

/// Accepted events of each kind of which there are any.
fn kind_counts(counters: &Counters) -> Vec<v1::KindCount> {
    let counts = counters.published_by_kind().filter(|(_, events)| *events > 0);
    counts.map(|(kind, events)| v1::KindCount { kind, events }).collect()
}
