//! Subscribing: a stream that reconnects and resumes by itself.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, StreamExt};

use super::{Client, Error, session::Session};
use trunkline_proto::v1::{
    Draining, Event, EventKind, Filter, Gap, Heartbeat, Notice, Overflow, Start, SubscribeRequest,
    Subscribed,
};

/// The heartbeat interval that is asked for.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// What a node asks for. By default everything that other nodes publish, from now on.
#[derive(Clone, Debug, Default)]
pub struct SubscribeOptions {
    filter: Filter,
    include_own_events: bool,
    resume_token: Vec<u8>,
    start: Start,
    overflow: Overflow,
    heartbeat_interval: Option<Duration>,
}

/// What a subscription brings.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Notification {
    /// A stream is open: the first one, or one that continues. Every event that is acknowledged from now on comes, or is told
    /// as a gap. Who loads its state after the first of these, and not before, misses nothing.
    Subscribed(Subscribed),
    /// An event.
    Event(Box<Event>),
    /// Events that will not come: load again what they may have concerned. Everything before it came, everything after it
    /// follows.
    Gap(Gap),
    /// Nothing else came for one heartbeat interval. A good moment to store the resume token.
    Heartbeat(Heartbeat),
    /// The gateway is going away. The subscription goes to another one by itself, after the wait that the gateway asked for.
    Draining(Draining),
    /// Something that whoever runs the node should know, such as another live process with the same node id. Log it.
    Notice(Notice),
    /// The stream was lost, and is opened again after `wait`. Nothing is lost by that: it resumes.
    Reconnecting {
        /// Why, for people.
        reason: String,
        /// After how long.
        wait: Duration,
    },
}

/// A stream of notifications, which ends only after an error that trying again does not help. Dropping it closes it: the
/// gateway forgets it at once.
///
/// It takes from the gateway what is asked of it and no more: a node that is slow is told a gap when history no longer holds
/// what it has not read, and its memory does not grow.
pub struct Subscription {
    stream: Pin<Box<dyn Stream<Item = (Result<Notification, Error>, Vec<u8>)> + Send>>,
    token: Vec<u8>,
}

impl SubscribeOptions {
    /// Everything that other nodes publish, from now on.
    pub fn new() -> SubscribeOptions {
        SubscribeOptions::default()
    }

    /// Only this kind, and others that are named. Default: all kinds, those that are newer than this program too.
    #[must_use]
    pub fn kind(mut self, kind: EventKind) -> SubscribeOptions {
        self.filter.kinds.push(kind.into());
        self
    }

    /// Only this account, and others that are named; kinds that concern no account come all the same. Default: all.
    #[must_use]
    pub fn account(mut self, account_id: impl Into<String>) -> SubscribeOptions {
        self.filter.accounts.push(account_id.into());
        self
    }

    /// Only custom events of this type, whole (`com.example.paid`) or by prefix (`com.example.*`), and others that are named;
    /// other kinds come all the same. Default: all.
    #[must_use]
    pub fn custom_type(mut self, pattern: impl Into<String>) -> SubscribeOptions {
        self.filter.custom_types.push(pattern.into());
        self
    }

    /// This filter, in place of what `kind`, `account` and `custom_type` have said.
    #[must_use]
    pub fn filter(mut self, filter: Filter) -> SubscribeOptions {
        self.filter = filter;
        self
    }

    /// The node's own events too. Default: they are left out.
    #[must_use]
    pub fn include_own_events(mut self) -> SubscribeOptions {
        self.include_own_events = true;
        self
    }

    /// Continue where an earlier subscription stood, which may have been another process's, on another gateway: what
    /// [`Subscription::resume_token`] gave there. Empty is none. One that is damaged, or another deployment's, is told as a gap.
    #[must_use]
    pub fn resume_token(mut self, token: impl Into<Vec<u8>>) -> SubscribeOptions {
        self.resume_token = token.into();
        self
    }

    /// Where to begin without a token. Default: with the next event.
    #[must_use]
    pub fn start(mut self, start: Start) -> SubscribeOptions {
        self.start = start;
        self
    }

    /// What happens if the node falls further behind than history reaches. Default: it is told the gap and goes on.
    #[must_use]
    pub fn overflow(mut self, overflow: Overflow) -> SubscribeOptions {
        self.overflow = overflow;
        self
    }

    /// How often a heartbeat comes when nothing else does, 1 s to 1 h. A connection on which nothing comes for three times as
    /// long is given up. Default: 10 s.
    #[must_use]
    pub fn heartbeat_interval(mut self, interval: Duration) -> SubscribeOptions {
        self.heartbeat_interval = Some(interval);
        self
    }
}

impl Client {
    /// Opens a subscription. It connects when it is first polled, and again whenever it has to, to the gateways in turn, after
    /// a wait with full jitter of at most 2 s (or more, where a gateway asks for more).
    pub fn subscribe(&self, options: SubscribeOptions) -> Subscription {
        let token = options.resume_token.clone();
        let heartbeat = options.heartbeat_interval.unwrap_or(HEARTBEAT);
        let request = SubscribeRequest {
            node_id: self.node_id.clone(),
            incarnation: self.incarnation.clone(),
            client_version: self.version.clone(),
            roles: self.roles.clone(),
            filter: Some(options.filter),
            include_own_events: options.include_own_events,
            resume_token: options.resume_token,
            start: options.start.into(),
            heartbeat_interval: prost_types::Duration::try_from(heartbeat).ok(),
            overflow: options.overflow.into(),
            ..Default::default()
        };
        let session = Session::new(self.clone(), request, heartbeat);
        let stream = futures_util::stream::unfold(session, |mut session| async move {
            let item = session.next().await?;
            let token = session.resume_token().to_vec();
            Some(((item, token), session))
        });
        // Who polls once more after the end gets the end again.
        Subscription { stream: Box::pin(stream.fuse()), token }
    }
}

impl Subscription {
    /// The next notification; none after an error. May be dropped and called again: nothing is lost.
    pub async fn next(&mut self) -> Option<Result<Notification, Error>> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// Stands for everything that was taken from the stream, in whole batches. Store it after what was taken is dealt with,
    /// and give it to the next process's subscription: it continues there, with the rest of the last batch again if that was
    /// not taken whole.
    pub fn resume_token(&self) -> &[u8] {
        &self.token
    }
}

impl Stream for Subscription {
    type Item = Result<Notification, Error>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Notification, Error>>> {
        self.stream.as_mut().poll_next(cx).map(|next| {
            next.map(|(item, token)| {
                self.token = token;
                item
            })
        })
    }
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").finish_non_exhaustive()
    }
}
