//! Closed loop: publishers as fast as their requests are acknowledged.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{task::JoinSet, time::sleep};

use super::{Audience, WARM_UP, float, latency::measure_latency};
use crate::{
    contestant::{Contestant, System},
    counts::Sample,
    payload::{Content, Payload},
    publisher::Publisher,
    report::Metrics,
};

/// Most events by which publishers may be ahead of the average subscriber, and most deliveries by
/// which they may be ahead of all subscribers together. Redis and NATS, which disconnect
/// subscribers that are behind instead of slowing publishers down, are kept from overload by it.
const MAX_AHEAD: u64 = 10_000;
const MAX_AHEAD_OF_ALL: u64 = 1_000_000;

/// Requests in flight of all publishers together, one by one and in batches: enough to keep every
/// contestant busy.
const IN_FLIGHT: usize = 64;
const BATCHES_IN_FLIGHT: usize = 4;

/// Events per second at which growth measures the latency.
const GROWTH_RATE: u64 = 100;

/// The load: publishers, subscribers and events.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// Publishers, each on a connection of its own.
    pub publishers: usize,
    /// Subscribers, each on a connection of its own.
    pub subscribers: usize,
    /// Events per request.
    pub batch: usize,
    /// The kind of the events.
    pub content: Content,
}

/// Measures delivered events per second, and their cost.
pub async fn fan_out(system: &System, offer: Offer, length: Duration) -> Metrics {
    let payload = Arc::new(Payload::new(offer.content));
    // The floor of publishing has no subscribers.
    let subscribers = if system.contestant == Contestant::Unary { 0 } else { offer.subscribers };
    let audience = Audience::gather(system, subscribers, &payload, false).await;
    closed_loop(system, offer, &payload, &audience, length).await
}

/// Measures the same, and then the latency at a low fixed rate, with the same nodes.
pub async fn growth(system: &System, nodes: usize, length: Duration) -> Metrics {
    let offer = Offer { publishers: 1, subscribers: nodes, batch: 100, content: Content::Mailbox };
    let payload = Arc::new(Payload::new(offer.content));
    let audience = Audience::gather(system, nodes, &payload, true).await;
    let mut metrics = closed_loop(system, offer, &payload, &audience, length).await;
    metrics.extend(measure_latency(system, &payload, &audience, GROWTH_RATE, length).await);
    metrics
}

async fn closed_loop(
    system: &System,
    offer: Offer,
    payload: &Arc<Payload>,
    audience: &Audience,
    length: Duration,
) -> Metrics {
    let subscribers = audience.received.len() as u64;
    let ahead = (MAX_AHEAD_OF_ALL / subscribers.max(1)).min(MAX_AHEAD).max(offer.batch as u64);
    let published = Arc::new(AtomicU64::new(0));
    let acknowledged = Arc::new(AtomicU64::new(0));
    let received = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let mut publishing = JoinSet::new();
    let in_flight = if offer.batch == 1 { IN_FLIGHT } else { BATCHES_IN_FLIGHT };
    let mut endless = false;
    // Kept to the end: events that were handed to NATS are lost with their connection.
    let mut publishers = vec![];
    for node in 0..offer.publishers {
        let publisher = system.publisher(node).await;
        publishers.push(publisher.clone());
        endless = matches!(publisher, Publisher::Endless);
        let requests = if endless { 0 } else { in_flight.div_ceil(offer.publishers) };
        for _ in 0..requests {
            let (publisher, payload) = (publisher.clone(), payload.clone());
            let (published, acknowledged) = (published.clone(), acknowledged.clone());
            let (received, stop) = (received.clone(), stop.clone());
            let batch = offer.batch;
            publishing.spawn(async move {
                let limit = || {
                    if subscribers == 0 {
                        u64::MAX
                    } else {
                        received.load(Ordering::Relaxed) + ahead
                    }
                };
                while !stop.load(Ordering::Relaxed) {
                    if published.load(Ordering::Relaxed) > limit() {
                        sleep(Duration::from_millis(1)).await;
                        continue;
                    }
                    let first = published.fetch_add(batch as u64, Ordering::Relaxed);
                    let first = usize::try_from(first).expect("64 bits");
                    publisher.publish(&payload, first, batch, 0).await;
                    acknowledged.fetch_add(batch as u64, Ordering::Relaxed);
                }
            });
        }
    }
    if endless {
        system.go().await;
    }
    let watch = async {
        loop {
            let average = audience.delivered().checked_div(subscribers).unwrap_or(0);
            received.store(average, Ordering::Relaxed);
            sleep(Duration::from_millis(1)).await;
        }
    };
    // Where nothing is delivered, acknowledged events count.
    let counted = || {
        let accepted = acknowledged.load(Ordering::Relaxed);
        let events = if subscribers == 0 { accepted } else { audience.delivered() };
        (events, audience.messages(), accepted)
    };
    let measure = async {
        sleep(WARM_UP).await;
        let before = (Sample::begin(system).await, counted());
        sleep(length).await;
        (before, (counted(), Sample::end(system).await))
    };
    let (before, after) = tokio::select! {
        measured = measure => measured,
        () = watch => unreachable!("it never ends"),
    };
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = publishing.join_next().await {
        ended.expect("a publisher that does not fail");
    }
    let missing =
        if endless { 0 } else { audience.complete(published.load(Ordering::Relaxed)).await };

    drop(publishers);
    let (before, (events, messages, accepted)) = before;
    let ((events_after, messages_after, accepted_after), after) = after;
    let (events, messages) = (events_after - events, messages_after - messages);
    let seconds = after.seconds_since(&before);
    let mut metrics = Metrics::new();
    after.since(&before, events, &mut metrics);
    let mut add = |name: &str, value| metrics.insert(name.to_owned(), value);
    add("delivered_per_second", float(events) / seconds);
    add("published_per_second", float(accepted_after - accepted) / seconds);
    if messages > 0 {
        add("events_per_message", float(events) / float(messages));
    }
    add("lost", float(missing));
    add("gaps", float(audience.gaps()));
    metrics
}
