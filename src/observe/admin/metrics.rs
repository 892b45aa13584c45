//! All metrics of a gateway, with their meaning. docs/operations.md lists them.
//!
//! All families exist from the start, those of the shards without samples until the bus has
//! started, so that an alert never watches a name that does not exist.

use std::time::{Duration, SystemTime};

use tonic::Code;
use trunkline_proto::kinds;

use super::Sources;
use crate::{
    access::Rule,
    admin_port::{
        process,
        text::{Durations, Exemplar, Form, Text},
    },
    bus::{BusStatus, GapReason, ShardBusStatus},
    errors::Limit,
    hub::log::{Capacity, Extent},
    leave::LeaveReason,
    log,
    observe::{
        counters::{Counters, Method},
        handled::{Handled, MethodName},
        histogram::{BUCKETS, Histogram},
        trace::Tracer,
    },
};

/// A shard: the state of its bus side and of its log.
struct Shard {
    name: String,
    bus: ShardBusStatus,
    extent: Extent,
    capacity: Capacity,
}

/// The current values of all metrics.
pub fn render(sources: &Sources, form: Form) -> String {
    let mut text = Text::new(form);
    let hub = sources.gateway.hub.get();
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
    gateway(&mut text, sources);
    events(&mut text, &sources.records.counters);
    denied(&mut text, sources);
    streams(&mut text, sources);
    traces(&mut text, &sources.tracer);
    connections(&mut text, sources);
    bus(&mut text, &status);
    liveness(&mut text, &shards);
    logs(&mut text, &shards);
    requests(&mut text, &sources.records.handled);
    process::add(&mut text);
    text.finish()
}

fn gateway(text: &mut Text, sources: &Sources) {
    let bus = sources.gateway.hub.get().map_or("", |hub| hub.bus().kind());
    let labels = [
        ("version", env!("CARGO_PKG_VERSION")),
        ("gateway_id", &sources.gateway.about.gateway_id),
        ("bus", bus),
    ];
    text.gauge(
        "build_info",
        "Always 1; labels: version, gateway id and bus. The bus is empty until it has started.",
    )
    .sample(&labels, 1);
    let uptime = sources.gateway.about.uptime();
    text.gauge("uptime_seconds", "Time since the gateway started.")
        .sample(&[], uptime.as_secs_f64());
    let since =
        sources.gateway.about.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    text.gauge("start_time_seconds", "When the gateway started, in seconds since 1970.")
        .sample(&[], since.as_secs_f64());
    let serving = u8::from(sources.gateway.why_not_serving().is_none());
    text.gauge("serving", "1 while the gateway serves, otherwise 0: /readyz gives the reason.")
        .sample(&[], serving);
    let draining = u8::from(sources.gateway.is_draining());
    text.gauge("draining", "1 while the gateway is draining, otherwise 0.").sample(&[], draining);
    text.counter(
        "log_lines_dropped_total",
        "Lines of the log that standard error did not take: nobody read it, or it was full.",
    )
    .sample(&[], log::dropped_lines());
}

fn events(text: &mut Text, counters: &Counters) {
    let mut family = text.counter(
        "published_events_total",
        "Events accepted by this gateway, by kind; unknown: kinds that it does not know.",
    );
    let mut unknown = 0;
    for (number, count) in counters.published_by_kind() {
        match kinds::name(number) {
            Some(kind) => family.sample(&[("kind", kind)], count),
            None => unknown += count,
        }
    }
    family.sample(&[("kind", "unknown")], unknown);
    histogram(
        text,
        "publish_duration_seconds",
        "Duration of accepted Publish requests, until the bus has accepted all events.",
        counters.publish_times(),
    );
    text.counter("delivered_events_total", "Events sent to nodes, counted for each stream.")
        .sample(&[], counters.delivered_events());
    text.counter("delivered_batches_total", "Messages that carried these events.")
        .sample(&[], counters.delivered_batches());
    histogram(
        text,
        "delivery_lag_seconds",
        "Age of the oldest frame in each message sent, replayed events included.",
        counters.lags(),
    );
    let mut family = text.counter(
        "errors_total",
        "Requests and streams that ended with an error, by method and reason.",
    );
    for method in Method::ALL {
        for (reason, count) in counters.errors(method) {
            let labels = [("method", method.name()), ("reason", &reason.to_ascii_lowercase())];
            family.sample(&labels, count);
        }
    }
}

fn histogram(text: &mut Text, name: &'static str, help: &str, of: &Histogram) {
    text.histogram(name, help).sample(&[], &durations(of, &of.cumulative(), &[]));
}

fn durations<'a>(
    of: &Histogram,
    cumulative: &'a [u64],
    exemplars: &'a [Option<Exemplar>],
) -> Durations<'a> {
    Durations { ends: &BUCKETS, cumulative, sum: of.sum(), exemplars }
}

/// All requests, under the names that gRPC servers have in Prometheus.
fn requests(text: &mut Text, handled: &Handled) {
    let all: Vec<_> = handled.all().collect();
    let labels = |name: &MethodName| {
        [("grpc_type", name.kind), ("grpc_service", name.service), ("grpc_method", name.method)]
    };
    let mut text = text.standard();
    let mut family = text.counter("grpc_server_started_total", "Requests that have begun.");
    for shown in &all {
        family.sample(&labels(&shown.name), shown.started);
    }
    let mut family = text.counter(
        "grpc_server_handled_total",
        "Requests that have ended, by the code that their client got.",
    );
    for shown in &all {
        for (code, count) in &shown.codes {
            // All codes of all methods would be two hundred samples: OK is there from the start.
            if *count > 0 || *code == Code::Ok {
                let code = code_name(*code);
                let labels = [&labels(&shown.name)[..], &[("grpc_code", &code)]].concat();
                family.sample(&labels, count);
            }
        }
    }
    let mut family = text.histogram(
        "grpc_server_handling_seconds",
        "Time until a request has ended; of a stream, how long it was open.",
    );
    for shown in all.iter().filter(|shown| shown.started > 0) {
        let cumulative = shown.durations.cumulative();
        let durations = durations(shown.durations, &cumulative, &shown.exemplars);
        family.sample(&labels(&shown.name), &durations);
    }
}

/// The name of a code in the labels of these metrics.
fn code_name(code: Code) -> String {
    match code {
        Code::Ok => "OK".to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        other => format!("{other:?}"),
    }
}

fn denied(text: &mut Text, sources: &Sources) {
    let mut family = text.counter(
        "denied_total",
        "Connections, requests and streams without the required permission, by rule.",
    );
    for rule in Rule::ALL {
        family.sample(&[("rule", rule.name())], sources.refusals.count(rule));
    }
}

fn streams(text: &mut Text, sources: &Sources) {
    let counters = &sources.records.counters;
    let (mut open, mut sum, mut max) = (0u64, 0u64, 0u64);
    for behind in sources.nodes.behind_each() {
        (open, sum, max) = (open + 1, sum + behind, max.max(behind));
    }
    let (watches, unacknowledged) = sources.nodes.watches();
    text.gauge("streams", "Open Subscribe and Watch streams.").sample(&[], open);
    text.gauge("watch_streams", "Those of them that are Watch streams.").sample(&[], watches);
    text.gauge("streams_limit", "Limit of open streams: limits.maxStreams.")
        .sample(&[], sources.nodes.max_streams());
    let moves = &sources.nodes.moves;
    let mut family = text.counter(
        "streams_asked_to_leave_total",
        "Subscribe and Watch streams that were asked to go on elsewhere, by reason.",
    );
    for reason in LeaveReason::ALL {
        family.sample(&[("reason", reason.name())], moves.asked(reason));
    }
    let mut family = text
        .counter("streams_left_total", "Those of them that have ended since, by the same reason.");
    for reason in LeaveReason::ALL {
        family.sample(&[("reason", reason.name())], moves.ended_after(reason));
    }
    text.gauge("rebalancing", "1 while streams are moved because other gateways have fewer.")
        .sample(&[], u8::from(moves.is_moving()));
    text.gauge("gateways", "Gateways that this gateway knows, itself included.")
        .sample(&[], sources.nodes.gateways().len());
    text.gauge(
        "duplicate_nodes",
        "Node ids that more than one live process uses, on all known gateways.",
    )
    .sample(&[], sources.nodes.duplicate_ids());
    let events = sources.nodes.event_counts().unwrap_or_default();
    let what = "Events about nodes that this gateway published, with nodeEvents.";
    let mut family = text.counter("node_events_total", what);
    family.sample(&[("kind", "node_joined")], events.joined);
    family.sample(&[("kind", "node_left")], events.left);
    text.gauge("node_events_waiting", "Events about nodes that wait to be published.")
        .sample(&[], events.waiting);
    text.counter(
        "node_events_given_up_total",
        "Reports, which streams get as a gap, that events about nodes were given up.",
    )
    .sample(&[], events.given_up);
    let agents = sources.nodes.agents();
    text.gauge("agents", "Agents that are connected to this gateway.").sample(&[], agents.agents);
    text.gauge("agent_programs", "Programs that those agents serve.").sample(&[], agents.programs);
    text.gauge("agent_waiting_events", "Events that wait at those agents for a gateway.")
        .sample(&[], agents.waiting_events);
    text.gauge("duplicate_programs", "Ids that programs of two agents use, on all known gateways.")
        .sample(&[], sources.nodes.duplicate_programs());
    text.gauge(
        "behind_events",
        "Events in the logs that streams have not read yet, sum over all streams.",
    )
    .sample(&[], sum);
    text.gauge("max_behind_events", "Events that the stream furthest behind has not read yet.")
        .sample(&[], max);
    text.gauge(
        "unacknowledged_events",
        "Events sent on Watch streams that their nodes have not acknowledged, sum over all.",
    )
    .sample(&[], unacknowledged);
    let mut family = text.counter("stream_gaps_total", "Gaps reported to streams, by reason.");
    for reason in GapReason::ALL {
        let count = counters.stream_gaps(reason).gaps;
        family.sample(&[("reason", reason_name(reason))], count);
    }
    let mut family = text.counter(
        "stream_missed_events_total",
        "Events in gaps reported to streams, where their number is known, by reason.",
    );
    for reason in GapReason::ALL {
        let count = counters.stream_gaps(reason).missed_events;
        family.sample(&[("reason", reason_name(reason))], count);
    }
}

fn traces(text: &mut Text, tracer: &Tracer) {
    text.counter("trace_spans_exported_total", "Spans that the trace collector accepted.")
        .sample(&[], tracer.exported());
    text.counter(
        "trace_spans_dropped_total",
        "Spans that were lost: the queue was full, or the collector failed or rejected them.",
    )
    .sample(&[], tracer.dropped());
}

fn connections(text: &mut Text, sources: &Sources) {
    text.gauge("connections", "Open connections of the gRPC port.")
        .sample(&[], sources.slots.used());
    text.gauge("connections_limit", "Limit of open connections: limits.maxConnections.")
        .sample(&[], sources.slots.max());
    text.counter("connections_accepted_total", "Connections that were accepted.")
        .sample(&[], sources.port.connections());
    text.counter(
        "connections_unused_total",
        "Connections that were closed before they sent anything, such as probes.",
    )
    .sample(&[], sources.port.unused_connections());
    text.gauge("publish_streams", "Open PublishStream streams.")
        .sample(&[], sources.records.counters.publish_streams());
    text.gauge("health_streams", "Open Watch streams of the health protocol.")
        .sample(&[], sources.quotas.health_streams());
    text.gauge("requests_in_flight", "Requests without a complete answer, streams included.")
        .sample(&[], sources.port.in_flight());
    text.gauge("pending_request_bytes", "Bytes of requests in flight, streams included.")
        .sample(&[], sources.quotas.bytes_in_flight());
    text.gauge("pending_request_limit_bytes", "Limit of these bytes: limits.maxPendingBytes.")
        .sample(&[], sources.quotas.max_bytes_in_flight());
    let mut family = text.counter(
        "refused_total",
        "Connections and requests that were refused or ended by a limit, by its key.",
    );
    for limit in Limit::ALL {
        let count = sources.port.refusals(limit) + sources.records.counters.refused(limit);
        family.sample(&[("limit", limit.key())], count);
    }
}

fn bus(text: &mut Text, status: &BusStatus) {
    let mut family =
        text.counter("bus_gaps_total", "Gaps on the bus that history could not fill, by reason.");
    for reason in GapReason::ALL {
        family.sample(&[("reason", reason_name(reason))], status.gaps[reason.index()].gaps);
    }
    let mut family = text.counter(
        "bus_missed_events_total",
        "Events in gaps on the bus, where their number is known, by reason.",
    );
    for reason in GapReason::ALL {
        let count = status.gaps[reason.index()].missed_events;
        family.sample(&[("reason", reason_name(reason))], count);
    }
    text.counter(
        "bus_unreadable_messages_total",
        "Messages on the bus that are no valid frame or probe.",
    )
    .sample(&[], status.unreadable);
    text.counter(
        "bus_forged_messages_total",
        "Frames, probes and last values in Redis with a wrong authentication tag.",
    )
    .sample(&[], status.forged);
    let mut family =
        text.gauge("link_up", "1 while a subscription connection to Redis is up, otherwise 0.");
    for link in &status.links {
        let labels = [("address", &*link.address), ("purpose", link.purpose)];
        family.sample(&labels, u8::from(link.connected));
    }
    let mut family =
        text.counter("link_reconnects_total", "Reconnects of a subscription connection to Redis.");
    for link in &status.links {
        family.sample(&[("address", &link.address), ("purpose", link.purpose)], link.reconnects);
    }
}

fn liveness(text: &mut Text, shards: &[Shard]) {
    let mut family = text.gauge(
        "shard_verified",
        "1 while the path over the bus is verified in both directions, otherwise 0.",
    );
    for shard in shards {
        family.sample(&[("shard", &shard.name)], u8::from(shard.bus.verified));
    }
    let mut family = text.gauge(
        "shard_verified_age_seconds",
        "Time since a probe or frame of this gateway last came back; absent before the first.",
    );
    for shard in shards {
        if let Some(age) = shard.bus.verified_age.as_ref().map(Duration::as_secs_f64) {
            family.sample(&[("shard", &shard.name)], age);
        }
    }
    let mut family = text.counter(
        "shard_repairs_total",
        "Holes in the received frames that were filled from history.",
    );
    for shard in shards {
        family.sample(&[("shard", &shard.name)], shard.bus.repairs);
    }
    let mut family = text.counter(
        "shard_epoch_changes_total",
        "New epochs since the start: Redis restarted, failed over or lost its data.",
    );
    for shard in shards {
        family.sample(&[("shard", &shard.name)], shard.extent.epoch_changes);
    }
    let mut family =
        text.gauge("shard_offset", "Offset of the last event in the log, within its epoch.");
    for shard in shards {
        family.sample(&[("shard", &shard.name)], shard.extent.end.offset.0);
    }
}

fn logs(text: &mut Text, shards: &[Shard]) {
    type Of = fn(&Shard) -> usize;
    let mut family =
        text.counter("received_frames_total", "Frames received over the bus, from all gateways.");
    for shard in shards {
        family.sample(&[("shard", &shard.name)], shard.extent.frames);
    }
    let mut family =
        text.counter("received_events_total", "Events received over the bus, from all gateways.");
    for shard in shards {
        family.sample(&[("shard", &shard.name)], shard.extent.total);
    }
    let gauges: [(&'static str, &str, Of); 4] = [
        ("log_events", "Events in the log.", |shard| shard.extent.events),
        ("log_bytes", "Bytes in the log.", |shard| shard.extent.bytes),
        ("log_limit_events", "Limit of events in the log: log.maxEvents.", |shard| {
            shard.capacity.events
        }),
        ("log_limit_bytes", "Limit of bytes in the log: log.maxBytes.", |shard| {
            shard.capacity.bytes
        }),
    ];
    for (name, help, of) in gauges {
        let mut family = text.gauge(name, help);
        for shard in shards {
            family.sample(&[("shard", &shard.name)], of(shard));
        }
    }
}

/// The name of the reason of a gap, like `history_expired`.
pub fn reason_name(reason: GapReason) -> &'static str {
    match reason {
        GapReason::HistoryExpired => "history_expired",
        GapReason::EpochChanged => "epoch_changed",
        GapReason::UnknownEpoch => "unknown_epoch",
        GapReason::Unreadable => "unreadable",
        GapReason::Link => "link",
        GapReason::NotPublished => "not_published",
    }
}
