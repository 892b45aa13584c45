//! Subscribing: a stream that reconnects and resumes by itself.

use std::{collections::VecDeque, pin::Pin, time::Duration};

use futures_util::Stream;
use tonic::{Code, Status, Streaming};

use super::{Client, backoff::Backoff};
use crate::proto::v1::{
    Event, Filter, Gap, GapAction, GapReason, Overflow, Start, SubscribeRequest, SubscribeResponse,
    Subscribed, subscribe_response::Response,
};

/// Heartbeats that may be missed before a connection counts as dead.
const MISSED_HEARTBEATS: u32 = 3;

/// The heartbeat interval that is asked for.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// What a node asks for. The default is everything, from now on.
#[derive(Clone, Debug, Default)]
pub struct SubscribeOptions {
    /// Which events.
    pub filter: Filter,
    /// The node's own events too.
    pub include_own_events: bool,
    /// Continue after this token, which [`Subscription::resume_token`] gave.
    pub resume_token: Vec<u8>,
    /// Where to begin without a token.
    pub start: Start,
    /// What to do on falling too far behind.
    pub overflow: Overflow,
}

/// What a subscription brings.
#[derive(Clone, Debug, PartialEq)]
pub enum Notification {
    /// A stream is open: the first one, or one that continues.
    Subscribed(Subscribed),
    /// An event.
    Event(Box<Event>),
    /// Events that will not come: load again what they concern.
    Gap(Gap),
    /// The stream was lost, and is opened again after `wait`.
    Reconnecting {
        /// Why.
        reason: String,
        /// After how long.
        wait: Duration,
    },
}

/// The gateway refused the subscription; trying again does not help.
#[derive(Debug, thiserror::Error)]
#[error("refused: {}", .0.message())]
pub struct SubscribeError(pub Status);

/// A stream of notifications, which ends only with an error.
pub struct Subscription {
    stream: Pin<Box<dyn Stream<Item = (Result<Notification, SubscribeError>, Vec<u8>)> + Send>>,
    token: Vec<u8>,
}

/// What is kept between two notifications.
struct State {
    client: Client,
    request: SubscribeRequest,
    stream: Option<Streaming<SubscribeResponse>>,
    /// Events that were received and not taken yet, and the token after the last of them.
    events: VecDeque<Event>,
    batch_token: Vec<u8>,
    backoff: Backoff,
    attempt: usize,
    /// A wait that was announced.
    wait: Option<Duration>,
    heartbeat: Duration,
    /// How long a draining gateway asked to wait.
    asked_wait: Option<Duration>,
    ended: bool,
}

impl Client {
    /// Opens a subscription. It connects when it is first polled, to the gateways in turn, and again whenever it has to, after
    /// a wait with full jitter of at most 2 s.
    pub fn subscribe(&self, options: SubscribeOptions) -> Subscription {
        let token = options.resume_token.clone();
        let request = SubscribeRequest {
            node_id: self.node_id.clone(),
            incarnation: self.incarnation.clone(),
            roles: self.roles.clone(),
            filter: Some(options.filter),
            include_own_events: options.include_own_events,
            resume_token: options.resume_token,
            start: options.start.into(),
            heartbeat_interval: prost_types::Duration::try_from(HEARTBEAT).ok(),
            overflow: options.overflow.into(),
            ..Default::default()
        };
        let state = State {
            client: self.clone(),
            request,
            stream: None,
            events: VecDeque::new(),
            batch_token: vec![],
            backoff: Backoff::new(),
            attempt: 0,
            wait: None,
            heartbeat: HEARTBEAT,
            asked_wait: None,
            ended: false,
        };
        let stream = futures_util::stream::unfold(state, |mut state| async move {
            let item = state.next().await?;
            let token = state.request.resume_token.clone();
            Some(((item, token), state))
        });
        Subscription { stream: Box::pin(stream), token }
    }
}

impl Subscription {
    /// Stands for everything that was taken from the stream, whole batches: give it to the next process's subscription.
    pub fn resume_token(&self) -> &[u8] {
        &self.token
    }
}

impl Stream for Subscription {
    type Item = Result<Notification, SubscribeError>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        let polled = self.stream.as_mut().poll_next(cx);
        polled.map(|next| {
            next.map(|(item, token)| {
                self.token = token;
                item
            })
        })
    }
}

impl State {
    async fn next(&mut self) -> Option<Result<Notification, SubscribeError>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                if self.events.is_empty() {
                    // The token stands for the whole batch, so it moves with the batch's last event.
                    self.request.resume_token = std::mem::take(&mut self.batch_token);
                }
                return Some(Ok(Notification::Event(Box::new(event))));
            }
            if self.ended {
                return None;
            }
            if let Some(wait) = self.wait.take() {
                tokio::time::sleep(wait).await;
            }
            let result = match &mut self.stream {
                None => self.open().await,
                Some(stream) => {
                    let limit = self.heartbeat * MISSED_HEARTBEATS;
                    match tokio::time::timeout(limit, stream.message()).await {
                        Ok(Ok(Some(response))) => Ok(self.take(response)),
                        Ok(Ok(None)) => Err(Status::unavailable("the stream ended")),
                        Ok(Err(status)) => Err(status),
                        Err(_) => Err(Status::unavailable("no heartbeat came")),
                    }
                }
            };
            match result {
                Ok(Some(notification)) => return Some(Ok(notification)),
                Ok(None) => {}
                Err(status) => return Some(self.lost(status)),
            }
        }
    }

    async fn open(&mut self) -> Result<Option<Notification>, Status> {
        let mut gateway = self.client.gateway(self.attempt);
        let opening = gateway.subscribe(self.request.clone());
        let limit = self.heartbeat * MISSED_HEARTBEATS;
        let response = tokio::time::timeout(limit, opening)
            .await
            .map_err(|_| Status::unavailable("no answer in time"))??;
        self.stream = Some(response.into_inner());
        Ok(None)
    }

    fn take(&mut self, response: SubscribeResponse) -> Option<Notification> {
        match response.response? {
            Response::Subscribed(subscribed) => {
                self.backoff = Backoff::new();
                self.request.resume_token.clone_from(&subscribed.resume_token);
                let interval =
                    subscribed.heartbeat_interval.and_then(|i| Duration::try_from(i).ok());
                self.heartbeat = interval.unwrap_or(HEARTBEAT);
                Some(Notification::Subscribed(subscribed))
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
                self.request.resume_token = heartbeat.resume_token;
                None
            }
            Response::Draining(draining) => {
                self.asked_wait = draining.reconnect_delay.and_then(|d| Duration::try_from(d).ok());
                None
            }
        }
    }

    fn lost(&mut self, status: Status) -> Result<Notification, SubscribeError> {
        self.stream = None;
        let malformed = status.code() == Code::InvalidArgument
            && !self.request.resume_token.is_empty()
            && status.message().starts_with("resume_token");
        if malformed {
            // It is another deployment's, or damaged: begin anew, and say that events may be missing.
            self.request.resume_token.clear();
            return Ok(Notification::Gap(Gap {
                reason: GapReason::UnknownEpoch.into(),
                action: GapAction::Resync.into(),
                ..Default::default()
            }));
        }
        match status.code() {
            Code::InvalidArgument
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented => {
                self.ended = true;
                return Err(SubscribeError(status));
            }
            _ => {}
        }
        self.attempt += 1;
        let wait = self.backoff.next(Some(&status));
        let wait = self.asked_wait.take().map_or(wait, |asked| wait.max(asked));
        self.wait = Some(wait);
        Ok(Notification::Reconnecting { reason: status.message().to_owned(), wait })
    }
}
