//! Nodes: clients of a gateway that publish events and record what they receive.

use std::{ops::Range, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::Notify, task::JoinHandle, time::timeout};
use tonic::{Status, Streaming, transport::Channel};
use trunkline_proto::v1::{
    CurrentNodes, Draining, Event, Explanation, Gap, Heartbeat, InterestRejected, InterestUpdated,
    Notice, Position, PublishRequest, SubscribeRequest, SubscribeResponse, Subscribed,
    coordination_service_client::CoordinationServiceClient, subscribe_response::Response,
};

use super::gateway::{self, Gateway};

/// A node with its own connection to one gateway.
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

    /// Publishes events in one request; returns their positions in the same order.
    pub async fn publish(&self, events: Vec<Event>) -> Result<Vec<Position>, Status> {
        self.publish_as(String::new(), events).await
    }

    /// Publishes events under a request id.
    pub async fn publish_as(
        &self,
        request_id: impl Into<String>,
        events: Vec<Event>,
    ) -> Result<Vec<Position>, Status> {
        let request = PublishRequest {
            node_id: self.node_id.clone(),
            request_id: request_id.into(),
            events,
            ..Default::default()
        };
        Ok(self.client.clone().publish(request).await?.into_inner().positions)
    }

    /// A request for all events; change it as needed and pass it to `subscribe`.
    pub fn request(&self) -> SubscribeRequest {
        SubscribeRequest { node_id: self.node_id.clone(), ..SubscribeRequest::default() }
    }

    /// Opens a stream that the test reads itself.
    pub async fn stream(
        &self,
        request: SubscribeRequest,
    ) -> Result<Streaming<SubscribeResponse>, Status> {
        Ok(self.client.clone().subscribe(request).await?.into_inner())
    }

    /// Opens a stream, records everything that it receives, and returns after `Subscribed`.
    ///
    /// # Panics
    ///
    /// If the stream ends before `Subscribed`, or it is not received within 15 s.
    pub async fn subscribe(&self, request: SubscribeRequest) -> Collector {
        let collector = self.collect(request, Keep::Everything).await.expect("a stream");
        collector.subscribed().await;
        collector
    }

    /// Opens a stream and records everything that it receives.
    pub async fn collect(
        &self,
        request: SubscribeRequest,
        keep: Keep,
    ) -> Result<Collector, Status> {
        Ok(Collector::start(self.node_id.clone(), self.stream(request).await?, keep))
    }
}

/// The part of each event that a collector keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The whole event.
    Everything,
    /// Only its id, for hundreds of thousands of events.
    Ids,
}

/// One message of a stream, or its end.
#[derive(Clone, Debug)]
pub enum Seen {
    /// The first message.
    Subscribed(Subscribed),
    /// A batch: the range of its events in the recording, and its token.
    Events {
        /// Indexes into `Recording::event_ids` and `Recording::events`.
        events: Range<usize>,
        /// The resume token of the batch.
        token: Vec<u8>,
    },
    /// Events that the stream will not deliver.
    Gap(Gap),
    /// A heartbeat.
    Heartbeat(Heartbeat),
    /// The list of the nodes that are there is complete.
    CurrentNodes(CurrentNodes),
    /// The gateway is draining.
    Draining(Draining),
    /// A notice for the operator of the node.
    Notice(Notice),
    /// The filter decision for each event.
    Explanation(Explanation),
    /// An update of the interest is in force.
    InterestUpdated(InterestUpdated),
    /// An update of the interest was refused.
    InterestRejected(InterestRejected),
    /// A response with an unknown arm.
    Unknown,
    /// The end of the stream, with its status. Nothing follows.
    Ended(Result<(), Status>),
}

/// Everything that a stream has received so far, in order.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// Messages, and the end.
    pub seen: Vec<Seen>,
    /// The ids of all events.
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

    /// The resume tokens of all messages that have one, in order.
    pub fn tokens(&self) -> Vec<&[u8]> {
        self.seen.iter().filter_map(Seen::token).collect()
    }

    /// The last resume token.
    pub fn last_token(&self) -> Option<&[u8]> {
        self.seen.iter().rev().find_map(Seen::token)
    }

    /// The first message of the stream.
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

    /// The number of heartbeats.
    pub fn heartbeats(&self) -> usize {
        self.seen.iter().filter(|seen| matches!(seen, Seen::Heartbeat(_))).count()
    }

    /// The `Draining` message, if it was received.
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

    /// The status of the stream, if it has ended.
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
            Some(Response::CurrentNodes(current)) => Seen::CurrentNodes(current),
            Some(Response::Draining(draining)) => Seen::Draining(draining),
            Some(Response::Notice(notice)) => Seen::Notice(notice),
            Some(Response::Explanation(explanation)) => Seen::Explanation(explanation),
            Some(Response::InterestUpdated(updated)) => Seen::InterestUpdated(updated),
            Some(Response::InterestRejected(rejected)) => Seen::InterestRejected(rejected),
            None => Seen::Unknown,
        });
    }
}

impl Seen {
    /// Its resume token.
    pub fn token(&self) -> Option<&[u8]> {
        match self {
            Seen::Subscribed(subscribed) => Some(&subscribed.resume_token),
            Seen::Events { token, .. } => Some(token),
            Seen::Gap(gap) => Some(&gap.resume_token),
            Seen::Heartbeat(heartbeat) => Some(&heartbeat.resume_token),
            Seen::Explanation(explanation) => Some(&explanation.resume_token),
            Seen::InterestUpdated(updated) => Some(&updated.resume_token),
            Seen::Draining(_)
            | Seen::CurrentNodes(_)
            | Seen::Notice(_)
            | Seen::InterestRejected(_)
            | Seen::Unknown
            | Seen::Ended(_) => None,
        }
    }
}

/// Reads a stream to its end and records everything. Dropping it closes the stream.
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
    /// Reads `stream`; `node_id` is for messages.
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

    /// A copy of the recording so far.
    pub fn recording(&self) -> Recording {
        self.state.recording.lock().clone()
    }

    /// Reads the recording so far, without a copy.
    pub fn with<T>(&self, look: impl FnOnce(&Recording) -> T) -> T {
        look(&self.state.recording.lock())
    }

    /// The ids of all events so far.
    pub fn event_ids(&self) -> Vec<String> {
        self.with(|recording| recording.event_ids.clone())
    }

    /// The last resume token.
    pub fn last_token(&self) -> Vec<u8> {
        self.with(|recording| recording.last_token().unwrap_or_default().to_vec())
    }

    /// Waits for `Subscribed`.
    pub async fn subscribed(&self) -> Subscribed {
        self.wait(super::LIMIT, "subscribed", |recording| recording.subscribed().cloned()).await
    }

    /// Waits for at least `count` events; returns the recording.
    pub async fn events(&self, count: usize, limit: Duration) -> Recording {
        let what = format!("{count} events");
        self.wait(limit, &what, |recording| {
            (recording.event_ids.len() >= count).then(|| recording.clone())
        })
        .await
    }

    /// Waits for an event with this id; returns the recording.
    pub async fn event(&self, id: &str, limit: Duration) -> Recording {
        let what = format!("event {id:?}");
        self.wait(limit, &what, |recording| {
            recording.event_ids.iter().any(|seen| seen == id).then(|| recording.clone())
        })
        .await
    }

    /// Waits for a gap; returns the first.
    pub async fn gap(&self, limit: Duration) -> Gap {
        self.wait(limit, "a gap", |recording| recording.gaps().first().map(|gap| (*gap).clone()))
            .await
    }

    /// Waits for the end of the stream.
    pub async fn end(&self, limit: Duration) -> Result<(), Status> {
        self.wait(limit, "the end of the stream", |recording| recording.ended().cloned()).await
    }

    /// Waits until `look` returns a value.
    ///
    /// # Panics
    ///
    /// After `limit`, or as soon as the stream has ended; with `what`, and what was received.
    pub async fn wait<T>(
        &self,
        limit: Duration,
        what: &str,
        look: impl Fn(&Recording) -> Option<T>,
    ) -> T {
        let found = async {
            loop {
                // Registered before the check, so that no change between the two is missed.
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
