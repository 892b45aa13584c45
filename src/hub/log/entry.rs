//! One entry of a log.

use crate::bus::{Delivery, Gap, Position};

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
}

/// The content of an entry.
#[derive(Debug)]
pub enum Content {
    /// Events.
    Frame(IndexedFrame),
    /// Restored events: the log had them before, at the frame's origin.
    Restored(IndexedFrame),
    /// Missing events.
    Gap(Gap),
    /// A new epoch without loss.
    Epoch,
}

impl Entry {
    /// The entry for a delivery, which is not a start.
    pub fn new(delivery: Delivery) -> Entry {
        let (content, position) = match delivery {
            Delivery::Frame(frame) => {
                let position = frame.last();
                (Content::Frame(IndexedFrame::new(frame)), position)
            }
            Delivery::Restored(frame) => {
                let position = frame.last();
                (Content::Restored(IndexedFrame::new(frame)), position)
            }
            Delivery::Gap(gap) => {
                let position = gap.to;
                (Content::Gap(gap), position)
            }
            Delivery::Epoch(position) | Delivery::Start(position) => (Content::Epoch, position),
        };
        Entry { content, position, total: 0 }
    }

    /// The number of bytes of its events.
    pub fn wire_bytes(&self) -> usize {
        self.frame().map_or(0, |frame| frame.frame.events.len())
    }

    fn frame(&self) -> Option<&IndexedFrame> {
        match &self.content {
            Content::Frame(frame) | Content::Restored(frame) => Some(frame),
            Content::Gap(_) | Content::Epoch => None,
        }
    }

    pub(super) fn events(&self) -> usize {
        match &self.content {
            Content::Frame(frame) => frame.events.len(),
            _ => 0,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        let frame = self.frame().map_or(0, |frame| {
            frame.frame.events.len() + frame.events.len() * size_of::<IndexedEvent>()
        });
        ENTRY_COST + frame
    }
}
