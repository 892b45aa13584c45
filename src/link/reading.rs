//! The way of events through a link.

use std::{sync::atomic::Ordering, time::Duration};

use futures_util::FutureExt;
use tokio::{sync::mpsc, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;
use trunkline_client::{Acknowledgement, Error, Notification, Publisher, Subscription, v1::Event};

use super::{
    LinkError, Shared, StateError,
    carry::{self, Carry},
    count,
    journal::{Journal, LastValue},
    settle::Settled,
};

/// Events that are written to the state file together, and bytes of them, about: those that are
/// there.
const BATCH_EVENTS: usize = 8192;
const BATCH_BYTES: usize = 1 << 20;

/// How often the state file learns what the destination has answered.
const SETTLE: Duration = Duration::from_millis(100);

/// How long events that wait may take to be accepted when the link ends.
const FLUSH: Duration = Duration::from_secs(3);

/// Takes events from the source, writes them to the state file, and gives them to the publisher.
pub(super) struct Reading<'a> {
    pub shared: &'a Shared,
    pub carry: Carry<'a>,
    pub subscription: Subscription,
    pub journal: Journal,
    pub publisher: &'a Publisher,
    /// None when nothing more is published.
    pub answers: Option<mpsc::Sender<Acknowledgement>>,
    /// Reads the answers of the destination; returns the error that ended the publisher.
    pub settling: JoinHandle<Option<Error>>,
    /// What was taken and is not in the state file yet.
    pub events: Vec<Event>,
    pub bytes: usize,
    pub last_values: Vec<LastValue>,
}

impl Reading<'_> {
    /// Carries events until `stop` is cancelled.
    pub(super) async fn run(&mut self, stop: &CancellationToken) -> Result<(), LinkError> {
        loop {
            // Only there does the token cover what was taken.
            let is_whole = self.subscription.is_between_batches();
            let is_full = self.events.len() >= BATCH_EVENTS || self.bytes >= BATCH_BYTES;
            if !(is_whole && is_full)
                && let Some(next) = self.subscription.next().now_or_never()
            {
                self.take(next)?;
                continue;
            }
            let is_due = !self.events.is_empty() || self.shared.settled.lock().missed > 0;
            if is_whole
                && is_due
                && stop.run_until_cancelled(self.pass_on()).await.transpose()?.is_none()
            {
                break;
            }
            let is_unsettled = self.journal.has_unsettled();
            tokio::select! {
                next = self.subscription.next() => self.take(next)?,
                ended = &mut self.settling => return self.ended(ended.ok().flatten()),
                // What the destination has answered, and the token.
                () = sleep(SETTLE), if is_unsettled || self.is_ahead() => {
                    if !is_due {
                        self.record()?;
                    }
                }
                () = stop.cancelled() => break,
            }
        }
        tracing::info!("stopping");
        // What was taken since the last record is taken again by the next process.
        self.answers = None;
        if let Ok(ended) = tokio::time::timeout(FLUSH, &mut self.settling).await
            && let Some(error) = ended.ok().flatten()
        {
            return self.ended(Some(error));
        }
        self.events.clear();
        self.last_values.clear();
        let settled = std::mem::take(&mut *self.shared.settled.lock());
        let missed = self.carry.missed(settled.missed);
        let written = self.journal.append(&[], missed, vec![], settled.sequence);
        written.map(drop).map_err(|error| self.shared.state(error.into()))
    }

    /// True if the state file does not have the last token.
    fn is_ahead(&self) -> bool {
        self.subscription.is_between_batches()
            && self.subscription.resume_token() != self.journal.token()
    }

    fn take(&mut self, next: Option<Result<Notification, Error>>) -> Result<(), LinkError> {
        let shared = self.shared;
        match next {
            Some(Ok(Notification::Event(event))) => {
                count(&shared.counters.received, 1);
                self.take_event(*event);
            }
            Some(Ok(Notification::Gap(gap))) => {
                let Some(report) = self.carry.gap(&gap) else { return Ok(()) };
                let missed = gap.missed_events.map_or("some".into(), |missed| missed.to_string());
                tracing::warn!(missed, reason = ?gap.reason(), "a gap is passed on");
                count(&shared.counters.gaps, 1);
                self.push(report);
            }
            Some(Ok(Notification::Subscribed(subscribed))) => {
                let expected = &self.carry.identity.from;
                if subscribed.deployment != *expected {
                    return Err(LinkError::Replaced {
                        side: "--from",
                        gateway: subscribed.gateway_id,
                        found: subscribed.deployment,
                        expected: expected.clone(),
                    });
                }
                if self.journal.token().is_empty() && !subscribed.resumed {
                    // Nobody knows what was missed before the link had a state.
                    self.push(self.carry.unknown());
                }
                count(&shared.counters.streams, 1);
                shared.is_connected.store(true, Ordering::Relaxed);
                let (gateway, resumed) = (subscribed.gateway_id, subscribed.resumed);
                tracing::info!(gateway, resumed, "the source delivers events");
            }
            Some(Ok(Notification::Reconnecting { reason, wait })) => {
                shared.is_connected.store(false, Ordering::Relaxed);
                if let Some(suppressed) = shared.disconnected.pass() {
                    tracing::warn!(reason, ?wait, suppressed, "the source is lost");
                }
            }
            Some(Err(error)) => return Err(LinkError::Refused { side: "--from", error }),
            // It ends with an error alone.
            Some(Ok(_)) | None => {}
        }
        Ok(())
    }

    fn take_event(&mut self, event: Event) {
        let value = carry::last_value(&event);
        if value.as_ref().is_some_and(|value| {
            self.journal.is_last_value(value) || self.last_values.contains(value)
        }) {
            return;
        }
        match self.carry.event(event) {
            Ok(event) => {
                self.last_values.extend(value);
                self.push(event);
            }
            Err(why) => count(&self.shared.counters.left_out[why as usize], 1),
        }
    }

    fn push(&mut self, event: Event) {
        self.bytes += prost::Message::encoded_len(&event);
        self.events.push(event);
    }

    /// Records what was taken, and then gives it to the publisher. Where that is cut off, the state
    /// file has the rest.
    async fn pass_on(&mut self) -> Result<(), LinkError> {
        for event in self.record()? {
            let published = self.publisher.publish(event).await;
            let answer = published.map_err(|error| self.shared.refused(error))?;
            if let Some(answers) = &self.answers {
                // It ends with the publisher alone.
                let _ = answers.send(answer).await;
            }
        }
        Ok(())
    }

    /// Writes what was taken to the state file.
    fn record(&mut self) -> Result<Vec<Event>, LinkError> {
        let settled = {
            let mut settled = self.shared.settled.lock();
            Settled { missed: std::mem::take(&mut settled.missed), ..*settled }
        };
        self.events.extend(self.carry.missed(settled.missed));
        let (events, values) =
            (std::mem::take(&mut self.events), std::mem::take(&mut self.last_values));
        self.bytes = 0;
        let token = self.subscription.resume_token();
        let journal = &mut self.journal;
        let append = || journal.append(token, events, values, settled.sequence);
        let written = tokio::task::block_in_place(append);
        written.map_err(|error| self.shared.state(error.into()))
    }

    /// The link cannot go on without its publisher.
    fn ended(&self, error: Option<Error>) -> Result<(), LinkError> {
        let error = error.or_else(|| self.publisher.failure());
        Err(match error {
            Some(error) => self.shared.refused(error),
            None => self.shared.state(StateError::InUse),
        })
    }
}
