//! One entry of a log.

use crate::bus::{Delivery, EpochStart, Gap, Lost, Offset, Position, Provenance};

use super::frame::{IndexedEvent, IndexedFrame};

/// The approximate cost of an entry in memory, besides its events, in bytes.
const ENTRY_COST: usize = 160;

/// One entry of a log.
#[derive(Debug)]
pub struct Entry {
    /// The content.
    pub content: Content,
    /// The position after it.
    pub position: Position,
    /// The number of events ever appended to the log, up to and including this entry.
    pub total: u64,
    /// The end of the log before it, if every stream must read it whatever it wants: it changes
    /// what the stream has had by more than a step of its place.
    pub follows: Option<Position>,
}

/// The content of an entry.
#[derive(Debug)]
pub enum Content {
    /// Events.
    Frame(IndexedFrame),
    /// Missing events.
    Gap(Gap),
    /// A new epoch.
    Epoch(EpochStart),
}

impl Entry {
    /// The entry for a delivery.
    pub fn new(delivery: Delivery) -> Entry {
        let (content, position) = match delivery {
            Delivery::Frame(frame) => {
                let position = frame.last();
                (Content::Frame(IndexedFrame::new(frame)), position)
            }
            Delivery::Gap(gap) => {
                let position = gap.position;
                (Content::Gap(gap), position)
            }
            Delivery::Epoch(start) | Delivery::Start(start) => {
                let position = start.position;
                (Content::Epoch(start), position)
            }
        };
        Entry { content, position, total: 0, follows: None }
    }

    /// True if it is a frame that was accepted here first, without doubt, in the epoch of the
    /// position before it: the next step on the way of every stream.
    pub(super) fn is_step_from(&self, before: Position) -> bool {
        let plain = self.frame().is_some_and(|frame| frame.frame.provenance.is_none());
        plain && self.position.epoch == before.epoch
    }

    /// The place before it, if the log goes on with it in another epoch than before: a stream must
    /// have passed that place.
    pub(in crate::hub) fn goes_on_after(&self) -> Option<Position> {
        let (before, epoch) = (self.follows?, self.position.epoch);
        let place = match &self.content {
            // Also one of an epoch without events: what is before it is on the line.
            Content::Epoch(start) => return start.previous.is_known().then_some(start.previous),
            _ if before.epoch != epoch => {
                Position { epoch, offset: Offset(self.first_place().0.saturating_sub(1)) }
            }
            _ => return None,
        };
        (place.offset > Offset(0)).then_some(place)
    }

    /// The offset of the first place that it has, or tells of as missing.
    pub(super) fn first_place(&self) -> Offset {
        let Position { epoch, offset } = self.position;
        match &self.content {
            Content::Frame(frame) => frame.frame.first,
            Content::Gap(gap) => {
                let lost = gap.lost.iter().filter(|lost| lost.epoch == epoch);
                lost.map(|lost| lost.first).fold(offset, Offset::min)
            }
            Content::Epoch(_) => offset,
        }
    }

    /// The number of bytes of its events.
    pub fn wire_bytes(&self) -> usize {
        self.frame().map_or(0, |frame| frame.frame.events.len())
    }

    fn frame(&self) -> Option<&IndexedFrame> {
        match &self.content {
            Content::Frame(frame) => Some(frame),
            Content::Gap(_) | Content::Epoch(_) => None,
        }
    }

    pub(super) fn events(&self) -> usize {
        self.frame().map_or(0, |frame| frame.events.len())
    }

    pub(super) fn bytes(&self) -> usize {
        let frame = self.frame().map_or(0, |frame| {
            frame.frame.events.len() + frame.events.len() * size_of::<IndexedEvent>()
        });
        ENTRY_COST + self.extra_bytes() + frame
    }
    /// What recovery added, in bytes.
    fn extra_bytes(&self) -> usize {
        match &self.content {
            Content::Frame(frame) => frame.frame.provenance.as_ref().map_or(0, |provenance| {
                let left = provenance.name.as_ref().map_or(0, |name| name.left.len());
                size_of::<Provenance>()
                    + left * size_of::<u64>()
                    + provenance.aliases.len() * size_of::<(u64, Position)>()
                    + provenance.doubts.len() * size_of::<Position>()
            }),
            Content::Gap(gap) => gap.lost.len() * size_of::<Lost>(),
            Content::Epoch(start) => start.ends.len() * size_of::<Position>(),
        }
    }
}
