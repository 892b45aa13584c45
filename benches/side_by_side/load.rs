//! The load: who publishes what, when, and what is measured meanwhile. The same for all contestants.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use hdrhistogram::Histogram;
use prost::Message;
use tokio::{
    runtime::Handle,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use trunkline::proto::v1::{ChangedType, Event, MailboxChange, event::Kind};

use crate::{
    clock,
    contestant::{Contestant, Heard, Publisher, System, open, subscribe_request},
    report::Metrics,
    support::gateway::connect,
};

/// How far the publisher may be ahead of what subscribers have heard on average, in events. Who has no flow control (Redis and
/// NATS cut off whoever is behind) is kept from overrunning itself.
const AHEAD: u64 = 10_000;

/// Load before the measurement begins.
const WARM_UP: Duration = Duration::from_millis(700);

/// How long all that was published may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(20);

/// Events of one kind and size: a mailbox change. Its id is a time, in 16 hexadecimal digits.
#[derive(Debug, Default)]
pub struct Payload;

#[allow(clippy::unused_self)] // a payload of another kind would have something to say
impl Payload {
    /// As a node gives it to a gateway.
    pub fn published(&self, at: u64) -> Vec<u8> {
        Payload::event(at).encode_to_vec()
    }

    /// As it is delivered, and as a node publishes it where there is no gateway: with its source and time.
    pub fn delivered(&self, at: u64) -> Vec<u8> {
        let time = prost_types::Timestamp { seconds: 1_800_000_000, nanos: 123_456_789 };
        let source = "publisher".to_owned();
        Event { source, publish_time: Some(time), ..Payload::event(at) }.encode_to_vec()
    }

    /// The time that an encoded event bears; the id comes first.
    pub fn time(event: &[u8]) -> u64 {
        let digits = event.get(2..18).and_then(|digits| std::str::from_utf8(digits).ok());
        u64::from_str_radix(digits.expect("an id"), 16).expect("a time")
    }

    fn event(at: u64) -> Event {
        let change = MailboxChange {
            account_id: "account-1".to_owned(),
            change_id: 123_456,
            changed_types: vec![ChangedType::Email.into(), ChangedType::Mailbox.into()],
        };
        let kind = Some(Kind::MailboxChange(change));
        Event { event_id: format!("{at:016x}"), kind, ..Event::default() }
    }
}

/// Subscribers, each on a connection of its own.
struct Audience {
    heard: Vec<Arc<Heard>>,
    tasks: JoinSet<()>,
}

impl Audience {
    async fn gather(system: &System, count: usize, latency: bool) -> Audience {
        let mut audience = Audience { heard: vec![], tasks: JoinSet::new() };
        for node in 0..count {
            let heard = Heard::new(latency);
            system.subscribe(node, heard.clone(), &mut audience.tasks).await;
            audience.heard.push(heard);
        }
        audience
    }

    fn delivered(&self) -> u64 {
        self.heard.iter().map(|heard| heard.count()).sum()
    }

    /// Waits until all have heard `published` events; returns how many deliveries are missing.
    async fn complete(&self, published: u64) -> u64 {
        let wanted = published * self.heard.len() as u64;
        let all = async {
            while self.delivered() < wanted {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = timeout(ARRIVAL, all).await;
        wanted.saturating_sub(self.delivered())
    }
}

/// One publisher, as fast as it gets its acknowledgements, `batch` events a request.
pub async fn fan_out(
    system: &System,
    subscribers: usize,
    batch: usize,
    length: Duration,
) -> Metrics {
    let audience = Audience::gather(system, subscribers, false).await;
    let publisher = system.publisher().await;
    let published = Arc::new(AtomicU64::new(0));
    let heard = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let mut publishing = JoinSet::new();
    let endless = matches!(publisher, Publisher::Nobody);
    // Requests under way: enough to keep every contestant busy.
    for _ in 0..if endless {
        0
    } else if batch == 1 {
        64
    } else {
        4
    } {
        let (publisher, published) = (publisher.clone(), published.clone());
        let (heard, stop) = (heard.clone(), stop.clone());
        publishing.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                while published.load(Ordering::Relaxed) > heard.load(Ordering::Relaxed) + AHEAD {
                    sleep(Duration::from_millis(1)).await;
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
                published.fetch_add(batch as u64, Ordering::Relaxed);
                publisher.publish(&Payload, batch, 0).await;
            }
        });
    }
    let watch = async {
        loop {
            heard.store(audience.delivered() / subscribers as u64, Ordering::Relaxed);
            sleep(Duration::from_millis(1)).await;
        }
    };
    let measure = async {
        sleep(WARM_UP).await;
        let before = (Instant::now(), audience.delivered(), system.cpu_seconds());
        sleep(length).await;
        let after = (Instant::now(), audience.delivered(), system.cpu_seconds());
        (before, after)
    };
    let (before, after) = tokio::select! {
        measured = measure => measured,
        () = watch => unreachable!("it never ends"),
    };
    stop.store(true, Ordering::Relaxed);
    while publishing.join_next().await.is_some() {}
    let lost = if endless { 0 } else { audience.complete(published.load(Ordering::Relaxed)).await };

    let events = float(after.1 - before.1);
    let millions = events / 1e6;
    Metrics::from([
        ("delivered_per_second", events / (after.0 - before.0).as_secs_f64()),
        ("server_cpu_seconds_per_million", (after.2.0 - before.2.0) / millions),
        ("redis_cpu_seconds_per_million", (after.2.1 - before.2.1) / millions),
        ("lost", float(lost)),
    ])
}

/// One publisher at a fixed rate, whatever the answers do; latency counts from when an event was to be sent.
pub async fn latency(
    system: &System,
    contestant: Contestant,
    subscribers: usize,
    rate: u64,
    length: Duration,
) -> Metrics {
    let publisher = system.publisher().await;
    let mut all = Histogram::new_with_bounds(1_000, 60_000_000_000, 3).expect("bounds");
    // The round trip has no subscribers: its answers are heard by the publisher.
    let echo = (contestant == Contestant::Echo).then(|| Heard::new(true));
    let count = if echo.is_some() { 0 } else { subscribers };
    // A short run first, whose audience is forgotten.
    for length in [WARM_UP, length] {
        let mut audience = Audience::gather(system, count, true).await;
        let answers = echo.as_ref().map(|_| Heard::new(true));
        audience.heard.extend(answers.clone());
        let events = rate * u64::try_from(length.as_millis()).expect("short") / 1000;
        let (publisher, handle) = (publisher.clone(), Handle::current());
        // A thread of its own, since the timers of the runtime count in milliseconds.
        let clockwork = std::thread::spawn(move || {
            let start = clock::now() + 20_000_000;
            for number in 0..events {
                let due = start + number * 1_000_000_000 / rate;
                while let Some(left) = due.checked_sub(clock::now()).filter(|left| *left > 0) {
                    std::thread::sleep(Duration::from_nanos(left));
                }
                let (publisher, answers) = (publisher.clone(), answers.clone());
                handle.spawn(async move {
                    publisher.publish(&Payload, 1, due).await;
                    if let Some(answers) = answers {
                        answers.event(&Payload.delivered(due));
                    }
                });
            }
        });
        let lost = audience.complete(events).await;
        tokio::task::spawn_blocking(|| clockwork.join()).await.expect("joined").expect("ended");
        assert_eq!(lost, 0, "{}: events were lost", contestant.name());
        all.reset();
        for heard in &audience.heard {
            heard.add_latency(&mut all);
        }
    }
    let microseconds = |quantile| float(all.value_at_quantile(quantile)) / 1e3;
    Metrics::from([
        ("p50_us", microseconds(0.5)),
        ("p99_us", microseconds(0.99)),
        ("p999_us", microseconds(0.999)),
    ])
}

/// Memory of a gateway for streams on which nothing happens, `per_connection` on each connection.
pub async fn idle(system: &System, streams: usize, per_connection: usize) -> Metrics {
    // The first ones make what there is one of.
    let warm = connect(&system.gateway_url(0)).await.expect("a connection");
    drop(open(&warm, subscribe_request(0)).await);
    sleep(Duration::from_millis(300)).await;
    let before = system.rss_bytes();
    let mut held = Vec::new();
    for connection in 0..streams / per_connection {
        let channel = connect(&system.gateway_url(0)).await.expect("a connection");
        for stream in 0..per_connection {
            let node = 1 + connection * per_connection + stream;
            held.push(open(&channel, subscribe_request(node)).await);
        }
    }
    sleep(Duration::from_millis(500)).await;
    let (cpu, _) = system.cpu_seconds();
    sleep(Duration::from_secs(4)).await;
    let (cpu_after, _) = system.cpu_seconds();
    let bytes = system.rss_bytes().saturating_sub(before);
    Metrics::from([
        ("rss_bytes_per_stream", float(bytes) / float(held.len() as u64)),
        ("cpu_percent", (cpu_after - cpu) / 4.0 * 100.0),
    ])
}

/// A count as what a rate is made of.
#[allow(clippy::cast_precision_loss)] // Counts here are far below 2^52.
pub fn float(count: u64) -> f64 {
    count as f64
}
