//! Publishers and subscribers of trunkline-client, in place of those by hand.

use std::sync::atomic::Ordering;

use futures_util::{StreamExt, stream::FuturesUnordered};
use trunkline_client::{Client, ErrorKind, Notification, PublisherOptions, SubscribeOptions};
use trunkline_proto::v1::Event;

use super::{
    PATIENCE, Shared,
    publisher::event,
    subscriber::{Subscriber, reported},
};
use crate::history::Item;

/// Events of a stream that wait for their acknowledgement.
const MAX_WAITING: usize = 1000;

/// Sends one request; the client retries it.
pub async fn publish(shared: &Shared, client: &Client, batch: Vec<Event>) {
    let (first, count) = (shared.sends(client.node_id(), &batch), batch.len());
    match client.publish(batch).await {
        Ok(positions) => shared.acknowledges(first, count, &positions),
        Err(error)
            if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::OutcomeUnknown) =>
        {
            shared.history.lock().refused += 1;
        }
        Err(error) => shared.unexcused(format!("publish: {error}")),
    }
}

/// Publishes on a stream: many events wait for their acknowledgement at a time.
pub async fn publish_on_a_stream(shared: &Shared, node_id: &str, index: usize) {
    let client = shared.builder(node_id, index).build().expect("a client");
    let options = PublisherOptions::new().max_age(PATIENCE).max_events(MAX_WAITING);
    let publisher = client.publisher(options);
    let mut waiting = FuturesUnordered::new();
    let mut number = 0;
    loop {
        let stops = shared.stop.load(Ordering::Acquire);
        if !stops {
            for _ in 0..shared.shape.batch {
                let event = event(shared, node_id, number);
                number += 1;
                let sent = shared.sends(node_id, std::slice::from_ref(&event));
                match publisher.publish(event).await {
                    Ok(acknowledged) => waiting.push(async move { (sent, acknowledged.await) }),
                    Err(error) => return shared.unexcused(format!("a stream: {error}")),
                }
            }
        }
        let pause = tokio::time::sleep(shared.shape.pace);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                answer = waiting.next(), if !waiting.is_empty() => match answer {
                    Some((sent, Ok(()))) => shared.acknowledges_streamed(sent),
                    Some((_, Err(error))) => {
                        shared.history.lock().refused += 1;
                        let given_up = [ErrorKind::Unavailable, ErrorKind::OutcomeUnknown];
                        if !given_up.contains(&error.kind()) {
                            return shared.unexcused(format!("on a stream: {error}"));
                        }
                    }
                    None => {}
                },
                () = &mut pause, if !stops => break,
                else => return,
            }
        }
    }
}

pub async fn subscribe(subscriber: Subscriber) {
    let (shared, request) = (&subscriber.shared, &subscriber.request);
    let client = shared.builder(&request.node_id, subscriber.turn).build().expect("a client");
    let heartbeat = std::time::Duration::from_secs(1);
    let options = SubscribeOptions::new()
        .filter(request.filter.clone().unwrap_or_default())
        .start(request.start())
        .heartbeat_interval(heartbeat);
    let mut subscription = client.subscribe(options);
    let (mut with_token, mut open, mut draining) = (false, false, false);
    while let Some(notification) = subscription.next().await {
        match notification {
            Ok(Notification::Subscribed(subscribed)) => {
                // The client opens streams by itself: one begins when it is confirmed.
                subscriber.opens(with_token);
                (with_token, open, draining) = (true, true, false);
                subscriber.record(Item::Subscribed { resumed: subscribed.resumed });
            }
            Ok(Notification::Event(event)) => subscriber.receives(vec![*event]),
            Ok(Notification::Gap(gap)) => subscriber.record(Item::Gap(reported(&gap))),
            Ok(Notification::Draining(_)) => {
                draining = true;
                subscriber.record(Item::Draining);
            }
            Ok(Notification::Reconnecting { .. }) if open => {
                open = false;
                // It does not say the gateway's reason.
                let reason = std::mem::take(&mut draining).then(|| "DRAINING".to_owned());
                subscriber.record(Item::Ended(reason));
            }
            Ok(_) => {}
            Err(error) => {
                shared.unexcused(format!("a subscription ended: {error}"));
                return;
            }
        }
        subscriber.pause().await;
    }
}
