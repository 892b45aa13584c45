//! The positions of which a gateway knows that they existed.

use std::{collections::BTreeMap, fmt::Write};

use crate::bus::{Epoch, Offset, Position, redis::ranges::Ranges};

/// Epochs that are remembered. With more, the lowest are forgotten.
const MAX_EPOCHS: usize = 64;

/// For each epoch the last position that anything told of. Every call of the script states it, so
/// that what nobody holds any more is told as lost, and not lost in silence.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    epochs: BTreeMap<Epoch, Known>,
    /// The text of all epochs but the last one.
    earlier: String,
}

#[derive(Clone, Debug, Default)]
struct Known {
    last: Offset,
    /// The offsets that hold no event of their own: copies and notes.
    copies: Ranges,
}

impl Heard {
    /// Learns that a position existed.
    pub fn hear(&mut self, position: Position) {
        if position.is_known() {
            let known = self.entry(position.epoch);
            known.last = known.last.max(position.offset);
            self.update(position.epoch);
        }
    }

    /// Learns that positions of an epoch hold copies or notes.
    pub fn hear_copies(&mut self, epoch: Epoch, copies: &Ranges) {
        if epoch != Epoch::NONE && !copies.is_empty() {
            self.entry(epoch).copies.add_all(copies);
            self.update(epoch);
        }
    }

    /// Learns that the positions from `first` to `last` hold copies or notes.
    pub fn hear_copy(&mut self, epoch: Epoch, first: Offset, last: Offset) {
        self.hear(Position { epoch, offset: last });
        self.entry(epoch).copies.add(first.0, last.0);
        self.update(epoch);
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
        if self.epochs.first_key_value().is_some_and(|(epoch, _)| *epoch <= floor) {
            self.epochs.retain(|epoch, _| *epoch > floor);
            self.update(Epoch::NONE);
        }
    }

    /// The text of the script's argument.
    pub fn text(&self) -> String {
        let mut text = self.earlier.clone();
        if let Some((epoch, known)) = self.epochs.last_key_value() {
            put(&mut text, *epoch, known);
        }
        text
    }

    fn entry(&mut self, epoch: Epoch) -> &mut Known {
        if self.epochs.len() >= MAX_EPOCHS && !self.epochs.contains_key(&epoch) {
            self.epochs.pop_first();
        }
        self.epochs.entry(epoch).or_default()
    }

    /// Updates the text of earlier epochs after a change of `epoch`.
    fn update(&mut self, epoch: Epoch) {
        let last = self.epochs.last_key_value().map(|(epoch, _)| *epoch);
        let first = self.epochs.first_key_value().map(|(epoch, _)| *epoch);
        if last == Some(epoch) && (first == last || !self.earlier.is_empty()) {
            // A younger epoch than before makes the last one an earlier one.
            let listed = self.earlier.split_ascii_whitespace().count();
            if listed + 1 == self.epochs.len() {
                return;
            }
        }
        self.earlier.clear();
        for (epoch, known) in self.epochs.iter().take(self.epochs.len().saturating_sub(1)) {
            put(&mut self.earlier, *epoch, known);
            self.earlier.push(' ');
        }
    }
}

fn put(text: &mut String, epoch: Epoch, known: &Known) {
    // Writing to a string cannot fail.
    let _ = write!(text, "{}:{}", epoch.0, known.last.0);
    if !known.copies.is_empty() {
        let _ = write!(text, ":{}", known.copies);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_every_epoch_in_order() {
        let mut heard = Heard::default();
        assert_eq!(heard.text(), "");
        heard.hear(Position::new(9, 3));
        heard.hear(Position::new(9, 2));
        assert_eq!(heard.text(), "9:3");
        heard.hear_copy(Epoch(12), Offset(1), Offset(4));
        heard.hear(Position::new(7, 1));
        heard.hear(Position::new(12, 6));
        assert_eq!(heard.text(), "7:1 9:3 12:6:1-4");
        heard.forget(Epoch(7));
        assert_eq!(heard.text(), "9:3 12:6:1-4");
    }

    #[test]
    fn the_lowest_epochs_are_forgotten() {
        let mut heard = Heard::default();
        (1..=100).for_each(|epoch| heard.hear(Position::new(epoch, 1)));
        assert_eq!(heard.iter().count(), MAX_EPOCHS);
        assert_eq!(heard.last(Epoch(1)), Offset(0));
        assert_eq!(heard.last(Epoch(100)), Offset(1));
    }
}
