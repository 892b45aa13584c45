//! The answer of `/api/status`: JSON for the page, which changes with it. Programs use `/metrics`
//! and `GetStatus`.

use std::time::Duration;

use serde::Serialize;

use super::{
    Sources,
    metrics::reason_name,
    samples::{self, Point, Samples},
    values::{milliseconds, state_name, whole},
};
use crate::{
    bus::{self, Epoch, Happening, unix_ms},
    observe::{
        counters::Method,
        recent::{EndedStream, Refusal, SentGap},
    },
    proto::v1,
};

/// The state of a gateway. Durations are in milliseconds, times in milliseconds since 1970.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    now: u64,
    gateway: String,
    version: String,
    started: u64,
    uptime: u64,
    bus: String,
    serving: bool,
    draining: bool,
    /// The reason why it does not serve; empty while it does.
    reason: String,
    /// Open `Subscribe` and `Watch` streams, those that are `Watch`, and `PublishStream` streams.
    streams: u32,
    watches: u64,
    publish_streams: u64,
    /// Streams that were asked to go on elsewhere, and whether others have fewer now.
    moves: Vec<Moves>,
    rebalancing: bool,
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
    /// What happened to the bus, as far as it has changed.
    incidents: Vec<Incident>,
    /// The names of the kinds, in the order of [`Point::published`].
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
    /// As a text, since it may be greater than the numbers of JavaScript.
    epoch: String,
    epoch_began: u64,
    offset: u64,
    verified: bool,
    /// Milliseconds since it was last verified.
    verified_age: Option<u64>,
    log_events: u64,
    log_limit_events: u64,
    log_bytes: u64,
    log_limit_bytes: u64,
    repairs: u64,
    epoch_changes: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Moves {
    reason: String,
    asked: u64,
    left: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Incident {
    number: u64,
    change: u64,
    began: u64,
    /// None while it goes on.
    ended: Option<u64>,
    /// None for what is of no single shard.
    shard: Option<u16>,
    #[serde(flatten)]
    what: What,
}

/// [`Happening`]
#[derive(Debug, Serialize)]
#[serde(tag = "what", rename_all = "camelCase", rename_all_fields = "camelCase")]
enum What {
    Recovery { epoch: String, restored: u64, lost: u64, more_lost: bool },
    Unverified { why: String },
    Missing { reason: &'static str, gaps: u64, events: u64 },
    Repaired { events: u64, times: u64 },
    Subscribed { server: String, times: u64 },
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
    /// Node, identity and address, as far as they are known.
    who: String,
    method: &'static str,
    reason: String,
    /// The rule, limit or field; empty where it is none.
    rule: String,
    text: String,
}

/// The current view, with the points after number `after`, and what happened after `change`.
pub fn view(sources: &Sources, samples: &Samples, after: u64, change: u64) -> View {
    let status = sources.status();
    let recent = &sources.records.recent;
    let errors = Method::ALL.into_iter().flat_map(|method| {
        let counts = sources.records.counters.errors(method).filter(|(_, count)| *count > 0);
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
        started: milliseconds(sources.gateway.about.started),
        uptime: whole(sources.gateway.about.uptime()),
        bus: status.bus,
        serving: status.serving,
        draining: sources.gateway.is_draining(),
        reason: status.reason,
        streams: status.streams,
        watches: sources.nodes.watches().0,
        publish_streams: sources.records.counters.publish_streams(),
        moves: status.stream_moves.iter().map(Moves::from).collect(),
        rebalancing: status.rebalancing,
        streams_limit: sources.nodes.max_streams(),
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
        incidents: sources.gateway.hub.get().map_or_else(Vec::new, |hub| {
            hub.bus().incidents(change).into_iter().map(Incident::from).collect()
        }),
        kinds: samples::kinds(),
        points: samples.after(after),
    }
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
            epoch: shard.epoch.to_string(),
            epoch_began: Epoch(shard.epoch).opened_ms(),
            offset: shard.offset,
            verified: shard.proven,
            verified_age: shard.proof_age.and_then(|age| Duration::try_from(age).ok()).map(whole),
            log_events: shard.log_events,
            log_limit_events: shard.log_limit_events,
            log_bytes: shard.log_bytes,
            log_limit_bytes: shard.log_limit_bytes,
            repairs: shard.repairs,
            epoch_changes: shard.epoch_changes,
        }
    }
}

impl From<&v1::StreamMoves> for Moves {
    fn from(moves: &v1::StreamMoves) -> Moves {
        Moves {
            reason: state_name(moves.reason().as_str_name(), "LEAVE_REASON_"),
            asked: moves.asked_streams,
            left: moves.left_streams,
        }
    }
}

impl From<bus::Incident> for Incident {
    fn from(incident: bus::Incident) -> Incident {
        Incident {
            number: incident.number,
            change: incident.change,
            began: incident.began_ms,
            ended: incident.ended_ms,
            shard: incident.shard.map(|shard| shard.0),
            what: match incident.what {
                Happening::Recovery { epoch, restored, lost, more_lost } => {
                    What::Recovery { epoch: epoch.0.to_string(), restored, lost, more_lost }
                }
                Happening::Unverified { why } => What::Unverified { why },
                Happening::Missing { reason, gaps, events } => {
                    What::Missing { reason: reason_name(reason), gaps, events }
                }
                Happening::Repaired { events, times } => What::Repaired { events, times },
                Happening::Subscribed { server, times } => What::Subscribed { server, times },
            },
        }
    }
}

impl From<SentGap> for Gap {
    fn from(gap: SentGap) -> Gap {
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
            who: refusal.who,
            rule: refusal.rule.unwrap_or_default(),
            method: refusal.method.name(),
            reason: refusal.reason.to_ascii_lowercase(),
            text: refusal.text,
        }
    }
}
