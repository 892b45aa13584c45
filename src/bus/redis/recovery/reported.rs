//! The positions of which a gateway knows that they existed.

use std::{collections::BTreeMap, fmt::Write};

use crate::bus::{Epoch, Offset, Position, ranges::Ranges};

/// Epochs that are remembered. With more, the lowest are forgotten.
const MAX_EPOCHS: usize = 64;

/// For each epoch the last position that anything reported. Every call of the script states it, so
/// that what nobody holds any more is reported as lost, and not lost in silence.
#[derive(Clone, Debug, Default)]
pub struct Reported {
    epochs: BTreeMap<Epoch, Known>,
    /// Epochs up to this one are forgotten, whatever still names them.
    floor: Epoch,
}

#[derive(Clone, Debug, Default)]
struct Known {
    last: Offset,
    /// The offsets that hold no event of their own: copies and notes.
    copies: Ranges,
}

impl Reported {
    /// Learns that a position existed.
    pub fn add(&mut self, position: Position) {
        if let Some(known) = self.entry(position.epoch) {
            known.last = known.last.max(position.offset);
        }
    }

    /// Learns that positions of an epoch hold copies or notes.
    pub fn add_copies(&mut self, epoch: Epoch, copies: &Ranges) {
        if !copies.is_empty()
            && let Some(known) = self.entry(epoch)
        {
            known.copies.add_all(copies);
        }
    }

    /// Learns that the positions from `first` to `last` hold copies or notes.
    pub fn add_copy(&mut self, epoch: Epoch, first: Offset, last: Offset) {
        if let Some(known) = self.entry(epoch) {
            known.last = known.last.max(last);
            known.copies.add(first.0, last.0);
        }
    }

    /// The last position of an epoch.
    pub fn last(&self, epoch: Epoch) -> Offset {
        self.epochs.get(&epoch).map_or(Offset(0), |known| known.last)
    }

    /// The last position of the greatest epoch.
    pub fn greatest(&self) -> Option<Position> {
        let (epoch, known) = self.epochs.last_key_value()?;
        Some(Position { epoch: *epoch, offset: known.last })
    }

    /// The epochs, in ascending order, with the last position of each.
    pub fn iter(&self) -> impl Iterator<Item = Position> {
        self.epochs.iter().map(|(epoch, known)| Position { epoch: *epoch, offset: known.last })
    }

    /// Forgets epochs up to `floor`.
    pub fn forget(&mut self, floor: Epoch) {
        self.floor = self.floor.max(floor);
        while let Some(first) = self.epochs.first_entry()
            && *first.key() <= self.floor
        {
            first.remove();
        }
    }

    /// The text of the script's argument.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (epoch, known) in &self.epochs {
            let space = if text.is_empty() { "" } else { " " };
            // Writing to a string cannot fail.
            let _ = write!(text, "{space}{}:{}", epoch.0, known.last.0);
            if !known.copies.is_empty() {
                let _ = write!(text, ":{}", known.copies);
            }
        }
        text
    }

    fn entry(&mut self, epoch: Epoch) -> Option<&mut Known> {
        if epoch <= self.floor {
            return None;
        }
        if self.epochs.len() >= MAX_EPOCHS && !self.epochs.contains_key(&epoch) {
            self.epochs.pop_first();
        }
        Some(self.epochs.entry(epoch).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_every_epoch_in_order() {
        let mut reported = Reported::default();
        assert_eq!(reported.text(), "");
        reported.add(Position::new(9, 3));
        reported.add(Position::new(9, 2));
        assert_eq!(reported.text(), "9:3");
        reported.add_copy(Epoch(12), Offset(1), Offset(4));
        reported.add(Position::new(7, 1));
        reported.add(Position::new(12, 6));
        assert_eq!(reported.text(), "7:1 9:3 12:6:1-4");
        reported.forget(Epoch(7));
        assert_eq!(reported.text(), "9:3 12:6:1-4");
        // A copy may still name it.
        reported.add(Position::new(7, 1));
        assert_eq!(reported.text(), "9:3 12:6:1-4");
    }

    #[test]
    fn the_lowest_epochs_are_forgotten() {
        let mut reported = Reported::default();
        (1..=100).for_each(|epoch| reported.add(Position::new(epoch, 1)));
        assert_eq!(reported.iter().count(), MAX_EPOCHS);
        assert_eq!(reported.last(Epoch(1)), Offset(0));
        assert_eq!(reported.last(Epoch(100)), Offset(1));
    }
}
