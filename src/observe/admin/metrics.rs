//! Every metric of a gateway, with its meaning. docs/operations.md lists them.
//!
//! All families are there from the start, those of the shards without a value until the bus has started: an expression over
//! them is never silently about nothing.

use std::time::{Duration, SystemTime};

use crate::observe::admin::text::Text;
use crate::{
    access::Rule,
    bus::{BusStatus, GapReason, ShardBusStatus},
    hub::log::{Capacity, Extent},
    observe::counters::{Counters, Method},
    proto::v1::EventKind,
    rpc::service::Shared,
    trace::Tracer,
};

/// A shard as the bus and its log see it.
struct Shard {
    name: String,
    bus: ShardBusStatus,
    extent: Extent,
    capacity: Capacity,
}

/// All metrics, now.
pub fn render(shared: &Shared) -> String {
    let mut text = Text::default();
    let hub = shared.hub.get();
    let status = hub.map(|hub| hub.bus().status()).unwrap_or_default();
    let shards: Vec<Shard> = hub.map_or_else(Vec::new, |hub| {
        let each = status.shards.iter().zip(hub.logs()).enumerate();
        each.map(|(id, (bus, log))| Shard {
            name: id.to_string(),
            bus: *bus,
            extent: log.extent(),
            capacity: log.capacity(),
        })
        .collect()
    });
    gateway(&mut text, shared);
    events(&mut text, &shared.counters);
    denied(&mut text, shared);
    streams(&mut text, shared);
    traces(&mut text, &shared.tracer);
    connections(&mut text, shared);
    bus(&mut text, &status);
    proofs(&mut text, &shards);
    logs(&mut text, &shards);
    text.finish()
}

fn gateway(text: &mut Text, shared: &Shared) {
    let bus = shared.hub.get().map_or("", |hub| hub.bus().kind());
    let labels =
        [("version", env!("CARGO_PKG_VERSION")), ("gateway_id", &shared.gateway_id), ("bus", bus)];
    text.gauge("build_info", "1; its labels say what runs. The bus is empty until it has started.")
        .sample(&labels, 1);
    let uptime = shared.started.elapsed().unwrap_or_default();
    text.gauge("uptime_seconds", "Time since the start.").sample(&[], uptime.as_secs_f64());
    let since = shared.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    text.gauge("start_time_seconds", "When the gateway started, in seconds since 1970.")
        .sample(&[], since.as_secs_f64());
    let serving = u8::from(shared.why_not_serving().is_none());
    text.gauge("serving", "Whether the gateway serves: 1 or 0. /readyz says why not.")
        .sample(&[], serving);
    let draining = u8::from(shared.drain.borrow().is_some());
    text.gauge("draining", "Whether the gateway is going away: 1 or 0.").sample(&[], draining);
}

fn events(text: &mut Text, counters: &Counters) {
    let mut family = text.counter(
        "published_events_total",
        "Events accepted by this gateway, by kind; unknown: kinds of newer nodes.",
    );
    let mut unknown = 0;
    for (number, count) in counters.published_by_kind() {
        match kind_name(number) {
            Some(kind) => family.sample(&[("kind", &kind)], count),
            None => unknown += count,
        }
    }
    family.sample(&[("kind", "unknown")], unknown);
    text.histogram(
        "publish_duration_seconds",
        "How long accepted Publish requests took, until the bus had all of their events.",
        counters.publish_times(),
    );
    text.counter("delivered_events_total", "Events sent, counted once a stream.")
        .sample(&[], counters.delivered_events());
    text.counter("delivered_batches_total", "Messages in which events were sent.")
        .sample(&[], counters.delivered_batches());
    text.histogram(
        "delivery_lag_seconds",
        "For each message sent: time since the oldest of its frames was made, replays included.",
        counters.lags(),
    );
    let mut family = text.counter(
        "errors_total",
        "Requests answered with an error and streams ended with one, by method and reason.",
    );
    for method in Method::ALL {
        for (reason, count) in counters.errors(method) {
            let labels = [("method", method.name()), ("reason", &reason.to_ascii_lowercase())];
            family.sample(&labels, count);
        }
    }
}

fn denied(text: &mut Text, shared: &Shared) {
    let mut family = text.counter(
        "denied_total",
        "Connections, requests and streams that were turned away, by the rule that they broke.",
    );
    for rule in Rule::ALL {
        family.sample(&[("rule", rule.name())], shared.access.refusals.count(rule));
    }
}

fn streams(text: &mut Text, shared: &Shared) {
    let counters = &shared.counters;
    let (mut open, mut sum, mut most) = (0u64, 0u64, 0u64);
    for behind in shared.nodes.behind_each() {
        (open, sum, most) = (open + 1, sum + behind, most.max(behind));
    }
    text.gauge("streams", "Subscribe streams that are open.").sample(&[], open);
    text.gauge("streams_limit", "Streams that may be open: limits.maxStreams.")
        .sample(&[], shared.limits.max_streams);
    text.gauge("gateways", "Gateways that this one knows of, itself included.")
        .sample(&[], shared.gateways().len());
    text.gauge(
        "duplicate_nodes",
        "Node ids that more than one live process has, on all gateways, as far as this one knows.",
    )
    .sample(&[], shared.nodes.duplicate_ids());
    text.gauge("behind_events", "Events that the streams have still to be offered, all together.")
        .sample(&[], sum);
    text.gauge("most_behind_events", "The same of the stream that is furthest behind.")
        .sample(&[], most);
    let mut family = text.counter("stream_gaps_total", "Gaps that streams were told, by reason.");
    for reason in GapReason::ALL {
        let count = counters.stream_gaps(reason).gaps;
        family.sample(&[("reason", reason_name(reason))], count);
    }
    let mut family = text.counter(
        "stream_missed_events_total",
        "Events in the gaps that streams were told, where their number is known, by reason.",
    );
    for reason in GapReason::ALL {
        let count = counters.stream_gaps(reason).missed_events;
        family.sample(&[("reason", reason_name(reason))], count);
    }
}

fn traces(text: &mut Text, tracer: &Tracer) {
    text.counter("trace_spans_exported_total", "Spans that the trace collector took.")
        .sample(&[], tracer.exported());
    text.counter(
        "trace_spans_dropped_total",
        "Spans that it did not get: it was down or slow, or there were too many.",
    )
    .sample(&[], tracer.dropped());
}

fn connections(text: &mut Text, shared: &Shared) {
    text.gauge("connections", "Connections that are open on the gRPC port.")
        .sample(&[], shared.slots.taken());
    text.gauge("connections_limit", "Connections that may be open: limits.maxConnections.")
        .sample(&[], shared.slots.most());
    text.counter("connections_total", "Connections that were let in.")
        .sample(&[], shared.counters.connections());
    text.gauge("requests_under_way", "Requests that are not wholly answered, streams included.")
        .sample(&[], shared.counters.under_way());
    text.gauge(
        "pending_request_bytes",
        "Bytes of requests that are not answered, streams included.",
    )
    .sample(&[], shared.quotas.pending());
    text.gauge("pending_request_limit_bytes", "How many there may be: limits.maxPendingBytes.")
        .sample(&[], shared.quotas.most_pending());
    let mut family = text.counter(
        "refused_total",
        "Connections and requests that were refused or ended because of a limit, by limit.",
    );
    for (limit, count) in shared.counters.refusals() {
        family.sample(&[("limit", limit.key())], count);
    }
}

fn bus(text: &mut Text, status: &BusStatus) {
    let mut family = text.counter(
        "bus_gaps_total",
        "Gaps that this gateway found on the bus and history could not fill, by reason.",
    );
    for reason in GapReason::ALL {
        family.sample(&[("reason", reason_name(reason))], status.gaps[reason.index()].gaps);
    }
    let mut family = text.counter(
        "bus_missed_events_total",
        "Events in the gaps of the bus, where their number is known, by reason.",
    );
    for reason in GapReason::ALL {
        let count = status.gaps[reason.index()].missed_events;
        family.sample(&[("reason", reason_name(reason))], count);
    }
    text.counter("bus_unreadable_messages_total", "Messages on the channels that no gateway made.")
        .sample(&[], status.unreadable);
    text.counter(
        "bus_forged_messages_total",
        "Frames, beacons and last values in Redis whose seal does not hold.",
    )
    .sample(&[], status.forged);
    let mut family = text.gauge("link_up", "Whether a connection to Redis is up: 1 or 0.");
    for link in &status.links {
        let labels = [("address", &*link.address), ("purpose", link.purpose)];
        family.sample(&labels, u8::from(link.connected));
    }
    let mut family =
        text.counter("link_reconnects_total", "How often a connection to Redis was opened again.");
    for link in &status.links {
        family.sample(&[("address", &link.address), ("purpose", link.purpose)], link.reconnects);
    }
}

fn proofs(text: &mut Text, shards: &[Shard]) {
    let mut family = text.gauge(
        "shard_proven",
        "Whether the way through the bus is proven to work, in both directions: 1 or 0.",
    );
    for shard in shards {
        family.sample(&[("shard", &shard.name)], u8::from(shard.bus.proven));
    }
    let mut family = text.gauge(
        "shard_proof_age_seconds",
        "Time since the last beacon or frame of this gateway came back; absent before the first.",
    );
    for shard in shards {
        if let Some(age) = shard.bus.proof_age.as_ref().map(Duration::as_secs_f64) {
            family.sample(&[("shard", &shard.name)], age);
        }
    }
    let mut family = text.counter(
        "shard_repairs_total",
        "Readings of history that brought what the channel had not.",
    );
    for shard in shards {
        family.sample(&[("shard", &shard.name)], shard.bus.repairs);
    }
    let mut family = text.counter(
        "shard_epoch_changes_total",
        "New epochs since the start: a Redis that restarted, failed over or lost its memory.",
    );
    for shard in shards {
        family.sample(&[("shard", &shard.name)], shard.extent.epoch_changes);
    }
    let mut family = text.gauge("shard_offset", "The last offset handed on, in its epoch.");
    for shard in shards {
        family.sample(&[("shard", &shard.name)], shard.extent.end.offset.0);
    }
}

fn logs(text: &mut Text, shards: &[Shard]) {
    type Of = fn(&Shard) -> usize;
    let mut family =
        text.counter("received_frames_total", "Frames that came over the bus, of all gateways.");
    for shard in shards {
        family.sample(&[("shard", &shard.name)], shard.extent.frames);
    }
    let mut family =
        text.counter("received_events_total", "Events that came over the bus, of all gateways.");
    for shard in shards {
        family.sample(&[("shard", &shard.name)], shard.extent.total);
    }
    let gauges: [(&'static str, &str, Of); 4] = [
        ("log_events", "Events in the log.", |shard| shard.extent.events),
        ("log_bytes", "Bytes in the log.", |shard| shard.extent.bytes),
        ("log_limit_events", "Events that a log may hold.", |shard| shard.capacity.events),
        ("log_limit_bytes", "Bytes that a log may hold.", |shard| shard.capacity.bytes),
    ];
    for (name, help, of) in gauges {
        let mut family = text.gauge(name, help);
        for shard in shards {
            family.sample(&[("shard", &shard.name)], of(shard));
        }
    }
}

/// `mailbox_change`; none for a kind that this gateway does not know.
pub fn kind_name(number: i32) -> Option<String> {
    let kind = EventKind::try_from(number).ok().filter(|kind| *kind != EventKind::Unspecified)?;
    Some(kind.as_str_name().trim_start_matches("EVENT_KIND_").to_ascii_lowercase())
}

pub fn reason_name(reason: GapReason) -> &'static str {
    match reason {
        GapReason::HistoryExpired => "history_expired",
        GapReason::EpochChanged => "epoch_changed",
        GapReason::UnknownEpoch => "unknown_epoch",
        GapReason::Unreadable => "unreadable",
    }
}
