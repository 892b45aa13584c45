//! The load during a fault: publishers and subscribers that record everything they send and
//! receive.
//!
//! A publisher sends its next request when the one before was answered, and retries an unanswered
//! one with the same `request_id`, on the next gateway. A subscriber holds one stream, and opens
//! the next one with the last token, on the next gateway. Both do by hand what trunkline-client
//! does: the record must not depend on it. With [`Shape::clients`], half of them use it.

mod client;
mod publisher;
mod subscriber;
mod watcher;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{task::JoinHandle, time::timeout};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use trunkline_client::CredentialFiles;
use trunkline_proto::v1::{
    Event, Position, coordination_service_client::CoordinationServiceClient, event::Kind,
};
use uuid::Uuid;

use self::{publisher::publish, subscriber::subscribe, watcher::watch};
use crate::{
    history::{Acknowledged, History, Sent},
    promises,
    support::{gateway::Gateway, wait::attempt},
};

/// How long a publisher retries one request.
const PATIENCE: Duration = Duration::from_mins(1);

/// How long subscribers that lack events may receive nothing after the publishers have stopped.
const CATCH_UP: Duration = Duration::from_secs(30);

/// The size and behaviour of a load.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Nodes that publish.
    pub publishers: usize,
    /// Nodes that subscribe, on the gateways in turn. One of them publishes too, and one has a
    /// filter.
    pub subscribers: usize,
    /// Nodes that watch, on the gateways in turn.
    pub watchers: usize,
    /// The accounts that each of them adds or removes in a second.
    pub changes: u64,
    /// The number of accounts that events concern.
    pub accounts: u64,
    /// The pause of a publisher between two requests.
    pub pace: Duration,
    /// The largest number of events in one request.
    pub batch: u64,
    /// True if subscribers give up a silent stream; otherwise they wait for its end.
    pub watchful: bool,
    /// The number of subscribers that begin with the oldest event: the last ones.
    pub oldest: usize,
    /// The number of subscribers that read slowly: those before them.
    pub slow: usize,
    /// True if every second publisher and subscriber is one of trunkline-client; all are where
    /// they need credentials.
    pub clients: bool,
    /// The number of publishers that publish on streams, with trunkline-client: the last ones.
    pub streams: usize,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            publishers: 4,
            subscribers: 6,
            watchers: 2,
            changes: 20,
            accounts: 40,
            pace: Duration::from_millis(4),
            batch: 4,
            watchful: false,
            oldest: 0,
            slow: 0,
            clients: false,
            streams: 1,
        }
    }
}

/// A running load.
pub struct Load {
    shared: Arc<Shared>,
    publishers: Vec<JoinHandle<()>>,
    /// Those that watch, too.
    subscribers: Vec<JoinHandle<()>>,
}

struct Shared {
    start: Instant,
    /// In the ids of all events: loads that follow one another have different ones.
    id: Uuid,
    shape: Shape,
    gateways: Vec<Channel>,
    urls: Vec<String>,
    credentials: CredentialFiles,
    history: Mutex<History>,
    /// Events acknowledged, and events received.
    acknowledged: AtomicUsize,
    received: AtomicUsize,
    /// Updates of an interest that were answered.
    updated: AtomicUsize,
    stop: AtomicBool,
    /// Violations that no fault excuses: a rejected request, an answer that makes no sense.
    unexcused: Mutex<Vec<String>>,
}

impl Load {
    /// Starts the load; returns when every subscriber is confirmed and every publisher has
    /// published.
    pub async fn start(gateways: &[&Gateway], shape: Shape) -> Load {
        Load::start_with(gateways, shape, CredentialFiles::default()).await
    }

    /// The same with credentials, over TLS: all nodes are those of trunkline-client, and none
    /// watches.
    pub async fn start_with(
        gateways: &[&Gateway],
        shape: Shape,
        credentials: CredentialFiles,
    ) -> Load {
        let url = |gateway: &&Gateway| {
            if credentials.any() {
                format!("https://localhost:{}", gateway.port())
            } else {
                gateway.url()
            }
        };
        let channel = |gateway: &&Gateway| {
            let endpoint = Endpoint::from_shared(gateway.url()).expect("a URL");
            endpoint.connect_timeout(Duration::from_secs(1)).connect_lazy()
        };
        let shared = Arc::new(Shared {
            start: Instant::now(),
            id: Uuid::new_v4(),
            shape,
            urls: gateways.iter().map(url).collect(),
            credentials: credentials.clone(),
            gateways: gateways.iter().map(channel).collect(),
            history: Mutex::default(),
            acknowledged: AtomicUsize::new(0),
            received: AtomicUsize::new(0),
            updated: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            unexcused: Mutex::default(),
        });
        let subscribers: Vec<_> = (0..shape.subscribers)
            .map(|index| tokio::spawn(subscribe(shared.clone(), index)))
            .chain((0..shape.watchers).map(|index| tokio::spawn(watch(shared.clone(), index))))
            .collect();
        attempt(CATCH_UP, "all subscribers are confirmed", async || {
            let history = shared.history.lock();
            let ready = history.nodes.iter().filter(|node| node.first_subscribed().is_some());
            let ready = ready.count();
            (ready == shape.subscribers + shape.watchers)
                .then_some(())
                .ok_or_else(|| format!("{ready} are"))
        })
        .await;
        let publishers: Vec<_> = (0..shape.publishers)
            .map(|index| tokio::spawn(publish(shared.clone(), index)))
            .collect();
        let load = Load { shared, publishers, subscribers };
        load.publishes(20 * shape.publishers).await;
        load
    }

    /// The time since the start, as in the history.
    pub fn now(&self) -> Duration {
        self.shared.start.elapsed()
    }

    /// Records that the bus could certainly accept nothing from `from` until now.
    pub fn was_down_since(&self, from: Duration) {
        let now = self.now();
        self.shared.history.lock().outages.push((from, now));
    }

    /// Waits until `more` further events were acknowledged.
    pub async fn publishes(&self, more: usize) {
        let before = self.acknowledged();
        let wanted = before + more;
        attempt(PATIENCE, "events are acknowledged", async || {
            let now = self.acknowledged();
            (now >= wanted).then_some(()).ok_or_else(|| format!("{} of {more}", now - before))
        })
        .await;
    }

    /// The number of events acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// The number of events delivered so far, over all subscribers.
    pub fn delivered(&self) -> usize {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// The number of updates answered so far, over all watchers.
    pub fn updated(&self) -> usize {
        self.shared.updated.load(Ordering::Relaxed)
    }

    /// Stops the publishers, waits until the subscribers have received the rest, and returns the
    /// history.
    ///
    /// # Panics
    ///
    /// If something happened that no fault excuses.
    pub async fn finish(self) -> History {
        self.shared.stop.store(true, Ordering::Release);
        for publisher in self.publishers {
            timeout(PATIENCE * 2, publisher).await.expect("publishers end").expect("no panic");
        }
        // What is still missing when the time is over is a violation; the validators find it.
        let mut patience = Instant::now();
        let mut received = 0;
        while patience.elapsed() < CATCH_UP {
            tokio::time::sleep(Duration::from_millis(200)).await;
            // Validators are slow: they run only when nothing was received since the last look.
            if std::mem::replace(&mut received, self.shared.received.load(Ordering::Relaxed))
                != self.shared.received.load(Ordering::Relaxed)
            {
                patience = Instant::now();
                continue;
            }
            let owed = {
                let history = self.shared.history.lock();
                let check = promises::PROMISES.iter().filter(|promise| {
                    ["NoSilentLoss", "InterestExact", "Drained", "Resumable"]
                        .contains(&promise.name)
                });
                check.map(|promise| (promise.violations)(&history).len()).sum::<usize>()
            };
            if owed == 0 {
                break;
            }
        }
        for subscriber in self.subscribers {
            subscriber.abort();
        }
        let unexcused = self.shared.unexcused.lock().clone();
        assert!(unexcused.is_empty(), "{unexcused:#?}");
        std::mem::take(&mut *self.shared.history.lock())
    }
}

impl Shared {
    /// True if the publisher with this number publishes on a stream.
    fn is_streaming(&self, index: usize) -> bool {
        index + self.shape.streams >= self.shape.publishers
    }

    /// True if the node with this number is one of trunkline-client.
    fn is_client(&self, index: usize) -> bool {
        self.shape.clients && (index % 2 == 1 || self.credentials.any())
    }

    /// The options of a client whose first gateway is that with the number `turn`.
    fn builder(&self, node_id: &str, turn: usize) -> trunkline_client::Builder {
        let count = self.urls.len();
        let urls = (0..count).map(|nth| self.urls[(turn + nth) % count].clone());
        let builder = trunkline_client::Client::builder(node_id).gateways(urls).in_order();
        builder.credential_files(self.credentials.clone())
    }

    /// Records events that are sent now; returns the index of the first.
    fn sends(&self, node_id: &str, batch: &[Event]) -> usize {
        let at = self.start.elapsed();
        let mut history = self.history.lock();
        history.sent.extend(batch.iter().map(|event| Sent {
            event_id: event.event_id.clone(),
            source: node_id.to_owned(),
            account: account(event).to_owned(),
            at,
            acknowledged: None,
        }));
        history.sent.len() - batch.len()
    }

    /// Records that the events from index `first` on were acknowledged.
    fn acknowledges(&self, first: usize, count: usize, positions: &[Position]) {
        if positions.len() != count {
            self.unexcused(format!("{} positions for {count} events", positions.len()));
            return;
        }
        let at = self.start.elapsed();
        self.acknowledged.fetch_add(count, Ordering::Relaxed);
        let mut history = self.history.lock();
        for (nth, position) in positions.iter().enumerate() {
            history.sent[first + nth].acknowledged = Some(Acknowledged {
                place: Some((position.shard, (position.epoch, position.offset))),
                at,
            });
        }
    }

    /// Records that the event at this index was acknowledged on a stream.
    fn acknowledges_streamed(&self, index: usize) {
        let at = self.start.elapsed();
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        self.history.lock().sent[index].acknowledged = Some(Acknowledged { place: None, at });
    }

    fn client(&self, turn: usize) -> CoordinationServiceClient<Channel> {
        let channel = self.gateways[turn % self.gateways.len()].clone();
        CoordinationServiceClient::new(channel).max_decoding_message_size(64 << 20)
    }

    fn unexcused(&self, what: String) {
        self.unexcused.lock().push(what);
    }
}

fn node_id(index: usize) -> String {
    format!("node-{index}")
}

/// True for a status that the client made because its connection broke.
fn is_connection_error(status: &Status) -> bool {
    use std::error::Error;
    status.source().is_some()
        || matches!(status.code(), Code::Cancelled | Code::Unknown) && status.details().is_empty()
}

fn account(event: &Event) -> &str {
    match &event.kind {
        Some(Kind::MailboxChange(change)) => &change.account_id,
        Some(Kind::EmailDelivery(delivery)) => &delivery.account_id,
        _ => "",
    }
}
