//! Tests of the modules that `benches/side_by_side` includes too, where tests would be unused code.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{
    pace::{due, paced},
    received::{Received, id, take_latencies, time},
};

#[test]
fn an_event_id_encodes_a_time() {
    for at in [0, 7, u64::MAX] {
        assert_eq!((id(at).len(), time(&id(at))), (16, Some(at)));
    }
    assert_eq!(time("of another"), None);
}

#[test]
fn events_messages_and_gaps_are_counted() {
    let received = Received::new();
    received.count_message(3);
    received.count_message(1);
    received.count_gap();
    assert_eq!((received.events(), received.messages(), received.gaps()), (4, 2, 1));
}

#[test]
fn each_latency_is_taken_once() {
    let subscribers = [Received::new(), Received::new()];
    assert_eq!(take_latencies(&subscribers).len(), 0);
    subscribers[0].record_latency(0);
    assert_eq!(take_latencies(&subscribers).len(), 1);
    subscribers[0].record_latency(0);
    subscribers[1].record_latency(0);
    assert_eq!(take_latencies(&subscribers).len(), 2);
    assert_eq!(take_latencies(&subscribers).len(), 0);
}

#[test]
fn sends_are_due_at_even_distances() {
    let due: Vec<u64> = (0..4).map(|number| due(number, 2_000.0)).collect();
    assert_eq!(due, [0, 500_000, 1_000_000, 1_500_000]);
}

#[test]
fn pacing_ends_when_it_is_stopped() {
    let stop = Arc::new(AtomicBool::new(false));
    let (sender, sent) = std::sync::mpsc::sync_channel(1);
    let thread = paced(1.0, 1_000_000, stop.clone(), move |number, _| {
        let _ = sender.try_send(number);
    });
    assert_eq!(sent.recv().ok(), Some(0));
    stop.store(true, Ordering::Relaxed);
    assert!(thread.join().is_ok());
}
