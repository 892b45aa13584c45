//! The load during a fault: publishers and subscribers that record everything they send and
//! receive.
//!
//! A publisher sends its next request when the one before was answered, and retries an unanswered
//! one with the same `request_id`, on the next gateway. A subscriber holds one stream, and opens
//! the next one with the last token, on the next gateway. Both do by hand what trunkline-client
//! does: the record must not depend on it.

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
use tonic_types::StatusExt;
use trunkline_proto::v1::{
    Event, Filter, Gap as WireGap, GapReason, PublishRequest, SubscribeRequest, SubscribeResponse,
    coordination_service_client::CoordinationServiceClient, event::Kind,
    subscribe_response::Response,
};

use crate::{
    history::{Acknowledged, Gap, History, Interest, Item, Node, Sent, Stream},
    promises,
    support::{events, gateway::Gateway, wait::attempt},
};

/// How long a publisher waits for an answer before it retries: longer than a gateway's own limit of
/// 10 s.
const ANSWER: Duration = Duration::from_secs(12);

/// How long a publisher retries one request.
const PATIENCE: Duration = Duration::from_mins(1);

/// A watchful subscriber gives up a stream that received nothing, heartbeats included, for this
/// long.
const SILENCE: Duration = Duration::from_secs(4);

/// How long the subscribers may take to receive the rest after the publishers have stopped.
const CATCH_UP: Duration = Duration::from_secs(30);

/// The number of accounts that events concern.
const ACCOUNTS: u64 = 40;

/// The size and behaviour of a load.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Nodes that publish.
    pub publishers: usize,
    /// Nodes that subscribe, on the gateways in turn. One of them publishes too, and one has a
    /// filter.
    pub subscribers: usize,
    /// The pause of a publisher between two requests.
    pub pace: Duration,
    /// The largest number of events in one request.
    pub batch: u64,
    /// True if subscribers give up a silent stream; otherwise they wait for its end.
    pub watchful: bool,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            publishers: 4,
            subscribers: 6,
            pace: Duration::from_millis(4),
            batch: 4,
            watchful: false,
        }
    }
}

/// A running load.
pub struct Load {
    shared: Arc<Shared>,
    publishers: Vec<JoinHandle<()>>,
    subscribers: Vec<JoinHandle<()>>,
}

struct Shared {
    start: Instant,
    gateways: Vec<Channel>,
    history: Mutex<History>,
    /// Events acknowledged, and events received.
    acknowledged: AtomicUsize,
    received: AtomicUsize,
    stop: AtomicBool,
    /// Violations that no fault excuses: a rejected request, an answer that makes no sense.
    unexcused: Mutex<Vec<String>>,
}

impl Load {
    /// Starts the load; returns when every subscriber is confirmed and every publisher has
    /// published.
    pub async fn start(gateways: &[&Gateway], shape: Shape) -> Load {
        let channel = |gateway: &&Gateway| {
            let endpoint = Endpoint::from_shared(gateway.url()).expect("a URL");
            endpoint.connect_timeout(Duration::from_secs(1)).connect_lazy()
        };
        let shared = Arc::new(Shared {
            start: Instant::now(),
            gateways: gateways.iter().map(channel).collect(),
            history: Mutex::default(),
            acknowledged: AtomicUsize::new(0),
            received: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            unexcused: Mutex::default(),
        });
        let subscribers: Vec<_> = (0..shape.subscribers)
            .map(|index| tokio::spawn(subscribe(shared.clone(), index, shape)))
            .collect();
        attempt(CATCH_UP, "all subscribers are confirmed", async || {
            let history = shared.history.lock();
            let ready = history.nodes.iter().filter(|node| node.first_subscribed().is_some());
            let ready = ready.count();
            (ready == shape.subscribers).then_some(()).ok_or_else(|| format!("{ready} are"))
        })
        .await;
        let publishers: Vec<_> = (0..shape.publishers)
            .map(|index| tokio::spawn(publish(shared.clone(), index, shape)))
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
        let patience = Instant::now();
        let mut received = 0;
        while patience.elapsed() < CATCH_UP {
            tokio::time::sleep(Duration::from_millis(200)).await;
            // Validators are slow: they run only when nothing was received since the last look.
            if std::mem::replace(&mut received, self.shared.received.load(Ordering::Relaxed))
                != self.shared.received.load(Ordering::Relaxed)
            {
                continue;
            }
            let owed = {
                let history = self.shared.history.lock();
                let check = promises::PROMISES.iter().filter(|promise| {
                    ["NoSilentLoss", "Drained", "Resumable"].contains(&promise.name)
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

async fn publish(shared: Arc<Shared>, index: usize, shape: Shape) {
    // The first publisher subscribes too.
    let node_id = if index == 0 { node_id(0) } else { format!("publisher-{index}") };
    let mut turn = index;
    let mut number = 0;
    while !shared.stop.load(Ordering::Acquire) {
        let count = 1 + number % shape.batch;
        let batch: Vec<Event> = (0..count).map(|nth| event(&node_id, number + nth)).collect();
        number += count;
        let first = {
            let at = shared.start.elapsed();
            let mut history = shared.history.lock();
            history.sent.extend(batch.iter().map(|event| Sent {
                event_id: event.event_id.clone(),
                source: node_id.clone(),
                account: account(event).to_owned(),
                at,
                acknowledged: None,
            }));
            history.sent.len() - batch.len()
        };
        let request = PublishRequest {
            node_id: node_id.clone(),
            request_id: uuid::Uuid::new_v4().to_string(),
            events: batch,
        };
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let answer = timeout(ANSWER, shared.client(turn).publish(request.clone())).await;
            match answer {
                Ok(Ok(answer)) => {
                    let positions = answer.into_inner().positions;
                    if positions.len() != request.events.len() {
                        shared.unexcused(format!("{} positions", positions.len()));
                        break;
                    }
                    let at = shared.start.elapsed();
                    shared.acknowledged.fetch_add(positions.len(), Ordering::Relaxed);
                    let mut history = shared.history.lock();
                    for (nth, position) in positions.iter().enumerate() {
                        history.sent[first + nth].acknowledged = Some(Acknowledged {
                            shard: position.shard,
                            position: (position.epoch, position.offset),
                            at,
                        });
                    }
                    break;
                }
                Ok(Err(status))
                    if status.code() != Code::Unavailable && !is_connection_error(&status) =>
                {
                    shared.unexcused(format!("publish: {status:?}"));
                    break;
                }
                Ok(Err(_)) | Err(_) => {
                    shared.history.lock().refused += 1;
                    turn += 1;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        tokio::time::sleep(shape.pace).await;
    }
}

/// True for a status that the client made because its connection broke.
fn is_connection_error(status: &Status) -> bool {
    use std::error::Error;
    status.source().is_some()
        || matches!(status.code(), Code::Cancelled | Code::Unknown) && status.details().is_empty()
}

fn event(node_id: &str, number: u64) -> Event {
    let account = format!("account-{}", number % ACCOUNTS);
    let event = if number.is_multiple_of(3) {
        events::email_delivery(&account, &format!("message-{number}"))
    } else {
        events::mailbox_change(&account, number)
    };
    events::with_id(format!("{node_id}/{number}"), event)
}

fn account(event: &Event) -> &str {
    match &event.kind {
        Some(Kind::MailboxChange(change)) => &change.account_id,
        Some(Kind::EmailDelivery(delivery)) => &delivery.account_id,
        _ => "",
    }
}

async fn subscribe(shared: Arc<Shared>, index: usize, shape: Shape) {
    let accounts = (index == 1)
        .then(|| (0..ACCOUNTS).step_by(4).map(|number| format!("account-{number}")).collect());
    let interest = Interest { accounts, own: false };
    let request = SubscribeRequest {
        node_id: node_id(index),
        filter: interest.accounts.clone().map(|accounts| Filter {
            accounts: accounts.into_iter().collect(),
            ..Filter::default()
        }),
        heartbeat_interval: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        ..SubscribeRequest::default()
    };
    let position = {
        let mut history = shared.history.lock();
        history.nodes.push(Node { node_id: node_id(index), interest, streams: vec![] });
        history.nodes.len() - 1
    };
    let mut token = Vec::new();
    let mut turn = index;
    loop {
        let request = SubscribeRequest { resume_token: token.clone(), ..request.clone() };
        let with_token = !token.is_empty();
        shared.history.lock().nodes[position].streams.push(Stream { with_token, items: vec![] });
        let end = read(&shared, position, turn, request, &mut token, shape.watchful).await;
        record(&shared, position, Item::Ended(end));
        turn += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Reads one stream to its end, and returns the gateway's reason for the end.
async fn read(
    shared: &Shared,
    position: usize,
    turn: usize,
    request: SubscribeRequest,
    token: &mut Vec<u8>,
    watchful: bool,
) -> Option<String> {
    let mut client = shared.client(turn);
    let opened = timeout(SILENCE, client.subscribe(request)).await;
    let mut stream = match opened {
        Ok(Ok(stream)) => stream.into_inner(),
        Ok(Err(status)) => return reason(shared, &status),
        Err(_) => return None,
    };
    loop {
        let limit = if watchful { SILENCE } else { Duration::from_hours(1) };
        match timeout(limit, stream.message()).await {
            Ok(Ok(Some(response))) => take(shared, position, response, token),
            Ok(Ok(None)) | Err(_) => return None,
            Ok(Err(status)) => return reason(shared, &status),
        }
    }
}

fn reason(shared: &Shared, status: &Status) -> Option<String> {
    let reason = status.get_details_error_info().map(|info| info.reason);
    if status.code() != Code::Unavailable && !is_connection_error(status) {
        shared.unexcused(format!("a stream ended: {status:?}"));
    }
    reason
}

fn take(shared: &Shared, position: usize, response: SubscribeResponse, token: &mut Vec<u8>) {
    match response.response {
        Some(Response::Subscribed(subscribed)) => {
            *token = subscribed.resume_token;
            record(shared, position, Item::Subscribed { resumed: subscribed.resumed });
        }
        Some(Response::Events(batch)) => {
            let at = shared.start.elapsed();
            shared.received.fetch_add(batch.events.len(), Ordering::Relaxed);
            let mut history = shared.history.lock();
            let stream = history.nodes[position].streams.last_mut().expect("it was pushed");
            stream.items.extend(batch.events.into_iter().map(|event| {
                let account = account(&event).to_owned();
                (at, Item::Event { event_id: event.event_id, source: event.source, account })
            }));
            *token = batch.resume_token;
        }
        Some(Response::Gap(gap)) => {
            token.clone_from(&gap.resume_token);
            record(shared, position, Item::Gap(reported(&gap)));
        }
        Some(Response::Heartbeat(heartbeat)) => *token = heartbeat.resume_token,
        Some(Response::Draining(_)) => record(shared, position, Item::Draining),
        // Meant for people; it carries no token.
        Some(Response::Notice(_)) => {}
        Some(Response::Explanation(_)) => {
            shared.unexcused("an explanation that was not requested".into());
        }
        None => shared.unexcused("a response without an arm".into()),
    }
}

fn reported(gap: &WireGap) -> Gap {
    let position = |position: &Option<trunkline_proto::v1::Position>| {
        position.as_ref().map(|position| (position.epoch, position.offset)).unwrap_or_default()
    };
    Gap {
        shard: gap.shard,
        reason: GapReason::try_from(gap.reason)
            .map_or_else(|_| gap.reason.to_string(), |reason| reason.as_str_name().to_owned()),
        from: position(&gap.from),
        to: position(&gap.to),
        missed: gap.missed_events,
    }
}

fn record(shared: &Shared, position: usize, item: Item) {
    let at = shared.start.elapsed();
    let mut history = shared.history.lock();
    history.nodes[position].streams.last_mut().expect("it was pushed").items.push((at, item));
}
