//! The events that a cursor takes in one read.

use std::time::SystemTime;

use bytes::Bytes;

use crate::{
    bus::put_event,
    hub::{
        event::{EventMeta, WaitStamp},
        explanation::Explanation,
        log::IndexedFrame,
    },
    trace_context::TraceContext,
};

/// A batch is full when it holds this much. Larger ones gain little, and a node's client may refuse
/// them.
const MAX_BATCH_BYTES: usize = 64 * 1024;
pub(super) const MAX_BATCH_EVENTS: u64 = 1000;

/// Encoded events for one batch: at least one, or an explanation of at least one.
#[derive(Debug)]
pub struct Events {
    /// Their bytes, each event with the tag and length that it has in `EventBatch`.
    pub chunks: Vec<Bytes>,
    /// The number of events.
    pub count: u64,
    /// The number of bytes.
    pub bytes: usize,
    /// The time of the oldest of their frames, in milliseconds since 1970; `None` for last values
    /// that are kept beyond history.
    pub oldest_ms: Option<u64>,
    /// The events of recorded traces, if the cursor reports them.
    pub traced: Vec<TracedEvent>,
    /// The stamps of the events that a publisher waits for.
    pub waited: Vec<WaitStamp>,
    /// The filter's decisions about all events that were passed, if the cursor explains itself.
    pub explanation: Option<Box<Explanation>>,
    /// The limit of `traced`.
    pub(crate) max_traced: usize,
    /// The batch is full with this many events,
    pub(crate) max_count: u64,
    /// or this many bytes.
    pub(crate) max_bytes: usize,
}

/// A delivered event of a recorded trace.
#[derive(Clone, Copy, Debug)]
pub struct TracedEvent {
    /// The trace.
    pub context: TraceContext,
    /// The number of the event's kind.
    pub kind: u8,
    /// The time at which this gateway received the event, from the bus or from history.
    pub received: SystemTime,
}

impl Events {
    /// An empty batch that is full at about `max_events`.
    pub(crate) fn up_to(max_events: u64) -> Events {
        let times = usize::try_from(max_events.div_ceil(MAX_BATCH_EVENTS)).unwrap_or(1);
        Events {
            chunks: vec![],
            count: 0,
            bytes: 0,
            oldest_ms: None,
            traced: vec![],
            waited: vec![],
            explanation: None,
            max_traced: 0,
            max_count: max_events,
            max_bytes: MAX_BATCH_BYTES * times,
        }
    }

    /// A batch of encoded events that are in no frame.
    pub(crate) fn of<'e>(events: impl IntoIterator<Item = &'e [u8]>) -> Events {
        let mut body = Vec::new();
        let mut batch = Events::up_to(1);
        for event in events {
            put_event(&mut body, event);
            batch.count += 1;
        }
        batch.bytes = body.len();
        batch.chunks.push(body.into());
        batch
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
            && self.explanation.as_ref().is_none_or(|explanation| explanation.is_empty())
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes >= self.max_bytes || self.count >= self.max_count
    }

    /// Adds the bytes of the events from `first` to `last`; the caller counts them.
    pub(super) fn push(&mut self, frame: &IndexedFrame, (first, last): (usize, usize)) {
        let time = frame.frame.time_ms;
        self.oldest_ms = Some(self.oldest_ms.map_or(time, |oldest| oldest.min(time)));
        self.chunks.push(frame.slice(&frame.events[first], &frame.events[last]));
        if frame.waited {
            self.push_waited(frame, (first, last));
        }
        if let Some(received) = frame.traced {
            for event in &frame.events[first..=last] {
                self.push_traced(&event.meta, &frame.frame.events, received);
            }
        }
    }

    /// The stamps of those events that a publisher waits for.
    fn push_waited(&mut self, frame: &IndexedFrame, (first, last): (usize, usize)) {
        let waiters = (first..=last).filter_map(|index| frame.view(index).waiter());
        self.waited.extend(waiters.filter_map(WaitStamp::decode));
    }

    fn push_traced(&mut self, meta: &EventMeta, frame: &[u8], received: SystemTime) {
        if meta.is_sampled() && self.traced.len() < self.max_traced {
            let context = meta.view(frame).trace();
            self.traced.extend(context.map(|context| TracedEvent {
                context,
                kind: meta.kind(),
                received,
            }));
        }
    }
}
