//! What the parts promise. Apart from them, since `benches/side_by_side` has them too.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{
    heard::{Heard, histogram, id, time},
    pace::{due, paced},
};

#[test]
fn an_id_is_a_time() {
    for at in [0, 7, u64::MAX] {
        assert_eq!((id(at).len(), time(&id(at))), (16, Some(at)));
    }
    assert_eq!(time("of another"), None);
}

#[test]
fn what_comes_is_counted() {
    let heard = Heard::new(true);
    heard.message(3);
    heard.message(1);
    heard.gap();
    heard.late(0);
    assert_eq!((heard.events(), heard.messages(), heard.gaps()), (4, 2, 1));
    let mut all = histogram();
    heard.add_latency(&mut all);
    assert_eq!(all.len(), 1);
    heard.forget_latency();
    heard.add_latency(&mut all);
    assert_eq!(all.len(), 1);
}

#[test]
fn sends_are_due_at_even_distances() {
    let due: Vec<u64> = (0..4).map(|number| due(number, 2_000.0)).collect();
    assert_eq!(due, [0, 500_000, 1_000_000, 1_500_000]);
}

#[test]
fn pacing_ends_when_told() {
    let stop = Arc::new(AtomicBool::new(false));
    let (sender, sent) = std::sync::mpsc::sync_channel(1);
    let thread = paced(1.0, 1_000_000, stop.clone(), move |number, _| {
        let _ = sender.try_send(number);
    });
    assert_eq!(sent.recv().ok(), Some(0));
    stop.store(true, Ordering::Relaxed);
    assert!(thread.join().is_ok());
}
