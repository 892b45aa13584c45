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
    AppendError, Appended, Batch, BatchTrace, Offset, RequestId, Run,
    ranges::Ranges,
    redis::{
        envelope::{encode_events, put_request, put_retained, put_run},
        script::{Covers, Retain},
    },
    unix_ms,
};

/// A batch and its caller.
#[derive(Debug)]
pub struct Job {
    /// The batch.
    pub batch: Batch,
    /// The time limit of the caller.
    pub deadline: Instant,
    /// Set before any of it is sent.
    pub sent: Arc<AtomicBool>,
    /// Takes the answer.
    pub answer: oneshot::Sender<Result<Appended, AppendError>>,
}

impl Job {
    /// Answers the caller. One that does not wait any more has another answer already.
    pub(super) fn answer(self, answer: Result<Appended, AppendError>) {
        let _ = self.answer.send(answer);
    }
}

/// Jobs whose events are appended as one frame.
#[derive(Debug)]
pub(super) struct Flush {
    pub jobs: Vec<Part>,
    pub events: Bytes,
    pub count: u64,
    pub time_ms: u64,
    /// The requests with an id, and the events that are kept, as the frame states them.
    pub requests: Vec<u8>,
    pub retained: Vec<u8>,
    /// The runs of publishers, those that continue one another joined, each with the index of its
    /// first event; and as the frame states them.
    runs: Vec<(u64, Run)>,
    pub encoded_runs: Vec<u8>,
    pub streams: Vec<u8>,
}

/// A job, and where its events are.
#[derive(Debug)]
pub(super) struct Part {
    pub job: Job,
    /// The number of events of each form that the frame had, and the index of the job's first event
    /// in it. The last form is the current one, and each has fewer events than the one before.
    forms: Vec<(u64, u64)>,
    /// True if some of its events were left out, since they are there under other positions.
    is_partial: bool,
}

impl Part {
    fn start(&self) -> u64 {
        self.forms.last().map_or(0, |(_, start)| *start)
    }
}

impl Flush {
    pub(super) fn new(jobs: Vec<Job>) -> Flush {
        let mut flush = Flush {
            jobs: (jobs.into_iter())
                .map(|job| Part { job, forms: vec![], is_partial: false })
                .collect(),
            events: Bytes::new(),
            count: 0,
            time_ms: unix_ms(),
            requests: vec![],
            retained: vec![],
            runs: vec![],
            encoded_runs: vec![],
            streams: vec![],
        };
        flush.encode();
        flush
    }

    fn encode(&mut self) {
        let count = self.jobs.iter().map(|part| part.job.batch.events.len() as u64).sum();
        let (mut start, mut requests, mut runs) = (0, Vec::new(), Vec::<(u64, Run)>::new());
        for part in &mut self.jobs {
            let events = part.job.batch.events.len() as u64;
            part.forms.push((count, start));
            if let Some(id) = &part.job.batch.request_id {
                put_request(&mut requests, id, start, events);
            }
            let mut first = start;
            for run in &part.job.batch.runs {
                let after = runs.last_mut().filter(|(at, last)| at + last.len() == first);
                let left = match after {
                    Some((_, last)) => last.join(run.clone()),
                    None => Some(run.clone()),
                };
                runs.extend(left.map(|run| (first, run)));
                first += run.len();
            }
            start += events;
        }
        self.encoded_runs.clear();
        self.streams.clear();
        for (first, run) in &runs {
            put_run(&mut self.encoded_runs, &mut self.streams, *first, run);
        }
        self.runs = runs;
        self.count = count;
        self.requests = requests;
        self.events =
            encode_events(self.jobs.iter().flat_map(|part| &part.job.batch.events)).into();
        let mut retained = Vec::new();
        self.retain().iter().for_each(|last| put_retained(&mut retained, last.index, last.key));
        self.retained = retained;
    }

    pub(super) fn mark_sent(&self) {
        self.jobs.iter().for_each(|part| part.job.sent.store(true, Ordering::Release));
    }

    /// The recorded traces of its events.
    pub(super) fn traces(&self) -> impl Iterator<Item = &BatchTrace> {
        self.jobs.iter().filter_map(|part| part.job.batch.trace.as_deref())
    }

    /// The request ids, each with the index of its first event.
    pub(super) fn requests(&self) -> Vec<(RequestId, u64)> {
        let ids = self.jobs.iter();
        ids.filter_map(|part| Some((part.job.batch.request_id?, part.start()))).collect()
    }

    /// What the runs of publishers cover.
    pub(super) fn runs(&self) -> Vec<Covers> {
        self.runs.iter().map(|(_, run)| Covers::of(run)).collect()
    }

    /// The last event of each key that is to be retained.
    pub(super) fn retain(&self) -> Vec<Retain> {
        let mut last: Vec<Retain> = Vec::new();
        for part in &self.jobs {
            for (index, key) in &part.job.batch.retain {
                let event = part.job.batch.events[*index].clone();
                last.retain(|before| before.key != *key);
                last.push(Retain { key: *key, index: part.start() + *index as u64, event });
            }
        }
        last
    }

    pub(super) fn first_deadline(&self) -> Option<Instant> {
        self.jobs.iter().map(|part| part.job.deadline).min()
    }

    pub(super) fn last_deadline(&self) -> Option<Instant> {
        self.jobs.iter().map(|part| part.job.deadline).max()
    }

    /// Fails the jobs whose deadline is over, while nothing of the frame was appended; `why` is for
    /// people.
    pub(super) fn fail_expired(&mut self, now: Instant, why: &str) {
        let expired: Vec<Part> =
            self.jobs.extract_if(.., |part| part.job.deadline <= now).collect();
        if expired.is_empty() {
            return;
        }
        for part in expired {
            part.job.answer(Err(AppendError::Unavailable(why.to_owned())));
        }
        self.encode();
    }

    /// Answers all jobs with the positions of their events. The frame that was appended has `count`
    /// events: it may have been sent with events that were left out later.
    pub(super) fn answer_all(self, appended: Appended, count: u64) {
        let Appended { epoch, first } = appended;
        for part in self.jobs {
            let start = part.forms.iter().find(|(total, _)| *total == count);
            let start = start.map_or_else(|| part.start(), |(_, start)| *start);
            let appended = Appended { epoch, first: Offset(first.0 + start) };
            part.job.answer(Ok(if part.is_partial { Appended::UNKNOWN } else { appended }));
        }
    }

    /// Answers the jobs that were accepted before. `seen` has their index among those that have a
    /// request id, and their positions.
    pub(super) fn answer_seen(&mut self, seen: &[(usize, Appended)]) {
        let with_id: Vec<usize> = (0..self.jobs.len())
            .filter(|index| self.jobs[*index].job.batch.request_id.is_some())
            .collect();
        for (nth, appended) in seen.iter().rev() {
            let Some(index) = with_id.get(*nth) else { continue };
            self.jobs.remove(*index).job.answer(Ok(*appended));
        }
        self.encode();
    }

    /// Leaves out the events that are there already: `covered` has runs, by index, and the
    /// sequences that the shard has of their publishers. Answers the jobs that have none left.
    pub(super) fn leave_out(&mut self, covered: &[(usize, Ranges)]) {
        let runs = std::mem::take(&mut self.runs);
        for (nth, covered) in covered {
            let Some((_, run)) = runs.get(*nth) else { continue };
            for part in &mut self.jobs {
                part.is_partial |= part.job.batch.leave_out(&run.publisher, covered);
            }
        }
        for part in self.jobs.extract_if(.., |part| part.job.batch.events.is_empty()) {
            part.job.answer(Ok(Appended::UNKNOWN));
        }
        self.encode();
    }

    /// Refuses the jobs of streams that were taken over: `over` has runs of them, by index.
    pub(super) fn refuse(&mut self, over: &[usize]) {
        let runs = std::mem::take(&mut self.runs);
        for (_, old) in over.iter().filter_map(|nth| runs.get(*nth)) {
            let of = |run: &Run| run.publisher == old.publisher && run.stream == old.stream;
            for part in self.jobs.extract_if(.., |part| part.job.batch.runs.iter().any(of)) {
                part.job.answer(Err(AppendError::TakenOver));
            }
        }
        self.encode();
    }

    pub(super) fn fail(self, error: &AppendError) {
        for part in self.jobs {
            part.job.answer(Err(error.clone()));
        }
    }
}
