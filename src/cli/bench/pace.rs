//! Open loop: sends at a fixed rate, whether earlier sends are answered or not.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::clock;

/// Calls `send` with the number and the due time of each of `count` sends, `rate` per second. It
/// runs on a thread of its own, since the runtime's timers have a resolution of a millisecond, and
/// ends after the last send or soon after `stop`.
///
/// A late send is followed by the next one at once: due times never shift.
pub fn paced(
    rate: f64,
    count: u64,
    stop: Arc<AtomicBool>,
    mut send: impl FnMut(u64, u64) + Send + 'static,
) -> JoinHandle<()> {
    /// Nanoseconds from the start of the thread to the first send.
    const LEAD: u64 = 20_000_000;
    std::thread::spawn(move || {
        let start = clock::now() + LEAD;
        for number in 0..count {
            let due = start + due(number, rate);
            while let Some(left) = due.checked_sub(clock::now()).filter(|left| *left > 0) {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::sleep(Duration::from_nanos(left.min(50_000_000)));
            }
            if stop.load(Ordering::Relaxed) {
                return;
            }
            send(number, due);
        }
    })
}

/// Nanoseconds from the first send to send number `number`.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub fn due(number: u64, rate: f64) -> u64 {
    // Far below 2^53, and not negative.
    (number as f64 * 1e9 / rate) as u64
}
