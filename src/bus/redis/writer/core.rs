//! The protocol of one shard's writer: a state machine without I/O. It decides which call of the
//! script comes next, and what its answer means.
//!
//! A frame is sent under one sequence until it is answered, and the script appends a sequence once,
//! whatever was lost on the way. Several frames may be under way: each names the one before it,
//! without which the script does not take it. So where one fails, all behind it fail, and they are
//! sent again in order. Calls are answered in the order in which they were made.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::sync::oneshot;

use super::flush::{Flush, Job};
use crate::bus::{
    AppendError, Appended, Epoch, Frame, Name, Offset, Position, Provenance, PublisherId, ShardId,
    StreamNumber,
    redis::{
        auth::{Authenticator, Kind},
        envelope::{
            Body, Header, StampedFrame, WriterId, encode_frame, encode_probe, events_of,
            read_requests, read_retained, with_tag,
        },
        recovery::{HeldFrame, Memory, Offer, Task},
        script::{
            Answer, Call, Covers, Failure, Framed, Op, Placing, Probe, Published, Retain, Status,
        },
        settings::CallLimits,
    },
    traced::TracedAppend,
    unix_ms,
};

/// Limits of one frame.
const FRAME_BYTES: usize = 128 * 1024;
const FRAME_EVENTS: usize = 2000;

/// Frames that may be under way, and bytes of events in them with which no other leaves.
const MAX_UNDER_WAY: (usize, usize) = (4, 4 * FRAME_BYTES);

/// Runs of publishers in one frame: the script looks at each.
const FRAME_RUNS: usize = 256;

/// The interval of probes.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// The wait after a probe that was not accepted, at most: a Redis that comes back is noticed well
/// within the time for which a recovery waits.
const PROBE_RETRY: Duration = Duration::from_millis(150);

/// The time within which one probe is enough for all gateways that ask for one at once.
const PROBE_SHARED: Duration = Duration::from_millis(50);

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

/// Attempts of one frame after which it asks for its turn, if others take its place each time.
const MAX_BEATEN: u32 = 2;

/// The numbers of which one is drawn for an epoch: those of the next 64 ms. Two servers that open
/// one behind the same epochs, at about the same time, hardly ever draw the same; and epochs that
/// begin in quick succession hardly go ahead of the clock.
const EPOCHS_AT_ONCE: u32 = 1 << 18;

/// The wait while it is another writer's turn.
const TURN_PAUSE: Duration = Duration::from_millis(5);

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
    /// Redis published this: it will come over the channel, or has.
    Published(Published),
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
    /// Streams that wait for their number.
    unnumbered: VecDeque<oneshot::Sender<StreamNumber>>,
    /// No batch that waits has an earlier deadline.
    earliest: Option<Instant>,
    /// The frames without an answer, in order.
    frames: VecDeque<Sending>,
    /// The number of the last frame.
    sequence: u64,
    probes: u64,
    /// Probes are made at whole intervals from then on: those of all shards at one time, so that
    /// they share what the network costs.
    started: Instant,
    next_probe: Instant,
    /// What is to be published soon.
    wanted: Wanted,
    /// The wait of the next retry.
    wait: Duration,
    /// No call is made before.
    paused: Option<Instant>,
    /// The calls that are under way, in the order in which they are sent and answered.
    under_way: VecDeque<UnderWay>,
    /// True if the last call that was answered failed: until one is taken, frames go one by one.
    failing: bool,
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
    /// True while a call that appends it is under way.
    under_way: bool,
    /// What earlier attempts knew of the shard's end whose outcome is unknown.
    unanswered: Vec<Position>,
    resends_left: u32,
    /// How often its exact place was taken, or its epoch was over.
    beaten: u32,
    traced: Option<TracedAppend>,
}

/// The probe that is to be published soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// None, if something else is.
    Nothing,
    /// One of any gateway; this one has not asked yet.
    Any,
    /// One of any gateway after this one, which was the last when this gateway asked first.
    After(Option<(WriterId, u64)>),
    /// One of this gateway.
    Own,
}

#[derive(Debug)]
enum UnderWay {
    /// The sequence of the frame, and what its writer knew of the shard's end.
    Append(u64, Position),
    Again(Box<Offer>),
    Probe,
    Release,
    /// The streams that it numbers.
    Number(Vec<oneshot::Sender<StreamNumber>>),
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
            unnumbered: VecDeque::new(),
            earliest: None,
            frames: VecDeque::new(),
            sequence: 0,
            probes: 0,
            started: now,
            next_probe: now,
            wanted: Wanted::Nothing,
            wait: limits.retry_wait.0,
            paused: None,
            under_way: VecDeque::new(),
            failing: false,
            offers: 1,
            why: NOT_IN_TIME.into(),
            frame_first: false,
        }
    }

    /// Adds a batch that is to be appended.
    pub fn add(&mut self, job: Job) {
        let deadline = job.deadline;
        self.earliest = Some(self.earliest.map_or(deadline, |earliest| earliest.min(deadline)));
        self.waiting.push_back(job);
    }

    /// Adds a stream that is to be numbered, after those that were added before. Who waits for it
    /// no more drops its receiver.
    pub fn number(&mut self, stream: oneshot::Sender<StreamNumber>) {
        self.unnumbered.push_back(stream);
    }

    /// True while batches wait for their answer.
    pub fn is_busy(&self) -> bool {
        !self.frames.is_empty() || !self.waiting.is_empty()
    }

    /// The number of batches that wait for the next frame.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The number of calls that are under way. Those beyond it have failed with one before them: no
    /// answer of them is wanted.
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// Asks for a probe at once.
    pub fn probe_now(&mut self, now: Instant) {
        self.next_probe = now;
        // With a key, a gateway begins with a probe of its own: one of another may be a replay.
        self.wanted = if self.auth.is_some() { Wanted::Own } else { Wanted::Any };
    }

    /// The next step. A call may be sent behind those that are under way, before they are answered.
    pub fn step(&mut self, now: Instant, memory: &mut Memory) -> Step {
        self.expire(now);
        let paused = self.paused.filter(|until| now < *until);
        let probes = self.under_way.iter().any(|call| matches!(call, UnderWay::Probe));
        let is_due = now >= self.next_probe || paused.is_none() && !memory.tip().is_known();
        // A probe does not wait: a gateway that comes back late takes no part in a recovery.
        if is_due && !probes {
            return self.probe(now, memory);
        }
        let mut until = if probes { now + PROBE_INTERVAL } else { self.next_probe };
        if let Some(paused) = paused {
            return Step::WaitUntil(self.until_deadline(paused.min(until)));
        }
        self.paused = None;
        match self.under_way.back() {
            Some(UnderWay::Again(last)) => {
                let last = last.held.name.last();
                let call = self.offer_behind(last, memory);
                return call.map_or(Step::WaitUntil(until), Step::Call);
            }
            Some(UnderWay::Release) => return Step::WaitUntil(until),
            _ if !memory.tip().is_known() => return Step::WaitUntil(until),
            _ => {}
        }
        if let Some(call) = self.number_streams(memory) {
            return Step::Call(call);
        }
        if memory.is_recovering() || !(self.frame_first && self.is_busy()) {
            if self.under_way.is_empty() {
                match memory.task(now) {
                    Task::Again(offer) => {
                        self.frame_first = true;
                        if let Some(step) = self.again(now, offer, memory) {
                            return step;
                        }
                    }
                    Task::Release => {
                        let knows_all = !memory.receives_earlier(now);
                        let op = Op::Release { caller: self.id, knows_all };
                        return self.release(op, memory);
                    }
                    Task::WaitUntil(at) => until = until.min(at),
                    Task::Nothing => {}
                }
            } else if memory.has_task(now) {
                // It goes alone, when all that is under way is answered.
                return Step::WaitUntil(self.until_deadline(until));
            }
        }
        self.frame_first = false;
        match self.next_frame() {
            Some(nth) => self.append(now, nth, memory),
            None => Step::WaitUntil(self.until_deadline(until)),
        }
    }

    /// Another frame to be appended again, that may be sent behind those that are under way. The
    /// script takes them in order: what comes behind one that it does not take has to wait.
    fn offer_behind(&mut self, last: Position, memory: &Memory) -> Option<Box<Call>> {
        // With a key, each call names the place that the one before it leads to.
        if self.auth.is_some() || self.under_way.len() >= self.offers {
            return None;
        }
        let offer = memory.offer_after(last)?;
        Some(self.offer(offer, memory, memory.seen()))
    }

    /// The index of the frame that is sent next: one that failed, or what waits.
    fn next_frame(&mut self) -> Option<usize> {
        let nth = self.frames.iter().take_while(|frame| frame.under_way).count();
        if self.frames.iter().skip(nth).any(|frame| frame.under_way) {
            // Those behind it fail too, and go after it.
            return None;
        }
        if let Some(last) = nth.checked_sub(1) {
            let bytes = self.frames.iter().take(nth).map(|frame| frame.flush.events.len());
            let is_full = nth >= MAX_UNDER_WAY.0 || bytes.sum::<usize>() >= MAX_UNDER_WAY.1;
            // With a key, each call names the place that the one before it leads to.
            if is_full || self.failing || self.auth.is_some() {
                return None;
            }
            // More frames cost Redis more: where one has many events, so has the next.
            let enough = self.frames[last].flush.count.max(self.limits.min_behind);
            let mut waiting = self.waiting.iter().scan(0, |sum, job| {
                *sum += job.batch.events.len() as u64;
                Some(*sum)
            });
            if nth == self.frames.len() && !waiting.any(|sum| sum >= enough) {
                return None;
            }
        }
        if nth == self.frames.len() {
            let first = self.next_waiting()?;
            self.gather(first);
        }
        Some(nth)
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
                self.landed(&under_way);
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
        if status != Status::OutOfOrder {
            (self.wait, self.failing) = (self.limits.retry_wait.0, false);
            self.paused = None;
            self.why = NOT_IN_TIME.into();
        }
        match (under_way, status) {
            (UnderWay::Append(sequence, seen), status) => {
                self.append_answered(now, (sequence, seen), status, memory)
            }
            (UnderWay::Again(offer), status) => self.again_answered(now, &offer, status, memory),
            (UnderWay::Probe, Status::Probed(published)) => {
                let asks_again = self.still_wants(published.probe);
                self.next_probe = self.probe_after(now);
                if asks_again {
                    let wait = PROBE_SHARED.mul_f64(self.rng.random_range(0.5..=1.5));
                    self.next_probe = now + wait;
                }
                Shown::Published(published)
            }
            (UnderWay::Number(streams), Status::Numbered(last)) => {
                let first = (last + 1).saturating_sub(streams.len() as u64);
                for (stream, number) in streams.into_iter().zip(first..) {
                    // Nobody may wait for it any more.
                    let _ = stream.send(number);
                }
                Shown::Answered
            }
            (UnderWay::Number(streams), Status::Recovering) => {
                self.number_again(streams);
                Shown::Answered
            }
            (UnderWay::Release, Status::Wait) => {
                self.paused = Some(now + RECOVERY_PAUSE);
                Shown::Answered
            }
            (UnderWay::Probe, _) => {
                self.next_probe = now + PROBE_RETRY;
                Shown::Answered
            }
            (UnderWay::Release | UnderWay::Number(_), _) => Shown::Answered,
        }
    }

    /// Answers everything that waits: the writer ends.
    pub fn fail_all(&mut self, error: &AppendError) {
        // What may have been appended is not known to have failed.
        let unknown = AppendError::OutcomeUnknown(error.to_string());
        for frame in self.frames.drain(..) {
            let may_be_there = frame.is_in_doubt() || frame.under_way;
            frame.fail(if may_be_there { &unknown } else { error });
        }
        self.waiting.drain(..).for_each(|job| job.answer(Err(error.clone())));
    }

    /// A call is not under way any more. The index of its frame, if it has one.
    fn landed(&mut self, call: &UnderWay) -> Option<usize> {
        let UnderWay::Append(sequence, _) = call else { return None };
        let nth = self.frames.iter().position(|frame| frame.sequence == *sequence)?;
        self.frames[nth].under_way = false;
        Some(nth)
    }

    fn failed(&mut self, now: Instant, under_way: UnderWay, failure: &Failure) -> Shown {
        self.offers = 1;
        let why = failure.to_string();
        let frame = self.landed(&under_way);
        if let (Some(nth), Failure::TooLarge { limit, actual }) = (frame, failure) {
            // It would fail for ever, and hold up what waits behind it.
            self.fail(nth, &AppendError::TooLarge { limit: *limit, actual: *actual });
            return Shown::Answered;
        }
        self.why.clone_from(&why);
        if matches!(failure, Failure::Unknown(_)) {
            // Nor have the calls behind it an answer.
            for call in std::iter::once(under_way).chain(std::mem::take(&mut self.under_way)) {
                match (self.landed(&call), call) {
                    (Some(nth), UnderWay::Append(_, seen)) => self.frames[nth].doubt(seen),
                    (_, UnderWay::Number(streams)) => self.number_again(streams),
                    _ => {}
                }
            }
            if let Some(nth) = frame {
                match self.frames[nth].resends_left.checked_sub(1) {
                    Some(left) => self.frames[nth].resends_left = left,
                    None => self.give_up(nth, &why),
                }
            }
        } else if let UnderWay::Number(streams) = under_way {
            self.number_again(streams);
        }
        self.failing = true;
        if self.paused.is_none_or(|until| until <= now) {
            // Full jitter, so that gateways do not come back in step; at least a tenth of the wait.
            self.paused = Some(now + self.wait.mul_f64(self.rng.random_range(0.1..=1.0)));
            self.wait = (self.wait * 2).min(self.limits.retry_wait.1);
        }
        let retry = now + PROBE_RETRY.mul_f64(self.rng.random_range(0.5..=1.0));
        let was_due = self.next_probe <= now;
        self.next_probe = if was_due { retry } else { self.next_probe.min(retry) };
        Shown::Failed(why)
    }

    /// Numbers the streams that wait, all with one call.
    fn number_streams(&mut self, memory: &Memory) -> Option<Box<Call>> {
        self.unnumbered.retain(|stream| !stream.is_closed());
        if self.unnumbered.is_empty()
            || memory.is_recovering()
            || self.under_way.iter().any(|call| matches!(call, UnderWay::Number(_)))
        {
            return None;
        }
        let streams = Vec::from(std::mem::take(&mut self.unnumbered));
        let (op, limit) = (Op::Number(streams.len()), self.limits.response_timeout);
        Some(self.call(op, UnderWay::Number(streams), memory, limit, memory.seen()))
    }

    /// Streams whose call had no answer have other numbers, in their order.
    fn number_again(&mut self, streams: Vec<oneshot::Sender<StreamNumber>>) {
        streams.into_iter().rev().for_each(|stream| self.unnumbered.push_front(stream));
    }

    fn fail(&mut self, nth: usize, error: &AppendError) {
        if let Some(frame) = self.frames.remove(nth) {
            frame.fail(error);
        }
    }

    fn give_up(&mut self, nth: usize, why: &str) {
        self.fail(nth, &AppendError::OutcomeUnknown(why.to_owned()));
    }

    /// Answers the callers whose time is over. Calls that are under way have a limit of their own.
    fn expire(&mut self, now: Instant) {
        if self.earliest.is_some_and(|earliest| earliest <= now) {
            let (over, rest): (VecDeque<_>, VecDeque<_>) =
                self.waiting.drain(..).partition(|job| job.deadline <= now);
            self.waiting = rest;
            self.earliest = self.waiting.iter().map(|job| job.deadline).min();
            for job in over {
                job.answer(Err(AppendError::Unavailable(self.why.clone())));
            }
        }
        for nth in (0..self.frames.len()).rev() {
            let frame = &mut self.frames[nth];
            if frame.under_way {
                continue;
            }
            let why = self.why.clone();
            if frame.is_in_doubt() {
                if frame.deadline().is_none_or(|deadline| deadline <= now) {
                    self.give_up(nth, &why);
                }
                continue;
            }
            frame.flush.fail_expired(now, &why);
            if frame.flush.jobs.is_empty() {
                self.fail(nth, &AppendError::Unavailable(why));
            }
        }
    }

    /// The earlier of `until` and the next deadline, or a time before that.
    fn until_deadline(&self, until: Instant) -> Instant {
        let waiting = self.earliest.filter(|_| !self.waiting.is_empty());
        let frames = self.frames.iter().filter(|frame| !frame.under_way);
        waiting.into_iter().chain(frames.filter_map(Sending::deadline)).fold(until, Instant::min)
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
        self.frames.push_back(Sending {
            traced: TracedAppend::start(flush.traces()),
            flush,
            sequence: self.sequence,
            under_way: false,
            unanswered: vec![],
            resends_left: self.limits.max_resends,
            beaten: 0,
        });
    }

    fn append(&mut self, now: Instant, nth: usize, memory: &Memory) -> Step {
        let seen = match self.position_for_tags(memory) {
            Ok(after) => after.unwrap_or_else(|| memory.seen()),
            Err(why) => {
                self.why = why;
                self.paused = Some(now + self.limits.retry_wait.1);
                return Step::WaitUntil(self.until_deadline(now + self.limits.retry_wait.1));
            }
        };
        let after = nth.checked_sub(1).map(|before| self.frames[before].sequence);
        let frame = &mut self.frames[nth];
        frame.under_way = true;
        let left = frame.deadline().map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        let limit = self.limits.response_timeout.min(left.max(MIN_ANSWER_TIME));
        let under_way = UnderWay::Append(frame.sequence, seen);
        let framed = Framed { after, ..frame.framed(self.id, seen.epoch) };
        let beaten = frame.beaten;
        let framed = self.with_tags(framed, seen, None);
        let mut call = self.call(Op::Append(framed), under_way, memory, limit, seen);
        if call.placing == Placing::Exact && beaten >= MAX_BEATEN {
            call.placing = Placing::ExactInTurn;
        }
        Step::Call(call)
    }

    fn append_answered(
        &mut self,
        now: Instant,
        (sequence, seen): (u64, Position),
        status: Status,
        memory: &mut Memory,
    ) -> Shown {
        let Some(nth) = self.landed(&UnderWay::Append(sequence, seen)) else {
            return Shown::Answered;
        };
        let frame = &mut self.frames[nth];
        match status {
            Status::Done(Some(appended)) => {
                let stamped = frame.stamped(self.id, appended, seen.epoch);
                let count = stamped.frame.count;
                memory.keep_own(stamped);
                self.accepted(nth, appended, count);
                return Shown::Published(Published::entry(memory.tip()));
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
                        self.accepted(nth, named, count);
                    }
                    _ => self.accepted(nth, name.0, name.1),
                }
            }
            Status::Duplicate { place: None, .. } => {
                self.give_up(nth, "later frames of this writer were appended before it");
            }
            Status::Seen(seen) => {
                frame.flush.answer_seen(&seen);
                if frame.flush.jobs.is_empty() {
                    self.frames.remove(nth);
                }
            }
            Status::Covered(covered) => {
                frame.flush.leave_out(&covered);
                if frame.flush.jobs.is_empty() {
                    self.frames.remove(nth);
                }
            }
            Status::TakenOver(over) => {
                frame.flush.refuse(&over);
                if frame.flush.jobs.is_empty() {
                    self.frames.remove(nth);
                }
            }
            // One before it was not taken, or a recovery is under way.
            Status::OutOfOrder | Status::Recovering => {}
            // The epoch is over, or another gateway was first at its exact place.
            Status::EpochOver => frame.beaten += 1,
            Status::NotItsTurn => self.paused = Some(now + TURN_PAUSE),
            Status::Done(None)
            | Status::Probed(_)
            | Status::There
            | Status::Wait
            | Status::Numbered(_) => {
                self.paused = Some(now + RECOVERY_PAUSE);
            }
        }
        Shown::Answered
    }

    fn accepted(&mut self, nth: usize, appended: Appended, count: u64) {
        let Some(frame) = self.frames.remove(nth) else { return };
        if let Some(traced) = frame.traced {
            traced.succeeded(self.shard, appended, frame.flush.count);
        }
        frame.flush.answer_all(appended, count);
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
            after: None,
            count: held.stamped.frame.count,
            bytes: offer.frame.clone(),
            requests,
            runs: held.stamped.runs().map(|at| Covers::of(&at.run)).collect(),
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
            Status::Done(_) => return Shown::Published(Published::entry(memory.tip())),
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

    /// True if what is wanted is not among what was published until now; `last` is the last probe.
    fn still_wants(&mut self, last: Option<(WriterId, u64)>) -> bool {
        let is_own = last == Some((self.id, self.probes));
        self.wanted = match self.wanted {
            _ if is_own => Wanted::Nothing,
            Wanted::After(before) if last.is_some() && last != before => Wanted::Nothing,
            Wanted::Any => Wanted::After(last),
            wanted => wanted,
        };
        self.wanted != Wanted::Nothing
    }

    /// When the next probe is made after one that was answered now: after half an interval at
    /// least.
    fn probe_after(&self, now: Instant) -> Instant {
        let since = now.saturating_duration_since(self.started) + PROBE_INTERVAL / 2;
        let passed = since.as_millis() / PROBE_INTERVAL.as_millis();
        let next = u32::try_from(passed + 1).unwrap_or(u32::MAX);
        self.started + PROBE_INTERVAL * next
    }

    fn probe(&mut self, now: Instant, memory: &Memory) -> Step {
        self.probes += 1;
        let must_be_own = self.auth.is_some() && !memory.has_begun();
        if memory.receives_earlier(now) || must_be_own {
            // Gateways of earlier versions know only those whose probes they receive. And with a
            // key a gateway begins with its own probe, of which the message may have been lost.
            self.wanted = Wanted::Own;
        }
        let time = self.auth.as_ref().map_or_else(unix_ms, |auth| auth.latest_time());
        let mut bytes = encode_probe(self.id, self.probes, time);
        let mut seen = memory.seen();
        if let Some(auth) = &self.auth {
            bytes = with_tag(auth, Kind::Probe, Position::UNKNOWN, &bytes);
            if !seen.is_known() {
                // An epoch for which nobody has made a tag before.
                seen = Position { epoch: auth.first_epoch(), offset: Offset(0) };
            }
        }
        let limit = PROBE_INTERVAL.min(self.limits.response_timeout);
        let unless_within = match self.wanted {
            Wanted::Nothing => None,
            Wanted::Any | Wanted::After(_) => Some(PROBE_SHARED),
            Wanted::Own => Some(Duration::ZERO),
        };
        let probe = Probe { writer: self.id, number: self.probes, bytes, unless_within };
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
        let entropy = self.rng.random_range(0..EPOCHS_AT_ONCE);
        // The tags of a frame are made for one place.
        let placing = match op {
            Op::Append(_) | Op::Again(..) if self.auth.is_some() => Placing::Exact,
            _ => Placing::Anywhere,
        };
        let reported = memory.reported();
        Box::new(Call { seen, placing, reported, entropy, op, limit })
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
    /// True if it may have been appended.
    fn is_in_doubt(&self) -> bool {
        !self.unanswered.is_empty()
    }

    /// The time until which it is sent: while nothing of it is there, each caller can still be
    /// answered alone.
    fn deadline(&self) -> Option<Instant> {
        if self.is_in_doubt() { self.flush.last_deadline() } else { self.flush.first_deadline() }
    }

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
            streams: &self.flush.streams,
        };
        Framed {
            writer,
            sequence: self.sequence,
            after: None,
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
            streams: self.flush.streams.clone().into(),
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
    use std::sync::atomic::AtomicBool;

    use bytes::Bytes;

    use super::*;
    use crate::bus::{
        Batch,
        ranges::Ranges,
        redis::{auth::Keys, envelope::Envelope, view::ShardView},
    };

    const LIMITS: CallLimits = CallLimits {
        response_timeout: Duration::from_secs(1),
        max_resends: 3,
        retry_wait: (Duration::from_millis(50), Duration::from_secs(1)),
        min_behind: 1,
    };

    /// A writer that knows its shard, and the answers of its batches.
    struct Writing {
        core: Core,
        memory: Memory,
        now: Instant,
        answers: Vec<oneshot::Receiver<Result<Appended, AppendError>>>,
    }

    impl Writing {
        fn new() -> Writing {
            let now = Instant::now();
            let core = Core::new(ShardId(0), 1, LIMITS, None, 1, now);
            let memory = Memory::new((100, 1 << 20));
            let mut writing = Writing { core, memory, now, answers: vec![] };
            assert!(matches!(writing.call().unwrap().op, Op::Probe(_)));
            writing.answer(9, Status::Probed(Published::entry(Position::new(9, 50))));
            writing
        }

        fn probed(&mut self, probe: Option<(WriterId, u64)>) {
            let published = Published { probe, ..Published::entry(Position::new(9, 50)) };
            self.answer(9, Status::Probed(published));
        }

        fn call(&mut self) -> Option<Box<Call>> {
            match self.core.step(self.now, &mut self.memory) {
                Step::Call(call) => Some(call),
                Step::WaitUntil(_) => None,
            }
        }

        /// The frame that is sent next: its sequence, and that of the one before it.
        fn append(&mut self) -> Option<(u64, Option<u64>)> {
            let Op::Append(framed) = self.call()?.op else { panic!("no frame") };
            Some((framed.sequence, framed.after))
        }

        fn answer(&mut self, epoch: u64, status: Status) {
            self.answer_while(false, epoch, status);
        }

        fn answer_while(&mut self, recovering: bool, epoch: u64, status: Status) {
            let view = ShardView {
                tip: Position::new(epoch, 50),
                copies: Ranges::default(),
                floor: Epoch(epoch - 1),
                ends: vec![],
                recovering,
            };
            let answer = Ok(Answer::Shard(view, status));
            self.core.answered(self.now, answer, &mut self.memory);
        }

        fn fail(&mut self, failure: Failure) {
            self.core.answered(self.now, Err(failure), &mut self.memory);
            // The pause is over, and no probe is due yet.
            self.now += Duration::from_millis(60);
        }

        fn add(&mut self, events: usize) {
            let (answer, answered) = oneshot::channel();
            let batch = Batch {
                events: vec![Bytes::from_static(b"event"); events],
                request_id: None,
                runs: vec![],
                retain: vec![],
                trace: None,
            };
            let deadline = self.now + Duration::from_mins(1);
            self.core.add(Job { batch, deadline, sent: Arc::new(AtomicBool::new(false)), answer });
            self.answers.push(answered);
        }

        /// Adds batches of one event, each of which leaves at once.
        fn send(&mut self, count: u64) {
            for sequence in 1..=count {
                self.add(1);
                let after = (sequence > 1).then(|| sequence - 1);
                assert_eq!(self.append(), Some((sequence, after)));
            }
        }
    }

    fn appended(first: u64) -> Status {
        Status::Done(Some(Appended { epoch: Epoch(9), first: Offset(first) }))
    }

    /// The next probe, some time later: within which time another one is enough.
    fn next_probe(writing: &mut Writing) -> Option<Duration> {
        writing.now += PROBE_INTERVAL * 2;
        let Op::Probe(probe) = writing.call().expect("a call").op else { panic!("no probe") };
        probe.unless_within
    }

    #[test]
    fn a_gateway_that_asks_for_a_probe_is_content_with_a_later_one_of_any_gateway() {
        let mut writing = Writing::new();
        assert_eq!(next_probe(&mut writing), None);
        writing.probed(Some((7, 3)));
        writing.core.probe_now(writing.now);
        // One that was there before may have been published before this gateway subscribed.
        for _ in 0..2 {
            assert_eq!(next_probe(&mut writing), Some(PROBE_SHARED));
            writing.probed(Some((7, 3)));
        }
        assert_eq!(next_probe(&mut writing), Some(PROBE_SHARED));
        writing.probed(Some((8, 1)));
        assert_eq!(next_probe(&mut writing), None);
        writing.probed(Some((8, 2)));
        // Its own is enough at once.
        writing.core.probe_now(writing.now);
        assert_eq!(next_probe(&mut writing), Some(PROBE_SHARED));
        writing.probed(Some((1, writing.core.probes)));
        assert_eq!(next_probe(&mut writing), None);
    }

    #[test]
    fn a_gateway_with_a_key_publishes_its_own_probe_until_it_has_read_one() {
        let key = crate::config::Secret::new("0123456789abcdef0123456789abcdef");
        let auth = Keys::of(&key).unwrap().on("channel");
        let mut writing = Writing::new();
        writing.core.auth = Some(auth);
        for _ in 0..3 {
            // The message of the one before was lost, although the script has published it.
            assert_eq!(next_probe(&mut writing), Some(Duration::ZERO));
            writing.probed(Some((1, writing.core.probes)));
        }
        writing.memory.begin();
        assert_eq!(next_probe(&mut writing), None);
    }

    #[test]
    fn a_stream_gets_its_number_when_the_shard_has_recovered() {
        let mut writing = Writing::new();
        let (number, mut numbered) = oneshot::channel();
        writing.core.number(number);
        assert!(matches!(writing.call().unwrap().op, Op::Number(1)));
        writing.answer_while(true, 10, Status::Recovering);
        assert!(matches!(writing.call().unwrap().op, Op::Release { .. }));
        writing.answer(10, Status::Done(None));
        assert!(matches!(writing.call().unwrap().op, Op::Number(1)));
        assert!(numbered.try_recv().is_err());
        writing.answer(10, Status::Numbered(77));
        assert_eq!(numbered.try_recv(), Ok(77));
    }

    #[test]
    fn frames_leave_before_the_first_is_answered_and_are_answered_in_order() {
        let mut writing = Writing::new();
        writing.send(MAX_UNDER_WAY.0 as u64);
        writing.add(1);
        writing.add(1);
        assert_eq!(writing.append(), None, "so many are under way");
        writing.answer(9, appended(51));
        assert_eq!(writing.append(), Some((5, Some(4))), "what waits leaves together");
        assert_eq!(writing.append(), None);
        for first in 52..=55 {
            writing.answer(9, appended(first));
        }
        let firsts = writing.answers.iter_mut().map(|it| it.try_recv().unwrap().unwrap().first.0);
        assert_eq!(firsts.collect::<Vec<_>>(), [51, 52, 53, 54, 55, 56]);
    }

    #[test]
    fn a_frame_leaves_behind_others_when_it_has_as_many_events() {
        let mut writing = Writing::new();
        writing.add(3);
        assert_eq!(writing.append(), Some((1, None)));
        writing.add(2);
        assert_eq!(writing.append(), None, "a small frame waits for the answer");
        writing.add(1);
        assert_eq!(writing.append(), Some((2, Some(1))));
        writing.add(1);
        assert_eq!(writing.append(), None);
        writing.answer(9, appended(51));
        writing.answer(9, appended(54));
        assert_eq!(writing.append(), Some((3, None)), "nothing is under way");
    }

    #[test]
    fn frames_behind_one_that_is_refused_are_sent_again_in_order() {
        let mut writing = Writing::new();
        writing.send(3);
        writing.fail(Failure::Refused("OOM".into()));
        assert_eq!(writing.append(), None, "those behind it are not answered");
        writing.answer(9, Status::OutOfOrder);
        writing.answer(9, Status::OutOfOrder);
        assert_eq!(writing.append(), Some((1, None)));
        assert_eq!(writing.append(), None, "Redis may refuse it again");
        writing.answer(9, appended(51));
        assert_eq!(writing.append(), Some((2, None)));
        assert_eq!(writing.append(), Some((3, Some(2))));
    }

    #[test]
    fn frames_behind_one_that_was_accepted_before_are_sent_again() {
        let mut writing = Writing::new();
        writing.send(2);
        writing.answer(9, Status::Covered(vec![]));
        writing.answer(9, Status::OutOfOrder);
        assert_eq!(writing.append(), Some((1, None)), "the rest of it");
        assert_eq!(writing.append(), Some((2, Some(1))));
    }

    #[test]
    fn frames_behind_one_without_an_answer_are_in_doubt() {
        let mut writing = Writing::new();
        writing.send(3);
        writing.answer(9, appended(51));
        writing.fail(Failure::Unknown("lost".into()));
        assert_eq!(writing.core.under_way(), 0);
        // Meanwhile the shard has another epoch.
        for sequence in [2, 3] {
            let Op::Append(framed) = writing.call().unwrap().op else { panic!("no frame") };
            assert_eq!(framed.sequence, sequence);
            writing.answer(10, Status::EpochOver);
            let Op::Append(framed) = writing.call().unwrap().op else { panic!("no frame") };
            let bytes = framed.bytes.into();
            let envelope = Envelope::parse_history(b"10-51", b"f", &bytes).unwrap();
            let Body::Frame(stamped) = envelope.body else { panic!("no frame") };
            let doubts = stamped.frame.provenance.unwrap().doubts;
            assert_eq!(doubts, [Position::new(9, 50)], "of frame {sequence}");
            let first = Offset(50 + sequence);
            writing.answer(10, Status::Done(Some(Appended { epoch: Epoch(10), first })));
        }
        assert!(!writing.core.is_busy());
    }

    #[test]
    fn a_frame_that_is_too_large_holds_up_nothing() {
        let mut writing = Writing::new();
        writing.send(2);
        writing.fail(Failure::TooLarge { limit: 1, actual: 2 });
        writing.answer(9, Status::OutOfOrder);
        assert_eq!(writing.append(), Some((2, None)));
        assert!(matches!(writing.answers[0].try_recv(), Ok(Err(AppendError::TooLarge { .. }))));
    }

    #[test]
    fn a_writer_that_ends_does_not_know_what_became_of_frames_under_way() {
        let mut writing = Writing::new();
        writing.send(1);
        writing.add(2);
        writing.core.fail_all(&AppendError::Closed);
        let mut answers = writing.answers.into_iter().map(|mut it| it.try_recv().unwrap());
        assert!(matches!(answers.next(), Some(Err(AppendError::OutcomeUnknown(_)))));
        assert!(matches!(answers.next(), Some(Err(AppendError::Closed))));
    }

    #[test]
    fn a_server_that_is_away_is_called_some_times_a_second() {
        let (mut now, mut calls) = (Instant::now(), 0);
        let end = now + Duration::from_secs(10);
        let mut core = Core::new(ShardId(0), 1, LIMITS, None, 1, now);
        let mut memory = Memory::new((100, 1 << 20));
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
