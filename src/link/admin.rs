//! What the link's own admin port shows: plain HTTP for probes and for Prometheus.
//!
//! | path | answer |
//! |---|---|
//! | `/livez` | 200 while the process answers |
//! | `/readyz` | 200 while the source delivers and the destination accepts; otherwise 503 |
//! | `/metrics` | all metrics, in the text format of Prometheus |

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use axum::Router;
use trunkline_client::Publisher;

use super::{Link, Shared, carry::LeftOut};
use crate::admin_port::{probes, text::Text};

impl Link {
    /// The routes of an admin port: see [`crate::admin_port::serve`].
    pub fn admin(&self) -> Router {
        probes(self.shared.clone(), ready, render)
    }
}

/// The reason why it is not ready.
fn ready(shared: &Shared) -> Result<(), &'static str> {
    if !shared.is_connected.load(Ordering::Relaxed) {
        Err("the source delivers no events")
    } else if !shared.is_accepting.load(Ordering::Relaxed) {
        Err("the destination accepts no events")
    } else {
        Ok(())
    }
}

fn render(shared: &Shared, text: &mut Text) {
    let since = shared.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let waiting = shared.publisher.get().map(Publisher::waiting).unwrap_or_default();
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let counters = &shared.counters;
    text.gauge("link_start_time_seconds", "When the link started, in seconds since 1970.")
        .sample(&[], since.as_secs_f64());
    text.gauge("link_connected", "1 while the source delivers events, otherwise 0.")
        .sample(&[], u8::from(shared.is_connected.load(Ordering::Relaxed)));
    text.gauge("link_waiting_events", "Events that wait for the destination.")
        .sample(&[], waiting.events);
    text.gauge("link_waiting_bytes", "Bytes of memory of these events.").sample(&[], waiting.bytes);
    text.gauge("link_waiting_age_seconds", "Age of the oldest of them; 0 if there is none.")
        .sample(&[], waiting.age.unwrap_or_default().as_secs_f64());
    for (name, help, counter) in [
        ("link_received_events_total", "Events from the source.", &counters.received),
        ("link_carried_events_total", "Events that the destination accepted.", &counters.carried),
        ("link_gaps_total", "Gaps of the source that were passed on.", &counters.gaps),
        (
            "link_rejected_events_total",
            "Events that the destination rejected, reported there as a gap.",
            &counters.rejected,
        ),
        (
            "link_doubtful_events_total",
            "Events that the destination may lack, reported there as a gap.",
            &counters.in_doubt,
        ),
        ("link_streams_total", "Streams that the source opened.", &counters.streams),
    ] {
        text.counter(name, help).sample(&[], read(counter));
    }
    let mut left_out =
        text.counter("link_left_out_events_total", "Events that were left out, by reason.");
    for (reason, counter) in LeftOut::ALL.iter().zip(&counters.left_out) {
        left_out.sample(&[("reason", reason.label())], read(counter));
    }
}
