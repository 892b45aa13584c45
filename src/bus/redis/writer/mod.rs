//! The writer of one shard: appends what this gateway accepts, and appends again what Redis lost.
//!
//! Batches that wait while the last frame is under way leave together as the next one: there is no
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

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
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
use crate::bus::{AppendError, ShardId};

/// Batches that may wait for a shard; further callers wait until one leaves the queue.
pub(super) const QUEUE: usize = 1024;

/// The number of times that a call follows a slot that is moving.
const MAX_REDIRECTS: u32 = 16;

/// The time that a recovery waits for an answer of shard 0.
const MAX_AGREEMENT: Duration = Duration::from_secs(1);

/// The time that a writer that stops gives what is still under way.
const MAX_STOP: Duration = Duration::from_mins(1);

/// The parts of a writer that others share.
pub(super) struct WriterParts {
    pub shard: ShardId,
    pub id: WriterId,
    pub limits: CallLimits,
    pub target: Target,
    pub topology: Arc<Topology>,
    pub queue: mpsc::Receiver<Job>,
    pub liveness: Arc<Liveness>,
    pub memory: Arc<Mutex<Memory>>,
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
    /// Since when appends wait for a recovery.
    recovering: Option<Instant>,
    /// The rights of the user on the server of the shard.
    rights: Rights,
}

impl Writer {
    pub(super) fn new(parts: WriterParts) -> Writer {
        let auth = parts.target.names.auth.clone();
        let core =
            Core::new(parts.shard, parts.id, parts.limits, auth, rand::random(), Instant::now());
        Writer { parts, core, recovering: None, rights: Rights::default() }
    }

    /// Runs until it is stopped and the queue is empty.
    pub(super) async fn run(mut self) {
        let mut stopping: Option<Instant> = None;
        loop {
            if stopping.is_none() && self.parts.stop.is_cancelled() {
                self.parts.queue.close();
                stopping = Some(Instant::now());
            }
            while self.core.waiting() < QUEUE
                && let Ok(job) = self.parts.queue.try_recv()
            {
                self.core.add(job);
            }
            if let Some(since) = stopping
                && (!self.core.is_busy() || since.elapsed() > MAX_STOP)
            {
                self.core.fail_all(&AppendError::Closed);
                return;
            }
            let step = self.core.step(Instant::now(), &mut self.parts.memory.lock());
            match step {
                Step::Call(call) => {
                    let more = self.more();
                    let answers = if more.is_empty() {
                        vec![self.call(&call).await]
                    } else {
                        self.call_in_order(&call, &more).await
                    };
                    let failed = answers.iter().any(Result::is_err);
                    for answer in answers {
                        match self.answered(Instant::now(), answer) {
                            Shown::Accepted => self.parts.liveness.accepted(),
                            Shown::Answered => {}
                            Shown::Failed(why) => {
                                tracing::debug!(shard = %self.parts.shard, why, "a call failed");
                                self.parts.liveness.failed(why);
                            }
                        }
                    }
                    if failed {
                        // If the refresh fails, so does the next attempt, with a reason.
                        let _ = self.parts.topology.refresh().await;
                    }
                }
                Step::WaitUntil(until) => {
                    let full = self.core.waiting() >= QUEUE;
                    tokio::select! {
                        biased;
                        Some(job) = self.parts.queue.recv(), if !full => self.core.add(job),
                        () = self.parts.probe_now.notified() => {
                            self.core.probe_now(Instant::now());
                        }
                        () = self.parts.recover_now.notified() => {}
                        () = self.parts.stop.cancelled(), if stopping.is_none() => {}
                        () = tokio::time::sleep_until(until.into()) => {}
                    }
                }
            }
        }
    }

    fn answered(&mut self, now: Instant, answer: Result<Answer, Failure>) -> Shown {
        let mut memory = self.parts.memory.lock();
        let shown = self.core.answered(now, answer, &mut memory);
        self.recovering = memory.is_recovering().then(|| self.recovering.unwrap_or(now));
        shown
    }

    /// The calls that may be sent behind the one that is to be made.
    fn more(&mut self) -> Vec<Call> {
        let memory = self.parts.memory.lock();
        std::iter::from_fn(|| self.core.more(&memory).map(|call| *call)).collect()
    }

    /// Makes calls over one connection without waiting for the answers between. They follow one
    /// that was made, so that the rights are known; the shard is not followed where it moves.
    async fn call_in_order(&self, first: &Call, more: &[Call]) -> Vec<Result<Answer, Failure>> {
        let theirs = self.parts.agreement.theirs();
        let server = self.parts.topology.master(self.parts.shard);
        let calls = [first].into_iter().chain(more);
        // They are polled, and thereby sent, in this order.
        join_all(calls.map(async |call| match (&theirs, &server) {
            (Some(theirs), _) => Ok(Answer::Deployment(theirs.clone())),
            (None, Some(server)) => call.send(&self.parts.target, server, false).await,
            (None, None) => Err(Failure::NotConnected("no server is known".into())),
        }))
        .await
    }

    /// Makes one call, if this gateway may serve the deployment.
    ///
    /// After a recovery, in which the agreement may have been lost with everything else, a shard
    /// goes on only when shard 0 has taken a call.
    async fn call(&mut self, call: &Call) -> Result<Answer, Failure> {
        let agreement = self.parts.agreement.clone();
        if self.parts.shard == ShardId(0) {
            let started = Instant::now();
            let answer = self.call_server(call).await;
            match &answer {
                Ok(Answer::Deployment(theirs)) => {
                    agreement.answered(started, Some(theirs.clone()));
                }
                Ok(Answer::Shard(..)) => agreement.answered(started, None),
                Err(_) => {}
            }
            return answer;
        }
        if let (Op::Release { .. }, Some(since)) = (&call.op, self.recovering) {
            self.parts.ask_first.notify_one();
            // One dead shard must not hold up the others for ever.
            let _ = tokio::time::timeout(MAX_AGREEMENT, agreement.after(since)).await;
        }
        match agreement.theirs() {
            Some(theirs) => Ok(Answer::Deployment(theirs)),
            None => self.call_server(call).await,
        }
    }

    /// Makes one call, and follows the shard where it moves.
    async fn call_server(&mut self, call: &Call) -> Result<Answer, Failure> {
        let mut asked = None;
        let mut redirects = MAX_REDIRECTS;
        loop {
            let asking = asked.is_some();
            let server = asked.take().or_else(|| self.parts.topology.master(self.parts.shard));
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
            match call.send(&self.parts.target, &server, asking).await {
                Err(Failure::AskAt(address)) if redirects > 0 => {
                    redirects -= 1;
                    asked = self.parts.topology.server(&address);
                    if asked.is_none() {
                        return Err(Failure::AskAt(address));
                    }
                }
                Err(Failure::Refused(why)) => {
                    if why.starts_with("NOPERM") {
                        self.rights.doubt();
                        // It says more exactly what is missing.
                        self.check_rights(&server, call).await?;
                    }
                    return Err(Failure::Refused(server.about.explain(&why)));
                }
                Err(Failure::Unknown(why)) if why.contains("NOPERM") => {
                    self.rights.doubt();
                    return Err(Failure::Unknown(server.about.explain(&why)));
                }
                answer => return answer,
            }
        }
    }

    async fn check_rights(&mut self, server: &Server, call: &Call) -> Result<(), Failure> {
        self.rights.check(server, &self.parts.target.names, call.limit).await
    }
}
