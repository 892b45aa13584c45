//! What the agent's own admin port shows: plain HTTP for probes and for Prometheus.
//!
//! | path | answer |
//! |---|---|
//! | `/livez` | 200 while the process answers |
//! | `/readyz` | 200 while a gateway delivers events; otherwise 503: programs are served anyway |
//! | `/metrics` | all metrics, in the text format of Prometheus |

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use axum::Router;

use super::{Agent, Shared};
use crate::admin_port::{probes, text::Text};

impl Agent {
    /// The routes of an admin port: see [`crate::admin_port::serve`].
    pub fn admin(&self) -> Router {
        probes(self.shared.clone(), ready, render)
    }
}

/// The reason why it is not ready.
fn ready(shared: &Shared) -> Result<(), &'static str> {
    let is_connected = shared.is_connected.load(Ordering::Relaxed);
    is_connected.then_some(()).ok_or("no gateway delivers events")
}

fn render(shared: &Shared, text: &mut Text) {
    let report = shared.report();
    let since = shared.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let age = report.waiting_age.and_then(|age| Duration::try_from(age).ok()).unwrap_or_default();
    let duplicates = report.programs.iter().filter(|program| program.duplicate).count();
    let connected = u8::from(shared.is_connected.load(Ordering::Relaxed));
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let counters = &shared.counters;
    let (healings, repairs) = (read(&counters.healings), read(&counters.repairs));
    text.gauge("agent_start_time_seconds", "When the agent started, in seconds since 1970.")
        .sample(&[], since.as_secs_f64());
    text.gauge("agent_connected", "1 while a gateway delivers events, otherwise 0.")
        .sample(&[], connected);
    text.gauge("agent_subscribers", "Connections that receive messages.")
        .sample(&[], report.subscribers);
    text.gauge("agent_programs", "Programs that publish, by their ids; at most 32.")
        .sample(&[], report.programs.len());
    text.gauge("agent_duplicate_programs", "Ids that two programs of this host use.")
        .sample(&[], duplicates);
    text.gauge("agent_waiting_events", "Events that wait for a gateway.")
        .sample(&[], report.waiting_events);
    text.gauge("agent_waiting_age_seconds", "Age of the oldest of them; 0 if there is none.")
        .sample(&[], age.as_secs_f64());
    if shared.options.join.is_some() {
        let carries = u8::from(shared.joined.lock().is_some());
        let help = "1 while this agent carries the channel of Redis, 0 while another one does or \
                    it is away.";
        text.gauge("agent_carries_channel", help).sample(&[], carries);
        text.counter("agent_channel_messages_total", "Messages published on that channel.")
            .sample(&[], read(&counters.joined_messages));
    }
    for (name, help, value) in [
        (
            "agent_published_messages_total",
            "Messages that programs published.",
            report.published_messages,
        ),
        ("agent_published_events_total", "Events in them.", report.published_events),
        ("agent_received_events_total", "Events from gateways.", report.received_events),
        (
            "agent_delivered_messages_total",
            "Messages that were written to programs, counted for each.",
            report.delivered_messages,
        ),
        (
            "agent_undecodable_messages_total",
            "Messages that could not be read, or not to their end.",
            report.undecodable_messages,
        ),
        (
            "agent_left_out_events_total",
            "Events that the format of the programs has nothing for.",
            report.left_out_events,
        ),
        ("agent_rejected_events_total", "Events that gateways rejected.", report.rejected_events),
        (
            "agent_lost_events_total",
            "Events that were given up before a gateway accepted them.",
            report.lost_events,
        ),
        (
            "agent_healings_total",
            "Times that a program of this host was brought up to date.",
            healings,
        ),
        (
            "agent_repairs_total",
            "Times that the programs of other hosts were brought up to date.",
            repairs,
        ),
    ] {
        text.counter(name, help).sample(&[], value);
    }
}
