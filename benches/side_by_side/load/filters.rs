//! Subscribers with filters: each for a few accounts, others only for accounts without events.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use tokio::{
    runtime::Handle,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{ARRIVAL_TIMEOUT, OPENING, WARM_UP, float};
use crate::{
    contestant::System,
    counts::Sample,
    pace::paced,
    payload::change_of,
    publisher::publish_encoded,
    recorder::Recorder,
    report::Metrics,
    subscriber::{open, record, subscribe_request},
};

/// Accounts in the filter of a subscriber. Events concern the accounts of all matching subscribers.
const ACCOUNTS: usize = 100;

/// Streams per connection.
const PER_CONNECTION: usize = 100;

/// Events per request, and events per second.
const BATCH: u64 = 10;
const RATE: u64 = 10_000;

/// Measures the CPU per published event, while `matching` subscribers share the accounts of the
/// events and the filters of `others` match no event.
pub async fn filters(system: &System, matching: usize, others: usize, length: Duration) -> Metrics {
    let recorder = Recorder::new(false);
    let received = recorder.received();
    let mut tasks = JoinSet::new();
    let streams: Vec<_> = stream::iter(0..(matching + others).div_ceil(PER_CONNECTION))
        .map(async |connection| {
            let channel = system.gateway(connection).await;
            let mut held = vec![];
            let first = connection * PER_CONNECTION;
            for node in first..(first + PER_CONNECTION).min(matching + others) {
                let accounts = node * ACCOUNTS..(node + 1) * ACCOUNTS;
                let request = subscribe_request(node, accounts.map(account).collect());
                held.push(open(&channel, request).await);
            }
            held
        })
        .buffer_unordered(OPENING)
        .collect()
        .await;
    for stream in streams.into_iter().flatten() {
        tasks.spawn(record(stream, recorder.clone()));
    }

    let channel = system.gateway(0).await;
    let all = (matching * ACCOUNTS) as u64;
    let requests =
        |length: Duration| RATE / BATCH * u64::try_from(length.as_millis()).expect("short") / 1000;
    let (handle, stop) = (Handle::current(), Arc::new(AtomicBool::new(false)));
    let total = requests(WARM_UP + length);
    let rate = float(RATE / BATCH);
    let pacing = paced(rate, total, stop, move |number, _| {
        let channel = channel.clone();
        // The step has no factor in common with the number of accounts, so that each has its turn.
        let accounts = (number * BATCH..(number + 1) * BATCH).map(move |event| event * 7_919 % all);
        handle.spawn(async move {
            let events: Vec<_> = accounts
                .map(|number| change_of(&account(usize::try_from(number).expect("64 bits"))))
                .collect();
            publish_encoded(&channel, "publisher", &events).await;
        });
    });
    sleep(WARM_UP).await;
    let before = (Sample::begin(system).await, received.events());
    sleep(length).await;
    let events = received.events();
    let after = (Sample::end(system).await, events);
    let joined = tokio::task::spawn_blocking(|| pacing.join()).await;
    joined.expect("joined").expect("the sender does not fail");
    let wanted = total * BATCH;
    let arrived = async {
        while received.events() < wanted {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let _ = timeout(ARRIVAL_TIMEOUT, arrived).await;
    let seconds = after.0.seconds_since(&before.0);
    let mut metrics = Metrics::new();
    // Each event is delivered once.
    after.0.since(&before.0, after.1 - before.1, &mut metrics);
    metrics.insert("delivered_per_second".to_owned(), float(after.1 - before.1) / seconds);
    metrics.insert("lost".to_owned(), float(wanted.saturating_sub(received.events())));
    metrics
}

fn account(number: usize) -> String {
    format!("account-{number:07}")
}
