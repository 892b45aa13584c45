//! A subscription's streams: one after the other, each resumed where the one before ended.

use std::{collections::VecDeque, time::Duration};

use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{
    Client, Error, Notification, RecentEvents,
    backoff::{Backoff, retry_delay},
    error::{describe, is},
    interest::{Progress, Watching},
};
use trunkline_proto::v1::{
    Event, Gap, GapAction, GapReason, OtherGateway, SubscribeRequest, SubscribeResponse,
    WatchRequest, event::Kind, subscribe_response::Response,
};

/// The number of missed heartbeats after which a connection counts as dead.
const MISSED_HEARTBEATS: u32 = 2;

/// Requests that wait for the connection.
const REQUESTS: usize = 4;

/// The state between two notifications.
pub(super) struct Session {
    client: Client,
    /// The request for the next stream. Its token covers all events that were delivered.
    request: SubscribeRequest,
    /// The open stream.
    stream: Option<Streaming<SubscribeResponse>>,
    /// The accounts, where they change while the stream lives, and the requests of the open stream.
    watching: Option<Watching>,
    requests: Option<mpsc::Sender<WatchRequest>>,
    /// The number of the gateway that is used, or tried next.
    number: usize,
    /// Events that were received and not delivered yet, and the token after the last of them.
    events: VecDeque<Event>,
    batch_token: Vec<u8>,
    recent: RecentEvents,
    backoff: Backoff,
    /// The wait before the next stream, which was reported already.
    wait: Option<Duration>,
    /// The wait that a draining gateway asked for.
    requested_wait: Option<Duration>,
    /// The gateway that it named to go on at.
    named: Option<OtherGateway>,
    /// The heartbeat interval of the stream.
    heartbeat: Duration,
    /// The number of streams that were confirmed.
    subscribed: u64,
    /// The changes of the credentials until the stream was opened: see `Client::final_kind`.
    changes: u64,
    ended: bool,
}

/// True if the event belongs to the list with which a stream begins.
fn is_of_list(event: &Event) -> bool {
    matches!(&event.kind, Some(Kind::NodeJoined(joined)) if joined.current)
}

impl Session {
    pub(super) fn new(
        client: Client,
        request: SubscribeRequest,
        heartbeat: Duration,
        watching: Option<Watching>,
    ) -> Session {
        let number = client.preferred();
        let backoff = Backoff::new(client.reconnect_wait);
        Session {
            client,
            request,
            stream: None,
            watching,
            requests: None,
            number,
            events: VecDeque::new(),
            batch_token: vec![],
            recent: RecentEvents::new(),
            backoff,
            wait: None,
            requested_wait: None,
            named: None,
            heartbeat,
            subscribed: 0,
            changes: 0,
            ended: false,
        }
    }

    /// Covers all events that were delivered, in whole batches.
    pub(super) fn progress(&self) -> Progress {
        Progress {
            stream: self.subscribed,
            token: self.request.resume_token.clone(),
            whole: self.events.is_empty(),
        }
    }

    pub(super) async fn next(&mut self) -> Option<Result<Notification, Error>> {
        loop {
            if self.ended {
                self.stream = None;
                return None;
            }
            if let Some(event) = self.events.pop_front() {
                if self.events.is_empty() {
                    // The token covers the whole batch, so it changes with the last event.
                    self.request.resume_token = std::mem::take(&mut self.batch_token);
                }
                if !self.recent.is_new(&event) {
                    tracing::debug!(event.event_id, event.source, "an event that came before");
                    continue;
                }
                if self.request.max_events > 0 && !is_of_list(&event) {
                    // The next stream is asked for the rest.
                    self.request.max_events -= 1;
                    self.ended = self.request.max_events == 0;
                }
                return Some(Ok(Notification::Event(Box::new(event))));
            }
            if let Some(wait) = self.wait.take() {
                tokio::time::sleep(wait).await;
            }
            if self.stream.is_none() {
                match self.open().await {
                    Ok(()) => continue,
                    Err(status) => return Some(self.lost(status)),
                }
            }
            let limit = self.heartbeat * MISSED_HEARTBEATS;
            let lost = match timeout(limit, self.message()).await {
                Ok(Ok(Some(response))) => match self.take(response) {
                    Some(notification) => return Some(Ok(notification)),
                    None => continue,
                },
                Ok(Ok(None)) => Status::unavailable("the stream ended"),
                Ok(Err(status)) => status,
                Err(_) => Status::unavailable(format!("nothing received for {limit:?}")),
            };
            return Some(self.lost(lost));
        }
    }

    async fn open(&mut self) -> Result<(), Status> {
        let (mut gateway, changes) = self.client.gateway(self.number);
        self.changes = changes;
        let request = self.request.clone();
        let requests = self.watching.as_mut().map(|watching| {
            watching.open(request.clone());
            let (requests, receiver) = mpsc::channel(REQUESTS);
            self.requests = Some(requests);
            receiver
        });
        let opening = async {
            match requests {
                Some(requests) => gateway.watch(ReceiverStream::new(requests)).await,
                None => gateway.subscribe(request).await,
            }
        };
        let response = timeout(self.client.attempt_timeout, opening)
            .await
            .map_err(|_| Status::unavailable("no answer in time"))??;
        self.stream = Some(response.into_inner());
        (self.requested_wait, self.named) = (None, None);
        Ok(())
    }

    /// The next message of the open stream, whose interest changes meanwhile.
    async fn message(&mut self) -> Result<Option<SubscribeResponse>, Status> {
        let Some(stream) = &mut self.stream else { return Ok(None) };
        let (Some(watching), Some(requests)) = (&mut self.watching, &self.requests) else {
            return stream.message().await;
        };
        loop {
            tokio::select! {
                message = stream.message() => return message,
                () = watching.work(requests, &self.request.resume_token) => {}
            }
        }
    }

    fn take(&mut self, response: SubscribeResponse) -> Option<Notification> {
        let response = response.response?;
        if !matches!(response, Response::Subscribed(_) | Response::Draining(_)) {
            // The stream works: the next loss starts a new series of attempts.
            self.backoff.reset();
        }
        match response {
            Response::Subscribed(subscribed) => {
                self.client.works_as(self.number, &subscribed.gateway_id);
                self.request.resume_token.clone_from(&subscribed.resume_token);
                let interval =
                    subscribed.heartbeat_interval.and_then(|i| Duration::try_from(i).ok());
                self.heartbeat = interval.unwrap_or(self.heartbeat);
                self.subscribed += 1;
                if let Some(watching) = &mut self.watching {
                    watching.subscribed(self.subscribed);
                }
                Some(Notification::Subscribed(subscribed))
            }
            Response::Events(batch) if batch.events.is_empty() => {
                self.request.resume_token = batch.resume_token;
                None
            }
            Response::Events(batch) => {
                self.batch_token = batch.resume_token;
                self.events = batch.events.into();
                None
            }
            Response::Gap(gap) => {
                self.request.resume_token.clone_from(&gap.resume_token);
                Some(Notification::Gap(gap))
            }
            Response::Heartbeat(heartbeat) => {
                self.request.resume_token.clone_from(&heartbeat.resume_token);
                Some(Notification::Heartbeat(heartbeat))
            }
            Response::Notice(notice) => Some(Notification::Notice(notice)),
            Response::InterestUpdated(updated) => {
                self.request.resume_token = updated.resume_token;
                if let Some(watching) = &mut self.watching {
                    watching.updated(updated.update_id);
                }
                None
            }
            Response::InterestRejected(rejected) => {
                if let Some(watching) = &mut self.watching {
                    watching.rejected(rejected);
                }
                None
            }
            Response::Explanation(explanation) => {
                self.request.resume_token.clone_from(&explanation.resume_token);
                Some(Notification::Explanation(explanation))
            }
            Response::CurrentNodes(current) => Some(Notification::CurrentNodes(current)),
            Response::Draining(draining) => {
                self.requested_wait =
                    draining.reconnect_delay.and_then(|d| Duration::try_from(d).ok());
                self.named.clone_from(&draining.gateway);
                Some(Notification::Draining(draining))
            }
        }
    }

    /// Handles the end of a stream, or the refusal of one.
    fn lost(&mut self, status: Status) -> Result<Notification, Error> {
        (self.stream, self.requests) = (None, None);
        if let Some(watching) = &mut self.watching {
            watching.lost();
        }
        if is(&status, "RESUME_TOKEN_MALFORMED") {
            // The token is damaged: start again without one, and report that events may be missing.
            self.request.resume_token.clear();
            return Ok(Notification::Gap(Gap {
                reason: GapReason::UnknownEpoch.into(),
                kinds: self.request.filter.as_ref().map(|f| f.kinds.clone()).unwrap_or_default(),
                action: GapAction::Resync.into(),
                ..Default::default()
            }));
        }
        if let Some(kind) = self.client.final_kind(&status, self.changes) {
            self.ended = true;
            return Err(Error::new(kind, status));
        }
        let address = self.client.address(self.number);
        let reason = format!("{address}: {}", describe(&status));
        self.number = self.client.after(self.number, self.named.take().as_ref());
        let requested = self.requested_wait.take().max(retry_delay(&status));
        let wait = self.backoff.next(requested);
        self.wait = Some(wait);
        tracing::debug!(%reason, ?wait, "reconnecting the subscription");
        Ok(Notification::Reconnecting { reason, wait })
    }
}
