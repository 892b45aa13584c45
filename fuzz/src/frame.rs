use bytes::Bytes;
use prost::Message;
use trunkline::{
    bus::{
        Epoch, Position,
        redis::envelope::{Body, Envelope, Header, encode_frame, encode_probe},
    },
    hub::log::IndexedFrame,
    proto::bus_v1,
};

/// Bytes from Redis, as a message from a channel and as an entry of history.
pub fn frame(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    for field in [&b"f"[..], b"e", b"n", b"x"] {
        if let Some(envelope) = Envelope::parse_history(b"7-70", field, &bytes) {
            assert_eq!(envelope.position, Position::new(7, 70));
            round_trips(&envelope);
        }
    }
    if let Some(Envelope { body: Body::Frame(stamped), .. }) =
        Envelope::parse_history(b"7-70", b"f", &bytes)
        && let Ok(message) = bus_v1::Frame::decode(&bytes[..])
    {
        // prost sees the same, where it can read the events.
        assert_eq!(message.events.len() as u64, stamped.frame.count);
        assert_eq!(message.sequence, stamped.sequence);
        assert_eq!(message.writer, stamped.writer);
    }
    if let Some(envelope) = Envelope::parse(bytes) {
        round_trips(&envelope);
    }
}

/// An envelope is decoded unchanged from its own encoding.
fn round_trips(envelope: &Envelope) {
    let position = envelope.position;
    let encoded = match &envelope.body {
        // Probes of earlier versions are made by nobody here.
        Body::Unreadable | Body::Forged | Body::Probe { shared: false, .. } => return,
        Body::Probe { writer, number, time_ms, view, .. } => {
            let head = format!("P2 {position} {}|{}|", view.copies, ends(view.floor, &view.ends));
            [head.as_bytes(), &encode_probe(*writer, *number, *time_ms)].concat()
        }
        Body::EpochStart { previous, floor, ends: known } => {
            format!("E2 {position} {previous} {}", ends(*floor, known)).into_bytes()
        }
        Body::Note(lost) => {
            format!("N2 {position} {}:{}-{}", lost.epoch.0, lost.first.0, lost.last.0).into_bytes()
        }
        Body::Frame(stamped) => {
            let frame = &stamped.frame;
            assert!(frame.count >= 1 && frame.first.0 >= 1);
            assert_eq!(frame.last(), position);
            // The log finds as many events as the frame has by its own account.
            assert_eq!(IndexedFrame::new(frame.clone()).events.len() as u64, frame.count);
            let header = Header {
                writer: stamped.writer,
                sequence: stamped.sequence,
                count: frame.count,
                time_ms: frame.time_ms,
                provenance: frame.provenance.as_deref(),
                requests: &stamped.requests,
                retain: &stamped.retain,
                runs: &stamped.runs,
                streams: &stamped.streams,
            };
            channel(position, &encode_frame(&header, &frame.events))
        }
    };
    let decoded = Envelope::parse(encoded.into()).expect("an envelope of ours");
    assert_eq!(format!("{decoded:?}"), format!("{envelope:?}"));
}

fn ends(floor: Epoch, ends: &[Position]) -> String {
    let ends = ends.iter().map(|end| format!(" {}:{}", end.epoch.0, end.offset.0));
    format!("{}{}", floor.0, ends.collect::<String>())
}

/// A message on a channel.
pub fn channel(position: Position, body: &[u8]) -> Vec<u8> {
    [format!("F2 {position} ").as_bytes(), body].concat()
}
