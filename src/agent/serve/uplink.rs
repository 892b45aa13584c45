//! Events of programs on their way to the gateways.
//!
//! The buffer is that of the client's publisher, which sends again what was not acknowledged. What
//! it has to give up, because it is full or too old, is counted here, and the other nodes are
//! healed.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use futures_util::FutureExt;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, mpsc};
use trunkline_client::{
    Acknowledgement, Client, Error, ErrorKind, Publisher, PublisherOptions, Unacknowledged,
    Waiting, WhenFull,
    v1::{Event, event::Kind},
};

use super::{Counters, Options, RETRY, Shared, Snapshot, count};
use crate::agent::formats::{Format, Undecodable};

#[derive(Debug)]
pub(super) struct Uplink {
    options: PublisherOptions,
    publisher: Mutex<Publisher>,
    acknowledgements: mpsc::Sender<Acknowledgement>,
    /// Until the task of the agent takes them.
    unread: Mutex<Option<mpsc::Receiver<Acknowledgement>>>,
    /// How often the other nodes were to be healed for another reason than lost events.
    other_reasons: AtomicU64,
    /// How many of both reasons were repaired.
    repaired: AtomicU64,
    /// There is a new one.
    due: Notify,
}

/// Events that stay together.
pub(super) struct Batch<'a> {
    uplink: &'a Uplink,
    publisher: MutexGuard<'a, Publisher>,
}

impl Uplink {
    /// The uplink of an agent, which goes on where the one before ended.
    pub(super) fn new(client: &Client, options: &Options, before: &Snapshot) -> Uplink {
        // As many as may wait, and those whose outcome was not read yet.
        let (acknowledgements, unread) = mpsc::channel(2 * options.buffer_events.max(1));
        let options = PublisherOptions::new()
            .max_events(options.buffer_events)
            .max_bytes(options.buffer_bytes)
            .max_age(options.buffer_age)
            // A program is not held up.
            .when_full(WhenFull::Fail);
        let (publisher, restored) = match before.unacknowledged() {
            Some(before) => client.publisher_after(before, options.clone()),
            None => (client.publisher(options.clone()), Vec::new()),
        };
        let uplink = Uplink {
            publisher: Mutex::new(publisher),
            options,
            acknowledgements,
            unread: Mutex::new(Some(unread)),
            other_reasons: AtomicU64::new(before.repair.into()),
            repaired: AtomicU64::new(0),
            due: Notify::new(),
        };
        for acknowledgement in restored {
            if uplink.acknowledgements.try_send(acknowledgement).is_err() {
                // The one before had a larger buffer. The event is sent, and nobody is told.
                break;
            }
        }
        if before.repair {
            uplink.due.notify_one();
        }
        uplink
    }

    /// Begins a batch. No other is begun until it is dropped.
    pub(super) fn begin(&self) -> Batch<'_> {
        Batch { uplink: self, publisher: self.publisher.lock() }
    }

    /// What waits for a gateway.
    pub(super) fn waiting(&self) -> Waiting {
        self.publisher.lock().waiting()
    }

    /// Waits until all events are accepted, or given up.
    pub(super) async fn flush(&self) {
        let publisher = self.publisher.lock().clone();
        publisher.flush().await;
    }

    /// Ends the publisher; what it did not get acknowledged.
    pub(super) fn hand_over(&self) -> Unacknowledged {
        self.publisher.lock().hand_over()
    }

    /// Heals the other nodes, which may have missed something.
    pub(super) fn heal_others(&self) {
        count(&self.other_reasons, 1);
        self.due.notify_one();
    }

    fn lose(&self, counters: &Counters) {
        count(&counters.lost_events, 1);
        self.due.notify_one();
    }

    /// The reasons to heal the other nodes.
    fn reasons(&self, counters: &Counters) -> u64 {
        counters.lost_events.load(Ordering::Relaxed) + self.other_reasons.load(Ordering::Relaxed)
    }

    /// True if the other nodes are still to be healed.
    pub(super) fn owes_repair(&self, counters: &Counters) -> bool {
        self.reasons(counters) > self.repaired.load(Ordering::Relaxed)
    }
}

impl Batch<'_> {
    /// Puts an event into the buffer.
    pub(super) fn send(&mut self, event: Event, counters: &Counters) {
        // With `WhenFull::Fail`, a publisher answers at once.
        let sent = match self.publisher.publish(event).now_or_never() {
            Some(Ok(acknowledgement)) => {
                self.uplink.acknowledgements.try_send(acknowledgement).is_ok()
            }
            _ => false,
        };
        if !sent {
            self.uplink.lose(counters);
        }
    }
}

/// Reads what became of the events, and heals the other nodes where some were lost.
pub(super) async fn run(shared: Arc<Shared>) {
    let Some(unread) = shared.uplink.unread.lock().take() else { return };
    tokio::join!(read(&shared, unread), repair(&shared));
}

async fn read(shared: &Shared, mut unread: mpsc::Receiver<Acknowledgement>) {
    while let Some(acknowledgement) = unread.recv().await {
        let Err(error) = acknowledgement.await else { continue };
        if is_rejected(&error) {
            count(&shared.counters.rejected_events, 1);
            if let Some(suppressed) = shared.rejected.pass() {
                tracing::warn!(%error, suppressed, "a gateway rejected an event");
            }
        } else {
            tracing::debug!(%error, "an event was given up");
            shared.uplink.lose(&shared.counters);
        }
    }
}

/// True for an event that gateways do not take from this agent: nobody is to have it, so nobody
/// misses it, and it is of no use to send it again.
fn is_rejected(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Denied)
}

async fn repair(shared: &Shared) {
    let uplink = &shared.uplink;
    loop {
        uplink.due.notified().await;
        // Once gateways accept events again, so that one repair is for all that were given up.
        uplink.flush().await;
        let reasons = uplink.reasons(&shared.counters);
        if !uplink.owes_repair(&shared.counters) {
            continue;
        }
        while let Err(why) = try_repair(shared).await {
            tracing::debug!(why, "the other nodes cannot be healed yet");
            tokio::time::sleep(RETRY).await;
        }
        shared.healed_others("events may be missed");
        uplink.repaired.store(reasons, Ordering::Relaxed);
        let lost = shared.counters.lost_events.load(Ordering::Relaxed);
        tracing::warn!(lost, "events may be missed; the other nodes were brought up to date");
        // A repair costs every node something.
        tokio::time::sleep(RETRY).await;
    }
}

/// Publishes the events that bring other nodes up to date.
async fn try_repair(shared: &Shared) -> Result<(), String> {
    let mut acknowledgements = Vec::new();
    for (channel, format) in shared.options.formats.iter().enumerate() {
        for message in shared.healing(channel) {
            let kinds = kinds_of(&**format, &message).map_err(|error| error.to_string())?;
            for kind in kinds {
                acknowledgements.push(publish(shared, Event::from(kind)).await?);
            }
        }
    }
    for acknowledgement in acknowledgements {
        match acknowledgement.await {
            Err(error) if !is_rejected(&error) => return Err(error.to_string()),
            // What the agent may not publish, it cannot heal either.
            _ => {}
        }
    }
    Ok(())
}

/// The events of a message.
fn kinds_of(format: &dyn Format, message: &[u8]) -> Result<Vec<Kind>, Undecodable> {
    format.decode(message)?.events.collect()
}

/// Publishes an event when there is room for it.
async fn publish(shared: &Shared, event: Event) -> Result<Acknowledgement, String> {
    loop {
        let publisher = shared.uplink.publisher.lock().clone();
        match publisher.publish(event.clone()).await {
            Ok(acknowledgement) => return Ok(acknowledgement),
            Err(error) if error.kind() == ErrorKind::Full => publisher.flush().await,
            Err(error) => {
                // It has ended, for a reason that an operator may have cured by now.
                let options = shared.uplink.options.clone();
                *shared.uplink.publisher.lock() = shared.client.publisher(options);
                return Err(error.to_string());
            }
        }
    }
}
