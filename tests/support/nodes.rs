//! Nodes: the clients of a gateway, who publish and record what they are sent.

use std::{ops::Range, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::Notify, task::JoinHandle, time::timeout};
use tonic::{Status, Streaming, transport::Channel};
use trunkline_proto::v1::{
    Draining, Event, Explanation, Gap, Heartbeat, Notice, Position, PublishRequest,
    SubscribeRequest, SubscribeResponse, Subscribed,
    coordination_service_client::CoordinationServiceClient, subscribe_response::Response,
};

use super::gateway::{self, Gateway};

/// A node with a connection of its own to one gateway.
#[derive(Clone, Debug)]
pub struct TestNode {
    /// Its node id.
    pub node_id: String,
    /// Its client; clones share the connection.
    pub client: CoordinationServiceClient<Channel>,
}

impl TestNode {
    /// Connects a node to a gateway.
    pub async fn connect(gateway: &Gateway, node_id: impl Into<String>) -> TestNode {
        TestNode::connect_to(&gateway.url(), node_id).await
    }

    /// Connects a node to the gateway at `url`.
    pub async fn connect_to(url: &str, node_id: impl Into<String>) -> TestNode {
        TestNode { node_id: node_id.into(), client: gateway::client(url).await }
    }

    /// Publishes events in one request; their positions in the same order.
    pub async fn publish(&self, events: Vec<Event>) -> Result<Vec<Position>, Status> {
        self.publish_as(String::new(), events).await
    }

    /// Publishes events under a request id.
    pub async fn publish_as(
        &self,
        request_id: impl Into<String>,
        events: Vec<Event>,
    ) -> Result<Vec<Position>, Status> {
        let request =
            PublishRequest { node_id: self.node_id.clone(), request_id: request_id.into(), events };
        Ok(self.client.clone().publish(request).await?.into_inner().positions)
    }

    /// A request that asks for everything; change it as needed and give it to `subscribe`.
    pub fn request(&self) -> SubscribeRequest {
        SubscribeRequest { node_id: self.node_id.clone(), ..SubscribeRequest::default() }
    }

    /// Opens a stream and leaves the reading to the test.
    pub async fn stream(
        &self,
        request: SubscribeRequest,
    ) -> Result<Streaming<SubscribeResponse>, Status> {
        Ok(self.client.clone().subscribe(request).await?.into_inner())
    }

    /// Opens a stream, records all that it brings, and returns after `subscribed`.
    ///
    /// # Panics
    ///
    /// If the stream ends before, or `subscribed` is not there after 15 s.
    pub async fn subscribe(&self, request: SubscribeRequest) -> Collector {
        let collector = self.collect(request, Keep::Everything).await.expect("a stream");
        collector.subscribed().await;
        collector
    }

    /// Opens a stream and records what it brings.
    pub async fn collect(
        &self,
        request: SubscribeRequest,
        keep: Keep,
    ) -> Result<Collector, Status> {
        Ok(Collector::start(self.node_id.clone(), self.stream(request).await?, keep))
    }
}

/// What a collector keeps of each event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The event.
    Everything,
    /// Its id only: for hundreds of thousands.
    Ids,
}

/// Something that a stream brought.
#[derive(Clone, Debug)]
pub enum Seen {
    /// The stream is open.
    Subscribed(Subscribed),
    /// A batch: which of the recording's events, and the token after it.
    Events {
        /// Indexes into `Recording::event_ids` and `Recording::events`.
        events: Range<usize>,
        /// The resume token of the batch.
        token: Vec<u8>,
    },
    /// Events that will not come.
    Gap(Gap),
    /// Nothing else for a while.
    Heartbeat(Heartbeat),
    /// The gateway is going away.
    Draining(Draining),
    /// What whoever runs the node should know.
    Notice(Notice),
    /// What became of all events.
    Explanation(Explanation),
    /// A response whose arm is not known.
    Unknown,
    /// The end of the stream, OK or not; nothing follows.
    Ended(Result<(), Status>),
}

/// All that a stream has brought so far, in order.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// What came, in order.
    pub seen: Vec<Seen>,
    /// The ids of all events, in order.
    pub event_ids: Vec<String>,
    /// The events; empty under `Keep::Ids`.
    pub events: Vec<Event>,
}

impl Recording {
    /// The gaps, in order.
    pub fn gaps(&self) -> Vec<&Gap> {
        self.seen
            .iter()
            .filter_map(|seen| if let Seen::Gap(gap) = seen { Some(gap) } else { None })
            .collect()
    }

    /// The tokens of all that carries one, in order.
    pub fn tokens(&self) -> Vec<&[u8]> {
        self.seen.iter().filter_map(Seen::token).collect()
    }

    /// The token that stands for all that came so far.
    pub fn last_token(&self) -> Option<&[u8]> {
        self.seen.iter().rev().find_map(Seen::token)
    }

    /// What opened the stream.
    pub fn subscribed(&self) -> Option<&Subscribed> {
        self.seen.iter().find_map(|seen| match seen {
            Seen::Subscribed(subscribed) => Some(subscribed),
            _ => None,
        })
    }

    /// The explanations, in order.
    pub fn explanations(&self) -> Vec<&Explanation> {
        let seen = self.seen.iter();
        seen.filter_map(|seen| match seen {
            Seen::Explanation(explanation) => Some(explanation),
            _ => None,
        })
        .collect()
    }

    /// How many heartbeats came.
    pub fn heartbeats(&self) -> usize {
        self.seen.iter().filter(|seen| matches!(seen, Seen::Heartbeat(_))).count()
    }

    /// The farewell, if it came.
    pub fn draining(&self) -> Option<&Draining> {
        self.seen.iter().find_map(|seen| match seen {
            Seen::Draining(draining) => Some(draining),
            _ => None,
        })
    }

    /// The notices, in order.
    pub fn notices(&self) -> Vec<&Notice> {
        self.seen
            .iter()
            .filter_map(|seen| if let Seen::Notice(notice) = seen { Some(notice) } else { None })
            .collect()
    }

    /// How the stream ended, if it has.
    pub fn ended(&self) -> Option<&Result<(), Status>> {
        match self.seen.last() {
            Some(Seen::Ended(how)) => Some(how),
            _ => None,
        }
    }

    fn take(&mut self, response: SubscribeResponse, keep: Keep) {
        self.seen.push(match response.response {
            Some(Response::Subscribed(subscribed)) => Seen::Subscribed(subscribed),
            Some(Response::Events(batch)) => {
                let first = self.event_ids.len();
                self.event_ids.extend(batch.events.iter().map(|event| event.event_id.clone()));
                if keep == Keep::Everything {
                    self.events.extend(batch.events);
                }
                Seen::Events { events: first..self.event_ids.len(), token: batch.resume_token }
            }
            Some(Response::Gap(gap)) => Seen::Gap(gap),
            Some(Response::Heartbeat(heartbeat)) => Seen::Heartbeat(heartbeat),
            Some(Response::Draining(draining)) => Seen::Draining(draining),
            Some(Response::Notice(notice)) => Seen::Notice(notice),
            Some(Response::Explanation(explanation)) => Seen::Explanation(explanation),
            None => Seen::Unknown,
        });
    }
}

impl Seen {
    /// The resume token that it carries.
    pub fn token(&self) -> Option<&[u8]> {
        match self {
            Seen::Subscribed(subscribed) => Some(&subscribed.resume_token),
            Seen::Events { token, .. } => Some(token),
            Seen::Gap(gap) => Some(&gap.resume_token),
            Seen::Heartbeat(heartbeat) => Some(&heartbeat.resume_token),
            Seen::Explanation(explanation) => Some(&explanation.resume_token),
            Seen::Draining(_) | Seen::Notice(_) | Seen::Unknown | Seen::Ended(_) => None,
        }
    }
}

/// Reads a stream to its end and records what it brings. Dropping it closes the stream.
#[derive(Debug)]
pub struct Collector {
    node_id: String,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    recording: Mutex<Recording>,
    changed: Notify,
}

impl Collector {
    /// Reads `stream`; `node_id` is for people.
    pub fn start(
        node_id: String,
        mut stream: Streaming<SubscribeResponse>,
        keep: Keep,
    ) -> Collector {
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            loop {
                let next = stream.message().await;
                let mut recording = shared.recording.lock();
                let ended = match next {
                    Ok(Some(response)) => {
                        recording.take(response, keep);
                        None
                    }
                    Ok(None) => Some(Ok(())),
                    Err(status) => Some(Err(status)),
                };
                let last = ended.is_some();
                recording.seen.extend(ended.map(Seen::Ended));
                drop(recording);
                shared.changed.notify_waiters();
                if last {
                    return;
                }
            }
        });
        Collector { node_id, state, task }
    }

    /// A copy of what came so far.
    pub fn recording(&self) -> Recording {
        self.state.recording.lock().clone()
    }

    /// Looks at what came so far, without a copy.
    pub fn with<T>(&self, look: impl FnOnce(&Recording) -> T) -> T {
        look(&self.state.recording.lock())
    }

    /// The ids of the events that came so far.
    pub fn event_ids(&self) -> Vec<String> {
        self.with(|recording| recording.event_ids.clone())
    }

    /// The token that stands for all that came so far.
    pub fn last_token(&self) -> Vec<u8> {
        self.with(|recording| recording.last_token().unwrap_or_default().to_vec())
    }

    /// Waits for `subscribed`.
    pub async fn subscribed(&self) -> Subscribed {
        self.wait(super::LIMIT, "subscribed", |recording| recording.subscribed().cloned()).await
    }

    /// Waits until at least `count` events came, and returns what came.
    pub async fn events(&self, count: usize, limit: Duration) -> Recording {
        let what = format!("{count} events");
        self.wait(limit, &what, |recording| {
            (recording.event_ids.len() >= count).then(|| recording.clone())
        })
        .await
    }

    /// Waits for an event with this id.
    pub async fn event(&self, id: &str, limit: Duration) -> Recording {
        let what = format!("event {id:?}");
        self.wait(limit, &what, |recording| {
            recording.event_ids.iter().any(|seen| seen == id).then(|| recording.clone())
        })
        .await
    }

    /// Waits for a gap, and returns the first.
    pub async fn gap(&self, limit: Duration) -> Gap {
        self.wait(limit, "a gap", |recording| recording.gaps().first().map(|gap| (*gap).clone()))
            .await
    }

    /// Waits for the end of the stream.
    pub async fn end(&self, limit: Duration) -> Result<(), Status> {
        self.wait(limit, "the end of the stream", |recording| recording.ended().cloned()).await
    }

    /// Waits until `look` finds what it looks for.
    ///
    /// # Panics
    ///
    /// After `limit`, naming `what` and what came instead; or as soon as the stream has ended without it.
    pub async fn wait<T>(
        &self,
        limit: Duration,
        what: &str,
        look: impl Fn(&Recording) -> Option<T>,
    ) -> T {
        let found = async {
            loop {
                // Asked for before the look, so that nothing that comes between the two is missed.
                let changed = self.state.changed.notified();
                let (value, ended) =
                    self.with(|recording| (look(recording), recording.ended().is_some()));
                if value.is_some() || ended {
                    return value;
                }
                changed.await;
            }
        };
        let found = timeout(limit, found).await;
        found.ok().flatten().unwrap_or_else(|| {
            panic!("{}: no {what} within {limit:?}; {}", self.node_id, self.summary())
        })
    }

    fn summary(&self) -> String {
        self.with(|recording| {
            let tail = &recording.seen[recording.seen.len().saturating_sub(5)..];
            format!(
                "{} events, {} gaps, last {tail:?}",
                recording.event_ids.len(),
                recording.gaps().len()
            )
        })
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}
