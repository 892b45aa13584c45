//! Publishers and subscribers under whose eyes a fault happens, and who write down all that they see.
//!
//! A publisher sends its next request when the one before was answered, and repeats one that was not under the same
//! `request_id`, on the next gateway. A subscriber holds one stream, and opens the next with the last token, on the next
//! gateway. Both do by hand what the client module does: the recording must not depend on it.

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
    history::{Acknowledged, Gap, History, Item, Node, Sent, Stream, Wants},
    promises,
    support::{events, gateway::Gateway, wait::attempt},
};

/// How long a publisher waits for an answer before it asks again: longer than a gateway's own limit of 10 s.
const ANSWER: Duration = Duration::from_secs(12);

/// How long a publisher goes on repeating one request.
const PATIENCE: Duration = Duration::from_mins(1);

/// A stream on which nothing came for so long, heartbeats included, is given up by a node that watches them.
const SILENCE: Duration = Duration::from_secs(4);

/// How long the subscribers may take to get what is still owed when the publishers have stopped.
const CATCH_UP: Duration = Duration::from_secs(30);

/// The accounts that events are about.
const ACCOUNTS: u64 = 40;

/// Who takes part.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Nodes that publish.
    pub publishers: usize,
    /// Nodes that subscribe; they begin on the gateways in turn. One is a publisher too, and one has a filter.
    pub subscribers: usize,
    /// What a publisher waits between two requests.
    pub pace: Duration,
    /// Most events of one request.
    pub batch: u64,
    /// Whether subscribers give up a stream that has fallen silent. Without it they wait for its end.
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

/// A load that runs.
pub struct Load {
    shared: Arc<Shared>,
    publishers: Vec<JoinHandle<()>>,
    subscribers: Vec<JoinHandle<()>>,
}

struct Shared {
    start: Instant,
    gateways: Vec<Channel>,
    history: Mutex<History>,
    /// How many events of the history were acknowledged, and how many came.
    acknowledged: AtomicUsize,
    came: AtomicUsize,
    stop: AtomicBool,
    /// What no fault excuses: a refused request, an answer that makes no sense.
    absurd: Mutex<Vec<String>>,
}

impl Load {
    /// Starts it, and returns when every subscriber is confirmed and every publisher has published.
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
            came: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            absurd: Mutex::default(),
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

    /// The time since the start, as the history counts.
    pub fn now(&self) -> Duration {
        self.shared.start.elapsed()
    }

    /// Notes that the bus could certainly accept nothing from `from` until now.
    pub fn was_down_since(&self, from: Duration) {
        let now = self.now();
        self.shared.history.lock().outages.push((from, now));
    }

    /// Waits until so many more events were acknowledged.
    pub async fn publishes(&self, more: usize) {
        let before = self.acknowledged();
        let wanted = before + more;
        attempt(PATIENCE, "events are acknowledged", async || {
            let now = self.acknowledged();
            (now >= wanted).then_some(()).ok_or_else(|| format!("{} of {more}", now - before))
        })
        .await;
    }

    /// How many events were acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Stops the publishers, waits until the subscribers have what they are owed, and gives what was recorded.
    ///
    /// # Panics
    ///
    /// If anything happened that no fault excuses.
    pub async fn finish(self) -> History {
        self.shared.stop.store(true, Ordering::Release);
        for publisher in self.publishers {
            timeout(PATIENCE * 2, publisher).await.expect("publishers end").expect("no panic");
        }
        // What is still owed after the time is up is a breach, for the validators to find.
        let patience = Instant::now();
        let mut came = 0;
        while patience.elapsed() < CATCH_UP {
            tokio::time::sleep(Duration::from_millis(200)).await;
            // Judging takes its time: not before it is quiet.
            if std::mem::replace(&mut came, self.shared.came.load(Ordering::Relaxed))
                != self.shared.came.load(Ordering::Relaxed)
            {
                continue;
            }
            let owed = {
                let history = self.shared.history.lock();
                let judge = promises::PROMISES.iter().filter(|promise| {
                    ["NoSilentLoss", "Drained", "Resumable"].contains(&promise.name)
                });
                judge.map(|promise| (promise.broken)(&history).len()).sum::<usize>()
            };
            if owed == 0 {
                break;
            }
        }
        for subscriber in self.subscribers {
            subscriber.abort();
        }
        let absurd = self.shared.absurd.lock().clone();
        assert!(absurd.is_empty(), "{absurd:#?}");
        std::mem::take(&mut *self.shared.history.lock())
    }
}

impl Shared {
    fn client(&self, turn: usize) -> CoordinationServiceClient<Channel> {
        let channel = self.gateways[turn % self.gateways.len()].clone();
        CoordinationServiceClient::new(channel).max_decoding_message_size(64 << 20)
    }

    fn absurd(&self, what: String) {
        self.absurd.lock().push(what);
    }
}

fn node_id(index: usize) -> String {
    format!("node-{index}")
}

async fn publish(shared: Arc<Shared>, index: usize, shape: Shape) {
    // The first publisher is a subscriber too.
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
                        shared.absurd(format!("{} positions", positions.len()));
                        break;
                    }
                    let at = shared.start.elapsed();
                    shared.acknowledged.fetch_add(positions.len(), Ordering::Relaxed);
                    let mut history = shared.history.lock();
                    for (nth, position) in positions.iter().enumerate() {
                        history.sent[first + nth].acknowledged = Some(Acknowledged {
                            shard: position.shard,
                            place: (position.epoch, position.offset),
                            at,
                        });
                    }
                    break;
                }
                Ok(Err(status)) if status.code() != Code::Unavailable && !is_transport(&status) => {
                    shared.absurd(format!("publish: {status:?}"));
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

/// Whether a status was made by the client because its connection broke.
fn is_transport(status: &Status) -> bool {
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
    let wants = Wants { accounts, own: false };
    let request = SubscribeRequest {
        node_id: node_id(index),
        filter: wants.accounts.clone().map(|accounts| Filter {
            accounts: accounts.into_iter().collect(),
            ..Filter::default()
        }),
        heartbeat_interval: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        ..SubscribeRequest::default()
    };
    let place = {
        let mut history = shared.history.lock();
        history.nodes.push(Node { node_id: node_id(index), wants, streams: vec![] });
        history.nodes.len() - 1
    };
    let mut token = Vec::new();
    let mut turn = index;
    loop {
        let request = SubscribeRequest { resume_token: token.clone(), ..request.clone() };
        let with_token = !token.is_empty();
        shared.history.lock().nodes[place].streams.push(Stream { with_token, items: vec![] });
        let end = read(&shared, place, turn, request, &mut token, shape.watchful).await;
        note(&shared, place, Item::Ended(end));
        turn += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Reads one stream to its end, and gives the gateway's reason for it.
async fn read(
    shared: &Shared,
    place: usize,
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
            Ok(Ok(Some(response))) => take(shared, place, response, token),
            Ok(Ok(None)) | Err(_) => return None,
            Ok(Err(status)) => return reason(shared, &status),
        }
    }
}

fn reason(shared: &Shared, status: &Status) -> Option<String> {
    let reason = status.get_details_error_info().map(|info| info.reason);
    if status.code() != Code::Unavailable && !is_transport(status) {
        shared.absurd(format!("a stream ended: {status:?}"));
    }
    reason
}

fn take(shared: &Shared, place: usize, response: SubscribeResponse, token: &mut Vec<u8>) {
    match response.response {
        Some(Response::Subscribed(subscribed)) => {
            *token = subscribed.resume_token;
            note(shared, place, Item::Subscribed { resumed: subscribed.resumed });
        }
        Some(Response::Events(batch)) => {
            let at = shared.start.elapsed();
            shared.came.fetch_add(batch.events.len(), Ordering::Relaxed);
            let mut history = shared.history.lock();
            let stream = history.nodes[place].streams.last_mut().expect("it was pushed");
            stream.items.extend(batch.events.into_iter().map(|event| {
                let account = account(&event).to_owned();
                (at, Item::Event { event_id: event.event_id, source: event.source, account })
            }));
            *token = batch.resume_token;
        }
        Some(Response::Gap(gap)) => {
            token.clone_from(&gap.resume_token);
            note(shared, place, Item::Gap(told(&gap)));
        }
        Some(Response::Heartbeat(heartbeat)) => *token = heartbeat.resume_token,
        Some(Response::Draining(_)) => note(shared, place, Item::Draining),
        // For people, and it carries no token.
        Some(Response::Notice(_)) => {}
        Some(Response::Explanation(_)) => {
            shared.absurd("an explanation that nobody asked for".into());
        }
        None => shared.absurd("a response without an arm".into()),
    }
}

fn told(gap: &WireGap) -> Gap {
    let place = |position: &Option<trunkline_proto::v1::Position>| {
        position.as_ref().map(|position| (position.epoch, position.offset)).unwrap_or_default()
    };
    Gap {
        shard: gap.shard,
        reason: GapReason::try_from(gap.reason)
            .map_or_else(|_| gap.reason.to_string(), |reason| reason.as_str_name().to_owned()),
        from: place(&gap.from),
        to: place(&gap.to),
        missed: gap.missed_events,
    }
}

fn note(shared: &Shared, place: usize, item: Item) {
    let at = shared.start.elapsed();
    let mut history = shared.history.lock();
    history.nodes[place].streams.last_mut().expect("it was pushed").items.push((at, item));
}
