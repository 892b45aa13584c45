//! How a gateway does, as `GetStatus` says it.

use crate::proto::v1;
use crate::{observe::counters::Counters, presence::timestamp, rpc::service::Shared};

impl Shared {
    /// What `GetStatus` says, and the page and the admin port's API with it.
    pub fn status(&self) -> v1::GetStatusResponse {
        let reason = self.why_not_serving();
        let gaps = self.counters.gaps_of_all_reasons();
        let mut response = v1::GetStatusResponse {
            gateway_id: self.gateway_id.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            start_time: Some(timestamp(self.started)),
            stream_gaps: gaps.gaps,
            missed_events: gaps.missed_events,
            errors: self.counters.errors_of_all_methods(),
            published_by_kind: kind_counts(&self.counters),
            streams: u32::try_from(self.nodes.count()).unwrap_or(u32::MAX),
            behind_events: self.nodes.behind(),
            published_events: self.counters.published_events(),
            delivered_events: self.counters.delivered_events(),
            serving: reason.is_none(),
            reason: reason.unwrap_or_default(),
            ..Default::default()
        };
        let Some(hub) = self.hub.get() else { return response };
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
                        .proof_age
                        .and_then(|age| prost_types::Duration::try_from(age).ok()),
                    proven: shard.proven,
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
        response
    }
}

/// Events accepted, of each kind of which there were any.
fn kind_counts(counters: &Counters) -> Vec<v1::KindCount> {
    let counts = counters.published_by_kind().filter(|(_, events)| *events > 0);
    counts.map(|(kind, events)| v1::KindCount { kind, events }).collect()
}
