//! An event as the hub sees it: bytes that a publisher encoded, and where in them the few things stand that the hub needs.
//!
//! A gateway never decodes an event to encode it again: prost drops what it does not know, and a rolling upgrade would lose
//! what a newer peer says. It peeks at the tags, and stamps an event by appending fields (in protobuf the last one wins).

mod routing;
mod stamp;
pub(crate) mod wire;

use std::{fmt, ops::Range};

pub(crate) use routing::Fnv32;
pub use routing::{routing_key_hash, shard_of};
pub use stamp::{stamp, stamped_len};
pub use wire::Malformed;
use wire::{Field, Fields, Span};

use crate::trace_context::TraceContext;

// Field numbers of `trunkline.v1.Event`, `Target`, and of what the kinds have in common.
const EVENT_ID: u32 = 1;
const SOURCE: u32 = 2;
const PUBLISH_TIME: u32 = 3;
const TARGET: u32 = 4;
const TRACEPARENT: u32 = 6;
const TRACESTATE: u32 = 7;
const TARGET_NODE_IDS: u32 = 1;
const TARGET_ROLES: u32 = 2;
/// `account_id` of the kinds that have one, and `type` of custom events.
const SUBJECT: u32 = 1;

/// The numbers that kinds have or will have.
pub const KINDS: std::ops::RangeInclusive<u8> = 10..=99;
/// The number of custom events, `Event.custom`.
pub const CUSTOM: u8 = 20;

/// Whether events of the kind concern one account: 10 to 13.
pub const fn concerns_account(kind: u8) -> bool {
    matches!(kind, 10..=13)
}

/// Where things stand in one event of a frame: 36 bytes that stand beside the frame in the log, so that no subscriber needs to
/// peek again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventMeta {
    event: Span,
    source: Span,
    /// The account, or the type of a custom event: no kind has both.
    subject: Span,
    /// From the key of the first target to the end of the last. Targets are rare, so they are walked again for each
    /// subscriber rather than kept decoded for each event.
    targets: Span,
    kind: u8,
    has_event_id: bool,
    has_publish_time: bool,
    trace: Trace,
}

/// What an event says of its trace. Where it says it is looked up again by those who follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trace {
    None,
    Unsampled,
    Sampled,
}

impl EventMeta {
    /// Peeks at the event that stands at `event` in `frame`. Takes about 50 ns and never panics, whatever the bytes.
    ///
    /// What it does not read it does not check: an event may pass here that does not decode.
    pub fn peek(frame: &[u8], event: Range<usize>) -> Result<EventMeta, Malformed> {
        let span = |range: Range<usize>| {
            let narrow = |at| u32::try_from(at).map_err(|_| Malformed::TooLarge);
            Ok(Span { start: narrow(range.start)?, end: narrow(range.end)? })
        };
        let event = span(event)?;
        let mut meta = EventMeta {
            event,
            source: Span::default(),
            subject: Span::default(),
            targets: Span::default(),
            kind: 0,
            has_event_id: false,
            has_publish_time: false,
            trace: Trace::None,
        };
        let mut fields = Fields::new(frame, event)?;
        while let Some(field) = fields.next()? {
            match field.number {
                EVENT_ID => meta.has_event_id = !field.content()?.is_empty(),
                SOURCE => meta.source = field.text(frame)?,
                PUBLISH_TIME => {
                    field.content()?;
                    meta.has_publish_time = true;
                }
                TARGET => meta.take_target(frame, &field)?,
                TRACEPARENT => meta.trace = Trace::of(field.text(frame)?.of(frame)),
                #[allow(clippy::cast_possible_truncation)] // every number that matches has 7 bits
                10..=99 => meta.take_kind(frame, &field, field.number as u8)?,
                _ => {}
            }
        }
        Ok(meta)
    }

    /// What stands for an event that cannot be peeked at: it has no kind, and no filter includes it.
    pub fn unreadable() -> EventMeta {
        EventMeta {
            event: Span::default(),
            source: Span::default(),
            subject: Span::default(),
            targets: Span::default(),
            kind: 0,
            has_event_id: false,
            has_publish_time: false,
            trace: Trace::None,
        }
    }

    /// The last arm of the oneof wins; if the same one comes again, protobuf merges the two.
    fn take_kind(&mut self, frame: &[u8], field: &Field, kind: u8) -> Result<(), Malformed> {
        if self.kind != kind {
            self.kind = kind;
            self.subject = Span::default();
        }
        if concerns_account(kind) || kind == CUSTOM {
            let mut fields = Fields::new(frame, field.content()?)?;
            while let Some(field) = fields.next()? {
                if field.number == SUBJECT {
                    self.subject = field.text(frame)?;
                }
            }
        } else if kind < CUSTOM {
            // The arms that are known are messages. What the others are, a later version will say.
            field.content()?;
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

    /// Whether the event belongs to a trace.
    pub fn has_trace(&self) -> bool {
        self.trace != Trace::None
    }

    /// Whether the event belongs to a trace that is recorded.
    pub fn is_sampled(&self) -> bool {
        self.trace == Trace::Sampled
    }

    /// Where the event stands in the frame.
    pub fn range(&self) -> Range<usize> {
        self.event.start as usize..self.event.end as usize
    }

    /// The event itself, in the frame that was peeked at. With other bytes the answers mean nothing.
    pub fn view<'a>(&self, frame: &'a [u8]) -> EventView<'a> {
        EventView { frame, meta: *self }
    }
}

/// An encoded event, with what a peek found in it.
#[derive(Clone, Copy)]
pub struct EventView<'a> {
    frame: &'a [u8],
    meta: EventMeta,
}

impl<'a> EventView<'a> {
    /// Peeks at an event that stands alone; see [`EventMeta::peek`].
    pub fn peek(event: &'a [u8]) -> Result<EventView<'a>, Malformed> {
        Ok(EventMeta::peek(event, 0..event.len())?.view(event))
    }

    /// Where things stand.
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
        (self.meta.kind == CUSTOM).then(|| text(self.custom_type_bytes()))
    }

    /// Whether the event has an id.
    pub fn has_event_id(&self) -> bool {
        self.meta.has_event_id
    }

    /// Whether the event says when it was published.
    pub fn has_publish_time(&self) -> bool {
        self.meta.has_publish_time
    }

    /// Whether the event is for certain nodes only.
    pub fn has_target(&self) -> bool {
        !self.meta.targets.is_empty()
    }

    /// The names in the event's targets: node ids and roles.
    pub fn target_names(&self) -> TargetNames<'a> {
        TargetNames {
            frame: self.frame,
            targets: Fields::new(self.frame, self.meta.targets).ok(),
            names: None,
        }
    }

    /// The event's id; empty if it has none. It is looked up: few ask.
    pub fn event_id(&self) -> &'a str {
        text(self.find(EVENT_ID))
    }

    /// The trace that the event belongs to. It is looked up: ask [`EventMeta::has_trace`] first.
    pub fn trace(&self) -> Option<TraceContext> {
        TraceContext::parse(self.find(TRACEPARENT))
    }

    /// The content of a field, the last one of its number; empty if there is none.
    fn find(&self, number: u32) -> &'a [u8] {
        let mut found: &[u8] = &[];
        // The peek has walked all of this without an error.
        let Ok(mut fields) = Fields::new(self.frame, self.meta.event) else { return found };
        while let Ok(Some(field)) = fields.next() {
            if field.number == number {
                found = field.content().map_or(&[], |content| content.of(self.frame));
            }
        }
        found
    }

    // The filter compares bytes: what was found to be UTF-8 needs not be checked again for every subscriber.

    pub(super) fn source_bytes(&self) -> &'a [u8] {
        self.meta.source.of(self.frame)
    }

    /// The account, or the type of a custom event; empty where there is neither.
    pub(super) fn subject_bytes(&self) -> &'a [u8] {
        self.meta.subject.of(self.frame)
    }

    /// Empty where there is none.
    pub(super) fn account_bytes(&self) -> &'a [u8] {
        let subject = self.meta.subject.of(self.frame);
        if concerns_account(self.meta.kind) { subject } else { &[] }
    }

    /// Empty where there is none.
    pub(super) fn custom_type_bytes(&self) -> &'a [u8] {
        let subject = self.meta.subject.of(self.frame);
        if self.meta.kind == CUSTOM { subject } else { &[] }
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

/// What was found to be UTF-8 by the peek.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// One name in an event's target, as bytes of UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetName<'a> {
    /// A node.
    NodeId(&'a [u8]),
    /// Every node with the role.
    Role(&'a [u8]),
}

/// Walks the names of all targets of one event.
pub struct TargetNames<'a> {
    frame: &'a [u8],
    /// What stands between the first target and the last one's end: targets, and maybe other fields.
    targets: Option<Fields<'a>>,
    /// The target that is being walked.
    names: Option<Fields<'a>>,
}

impl<'a> Iterator for TargetNames<'a> {
    type Item = TargetName<'a>;

    fn next(&mut self) -> Option<TargetName<'a>> {
        // The peek has walked all of this without an error.
        loop {
            while let Some(field) = self.names.as_mut().and_then(|names| names.next().ok()?) {
                match (field.number, field.content()) {
                    (TARGET_NODE_IDS, Ok(name)) => {
                        return Some(TargetName::NodeId(name.of(self.frame)));
                    }
                    (TARGET_ROLES, Ok(name)) => return Some(TargetName::Role(name.of(self.frame))),
                    _ => {}
                }
            }
            let field = self.targets.as_mut()?.next().ok()??;
            if field.number == TARGET {
                self.names = Fields::new(self.frame, field.content().ok()?).ok();
            }
        }
    }
}
