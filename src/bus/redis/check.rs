//! What must hold for any bytes that come from Redis: for the fuzz targets and the tests.

use bytes::Bytes;
use prost::Message;

use super::{
    envelope::{Body, Envelope, Header, encode_beacon, encode_frame},
    order::{Order, Step},
};
use crate::{
    bus::{Delivery, Epoch, Offset, Position, put_event},
    hub::log::Indexed,
    proto::bus_v1,
};

/// Bytes as they come over a channel and, again, as an entry of history.
pub(crate) fn frame(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    for field in [&b"f"[..], b"e", b"x"] {
        if let Some(envelope) = Envelope::from_history(b"7-70", field, &bytes, None) {
            assert_eq!(envelope.position, Position::new(7, 70));
            comes_back(&envelope);
        }
    }
    if let Some(Envelope { body: Body::Frame(stamped), .. }) =
        Envelope::from_history(b"7-70", b"f", &bytes, None)
        && let Ok(message) = bus_v1::Frame::decode(&bytes[..])
    {
        // prost sees the same, where it can read the events.
        assert_eq!(message.events.len() as u64, stamped.frame.count);
        assert_eq!(message.sequence, stamped.sequence);
        assert_eq!(message.writer, stamped.writer);
    }
    if let Some(envelope) = Envelope::parse(bytes) {
        comes_back(&envelope);
    }
}

/// What was read is read again, the same, from what it is encoded to.
fn comes_back(envelope: &Envelope) {
    let position = envelope.position;
    let encoded = match &envelope.body {
        Body::Unreadable | Body::Forged => return,
        Body::Beacon { writer, number } => channel(position, &encode_beacon(*writer, *number, 2)),
        Body::EpochStart { previous } => format!("E1 {position} {previous}").into_bytes(),
        Body::Frame(stamped) => {
            let frame = &stamped.frame;
            assert!(frame.count >= 1 && frame.first.0 >= 1);
            assert_eq!(frame.last(), position);
            let indexed = Indexed::new(frame.clone());
            assert_eq!(indexed.events.len() as u64, frame.count);
            let header = Header {
                writer: stamped.writer,
                sequence: stamped.sequence,
                count: frame.count,
                time_ms: frame.time_ms,
                origin: frame
                    .origin
                    .map(|last| (last.epoch, Offset(last.offset.0 - (frame.count - 1)))),
            };
            channel(position, &encode_frame(&header, &frame.events))
        }
    };
    let again = Envelope::parse(encoded.into()).expect("an envelope of ours");
    assert_eq!(format!("{again:?}"), format!("{envelope:?}"));
}

fn channel(position: Position, body: &[u8]) -> Vec<u8> {
    [format!("T1 {position} ").as_bytes(), body].concat()
}

/// A shard's order, whatever comes in whatever sequence: places only rise, and each delivery begins where the one before ended.
/// Eight bytes make one arrival.
pub(crate) fn order(bytes: &[u8]) {
    let mut order = Order::default();
    for arrival in bytes.chunks_exact(8) {
        let before = order.position();
        let mut out = Vec::new();
        if arrival[0] & 0x30 == 0x30 {
            order.finish_history(position(arrival[1], arrival[2]), &mut out);
        } else if let Some(envelope) = arrival_of(arrival) {
            if arrival[0] & 0x10 == 0 {
                order.take_history(&envelope, &mut out);
            } else if let Step::Next(delivery) = order.offer(&envelope) {
                out.push(delivery);
            }
        }
        let end = out.iter().fold(before, follows);
        // Until a place is known, there is nothing that could be missing.
        assert!(end == order.position() || !before.is_known(), "{end} is not {}", order.position());
        assert!(order.position() >= before);
    }
}

fn arrival_of(bytes: &[u8]) -> Option<Envelope> {
    let at = position(bytes[1], bytes[2]);
    let body = match bytes[0] & 3 {
        0 => return Some(Envelope { position: at, body: Body::Unreadable }),
        1 => {
            let previous = position(bytes[6], bytes[7]);
            return Envelope::parse(format!("E1 {at} {previous}").into());
        }
        2 => encode_beacon(u64::from(bytes[4]), 1, 2),
        _ => {
            let count = u64::from(bytes[3] % 8) + 1;
            let mut events = Vec::new();
            (0..count).for_each(|_| put_event(&mut events, b""));
            let origin = (bytes[6] != 0)
                .then(|| (Epoch(u64::from(bytes[6] % 4)), Offset(u64::from(bytes[7]))));
            let header = Header {
                writer: u64::from(bytes[4] % 4),
                sequence: u64::from(bytes[5]),
                count,
                time_ms: 1,
                origin,
            };
            encode_frame(&header, &events)
        }
    };
    Envelope::parse(channel(at, &body).into())
}

/// A place in one of a few epochs; some are at the very end.
fn position(epoch: u8, offset: u8) -> Position {
    let far = if epoch & 0x80 == 0 { 0 } else { u64::MAX - 255 };
    Position::new(u64::from(epoch % 4), far + u64::from(offset))
}

/// Where a delivery ends, which must begin at `at`.
fn follows(at: Position, delivery: &Delivery) -> Position {
    match delivery {
        Delivery::Start(position) => *position,
        Delivery::Epoch(position) => {
            assert!(*position > at);
            *position
        }
        Delivery::Frame(frame) | Delivery::Again(frame) => {
            if at.is_known() {
                assert_eq!(
                    Position { epoch: frame.epoch, offset: frame.first },
                    Position { epoch: at.epoch, offset: at.offset.plus(1) }
                );
            }
            frame.last()
        }
        Delivery::Gap(gap) => {
            assert_eq!(gap.from, at);
            assert!(gap.to >= at);
            if let Some(missed) = gap.missed {
                assert_eq!((gap.to.epoch, gap.to.offset), (at.epoch, at.offset.plus(missed)));
            }
            gap.to
        }
    }
}
