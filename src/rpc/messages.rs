//! Messages of a stream, from the types of the hub and the bus.

use std::time::{Duration, SystemTime};

use prost::Message;

use crate::{
    bus::{GapReason, Position, ShardId},
    errors::Error,
    hub::{
        cursor::{Cursor, Missing},
        token,
    },
    leave::Leave,
    observe::recent::Recent,
    presence::timestamp,
    proto::v1,
};

/// An error as messages carry it.
pub fn status_of(error: Error) -> trunkline_proto::rpc::Status {
    let status = tonic::Status::from(error);
    trunkline_proto::rpc::Status::decode(status.details()).unwrap_or_else(|_| {
        trunkline_proto::rpc::Status {
            code: status.code().into(),
            message: status.message().to_owned(),
            details: vec![],
        }
    })
}

/// The heartbeat of a stream.
pub fn heartbeat(resume_token: Vec<u8>, unverified_shards: Vec<u32>) -> v1::Heartbeat {
    let gateway_time = Some(timestamp(SystemTime::now()));
    v1::Heartbeat { resume_token, gateway_time, unverified_shards }
}

/// Asks a node to connect to another gateway: to this one, if it knows it.
pub fn draining(leave: Leave, gateway: Option<v1::OtherGateway>) -> v1::Draining {
    v1::Draining {
        reason: leave.reason.text().into(),
        deadline: Some(timestamp(leave.deadline)),
        reconnect_delay: prost_types::Duration::try_from(leave.reconnect_delay).ok(),
        gateway,
    }
}

/// A gap in one shard, on a stream with these `kinds` in its filter.
pub fn gap(shard: ShardId, gap: &Missing, kinds: &[i32], resume_token: Vec<u8>) -> v1::Gap {
    v1::Gap {
        reason: gap_reason(gap.reason).into(),
        shard: shard.0.into(),
        kinds: kinds.to_vec(),
        missed_events: gap.missed,
        from: Some(wire_position(shard, gap.from)),
        to: Some(wire_position(shard, gap.to)),
        from_time: gap.from_ms.map(milliseconds),
        to_time: Some(milliseconds(gap.to_ms)),
        action: v1::GapAction::Resync.into(),
        resume_token,
        origin: gap.origin.clone(),
    }
}

/// A position, as the wire API names it.
pub fn wire_position(shard: ShardId, position: Position) -> v1::Position {
    v1::Position { shard: shard.0.into(), epoch: position.epoch.0, offset: position.offset.0 }
}

/// The resume token of a stream in a deployment, of which a part of the interest may be behind.
pub fn resume_token(deployment: u32, cursor: &Cursor, behind: Option<&Cursor>) -> Vec<u8> {
    let behind = behind.map(Cursor::had_behind);
    let mut bytes = Vec::with_capacity(token::encoded_len(cursor.had(), behind.clone()));
    token::encode_with(deployment, cursor.had(), behind, &mut bytes);
    bytes
}

/// The last gaps that were sent on streams, the latest first. `names`: with the ids of their nodes.
pub fn sent_gaps(recent: &Recent, names: bool) -> Vec<v1::SentGap> {
    let gaps = recent.last_gaps().into_iter();
    gaps.map(|gap| v1::SentGap {
        number: gap.number,
        send_time: Some(timestamp(gap.at)),
        node_id: if names { gap.node_id } else { String::new() },
        shard: gap.shard.0.into(),
        reason: gap_reason(gap.reason).into(),
        missed_events: gap.missed,
    })
    .collect()
}

fn gap_reason(reason: GapReason) -> v1::GapReason {
    match reason {
        GapReason::HistoryExpired => v1::GapReason::HistoryExpired,
        GapReason::EpochChanged => v1::GapReason::EpochChanged,
        GapReason::UnknownEpoch => v1::GapReason::UnknownEpoch,
        GapReason::Unreadable => v1::GapReason::Unreadable,
        GapReason::Link => v1::GapReason::Link,
        GapReason::NotPublished => v1::GapReason::NotPublished,
    }
}

fn milliseconds(ms: u64) -> prost_types::Timestamp {
    timestamp(SystemTime::UNIX_EPOCH + Duration::from_millis(ms))
}
