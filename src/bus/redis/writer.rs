//! Appends what this gateway accepts to one shard.
//!
//! Batches that wait while the last flush is under way leave together as one frame: there is no timer, so an idle shard adds
//! no delay and a busy one fills its frames. One flush is under way at a time, which keeps the order. A frame is sent under a
//! sequence number until it is answered, and the script appends a number once, whatever was lost on the way.
//!
//! What was appended is kept for a while. When a new epoch shows that Redis lost some of it, that is appended again, before
//! anything new.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    attempts::Attempts,
    envelope::{Header, WriterId, encode_beacon, encode_events, encode_frame, sealed},
    history,
    names::ShardNames,
    proof::Proof,
    script::{Answer, Call, Failure, Retain},
    seal::{self, Kind, Seal},
    settings::Settings,
    topology::Topology,
};
use crate::{
    bus::{
        self, AppendError, Appended, Batch, Epoch, Offset, Position, RequestId, ShardId, unix_ms,
    },
    throttle::Throttle,
    trace::Follow,
};

/// Batches that may wait for a shard; more wait at the door, in their callers.
pub(super) const QUEUE: usize = 1024;

/// A frame is closed when it holds this much.
const FRAME_BYTES: usize = 128 * 1024;
const FRAME_EVENTS: usize = 2000;

/// A beacon is sent when this has passed without an append.
pub(super) const BEACON_INTERVAL: Duration = Duration::from_secs(1);

/// And after one that was not accepted, so that a Redis that comes back is found at once.
const BEACON_RETRY: Duration = Duration::from_millis(250);

/// How long, and how much of, what was appended is kept to be appended again.
const KEEP_AGE: Duration = Duration::from_mins(1);
const KEEP_BYTES: usize = 16 * 1024 * 1024;

static NOT_ENTERED: Throttle = Throttle::repeated();

/// A batch, and who waits for it.
pub(super) struct Job {
    pub batch: Batch,
    /// When its caller gives up.
    pub deadline: Instant,
    /// Set before anything of it is sent.
    pub sent: Arc<AtomicBool>,
    pub answer: oneshot::Sender<Result<Appended, AppendError>>,
}

/// The writer of one shard.
pub(super) struct Writer {
    pub shard: ShardId,
    pub id: WriterId,
    /// Where its last frame is remembered.
    pub key: String,
    pub names: Arc<ShardNames>,
    pub settings: Arc<Settings>,
    pub topology: Arc<Topology>,
    pub queue: mpsc::Receiver<Job>,
    /// Where the reader and the writer tell each other how far they are.
    pub proof: Arc<Proof>,
    /// Asks for a beacon now.
    pub beacon_now: Arc<Notify>,
    /// Set when the queue's senders are gone and what waits is to be flushed.
    pub stop: CancellationToken,
    pub state: State,
}

/// What a writer remembers.
#[derive(Default)]
pub(super) struct State {
    /// The epoch that it appends to. None before the first answer.
    epoch: Epoch,
    /// The last place of the shard that an answer told. Kept where frames are sealed for their places.
    tip: Position,
    /// Number of the last frame.
    sequence: u64,
    beacons: u64,
    kept: VecDeque<Kept>,
    kept_bytes: usize,
    /// Batches taken from the queue that did not fit in the last frame.
    waiting: VecDeque<Job>,
}

/// A frame that was appended.
struct Kept {
    sequence: u64,
    epoch: Epoch,
    first: Offset,
    /// Where it stood when it was first accepted.
    origin: (Epoch, Offset),
    count: u64,
    time_ms: u64,
    events: Bytes,
    at: Instant,
}

/// A frame to be appended, with its callers.
struct Flush {
    jobs: Vec<Job>,
    /// The index of each job's first event.
    starts: Vec<u64>,
    events: Bytes,
    count: u64,
    time_ms: u64,
}

/// The end of an attempt to append.
enum Outcome {
    Appended { epoch: Epoch, first: Offset },
    Seen(Vec<(usize, Epoch, Offset)>),
    Failed(AppendError),
}

impl Writer {
    /// Runs until told to stop and the queue is empty.
    pub(super) async fn run(mut self) {
        let mut next_beacon = Instant::now();
        loop {
            let job = if let Some(job) = self.state.waiting.pop_front() {
                Some(job)
            } else {
                tokio::select! {
                    biased;
                    job = self.queue.recv() => job,
                    () = self.beacon_now.notified() => { next_beacon = Instant::now(); None }
                    () = tokio::time::sleep_until(next_beacon.into()) => None,
                    () = self.stop.cancelled() => {
                        self.queue.close();
                        match self.queue.try_recv() {
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
            if Instant::now() >= next_beacon {
                let accepted = self.beacon().await;
                next_beacon =
                    Instant::now() + if accepted { BEACON_INTERVAL } else { BEACON_RETRY };
            }
        }
    }

    /// Takes what waits, up to a frame's size.
    fn gather(&mut self, first: Job) -> Flush {
        let mut size = 0;
        let mut count = 0;
        let mut jobs = Vec::new();
        let mut next = Some(first);
        while let Some(job) = next {
            let bytes: usize = job.batch.events.iter().map(|event| event.len() + 6).sum();
            let fits =
                size + bytes <= FRAME_BYTES && count + job.batch.events.len() <= FRAME_EVENTS;
            if !jobs.is_empty() && !fits {
                self.state.waiting.push_front(job);
                break;
            }
            size += bytes;
            count += job.batch.events.len();
            jobs.push(job);
            next = self.state.waiting.pop_front().or_else(|| self.queue.try_recv().ok());
        }
        Flush::new(jobs)
    }

    /// Appends a frame and answers its callers.
    async fn flush(&mut self, mut flush: Flush) {
        let mut why = String::from("the bus did not take it in time");
        let span = Follow::append(flush.follows());
        loop {
            flush.give_up_late(Instant::now(), &why);
            if flush.jobs.is_empty() {
                if let Some(span) = span {
                    span.fail(why);
                }
                return;
            }
            flush.jobs.iter().for_each(|job| job.sent.store(true, Ordering::Release));
            self.state.sequence += 1;
            match self.append(&flush).await {
                Outcome::Appended { epoch, first } => {
                    self.keep(&flush, epoch, first);
                    bus::appended(span, self.shard, epoch, first, flush.count);
                    flush.answer_all(epoch, first);
                    return;
                }
                Outcome::Seen(seen) => flush.answer_seen(&seen),
                // Nothing of it was taken: only those whose time is up are told so.
                Outcome::Failed(AppendError::Unavailable(last))
                    if flush.first_deadline() <= Instant::now() =>
                {
                    why = last;
                }
                Outcome::Failed(error) => {
                    if let Some(span) = span {
                        span.fail(error.to_string());
                    }
                    flush.fail(&error);
                    return;
                }
            }
        }
    }

    /// Sends one frame until it is answered, or until the last of its callers gives up.
    async fn append(&mut self, flush: &Flush) -> Outcome {
        let sequence = self.state.sequence;
        let frame = encode_frame(
            &Header {
                writer: self.id,
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
            Attempts::new(&self.settings, flush.first_deadline(), flush.last_deadline());
        loop {
            let call = Outgoing {
                sequence,
                count: flush.count,
                frame: &frame,
                requests: &requests,
                retain: &retain,
            };
            match self.call(&call, &mut attempts).await {
                Ok(Answer::Appended { epoch, first }) => {
                    self.proof.accepted();
                    return Outcome::Appended { epoch, first };
                }
                Ok(Answer::Seen(seen)) => return Outcome::Seen(seen),
                Ok(Answer::EpochOver(tip)) => {
                    if let Err(why) = self.enter(tip.epoch, &mut attempts).await
                        && !attempts.wait().await
                    {
                        return Outcome::Failed(attempts.error(&why));
                    }
                }
                // The number was used by an earlier process with this id, which cannot be: ids are random.
                Ok(Answer::Overtaken | Answer::Tip(_)) => {
                    return Outcome::Failed(AppendError::OutcomeUnknown(
                        "the frame was overtaken by a later one".into(),
                    ));
                }
                Err(why) => return Outcome::Failed(attempts.error(&why)),
            }
        }
    }

    /// Calls the script until it answers, or no further attempt is allowed; then says why.
    async fn call(
        &mut self,
        out: &Outgoing<'_>,
        attempts: &mut Attempts,
    ) -> Result<Answer, String> {
        let mut asked = None;
        loop {
            // Only the epoch counts for a frame; what the reader has seen of it tells a Redis that went back in time.
            let seen = self.proof.position();
            let epoch = self.state.epoch;
            let mut seen =
                if seen.epoch == epoch { seen } else { Position { epoch, offset: Offset(0) } };
            let mut sealed = None;
            if let Some(seal) = &self.names.seal {
                match self.sealed_behind(seen) {
                    Ok(behind) => seen = behind,
                    Err(why) if attempts.wait().await => {
                        tracing::debug!(shard = %self.shard, why, "append: trying again");
                        continue;
                    }
                    Err(why) => return Err(why),
                }
                sealed = Some(Sealed::new(seal, out, seen));
            }
            let retained = sealed.as_ref().map(|sealed| sealed.retain(out));
            let call = Call {
                names: &self.names,
                writer: &self.key,
                seen,
                exact: sealed.is_some() && out.sequence > 0,
                sequence: out.sequence,
                count: out.count,
                frame: sealed.as_ref().map_or(out.frame, |sealed| &sealed.frame),
                requests: out.requests,
                retain: retained.as_deref().unwrap_or(out.retain),
            };
            let asking = asked.is_some();
            let why = match asked.take().or_else(|| self.topology.master(self.shard)) {
                None => String::from("no server is known to own the shard"),
                Some(server) => {
                    let limit = attempts.limit(self.settings.response_timeout);
                    match call.send(&server, &self.settings, asking, limit).await {
                        // Another gateway was first: the next place may be had.
                        Ok(Answer::EpochOver(tip)) if tip.epoch == epoch && call.exact => {
                            self.state.tip = tip;
                            if attempts.may_go_on() {
                                continue;
                            }
                            return Err("other gateways were always first".into());
                        }
                        Ok(answer) => {
                            self.note(&answer, out.count);
                            return Ok(answer);
                        }
                        Err(Failure::NoLink(error)) => error.to_string(),
                        Err(Failure::Refused(why) | Failure::NotOwner(why)) => why,
                        Err(Failure::AskAt(address)) => {
                            asked = self.topology.server(&address);
                            if asked.is_some() && attempts.redirect() {
                                continue;
                            }
                            format!("the shard is moving to {address}")
                        }
                        Err(Failure::Unknown(why)) => {
                            if !attempts.resend() {
                                return Err(why);
                            }
                            why
                        }
                    }
                }
            };
            tracing::debug!(shard = %self.shard, why, "append: trying again");
            if !attempts.wait().await {
                return Err(why);
            }
            // What a refresh that fails would say, the next attempt says too.
            let _ = self.topology.refresh().await;
        }
    }

    /// Where what is sealed next is to stand: behind the last place known. Its first epoch is one that nobody sealed for before.
    fn sealed_behind(&self, seen: Position) -> Result<Position, String> {
        if self.state.epoch == Epoch::NONE {
            return Ok(Position { epoch: seal::first_epoch(), offset: Offset(0) });
        }
        if seal::is_beyond(seen.epoch) {
            return Err("the shard's epoch is far beyond this gateway's clock: the clocks differ, or somebody wrote it".into());
        }
        Ok(if self.state.tip.epoch == seen.epoch { seen.max(self.state.tip) } else { seen })
    }

    /// Remembers how far the shard has come.
    fn note(&mut self, answer: &Answer, count: u64) {
        match answer {
            Answer::Appended { epoch, first } if count > 0 => {
                let last = Position { epoch: *epoch, offset: first.plus(count - 1) };
                self.state.tip = self.state.tip.max(last);
            }
            Answer::EpochOver(tip) | Answer::Tip(tip) => self.state.tip = *tip,
            _ => {}
        }
    }

    /// Goes over to a new epoch: appends again what Redis lost of the last one.
    async fn enter(&mut self, epoch: Epoch, attempts: &mut Attempts) -> Result<(), String> {
        let before = self.state.epoch;
        let lost = self.lost().await?;
        if before != Epoch::NONE && !lost.is_empty() {
            tracing::info!(shard = %self.shard, epoch = epoch.0, before = before.0,
                lost = lost.len(), "appending again what Redis lost");
        }
        self.state.epoch = epoch;
        for sequence in lost {
            let Some(kept) = self.state.kept.iter().find(|kept| kept.sequence == sequence) else {
                continue;
            };
            let header = Header {
                writer: self.id,
                sequence,
                count: kept.count,
                time_ms: kept.time_ms,
                origin: Some(kept.origin),
            };
            let frame = encode_frame(&header, &kept.events);
            let out =
                Outgoing { sequence, count: kept.count, frame: &frame, requests: &[], retain: &[] };
            match self.call(&out, attempts).await {
                Ok(Answer::Appended { epoch, first }) => {
                    if let Some(kept) =
                        self.state.kept.iter_mut().find(|kept| kept.sequence == sequence)
                    {
                        (kept.epoch, kept.first) = (epoch, first);
                    }
                }
                Ok(Answer::EpochOver(_)) => {
                    // Yet another epoch: begin again with what is still lost.
                    self.state.epoch = before;
                    return Err("the epoch changed again".into());
                }
                Ok(_) => {}
                Err(why) => {
                    self.state.epoch = before;
                    return Err(why);
                }
            }
        }
        Ok(())
    }

    /// The numbers of the kept frames that Redis no longer has, oldest first.
    async fn lost(&self) -> Result<Vec<u64>, String> {
        let mut epochs: Vec<Epoch> = self.state.kept.iter().map(|kept| kept.epoch).collect();
        epochs.dedup();
        let mut lost = Vec::new();
        if epochs.is_empty() {
            return Ok(lost);
        }
        let server =
            self.topology.master(self.shard).ok_or("no server is known to own the shard")?;
        for epoch in epochs {
            let end = history::end_of_epoch(&server, &self.names, epoch).await?;
            let frames = self.state.kept.iter().filter(|kept| kept.epoch == epoch);
            // A frame is kept whole or not at all, so its first event tells.
            let gone = frames.filter(|kept| end.is_none_or(|end| kept.first > end));
            lost.extend(gone.map(|kept| kept.sequence));
        }
        lost.sort_unstable();
        Ok(lost)
    }

    fn keep(&mut self, flush: &Flush, epoch: Epoch, first: Offset) {
        let state = &mut self.state;
        state.kept_bytes += flush.events.len();
        state.kept.push_back(Kept {
            sequence: state.sequence,
            epoch,
            first,
            origin: (epoch, first),
            count: flush.count,
            time_ms: flush.time_ms,
            events: flush.events.clone(),
            at: Instant::now(),
        });
        while let Some(oldest) = state.kept.front() {
            if oldest.at.elapsed() < KEEP_AGE && state.kept_bytes <= KEEP_BYTES {
                break;
            }
            state.kept_bytes -= oldest.events.len();
            state.kept.pop_front();
        }
    }

    /// Sends a beacon once. It proves the path, shows how far the shard has come, and finds a Redis that lost its memory.
    /// Says whether it was accepted.
    async fn beacon(&mut self) -> bool {
        self.state.beacons += 1;
        let frame = encode_beacon(self.id, self.state.beacons, unix_ms());
        let deadline = Instant::now() + BEACON_INTERVAL;
        let mut attempts = Attempts::once(&self.settings, deadline);
        let out = Outgoing { sequence: 0, count: 0, frame: &frame, requests: &[], retain: &[] };
        match self.call(&out, &mut attempts).await {
            Ok(Answer::Tip(tip)) => {
                self.proof.accepted();
                if self.state.epoch != tip.epoch {
                    let deadline = Instant::now() + self.settings.timeout;
                    let mut attempts = Attempts::new(&self.settings, deadline, deadline);
                    if let Err(why) = self.enter(tip.epoch, &mut attempts).await
                        && let Some(left_out) = NOT_ENTERED.pass()
                    {
                        tracing::warn!(shard = %self.shard, why, left_out,
                            "a new epoch was not entered; trying again");
                    }
                }
                true
            }
            Ok(_) => false,
            Err(why) => {
                self.proof.failed(why);
                // Without a refresh, a shard whose master went away would wait for somebody to publish.
                let _ = self.topology.refresh().await;
                false
            }
        }
    }
}

/// What is sent, sealed for the place behind `seen`.
struct Sealed {
    frame: Vec<u8>,
    /// The events that are retained.
    retain: Vec<Vec<u8>>,
}

impl Sealed {
    fn new(seal: &Seal, out: &Outgoing<'_>, seen: Position) -> Sealed {
        if out.sequence == 0 {
            let frame = sealed(seal, Kind::Beacon, Position::UNKNOWN, out.frame);
            return Sealed { frame, retain: vec![] };
        }
        let at = |events: u64| Position { epoch: seen.epoch, offset: seen.offset.plus(events) };
        let retain = out.retain.iter().map(|retain| {
            let parts = [&[retain.key][..], retain.event];
            let seal = seal.of(Kind::Retained, at(retain.index + 1), &parts);
            [&seal[..], retain.event].concat()
        });
        Sealed {
            frame: sealed(seal, Kind::Frame, at(out.count), out.frame),
            retain: retain.collect(),
        }
    }

    fn retain<'a>(&'a self, out: &Outgoing<'_>) -> Vec<Retain<'a>> {
        let pairs = out.retain.iter().zip(&self.retain);
        pairs
            .map(|(retain, event)| Retain { key: retain.key, index: retain.index, event })
            .collect()
    }
}

/// What is sent under one number.
struct Outgoing<'a> {
    sequence: u64,
    count: u64,
    frame: &'a [u8],
    requests: &'a [(RequestId, u64)],
    retain: &'a [Retain<'a>],
}

impl Flush {
    fn new(jobs: Vec<Job>) -> Flush {
        let mut flush =
            Flush { jobs, starts: vec![], events: Bytes::new(), count: 0, time_ms: unix_ms() };
        flush.encode();
        flush
    }

    fn encode(&mut self) {
        self.starts.clear();
        self.count = 0;
        for job in &self.jobs {
            self.starts.push(self.count);
            self.count += job.batch.events.len() as u64;
        }
        self.events = encode_events(self.jobs.iter().flat_map(|job| &job.batch.events)).into();
    }

    /// Who follows its events.
    fn follows(&self) -> impl Iterator<Item = &Follow> {
        self.jobs.iter().filter_map(|job| job.batch.follow.as_deref())
    }

    fn requests(&self) -> Vec<(RequestId, u64)> {
        let ids = self.jobs.iter().zip(&self.starts);
        ids.filter_map(|(job, start)| Some((job.batch.request_id?, *start))).collect()
    }

    /// Of each key the last event.
    fn retain(&self) -> Vec<Retain<'_>> {
        let mut last: Vec<Retain<'_>> = Vec::new();
        for (job, start) in self.jobs.iter().zip(&self.starts) {
            for (index, key) in &job.batch.retain {
                let event = &job.batch.events[*index];
                last.retain(|before| before.key != *key);
                last.push(Retain { key: *key, index: start + *index as u64, event });
            }
        }
        last
    }

    fn first_deadline(&self) -> Instant {
        self.jobs.iter().map(|job| job.deadline).min().unwrap_or_else(Instant::now)
    }

    fn last_deadline(&self) -> Instant {
        self.jobs.iter().map(|job| job.deadline).max().unwrap_or_else(Instant::now)
    }

    /// Answers the jobs whose callers waited too long while nothing of theirs was taken; `why` is for people.
    fn give_up_late(&mut self, now: Instant, why: &str) {
        let late: Vec<Job> = self.jobs.extract_if(.., |job| job.deadline <= now).collect();
        if late.is_empty() {
            return;
        }
        for job in late {
            let _ = job.answer.send(Err(AppendError::Unavailable(why.to_owned())));
        }
        self.encode();
    }

    fn answer_all(self, epoch: Epoch, first: Offset) {
        for (job, start) in self.jobs.into_iter().zip(self.starts) {
            // Who no longer waits has been told that the outcome is unknown.
            let _ = job.answer.send(Ok(Appended { epoch, first: first.plus(start) }));
        }
    }

    /// Answers the jobs that were accepted before; `seen` has their place among those that have an id.
    fn answer_seen(&mut self, seen: &[(usize, Epoch, Offset)]) {
        let with_id: Vec<usize> = (0..self.jobs.len())
            .filter(|index| self.jobs[*index].batch.request_id.is_some())
            .collect();
        for (nth, epoch, first) in seen.iter().rev() {
            let Some(index) = with_id.get(*nth) else { continue };
            let job = self.jobs.remove(*index);
            let _ = job.answer.send(Ok(Appended { epoch: *epoch, first: *first }));
        }
        self.encode();
    }

    fn fail(self, error: &AppendError) {
        for job in self.jobs {
            let _ = job.answer.send(Err(error.clone()));
        }
    }
}
