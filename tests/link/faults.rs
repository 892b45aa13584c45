//! Nothing is lost and nothing comes twice: over a long line that is cut, links that are killed,
//! and gateways that end at both sides.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use trunkline_client::{PublisherOptions, SubscribeOptions};
use trunkline_proto::v1::event::Kind;

use crate::{
    history::{self, Acknowledged, History, Item, Sent, Stream},
    promises::PROMISES,
    stage::{Link, Received, Recorder, client},
    support::{
        LIMIT,
        events::{mailbox_change, with_id},
        gateway::{Gateway, GatewayOptions},
        long_line::LongLine,
        redis::{RedisOptions, RedisServer},
        until,
    },
};

/// The delay of the line, each way.
const DELAY: Duration = Duration::from_millis(100);

/// How long the line is cut, in seconds, unless this variable says so.
const CUT_SECONDS: &str = "TRUNKLINE_TEST_CUT_SECONDS";
const CUT: u64 = 4;

/// The pause of the publisher between two batches, and the events of one.
const PACE: Duration = Duration::from_millis(5);
const BATCH: u64 = 5;

/// The side of the link that is far away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Far {
    Source,
    Destination,
}

/// Two gateways on a Redis of their own.
struct Deployment {
    gateways: Vec<Gateway>,
    _redis: RedisServer,
}

impl Deployment {
    async fn start(name: &str) -> Deployment {
        let redis = RedisServer::start(RedisOptions::default()).await;
        let options = GatewayOptions::redis(&redis.url(), name);
        let options = options.set("deployment", name).set("shards", 4);
        let (one, two) = tokio::join!(Gateway::start(options.clone()), Gateway::start(options));
        Deployment { gateways: vec![one, two], _redis: redis }
    }

    fn urls(&self) -> Vec<String> {
        self.gateways.iter().map(Gateway::url).collect()
    }
}

/// A publisher at the source, and what it recorded.
struct Load {
    begun: Instant,
    sent: Arc<Mutex<Vec<Sent>>>,
    stop: Arc<AtomicBool>,
    publishing: tokio::task::JoinHandle<()>,
}

impl Load {
    fn start(urls: &[String]) -> Load {
        let begun = Instant::now();
        let (sent, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let publisher = client("mx1", urls).publisher(PublisherOptions::new());
        let (record, ends) = (sent.clone(), stop.clone());
        let publishing = tokio::spawn(async move {
            let mut number = 0;
            let mut answers = tokio::task::JoinSet::new();
            while !ends.load(Ordering::Relaxed) {
                for _ in 0..BATCH {
                    let (event_id, account) = (format!("e{number}"), format!("a{}", number % 50));
                    let event = with_id(&event_id, mailbox_change(&account, number));
                    let at = begun.elapsed();
                    let source = "mx1".to_owned();
                    let sent = Sent { event_id, source, account, at, acknowledged: None };
                    record.lock().push(sent);
                    let answer = publisher.publish(event).await.expect("taken");
                    let (record, index) = (record.clone(), number);
                    answers.spawn(async move {
                        answer.await.expect("acknowledged");
                        let at = begun.elapsed();
                        let index = usize::try_from(index).expect("few");
                        let acknowledged = Some(Acknowledged { place: None, at });
                        record.lock()[index].acknowledged = acknowledged;
                    });
                    number += 1;
                }
                tokio::time::sleep(PACE).await;
            }
            while answers.join_next().await.transpose().expect("acknowledged").is_some() {}
        });
        Load { begun, sent, stop, publishing }
    }

    /// Waits until the reader has an event that was sent from now on.
    async fn goes_on(&self, reader: &Recorder, what: &str) {
        let next = self.sent.lock().len();
        let id = format!("e{}", next + 1);
        let found = |one: &Received| matches!(one, Received::Event(event) if event.event_id == id);
        until(4 * LIMIT, what, async || reader.received.lock().iter().rev().any(found)).await;
    }

    /// Stops, and returns what was sent once all is acknowledged.
    async fn end(self) -> (Vec<Sent>, Instant) {
        self.stop.store(true, Ordering::Relaxed);
        self.publishing.await.expect("acknowledged");
        (std::mem::take(&mut *self.sent.lock()), self.begun)
    }
}

/// The history of a node that received everything on one stream, as far as its reconnects show.
fn history(sent: Vec<Sent>, received: &[Received]) -> History {
    let item = |one: &Received| match one {
        Received::Subscribed => Item::Subscribed { resumed: true },
        Received::Event(event) => {
            let origin = event.origin.as_ref().expect("an origin");
            let account = match &event.kind {
                Some(Kind::MailboxChange(change)) => change.account_id.clone(),
                other => panic!("{other:?}"),
            };
            let (event_id, source) = (event.event_id.clone(), origin.node_id.clone());
            Item::Event { event_id, source, account }
        }
        Received::Gap(gap) => panic!("a gap where nothing was lost: {gap:?}"),
    };
    let items = received.iter().map(|one| (Duration::ZERO, item(one))).collect();
    let streams = vec![Stream { items, ..Stream::default() }];
    let node = history::Node { node_id: "reader".into(), streams, ..Default::default() };
    History { sent, nodes: vec![node], ..History::default() }
}

async fn faults(far: Far) {
    let (a, b) = tokio::join!(Deployment::start("a"), Deployment::start("b"));
    let mut lines = vec![];
    for gateway in if far == Far::Source { &a.gateways } else { &b.gateways } {
        lines.push(LongLine::start(gateway.port(), DELAY).await);
    }
    let long: Vec<String> = lines.iter().map(LongLine::gateway_url).collect();
    let (from, to) = match far {
        Far::Source => (long, b.urls()),
        Far::Destination => (a.urls(), long),
    };
    let reader = Recorder::start(&client("reader", &b.urls()), SubscribeOptions::new()).await;
    let mut link = Link::start(&from, &to, &[]);
    // Of what was published before the link had a state.
    reader.gaps(1).await;
    reader.received.lock().retain(|one| !matches!(one, Received::Gap(_)));
    let load = Load::start(&a.urls());
    load.goes_on(&reader, "the link carries events").await;

    let seconds = std::env::var(CUT_SECONDS).ok().and_then(|seconds| seconds.parse().ok());
    let cut = Duration::from_secs(seconds.unwrap_or(CUT));
    let all = |act: fn(&LongLine)| lines.iter().for_each(act);
    all(LongLine::cut);
    tokio::time::sleep(cut).await;
    all(LongLine::restore);
    load.goes_on(&reader, "the line was cut, and is there again").await;

    for _ in 0..3 {
        link.restart();
        load.goes_on(&reader, "the link was killed").await;
    }

    // Killed while the line is cut: what was on its way is in doubt.
    all(LongLine::cut);
    link.restart();
    all(LongLine::restore);
    load.goes_on(&reader, "the link was killed while the line was cut").await;

    for gateway in a.gateways.iter().chain(&b.gateways) {
        gateway.restart().await;
        load.goes_on(&reader, "a gateway was killed").await;
    }

    // All at once.
    all(LongLine::cut);
    a.gateways[0].kill_9();
    b.gateways[1].kill_9();
    link.restart();
    tokio::join!(a.gateways[0].restart(), b.gateways[1].restart());
    all(LongLine::restore);
    load.goes_on(&reader, "everything was killed at once").await;

    let (sent, begun) = load.end().await;
    until(4 * LIMIT, "all events came", async || reader.ids().len() >= sent.len()).await;
    let count = sent.len();
    println!("{count} events in {:?}, {far:?} far away", begun.elapsed());
    let history = history(sent, &reader.received.lock());
    for promise in &PROMISES {
        // Times and positions are those of another deployment: what is left are these.
        if ["Unique", "NoSilentLoss", "NoEcho", "Filtered"].contains(&promise.name) {
            let violations = (promise.violations)(&history);
            assert!(violations.is_empty(), "{}: {violations:?}", promise.name);
        }
    }
    in_order(&history);
}

/// The events of one account come in the order in which they were published.
fn in_order(history: &History) {
    let mut last = std::collections::HashMap::new();
    for (_, item) in history.nodes[0].items() {
        if let Item::Event { event_id, account, .. } = item {
            let number: u64 = event_id[1..].parse().expect("a number");
            let before = last.insert(account, number);
            assert!(before < Some(number), "{account}: {before:?}, then {number}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_repeated_where_the_source_is_far_away() {
    Box::pin(faults(Far::Source)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_repeated_where_the_destination_is_far_away() {
    Box::pin(faults(Far::Destination)).await;
}
