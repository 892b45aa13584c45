//! Publishing on a stream that is opened again wherever it ends.

mod buffer;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use prost::Message;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::AbortHandle,
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use uuid::Uuid;

use self::buffer::{Answer, Buffer};
use crate::{
    Client, Error, ErrorKind,
    backoff::{Backoff, retry_delay},
    error::{is, reason_of, status_of},
    mutex::Mutex,
};
use trunkline_proto::v1::{
    Event, OtherGateway, PublishOpen, PublishStreamRequest, PublishStreamResponse,
    publish_stream_request::Request, publish_stream_response::Response,
};

/// Messages that wait for the connection. What is published meanwhile makes the next one larger.
const MESSAGES: usize = 2;

/// The options of a [`Publisher`].
#[derive(Clone, Debug)]
pub struct PublisherOptions {
    max_events: usize,
    max_bytes: usize,
    max_age: Duration,
    max_doubt: Duration,
    deployment: Option<String>,
    when_full: WhenFull,
}

/// What [`Publisher::publish`] does while the buffer is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenFull {
    /// It waits until there is room.
    #[default]
    Wait,
    /// It fails with [`ErrorKind::Full`].
    Fail,
    /// While no gateway can be reached, the oldest event gives its place to the new one, and its
    /// acknowledgement fails. Otherwise it waits.
    DropOldest,
}

impl Default for PublisherOptions {
    fn default() -> PublisherOptions {
        PublisherOptions {
            max_events: 10_000,
            max_bytes: 16 << 20,
            max_age: Duration::from_secs(30),
            max_doubt: Duration::MAX,
            deployment: None,
            when_full: WhenFull::Wait,
        }
    }
}

impl PublisherOptions {
    /// The defaults.
    pub fn new() -> PublisherOptions {
        PublisherOptions::default()
    }

    /// Sets how many events may wait for their acknowledgement. Default: 10,000.
    #[must_use]
    pub fn max_events(mut self, events: usize) -> PublisherOptions {
        self.max_events = events.max(1);
        self
    }

    /// Sets how many bytes of them may wait. Default: 16 MiB.
    #[must_use]
    pub fn max_bytes(mut self, bytes: usize) -> PublisherOptions {
        self.max_bytes = bytes;
        self
    }

    /// Sets for how long an event is kept while no gateway accepts any. Default: 30 s.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> PublisherOptions {
        self.max_age = age;
        self
    }

    /// Sets for how long an event is kept that was sent and has no answer, while no gateway accepts
    /// any: it may be published or not, and ten minutes later gateways have forgotten what the
    /// publisher had published. Needed only where [`PublisherOptions::max_age`] is longer. Default:
    /// no limit of its own.
    #[must_use]
    pub fn max_doubt(mut self, doubt: Duration) -> PublisherOptions {
        self.max_doubt = doubt;
        self
    }

    /// Publishes to gateways of the deployment with this name only; with another one the publisher
    /// ends with [`ErrorKind::Invalid`]. Default: to any.
    #[must_use]
    pub fn deployment(mut self, name: impl Into<String>) -> PublisherOptions {
        self.deployment = Some(name.into());
        self
    }

    /// Sets what happens when the buffer is full. Default: [`WhenFull::Wait`].
    #[must_use]
    pub fn when_full(mut self, when_full: WhenFull) -> PublisherOptions {
        self.when_full = when_full;
        self
    }
}

/// Publishes events on one stream, the fast way for a node that publishes much: events that wait
/// leave together, and one acknowledgement stands for thousands.
///
/// Events with the same routing key (account, else kind) keep their order. Where the stream ends,
/// by a drain, a crash or a lost connection, it is opened again on any of the gateways, and what
/// was not acknowledged is sent again: each event is published once, however often that happens.
///
/// Clones share the stream. When the last one is dropped, it ends, and what was not acknowledged
/// may or may not be published: [`Publisher::close`] waits for it.
#[derive(Clone, Debug)]
pub struct Publisher {
    shared: Arc<Shared>,
    task: Arc<Task>,
}

#[derive(Debug)]
struct Shared {
    id: String,
    options: PublisherOptions,
    buffer: Mutex<Buffer>,
    /// There is something to send.
    filled: Notify,
    /// There is room, or nothing is left.
    emptied: Notify,
}

/// What a publisher did not get acknowledged, for the publisher of another process that goes on in
/// its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Unacknowledged {
    /// The identity by which gateways know what they have already.
    pub publisher_id: String,
    /// The sequence of the first event.
    pub first_sequence: u64,
    /// The events, in order, and how long each has waited.
    pub events: Vec<(Event, Duration)>,
}

/// Ends its task when it is dropped.
#[derive(Debug)]
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What waits for its acknowledgement in a [`Publisher`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Events.
    pub events: usize,
    /// Bytes of memory that they take, approximately.
    pub bytes: usize,
    /// Age of the oldest of them. None if nothing waits.
    pub age: Option<Duration>,
}

/// Resolves when an event is acknowledged: the bus has accepted it. Dropping it withdraws nothing.
#[derive(Debug)]
pub struct Acknowledgement(oneshot::Receiver<Answer>);

impl Future for Acknowledgement {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Pin::new(&mut self.0).poll(cx).map(|answer| {
            answer.unwrap_or_else(|_| {
                let status = Status::unavailable("the publisher was dropped");
                Err(Error::new(ErrorKind::OutcomeUnknown, status))
            })
        })
    }
}

impl Client {
    /// Opens a publisher: a stream of events to a gateway, opened again wherever it ends. It
    /// connects with the first event.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn publisher(&self, options: PublisherOptions) -> Publisher {
        let buffer = Buffer::new((options.max_events, options.max_bytes));
        self.publisher_with(Uuid::new_v4().to_string(), buffer, options, Takeovers::default())
    }

    /// Opens the publisher that goes on in place of another one, after its
    /// [`Publisher::hand_over`]: what that one had published and did not get acknowledged is
    /// published once, before anything new. Also returns the acknowledgements of those events.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn publisher_after(
        &self,
        before: Unacknowledged,
        options: PublisherOptions,
    ) -> (Publisher, Vec<Acknowledgement>) {
        let mut buffer = Buffer::new((options.max_events, options.max_bytes));
        let answers = buffer.restore(before.first_sequence, before.events, Instant::now());
        // The stream of that one may be on its way.
        let takeovers = Takeovers { delayed: 1 };
        let publisher = self.publisher_with(before.publisher_id, buffer, options, takeovers);
        (publisher, answers.into_iter().map(Acknowledgement).collect())
    }

    fn publisher_with(
        &self,
        id: String,
        buffer: Buffer,
        options: PublisherOptions,
        takeovers: Takeovers,
    ) -> Publisher {
        let shared = Arc::new(Shared {
            id,
            options,
            buffer: Mutex::new(buffer),
            filled: Notify::new(),
            emptied: Notify::new(),
        });
        let task = tokio::spawn(run(self.clone(), shared.clone(), takeovers));
        Publisher { shared, task: Arc::new(Task(task.abort_handle())) }
    }
}

impl Publisher {
    /// Takes an event, and returns a future of its acknowledgement. Waits while the buffer is full,
    /// if [`PublisherOptions::when_full`] says so.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Full`]; and after an error that no attempt would cure, such as missing
    /// permission, and [`ErrorKind::TakenOver`], that error. The
    /// acknowledgement fails with [`ErrorKind::Invalid`] for an event
    /// that the gateway rejects, and with [`ErrorKind::Unavailable`] or
    /// [`ErrorKind::OutcomeUnknown`] for one that is given up.
    pub async fn publish(&self, event: impl Into<Event>) -> Result<Acknowledgement, Error> {
        let event = event.into();
        let bytes = event.encoded_len();
        loop {
            let emptied = self.shared.emptied.notified();
            {
                let mut buffer = self.shared.buffer.lock();
                if let Some(error) = &buffer.failed {
                    return Err(error.clone());
                }
                let when_full = self.shared.options.when_full;
                while !buffer.has_room(bytes)
                    && when_full == WhenFull::DropOldest
                    && buffer.drop_oldest()
                {}
                if buffer.has_room(bytes) {
                    let answer = buffer.push(event, Instant::now());
                    drop(buffer);
                    self.shared.filled.notify_one();
                    return Ok(Acknowledgement(answer));
                }
                if when_full == WhenFull::Fail {
                    let status = Status::resource_exhausted("the publisher's buffer is full");
                    return Err(Error::new(ErrorKind::Full, status));
                }
            }
            emptied.await;
        }
    }

    /// The error that ended the publisher, if one has: every event that waits, and every later one,
    /// fails with it.
    pub fn failure(&self) -> Option<Error> {
        self.shared.buffer.lock().failed.clone()
    }

    /// What waits for its acknowledgement.
    pub fn waiting(&self) -> Waiting {
        self.shared.buffer.lock().waiting(Instant::now())
    }

    /// Waits until everything that was published is acknowledged, or given up.
    pub async fn flush(&self) {
        loop {
            let emptied = self.shared.emptied.notified();
            if self.shared.buffer.lock().is_empty() {
                return;
            }
            emptied.await;
        }
    }

    /// Ends the stream at once, and returns what was not acknowledged, for
    /// [`Client::publisher_after`] in another process. Acknowledgements that are missing fail with
    /// [`ErrorKind::OutcomeUnknown`], and so does every later [`Publisher::publish`].
    pub fn hand_over(&self) -> Unacknowledged {
        self.task.0.abort();
        let mut buffer = self.shared.buffer.lock();
        let (first_sequence, events) = buffer.contents(Instant::now());
        let status = Status::unavailable("another process goes on in place of this publisher");
        buffer.fail(&Error::new(ErrorKind::OutcomeUnknown, status));
        drop(buffer);
        self.shared.emptied.notify_waiters();
        Unacknowledged { publisher_id: self.shared.id.clone(), first_sequence, events }
    }

    /// Waits as [`Publisher::flush`] does, then ends the stream, if there is no other clone.
    pub async fn close(self) {
        self.flush().await;
    }
}

/// Opens streams, one after the other.
async fn run(client: Client, shared: Arc<Shared>, mut takeovers: Takeovers) {
    let mut backoff = Backoff::new(client.reconnect_wait);
    let mut number = client.preferred();
    loop {
        shared.is_filled().await;
        // What another process had sent may be in doubt for longer.
        shared.expire(Duration::MAX);
        let mut stream = Stream {
            client: &client,
            shared: &shared,
            number,
            changes: 0,
            backoff: &mut backoff,
            named: None,
        };
        let status = stream.run(&shared.id).await;
        let changes = stream.changes;
        let next = client.after(number, stream.named.as_ref());
        let wait = {
            let mut buffer = shared.buffer.lock();
            buffer.lost();
            let taken_over = takeovers.is_final(&status).then_some(ErrorKind::TakenOver);
            if let Some(kind) = taken_over.or_else(|| client.final_kind(&status, changes)) {
                buffer.fail(&Error::new(kind, status));
                drop(buffer);
                shared.emptied.notify_waiters();
                return;
            }
            backoff.next(retry_delay(&status))
        };
        tracing::debug!(gateway = client.address(number), %status, ?wait, "publishing elsewhere");
        number = next;
        let until = Instant::now() + wait;
        while Instant::now() < until {
            shared.expire(shared.options.max_age);
            sleep_until(until.min(Instant::now() + EXPIRY)).await;
        }
        shared.expire(shared.options.max_age);
    }
}

/// Tells a takeover by somebody else from one by an earlier stream of this publisher, whose request
/// was delayed on its way to its gateway and came after a later one.
#[derive(Clone, Debug, Default)]
struct Takeovers {
    /// Streams of which no gateway has said that they ended.
    delayed: u32,
}

impl Takeovers {
    /// True if a stream ended with this status because somebody else publishes under this id.
    fn is_final(&mut self, status: &Status) -> bool {
        if status.code() == Code::AlreadyExists {
            return true;
        }
        if !is(status, "TAKEN_OVER") {
            self.delayed += u32::from(reason_of(status).is_none());
            return false;
        }
        let is_own = self.delayed > 0;
        self.delayed -= u32::from(is_own);
        !is_own
    }
}

/// The interval at which old events are looked for.
const EXPIRY: Duration = Duration::from_millis(100);

impl Shared {
    async fn is_filled(&self) {
        loop {
            let filled = self.filled.notified();
            if !self.buffer.lock().is_empty() {
                return;
            }
            filled.await;
        }
    }

    fn expire(&self, max_age: Duration) {
        self.buffer.lock().expire(Instant::now(), max_age, self.options.max_doubt);
        self.emptied.notify_waiters();
    }
}

/// One stream.
struct Stream<'a> {
    client: &'a Client,
    shared: &'a Shared,
    number: usize,
    /// The changes of the credentials until it was opened: see `Client::final_kind`.
    changes: u64,
    backoff: &'a mut Backoff,
    /// The gateway that it named to go on at.
    named: Option<OtherGateway>,
}

impl Stream<'_> {
    /// Runs until the stream ends; returns the reason.
    async fn run(&mut self, publisher_id: &str) -> Status {
        match self.publish(publisher_id).await {
            Ok(()) => Status::unavailable("the gateway ended the stream"),
            Err(status) => status,
        }
    }

    async fn publish(&mut self, publisher_id: &str) -> Result<(), Status> {
        let limit = self.client.attempt_timeout;
        let late = |_| Status::unavailable("no answer in time");
        let (requests, receiver) = mpsc::channel(MESSAGES);
        let open = Request::Open(PublishOpen {
            node_id: self.client.node_id.clone(),
            publisher_id: publisher_id.to_owned(),
            positions: false,
        });
        let gone = |_| Status::unavailable("the gateway takes nothing any more");
        requests.send(message(open)).await.map_err(gone)?;
        let (mut gateway, changes) = self.client.gateway(self.number);
        self.changes = changes;
        let opening = gateway.publish_stream(ReceiverStream::new(receiver));
        let mut responses = timeout(limit, opening).await.map_err(late)??.into_inner();
        let first = timeout(limit, responses.message()).await.map_err(late)??;
        match first.and_then(|first| first.response) {
            Some(Response::Opened(opened)) => {
                self.check_deployment(&opened.deployment)?;
                self.shared.buffer.lock().opened(&opened)?;
                self.client.works_as(self.number, &opened.gateway_id);
            }
            other => return Err(Status::unavailable(format!("not opened: {other:?}"))),
        }
        let mut draining = false;
        let mut answered_at = Instant::now();
        loop {
            let (has_next, waits) = {
                let buffer = self.shared.buffer.lock();
                (buffer.has_next() && !draining, buffer.is_unanswered())
            };
            if !waits {
                answered_at = Instant::now();
            }
            tokio::select! {
                response = responses.message() => {
                    let Some(response) = response? else { return Ok(()) };
                    answered_at = Instant::now();
                    draining |= self.answered(response);
                }
                permit = requests.reserve(), if has_next => {
                    let next = self.shared.buffer.lock().next_message(Instant::now());
                    if let (Ok(permit), Some(next)) = (permit, next) {
                        permit.send(message(Request::Events(next)));
                    }
                }
                () = self.shared.filled.notified(), if !has_next => {}
                () = sleep_until(answered_at + limit), if waits => {
                    return Err(Status::unavailable(format!("nothing received for {limit:?}")));
                }
            }
        }
    }

    fn check_deployment(&self, name: &str) -> Result<(), Status> {
        let expected = self.shared.options.deployment.as_deref();
        if expected.is_none_or(|expected| expected == name) {
            return Ok(());
        }
        let (address, expected) = (self.client.address(self.number), expected.unwrap_or_default());
        let why = format!("{address} is of the deployment {name:?}, not of {expected:?}");
        Err(Status::failed_precondition(why))
    }

    /// Takes a response. True if the gateway drains.
    fn answered(&mut self, response: PublishStreamResponse) -> bool {
        match response.response {
            Some(Response::Accepted(accepted)) => {
                // The stream works: the next loss starts a new series of attempts.
                self.backoff.reset();
                self.shared.buffer.lock().accepted(accepted.sequence);
                self.shared.emptied.notify_waiters();
            }
            Some(Response::Rejected(rejected)) => {
                let error = status_of(rejected.status.unwrap_or_default());
                self.shared.buffer.lock().rejected(rejected.sequence, error);
            }
            Some(Response::Draining(draining)) => {
                self.named = draining.gateway;
                return true;
            }
            // Nothing is waited for here.
            Some(Response::Opened(_) | Response::Delivery(_)) | None => {}
        }
        false
    }
}

fn message(request: Request) -> PublishStreamRequest {
    PublishStreamRequest { request: Some(request) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::{ErrorDetails, StatusExt};

    use super::*;

    #[test]
    fn a_takeover_is_final_unless_a_stream_of_its_own_may_have_come_late() {
        let with_reason = |code, reason| {
            let details = ErrorDetails::with_error_info(reason, "trunkline", HashMap::new());
            Status::with_error_details(code, "", details)
        };
        let taken_over = with_reason(Code::Aborted, "TAKEN_OVER");
        let ended = with_reason(Code::Unavailable, "DRAINING");
        let lost = Status::unavailable("no answer in time");
        let mut takeovers = Takeovers::default();
        // Gateways that ended a stream do not open it later.
        assert!(!takeovers.is_final(&ended));
        assert!(takeovers.clone().is_final(&taken_over));
        for _ in 0..2 {
            assert!(!takeovers.is_final(&lost));
        }
        for is_final in [false, false, true] {
            assert_eq!(takeovers.is_final(&taken_over), is_final);
        }
        assert!(!takeovers.is_final(&lost));
        assert!(takeovers.is_final(&Status::already_exists("accepted what was never sent")));
    }
}
