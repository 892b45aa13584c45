use trunkline::bus::{
    Delivery, Epoch, Offset, Position, put_event,
    redis::{
        envelope::{Body, Envelope, Header, encode_frame, encode_probe},
        order::{Order, Step},
    },
};

use super::frame::channel;

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
