//! The publishers of a benchmark: in a closed loop, or at a fixed rate.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use prost_types::Any;
use tokio::{
    runtime::Handle,
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::task::TaskTracker;
use tonic::Status;
use trunkline_proto::v1::{CustomEvent, Event, PublishRequest, event::Kind};

use super::{
    ANSWER_TIMEOUT, Bench, clock, event_type,
    pace::paced,
    received::{histogram, id},
};
use crate::cli::{Client, Failure};

/// Most events by which publishers may be ahead of the average subscriber.
const MAX_AHEAD: u64 = 10_000;

/// Default of `--in-flight`: per publisher, and with a rate of all publishers together.
const IN_FLIGHT: u32 = 16;
const IN_FLIGHT_AT_RATE: u32 = 10_000;

/// Pause of a publisher whose request failed.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(100);

/// All publishers.
pub(super) struct Publishers {
    /// Each with its connection and its node id.
    all: Vec<(Client, String)>,
    in_flight: u32,
    pub(super) rate: Option<u32>,
    pub(super) progress: Arc<Progress>,
}

/// State that the requests of all publishers share.
pub(super) struct Progress {
    event_type: String,
    pub(super) batch: u32,
    payload: Vec<u8>,
    /// Events that were acknowledged.
    pub(super) acknowledged: AtomicU64,
    /// Events that were due and not sent, since too many requests were in flight.
    pub(super) unsent: AtomicU64,
    /// Requests that failed, and the error of the first.
    pub(super) failed: AtomicU64,
    pub(super) first_failure: Mutex<Option<Status>>,
    /// Nanoseconds from each request to its answer.
    pub(super) answers: Mutex<Histogram<u64>>,
    /// Events that subscribers have received on average.
    pub(super) received: AtomicU64,
    /// Set to make all publishers stop.
    pub(super) stop: Arc<AtomicBool>,
}

impl Publishers {
    /// Connects all publishers.
    pub(super) async fn connect(bench: &Bench, id: &str) -> Result<Publishers, Failure> {
        let mut all = vec![];
        for number in 0..bench.publishers {
            let client = bench.gateway.connect().await?;
            all.push((client, format!("bench-{id}-publisher-{number}")));
        }
        let default = if bench.rate.is_some() { IN_FLIGHT_AT_RATE } else { IN_FLIGHT };
        Ok(Publishers {
            all,
            in_flight: bench.in_flight.unwrap_or(default),
            rate: bench.rate,
            progress: Arc::new(Progress {
                event_type: event_type(id),
                batch: bench.batch,
                payload: vec![b'x'; bench.size as usize],
                acknowledged: AtomicU64::new(0),
                unsent: AtomicU64::new(0),
                failed: AtomicU64::new(0),
                first_failure: Mutex::new(None),
                answers: Mutex::new(histogram()),
                received: AtomicU64::new(0),
                stop: Arc::default(),
            }),
        })
    }

    /// The number of publishers.
    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// Starts to publish as fast as requests are answered. `subscribed`: there are subscribers,
    /// which publishers do not overtake by more than [`MAX_AHEAD`].
    pub(super) fn start_closed_loop(&self, subscribed: bool, tasks: &TaskTracker) {
        for (client, node) in &self.all {
            for _ in 0..self.in_flight {
                let (mut client, node, progress) =
                    (client.clone(), node.clone(), self.progress.clone());
                tasks.spawn(async move {
                    while !progress.stop.load(Ordering::Relaxed) {
                        if subscribed && progress.is_far_ahead() {
                            sleep(Duration::from_millis(1)).await;
                        } else if !progress.publish(&mut client, &node, clock::now()).await {
                            sleep(PAUSE_AFTER_FAILURE).await;
                        }
                    }
                });
            }
        }
    }

    /// Starts to publish `rate` events per second from a thread of its own; the publishers take
    /// turns.
    pub(super) fn start_at_rate(
        &self,
        rate: u32,
        length: Duration,
        tasks: &TaskTracker,
    ) -> JoinHandle<()> {
        let requests = f64::from(rate) / f64::from(self.progress.batch);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        // not negative, and far below 2^53
        let count = (requests * length.as_secs_f64()).ceil().max(1.0) as u64;
        let permits = Arc::new(Semaphore::new(self.in_flight as usize));
        let (publishers, progress) = (self.all.clone(), self.progress.clone());
        let (tasks, handle) = (tasks.clone(), Handle::current());
        paced(requests, count, self.progress.stop.clone(), move |number, due| {
            let Ok(permit) = permits.clone().try_acquire_owned() else {
                progress.unsent.fetch_add(u64::from(progress.batch), Ordering::Relaxed);
                return;
            };
            let turn = usize::try_from(number).unwrap_or(0) % publishers.len();
            let (mut client, node) = publishers[turn].clone();
            let progress = progress.clone();
            let send = async move {
                progress.publish(&mut client, &node, due).await;
                drop(permit);
            };
            tasks.spawn_on(send, &handle);
        })
    }
}

impl Progress {
    fn is_far_ahead(&self) -> bool {
        let received = self.received.load(Ordering::Relaxed);
        self.acknowledged.load(Ordering::Relaxed) > received + MAX_AHEAD
    }

    /// Publishes one request of events that were due at this time. False if it failed.
    async fn publish(&self, client: &mut Client, node: &str, due: u64) -> bool {
        let custom = CustomEvent {
            r#type: self.event_type.clone(),
            payload: Some(Any {
                type_url: "type.googleapis.com/trunkline.bench".to_owned(),
                value: self.payload.clone(),
            }),
            ..CustomEvent::default()
        };
        let event =
            Event { event_id: id(due), kind: Some(Kind::Custom(custom)), ..Event::default() };
        let request = PublishRequest {
            node_id: node.to_owned(),
            request_id: uuid::Uuid::new_v4().to_string(),
            events: vec![event; self.batch as usize],
            ..Default::default()
        };
        let sent = clock::now();
        let late = |_| Err(Status::deadline_exceeded("no answer"));
        match timeout(ANSWER_TIMEOUT, client.publish(request)).await.unwrap_or_else(late) {
            Ok(_) => {
                self.acknowledged.fetch_add(u64::from(self.batch), Ordering::Relaxed);
                self.answers.lock().saturating_record(clock::now().saturating_sub(sent));
                true
            }
            Err(status) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                self.first_failure.lock().get_or_insert(status);
                false
            }
        }
    }
}
