use std::collections::BTreeMap;

use trunkline::bus::{
    Delivery, Epoch, Name, Offset, Position, Provenance, put_event,
    redis::{
        envelope::{Body, Envelope, Header, encode_frame, encode_probe},
        order::{Order, Step},
        recovery::ShardView,
    },
};

use super::frame::channel;

/// The order of a shard, for any envelopes in any sequence: no place is delivered twice, and each
/// delivery follows the last one of its epoch. Eight bytes make one arrival.
pub fn order(bytes: &[u8]) {
    let mut order = Order::default();
    let mut ends = BTreeMap::new();
    for arrival in bytes.chunks_exact(8) {
        let before = order.position();
        let mut out = Vec::new();
        if arrival[0] & 0x30 == 0x30 {
            let tip = position(arrival[1], arrival[2]);
            order.finish_history(&ShardView { tip, ..ShardView::default() }, &mut out);
        } else if let Some(envelope) = arrival_of(arrival) {
            if arrival[0] & 0x10 == 0 {
                order.take_history(&envelope, &mut out);
            } else if let Step::Next(delivery) = order.offer(&envelope) {
                out.push(delivery);
            }
        }
        for delivery in &out {
            follows(&mut ends, delivery);
        }
        if !before.is_known() {
            // The first position is not delivered: what comes next follows it.
            handled(&mut ends, order.position());
        }
        let end = out.last().map(place);
        // Until a position is known, nothing can be missing.
        assert!(end.is_none_or(|end| end == order.position()) || !before.is_known());
    }
}

fn arrival_of(bytes: &[u8]) -> Option<Envelope> {
    let at = position(bytes[1], bytes[2]);
    let body = match bytes[0] & 3 {
        0 => return Some(Envelope { position: at, body: Body::Unreadable }),
        1 => {
            let previous = position(bytes[6], bytes[7]);
            return Envelope::parse(format!("E2 {at} {previous} 0").into());
        }
        2 => {
            let probe = encode_probe(u64::from(bytes[4]), 1, 2);
            let bytes = [format!("P2 {at} |0|").as_bytes(), &probe].concat();
            return Envelope::parse(bytes.into());
        }
        _ => {
            let count = u64::from(bytes[3] % 8) + 1;
            let mut events = Vec::new();
            (0..count).for_each(|_| put_event(&mut events, b""));
            let name = (bytes[6] != 0).then(|| Name {
                epoch: Epoch(u64::from(bytes[6] % 4)),
                first: Offset(u64::from(bytes[7])),
                count,
                left: vec![],
            });
            let provenance = Provenance { name, ..Provenance::default() };
            let header = Header {
                writer: u64::from(bytes[4] % 4),
                sequence: u64::from(bytes[5]),
                count,
                time_ms: 1,
                provenance: Some(&provenance),
                requests: &[],
                retain: &[],
                runs: &[],
                streams: &[],
            };
            encode_frame(&header, &events)
        }
    };
    Envelope::parse(channel(at, &body).into())
}

/// A position in one of a few epochs; some are at the very end.
fn position(epoch: u8, offset: u8) -> Position {
    let far = if epoch & 0x80 == 0 { 0 } else { u64::MAX - 255 };
    Position::new(u64::from(epoch % 4), far + u64::from(offset))
}

/// The place of a delivery.
fn place(delivery: &Delivery) -> Position {
    match delivery {
        Delivery::Start(start) | Delivery::Epoch(start) => start.position,
        Delivery::Frame(frame) => frame.last(),
        Delivery::Gap(gap) => gap.position,
    }
}

/// A delivery follows the last one of its epoch.
fn follows(ends: &mut BTreeMap<Epoch, Offset>, delivery: &Delivery) {
    let at = place(delivery);
    let before = ends.get(&at.epoch).copied();
    match delivery {
        Delivery::Frame(frame) => {
            if let Some(before) = before {
                assert_eq!(frame.first, before.plus(1));
            }
        }
        Delivery::Start(_) | Delivery::Epoch(_) | Delivery::Gap(_) => {
            assert!(before.is_none_or(|before| at.offset >= before));
        }
    }
    handled(ends, at);
    if let Delivery::Gap(gap) = delivery {
        assert!(gap.more || !gap.lost.is_empty());
        for lost in &gap.lost {
            assert!(lost.first <= lost.last);
            handled(ends, Position { epoch: lost.epoch, offset: lost.last });
        }
    }
    // What came as a copy is not expected at its own place any more.
    if let Delivery::Frame(frame) = delivery
        && let Some(name) = frame.provenance.as_ref().and_then(|all| all.name.as_ref())
    {
        handled(ends, name.last());
    }
}

fn handled(ends: &mut BTreeMap<Epoch, Offset>, last: Position) {
    let end = ends.entry(last.epoch).or_default();
    *end = (*end).max(last.offset);
}
