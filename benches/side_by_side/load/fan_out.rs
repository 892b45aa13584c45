//! Publishers as fast as they get their acknowledgements.

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
    counts::Look,
    node::Publisher,
    payload::{Content, Payload},
    report::Metrics,
};

/// How far publishers may be ahead of what subscribers have heard: in events on average, and in deliveries of all. Who has no
/// flow control (Redis and NATS cut off whoever is behind) is kept from overrunning itself.
const AHEAD: u64 = 10_000;
const AHEAD_OF_ALL: u64 = 1_000_000;

/// Requests under way, of all publishers together: enough to keep every contestant busy.
const UNDER_WAY: usize = 64;
const BATCHES_UNDER_WAY: usize = 4;

/// At what rate growth looks at the latency.
const GROWTH_RATE: u64 = 100;

/// Who publishes what to how many.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// Publishers, each on a connection of its own.
    pub publishers: usize,
    /// Subscribers, each on a connection of its own.
    pub subscribers: usize,
    /// Events of a request.
    pub batch: usize,
    /// Of which kind.
    pub content: Content,
}

/// Delivered events a second, and what they cost.
pub async fn fan_out(system: &System, offer: Offer, length: Duration) -> Metrics {
    let payload = Arc::new(Payload::new(offer.content));
    // The floor of publishing has nobody to deliver to.
    let subscribers = if system.contestant == Contestant::Unary { 0 } else { offer.subscribers };
    let audience = Audience::gather(system, subscribers, &payload, false).await;
    closed_loop(system, offer, &payload, &audience, length).await
}

/// The same, and then the latency at a low fixed rate, to the same nodes.
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
    let subscribers = audience.heard.len() as u64;
    let ahead = (AHEAD_OF_ALL / subscribers.max(1)).min(AHEAD).max(offer.batch as u64);
    let published = Arc::new(AtomicU64::new(0));
    let acknowledged = Arc::new(AtomicU64::new(0));
    let heard = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let mut publishing = JoinSet::new();
    let under_way = if offer.batch == 1 { UNDER_WAY } else { BATCHES_UNDER_WAY };
    let mut endless = false;
    // They stay to the end: what NATS has been handed leaves with its connection.
    let mut publishers = vec![];
    for node in 0..offer.publishers {
        let publisher = system.publisher(node).await;
        publishers.push(publisher.clone());
        endless = matches!(publisher, Publisher::Nobody);
        let requests = if endless { 0 } else { under_way.div_ceil(offer.publishers) };
        for _ in 0..requests {
            let (publisher, payload) = (publisher.clone(), payload.clone());
            let (published, acknowledged) = (published.clone(), acknowledged.clone());
            let (heard, stop) = (heard.clone(), stop.clone());
            let batch = offer.batch;
            publishing.spawn(async move {
                let limit = || {
                    if subscribers == 0 { u64::MAX } else { heard.load(Ordering::Relaxed) + ahead }
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
            heard.store(average, Ordering::Relaxed);
            sleep(Duration::from_millis(1)).await;
        }
    };
    // Where nothing is delivered, what was taken counts.
    let counted = || {
        let taken = acknowledged.load(Ordering::Relaxed);
        (if subscribers == 0 { taken } else { audience.delivered() }, audience.messages(), taken)
    };
    let measure = async {
        sleep(WARM_UP).await;
        let before = (Look::begin(system).await, counted());
        sleep(length).await;
        (before, (counted(), Look::end(system).await))
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
    let (before, (events, messages, taken)) = before;
    let ((events_after, messages_after, taken_after), after) = after;
    let (events, messages) = (events_after - events, messages_after - messages);
    let seconds = after.seconds_since(&before);
    let mut metrics = Metrics::new();
    after.since(&before, events, &mut metrics);
    let mut add = |name: &str, value| metrics.insert(name.to_owned(), value);
    add("delivered_per_second", float(events) / seconds);
    add("published_per_second", float(taken_after - taken) / seconds);
    if messages > 0 {
        add("events_per_message", float(events) / float(messages));
    }
    add("lost", float(missing));
    add("gaps", float(audience.gaps()));
    metrics
}
