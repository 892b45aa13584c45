//! Streams whose interest changes, while events pass.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::uri::PathAndQuery;
use parking_lot::Mutex;
use prost::Message;
use tokio::{
    runtime::Handle,
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming, client::Grpc, transport::Channel};
use trunkline_proto::v1::{
    Filter, InterestUpdate, SubscribeRequest, WatchOpen, WatchRequest, watch_request,
};

use super::{ARRIVAL_TIMEOUT, OPENING, WARM_UP, float};
use crate::{
    contestant::System,
    counts::Sample,
    pace::paced,
    payload::change_of,
    publisher::publish_encoded,
    raw::{Raw, stamp},
    received::{Received, id, take_latencies},
    recorder::Recorder,
    report::Metrics,
    subscriber::{open, record, subscribe_request},
};

const WATCH: &str = "/trunkline.v1.CoordinationService/Watch";

/// Accounts of a watcher, and of the subscriber that has the same. Events concern ten times as
/// many, and each update moves one account of a watcher among those.
const ACCOUNTS: usize = 100;
const SHARE: usize = 10;

/// Streams per connection.
const PER_CONNECTION: usize = 10;

/// Events per request, and events per second.
const BATCH: u64 = 100;
const RATE: u64 = 50_000;

/// Updates that wait for the connection.
const WAITING: usize = 4096;

/// The first byte of an encoded `SubscribeResponse` with `interest_updated`, and with
/// `interest_rejected`.
const UPDATED: u8 = 8 << 3 | 2;
const REJECTED: u8 = 9 << 3 | 2;

/// A stream whose interest changes.
struct Watcher {
    node: usize,
    requests: mpsc::Sender<Bytes>,
    /// When the updates were due that are not answered.
    due: Arc<Mutex<VecDeque<u64>>>,
    sent: u64,
}

/// Measures the time from when an update was due to its answer at `rate` updates per second of all
/// `watchers` together, and the latency of events to as many subscribers that change nothing.
pub async fn updates(system: &System, watchers: usize, rate: u64, length: Duration) -> Metrics {
    let mut tasks = JoinSet::new();
    let (events, answers) = (Recorder::new(true), Received::new());
    let opened: Vec<_> = stream::iter(0..watchers.div_ceil(PER_CONNECTION))
        .map(async |connection| {
            let channel = system.gateway(connection).await;
            let mut held = vec![];
            let first = connection * PER_CONNECTION;
            for node in first..(first + PER_CONNECTION).min(watchers) {
                let request = subscribe_request(node, own_accounts(node));
                let subscriber = open(&channel, request).await;
                held.push((subscriber, Watcher::open(&channel, node).await));
            }
            held
        })
        .buffer_unordered(OPENING)
        .collect()
        .await;
    let mut all = vec![];
    for (subscriber, (watcher, stream)) in opened.into_iter().flatten() {
        tasks.spawn(record(subscriber, events.clone()));
        tasks.spawn(answered(stream, watcher.due.clone(), answers.clone()));
        all.push(watcher);
    }

    let times = |rate: u64, length: Duration| {
        rate * u64::try_from(length.as_millis()).expect("short") / 1000
    };
    let accounts = (watchers * ACCOUNTS * SHARE) as u64;
    let channel = system.gateway(0).await;
    let (handle, stop) = (Handle::current(), Arc::new(AtomicBool::new(false)));
    let requests = times(RATE / BATCH, WARM_UP + length);
    let publishing = paced(float(RATE / BATCH), requests, stop.clone(), move |number, due| {
        let channel = channel.clone();
        // The step has no factor in common with the number of accounts, so that each has its turn.
        let accounts = (number * BATCH..(number + 1) * BATCH).map(move |n| n * 7_919 % accounts);
        handle.spawn(async move {
            let events: Vec<_> = accounts
                .map(|number| {
                    let number = usize::try_from(number).expect("64 bits");
                    let mut event = change_of(&account(number));
                    stamp(&mut event, &id(due));
                    event
                })
                .collect();
            publish_encoded(&channel, "publisher", &events).await;
        });
    });
    let wanted = times(rate, WARM_UP + length);
    let mut next = 0;
    #[allow(clippy::cast_precision_loss)] // a small number
    let updating = paced((rate as f64).max(1.0), wanted, stop, move |number, due| {
        let count = all.len();
        all[next].update(number, count, due);
        next = (next + 1) % count;
    });
    sleep(WARM_UP).await;
    let (subscribers, watching) = ([events.received().clone()], [answers.clone()]);
    drop((take_latencies(&subscribers), take_latencies(&watching)));
    let before = (Sample::begin(system).await, answers.messages(), events.received().events());
    sleep(length).await;
    let after = (Sample::end(system).await, answers.messages(), events.received().events());
    for sender in [publishing, updating] {
        let joined = tokio::task::spawn_blocking(|| sender.join()).await;
        joined.expect("joined").expect("the sender does not fail");
    }
    let all_answered = async {
        while answers.messages() < wanted {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let _ = timeout(ARRIVAL_TIMEOUT, all_answered).await;
    let seconds = after.0.seconds_since(&before.0);
    let mut metrics = Metrics::new();
    after.0.since(&before.0, after.2 - before.2, &mut metrics);
    metrics.insert("updated_per_second".to_owned(), float(after.1 - before.1) / seconds);
    metrics.insert("delivered_per_second".to_owned(), float(after.2 - before.2) / seconds);
    metrics.insert("lost".to_owned(), float(wanted.saturating_sub(answers.messages())));
    let (updates, events) = (take_latencies(&watching), take_latencies(&subscribers));
    let mut insert = |name: &str, nanoseconds: u64| {
        metrics.insert(name.to_owned(), float(nanoseconds) / 1e3);
    };
    if rate > 0 {
        insert("p50_us", updates.value_at_quantile(0.5));
        insert("p99_us", updates.value_at_quantile(0.99));
        insert("max_us", updates.max());
    }
    insert("event_p50_us", events.value_at_quantile(0.5));
    insert("event_p99_us", events.value_at_quantile(0.99));
    metrics
}

impl Watcher {
    /// Opens a stream. Returns after its first message.
    async fn open(channel: &Channel, node: usize) -> (Watcher, Streaming<Bytes>) {
        let (requests, receiver) = mpsc::channel(WAITING);
        let open = WatchOpen {
            subscribe: Some(SubscribeRequest {
                node_id: format!("watcher-{node}"),
                filter: Some(filter(own_accounts(node))),
                ..SubscribeRequest::default()
            }),
            accounts_named: true,
            ..WatchOpen::default()
        };
        let due = Arc::default();
        let watcher = Watcher { node, requests, due, sent: 0 };
        watcher.send(watch_request::Request::Open(open));
        let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(64 << 20);
        grpc.ready().await.expect("a connection");
        let requests = Request::new(ReceiverStream::new(receiver));
        let path = PathAndQuery::from_static(WATCH);
        let mut stream = grpc.streaming(requests, path, Raw).await.expect("a stream").into_inner();
        let first = stream.message().await.expect("a stream that does not fail");
        assert!(first.is_some(), "the stream ended");
        (watcher, stream)
    }

    /// Removes the account that was added last, and adds another one.
    fn update(&mut self, number: u64, watchers: usize, due: u64) {
        let added = |n: u64| {
            // Of those that no watcher has all the time.
            let others = watchers * ACCOUNTS * (SHARE - 1);
            let step = usize::try_from(n).expect("64 bits") * 31 + self.node * 7;
            account(watchers * ACCOUNTS + step % others)
        };
        let remove = (self.sent > 0).then(|| filter([added(self.sent - 1)]));
        let update = InterestUpdate {
            update_id: number + 1,
            add: Some(filter([added(self.sent)])),
            remove,
            ..InterestUpdate::default()
        };
        self.sent += 1;
        self.due.lock().push_back(due);
        self.send(watch_request::Request::Update(update));
    }

    fn send(&self, request: watch_request::Request) {
        let request = WatchRequest { request: Some(request) };
        // One for which there is no room counts as lost.
        let _ = self.requests.try_send(request.encode_to_vec().into());
    }
}

/// Records when the updates of a stream are answered.
async fn answered(
    mut stream: Streaming<Bytes>,
    due: Arc<Mutex<VecDeque<u64>>>,
    answers: Arc<Received>,
) {
    while let Ok(Some(message)) = stream.message().await {
        match message.first() {
            Some(&UPDATED) => {
                if let Some(due) = due.lock().pop_front() {
                    answers.record_latency(due);
                }
                answers.count_message(0);
            }
            Some(&REJECTED) => panic!("an update was rejected"),
            _ => {}
        }
    }
}

/// The accounts that a watcher and a subscriber have all the time.
fn own_accounts(node: usize) -> Vec<String> {
    (node * ACCOUNTS..(node + 1) * ACCOUNTS).map(account).collect()
}

fn filter(accounts: impl IntoIterator<Item = String>) -> Filter {
    Filter { accounts: accounts.into_iter().collect(), ..Filter::default() }
}

fn account(number: usize) -> String {
    format!("account-{number:07}")
}
