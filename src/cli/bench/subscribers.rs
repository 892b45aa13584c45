//! The subscribers of a benchmark: their streams, and what all of them have received.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::{Status, Streaming};
use trunkline_proto::v1::{
    EventKind, Filter, SubscribeRequest, SubscribeResponse, subscribe_response::Response,
};

use super::{
    ANSWER_TIMEOUT, Bench, event_type,
    received::{Received, time},
};
use crate::cli::{Client, Failure};

/// Time limit for the arrival of events that were acknowledged.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(10);

/// All subscribers. Dropping it ends their streams.
pub(super) struct Subscribers {
    pub(super) all: Vec<Arc<Received>>,
    pub(super) totals: Arc<Totals>,
    tasks: JoinSet<()>,
}

/// Counts of all subscribers together.
#[derive(Default)]
pub(super) struct Totals {
    /// Streams that ended before the benchmark did.
    pub(super) ended: AtomicU64,
    /// Events that gaps reported as missed.
    pub(super) missed: AtomicU64,
}

impl Subscribers {
    /// Opens all streams; returns when every subscription is confirmed.
    pub(super) async fn connect(bench: &Bench, id: &str) -> Result<Subscribers, Failure> {
        let totals = Arc::new(Totals::default());
        let mut subscribers = Subscribers { all: vec![], totals, tasks: JoinSet::new() };
        let mut last = None;
        for number in 0..bench.subscribers {
            let shares_connection = number % bench.per_connection != 0;
            let mut client = match last.take().filter(|_| shares_connection) {
                Some(client) => client,
                None => bench.gateway.connect().await?,
            };
            let opening = timeout(ANSWER_TIMEOUT, open(&mut client, request(id, number)));
            let late = |_| Status::deadline_exceeded("the stream was not confirmed");
            let stream = opening.await.map_err(late)??;
            let received = Received::new();
            subscribers.all.push(received.clone());
            subscribers.tasks.spawn(receive(stream, received, subscribers.totals.clone()));
            last = Some(client);
        }
        Ok(subscribers)
    }

    /// Events received, counted once per subscriber.
    pub(super) fn delivered(&self) -> u64 {
        self.all.iter().map(|received| received.events()).sum()
    }

    /// Waits until each subscriber has received, or been told to have missed, `acknowledged`
    /// events. Returns the number of deliveries that are lost: neither received nor reported as
    /// missed.
    pub(super) async fn wait_for(&self, acknowledged: u64) -> u64 {
        let wanted = acknowledged * self.all.len() as u64;
        let known = || self.delivered() + self.totals.missed.load(Ordering::Relaxed);
        let complete = async {
            while known() < wanted && self.totals.ended.load(Ordering::Relaxed) == 0 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = timeout(ARRIVAL_TIMEOUT, complete).await;
        wanted.saturating_sub(known())
    }

    /// Ends all streams.
    pub(super) async fn close(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn open(
    client: &mut Client,
    request: SubscribeRequest,
) -> Result<Streaming<SubscribeResponse>, Status> {
    let mut stream = client.subscribe(request).await?.into_inner();
    // The first message confirms that whatever is acknowledged from now on is delivered.
    stream.message().await?;
    Ok(stream)
}

async fn receive(
    mut stream: Streaming<SubscribeResponse>,
    received: Arc<Received>,
    totals: Arc<Totals>,
) {
    while let Ok(Some(message)) = stream.message().await {
        match message.response {
            Some(Response::Events(batch)) => {
                for due in batch.events.iter().filter_map(|event| time(&event.event_id)) {
                    received.record_latency(due);
                }
                received.count_message(batch.events.len() as u64);
            }
            Some(Response::Gap(gap)) => {
                received.count_gap();
                totals.missed.fetch_add(gap.missed_events.unwrap_or(0), Ordering::Relaxed);
            }
            _ => {}
        }
    }
    totals.ended.fetch_add(1, Ordering::Relaxed);
}

/// The request of subscriber number `number`: the events of this benchmark alone.
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
