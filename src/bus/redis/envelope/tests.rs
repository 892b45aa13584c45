//! Tests of encoding and decoding.

use super::*;

fn header() -> Header {
    Header { writer: 7, sequence: 3, count: 2, time_ms: 1_700_000_000_000, origin: None }
}

fn on_the_channel(position: &str, frame: &[u8]) -> Bytes {
    [b"T1 ", position.as_bytes(), b" ", frame].concat().into()
}

#[test]
fn a_frame_is_decoded_as_it_was_encoded() {
    let events = encode_events([Bytes::from("one"), Bytes::from("two")].iter());
    let frame = encode_frame(&header(), &events);
    let envelope = Envelope::parse(on_the_channel("99-12", &frame)).unwrap();
    assert_eq!(envelope.position, Position::new(99, 12));
    let Body::Frame(stamped) = envelope.body else { panic!("no frame") };
    assert_eq!((stamped.writer, stamped.sequence), (7, 3));
    assert_eq!(stamped.frame.first, Offset(11));
    assert_eq!(stamped.frame.last(), Position::new(99, 12));
    assert_eq!(stamped.frame.events, events);
}

#[test]
fn many_events_are_packed_and_unpacked_unchanged() {
    let events: Vec<_> = (0..100)
        .map(|nth| Bytes::from(format!("event number {nth} of one node and one account")))
        .collect();
    let events = encode_events(events.iter());
    let frame = encode_frame(&Header { count: 100, ..header() }, &events);
    assert!(frame.len() < events.len() / 2, "{} of {}", frame.len(), events.len());
    let read = |frame: &[u8]| Envelope::parse(on_the_channel("99-112", frame)).unwrap().body;
    let Body::Frame(stamped) = read(&frame) else { panic!("no frame") };
    assert_eq!(stamped.frame.events, events);
    assert_eq!(stamped.frame.first, Offset(13));
    for cut in 1..frame.len() {
        assert!(!matches!(read(&frame[..cut]), Body::Frame(_)), "cut at {cut}");
    }
}

#[test]
fn the_origin_of_a_restored_frame_is_that_of_its_last_event() {
    let origin = Some((Epoch(5), Offset(40)));
    let events = encode_events([Bytes::from("one"), Bytes::from("two")].iter());
    let frame = encode_frame(&Header { origin, ..header() }, &events);
    let envelope = Envelope::parse(on_the_channel("99-12", &frame)).unwrap();
    let Body::Frame(stamped) = envelope.body else { panic!("no frame") };
    assert_eq!(stamped.frame.origin, Some(Position::new(5, 41)));
}

#[test]
fn a_position_that_the_script_cannot_assign_is_unreadable() {
    let events = encode_events([Bytes::from("one"), Bytes::from("two")].iter());
    let unreadable = |position: &str, header: Header, events: &[u8]| {
        let frame = encode_frame(&header, events);
        let envelope = Envelope::parse(on_the_channel(position, &frame)).unwrap();
        matches!(envelope.body, Body::Unreadable)
    };
    let far = Header { origin: Some((Epoch(5), Offset(u64::MAX))), ..header() };
    assert!(unreadable("99-12", far, &events), "it would end after the last offset");
    assert!(unreadable("99-1", header(), &events), "it would begin before the first offset");
    let end = format!("99-{}", u64::MAX);
    assert!(unreadable(&end, Header { count: 0, ..header() }, b""), "it holds nothing");
    for epoch in ["E1 99-0 99-12", "E1 99-0 100-12"] {
        let envelope = Envelope::parse(Bytes::from(epoch)).unwrap();
        assert!(matches!(envelope.body, Body::Unreadable), "{epoch}");
    }
}

#[test]
fn an_epoch_start_has_the_end_of_the_epoch_before() {
    let envelope = Envelope::parse(Bytes::from("E1 100-0 99-12")).unwrap();
    assert_eq!(envelope.position, Position::new(100, 0));
    let Body::EpochStart { previous } = envelope.body else { panic!("no epoch") };
    assert_eq!(previous, Position::new(99, 12));
}

#[test]
fn unknown_bytes_are_no_envelope_and_a_wrong_count_is_unreadable() {
    for unknown in ["", "T1", "hello", "T1 12 ", "T2 1-1 x", "T1 a-b c", "E1 1-0 x"] {
        assert!(Envelope::parse(Bytes::from(unknown)).is_none(), "{unknown:?}");
    }
    let events = encode_events([Bytes::from("one")].iter());
    let frame = encode_frame(&header(), &events);
    let envelope = Envelope::parse(on_the_channel("99-12", &frame)).unwrap();
    assert!(matches!(envelope.body, Body::Unreadable));
    let newer = Envelope::parse(on_the_channel("99-12", b"\xff\xff\xff")).unwrap();
    assert!(matches!(newer.body, Body::Unreadable));
}

proptest::proptest! {
    #[test]
    fn no_bytes_cause_a_panic(bytes: Vec<u8>) {
        let _ = Envelope::parse(Bytes::from(bytes.clone()));
        let _ = Envelope::parse(on_the_channel("1-1", &bytes));
    }
}
