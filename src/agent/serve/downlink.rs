//! Events of other nodes on their way to the programs.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};
use trunkline_client::{
    Notification, SubscribeOptions,
    v1::{AgentReport, EventKind, Start, event::Kind},
};

use super::{Known, RETRY, Shared, count, report};

/// The interval of heartbeats: a gateway that is silent for twice as long is given up.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Events that are written together if they are there together.
const BATCH: usize = 100;

/// How long an agent without a token may read what was published before it began.
const HISTORY: Duration = Duration::from_secs(5);

/// Reads the events of the gateways for as long as the agent lives.
pub(super) async fn run(shared: Arc<Shared>) {
    let (reports, reported) = watch::channel(shared.report());
    let reporting = report::run(&shared, &reports);
    let fresh = Notify::new();
    tokio::select! {
        () = read(&shared, &reported, &fresh) => {}
        () = reporting => {}
        () = find_earlier(&shared, &fresh) => {}
    }
}

/// Finds out, whenever the agent began without a token, what happened before: which accounts
/// changed, and the state of the queue. Nobody knows what of it the programs have missed, nor what
/// an agent that was killed had not published yet.
async fn find_earlier(shared: &Shared, fresh: &Notify) {
    let mut after_crash = shared.after_crash;
    loop {
        fresh.notified().await;
        let mut earlier = Known::default();
        // Events are published all the time, and there is no silence.
        let _ = timeout(HISTORY, read_history(shared, &mut earlier)).await;
        if earlier.is_empty() {
            continue;
        }
        shared.known.lock().add_earlier(&earlier);
        shared.heal("earlier events were found");
        if std::mem::take(&mut after_crash) {
            shared.uplink.heal_others();
        }
    }
}

/// Reads what gateways keep, until nothing more comes for an interval of heartbeats.
async fn read_history(shared: &Shared, known: &mut Known) {
    let kinds = [EventKind::MailboxChange, EventKind::EmailDelivery, EventKind::QueueStatus];
    let options = SubscribeOptions::new()
        .start(Start::Oldest)
        // The programs of this host may be others than those that published.
        .include_own_events()
        .heartbeat_interval(HEARTBEAT);
    let mut history =
        shared.client.subscribe(kinds.into_iter().fold(options, SubscribeOptions::kind));
    while let Some(Ok(notification)) = history.next().await {
        match notification {
            Notification::Event(event) => event.kind.iter().for_each(|kind| known.note(kind)),
            Notification::Heartbeat(_) => return,
            _ => {}
        }
    }
}

async fn read(shared: &Shared, reported: &watch::Receiver<AgentReport>, fresh: &Notify) {
    loop {
        let token = shared.resume_token.lock().clone();
        let options = SubscribeOptions::new().resume_token(token).heartbeat_interval(HEARTBEAT);
        let mut subscription = shared.client.subscribe_as_agent(options, reported.clone());
        // Without a token, events before this are missed.
        let mut has_token = !subscription.resume_token().is_empty();
        let mut batch: Vec<Kind> = Vec::new();
        let mut next = subscription.next().await;
        let error = loop {
            match next {
                Some(Ok(Notification::Event(event))) => batch.extend(event.kind),
                Some(Ok(Notification::Subscribed(_))) => {
                    if !std::mem::replace(&mut has_token, true) {
                        shared.heal("the agent is connected");
                        fresh.notify_one();
                    }
                    shared.is_connected.store(true, Ordering::Relaxed);
                    count(&shared.counters.streams, 1);
                }
                Some(Ok(Notification::Gap(gap))) => {
                    flush(shared, &mut batch);
                    let missed = gap.missed_events;
                    let missed = missed.map_or("some".to_owned(), |missed| missed.to_string());
                    shared.heal(&format!("{missed} events were missed"));
                }
                Some(Ok(Notification::Reconnecting { reason, wait })) => {
                    shared.is_connected.store(false, Ordering::Relaxed);
                    if let Some(suppressed) = shared.disconnected.pass() {
                        tracing::info!(reason, ?wait, suppressed, "the stream of events was lost");
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => break error.to_string(),
                None => break "it has ended".to_owned(),
            }
            let ready = if batch.len() < BATCH { subscription.next().now_or_never() } else { None };
            next = if let Some(next) = ready {
                next
            } else {
                flush(shared, &mut batch);
                // Everything that it covers was delivered.
                subscription.resume_token().clone_into(&mut shared.resume_token.lock());
                subscription.next().await
            };
        };
        flush(shared, &mut batch);
        subscription.resume_token().clone_into(&mut shared.resume_token.lock());
        shared.is_connected.store(false, Ordering::Relaxed);
        if let Some(suppressed) = shared.refused.pass() {
            let what = "no events are received from the gateways; the next attempt follows";
            tracing::error!(error, suppressed, "{what}");
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn flush(shared: &Shared, batch: &mut Vec<Kind>) {
    if !batch.is_empty() {
        shared.receive(&std::mem::take(batch));
    }
}
