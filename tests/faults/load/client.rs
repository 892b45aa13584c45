//! Publishers and subscribers of trunkline-client, in place of those by hand.

use trunkline_client::{Client, ErrorKind, Notification, SubscribeOptions};
use trunkline_proto::v1::Event;

use super::{
    Shared,
    subscriber::{Subscriber, reported},
};
use crate::history::Item;

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
