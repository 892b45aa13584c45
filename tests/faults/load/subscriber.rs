//! A subscriber: opens one stream after the other, each with the last token of the one before.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::timeout;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use trunkline_proto::v1::{
    Event, Filter, Gap as WireGap, Start, SubscribeRequest, SubscribeResponse,
    subscribe_response::Response,
};

use super::{Shape, Shared, account, client, is_connection_error, node_id};
use crate::history::{Gap, Interest, Item, Node, Stream};

/// A watchful subscriber gives up a stream that received nothing, heartbeats included, for this
/// long.
pub const SILENCE: Duration = Duration::from_secs(4);

/// A slow subscriber does not read for this long, in each period of twice that.
const SLOW: Duration = Duration::from_millis(1_500);

/// One subscriber: its place in the history, and its habits.
pub struct Subscriber {
    pub shared: Arc<Shared>,
    pub request: SubscribeRequest,
    /// The gateway that it uses first.
    pub turn: usize,
    /// The index in the history.
    node: usize,
    slow: bool,
}

pub async fn subscribe(shared: Arc<Shared>, index: usize) {
    let subscriber = Subscriber::new(shared, index);
    if subscriber.shared.is_client(index) {
        client::subscribe(subscriber).await;
    } else {
        subscriber.by_hand().await;
    }
}

impl Subscriber {
    fn new(shared: Arc<Shared>, index: usize) -> Subscriber {
        let Shape { subscribers, slow, oldest, accounts, .. } = shared.shape;
        let accounts = (index == 1)
            .then(|| (0..accounts).step_by(4).map(|number| format!("account-{number}")).collect());
        let interest = Interest { accounts, ..Interest::default() };
        let oldest_from = subscribers - oldest;
        let start = if index >= oldest_from { Start::Oldest } else { Start::Latest };
        let request = SubscribeRequest {
            node_id: node_id(index),
            filter: interest.accounts.clone().map(|accounts| Filter {
                accounts: accounts.into_iter().collect(),
                ..Filter::default()
            }),
            heartbeat_interval: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
            start: start.into(),
            ..SubscribeRequest::default()
        };
        let node = {
            let mut history = shared.history.lock();
            history.nodes.push(Node { node_id: node_id(index), interest, streams: vec![] });
            history.nodes.len() - 1
        };
        let slow = (oldest_from - slow..oldest_from).contains(&index);
        Subscriber { shared, request, turn: index, node, slow }
    }

    async fn by_hand(mut self) {
        let mut token = Vec::new();
        loop {
            let request = SubscribeRequest { resume_token: token.clone(), ..self.request.clone() };
            self.opens(!token.is_empty());
            let end = self.read(request, &mut token).await;
            self.record(Item::Ended(end));
            self.turn += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Reads one stream to its end, and returns the gateway's reason for the end.
    async fn read(&self, request: SubscribeRequest, token: &mut Vec<u8>) -> Option<String> {
        let mut client = self.shared.client(self.turn);
        let opened = timeout(SILENCE, client.subscribe(request)).await;
        let mut stream = match opened {
            Ok(Ok(stream)) => stream.into_inner(),
            Ok(Err(status)) => return reason(&self.shared, &status),
            Err(_) => return None,
        };
        let watchful = self.shared.shape.watchful;
        let limit = if watchful { SILENCE } else { Duration::from_hours(1) };
        loop {
            match timeout(limit, stream.message()).await {
                Ok(Ok(Some(response))) => self.take(response, token),
                Ok(Ok(None)) | Err(_) => return None,
                Ok(Err(status)) => return reason(&self.shared, &status),
            }
            self.pause().await;
        }
    }

    /// The pause of a slow subscriber; others have none. It ends with the load.
    pub async fn pause(&self) {
        let period = 2 * SLOW.as_millis();
        while self.slow
            && self.shared.start.elapsed().as_millis() % period < SLOW.as_millis()
            && !self.shared.stop.load(Ordering::Acquire)
        {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn take(&self, response: SubscribeResponse, token: &mut Vec<u8>) {
        match response.response {
            Some(Response::Subscribed(subscribed)) => {
                *token = subscribed.resume_token;
                self.record(Item::Subscribed { resumed: subscribed.resumed });
            }
            Some(Response::Events(batch)) => {
                self.receives(batch.events);
                *token = batch.resume_token;
            }
            Some(Response::Gap(gap)) => {
                token.clone_from(&gap.resume_token);
                self.record(Item::Gap(reported(&gap)));
            }
            Some(Response::Heartbeat(heartbeat)) => *token = heartbeat.resume_token,
            Some(Response::Draining(_)) => self.record(Item::Draining),
            // Meant for people; it carries no token.
            Some(Response::Notice(_)) => {}
            Some(Response::Explanation(_)) => {
                self.shared.unexcused("an explanation that was not requested".into());
            }
            Some(Response::CurrentNodes(_)) => {
                self.shared.unexcused("a list of nodes that was not requested".into());
            }
            Some(Response::InterestUpdated(_) | Response::InterestRejected(_)) => {
                self.shared.unexcused("an answer to an update that was not sent".into());
            }
            None => self.shared.unexcused("a response without an arm".into()),
        }
    }

    /// Records the beginning of a stream.
    pub fn opens(&self, with_token: bool) {
        let stream = Stream { with_token, ..Stream::default() };
        self.shared.history.lock().nodes[self.node].streams.push(stream);
    }

    /// Records events.
    pub fn receives(&self, events: Vec<Event>) {
        self.shared.receives(self.node, events);
    }

    pub fn record(&self, item: Item) {
        self.shared.records(self.node, [item]);
    }
}

impl Shared {
    /// Records events that a node receives.
    pub fn receives(&self, node: usize, events: Vec<Event>) {
        self.received.fetch_add(events.len(), Ordering::Relaxed);
        self.records(
            node,
            events.into_iter().map(|event| {
                let account = account(&event).to_owned();
                Item::Event { event_id: event.event_id, source: event.source, account }
            }),
        );
    }

    /// Records what comes to a node on its last stream, or what it sends.
    pub fn records(&self, node: usize, items: impl IntoIterator<Item = Item>) {
        let at = self.start.elapsed();
        let mut history = self.history.lock();
        let stream = history.nodes[node].streams.last_mut().expect("it was pushed");
        stream.items.extend(items.into_iter().map(|item| (at, item)));
    }
}

pub fn reason(shared: &Shared, status: &Status) -> Option<String> {
    let reason = status.get_details_error_info().map(|info| info.reason);
    if status.code() != Code::Unavailable && !is_connection_error(status) {
        shared.unexcused(format!("a stream ended: {status:?}"));
    }
    reason
}

pub fn reported(gap: &WireGap) -> Gap {
    let position = |position: &Option<trunkline_proto::v1::Position>| {
        position.as_ref().map(|position| (position.epoch, position.offset)).unwrap_or_default()
    };
    Gap {
        reason: gap.reason(),
        shard: gap.shard,
        from: position(&gap.from),
        to: position(&gap.to),
        missed: gap.missed_events,
    }
}
