//! The writer of one shard: appends what this gateway accepts, and appends again what Redis lost.
//!
//! Batches that wait leave together as the next frame, behind some that are under way: there is no
//! timer, so an idle shard adds no delay and a busy one fills its frames. What is sent, and what an
//! answer means, is decided by a state machine without I/O ([`Core`]); here are its connections and
//! clocks.

mod core;
mod flush;
mod rights;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesOrdered};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use self::rights::Rights;
pub use self::{
    core::{Core, PROBE_INTERVAL, Shown, Step},
    flush::Job,
};
use super::{
    deployment::Agreement,
    envelope::WriterId,
    liveness::Liveness,
    recovery::Memory,
    script::{Answer, Call, Failure, Op, Target},
    server::Server,
    settings::CallLimits,
    topology::Topology,
};
use crate::bus::{AppendError, Incidents, ShardId, StreamNumber, unix_ms};

/// Batches that may wait for a shard; further callers wait until one leaves the queue.
pub(super) const QUEUE: usize = 1024;

/// The number of times that a call follows a slot that is moving.
const MAX_REDIRECTS: u32 = 16;

/// The time that a recovery waits for an answer of shard 0.
const MAX_AGREEMENT: Duration = Duration::from_secs(1);

/// The time that a writer that stops gives what is still under way.
const MAX_STOP: Duration = Duration::from_mins(1);

/// What a writer is given to do.
pub(super) enum Work {
    /// Append a batch.
    Append(Job),
    /// Number a stream.
    Number(oneshot::Sender<StreamNumber>),
}

/// The parts of a writer that others share.
pub(super) struct WriterParts {
    pub shard: ShardId,
    pub id: WriterId,
    pub limits: CallLimits,
    /// When the writers of all shards began.
    pub started: Instant,
    pub target: Target,
    pub topology: Arc<Topology>,
    pub queue: mpsc::Receiver<Work>,
    pub liveness: Arc<Liveness>,
    pub memory: Arc<Mutex<Memory>>,
    /// What happens, for people.
    pub incidents: Arc<Mutex<Incidents>>,
    /// What shard 0 says of the deployment.
    pub agreement: Arc<Agreement>,
    /// Asks shard 0 for a probe now.
    pub ask_first: Arc<Notify>,
    /// Asks for a probe now.
    pub probe_now: Arc<Notify>,
    /// Says that there may be something to append again.
    pub recover_now: Arc<Notify>,
    /// Ends the writer after it has answered its queue.
    pub stop: CancellationToken,
}

/// The writer of one shard.
pub(super) struct Writer {
    parts: WriterParts,
    core: Core,
    caller: Caller,
    /// Since when appends wait for a recovery.
    recovering: Option<Instant>,
}

impl Writer {
    pub(super) fn new(parts: WriterParts) -> Writer {
        let auth = parts.target.names.auth.clone();
        let core =
            Core::new(parts.shard, parts.id, parts.limits, auth, rand::random(), parts.started);
        let caller = Caller {
            shard: parts.shard,
            target: parts.target.clone(),
            topology: parts.topology.clone(),
            agreement: parts.agreement.clone(),
            ask_first: parts.ask_first.clone(),
            rights: tokio::sync::Mutex::default(),
        };
        Writer { parts, core, caller, recovering: None }
    }

    /// Runs until it is stopped and the queue is empty.
    pub(super) async fn run(self) {
        let Writer { mut parts, mut core, caller, mut recovering } = self;
        let mut stopping: Option<Instant> = None;
        // They are polled first, and thereby sent, in this order.
        let mut calls = FuturesOrdered::new();
        let mut failed = false;
        let mut said = None;
        loop {
            if stopping.is_none() && parts.stop.is_cancelled() {
                parts.queue.close();
                stopping = Some(Instant::now());
            }
            while core.waiting() < QUEUE
                && let Ok(work) = parts.queue.try_recv()
            {
                core.take(work);
            }
            if let Some(since) = stopping
                && (!core.is_busy() || since.elapsed() > MAX_STOP)
            {
                core.fail_all(&AppendError::Closed);
                return;
            }
            if std::mem::take(&mut failed) {
                // If the refresh fails, so does the next attempt, with a reason.
                let _ = parts.topology.refresh().await;
            }
            let step = core.step(Instant::now(), &mut parts.memory.lock());
            let until = match step {
                Step::Call(call) => {
                    calls.push_back(caller.call(*call, calls.is_empty(), recovering));
                    continue;
                }
                Step::WaitUntil(until) => until,
            };
            let full = core.waiting() >= QUEUE;
            tokio::select! {
                biased;
                Some(answer) = calls.next(), if !calls.is_empty() => {
                    let now = Instant::now();
                    let mut memory = parts.memory.lock();
                    let shown = core.answered(now, answer, &mut memory);
                    recovering = memory.is_recovering().then(|| recovering.unwrap_or(now));
                    let (epoch, recovers) = (memory.tip().epoch, memory.is_recovering());
                    drop(memory);
                    if said.replace((epoch, recovers)) != Some((epoch, recovers)) {
                        let mut incidents = parts.incidents.lock();
                        incidents.said(unix_ms(), parts.shard, epoch, recovers);
                    }
                    if core.under_way() < calls.len() {
                        // They failed with this one.
                        calls = FuturesOrdered::new();
                    }
                    match shown {
                        Shown::Published(published) => parts.liveness.published(&published),
                        Shown::Answered => {}
                        Shown::Failed(why) => {
                            tracing::debug!(shard = %parts.shard, why, "a call failed");
                            parts.liveness.failed(why);
                            failed = true;
                        }
                    }
                }
                Some(work) = parts.queue.recv(), if !full => core.take(work),
                () = parts.probe_now.notified() => core.probe_now(Instant::now()),
                () = parts.recover_now.notified() => {}
                () = parts.stop.cancelled(), if stopping.is_none() => {}
                () = tokio::time::sleep_until(until.into()) => {}
            }
        }
    }
}

impl Core {
    fn take(&mut self, work: Work) {
        match work {
            Work::Append(job) => self.add(job),
            Work::Number(stream) => self.number(stream),
        }
    }
}

/// Makes the calls of one shard's writer.
struct Caller {
    shard: ShardId,
    target: Target,
    topology: Arc<Topology>,
    agreement: Arc<Agreement>,
    ask_first: Arc<Notify>,
    /// The rights of the user on the server of the shard.
    rights: tokio::sync::Mutex<Rights>,
}

impl Caller {
    /// Makes one call, if this gateway may serve the deployment. `alone`: none is under way.
    ///
    /// After a recovery, in which the agreement may have been lost with everything else, a shard
    /// goes on only when shard 0 has taken a call.
    async fn call(
        &self,
        call: Call,
        alone: bool,
        recovering: Option<Instant>,
    ) -> Result<Answer, Failure> {
        if self.shard == ShardId(0) {
            let started = Instant::now();
            let answer = self.call_server(&call, alone).await;
            match &answer {
                Ok(Answer::Deployment(theirs)) => {
                    self.agreement.answered(started, Some(theirs.clone()));
                }
                Ok(Answer::Shard(..)) => self.agreement.answered(started, None),
                Err(_) => {}
            }
            return answer;
        }
        if let (Op::Release { .. }, Some(since)) = (&call.op, recovering) {
            self.ask_first.notify_one();
            // One dead shard must not hold up the others for ever.
            let _ = tokio::time::timeout(MAX_AGREEMENT, self.agreement.after(since)).await;
        }
        match self.agreement.theirs() {
            Some(theirs) => Ok(Answer::Deployment(theirs)),
            None => self.call_server(&call, alone).await,
        }
    }

    /// Makes one call, and follows the shard where it moves. What is appended again behind other
    /// calls does not: the script takes it whatever became of these.
    async fn call_server(&self, call: &Call, alone: bool) -> Result<Answer, Failure> {
        let mut asked = None;
        let follows = alone || !matches!(call.op, Op::Again(..));
        let mut redirects = if follows { MAX_REDIRECTS } else { 0 };
        loop {
            let asking = asked.is_some();
            let server = asked.take().or_else(|| self.topology.master(self.shard));
            let Some(server) = server else {
                return Err(Failure::NotConnected("no server is known to own the shard".into()));
            };
            if !asking {
                self.check_rights(&server, call).await?;
            }
            if let (Op::Append(framed), Some(limit)) = (&call.op, server.max_frame_bytes())
                && framed.bytes.len() > limit
            {
                return Err(Failure::TooLarge { limit, actual: framed.bytes.len() });
            }
            let answer = call.send(&self.target, &server, asking).await;
            match &answer {
                Ok(_) => server.answered(None),
                Err(Failure::Refused(why) | Failure::Unknown(why)) => server.answered(Some(why)),
                Err(_) => {}
            }
            match answer {
                Err(Failure::AskAt(address)) if redirects > 0 => {
                    redirects -= 1;
                    asked = self.topology.server(&address);
                    if asked.is_none() {
                        return Err(Failure::AskAt(address));
                    }
                }
                Err(Failure::Refused(why)) => {
                    if why.starts_with("NOPERM") {
                        self.rights.lock().await.doubt();
                        // It says more exactly what is missing.
                        self.check_rights(&server, call).await?;
                    }
                    return Err(Failure::Refused(server.about.explain(&why)));
                }
                Err(Failure::Unknown(why)) if why.contains("NOPERM") => {
                    self.rights.lock().await.doubt();
                    return Err(Failure::Unknown(server.about.explain(&why)));
                }
                answer => return answer,
            }
        }
    }

    async fn check_rights(&self, server: &Server, call: &Call) -> Result<(), Failure> {
        self.rights.lock().await.check(server, &self.target.names, call.limit).await
    }
}
