//! An event as the hub sees it: the publisher's bytes, and the positions of the few fields that the
//! hub needs.
//!
//! A gateway never decodes an event to encode it again: prost drops fields that it does not know,
//! so a rolling upgrade would lose what a newer peer sends. The gateway peeks at the tags, and
//! stamps an event by appending fields (in protobuf the last one wins).

mod routing;
mod stamp;
mod target;
pub(super) mod waiter;
pub(crate) mod wire;

use std::{fmt, ops::Range};

pub(crate) use routing::Fnv32;
pub use routing::{routing_key_hash, shard_of, shard_of_nodes};
pub use stamp::{stamp, stamped_len};
pub use target::{TargetName, TargetNames};
use trunkline_proto::kinds::{self, Subject};
pub use waiter::{MAX_WAIT, WaitName, WaitStamp};
pub use wire::Malformed;
use wire::{Field, Fields, Span};

use crate::trace_context::TraceContext;

// Field numbers of `trunkline.v1.Event`, of `Target`, and of the field that kinds with a subject
// share.
const EVENT_ID: u32 = 1;
const SOURCE: u32 = 2;
const PUBLISH_TIME: u32 = 3;
const TARGET: u32 = 4;
const TRACEPARENT: u32 = 6;
const TRACESTATE: u32 = 7;
const WAITER: u32 = 101;
const TARGET_NODE_IDS: u32 = 1;
const TARGET_ROLES: u32 = 2;
/// `account_id` of the kinds that concern an account, and `type` of custom events.
const SUBJECT: u32 = 1;

const FIRST_KIND: u32 = *kinds::NUMBERS.start() as u32;
const LAST_KIND: u32 = *kinds::NUMBERS.end() as u32;

/// Positions of the fields of one event in a frame. Its 36 bytes are kept beside the frame in the
/// log, so that no subscriber needs to peek again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventMeta {
    event: Span,
    source: Span,
    /// The account, or the type of a custom event: no kind has both.
    subject: Span,
    /// From the key of the first target to the end of the last. Targets are rare, so each
    /// subscriber walks them again, and no event keeps them decoded.
    targets: Span,
    kind: u8,
    flags: Flags,
    trace: Trace,
}

/// Facts about an event, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Flags(u8);

impl Flags {
    const EVENT_ID: Flags = Flags(1);
    const PUBLISH_TIME: Flags = Flags(2);
    const SEVERAL_KINDS: Flags = Flags(4);
    const WAITER: Flags = Flags(8);

    fn set(&mut self, flag: Flags, on: bool) {
        self.0 = if on { self.0 | flag.0 } else { self.0 & !flag.0 };
    }

    fn has(self, flag: Flags) -> bool {
        self.0 & flag.0 != 0
    }
}

/// What an event says about its trace. The trace itself is looked up where it is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Trace {
    #[default]
    None,
    Unsampled,
    Sampled,
}

impl EventMeta {
    /// Peeks at the event at `event` in `frame`. Takes about 50 ns and never panics, whatever the
    /// bytes.
    ///
    /// Fields that it does not read are not checked: an event that does not decode may pass.
    pub fn peek(frame: &[u8], event: Range<usize>) -> Result<EventMeta, Malformed> {
        let narrow = |at| u32::try_from(at).map_err(|_| Malformed::TooLarge);
        let event = Span { start: narrow(event.start)?, end: narrow(event.end)? };
        let mut meta = EventMeta { event, ..EventMeta::default() };
        let mut fields = Fields::new(frame, event)?;
        while let Some(field) = fields.next()? {
            match field.number {
                EVENT_ID => meta.flags.set(Flags::EVENT_ID, !field.content()?.is_empty()),
                SOURCE => meta.source = field.text(frame)?,
                PUBLISH_TIME => {
                    field.content()?;
                    meta.flags.set(Flags::PUBLISH_TIME, true);
                }
                TARGET => meta.take_target(frame, &field)?,
                WAITER => meta.flags.set(Flags::WAITER, !field.content()?.is_empty()),
                TRACEPARENT => meta.trace = Trace::of(field.text(frame)?.of(frame)),
                #[allow(clippy::cast_possible_truncation)] // every number that matches has 7 bits
                FIRST_KIND..=LAST_KIND => meta.take_kind(frame, &field, field.number as u8)?,
                _ => {}
            }
        }
        Ok(meta)
    }

    /// Stands for an event that cannot be peeked at: it has no kind, and no filter includes it.
    pub fn unreadable() -> EventMeta {
        EventMeta::default()
    }

    /// The last arm of the oneof wins; if the same one comes again, protobuf merges the two.
    fn take_kind(&mut self, frame: &[u8], field: &Field, kind: u8) -> Result<(), Malformed> {
        if self.kind != 0 {
            self.flags.set(Flags::SEVERAL_KINDS, true);
        }
        if self.kind != kind {
            self.kind = kind;
            self.subject = Span::default();
        }
        match kinds::subject(kind) {
            Some(Subject::Account | Subject::CustomType) => {
                let mut fields = Fields::new(frame, field.content()?)?;
                while let Some(field) = fields.next()? {
                    if field.number == SUBJECT {
                        self.subject = field.text(frame)?;
                    }
                }
            }
            // A known kind is a message.
            Some(Subject::None) => {
                field.content()?;
            }
            // The wire type of an unknown kind is up to a later version.
            None => {}
        }
        Ok(())
    }

    /// Several targets merge: the names of all of them count.
    fn take_target(&mut self, frame: &[u8], field: &Field) -> Result<(), Malformed> {
        let content = field.content()?;
        let mut names = Fields::new(frame, content)?;
        while let Some(name) = names.next()? {
            if matches!(name.number, TARGET_NODE_IDS | TARGET_ROLES) {
                name.text(frame)?;
            }
        }
        if self.targets.is_empty() {
            self.targets.start = field.start;
        }
        self.targets.end = content.end;
        Ok(())
    }

    /// The number of the kind, 10 to 99; 0 if the event has none.
    pub fn kind(&self) -> u8 {
        self.kind
    }

    /// True if the event has more than one kind field. The gateway refuses to accept such an event,
    /// because readers that know different kinds would see different ones.
    pub fn has_several_kinds(&self) -> bool {
        self.flags.has(Flags::SEVERAL_KINDS)
    }

    /// True if the event belongs to a trace.
    pub fn has_trace(&self) -> bool {
        self.trace != Trace::None
    }

    /// True if the event belongs to a trace that is recorded.
    pub fn is_sampled(&self) -> bool {
        self.trace == Trace::Sampled
    }

    /// True if a publisher waits for the event.
    pub fn is_waited_for(&self) -> bool {
        self.flags.has(Flags::WAITER)
    }

    /// The position of the event in the frame.
    pub fn range(&self) -> Range<usize> {
        self.event.start as usize..self.event.end as usize
    }

    /// The event itself, in the frame that was peeked at. With other bytes the results are
    /// meaningless.
    pub fn view<'a>(&self, frame: &'a [u8]) -> EventView<'a> {
        EventView { frame, meta: *self }
    }
}

/// An encoded event with the positions of its fields.
#[derive(Clone, Copy)]
pub struct EventView<'a> {
    frame: &'a [u8],
    meta: EventMeta,
}

impl<'a> EventView<'a> {
    /// Peeks at a single event; see [`EventMeta::peek`].
    pub fn peek(event: &'a [u8]) -> Result<EventView<'a>, Malformed> {
        Ok(EventMeta::peek(event, 0..event.len())?.view(event))
    }

    /// The positions of its fields.
    pub fn meta(&self) -> &EventMeta {
        &self.meta
    }

    /// The encoded event.
    pub fn bytes(&self) -> &'a [u8] {
        self.meta.event.of(self.frame)
    }

    /// The number of the kind, 10 to 99; 0 if the event has none.
    pub fn kind(&self) -> u8 {
        self.meta.kind
    }

    /// The publishing node; empty if the event does not say.
    pub fn source(&self) -> &'a str {
        text(self.source_bytes())
    }

    /// The account, if the event is of a kind that concerns one and names it.
    pub fn account(&self) -> Option<&'a str> {
        Some(text(self.account_bytes())).filter(|account| !account.is_empty())
    }

    /// The type of a custom event; `None` for the other kinds.
    pub fn custom_type(&self) -> Option<&'a str> {
        (self.meta.kind == kinds::CUSTOM).then(|| text(self.custom_type_bytes()))
    }

    /// True if the event has an id.
    pub fn has_event_id(&self) -> bool {
        self.meta.flags.has(Flags::EVENT_ID)
    }

    /// True if the event has a publish time.
    pub fn has_publish_time(&self) -> bool {
        self.meta.flags.has(Flags::PUBLISH_TIME)
    }

    /// True if the event is for certain nodes only.
    pub fn has_target(&self) -> bool {
        !self.meta.targets.is_empty()
    }

    /// The names in the event's targets: node ids and roles.
    pub fn target_names(&self) -> TargetNames<'a> {
        TargetNames::new(self.frame, self.meta.targets)
    }

    /// The event's id; empty if it has none. Walks the event again: the id is rarely needed.
    pub fn event_id(&self) -> &'a str {
        text(self.find(EVENT_ID))
    }

    /// The trace that the event belongs to. Walks the event again: check [`EventMeta::has_trace`]
    /// first.
    pub fn trace(&self) -> Option<TraceContext> {
        TraceContext::parse(self.find(TRACEPARENT))
    }

    /// Who waits for the event, as its gateway stamped it; `None` if nobody does.
    pub fn waiter(&self) -> Option<&'a [u8]> {
        self.meta.is_waited_for().then(|| self.find(WAITER))
    }

    /// The content of a field, the last one of its number; empty if there is none.
    fn find(&self, number: u32) -> &'a [u8] {
        let mut found: &[u8] = &[];
        // The peek walked these bytes without an error.
        let Ok(mut fields) = Fields::new(self.frame, self.meta.event) else { return found };
        while let Ok(Some(field)) = fields.next() {
            if field.number == number {
                found = field.content().map_or(&[], |content| content.of(self.frame));
            }
        }
        found
    }

    // The filter compares bytes: checking UTF-8 again for every subscriber would cost more than the
    // comparison.

    pub(super) fn source_bytes(&self) -> &'a [u8] {
        self.meta.source.of(self.frame)
    }

    /// The account, or the type of a custom event; empty if there is neither.
    pub(super) fn subject_bytes(&self) -> &'a [u8] {
        self.meta.subject.of(self.frame)
    }

    /// Empty if there is none.
    pub(super) fn account_bytes(&self) -> &'a [u8] {
        let subject = self.meta.subject.of(self.frame);
        if kinds::concerns_account(self.meta.kind) { subject } else { &[] }
    }

    /// Empty if there is none.
    pub(super) fn custom_type_bytes(&self) -> &'a [u8] {
        let subject = self.meta.subject.of(self.frame);
        if self.meta.kind == kinds::CUSTOM { subject } else { &[] }
    }
}

impl Trace {
    fn of(traceparent: &[u8]) -> Trace {
        match TraceContext::parse(traceparent) {
            None => Trace::None,
            Some(context) if context.sampled => Trace::Sampled,
            Some(_) => Trace::Unsampled,
        }
    }
}

impl fmt::Debug for EventView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventView")
            .field("kind", &self.kind())
            .field("source", &self.source())
            .field("account", &self.account())
            .field("custom_type", &self.custom_type())
            .field("target", &self.target_names().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// Text that the peek found to be UTF-8.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}
