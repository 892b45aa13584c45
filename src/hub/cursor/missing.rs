//! Missing events, as a stream is told of them.

use std::time::SystemTime;

use prost::Message;
use trunkline_proto::kinds::is_made_by_gateways;

use crate::{
    bus::{Gap, GapReason, Lost, Offset, Position, unix_ms},
    hub::event::EventView,
    proto::v1::{self, event::Kind},
};

/// Events of a shard that a stream will not get: an unbroken run of names, or nobody knows what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The reason.
    pub reason: GapReason,
    /// The position before the first missing event.
    pub from: Position,
    /// The position of the last missing event.
    pub to: Position,
    /// The number of missing events, if known. Then `from` and `to` are of one epoch.
    pub missed: Option<u64>,
    /// The time at which the last event before the gap was published, in milliseconds since 1970,
    /// if known.
    pub from_ms: Option<u64>,
    /// The time at which the gap was found, in milliseconds since 1970.
    pub to_ms: u64,
    /// The place at which the stream stands.
    pub place: Position,
    /// The way of the report, if a link lost events of another deployment.
    pub origin: Option<v1::Origin>,
    /// The names that count as had once this was reported.
    pub(super) names: Vec<Lost>,
}

impl Missing {
    /// A run of names that a gap names.
    pub(super) fn run(gap: &Gap, lost: Lost, place: Position) -> Missing {
        Missing {
            reason: gap.reason,
            from: Position { epoch: lost.epoch, offset: Offset(lost.first.0.saturating_sub(1)) },
            to: Position { epoch: lost.epoch, offset: lost.last },
            missed: Some(lost.count()),
            from_ms: gap.from_ms,
            to_ms: gap.to_ms,
            place,
            origin: None,
            names: vec![lost],
        }
    }

    /// A gap of an unknown number of events. Whatever is known of earlier epochs may be among them:
    /// `ends` are their last names.
    pub(super) fn unknown(gap: &Gap, place: Position, ends: &[Position]) -> Missing {
        let earlier = ends.iter().filter(|end| end.epoch < gap.position.epoch);
        let names =
            earlier.map(|end| Lost { epoch: end.epoch, first: Offset(1), last: end.offset });
        Missing {
            reason: gap.reason,
            from: place,
            to: gap.position,
            missed: None,
            from_ms: gap.from_ms,
            to_ms: gap.to_ms,
            place,
            origin: None,
            names: names.chain(gap.lost.iter().copied()).collect(),
        }
    }

    /// One event that the stream may have had under another name.
    pub(super) fn in_doubt(name: Position, place: Position) -> Missing {
        let lost = Lost { epoch: name.epoch, first: name.offset, last: name.offset };
        let gap = Gap {
            reason: GapReason::EpochChanged,
            lost: vec![],
            more: false,
            position: place,
            from_ms: None,
            to_ms: unix_ms(),
        };
        Missing::run(&gap, lost, place)
    }

    /// The report of a link or of gateways, which is an event with this name: a gap that stands in
    /// its place.
    pub(super) fn report(event: &EventView<'_>, name: Position, place: Position) -> Missing {
        let event = v1::Event::decode(event.bytes()).unwrap_or_default();
        let (missed, kinds) = match event.kind {
            Some(Kind::MissedEvents(report)) => (report.missed_events, report.kinds),
            _ => (None, vec![]),
        };
        let of_nodes = !kinds.is_empty() && kinds.iter().all(|kind| is_made_by_gateways(*kind));
        let reported = event.publish_time.and_then(|time| SystemTime::try_from(time).ok());
        let since = reported.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        let to_ms = since.and_then(|since| u64::try_from(since.as_millis()).ok());
        Missing {
            reason: if of_nodes { GapReason::NotPublished } else { GapReason::Link },
            missed,
            to_ms: to_ms.unwrap_or_else(unix_ms),
            origin: event.origin,
            ..Missing::in_doubt(name, place)
        }
    }
}
