//! A watcher: a node that changes its interest all the time. It opens one stream after the other,
//! as a subscriber does, each with the accounts that it wants then.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, timeout, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use trunkline_proto::v1::{
    Filter, InterestUpdate, SubscribeRequest, SubscribeResponse, WatchOpen, WatchRequest,
    subscribe_response::Response, watch_request::Request,
};

use super::{
    Shared,
    subscriber::{SILENCE, reason, reported},
};
use crate::history::{Interest, Item, Node, Stream, Update};

/// Updates in a second.
const UPDATES: u64 = 5;

/// Updates that wait for their answer.
const MAX_UNANSWERED: u64 = 8;

/// Of so many accounts, a watcher has one all the time, and another one at a time.
const KEPT: u64 = 100;
const VARYING: u64 = 25;

struct Watcher {
    shared: Arc<Shared>,
    node_id: String,
    /// The index in the history.
    node: usize,
    turn: usize,
    token: Vec<u8>,
    kept: HashSet<String>,
    /// The accounts that come and go, the oldest first.
    varying: Vec<String>,
    /// Chooses them.
    random: u64,
}

/// An open stream, as far as its updates go.
struct Updates {
    requests: mpsc::Sender<WatchRequest>,
    sent: u64,
    answered: u64,
}

pub async fn watch(shared: Arc<Shared>, index: usize) {
    let mut watcher = Watcher::new(shared, index);
    loop {
        let end = watcher.stream().await;
        watcher.record(Item::Ended(end));
        watcher.turn += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

impl Watcher {
    fn new(shared: Arc<Shared>, index: usize) -> Watcher {
        let node_id = format!("watcher-{index}");
        let accounts = shared.shape.accounts;
        // Of all shards: what they have shows how far the stream has come.
        let apart = usize::try_from(KEPT.min(accounts / 8)).expect("few");
        let kept: HashSet<String> = (0..accounts).step_by(apart).map(name).collect();
        let interest =
            Interest { accounts: Some(kept.clone()), changes: true, ..Interest::default() };
        let node = {
            let mut history = shared.history.lock();
            history.nodes.push(Node { node_id: node_id.clone(), interest, streams: vec![] });
            history.nodes.len() - 1
        };
        let random = (index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut watcher = Watcher {
            shared,
            node_id,
            node,
            turn: index,
            token: vec![],
            kept,
            varying: vec![],
            random,
        };
        let count = accounts / VARYING.min(accounts / 8);
        watcher.varying = watcher.choose(count.try_into().expect("few"));
        watcher
    }

    /// Reads one stream to its end, and returns the gateway's reason for the end.
    async fn stream(&mut self) -> Option<String> {
        let accounts: HashSet<String> = self.kept.iter().chain(&self.varying).cloned().collect();
        let stream = Stream {
            with_token: !self.token.is_empty(),
            accounts: accounts.clone(),
            items: vec![],
        };
        self.shared.history.lock().nodes[self.node].streams.push(stream);
        let (requests, received) = mpsc::channel(64);
        let open = WatchOpen {
            subscribe: Some(SubscribeRequest {
                node_id: self.node_id.clone(),
                filter: Some(filter(accounts)),
                heartbeat_interval: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
                resume_token: self.token.clone(),
                ..SubscribeRequest::default()
            }),
            accounts_named: true,
            ..WatchOpen::default()
        };
        let mut updates = Updates { requests, sent: 0, answered: 0 };
        updates.send(Request::Open(open)).await;
        let mut client = self.shared.client(self.turn);
        let opened = timeout(SILENCE, client.watch(ReceiverStream::new(received))).await;
        let mut stream = match opened {
            Ok(Ok(stream)) => stream.into_inner(),
            Ok(Err(status)) => return reason(&self.shared, &status),
            Err(_) => return None,
        };
        let mut due = interval(Duration::from_secs(1) / u32::try_from(UPDATES).expect("few"));
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let watchful = self.shared.shape.watchful;
        let limit = if watchful { SILENCE } else { Duration::from_hours(1) };
        let mut silent = Instant::now() + limit;
        loop {
            tokio::select! {
                message = timeout_at(silent, stream.message()) => match message {
                    Ok(Ok(Some(response))) => {
                        silent = Instant::now() + limit;
                        self.take(response, &mut updates);
                    }
                    Ok(Ok(None)) | Err(_) => return None,
                    Ok(Err(status)) => return reason(&self.shared, &status),
                },
                _ = due.tick() => self.update(&mut updates).await,
            }
        }
    }

    /// Adds accounts, and removes as many.
    async fn update(&mut self, updates: &mut Updates) {
        let is_late = updates.sent - updates.answered >= MAX_UNANSWERED;
        if is_late || self.shared.stop.load(Ordering::Acquire) {
            return;
        }
        let half = usize::try_from(self.shared.shape.changes / UPDATES / 2).expect("few");
        let add = self.choose(half);
        let remove: Vec<String> = self.varying.drain(..add.len()).collect();
        self.varying.extend_from_slice(&add);
        updates.sent += 1;
        let update = Update { id: updates.sent, add: add.clone(), remove: remove.clone() };
        self.record(Item::Updating(update));
        let request = InterestUpdate {
            update_id: updates.sent,
            add: Some(filter(add)),
            remove: Some(filter(remove)),
            ..InterestUpdate::default()
        };
        updates.send(Request::Update(request)).await;
    }

    fn take(&mut self, response: SubscribeResponse, updates: &mut Updates) {
        match response.response {
            Some(Response::Subscribed(subscribed)) => {
                self.token = subscribed.resume_token;
                self.record(Item::Subscribed { resumed: subscribed.resumed });
            }
            Some(Response::Events(batch)) => {
                self.shared.receives(self.node, batch.events);
                self.token = batch.resume_token;
            }
            Some(Response::Gap(gap)) => {
                self.token.clone_from(&gap.resume_token);
                self.record(Item::Gap(reported(&gap)));
            }
            Some(Response::Heartbeat(heartbeat)) => self.token = heartbeat.resume_token,
            Some(Response::Draining(_)) => self.record(Item::Draining),
            Some(Response::InterestUpdated(updated)) => {
                updates.answered += 1;
                self.shared.updated.fetch_add(1, Ordering::Relaxed);
                self.token = updated.resume_token;
                self.record(Item::Updated(updated.update_id));
            }
            Some(Response::Notice(_)) => {}
            other => self.shared.unexcused(format!("{}: {other:?}", self.node_id)),
        }
    }

    /// Accounts that it does not have now; as many as there are, if there are fewer.
    fn choose(&mut self, count: usize) -> Vec<String> {
        let all = self.shared.shape.accounts;
        let others = usize::try_from(all).expect("few") - self.kept.len() - self.varying.len();
        let mut chosen = Vec::new();
        while chosen.len() < count.min(others) {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let account = name(self.random % all);
            if !self.kept.contains(&account)
                && !self.varying.contains(&account)
                && !chosen.contains(&account)
            {
                chosen.push(account);
            }
        }
        chosen
    }

    fn record(&self, item: Item) {
        self.shared.records(self.node, [item]);
    }
}

impl Updates {
    async fn send(&self, request: Request) {
        // A stream that is over does not take it.
        let _ = self.requests.send(WatchRequest { request: Some(request) }).await;
    }
}

fn name(number: u64) -> String {
    format!("account-{number}")
}

fn filter(accounts: impl IntoIterator<Item = String>) -> Filter {
    Filter { accounts: accounts.into_iter().collect(), ..Filter::default() }
}
