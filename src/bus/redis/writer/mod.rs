//! The writer of one shard: appends what this gateway accepts.
//!
//! Batches that wait while the last flush is under way leave together as one frame: there is no
//! timer, so an idle shard adds no delay and a busy one fills its frames. One flush is under way at
//! a time, which keeps the order. A frame is sent under one sequence until it is answered, and the
//! script appends a sequence once, whatever was lost on the way.

mod call;
mod flush;
mod restore;

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

pub(super) use self::flush::Job;
use self::{call::Outgoing, flush::Flush, restore::KeptFrames};
use super::{
    attempts::Attempts,
    envelope::{Header, WriterId, encode_frame, encode_probe},
    liveness::Liveness,
    names::ShardNames,
    script::Answer,
    settings::Settings,
    topology::Topology,
};
use crate::{
    bus::{AppendError, Appended, Epoch, Position, ShardId, traced::TracedAppend, unix_ms},
    throttle::Throttle,
};

/// Batches that may wait for a shard; further callers wait until one leaves the queue.
pub(super) const QUEUE: usize = 1024;

/// Limits of one frame.
const FRAME_BYTES: usize = 128 * 1024;
const FRAME_EVENTS: usize = 2000;

/// The interval of probes.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// The wait after a probe that was not accepted, so that a Redis that comes back is noticed soon.
const PROBE_RETRY: Duration = Duration::from_millis(250);

static NOT_ENTERED: Throttle = Throttle::repeated();

/// The parts of a writer that others share.
pub(super) struct WriterParts {
    pub shard: ShardId,
    pub id: WriterId,
    pub names: Arc<ShardNames>,
    pub settings: Arc<Settings>,
    pub topology: Arc<Topology>,
    pub queue: mpsc::Receiver<Job>,
    pub liveness: Arc<Liveness>,
    /// Asks for a probe now.
    pub probe_now: Arc<Notify>,
    /// Ends the writer after it has flushed its queue.
    pub stop: CancellationToken,
}

/// The writer of one shard.
pub(super) struct Writer {
    parts: WriterParts,
    /// The Redis key that remembers the last frame.
    key: String,
    state: State,
}

#[derive(Default)]
struct State {
    /// The epoch in which it appends. None before the first answer.
    epoch: Epoch,
    /// The end of the shard in the last answer. Authenticated frames name it.
    tip: Position,
    /// The number of the last frame.
    sequence: u64,
    probes: u64,
    kept: KeptFrames,
    /// Batches from the queue that did not fit in the last frame.
    waiting: VecDeque<Job>,
}

/// The result of an attempt to append.
enum Outcome {
    Appended(Appended),
    Seen(Vec<(usize, Appended)>),
    Failed(AppendError),
}

impl Writer {
    pub(super) fn new(parts: WriterParts) -> Writer {
        let key = parts.names.writer(parts.id);
        Writer { parts, key, state: State::default() }
    }

    /// Runs until it is stopped and the queue is empty.
    pub(super) async fn run(mut self) {
        let mut next_probe = Instant::now();
        loop {
            let job = if let Some(job) = self.state.waiting.pop_front() {
                Some(job)
            } else {
                tokio::select! {
                    biased;
                    job = self.parts.queue.recv() => job,
                    () = self.parts.probe_now.notified() => { next_probe = Instant::now(); None }
                    () = tokio::time::sleep_until(next_probe.into()) => None,
                    () = self.parts.stop.cancelled() => {
                        self.parts.queue.close();
                        match self.parts.queue.try_recv() {
                            Ok(job) => Some(job),
                            Err(_) => return,
                        }
                    }
                }
            };
            if let Some(job) = job {
                let flush = self.gather(job);
                self.flush(flush).await;
            }
            if Instant::now() >= next_probe {
                let accepted = self.probe().await;
                next_probe = Instant::now() + if accepted { PROBE_INTERVAL } else { PROBE_RETRY };
            }
        }
    }

    /// Takes waiting batches up to the limits of a frame. A batch that repeats the request id of
    /// another one waits for the next frame: the script finds only ids of earlier frames.
    fn gather(&mut self, first: Job) -> Flush {
        let mut size = 0;
        let mut count = 0;
        let mut jobs = Vec::new();
        let mut requests = HashSet::new();
        let mut next = Some(first);
        while let Some(job) = next {
            let bytes: usize = job.batch.events.iter().map(|event| event.len() + 6).sum();
            let fits =
                size + bytes <= FRAME_BYTES && count + job.batch.events.len() <= FRAME_EVENTS;
            let repeats = job.batch.request_id.is_some_and(|id| !requests.insert(id));
            if !jobs.is_empty() && (repeats || !fits) {
                self.state.waiting.push_front(job);
                break;
            }
            size += bytes;
            count += job.batch.events.len();
            jobs.push(job);
            next = self.state.waiting.pop_front().or_else(|| self.parts.queue.try_recv().ok());
        }
        Flush::new(jobs)
    }

    /// Appends a frame and answers its callers.
    async fn flush(&mut self, mut flush: Flush) {
        let mut why = String::from("the bus did not accept the batch in time");
        let traced = TracedAppend::start(flush.traces());
        loop {
            flush.fail_expired(Instant::now(), &why);
            if flush.jobs.is_empty() {
                if let Some(traced) = traced {
                    traced.failed(why);
                }
                return;
            }
            flush.mark_sent();
            self.state.sequence += 1;
            match self.append(&flush).await {
                Outcome::Appended(appended) => {
                    self.state.kept.keep(self.state.sequence, &flush, appended);
                    if let Some(traced) = traced {
                        traced.succeeded(self.parts.shard, appended, flush.count);
                    }
                    flush.answer_all(appended);
                    return;
                }
                Outcome::Seen(seen) => flush.answer_seen(&seen),
                // Nothing was appended: only the callers whose deadline is over get the error.
                Outcome::Failed(AppendError::Unavailable(last))
                    if flush.first_deadline() <= Instant::now() =>
                {
                    why = last;
                }
                Outcome::Failed(error) => {
                    if let Some(traced) = traced {
                        traced.failed(error.to_string());
                    }
                    flush.fail(&error);
                    return;
                }
            }
        }
    }

    /// Sends one frame until it is answered, or until the deadline of the last caller.
    async fn append(&mut self, flush: &Flush) -> Outcome {
        let sequence = self.state.sequence;
        let frame = encode_frame(
            &Header {
                writer: self.parts.id,
                sequence,
                count: flush.count,
                time_ms: flush.time_ms,
                origin: None,
            },
            &flush.events,
        );
        let requests = flush.requests();
        let retain = flush.retain();
        let mut attempts =
            Attempts::new(&self.parts.settings, flush.first_deadline(), flush.last_deadline());
        loop {
            let out = Outgoing {
                sequence,
                count: flush.count,
                frame: &frame,
                requests: &requests,
                retain: &retain,
            };
            match self.call(&out, &mut attempts).await {
                Ok(Answer::Appended(appended)) => {
                    self.parts.liveness.accepted();
                    return Outcome::Appended(appended);
                }
                Ok(Answer::Seen(seen)) => return Outcome::Seen(seen),
                Ok(Answer::EpochOver(tip)) => {
                    if let Err(why) = self.enter(tip.epoch, &mut attempts).await
                        && !attempts.wait().await
                    {
                        return Outcome::Failed(attempts.error(&why));
                    }
                }
                // An earlier process with this id used the sequence: impossible, ids are random.
                Ok(Answer::Overtaken | Answer::Tip(_)) => {
                    return Outcome::Failed(AppendError::OutcomeUnknown(
                        "the frame was overtaken by a later one".into(),
                    ));
                }
                Err(why) => return Outcome::Failed(attempts.error(&why)),
            }
        }
    }

    /// Sends a probe once. It verifies the path, shows the end of the shard, and detects a Redis
    /// that lost its memory. True if it was accepted.
    async fn probe(&mut self) -> bool {
        self.state.probes += 1;
        let frame = encode_probe(self.parts.id, self.state.probes, unix_ms());
        let deadline = Instant::now() + PROBE_INTERVAL;
        let mut attempts = Attempts::once(&self.parts.settings, deadline);
        let out = Outgoing { sequence: 0, count: 0, frame: &frame, requests: &[], retain: &[] };
        match self.call(&out, &mut attempts).await {
            Ok(Answer::Tip(tip)) => {
                self.parts.liveness.accepted();
                if self.state.epoch != tip.epoch {
                    let deadline = Instant::now() + self.parts.settings.timeout;
                    let mut attempts = Attempts::new(&self.parts.settings, deadline, deadline);
                    if let Err(why) = self.enter(tip.epoch, &mut attempts).await
                        && let Some(left_out) = NOT_ENTERED.pass()
                    {
                        tracing::warn!(shard = %self.parts.shard, why, left_out,
                            "a new epoch was not entered; trying again");
                    }
                }
                true
            }
            Ok(_) => false,
            Err(why) => {
                self.parts.liveness.failed(why);
                // Without a refresh, a shard whose master left would not recover before the next
                // append.
                let _ = self.parts.topology.refresh().await;
                false
            }
        }
    }
}
