//! The load: publishers and subscribers over gRPC, and what they count.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use prost_types::Any;
use tokio::{
    runtime::Handle,
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, interval, sleep, timeout},
};
use tokio_util::task::TaskTracker;
use tonic::Status;
use trunkline_proto::v1::{
    CustomEvent, Event, EventKind, Filter, PublishRequest, SubscribeRequest, event::Kind,
    subscribe_response::Response,
};

use super::{
    Bench, clock,
    heard::{Heard, histogram, id, time},
    outcome::Outcome,
    pace::paced,
};
use crate::cli::{Client, Failure};

/// How far publishers may be ahead of what subscribers have heard, in events on average.
const AHEAD: u64 = 10_000;

/// Requests under way where nothing else is said: of each publisher, and with a rate of all.
const IN_FLIGHT: u32 = 16;
const IN_FLIGHT_AT_RATE: u32 = 10_000;

/// How long what was acknowledged may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(10);

/// How long a stream may take to open, and a request to be answered.
const ANSWER: Duration = Duration::from_secs(30);

/// The pause of a publisher whose request failed.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// The type of the events of a bench.
pub(super) fn event_type(id: &str) -> String {
    format!("trunkline.bench.{id}")
}

/// Everything that runs.
pub(super) struct Load {
    shared: Arc<Shared>,
    subscribers: Vec<Arc<Heard>>,
    // They end with it.
    listening: JoinSet<()>,
    publishers: Vec<(Client, String)>,
    in_flight: u32,
    rate: Option<u32>,
}

/// What publishers share.
struct Shared {
    id: String,
    batch: u32,
    content: Vec<u8>,
    published: AtomicU64,
    acknowledged: AtomicU64,
    // Events that were due and not sent, since too many requests were under way.
    unsent: AtomicU64,
    failed: AtomicU64,
    failure: Mutex<Option<Status>>,
    answers: Mutex<Histogram<u64>>,
    // Events that subscribers have heard on average.
    heard: AtomicU64,
    // Streams that ended before the bench did.
    broken: AtomicU64,
    missed: AtomicU64,
    stop: Arc<AtomicBool>,
}

impl Load {
    /// Connects everybody; returns when every stream is confirmed.
    pub(super) async fn start(bench: &Bench, id: &str) -> Result<Load, Failure> {
        let shared = Arc::new(Shared {
            id: id.to_owned(),
            batch: bench.batch,
            content: vec![b'x'; bench.size as usize],
            published: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            unsent: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            failure: Mutex::new(None),
            answers: Mutex::new(histogram()),
            heard: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            stop: Arc::new(AtomicBool::new(false)),
        });
        let mut publishers = vec![];
        for number in 0..bench.publishers {
            let client = bench.gateway.connect().await?;
            publishers.push((client, format!("bench-{id}-publisher-{number}")));
        }
        let (mut subscribers, mut listening) = (vec![], JoinSet::new());
        let mut client = None;
        for number in 0..bench.subscribers {
            let shares = number % bench.per_connection != 0;
            let mut connected = match client.take().filter(|_| shares) {
                Some(client) => client,
                None => bench.gateway.connect().await?,
            };
            let heard = Heard::new(true);
            let request = request(id, number);
            let opening = async {
                let mut stream = connected.subscribe(request).await?.into_inner();
                // The first message says that what is acknowledged from now on is delivered.
                stream.message().await?;
                Ok::<_, Status>(stream)
            };
            let late = |_| Status::deadline_exceeded("the stream was not confirmed");
            let mut stream = timeout(ANSWER, opening).await.map_err(late)??;
            subscribers.push(heard.clone());
            let shared = shared.clone();
            listening.spawn(async move {
                while let Ok(Some(message)) = stream.message().await {
                    match message.response {
                        Some(Response::Events(batch)) => {
                            let times =
                                batch.events.iter().filter_map(|event| time(&event.event_id));
                            times.for_each(|at| heard.late(at));
                            heard.message(batch.events.len() as u64);
                        }
                        Some(Response::Gap(gap)) => {
                            heard.gap();
                            let missed = gap.missed_events.unwrap_or(0);
                            shared.missed.fetch_add(missed, Ordering::Relaxed);
                        }
                        _ => {}
                    }
                }
                shared.broken.fetch_add(1, Ordering::Relaxed);
            });
            client = Some(connected);
        }
        let usual = if bench.rate.is_some() { IN_FLIGHT_AT_RATE } else { IN_FLIGHT };
        Ok(Load {
            shared,
            subscribers,
            listening,
            publishers,
            in_flight: bench.in_flight.unwrap_or(usual),
            rate: bench.rate,
        })
    }

    /// Publishes for so long, or until Ctrl-C, and tells each second how it goes. Returns for how long it was.
    pub(super) async fn measure(&self, length: Duration) -> Duration {
        let begun = Instant::now();
        let tasks = TaskTracker::new();
        let pacing = self.rate.map(|rate| self.at_rate(rate, length, &tasks));
        if pacing.is_none() {
            self.as_fast_as_it_goes(&tasks);
        }
        tokio::select! {
            () = sleep(length) => {}
            _ = tokio::signal::ctrl_c() => {}
            () = self.progress(begun) => {}
        }
        self.shared.stop.store(true, Ordering::Relaxed);
        let took = begun.elapsed();
        if let Some(pacing) = pacing {
            // It sees the word within 50 ms.
            let _ = tokio::task::spawn_blocking(|| pacing.join()).await;
        }
        tasks.close();
        let _ = timeout(ANSWER, tasks.wait()).await;
        took
    }

    /// Waits for what is still on its way, and sums up.
    pub(super) async fn end(mut self, took: Duration) -> Outcome {
        let shared = &self.shared;
        let acknowledged = shared.acknowledged.load(Ordering::Relaxed);
        let wanted = acknowledged * self.subscribers.len() as u64;
        let complete = async {
            while self.delivered() + shared.missed.load(Ordering::Relaxed) < wanted
                && shared.broken.load(Ordering::Relaxed) == 0
            {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = timeout(ARRIVAL, complete).await;
        let mut latency = histogram();
        for heard in &self.subscribers {
            heard.add_latency(&mut latency);
        }
        let delivered = self.delivered();
        let missed = shared.missed.load(Ordering::Relaxed);
        let outcome = Outcome {
            took,
            publishers: self.publishers.len(),
            subscribers: self.subscribers.len(),
            rate: self.rate,
            batch: shared.batch,
            acknowledged,
            unsent: shared.unsent.load(Ordering::Relaxed),
            failed: shared.failed.load(Ordering::Relaxed),
            failure: shared.failure.lock().clone(),
            delivered,
            messages: self.subscribers.iter().map(|heard| heard.messages()).sum(),
            gaps: self.subscribers.iter().map(|heard| heard.gaps()).sum(),
            missed,
            broken: shared.broken.load(Ordering::Relaxed),
            lost: wanted.saturating_sub(delivered + missed),
            latency,
            answers: shared.answers.lock().clone(),
        };
        self.listening.shutdown().await;
        outcome
    }

    fn delivered(&self) -> u64 {
        self.subscribers.iter().map(|heard| heard.events()).sum()
    }

    /// Each publisher has its requests under way.
    fn as_fast_as_it_goes(&self, tasks: &TaskTracker) {
        let alone = self.subscribers.is_empty();
        for (client, node) in &self.publishers {
            for _ in 0..self.in_flight {
                let (mut client, node, shared) =
                    (client.clone(), node.clone(), self.shared.clone());
                tasks.spawn(async move {
                    while !shared.stop.load(Ordering::Relaxed) {
                        let ahead = shared.acknowledged.load(Ordering::Relaxed);
                        if !alone && ahead > shared.heard.load(Ordering::Relaxed) + AHEAD {
                            sleep(Duration::from_millis(1)).await;
                        } else if !shared.publish(&mut client, &node, clock::now()).await {
                            sleep(AFTER_FAILURE).await;
                        }
                    }
                });
            }
        }
    }

    /// A thread says when a request is due; the publishers take turns.
    fn at_rate(
        &self,
        rate: u32,
        length: Duration,
        tasks: &TaskTracker,
    ) -> std::thread::JoinHandle<()> {
        let requests = f64::from(rate) / f64::from(self.shared.batch);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        // not negative, and far below 2^53
        let count = (requests * length.as_secs_f64()).ceil().max(1.0) as u64;
        let permits = Arc::new(Semaphore::new(self.in_flight as usize));
        let (publishers, shared) = (self.publishers.clone(), self.shared.clone());
        let (tasks, handle) = (tasks.clone(), Handle::current());
        paced(requests, count, self.shared.stop.clone(), move |number, due| {
            let Ok(permit) = permits.clone().try_acquire_owned() else {
                shared.unsent.fetch_add(u64::from(shared.batch), Ordering::Relaxed);
                return;
            };
            let turn = usize::try_from(number).unwrap_or(0) % publishers.len();
            let (mut client, node) = publishers[turn].clone();
            let shared = shared.clone();
            let send = async move {
                shared.publish(&mut client, &node, due).await;
                drop(permit);
            };
            tasks.spawn_on(send, &handle);
        })
    }

    /// Tells each second how it goes, and publishers how far subscribers are. It does not end.
    async fn progress(&self, begun: Instant) {
        let (mut last, mut told) = ((0, 0), Instant::now());
        let mut tick = interval(Duration::from_millis(1));
        loop {
            tick.tick().await;
            let delivered = self.delivered();
            let average = delivered.checked_div(self.subscribers.len() as u64).unwrap_or(0);
            self.shared.heard.store(average, Ordering::Relaxed);
            if told.elapsed() < Duration::from_secs(1) {
                continue;
            }
            told = Instant::now();
            let acknowledged = self.shared.acknowledged.load(Ordering::Relaxed);
            eprintln!(
                "{:>4.0} s  {:>9} acknowledged/s  {:>11} delivered/s{}",
                begun.elapsed().as_secs_f64(),
                acknowledged - last.0,
                delivered - last.1,
                match self.shared.failed.load(Ordering::Relaxed) {
                    0 => String::new(),
                    failed => format!("  {failed} requests failed"),
                }
            );
            last = (acknowledged, delivered);
        }
    }
}

impl Shared {
    /// Publishes one request of events that were due at this time. False: it failed.
    async fn publish(&self, client: &mut Client, node: &str, due: u64) -> bool {
        let custom = CustomEvent {
            r#type: event_type(&self.id),
            payload: Some(Any {
                type_url: "type.googleapis.com/trunkline.bench".to_owned(),
                value: self.content.clone(),
            }),
            ..CustomEvent::default()
        };
        let event =
            Event { event_id: id(due), kind: Some(Kind::Custom(custom)), ..Event::default() };
        let request = PublishRequest {
            node_id: node.to_owned(),
            request_id: uuid::Uuid::new_v4().to_string(),
            events: vec![event; self.batch as usize],
        };
        self.published.fetch_add(u64::from(self.batch), Ordering::Relaxed);
        let sent = clock::now();
        let late = |_| Err(Status::deadline_exceeded("no answer"));
        match timeout(ANSWER, client.publish(request)).await.unwrap_or_else(late) {
            Ok(_) => {
                self.acknowledged.fetch_add(u64::from(self.batch), Ordering::Relaxed);
                self.answers.lock().saturating_record(clock::now().saturating_sub(sent));
                true
            }
            Err(status) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                self.failure.lock().get_or_insert(status);
                false
            }
        }
    }
}

/// What subscriber number `number` asks for: the events of this bench alone.
fn request(id: &str, number: u32) -> SubscribeRequest {
    SubscribeRequest {
        node_id: format!("bench-{id}-subscriber-{number}"),
        filter: Some(Filter {
            kinds: vec![EventKind::Custom.into()],
            custom_types: vec![event_type(id)],
            ..Filter::default()
        }),
        ..SubscribeRequest::default()
    }
}
