//! Events of other nodes on their way to the programs.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::sync::watch;
use trunkline_client::{
    Notification, SubscribeOptions,
    v1::{AgentReport, event::Kind},
};

use super::{RETRY, Shared, count, report};

/// The interval of heartbeats: a gateway that is silent for twice as long is given up.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Events that are written together if they are there together.
const BATCH: usize = 100;

/// Reads the events of the gateways for as long as the agent lives.
pub(super) async fn run(shared: Arc<Shared>) {
    let (reports, reported) = watch::channel(shared.report());
    let reporting = report::run(&shared, &reports);
    tokio::select! {
        () = read(&shared, &reported) => {}
        () = reporting => {}
    }
}

async fn read(shared: &Shared, reported: &watch::Receiver<AgentReport>) {
    loop {
        let token = shared.resume_token.lock().clone();
        let options = SubscribeOptions::new().resume_token(token).heartbeat_interval(HEARTBEAT);
        let mut subscription = shared.client.subscribe_as_agent(options, reported.clone());
        // Without a token, events before this are missed.
        let mut fresh = subscription.resume_token().is_empty();
        let mut batch: Vec<Kind> = Vec::new();
        let mut next = subscription.next().await;
        let error = loop {
            match next {
                Some(Ok(Notification::Event(event))) => batch.extend(event.kind),
                Some(Ok(Notification::Subscribed(_))) => {
                    if std::mem::take(&mut fresh) {
                        shared.heal("the agent is connected");
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
                    tracing::info!(reason, ?wait, "the stream of events was lost");
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
        tracing::error!(
            error,
            "no events are received from the gateways; the next attempt follows"
        );
        tokio::time::sleep(RETRY).await;
    }
}

fn flush(shared: &Shared, batch: &mut Vec<Kind>) {
    if !batch.is_empty() {
        shared.receive(&std::mem::take(batch));
    }
}
