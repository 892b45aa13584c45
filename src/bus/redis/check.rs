//! Properties that hold for any bytes from Redis: for the fuzz targets and the tests.

use bytes::Bytes;
use prost::Message;

use super::{
    envelope::{Body, Envelope, Header, encode_frame, encode_probe},
    order::{Order, Step},
};
use crate::{
    bus::{Delivery, Epoch, Frame, Offset, Position, put_event},
    proto::bus_v1,
};

/// Bytes from a channel and, a second time, as an entry of history. `count_events` counts the events
/// of a frame as its readers do.
pub fn frame(bytes: &[u8], count_events: impl Fn(&Frame) -> u64) {
    let bytes = Bytes::copy_from_slice(bytes);
    for field in [&b"f"[..], b"e", b"x"] {
        if let Some(envelope) = Envelope::from_history(b"7-70", field, &bytes, None) {
            assert_eq!(envelope.position, Position::new(7, 70));
            round_trips(&envelope, &count_events);
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
        round_trips(&envelope, &count_events);
    }
}

/// An envelope is decoded unchanged from its own encoding.
fn round_trips(envelope: &Envelope, count_events: impl Fn(&Frame) -> u64) {
    let position = envelope.position;
    let encoded = match &envelope.body {
        Body::Unreadable | Body::Forged => return,
        Body::Probe { writer, number } => channel(position, &encode_probe(*writer, *number, 2)),
        Body::EpochStart { previous } => format!("E1 {position} {previous}").into_bytes(),
        Body::Frame(stamped) => {
            let frame = &stamped.frame;
            assert!(frame.count >= 1 && frame.first.0 >= 1);
            assert_eq!(frame.last(), position);
            assert_eq!(count_events(frame), frame.count);
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
    let decoded = Envelope::parse(encoded.into()).expect("an envelope of ours");
    assert_eq!(format!("{decoded:?}"), format!("{envelope:?}"));
}

fn channel(position: Position, body: &[u8]) -> Vec<u8> {
    [format!("T1 {position} ").as_bytes(), body].concat()
}

/// The order of a shard, for any envelopes in any sequence: positions only rise, and each delivery
/// begins where the one before ended. Eight bytes make one arrival.
pub fn order(bytes: &[u8]) {
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
        // Until a position is known, nothing can be missing.
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
        2 => encode_probe(u64::from(bytes[4]), 1, 2),
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

/// A position in one of a few epochs; some are at the very end.
fn position(epoch: u8, offset: u8) -> Position {
    let far = if epoch & 0x80 == 0 { 0 } else { u64::MAX - 255 };
    Position::new(u64::from(epoch % 4), far + u64::from(offset))
}

/// The end of a delivery, which must begin at `at`.
fn follows(at: Position, delivery: &Delivery) -> Position {
    match delivery {
        Delivery::Start(position) => *position,
        Delivery::Epoch(position) => {
            assert!(*position > at);
            *position
        }
        Delivery::Frame(frame) | Delivery::Restored(frame) => {
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
