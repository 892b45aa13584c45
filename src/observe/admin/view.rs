//! What the page shows, as JSON: `/api/status`. It is made for the page and changes with it; programs have `/metrics` and
//! `GetStatus`.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::observe::admin::{
    metrics::reason_name,
    samples::{self, Point, Samples},
};
use crate::{
    bus::unix_ms,
    observe::{
        counters::Method,
        recent::{EndedStream, Refusal, ToldGap},
    },
    proto::v1,
    rpc::service::Shared,
};

/// How a gateway does. Times are milliseconds, points in time those since 1970.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    now: u64,
    gateway: String,
    version: String,
    started: u64,
    bus: String,
    serving: bool,
    draining: bool,
    /// Why it does not serve.
    reason: String,
    streams: u32,
    streams_limit: usize,
    behind: u64,
    published: u64,
    delivered: u64,
    stream_gaps: u64,
    missed: u64,
    bus_gaps: u64,
    unreadable: u64,
    links: Vec<Link>,
    shards: Vec<Shard>,
    gaps: Vec<Gap>,
    ended: Vec<Ended>,
    errors: Vec<Errors>,
    refused: Vec<Refused>,
    /// The names of the kinds, in the order of `published` of each point.
    kinds: Vec<String>,
    points: Vec<Point>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Link {
    address: String,
    purpose: String,
    connected: bool,
    reconnects: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shard {
    #[serde(rename = "shard")]
    number: u32,
    epoch: u64,
    offset: u64,
    proven: bool,
    proof_age: Option<u64>,
    log_events: u64,
    log_limit_events: u64,
    log_bytes: u64,
    log_limit_bytes: u64,
    repairs: u64,
    epoch_changes: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Gap {
    at: u64,
    node: String,
    shard: u16,
    reason: &'static str,
    missed: Option<u64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ended {
    at: u64,
    node: String,
    peer: String,
    lasted: u64,
    delivered: u64,
    why: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Errors {
    method: &'static str,
    reason: String,
    count: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Refused {
    at: u64,
    method: &'static str,
    reason: String,
    text: String,
}

/// The view now, with the points that follow number `after`.
pub fn view(shared: &Shared, samples: &Samples, after: u64) -> View {
    let status = shared.status();
    let recent = &shared.recent;
    let errors = Method::ALL.into_iter().flat_map(|method| {
        let counts = shared.counters.errors(method).filter(|(_, count)| *count > 0);
        counts.map(move |(reason, count)| Errors {
            method: method.name(),
            reason: reason.to_ascii_lowercase(),
            count,
        })
    });
    View {
        now: unix_ms(),
        gateway: status.gateway_id,
        version: status.version,
        started: milliseconds(shared.started),
        bus: status.bus,
        serving: status.serving,
        draining: shared.drain.borrow().is_some(),
        reason: status.reason,
        streams: status.streams,
        streams_limit: shared.limits.max_streams,
        behind: status.behind_events,
        published: status.published_events,
        delivered: status.delivered_events,
        stream_gaps: status.stream_gaps,
        missed: status.missed_events,
        bus_gaps: status.bus_gaps,
        unreadable: status.unreadable_frames,
        links: status.links.into_iter().map(Link::from).collect(),
        shards: status.shards.into_iter().map(Shard::from).collect(),
        gaps: recent.last_gaps().into_iter().map(Gap::from).collect(),
        ended: recent.last_ended().into_iter().map(Ended::from).collect(),
        errors: errors.collect(),
        refused: recent.last_refused().into_iter().map(Refused::from).collect(),
        kinds: samples::kinds(),
        points: samples.after(after),
    }
}

/// Milliseconds since 1970.
pub fn milliseconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, whole)
}

/// Whole milliseconds.
pub fn whole(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl From<v1::BusLink> for Link {
    fn from(link: v1::BusLink) -> Link {
        let v1::BusLink { address, purpose, connected, reconnects } = link;
        Link { address, purpose, connected, reconnects }
    }
}

impl From<v1::ShardStatus> for Shard {
    fn from(shard: v1::ShardStatus) -> Shard {
        Shard {
            number: shard.shard,
            epoch: shard.epoch,
            offset: shard.offset,
            proven: shard.proven,
            proof_age: shard.proof_age.and_then(|age| Duration::try_from(age).ok()).map(whole),
            log_events: shard.log_events,
            log_limit_events: shard.log_limit_events,
            log_bytes: shard.log_bytes,
            log_limit_bytes: shard.log_limit_bytes,
            repairs: shard.repairs,
            epoch_changes: shard.epoch_changes,
        }
    }
}

impl From<ToldGap> for Gap {
    fn from(gap: ToldGap) -> Gap {
        Gap {
            at: milliseconds(gap.at),
            node: gap.node_id,
            shard: gap.shard.0,
            reason: reason_name(gap.reason),
            missed: gap.missed,
        }
    }
}

impl From<EndedStream> for Ended {
    fn from(ended: EndedStream) -> Ended {
        Ended {
            at: milliseconds(ended.at),
            node: ended.node_id,
            peer: ended.peer,
            lasted: whole(ended.lasted),
            delivered: ended.delivered,
            why: ended.why.name(),
        }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Refused {
        Refused {
            at: milliseconds(refusal.at),
            method: refusal.method.name(),
            reason: refusal.reason.to_ascii_lowercase(),
            text: refusal.text,
        }
    }
}
