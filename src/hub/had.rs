//! Events that a stream has had in one shard, by their names.
//!
//! The name of an event is the position at which the bus accepted it first. When the bus loses an
//! event and a gateway appends it again, the copy stands at another place and keeps the name. A
//! stream passes over every event whose name it has had, so that a copy changes nothing for it, on
//! whatever gateway it continues.
//!
//! Names and places are different things. A stream *walks* through the places of an epoch, one
//! after the other, and has had every name up to the place where it stands. Names beyond that which
//! it got as copies, or which it was told are lost, are kept apart: at their places, copies of
//! other events may stand that it has not had.

use crate::bus::{Epoch, Lost, Offset, Position};

/// The most epochs of one shard. The oldest are forgotten first, each as a whole.
pub(super) const MAX_EPOCHS: usize = 64;

/// The most ranges of one epoch. The lowest are forgotten first.
pub(super) const MAX_RANGES: usize = 64;

/// Tokens leave out epochs that ended this long before the last one: history keeps nothing for so
/// long. Streams do not forget them, since a log that is read again may still name them.
const MAX_AGE_MS: u64 = 8 * 24 * 60 * 60 * 1000;

/// The numbers of epochs are milliseconds since 1970, times this, and random low bits.
const EPOCHS_PER_MS: u64 = 4096;

/// What a stream has had in one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Had {
    /// True if the stream begins with the oldest event that is kept, and has read nothing yet.
    oldest: bool,
    /// By ascending epoch.
    epochs: Vec<EpochHad>,
}

/// What a stream has had in one epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpochHad {
    /// The epoch.
    pub epoch: Epoch,
    /// True if the stream walked through the epoch, or a part of it. Otherwise it knows names only.
    pub entered: bool,
    /// All places up to here were passed one after the other, so that all names up to here were
    /// had. 0 if the epoch was not entered.
    pub walked: Offset,
    /// Names beyond `walked` that were had: first and last. Ascending; at least one name lies
    /// between two of them.
    pub more: Vec<(Offset, Offset)>,
}

/// What a stream that stands at a place has had, without a copy: see [`Had::at`].
#[derive(Clone, Copy, Debug)]
pub struct HadAt<'a> {
    had: &'a Had,
    position: Position,
    /// The number of the oldest epochs that are left out.
    left_out: usize,
}

/// One epoch of [`HadAt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochView<'a> {
    /// See [`EpochHad`].
    pub epoch: Epoch,
    /// See [`EpochHad`].
    pub entered: bool,
    /// See [`EpochHad`].
    pub walked: Offset,
    /// See [`EpochHad`].
    pub more: &'a [(Offset, Offset)],
}

impl Had {
    /// A stream that begins with the oldest event that is kept.
    pub fn oldest() -> Had {
        Had { oldest: true, epochs: vec![] }
    }

    /// A stream that walked through the epoch of this position up to it.
    pub fn up_to(position: Position) -> Had {
        let mut had = Had::default();
        had.walk(position);
        had
    }

    /// The content, by ascending epoch; none if it is not in order, joined and within the bounds.
    pub(super) fn from_epochs(epochs: Vec<EpochHad>) -> Option<Had> {
        let ascending = epochs.is_sorted_by(|a, b| a.epoch < b.epoch);
        let within = epochs.len() <= MAX_EPOCHS && epochs.iter().all(EpochHad::is_in_order);
        (ascending && within).then_some(Had { oldest: false, epochs })
    }

    /// True if the stream begins with the oldest event that is kept, and has read nothing yet.
    pub fn is_oldest(&self) -> bool {
        self.oldest
    }

    /// True if nothing is known: the stream is at no place.
    pub fn is_unknown(&self) -> bool {
        !self.oldest && self.epochs.is_empty()
    }

    /// The epochs, ascending.
    pub fn epochs(&self) -> &[EpochHad] {
        &self.epochs
    }

    /// What is known of an epoch.
    pub fn epoch(&self, epoch: Epoch) -> Option<&EpochHad> {
        let index = self.epochs.binary_search_by_key(&epoch, |had| had.epoch).ok()?;
        self.epochs.get(index)
    }

    /// True if the event with this name was had.
    pub fn has(&self, name: Position) -> bool {
        self.epoch(name.epoch).is_some_and(|had| had.has(name.offset))
    }

    /// True if the stream walked through the epoch, or a part of it.
    pub fn is_entered(&self, epoch: Epoch) -> bool {
        self.epoch(epoch).is_some_and(|had| had.entered)
    }

    /// True if the stream walked through the epoch of this place up to it.
    pub fn has_passed(&self, place: Position) -> bool {
        self.epoch(place.epoch).is_some_and(|had| had.entered && had.walked >= place.offset)
    }

    /// All names up to the returned offset were had, as the stream walked there.
    pub fn walked(&self, epoch: Epoch) -> Offset {
        self.epoch(epoch).map_or(Offset(0), |had| had.walked)
    }

    /// The place where the stream stands; unknown if it is at none.
    pub fn place(&self) -> Position {
        let walked = self.epochs.iter().rfind(|had| had.entered);
        walked.map_or(Position::UNKNOWN, |had| Position { epoch: had.epoch, offset: had.walked })
    }

    /// True if names beyond [`Had::walked`] were had.
    pub fn has_more(&self, epoch: Epoch) -> bool {
        self.epoch(epoch).is_some_and(|had| !had.more.is_empty())
    }

    /// The highest name that was had in an epoch; 0 if none was.
    pub fn last(&self, epoch: Epoch) -> Offset {
        self.epoch(epoch).map_or(Offset(0), |had| had.more.last().map_or(had.walked, |last| last.1))
    }

    /// The first unbroken run of these names that were not had.
    pub fn first_missing(&self, lost: Lost) -> Option<Lost> {
        match self.epoch(lost.epoch) {
            Some(had) => had.first_missing(lost),
            None => (lost.first <= lost.last).then_some(lost),
        }
    }

    /// All of these names that were not had, as runs.
    pub fn missing(&self, mut lost: Lost) -> Vec<Lost> {
        let mut runs = Vec::new();
        while let Some(run) = self.first_missing(lost) {
            lost.first = run.last.plus(1);
            runs.push(run);
        }
        runs
    }

    /// Adds names of an epoch, from the first to the last.
    pub fn add(&mut self, epoch: Epoch, first: Offset, last: Offset) {
        let first = first.max(Offset(1));
        if epoch == Epoch::NONE || first > last {
            return;
        }
        if let Some(had) = self.entry(epoch) {
            had.add(first, last);
        }
    }

    /// Records that the stream walks through an epoch from here on.
    pub fn enter(&mut self, epoch: Epoch) {
        if epoch != Epoch::NONE
            && let Some(had) = self.entry(epoch)
        {
            had.entered = true;
        }
        self.oldest = false;
    }

    /// Records that the stream has read something.
    pub fn begin(&mut self) {
        self.oldest = false;
    }

    /// Records that the stream passed all places of the epoch up to this one.
    pub fn walk(&mut self, position: Position) {
        self.enter(position.epoch);
        let index = self.epochs.binary_search_by_key(&position.epoch, |had| had.epoch);
        if let Some(had) = index.ok().and_then(|index| self.epochs.get_mut(index)) {
            had.walk(position.offset);
        }
    }

    /// What a stream has had that stands at `position`, and has had all this besides.
    pub fn at(&self, position: Position) -> HadAt<'_> {
        HadAt { had: self, position, left_out: 0 }
    }

    /// The entry of an epoch, new if need be; none if older ones than it were forgotten already.
    fn entry(&mut self, epoch: Epoch) -> Option<&mut EpochHad> {
        let index = match self.epochs.binary_search_by_key(&epoch, |had| had.epoch) {
            Ok(index) => index,
            Err(0) if self.epochs.len() == MAX_EPOCHS => return None,
            Err(index) => {
                self.epochs.insert(index, EpochHad { epoch, ..EpochHad::default() });
                if self.epochs.len() > MAX_EPOCHS {
                    self.epochs.remove(0);
                    index - 1
                } else {
                    index
                }
            }
        };
        self.epochs.get_mut(index)
    }
}

impl EpochHad {
    fn has(&self, name: Offset) -> bool {
        let after = self.more.partition_point(|(first, _)| *first <= name);
        name <= self.walked || after.checked_sub(1).is_some_and(|at| name <= self.more[at].1)
    }

    fn first_missing(&self, lost: Lost) -> Option<Lost> {
        let mut first = lost.first.max(self.walked.plus(1));
        if lost.last <= self.walked {
            return None;
        }
        for (from, to) in &self.more {
            if *to < first {
                continue;
            }
            if *from > first {
                let last = lost.last.min(Offset(from.0 - 1));
                return (first <= last).then_some(Lost { first, last, ..lost });
            }
            if *to >= lost.last {
                return None;
            }
            first = to.plus(1);
        }
        (first <= lost.last).then_some(Lost { first, ..lost })
    }

    fn add(&mut self, first: Offset, last: Offset) {
        if last <= self.walked {
            return;
        }
        let (mut first, mut last) = (first.max(self.walked.plus(1)), last);
        // The ranges that it touches become one.
        let from = self.more.partition_point(|(_, to)| to.plus(1) < first);
        let to = self.more.partition_point(|(from, _)| *from <= last.plus(1));
        if from < to {
            first = first.min(self.more[from].0);
            last = last.max(self.more[to - 1].1);
            self.more[from] = (first, last);
            self.more.drain(from + 1..to);
        } else {
            self.more.insert(from, (first, last));
        }
        if self.more.len() > MAX_RANGES {
            self.more.remove(0);
        }
    }

    fn walk(&mut self, to: Offset) {
        if to <= self.walked {
            return;
        }
        self.walked = to;
        let passed = self.more.partition_point(|(_, last)| *last <= to);
        self.more.drain(..passed);
        if let Some((first, _)) = self.more.first_mut() {
            *first = (*first).max(to.plus(1));
        }
    }

    fn is_in_order(&self) -> bool {
        let begin = if self.walked.0 == u64::MAX {
            self.more.is_empty()
        } else {
            self.more.first().is_none_or(|(first, _)| *first > self.walked)
        };
        let apart = self.more.windows(2).all(|two| two[0].1.plus(1) < two[1].0);
        begin
            && apart
            && self.more.iter().all(|(first, last)| first <= last)
            && self.epoch != Epoch::NONE
            && self.more.len() <= MAX_RANGES
            && (self.entered || (self.walked.0 == 0 && !self.more.is_empty()))
    }

    fn view(&self) -> EpochView<'_> {
        let EpochHad { epoch, entered, walked, ref more } = *self;
        EpochView { epoch, entered, walked, more }
    }
}

static NOTHING: Had = Had { oldest: false, epochs: vec![] };

impl<'a> HadAt<'a> {
    /// Nothing is known.
    pub const UNKNOWN: HadAt<'static> =
        HadAt { had: &NOTHING, position: Position::UNKNOWN, left_out: 0 };

    /// True if the stream begins with the oldest event that is kept, and has read nothing yet.
    pub fn is_oldest(self) -> bool {
        self.had.oldest && !self.position.is_known()
    }

    /// True if the event with this name was had.
    pub fn has(self, name: Position) -> bool {
        let here = name.epoch == self.position.epoch && name.offset <= self.position.offset;
        here || self.had.has(name)
    }

    /// The same, whose list of epochs lacks those that ended long before the last one.
    #[must_use]
    pub fn recent(self) -> HadAt<'a> {
        let (epochs, here) = (&self.had.epochs, self.position.epoch);
        let newest = epochs.last().map_or(here, |had| had.epoch.max(here));
        let limit = newest.0.saturating_sub(MAX_AGE_MS * EPOCHS_PER_MS);
        // An epoch ended when the next one began.
        let old = epochs.partition_point(|had| had.epoch.0 < limit).saturating_sub(1);
        let before = epochs.partition_point(|had| had.epoch < here);
        HadAt { left_out: if self.position.is_known() { old.min(before) } else { old }, ..self }
    }

    /// The number of epochs.
    pub fn len(self) -> usize {
        let current = self.position.is_known() && self.had.epoch(self.position.epoch).is_none();
        self.had.epochs.len() - self.left_out + usize::from(current)
    }

    /// True if no epoch is known.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The epochs, ascending.
    pub fn epochs(self) -> impl Iterator<Item = EpochView<'a>> + Clone {
        let Position { epoch, offset } = self.position;
        let epochs = &self.had.epochs[self.left_out..];
        let at = epochs.partition_point(|had| had.epoch < epoch);
        let (before, after) = epochs.split_at(at);
        let same = after.first().filter(|had| had.epoch == epoch);
        let after = if same.is_some() { &after[1..] } else { after };
        let current = self.position.is_known().then(|| EpochView {
            epoch,
            entered: true,
            walked: same.map_or(offset, |had| had.walked.max(offset)),
            more: same.map_or(&[], |had| &had.more),
        });
        let views = |part: &'a [EpochHad]| part.iter().map(EpochHad::view);
        views(before).chain(current).chain(views(after))
    }

    /// The same as a value of its own, with all epochs.
    pub fn to_had(self) -> Had {
        let mut had = self.had.clone();
        if self.position.is_known() {
            had.walk(self.position);
        }
        had
    }
}

#[cfg(test)]
mod tests;
