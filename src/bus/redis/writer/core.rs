//! The protocol of one shard's writer: a state machine without I/O. It decides which call of the
//! script comes next, and what its answer means.
//!
//! One call is under way at a time. A frame is sent under one sequence until it is answered, and
//! the script appends a sequence once, whatever was lost on the way.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::flush::{Flush, Job};
use crate::bus::{
    AppendError, Appended, Epoch, Frame, Name, Offset, Position, Provenance, PublisherId, ShardId,
    redis::{
        auth::{self, Authenticator, Kind},
        envelope::{
            Body, Header, HeldRun, StampedFrame, WriterId, encode_frame, encode_probe, events_of,
            read_requests, read_retained, with_tag,
        },
        recovery::{HeldFrame, Memory, Offer, Task},
        script::{Answer, Call, Failure, Framed, Op, Retain, Status},
        settings::CallLimits,
    },
    traced::TracedAppend,
    unix_ms,
};

/// Limits of one frame.
const FRAME_BYTES: usize = 128 * 1024;
const FRAME_EVENTS: usize = 2000;

/// Runs of publishers in one frame: the script looks at each.
const FRAME_RUNS: usize = 256;

/// The interval of probes.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// The wait after a probe that was not accepted, at most: a Redis that comes back is noticed well
/// within the time for which a recovery waits.
const PROBE_RETRY: Duration = Duration::from_millis(150);

/// The wait between two calls while a recovery waits for others.
const RECOVERY_PAUSE: Duration = Duration::from_millis(10);

/// The time that an answer is waited for even if the deadline is nearer: without it the outcome of
/// what is sent in the last moment would be unknown for nothing. Shorter than the grace that
/// callers give the writer's answer.
const MIN_ANSWER_TIME: Duration = Duration::from_millis(150);

/// Frames that are appended again in one round trip, at most.
const MAX_OFFERS: usize = 32;

/// Attempts of one frame, in different epochs, whose outcome is unknown. No more are made.
const MAX_DOUBTS: usize = 16;

/// The reason why a batch was not accepted, if no call failed.
const NOT_IN_TIME: &str = "the bus did not accept the batch in time";

/// The next step of a writer.
#[derive(Debug)]
pub enum Step {
    /// Make this call, and report its answer.
    Call(Box<Call>),
    /// Nothing until then, or until there is a new job.
    WaitUntil(Instant),
}

/// What the answer of a call showed, for those who supervise the shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Redis accepted something that will come over the channel.
    Accepted,
    /// Redis answered; nothing was published by this call.
    Answered,
    /// The call failed, or this gateway may not serve the shard. The reason, for people.
    Failed(String),
}

/// The writer of one shard.
#[derive(Debug)]
pub struct Core {
    shard: ShardId,
    id: WriterId,
    limits: CallLimits,
    auth: Option<Arc<Authenticator>>,
    rng: SmallRng,
    waiting: VecDeque<Job>,
    flush: Option<Sending>,
    /// The number of the last frame.
    sequence: u64,
    probes: u64,
    next_probe: Instant,
    /// The wait of the next retry.
    wait: Duration,
    /// No call is made before.
    paused: Option<Instant>,
    /// The calls that are under way, in the order in which they are sent and answered.
    under_way: VecDeque<UnderWay>,
    /// Frames that may be appended again in one round trip: more with each that was accepted.
    offers: usize,
    /// The reason why nothing is accepted, for callers: that of the last call that failed.
    why: String,
    /// True if the next frame goes before what is to be appended again late.
    frame_first: bool,
}

/// A frame that is sent until it is answered.
#[derive(Debug)]
struct Sending {
    flush: Flush,
    sequence: u64,
    /// What earlier attempts knew of the shard's end whose outcome is unknown.
    unanswered: Vec<Position>,
    resends_left: u32,
    traced: Option<TracedAppend>,
}

#[derive(Debug)]
enum UnderWay {
    Append(Position),
    Again(Box<Offer>),
    Probe,
    Release,
}

impl Core {
    /// A writer that has nothing to do.
    pub fn new(
        shard: ShardId,
        id: WriterId,
        limits: CallLimits,
        auth: Option<Arc<Authenticator>>,
        seed: u64,
        now: Instant,
    ) -> Core {
        Core {
            shard,
            id,
            limits,
            auth,
            rng: SmallRng::seed_from_u64(seed),
            waiting: VecDeque::new(),
            flush: None,
            sequence: 0,
            probes: 0,
            next_probe: now,
            wait: limits.retry_wait.0,
            paused: None,
            under_way: VecDeque::new(),
            offers: 1,
            why: NOT_IN_TIME.into(),
            frame_first: false,
        }
    }

    /// Adds a batch that is to be appended.
    pub fn add(&mut self, job: Job) {
        self.waiting.push_back(job);
    }

    /// True while batches wait for their answer.
    pub fn is_busy(&self) -> bool {
        self.flush.is_some() || !self.waiting.is_empty()
    }

    /// The number of batches that wait for the next frame.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Asks for a probe at once.
    pub fn probe_now(&mut self, now: Instant) {
        self.next_probe = now;
    }

    /// The next step. Not called while calls are under way.
    pub fn step(&mut self, now: Instant, memory: &mut Memory) -> Step {
        self.expire(now);
        let paused = self.paused.filter(|until| now < *until);
        // A probe does not wait: a gateway that comes back late takes no part in a recovery.
        if now >= self.next_probe || paused.is_none() && !memory.tip().is_known() {
            return self.probe(memory);
        }
        if let Some(until) = paused {
            return Step::WaitUntil(self.until_deadline(until.min(self.next_probe)));
        }
        self.paused = None;
        let mut until = self.next_probe;
        if memory.is_recovering() || !(self.frame_first && self.is_busy()) {
            match memory.task(now) {
                Task::Again(offer) => {
                    self.frame_first = true;
                    if let Some(step) = self.again(now, offer, memory) {
                        return step;
                    }
                }
                Task::Release => {
                    let op = Op::Release { caller: self.id, peers: memory.peers() };
                    return self.release(op, memory);
                }
                Task::WaitUntil(at) => until = until.min(at),
                Task::Nothing => {}
            }
        }
        self.frame_first = false;
        if self.flush.is_none()
            && let Some(first) = self.next_waiting()
        {
            self.gather(first);
        }
        if self.flush.is_some() {
            return self.append(now, memory);
        }
        Step::WaitUntil(until)
    }

    /// Another call that may be sent behind those that are under way, before they are answered. The
    /// script takes them in order: what comes behind one that it does not take has to wait.
    pub fn more(&mut self, memory: &Memory) -> Option<Box<Call>> {
        let Some(UnderWay::Again(last)) = self.under_way.back() else { return None };
        // With a key, each call names the place that the one before it leads to.
        if self.auth.is_some() || self.under_way.len() >= self.offers {
            return None;
        }
        let offer = memory.offer_after(last.held.name.last())?;
        Some(self.offer(offer, memory, memory.seen()))
    }

    /// Takes the answer of the first call that is under way, or the reason why there is none.
    pub fn answered(
        &mut self,
        now: Instant,
        answer: Result<Answer, Failure>,
        memory: &mut Memory,
    ) -> Shown {
        let Some(under_way) = self.under_way.pop_front() else { return Shown::Answered };
        let (view, status) = match answer {
            Ok(Answer::Shard(view, status)) => (view, status),
            Ok(Answer::Deployment(theirs)) => {
                let why = format!(
                    "the gateways of this shard are configured otherwise ({theirs}): this gateway \
                     must not serve it"
                );
                self.fail_all(&AppendError::Unavailable(why.clone()));
                self.next_probe = now + PROBE_INTERVAL;
                self.paused = Some(now + PROBE_RETRY);
                return Shown::Failed(why);
            }
            Err(failure) => return self.failed(now, under_way, &failure),
        };
        let was_recovering = memory.is_recovering();
        memory.learn_view(&view);
        if was_recovering != view.recovering {
            tracing::info!(shard = %self.shard, end = %view.tip, recovering = view.recovering,
                "recovery");
        }
        self.wait = self.limits.retry_wait.0;
        self.paused = None;
        self.why = NOT_IN_TIME.into();
        match (under_way, status) {
            (UnderWay::Append(seen), status) => self.append_answered(now, seen, status, memory),
            (UnderWay::Again(offer), status) => self.again_answered(now, &offer, status, memory),
            (UnderWay::Probe, Status::Done(_)) => {
                self.next_probe = now + PROBE_INTERVAL;
                Shown::Accepted
            }
            (UnderWay::Release, Status::Wait) => {
                self.paused = Some(now + RECOVERY_PAUSE);
                Shown::Answered
            }
            (UnderWay::Probe, _) => {
                self.next_probe = now + PROBE_RETRY;
                Shown::Answered
            }
            (UnderWay::Release, _) => Shown::Answered,
        }
    }

    /// Answers everything that waits: the writer ends.
    pub fn fail_all(&mut self, error: &AppendError) {
        if let Some(sending) = self.flush.take() {
            // What may have been appended is not known to have failed.
            let unknown = AppendError::OutcomeUnknown(error.to_string());
            let error = if sending.unanswered.is_empty() { error } else { &unknown };
            sending.fail(error);
        }
        self.waiting.drain(..).for_each(|job| job.answer(Err(error.clone())));
    }

    fn failed(&mut self, now: Instant, under_way: UnderWay, failure: &Failure) -> Shown {
        self.offers = 1;
        let why = failure.to_string();
        if let (UnderWay::Append(_), Failure::TooLarge { limit, actual }) = (&under_way, failure)
            && let Some(sending) = self.flush.take()
        {
            // It would fail for ever, and hold up what waits behind it.
            sending.fail(&AppendError::TooLarge { limit: *limit, actual: *actual });
            return Shown::Answered;
        }
        self.why.clone_from(&why);
        if let (UnderWay::Append(seen), Some(sending)) = (under_way, &mut self.flush)
            && matches!(failure, Failure::Unknown(_))
        {
            sending.doubt(seen);
            match sending.resends_left.checked_sub(1) {
                Some(left) => sending.resends_left = left,
                None => self.give_up(&why),
            }
        }
        // Full jitter, so that gateways do not come back in step; at least a tenth of the wait.
        self.paused = Some(now + self.wait.mul_f64(self.rng.random_range(0.1..=1.0)));
        self.wait = (self.wait * 2).min(self.limits.retry_wait.1);
        let retry = now + PROBE_RETRY.mul_f64(self.rng.random_range(0.5..=1.0));
        let was_due = self.next_probe <= now;
        self.next_probe = if was_due { retry } else { self.next_probe.min(retry) };
        Shown::Failed(why)
    }

    fn give_up(&mut self, why: &str) {
        if let Some(sending) = self.flush.take() {
            sending.fail(&AppendError::OutcomeUnknown(why.to_owned()));
        }
    }

    /// Answers the callers whose time is over.
    fn expire(&mut self, now: Instant) {
        let expired = self.waiting.iter().any(|job| job.deadline <= now);
        let why = self.why.clone();
        if expired {
            let (over, rest): (VecDeque<_>, VecDeque<_>) =
                self.waiting.drain(..).partition(|job| job.deadline <= now);
            self.waiting = rest;
            for job in over {
                job.answer(Err(AppendError::Unavailable(why.clone())));
            }
        }
        let Some(sending) = &mut self.flush else { return };
        if sending.unanswered.is_empty() {
            sending.flush.fail_expired(now, &why);
            if sending.flush.jobs.is_empty()
                && let Some(sending) = self.flush.take()
            {
                sending.fail(&AppendError::Unavailable(why));
            }
        } else if sending.flush.last_deadline().is_none_or(|deadline| deadline <= now) {
            self.give_up(&why);
        }
    }

    /// The earlier of `until` and the next deadline.
    fn until_deadline(&self, until: Instant) -> Instant {
        let waiting = self.waiting.iter().map(|job| job.deadline).min();
        let sending = self.flush.as_ref().and_then(|sending| {
            let sure = sending.unanswered.is_empty();
            if sure { sending.flush.first_deadline() } else { sending.flush.last_deadline() }
        });
        waiting.into_iter().chain(sending).fold(until, Instant::min)
    }

    /// The next batch whose caller still waits for its answer.
    fn next_waiting(&mut self) -> Option<Job> {
        while let Some(job) = self.waiting.pop_front() {
            if !job.answer.is_closed() {
                return Some(job);
            }
        }
        None
    }

    /// Takes waiting batches up to the limits of a frame. A batch that repeats the request id of
    /// another one, or sequences of a publisher, waits for the next frame: the script finds only
    /// those of earlier frames.
    fn gather(&mut self, first: Job) {
        let (mut size, mut count) = (0, 0);
        let mut jobs: Vec<Job> = Vec::new();
        let mut requests = HashSet::new();
        // For each publisher the first sequence that nothing in the frame covers.
        let mut publishers: HashMap<PublisherId, u64> = HashMap::new();
        let mut runs = 0;
        let mut next = Some(first);
        while let Some(job) = next {
            let bytes: usize = job.batch.events.iter().map(|event| event.len() + 6).sum();
            let fits =
                size + bytes <= FRAME_BYTES && count + job.batch.events.len() <= FRAME_EVENTS;
            let fits = fits && runs + job.batch.runs.len() <= FRAME_RUNS;
            let repeats = job.batch.request_id.is_some_and(|id| !requests.insert(id))
                || (job.batch.runs.iter())
                    .any(|run| publishers.get(&run.publisher).is_some_and(|at| run.from < *at));
            if !jobs.is_empty() && (repeats || !fits) {
                self.waiting.push_front(job);
                break;
            }
            size += bytes;
            count += job.batch.events.len();
            runs += job.batch.runs.len();
            let ends = job.batch.runs.iter().map(|run| (run.publisher, run.last() + 1));
            publishers.extend(ends);
            jobs.push(job);
            next = self.next_waiting();
        }
        let flush = Flush::new(jobs);
        flush.mark_sent();
        self.sequence += 1;
        self.flush = Some(Sending {
            traced: TracedAppend::start(flush.traces()),
            flush,
            sequence: self.sequence,
            unanswered: vec![],
            resends_left: self.limits.max_resends,
        });
    }

    fn append(&mut self, now: Instant, memory: &Memory) -> Step {
        let seen = match self.position_for_tags(memory) {
            Ok(after) => after.unwrap_or_else(|| memory.seen()),
            Err(why) => {
                self.why = why;
                self.paused = Some(now + self.limits.retry_wait.1);
                return Step::WaitUntil(self.until_deadline(now + self.limits.retry_wait.1));
            }
        };
        let Some(sending) = &self.flush else { return Step::WaitUntil(self.next_probe) };
        let deadline = if sending.unanswered.is_empty() {
            sending.flush.first_deadline()
        } else {
            sending.flush.last_deadline()
        };
        let left = deadline.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        let limit = self.limits.response_timeout.min(left.max(MIN_ANSWER_TIME));
        let framed = sending.framed(self.id, seen.epoch);
        let framed = self.with_tags(framed, seen, None);
        Step::Call(self.call(Op::Append(framed), UnderWay::Append(seen), memory, limit, seen))
    }

    fn append_answered(
        &mut self,
        now: Instant,
        seen: Position,
        status: Status,
        memory: &mut Memory,
    ) -> Shown {
        let Some(sending) = &mut self.flush else { return Shown::Answered };
        match status {
            Status::Done(Some(appended)) => {
                let stamped = sending.stamped(self.id, appended, seen.epoch);
                let count = stamped.frame.count;
                memory.keep_own(stamped);
                self.accepted(appended, count);
                return Shown::Accepted;
            }
            Status::Duplicate { place: Some((place, count)), name, entry } => {
                let offset = place.first.plus(count - 1);
                let at = Position { epoch: place.epoch, offset };
                // What stands there, and not this writer's own bytes: a copy has another name.
                match Body::frame(at, &entry, self.auth.as_deref()) {
                    Body::Frame(stamped) => {
                        let held = HeldFrame::new(stamped);
                        let named = Appended { epoch: held.name.epoch, first: held.name.first };
                        let count = held.name.count;
                        memory.keep_own(held.stamped);
                        self.accepted(named, count);
                    }
                    _ => self.accepted(name.0, name.1),
                }
            }
            Status::Duplicate { place: None, .. } => {
                self.give_up("a later frame of this writer was appended before it");
            }
            Status::Seen(seen) => {
                sending.flush.answer_seen(&seen);
                if sending.flush.jobs.is_empty() {
                    self.flush = None;
                }
            }
            Status::Covered(covered) => {
                sending.flush.leave_out(&covered);
                if sending.flush.jobs.is_empty() {
                    self.flush = None;
                }
            }
            // Another gateway was first, with an exact position; or the epoch is over; or a
            // recovery is under way.
            Status::EpochOver | Status::Recovering => {}
            Status::Done(None) | Status::There | Status::Wait => {
                self.paused = Some(now + RECOVERY_PAUSE);
            }
        }
        Shown::Answered
    }

    fn accepted(&mut self, appended: Appended, count: u64) {
        let Some(sending) = self.flush.take() else { return };
        if let Some(traced) = sending.traced {
            traced.succeeded(self.shard, appended, sending.flush.count);
        }
        sending.flush.answer_all(appended, count);
    }

    /// Appends again what Redis lost. None if it must wait.
    fn again(&mut self, now: Instant, offer: Box<Offer>, memory: &Memory) -> Option<Step> {
        let Ok(after) = self.position_for_tags(memory) else {
            self.paused = Some(now + self.limits.retry_wait.1);
            return None;
        };
        let seen = after.unwrap_or_else(|| memory.seen());
        Some(Step::Call(self.offer(offer, memory, seen)))
    }

    /// The call that appends a frame again.
    fn offer(&mut self, offer: Box<Offer>, memory: &Memory, seen: Position) -> Box<Call> {
        let held = &offer.held;
        let requests = read_requests(&held.stamped.requests)
            .map(|request| (request.id, held.index_in_name(request.first)))
            .collect();
        let events: Vec<&[u8]> = events_of(&held.stamped.frame.events).collect();
        let retain = read_retained(&held.stamped.retain).filter_map(|(index, key)| {
            let event = events.get(usize::try_from(index).ok()?)?;
            let event = held.stamped.frame.events.slice_ref(event);
            Some(Retain { key, index: held.index_in_name(index), event })
        });
        let framed = Framed {
            writer: held.stamped.writer,
            sequence: held.stamped.sequence,
            count: held.stamped.frame.count,
            bytes: offer.frame.clone(),
            requests,
            runs: (held.stamped.runs())
                .map(|HeldRun { run, .. }| (run.publisher, run.from, run.last()))
                .collect(),
            retain: retain.collect(),
        };
        let framed = self.with_tags(framed, seen, Some(&held.name));
        let op = Op::Again(framed, held.name.clone());
        let limit = self.limits.response_timeout;
        self.call(op, UnderWay::Again(offer), memory, limit, seen)
    }

    fn again_answered(
        &mut self,
        now: Instant,
        offer: &Offer,
        status: Status,
        memory: &mut Memory,
    ) -> Shown {
        self.offers = match status {
            Status::Done(_) => (self.offers * 2).min(MAX_OFFERS),
            _ => 1,
        };
        match status {
            Status::Done(_) => return Shown::Accepted,
            Status::Seen(seen) => {
                // These requests were accepted again before: the rest is offered.
                let seen: Vec<usize> = seen.into_iter().map(|(index, _)| index).collect();
                memory.offer_without(&offer.held, &seen);
            }
            Status::Covered(covered) => memory.offer_without_covered(&offer.held, &covered),
            // Others hold it too, and are faster: one is enough, and the rest look on.
            Status::There | Status::Wait => self.paused = Some(now + RECOVERY_PAUSE),
            _ => {}
        }
        Shown::Answered
    }

    fn probe(&mut self, memory: &Memory) -> Step {
        self.probes += 1;
        let time = self.auth.as_ref().map_or_else(unix_ms, |auth| auth.latest_time());
        let mut probe = encode_probe(self.id, self.probes, time);
        let mut seen = memory.seen();
        if let Some(auth) = &self.auth {
            probe = with_tag(auth, Kind::Probe, Position::UNKNOWN, &probe);
            if !seen.is_known() {
                // An epoch for which nobody has made a tag before.
                seen = Position { epoch: auth::first_epoch(), offset: Offset(0) };
            }
        }
        let limit = PROBE_INTERVAL.min(self.limits.response_timeout);
        Step::Call(self.call(Op::Probe(probe), UnderWay::Probe, memory, limit, seen))
    }

    /// States the epoch for which this gateway knows that it holds nothing more: that of the last
    /// answer, also if it has read of a greater one.
    fn release(&mut self, op: Op, memory: &Memory) -> Step {
        let limit = self.limits.response_timeout;
        Step::Call(self.call(op, UnderWay::Release, memory, limit, memory.tip()))
    }

    fn call(
        &mut self,
        op: Op,
        under_way: UnderWay,
        memory: &Memory,
        limit: Duration,
        seen: Position,
    ) -> Box<Call> {
        self.under_way.push_back(under_way);
        let entropy = self.rng.random_range(0..4096);
        // The tags of a frame are made for one place.
        let exact = self.auth.is_some() && matches!(op, Op::Append(_) | Op::Again(..));
        let reported = memory.reported();
        Box::new(Call { seen, exact, reported, entropy, op, limit })
    }

    /// The position behind which the next tags are made: the shard's end. None without a key.
    fn position_for_tags(&self, memory: &Memory) -> Result<Option<Position>, String> {
        let Some(auth) = &self.auth else { return Ok(None) };
        if auth.is_beyond(memory.tip().epoch) {
            let why = "the shard's epoch is far beyond the clocks of all gateways: Redis' clock is \
                       ahead, or an unknown writer changed it";
            return Err(why.into());
        }
        Ok(Some(memory.tip()))
    }

    /// Adds authentication tags for the position after `seen`, if there is a key.
    fn with_tags(&self, mut framed: Framed, seen: Position, name: Option<&Name>) -> Framed {
        let Some(auth) = &self.auth else { return framed };
        let end = Position { epoch: seen.epoch, offset: seen.offset.plus(framed.count) };
        framed.bytes = with_tag(auth, Kind::Frame, end, &framed.bytes);
        let base =
            name.map_or(Position { epoch: seen.epoch, offset: seen.offset.plus(1) }, |name| {
                Position { epoch: name.epoch, offset: name.first }
            });
        for retain in &mut framed.retain {
            let at = Position { epoch: base.epoch, offset: base.offset.plus(retain.index) };
            let parts = [&[retain.key][..], &retain.event];
            let tag = auth.tag(Kind::Retained, at, &parts);
            retain.event = [&tag[..], &retain.event].concat().into();
        }
        framed
    }
}

impl Sending {
    /// Remembers an attempt without an answer.
    fn doubt(&mut self, seen: Position) {
        if let Some(doubt) = self.unanswered.iter_mut().find(|doubt| doubt.epoch == seen.epoch) {
            doubt.offset = doubt.offset.min(seen.offset);
        } else if self.unanswered.len() < MAX_DOUBTS {
            self.unanswered.push(seen);
        } else {
            self.resends_left = 0;
        }
    }

    /// What the frame says of attempts in other epochs.
    fn provenance(&self, epoch: Epoch) -> Option<Provenance> {
        let doubts: Vec<Position> =
            self.unanswered.iter().filter(|doubt| doubt.epoch != epoch).copied().collect();
        (!doubts.is_empty()).then(|| Provenance { doubts, ..Provenance::default() })
    }

    fn framed(&self, writer: WriterId, epoch: Epoch) -> Framed {
        let provenance = self.provenance(epoch);
        let header = Header {
            writer,
            sequence: self.sequence,
            count: self.flush.count,
            time_ms: self.flush.time_ms,
            provenance: provenance.as_ref(),
            requests: &self.flush.requests,
            retain: &self.flush.retained,
            runs: &self.flush.encoded_runs,
        };
        Framed {
            writer,
            sequence: self.sequence,
            count: self.flush.count,
            bytes: encode_frame(&header, &self.flush.events),
            requests: self.flush.requests(),
            runs: self.flush.runs(),
            retain: self.flush.retain(),
        }
    }

    /// The frame as it was appended.
    fn stamped(&self, writer: WriterId, appended: Appended, epoch: Epoch) -> StampedFrame {
        StampedFrame {
            frame: Frame {
                epoch: appended.epoch,
                first: appended.first,
                count: self.flush.count,
                time_ms: self.flush.time_ms,
                provenance: self.provenance(epoch).map(Box::new),
                events: self.flush.events.clone(),
            },
            writer,
            sequence: self.sequence,
            requests: self.flush.requests.clone().into(),
            retain: self.flush.retained.clone().into(),
            runs: self.flush.encoded_runs.clone().into(),
        }
    }

    fn fail(self, error: &AppendError) {
        if let Some(traced) = self.traced {
            traced.failed(error.to_string());
        }
        self.flush.fail(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_away_is_called_some_times_a_second() {
        let limits = CallLimits {
            response_timeout: Duration::from_secs(1),
            max_resends: 3,
            retry_wait: (Duration::from_millis(50), Duration::from_secs(1)),
        };
        let (mut now, mut calls) = (Instant::now(), 0);
        let end = now + Duration::from_secs(10);
        let mut core = Core::new(ShardId(0), 1, limits, None, 1, now);
        let mut memory = Memory::new(1, (100, 1 << 20));
        while now < end {
            match core.step(now, &mut memory) {
                Step::Call(_) => {
                    calls += 1;
                    let failure = Failure::NotConnected("nobody there".into());
                    core.answered(now, Err(failure), &mut memory);
                }
                Step::WaitUntil(until) => {
                    assert!(until > now, "it never sleeps");
                    now = until;
                }
            }
            assert!(calls < 200, "{calls} calls until now");
        }
        assert!(calls > 50, "{calls} calls in 10 s: a recovery waits 300 ms");
    }
}
