//! Subscribing: a stream that reconnects and resumes by itself.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use tokio::sync::watch;

use super::{
    Client, Error, Interest,
    interest::{Progress, Watching},
    session::Session,
};
use trunkline_proto::v1::{
    AgentReport, CurrentNodes, Draining, Event, EventKind, Explanation, Filter, Gap, Heartbeat,
    Notice, Overflow, Start, SubscribeRequest, Subscribed,
};

/// The default heartbeat interval.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// The options of a subscription. Default: all events of other nodes, from now on.
#[derive(Clone, Debug, Default)]
#[allow(clippy::struct_excessive_bools)] // options
pub struct SubscribeOptions {
    filter: Filter,
    include_own_events: bool,
    resume_token: Vec<u8>,
    start: Start,
    overflow: Overflow,
    heartbeat_interval: Option<Duration>,
    max_events: u64,
    explain: bool,
    current_nodes: bool,
    custom_types_named: bool,
}

/// An item of a subscription.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Notification {
    /// A stream is open: the first one, or one that resumes. Every event that is acknowledged from
    /// now on is delivered or reported as a gap. A node that loads its state after the first of
    /// these, and not before, misses nothing.
    Subscribed(Subscribed),
    /// An event.
    Event(Box<Event>),
    /// Events that will not be delivered: reload the state that they may have changed. All events
    /// before the gap were delivered, all events after it follow.
    Gap(Gap),
    /// The list of the nodes that are there is complete, if it was asked for: see
    /// [`SubscribeOptions::current_nodes`].
    CurrentNodes(CurrentNodes),
    /// The filter decisions for events, if they were asked for.
    Explanation(Explanation),
    /// Nothing else was received for one heartbeat interval. A good moment to store the resume
    /// token.
    Heartbeat(Heartbeat),
    /// The gateway is draining. The subscription moves to another one by itself, after the wait
    /// that the gateway asked for.
    Draining(Draining),
    /// A notice for the operator of the node, such as another live process with the same node id.
    /// Log it.
    Notice(Notice),
    /// The stream was lost, and is opened again after `wait`. No event is lost: the stream resumes.
    Reconnecting {
        /// The reason, as text.
        reason: String,
        /// The time until the next attempt.
        wait: Duration,
    },
}

/// A stream of notifications. It ends only after an error that a retry does not cure, or after the
/// [number of events](SubscribeOptions::max_events) that was asked for. Dropping it
/// closes it at once, also at the gateway.
///
/// It reads from the gateway only as it is polled: the memory of a slow node does not grow, and it
/// gets a gap when history no longer has the events that it has not read.
pub struct Subscription {
    stream: Pin<Box<dyn Stream<Item = (Result<Notification, Error>, Progress)> + Send>>,
    progress: Progress,
}

impl SubscribeOptions {
    /// All events of other nodes, from now on.
    pub fn new() -> SubscribeOptions {
        SubscribeOptions::default()
    }

    /// Adds a kind. Default: all kinds, including those that are newer than this program, without
    /// `node_joined` and `node_left`.
    #[must_use]
    pub fn kind(mut self, kind: EventKind) -> SubscribeOptions {
        self.filter.kinds.push(kind.into());
        self
    }

    /// Adds an account. Kinds that concern no account are delivered regardless. Default: all
    /// accounts.
    #[must_use]
    pub fn account(mut self, account_id: impl Into<String>) -> SubscribeOptions {
        self.filter.accounts.push(account_id.into());
        self
    }

    /// Adds a type of custom events, whole (`com.example.paid`) or as a prefix (`com.example.*`).
    /// Other kinds are delivered regardless. Default: all types.
    #[must_use]
    pub fn custom_type(mut self, pattern: impl Into<String>) -> SubscribeOptions {
        self.filter.custom_types.push(pattern.into());
        self
    }

    /// For [`Client::watch`]: custom types are named one by one, and while there are none, no
    /// custom event is delivered. Default: with no [`custom_type`](SubscribeOptions::custom_type)
    /// all are, and none can be added or removed.
    #[must_use]
    pub fn custom_types_named(mut self) -> SubscribeOptions {
        self.custom_types_named = true;
        self
    }

    /// Replaces the filter that `kind`, `account` and `custom_type` built.
    #[must_use]
    pub fn filter(mut self, filter: Filter) -> SubscribeOptions {
        self.filter = filter;
        self
    }

    /// Includes the node's own events. Default: excluded.
    #[must_use]
    pub fn include_own_events(mut self) -> SubscribeOptions {
        self.include_own_events = true;
        self
    }

    /// Resumes an earlier subscription, also one of another process or gateway, from its
    /// [`Subscription::resume_token`]. Empty: none. A token that is damaged, or of another
    /// deployment, gives a gap.
    #[must_use]
    pub fn resume_token(mut self, token: impl Into<Vec<u8>>) -> SubscribeOptions {
        self.resume_token = token.into();
        self
    }

    /// Sets where to begin without a token. Default: with the next event.
    #[must_use]
    pub fn start(mut self, start: Start) -> SubscribeOptions {
        self.start = start;
        self
    }

    /// Sets what happens if the node falls further behind than history reaches. Default: it gets a
    /// gap and continues.
    #[must_use]
    pub fn overflow(mut self, overflow: Overflow) -> SubscribeOptions {
        self.overflow = overflow;
        self
    }

    /// Sets the interval of heartbeats on an idle stream, 1 s to 1 h. A connection on which nothing
    /// is received for twice as long is given up. Default: 10 s.
    #[must_use]
    pub fn heartbeat_interval(mut self, interval: Duration) -> SubscribeOptions {
        self.heartbeat_interval = Some(interval);
        self
    }

    /// Ends the subscription after this many events, over all its streams. Default: 0, never.
    #[must_use]
    pub fn max_events(mut self, events: u64) -> SubscribeOptions {
        self.max_events = events;
        self
    }

    /// Asks for the filter decision of each event, with its reasons. Default: not asked for.
    #[must_use]
    pub fn explain(mut self) -> SubscribeOptions {
        self.explain = true;
        self
    }

    /// Begins with the list of the nodes that are there, on each stream: `node_joined` events with
    /// `current`, then [`Notification::CurrentNodes`]. Whoever keeps a map of them by
    /// `subscription_id` begins a new one with each [`Notification::Subscribed`], and takes it for
    /// the whole once the list is complete. After a [`Notification::Gap`], open the subscription
    /// anew. The list is not counted by [`max_events`](SubscribeOptions::max_events). Needs
    /// [`EventKind::NodeJoined`] among the kinds. Default: not asked for.
    #[must_use]
    pub fn current_nodes(mut self) -> SubscribeOptions {
        self.current_nodes = true;
        self
    }
}

impl Client {
    /// Opens a subscription. It connects when it is first polled, and reconnects after a loss, to
    /// the gateways in turn, after a wait with full jitter of at most 2 s (or longer, if a gateway
    /// asks for it).
    pub fn subscribe(&self, options: SubscribeOptions) -> Subscription {
        self.subscription(options, None)
    }

    /// Opens a subscription whose accounts, kinds and custom types change while it lives: those of
    /// the options are the first ones, and with no account, no event that concerns one is
    /// delivered. It reconnects as [`Client::subscribe`] does, with the interest of that time.
    pub fn watch(&self, mut options: SubscribeOptions) -> (Subscription, Interest) {
        let (interest, changes) = Interest::new();
        let filter = std::mem::take(&mut options.filter);
        let watching = Watching::new(filter, options.custom_types_named, changes);
        (self.subscription(options, Some(watching)), interest)
    }

    /// Opens a subscription of an agent, a node that stands in for programs that do not know
    /// Trunkline. It is as [`Client::subscribe`], and tells the gateway what the agent reports of
    /// itself, on each stream and whenever that changes; operators see it in the list of nodes.
    pub fn subscribe_as_agent(
        &self,
        mut options: SubscribeOptions,
        reports: watch::Receiver<AgentReport>,
    ) -> Subscription {
        let filter = std::mem::take(&mut options.filter);
        self.subscription(options, Some(Watching::reporting(filter, reports)))
    }

    fn subscription(&self, options: SubscribeOptions, watching: Option<Watching>) -> Subscription {
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
            max_events: options.max_events,
            explain: options.explain,
            current_nodes: options.current_nodes,
            ..Default::default()
        };
        let session = Session::new(self.clone(), request, heartbeat, watching);
        let stream = futures_util::stream::unfold(session, |mut session| async move {
            let item = session.next().await?;
            let progress = session.progress();
            Some(((item, progress), session))
        });
        // Polling again after the end returns the end again.
        let progress = Progress { stream: 0, token, whole: true };
        Subscription { stream: Box::pin(stream.fuse()), progress }
    }
}

impl Subscription {
    /// The next notification; none after an error. Cancel safe: nothing is lost if it is dropped.
    pub async fn next(&mut self) -> Option<Result<Notification, Error>> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// Covers everything that was taken from the stream, in whole batches. Store it after those
    /// events are processed, and pass it to the subscription of the next process, which continues
    /// there. It repeats the events of the last batch if not all of them were taken.
    pub fn resume_token(&self) -> &[u8] {
        &self.progress.token
    }

    /// True between two batches: then [`Subscription::resume_token`] covers everything that was
    /// taken, and a subscription that goes on there repeats nothing.
    pub fn is_between_batches(&self) -> bool {
        self.progress.whole
    }

    /// The same, for [`Interest::acknowledge`].
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }
}

impl Stream for Subscription {
    type Item = Result<Notification, Error>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Notification, Error>>> {
        self.stream.as_mut().poll_next(cx).map(|next| {
            next.map(|(item, progress)| {
                self.progress = progress;
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
