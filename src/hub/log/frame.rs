//! A frame in the log, with the positions of its events and what they have in common.

use std::time::SystemTime;

use bytes::Bytes;
use trunkline_proto::kinds::{CUSTOM, MISSED_EVENTS};

use crate::{
    bus::{Frame, Offset},
    hub::{
        event::{EventMeta, EventView},
        kind_bits::kind_bit,
    },
};

/// The most different values of one field that a summary lists.
const MAX_VALUES: usize = 4;

/// A frame and the positions of its events.
#[derive(Debug)]
pub struct IndexedFrame {
    /// The frame.
    pub frame: Frame,
    /// The events, in order.
    pub events: Vec<IndexedEvent>,
    /// The time at which this gateway received the frame, if one of the events belongs to a
    /// recorded trace. The reader looks up which.
    pub traced: Option<SystemTime>,
    /// True if a publisher waits for one of the events.
    pub waited: bool,
    /// What the events have in common.
    pub summary: Summary,
}

/// Facts about all events of a frame, so that most filters need not look at each of them.
#[derive(Debug, Default)]
pub struct Summary {
    /// Their kinds, one bit each; see `kind_bit`.
    pub kinds: u128,
    /// True if any of them is for certain nodes only.
    pub targeted: bool,
    /// The publishing nodes.
    sources: Distinct,
    /// The types of the custom events.
    types: Distinct,
}

/// The different values of one field, each as the index of an event that has it, as long as there
/// are only a few.
#[derive(Debug, Default)]
struct Distinct {
    events: Vec<usize>,
    /// True if there are more values than the list holds.
    more: bool,
}

/// One event of a frame.
#[derive(Debug)]
pub struct IndexedEvent {
    /// The beginning in the frame's bytes, with tag and length.
    pub start: u32,
    /// The end in the frame's bytes.
    pub end: u32,
    /// The positions of the fields that filters look at.
    pub meta: EventMeta,
}

impl IndexedFrame {
    /// Finds the events of a frame. An event that cannot be peeked at (no gateway accepts one)
    /// matches no filter.
    pub fn new(frame: Frame) -> IndexedFrame {
        let mut events = Vec::with_capacity(usize::try_from(frame.count).unwrap_or(0));
        let (mut sampled, mut waited) = (false, false);
        let mut summary = Summary::default();
        let mut rest = &frame.events[..];
        while !rest.is_empty() {
            let start = frame.events.len() - rest.len();
            let Some(event) = split_event(&mut rest) else { break };
            let end = frame.events.len() - rest.len();
            let at = end - event.len();
            let meta = EventMeta::peek(&frame.events, at..end);
            let meta = meta.unwrap_or_else(|_| EventMeta::unreadable());
            sampled |= meta.is_sampled();
            waited |= meta.is_waited_for();
            events.push(IndexedEvent { start: offset(start), end: offset(end), meta });
            summary.add(&frame.events, &events);
        }
        IndexedFrame { frame, events, traced: sampled.then(SystemTime::now), waited, summary }
    }

    /// True if one of the events is the report of a link, which every stream must read.
    pub fn has_report(&self) -> bool {
        self.summary.kinds & kind_bit(MISSED_EVENTS) != 0
    }

    /// The event with this index.
    pub fn view(&self, index: usize) -> EventView<'_> {
        self.events[index].meta.view(&self.frame.events)
    }

    /// True if one of the events is, or may be, from this node.
    pub fn may_be_from(&self, node_id: &[u8]) -> bool {
        let sources = &self.summary.sources;
        sources.more || sources.events.iter().any(|nth| self.view(*nth).source_bytes() == node_id)
    }

    /// True if `includes` is true of the types of all custom events; may be false in error.
    pub fn types_all(&self, includes: impl Fn(&[u8]) -> bool) -> bool {
        let types = &self.summary.types;
        !types.more && types.events.iter().all(|nth| includes(self.view(*nth).custom_type_bytes()))
    }

    /// The offset of the event with this index.
    pub fn offset(&self, index: usize) -> Offset {
        self.frame.first.plus(index as u64)
    }

    /// The bytes from the first event to the last, encoded as in a batch.
    pub fn slice(&self, first: &IndexedEvent, last: &IndexedEvent) -> Bytes {
        self.frame.events.slice(first.start as usize..last.end as usize)
    }
}

impl Summary {
    /// Adds the last of `events`.
    fn add(&mut self, frame: &[u8], events: &[IndexedEvent]) {
        let Some(last) = events.last() else { return };
        let last = last.meta.view(frame);
        self.kinds |= kind_bit(last.kind());
        self.targeted |= last.has_target();
        let view = |index: usize| events[index].meta.view(frame);
        self.sources.add(events.len() - 1, |nth| view(nth).source_bytes());
        if last.kind() == CUSTOM {
            self.types.add(events.len() - 1, |nth| view(nth).custom_type_bytes());
        }
    }
}

impl Distinct {
    fn add<'a>(&mut self, event: usize, value: impl Fn(usize) -> &'a [u8]) {
        if self.more || self.events.iter().any(|known| value(*known) == value(event)) {
            return;
        }
        if self.events.len() < MAX_VALUES {
            self.events.push(event);
        } else {
            self.more = true;
        }
    }
}

/// The events in a slice of a frame's bytes, each without its tag and length.
pub(in crate::hub) fn events_of(chunk: &Bytes) -> impl Iterator<Item = Bytes> + '_ {
    let mut rest = &chunk[..];
    std::iter::from_fn(move || Some(chunk.slice_ref(split_event(&mut rest)?)))
}

/// Splits the next event off a frame's bytes.
fn split_event<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let mut tail = *rest;
    prost::encoding::decode_key(&mut tail).ok()?;
    let length = usize::try_from(prost::encoding::decode_varint(&mut tail).ok()?).ok()?;
    let (event, tail) = tail.split_at_checked(length)?;
    *rest = tail;
    Some(event)
}

/// Frames are far smaller than 4 GiB.
fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}
