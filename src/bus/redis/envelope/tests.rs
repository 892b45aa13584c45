//! Tests of encoding and decoding.

use super::*;
use crate::bus::Name;

fn header() -> Header<'static> {
    Header {
        writer: 7,
        sequence: 3,
        count: 2,
        time_ms: 1_700_000_000_000,
        provenance: None,
        requests: &[],
        retain: &[],
        runs: &[],
        streams: &[],
    }
}

fn on_the_channel(position: &str, frame: &[u8]) -> Bytes {
    [b"F2 ", position.as_bytes(), b" ", frame].concat().into()
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
fn a_copy_keeps_the_names_of_its_events() {
    let name = Name { epoch: Epoch(5), first: Offset(40), count: 3, left: vec![0, 2] };
    let provenance = Provenance {
        name: Some(name),
        aliases: vec![(1, Position::new(6, 7))],
        doubts: vec![Position::new(4, 2)],
    };
    let mut requests = Vec::new();
    put_request(&mut requests, &[7; 16], 1, 1);
    let mut retain = Vec::new();
    put_retained(&mut retain, 1, 9);
    let events = encode_events([Bytes::from("one"), Bytes::from("two")].iter());
    let run = |publisher: u8, from, sequences: &[u64]| Run {
        publisher: [publisher; 16],
        // The bus numbered the streams of all but the first.
        stream: u64::from(publisher - 1) << 51,
        from,
        sequences: sequences.to_vec(),
    };
    let held = [
        HeldRun { first: 0, run: run(1, 3, &[5]) },
        HeldRun { first: 0, run: run(2, 7, &[7, 1 << 50]) },
        HeldRun { first: 0, run: run(3, 1, &[300, 301]) },
    ];
    let (mut runs, mut streams) = (Vec::new(), Vec::new());
    for held in &held {
        put_run(&mut runs, &mut streams, held.first, &held.run);
    }
    let header = Header {
        provenance: Some(&provenance),
        requests: &requests,
        retain: &retain,
        runs: &runs,
        streams: &streams,
        ..header()
    };
    let frame = encode_frame(&header, &events);
    let envelope = Envelope::parse(on_the_channel("99-12", &frame)).unwrap();
    let Body::Frame(stamped) = envelope.body else { panic!("no frame") };
    assert_eq!(stamped.frame.provenance.as_deref(), Some(&provenance));
    let names = [stamped.frame.name_of(0), stamped.frame.name_of(1)];
    assert_eq!(names, [Position::new(5, 40), Position::new(5, 42)]);
    let requests: Vec<_> = read_requests(&stamped.requests).collect();
    assert_eq!(requests, [HeldRequest { id: [7; 16], first: 1, count: 1 }]);
    assert_eq!(stamped.runs().collect::<Vec<_>>(), held);
    let streams = [([2; 16], 1 << 51), ([3; 16], 1 << 52)];
    assert_eq!(stamped.streams().collect::<Vec<_>>(), streams);
    // A gateway of an earlier version writes no streams.
    let earlier = StampedFrame { streams: Bytes::new(), ..stamped.clone() };
    let without = |at: HeldRun| HeldRun { run: Run { stream: 0, ..at.run }, ..at };
    assert_eq!(earlier.runs().collect::<Vec<_>>(), held.map(without));
    assert_eq!(earlier.streams().count(), 0);
    // What names more events than the frame has is nothing.
    let mut too_many = Vec::new();
    put_run(&mut too_many, &mut Vec::new(), 1, &stamped.runs().nth(1).expect("three").run);
    let hostile = StampedFrame { runs: too_many.into(), ..stamped.clone() };
    assert_eq!(hostile.runs().count(), 0);
    assert_eq!(read_retained(&stamped.retain).collect::<Vec<_>>(), [(1, 9)]);
}

#[test]
fn a_name_that_no_gateway_writes_is_unreadable() {
    let events = encode_events([Bytes::from("one"), Bytes::from("two")].iter());
    let unreadable = |name: Name| {
        let provenance = Provenance { name: Some(name), ..Provenance::default() };
        let frame = encode_frame(&Header { provenance: Some(&provenance), ..header() }, &events);
        let envelope = Envelope::parse(on_the_channel("99-12", &frame)).unwrap();
        matches!(envelope.body, Body::Unreadable)
    };
    let name = Name { epoch: Epoch(5), first: Offset(40), count: 2, left: vec![] };
    assert!(!unreadable(name.clone()));
    assert!(unreadable(Name { epoch: Epoch(99), ..name.clone() }), "of its own epoch");
    assert!(unreadable(Name { first: Offset(u64::MAX), ..name.clone() }), "beyond the last offset");
    assert!(unreadable(Name { count: 3, ..name.clone() }), "it does not say which are left");
    let left = vec![1, 0];
    assert!(unreadable(Name { count: 3, left, ..name.clone() }), "not in their order");
    assert!(unreadable(Name { count: 3, left: vec![1, 3], ..name }), "beyond its events");
}

#[test]
fn a_position_that_the_script_cannot_assign_is_unreadable() {
    let events = encode_events([Bytes::from("one"), Bytes::from("two")].iter());
    let unreadable = |position: &str, header: Header<'_>, events: &[u8]| {
        let frame = encode_frame(&header, events);
        let envelope = Envelope::parse(on_the_channel(position, &frame)).unwrap();
        matches!(envelope.body, Body::Unreadable)
    };
    assert!(unreadable("99-1", header(), &events), "it would begin before the first offset");
    let end = format!("99-{}", u64::MAX);
    assert!(unreadable(&end, Header { count: 0, ..header() }, b""), "it holds nothing");
    for epoch in ["E2 99-0 99-12 0", "E2 99-0 100-12 0", "N2 99-1 7:3-2"] {
        let envelope = Envelope::parse(Bytes::from(epoch)).unwrap();
        assert!(matches!(envelope.body, Body::Unreadable), "{epoch}");
    }
}

#[test]
fn an_epoch_start_has_the_ends_of_the_epochs_before() {
    let envelope = Envelope::parse(Bytes::from("E2 100-0 99-12 90 98:7 99:12")).unwrap();
    assert_eq!(envelope.position, Position::new(100, 0));
    let Body::EpochStart { previous, floor, ends } = envelope.body else { panic!("no epoch") };
    assert_eq!((previous, floor), (Position::new(99, 12), Epoch(90)));
    assert_eq!(ends, [Position::new(98, 7), Position::new(99, 12)]);
}

#[test]
fn a_note_names_what_is_lost() {
    let envelope = Envelope::parse(Bytes::from("N2 100-7 99:3-5")).unwrap();
    assert_eq!(envelope.position, Position::new(100, 7));
    let Body::Note(lost) = envelope.body else { panic!("no note") };
    assert_eq!((lost.epoch, lost.first, lost.last), (Epoch(99), Offset(3), Offset(5)));
}

#[test]
fn a_probe_shows_the_shard() {
    let bytes = [b"P2 100-7 1-2|90 99:12|", &encode_probe(7, 3, 1)[..]].concat();
    let envelope = Envelope::parse(bytes.into()).unwrap();
    let Body::Probe { writer, number, shared: true, time_ms: 1, view } = envelope.body else {
        panic!("no probe")
    };
    assert_eq!((writer, number, view.tip), (7, 3, Position::new(100, 7)));
    assert_eq!((view.copies.to_string(), view.floor), ("1-2".into(), Epoch(90)));
    assert_eq!(view.ends, [Position::new(99, 12)]);
}

#[test]
fn unknown_bytes_are_no_envelope_and_a_wrong_count_is_unreadable() {
    for unknown in [
        "",
        "F2",
        "hello",
        "F2 12 ",
        "T1 1-1 x",
        "F2 a-b c",
        "E2 1-0 x",
        "E2 1-0 0-0",
        "N2 1-1 x",
        "P2 1-1 |",
        "P2 1-1 x|0|",
        "P2 1-1 |x|",
    ] {
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
