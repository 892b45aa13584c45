//! Subscribers that want a few accounts each, and others that want none of those that are published.

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

use super::{ARRIVAL, OPENING, WARM_UP, float};
use crate::{
    contestant::System,
    counts::Look,
    heard::Heard,
    node::{count, open, publish_encoded, subscribe_request},
    pace::paced,
    payload::change_of,
    report::Metrics,
};

/// Accounts that a subscriber wants; those of all who match together are those that events concern.
const ACCOUNTS: usize = 100;

/// Streams on a connection.
const PER_CONNECTION: usize = 100;

/// Events of a request, and events a second.
const BATCH: u64 = 10;
const RATE: u64 = 10_000;

/// CPU for each published event, while `matching` subscribers share the accounts and `others` want accounts that nothing
/// happens to.
pub async fn filters(system: &System, matching: usize, others: usize, length: Duration) -> Metrics {
    let heard = Heard::new(false);
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
        tasks.spawn(count(stream, heard.clone()));
    }

    let channel = system.gateway(0).await;
    let all = (matching * ACCOUNTS) as u64;
    let requests =
        |length: Duration| RATE / BATCH * u64::try_from(length.as_millis()).expect("short") / 1000;
    let (handle, stop) = (Handle::current(), Arc::new(AtomicBool::new(false)));
    let total = requests(WARM_UP + length);
    let rate = float(RATE / BATCH);
    let clockwork = paced(rate, total, stop, move |number, _| {
        let channel = channel.clone();
        // A step that has no factor in common with the number of accounts: all have their turn.
        let accounts = (number * BATCH..(number + 1) * BATCH).map(move |event| event * 7_919 % all);
        handle.spawn(async move {
            let events: Vec<_> = accounts
                .map(|number| change_of(&account(usize::try_from(number).expect("64 bits"))))
                .collect();
            publish_encoded(&channel, "publisher", &events).await;
        });
    });
    sleep(WARM_UP).await;
    let before = (Look::begin(system).await, heard.events());
    sleep(length).await;
    let events = heard.events();
    let after = (Look::end(system).await, events);
    let joined = tokio::task::spawn_blocking(|| clockwork.join()).await;
    joined.expect("joined").expect("the sender does not fail");
    let wanted = total * BATCH;
    let arrived = async {
        while heard.events() < wanted {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let _ = timeout(ARRIVAL, arrived).await;
    let seconds = after.0.seconds_since(&before.0);
    let mut metrics = Metrics::new();
    // Each event is delivered once.
    after.0.since(&before.0, after.1 - before.1, &mut metrics);
    metrics.insert("delivered_per_second".to_owned(), float(after.1 - before.1) / seconds);
    metrics.insert("lost".to_owned(), float(wanted.saturating_sub(heard.events())));
    metrics
}

fn account(number: usize) -> String {
    format!("account-{number:07}")
}
