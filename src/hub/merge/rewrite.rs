//! Changes an encoded event as far as merging changes it, and keeps all other bytes.
//!
//! The rules of kinds work on decoded messages, which lack the fields of newer versions. So the
//! decoded messages only show which fields a rule has changed.

use std::collections::{HashMap, HashSet};

use bytes::{BufMut, Bytes};
use trunkline_proto::v1::event::Kind;

use crate::hub::event::wire::{Fields, Span, put_field, put_varint};

/// The field number of `Event.target`.
const TARGET: u32 = 4;

/// The field number of `Event.merged_events`.
const MERGED_EVENTS: u32 = 5;

/// One field of an encoded message.
#[derive(Clone, Copy)]
pub(super) struct RawField<'a> {
    pub number: u32,
    /// With its key.
    pub bytes: &'a [u8],
    /// The content of a length-delimited field; empty for a number.
    pub content: &'a [u8],
}

/// An encoded event and its decoded kind.
#[derive(Clone, Copy)]
pub(super) struct Encoded<'a> {
    pub event: &'a [u8],
    pub kind: &'a Kind,
}

/// The bytes of `later` with its kind changed to `joined`, which is `later` after `earlier` was
/// merged into it. `None` if an entry of `earlier` that has fields unknown to this version would be
/// lost.
pub(super) fn with_kind(earlier: Encoded<'_>, later: Encoded<'_>, joined: &Kind) -> Option<Bytes> {
    let number = u32::from(joined.number());
    let (mut known, mut known_before, mut known_after) = (Vec::new(), Vec::new(), Vec::new());
    earlier.kind.encode(&mut known);
    later.kind.encode(&mut known_before);
    joined.encode(&mut known_after);
    let known = content_of(&known, number)?;
    let known_before = content_of(&known_before, number)?;
    let known_after = content_of(&known_after, number)?;
    let event = fields(later.event)?;
    let (raw_earlier, raw) = (content_of(earlier.event, number)?, content_of(later.event, number)?);
    let (earlier, later) = (originals(&raw_earlier, &known), originals(&raw, &known_before));

    let mut changed: Vec<u32> =
        known_before.iter().chain(&known_after).map(|field| field.number).collect();
    changed.dedup();
    changed.sort_unstable();
    changed.dedup();
    changed.retain(|number| !of(&known_before, *number).eq(of(&known_after, *number)));
    let is_changed = |field: &&RawField<'_>| changed.contains(&field.number);
    let mut content: Vec<&[u8]> = Vec::with_capacity(raw.len() + known_after.len());
    content.extend(raw.iter().filter(|field| !is_changed(field)).map(|field| field.bytes));
    for field in known_after.iter().filter(is_changed) {
        let original = later.get(field.bytes).or_else(|| earlier.get(field.bytes));
        content.push(original.copied().unwrap_or(field.bytes));
    }
    if !earlier.is_empty() {
        let kept: HashSet<&[u8]> = content.iter().copied().collect();
        if !earlier.values().all(|original| kept.contains(original)) {
            return None;
        }
    }

    let mut bytes = Vec::with_capacity(known_after.len() + 2 * content.len());
    for field in event {
        if field.number == number {
            put_field(&mut bytes, number, &content.concat());
        } else {
            bytes.put_slice(field.bytes);
        }
    }
    Some(bytes.into())
}

/// The fields of an event that name its target, as they came.
pub(super) fn target(event: &[u8]) -> Bytes {
    let targets = fields(event).unwrap_or_default();
    of(&targets, TARGET).collect::<Vec<_>>().concat().into()
}

/// The event as one that stands for `count` events.
pub(super) fn with_merged_events(event: &Bytes, count: u64) -> Bytes {
    // The event was decoded before.
    let Some(fields) = fields(event) else { return event.clone() };
    let mut bytes = Vec::with_capacity(event.len() + 11);
    for field in fields.iter().filter(|field| field.number != MERGED_EVENTS) {
        bytes.put_slice(field.bytes);
    }
    put_varint(&mut bytes, u64::from(MERGED_EVENTS << 3));
    put_varint(&mut bytes, count);
    bytes.into()
}

/// The fields that decoding changes, since they contain more than this version knows: their bytes,
/// by the bytes that they have when they are decoded and encoded again.
///
/// Only those of which it is certain which is which: a field may occur twice, or be packed.
fn originals<'a>(raw: &[RawField<'a>], known: &[RawField<'a>]) -> HashMap<&'a [u8], &'a [u8]> {
    let mut originals = HashMap::new();
    let mut numbers: Vec<u32> = known.iter().map(|field| field.number).collect();
    numbers.dedup();
    for number in numbers {
        if of(raw, number).count() == of(known, number).count() {
            let pairs = of(known, number).zip(of(raw, number));
            originals.extend(pairs.filter(|(known, raw)| known != raw));
        }
    }
    originals
}

/// The bytes of all fields with this number.
fn of<'a>(fields: &[RawField<'a>], number: u32) -> impl Iterator<Item = &'a [u8]> {
    fields.iter().filter(move |field| field.number == number).map(|field| field.bytes)
}

/// The fields in the field with this number, of which there is one.
fn content_of(message: &[u8], number: u32) -> Option<Vec<RawField<'_>>> {
    fields(fields(message)?.iter().find(|field| field.number == number)?.content)
}

/// All fields of a message; `None` if it is malformed.
pub(super) fn fields(message: &[u8]) -> Option<Vec<RawField<'_>>> {
    let end = u32::try_from(message.len()).ok()?;
    let mut walk = Fields::new(message, Span { start: 0, end }).ok()?;
    let mut fields = Vec::new();
    while let Some(field) = walk.next().ok()? {
        fields.push(RawField {
            number: field.number,
            bytes: &message[field.start as usize..walk.at()],
            content: field.content().map_or(&[], |content| content.of(message)),
        });
    }
    Some(fields)
}
