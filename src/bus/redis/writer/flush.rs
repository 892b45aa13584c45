//! One frame on its way, with the callers that wait for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::bus::{
    AppendError, Appended, Batch, BatchTrace, RequestId,
    redis::{envelope::encode_events, script::Retain},
    unix_ms,
};

/// A batch and its caller.
pub(in crate::bus::redis) struct Job {
    pub batch: Batch,
    /// The time limit of the caller.
    pub deadline: Instant,
    /// Set before any of it is sent.
    pub sent: Arc<AtomicBool>,
    pub answer: oneshot::Sender<Result<Appended, AppendError>>,
}

/// Jobs whose events are appended as one frame.
pub(super) struct Flush {
    pub jobs: Vec<Job>,
    /// The index of each job's first event.
    starts: Vec<u64>,
    pub events: Bytes,
    pub count: u64,
    pub time_ms: u64,
}

impl Flush {
    pub(super) fn new(jobs: Vec<Job>) -> Flush {
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

    pub(super) fn mark_sent(&self) {
        self.jobs.iter().for_each(|job| job.sent.store(true, Ordering::Release));
    }

    /// The recorded traces of its events.
    pub(super) fn traces(&self) -> impl Iterator<Item = &BatchTrace> {
        self.jobs.iter().filter_map(|job| job.batch.trace.as_deref())
    }

    /// The request ids, each with the index of its first event.
    pub(super) fn requests(&self) -> Vec<(RequestId, u64)> {
        let ids = self.jobs.iter().zip(&self.starts);
        ids.filter_map(|(job, start)| Some((job.batch.request_id?, *start))).collect()
    }

    /// The last event of each key that is to be retained.
    pub(super) fn retain(&self) -> Vec<Retain<'_>> {
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

    pub(super) fn first_deadline(&self) -> Instant {
        self.jobs.iter().map(|job| job.deadline).min().unwrap_or_else(Instant::now)
    }

    pub(super) fn last_deadline(&self) -> Instant {
        self.jobs.iter().map(|job| job.deadline).max().unwrap_or_else(Instant::now)
    }

    /// Fails the jobs whose deadline is over, while nothing of the frame was appended; `why` is for
    /// people.
    pub(super) fn fail_expired(&mut self, now: Instant, why: &str) {
        let expired: Vec<Job> = self.jobs.extract_if(.., |job| job.deadline <= now).collect();
        if expired.is_empty() {
            return;
        }
        for job in expired {
            let _ = job.answer.send(Err(AppendError::Unavailable(why.to_owned())));
        }
        self.encode();
    }

    /// Answers all jobs with the positions of their events.
    pub(super) fn answer_all(self, appended: Appended) {
        let Appended { epoch, first } = appended;
        for (job, start) in self.jobs.into_iter().zip(self.starts) {
            // A caller that does not wait any more has the answer that the outcome is unknown.
            let _ = job.answer.send(Ok(Appended { epoch, first: first.plus(start) }));
        }
    }

    /// Answers the jobs that were accepted before. `seen` has their index among those that have a
    /// request id, and their positions.
    pub(super) fn answer_seen(&mut self, seen: &[(usize, Appended)]) {
        let with_id: Vec<usize> = (0..self.jobs.len())
            .filter(|index| self.jobs[*index].batch.request_id.is_some())
            .collect();
        for (nth, appended) in seen.iter().rev() {
            let Some(index) = with_id.get(*nth) else { continue };
            let job = self.jobs.remove(*index);
            let _ = job.answer.send(Ok(*appended));
        }
        self.encode();
    }

    pub(super) fn fail(self, error: &AppendError) {
        for job in self.jobs {
            let _ = job.answer.send(Err(error.clone()));
        }
    }
}
