//! `Watch` streams: a node's updates of its interest, and what it receives.

use std::ops::Deref;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use trunkline_proto::v1::{
    Acknowledge, Filter, InterestRejected, InterestUpdate, InterestUpdated, WatchOpen,
    WatchRequest, watch_request::Request,
};

use super::{
    LIMIT,
    nodes::{Collector, Keep, Recording, Seen, TestNode},
};

/// An open `Watch` stream: what it receives is recorded.
pub struct Watch {
    /// What it receives.
    pub collector: Collector,
    requests: Option<mpsc::Sender<WatchRequest>>,
    last_id: u64,
}

/// A filter with these accounts.
pub fn accounts<A: Into<String>>(accounts: impl IntoIterator<Item = A>) -> Filter {
    let accounts = accounts.into_iter().map(Into::into).collect();
    Filter { accounts, ..Filter::default() }
}

impl TestNode {
    /// Opens a `Watch` stream with these requests, and sends no more until it is told to.
    pub async fn watch_with(&self, first: Vec<Request>) -> Result<Watch, Status> {
        let (requests, received) = mpsc::channel(64);
        for request in first {
            let request = WatchRequest { request: Some(request) };
            requests.send(request).await.expect("the stream takes requests");
        }
        let requests_of = ReceiverStream::new(received);
        let stream = self.client.clone().watch(requests_of).await?.into_inner();
        let collector = Collector::start(self.node_id.clone(), stream, Keep::Everything);
        Ok(Watch { collector, requests: Some(requests), last_id: 0 })
    }

    /// Opens a `Watch` stream, and returns after `Subscribed`.
    pub async fn watch(&self, open: WatchOpen) -> Watch {
        let watch = self.watch_with(vec![Request::Open(open)]).await.expect("a stream");
        watch.subscribed().await;
        watch
    }

    /// A request for the events of these accounts; others are added by name.
    pub fn open(&self, filter: Filter) -> WatchOpen {
        let mut subscribe = self.request();
        subscribe.filter = Some(filter);
        WatchOpen { subscribe: Some(subscribe), accounts_named: true, ..WatchOpen::default() }
    }
}

impl Watch {
    /// Sends a request.
    pub async fn send(&self, request: Request) {
        let requests = self.requests.as_ref().expect("the node's side is open");
        let request = WatchRequest { request: Some(request) };
        requests.send(request).await.expect("the stream takes requests");
    }

    /// Sends an update with the next number; returns the number.
    pub async fn update(&mut self, update: InterestUpdate) -> u64 {
        self.last_id += 1;
        let update = InterestUpdate { update_id: self.last_id, ..update };
        self.send(Request::Update(update)).await;
        self.last_id
    }

    /// Adds accounts and removes others; waits until that is in force.
    pub async fn change(&mut self, add: &[&str], remove: &[&str]) -> InterestUpdated {
        let [add, remove] = [add, remove].map(|names| Some(accounts(names.iter().copied())));
        let id = self.update(InterestUpdate { add, remove, ..InterestUpdate::default() }).await;
        self.updated(id).await
    }

    /// Waits for the answer that an update is in force.
    pub async fn updated(&self, id: u64) -> InterestUpdated {
        let what = format!("update {id} in force");
        self.collector.wait(LIMIT, &what, |recording| recording.updated(id).cloned()).await
    }

    /// Waits for the answer that an update was refused.
    pub async fn rejected(&self, id: u64) -> InterestRejected {
        let what = format!("update {id} refused");
        let found = |seen: &Seen| match seen {
            Seen::InterestRejected(rejected) if rejected.update_id == id => Some(rejected.clone()),
            _ => None,
        };
        self.collector.wait(LIMIT, &what, |recording| recording.seen.iter().find_map(found)).await
    }

    /// Acknowledges a token.
    pub async fn acknowledge(&self, resume_token: Vec<u8>) {
        self.send(Request::Acknowledge(Acknowledge { resume_token, agent: None })).await;
    }

    /// Closes the node's side.
    pub fn close_requests(&mut self) {
        self.requests = None;
    }
}

impl Deref for Watch {
    type Target = Collector;

    fn deref(&self) -> &Collector {
        &self.collector
    }
}

impl Recording {
    /// The answer that an update is in force, if it has come.
    pub fn updated(&self, id: u64) -> Option<&InterestUpdated> {
        self.seen.iter().find_map(|seen| match seen {
            Seen::InterestUpdated(updated) if updated.update_id == id => Some(updated),
            _ => None,
        })
    }
}
