//! Reports appends to the recorder of traces. The bus makes no spans itself: it says what it
//! appended, for which trace contexts, and since when.

use std::{fmt::Debug, sync::Arc, time::SystemTime};

use super::{Appended, ShardId};
use crate::trace_context::{MAX_LINKS, TraceContext};

/// Receives a report of each append that concerns recorded traces.
pub trait AppendRecorder: Debug + Send + Sync {
    /// An append has ended. Called on the path of events: it must not wait.
    fn append_ended(&self, append: AppendRecord);
}

/// One append, of events of one batch or of several.
#[derive(Debug)]
pub struct AppendRecord {
    /// The trace contexts of its events: at least one, in their order, with repetitions.
    pub contexts: Vec<TraceContext>,
    /// When the append began.
    pub started: SystemTime,
    /// Its result, or the error that its callers get.
    pub outcome: Result<AppendOutcome, String>,
}

/// Events that were appended together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendOutcome {
    /// Their shard.
    pub shard: ShardId,
    /// The position of the first.
    pub appended: Appended,
    /// How many they are.
    pub count: u64,
}

/// The recorded traces of a batch's events, and the recorder to report its append to.
#[derive(Clone, Debug)]
pub struct BatchTrace {
    recorder: Arc<dyn AppendRecorder>,
    contexts: Vec<TraceContext>,
}

/// An append under way. Nothing is reported if it is dropped.
#[derive(Debug)]
pub(super) struct TracedAppend {
    recorder: Arc<dyn AppendRecorder>,
    contexts: Vec<TraceContext>,
    started: SystemTime,
}

impl BatchTrace {
    /// A batch without traced events yet.
    pub fn new(recorder: Arc<dyn AppendRecorder>) -> BatchTrace {
        BatchTrace { recorder, contexts: vec![] }
    }

    /// Adds the context of one more event, unless one span could not hold it.
    pub fn add(&mut self, context: TraceContext) {
        // One is the parent of the span; the others are its links.
        if self.contexts.len() <= MAX_LINKS as usize && !self.contexts.contains(&context) {
            self.contexts.push(context);
        }
    }
}

impl TracedAppend {
    /// Starts an append of several batches; `None` if none of their events is traced.
    pub(super) fn start<'a>(
        mut traces: impl Iterator<Item = &'a BatchTrace>,
    ) -> Option<TracedAppend> {
        let BatchTrace { recorder, contexts } = traces.next()?.clone();
        let mut append = TracedAppend { recorder, contexts, started: SystemTime::now() };
        append.contexts.extend(traces.flat_map(|trace| &trace.contexts));
        Some(append)
    }

    /// Reports `count` events that were appended from `appended.first` on.
    pub(super) fn succeeded(self, shard: ShardId, appended: Appended, count: u64) {
        self.report(Ok(AppendOutcome { shard, appended, count }));
    }

    /// Reports that the append failed, or may have.
    pub(super) fn failed(self, why: String) {
        self.report(Err(why));
    }

    fn report(self, outcome: Result<AppendOutcome, String>) {
        let TracedAppend { recorder, contexts, started } = self;
        recorder.append_ended(AppendRecord { contexts, started, outcome });
    }
}
