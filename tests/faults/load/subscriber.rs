//! A subscriber: opens one stream after the other, each with the last token of the one before.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::timeout;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use trunkline_proto::v1::{
    Filter, Gap as WireGap, SubscribeRequest, SubscribeResponse, subscribe_response::Response,
};

use super::{ACCOUNTS, Shape, Shared, account, is_connection_error, node_id};
use crate::history::{Gap, Interest, Item, Node, Stream};

/// A watchful subscriber gives up a stream that received nothing, heartbeats included, for this
/// long.
const SILENCE: Duration = Duration::from_secs(4);

pub async fn subscribe(shared: Arc<Shared>, index: usize, shape: Shape) {
    let accounts = (index == 1)
        .then(|| (0..ACCOUNTS).step_by(4).map(|number| format!("account-{number}")).collect());
    let interest = Interest { accounts, own: false };
    let request = SubscribeRequest {
        node_id: node_id(index),
        filter: interest.accounts.clone().map(|accounts| Filter {
            accounts: accounts.into_iter().collect(),
            ..Filter::default()
        }),
        heartbeat_interval: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        ..SubscribeRequest::default()
    };
    let position = {
        let mut history = shared.history.lock();
        history.nodes.push(Node { node_id: node_id(index), interest, streams: vec![] });
        history.nodes.len() - 1
    };
    let mut token = Vec::new();
    let mut turn = index;
    loop {
        let request = SubscribeRequest { resume_token: token.clone(), ..request.clone() };
        let with_token = !token.is_empty();
        shared.history.lock().nodes[position].streams.push(Stream { with_token, items: vec![] });
        let end = read(&shared, position, turn, request, &mut token, shape.watchful).await;
        record(&shared, position, Item::Ended(end));
        turn += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Reads one stream to its end, and returns the gateway's reason for the end.
async fn read(
    shared: &Shared,
    position: usize,
    turn: usize,
    request: SubscribeRequest,
    token: &mut Vec<u8>,
    watchful: bool,
) -> Option<String> {
    let mut client = shared.client(turn);
    let opened = timeout(SILENCE, client.subscribe(request)).await;
    let mut stream = match opened {
        Ok(Ok(stream)) => stream.into_inner(),
        Ok(Err(status)) => return reason(shared, &status),
        Err(_) => return None,
    };
    loop {
        let limit = if watchful { SILENCE } else { Duration::from_hours(1) };
        match timeout(limit, stream.message()).await {
            Ok(Ok(Some(response))) => take(shared, position, response, token),
            Ok(Ok(None)) | Err(_) => return None,
            Ok(Err(status)) => return reason(shared, &status),
        }
    }
}

fn reason(shared: &Shared, status: &Status) -> Option<String> {
    let reason = status.get_details_error_info().map(|info| info.reason);
    if status.code() != Code::Unavailable && !is_connection_error(status) {
        shared.unexcused(format!("a stream ended: {status:?}"));
    }
    reason
}

fn take(shared: &Shared, position: usize, response: SubscribeResponse, token: &mut Vec<u8>) {
    match response.response {
        Some(Response::Subscribed(subscribed)) => {
            *token = subscribed.resume_token;
            record(shared, position, Item::Subscribed { resumed: subscribed.resumed });
        }
        Some(Response::Events(batch)) => {
            let at = shared.start.elapsed();
            shared.received.fetch_add(batch.events.len(), Ordering::Relaxed);
            let mut history = shared.history.lock();
            let stream = history.nodes[position].streams.last_mut().expect("it was pushed");
            stream.items.extend(batch.events.into_iter().map(|event| {
                let account = account(&event).to_owned();
                (at, Item::Event { event_id: event.event_id, source: event.source, account })
            }));
            *token = batch.resume_token;
        }
        Some(Response::Gap(gap)) => {
            token.clone_from(&gap.resume_token);
            record(shared, position, Item::Gap(reported(&gap)));
        }
        Some(Response::Heartbeat(heartbeat)) => *token = heartbeat.resume_token,
        Some(Response::Draining(_)) => record(shared, position, Item::Draining),
        // Meant for people; it carries no token.
        Some(Response::Notice(_)) => {}
        Some(Response::Explanation(_)) => {
            shared.unexcused("an explanation that was not requested".into());
        }
        None => shared.unexcused("a response without an arm".into()),
    }
}

fn reported(gap: &WireGap) -> Gap {
    let position = |position: &Option<trunkline_proto::v1::Position>| {
        position.as_ref().map(|position| (position.epoch, position.offset)).unwrap_or_default()
    };
    Gap {
        shard: gap.shard,
        from: position(&gap.from),
        to: position(&gap.to),
        missed: gap.missed_events,
    }
}

fn record(shared: &Shared, position: usize, item: Item) {
    let at = shared.start.elapsed();
    let mut history = shared.history.lock();
    history.nodes[position].streams.last_mut().expect("it was pushed").items.push((at, item));
}
