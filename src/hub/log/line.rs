//! The epochs of a log: which of its entries are of which epoch, and how far each epoch is known.

use std::collections::VecDeque;

use crate::bus::{Epoch, EpochStart, Lost, Name, Offset, Position};

use super::entry::{Content, Entry};
use crate::hub::had::Had;

/// The most epochs, other names and epochs of other lines that are kept. The oldest are dropped.
const MAX_KNOWN: usize = 64;

/// A run of entries of one epoch. Not all epochs of a log lie on one line: a gateway that was on
/// the losing side of a split brain reads an older epoch after a younger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub epoch: Epoch,
    /// The number of its first entry.
    pub number: u64,
    /// Everything after this place, up to the end of the segment, is in the log.
    pub start: Offset,
    /// The last place.
    pub end: Offset,
    /// The end of the epoch before it, if the segment begins with the start of its epoch.
    pub previous: Option<Position>,
}

impl Segment {
    /// The place before it: of the epoch before, or in the middle of its own.
    fn before(&self) -> Position {
        self.previous.unwrap_or(Position { epoch: self.epoch, offset: self.start })
    }
}

/// What a log knows of epochs.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// In the order of the log; the last one grows.
    pub segments: VecDeque<Segment>,
    /// The epochs of the current line that ended, each with its last place. Ascending.
    before: Vec<Position>,
    /// For each epoch the highest name that is in the shard, was appended again, or is lost.
    /// Ascending.
    ends: Vec<Position>,
    /// Other names of events in the log.
    aliases: VecDeque<Position>,
    /// Epochs that lie on another line: the bus said that it does not know them.
    elsewhere: Vec<Epoch>,
}

/// Where a stream continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub) enum Resume {
    /// In the log, with the entry of this number; the stream stands at `position`.
    Log { number: u64, position: Position },
    /// In history, after this position; with the oldest event that is kept if it is unknown.
    History { after: Position },
    /// Nothing that the stream has had is known here.
    Unknown,
}

impl Line {
    /// The first delivery of the shard.
    pub fn begin(&mut self, start: &EpochStart) {
        let Position { epoch, offset } = start.position;
        self.segments.push_back(Segment {
            epoch,
            number: 0,
            start: offset,
            end: offset,
            previous: None,
        });
        self.learn(start.ends.iter().copied());
        self.learn([start.position, start.previous]);
        self.extend_line(start.previous);
    }

    /// Takes in the entry with this number, which is appended at the end.
    pub fn push(&mut self, entry: &Entry, number: u64) {
        let Position { epoch, offset } = entry.position;
        if let Content::Epoch(start) = &entry.content {
            self.begin_epoch(start, number);
        } else {
            if self.segments.back().is_none_or(|last| last.epoch != epoch) {
                self.continue_epoch(epoch, entry.first_place(), number);
            }
            if let Some(last) = self.segments.back_mut() {
                last.end = last.end.max(offset);
            }
        }
        self.learn([entry.position]);
        match &entry.content {
            Content::Frame(frame) => {
                if let Some(provenance) = &frame.frame.provenance {
                    self.learn(provenance.name.as_ref().map(Name::last));
                    self.aliases.extend(provenance.aliases.iter().map(|(_, alias)| *alias));
                    let over = self.aliases.len().saturating_sub(MAX_KNOWN);
                    self.aliases.drain(..over);
                }
            }
            Content::Gap(gap) => {
                let last = |lost: &Lost| Position { epoch: lost.epoch, offset: lost.last };
                self.learn(gap.lost.iter().map(last));
            }
            Content::Epoch(_) => {}
        }
    }

    /// Takes note that the first entries were dropped: `base` is the number of the first one left,
    /// and everything after `start` is in the log.
    pub fn trim(&mut self, base: u64, start: Position) {
        while self.segments.get(1).is_some_and(|second| second.number < base) {
            self.segments.pop_front();
        }
        if let Some(first) = self.segments.front_mut()
            && first.number < base
        {
            (first.number, first.previous) = (base, None);
            if first.epoch == start.epoch {
                first.start = start.offset;
            }
        }
    }

    /// Records that the bus does not know an epoch: it lies on another line.
    pub fn not_on_line(&mut self, epoch: Epoch) {
        if !self.elsewhere.contains(&epoch) {
            self.elsewhere.push(epoch);
            let over = self.elsewhere.len().saturating_sub(MAX_KNOWN);
            self.elsewhere.drain(..over);
        }
        self.before.retain(|end| end.epoch != epoch);
    }

    /// The highest name of an epoch that is known here.
    pub fn end_of(&self, epoch: Epoch) -> Option<Offset> {
        let index = self.ends.binary_search_by_key(&epoch, |end| end.epoch).ok()?;
        self.ends.get(index).map(|end| end.offset)
    }

    /// For each epoch the highest name that is known.
    pub fn ends(&self) -> &[Position] {
        &self.ends
    }

    /// What a stream has had that begins with the next event, besides the position at the end.
    pub fn latest(&self) -> Had {
        let mut had = Had::default();
        let Some(current) = self.segments.back().map(|last| last.epoch) else { return had };
        for end in self.ends.iter().filter(|end| end.epoch != current) {
            had.add(end.epoch, Offset(1), end.offset);
        }
        for alias in &self.aliases {
            had.add(alias.epoch, alias.offset, alias.offset);
        }
        for end in &self.before {
            had.walk(*end);
        }
        for segment in self.segments.iter().filter(|segment| segment.epoch != current) {
            had.walk(Position { epoch: segment.epoch, offset: segment.end });
        }
        had
    }

    /// The segment in which a place lies from which on the log has the rest of the line.
    /// `has_passed` tells whether a stream at the place walked through another epoch up to there.
    pub fn segment_after(
        &self,
        place: Position,
        has_passed: impl Fn(Position) -> bool,
    ) -> Option<usize> {
        let line = self.line();
        let index = line.iter().position(|epoch| *epoch == place.epoch)?;
        let segment = self.segment_with_rest(&line[index..], place.offset)?;
        let is_in = place.offset <= self.segments[segment].end;
        (is_in && self.is_covered(segment, has_passed)).then_some(segment)
    }

    /// True if a stream that reads the log from this segment on has everything before each later
    /// one: the end of the epoch before it, or the part of its epoch that is not in it.
    pub fn is_covered(&self, from: usize, has_passed: impl Fn(Position) -> bool) -> bool {
        let later = self.segments.iter().enumerate().skip(from + 1);
        later.filter(|(_, segment)| segment.before().offset > Offset(0)).all(|(index, segment)| {
            let place = segment.before();
            let mut between = self.segments.range(from..index);
            between.any(|read| read.epoch == place.epoch && read.end >= place.offset)
                || has_passed(place)
        })
    }

    /// True if each segment goes on behind a place that the one before it has. Otherwise the log
    /// has changed its line, and copies of what lies before its first entry may come behind others.
    pub fn is_one(&self) -> bool {
        let mut pairs = self.segments.iter().zip(self.segments.iter().skip(1));
        pairs.all(|(one, next)| {
            let place = next.before();
            place.epoch == one.epoch && (one.start..=one.end).contains(&place.offset)
        })
    }

    /// Where a stream continues that has had this.
    ///
    /// It goes on in the last epoch of the line through which it walked. Whoever walks through an
    /// epoch has passed all that comes before it on its line, and an epoch has one line before it.
    /// A stream that walked through none, but has names that are known here, reads the whole line.
    pub fn resume(&self, had: &Had, number_after: impl Fn(usize, Offset) -> u64) -> Resume {
        let line = self.line();
        let is_here = |epoch: &Epoch| had.is_entered(*epoch) && !self.elsewhere.contains(epoch);
        if let Some(index) = line.iter().rposition(is_here) {
            let position = Position { epoch: line[index], offset: had.walked(line[index]) };
            let has_passed = |at: Position| had.has_passed(at);
            let segment = self.segment_with_rest(&line[index..], position.offset);
            return match segment.filter(|segment| self.is_covered(*segment, has_passed)) {
                Some(segment) => {
                    Resume::Log { number: number_after(segment, position.offset), position }
                }
                None => Resume::History { after: position },
            };
        }
        // Whether an epoch before those that are known lies on the line, history knows.
        let begin = line.first().copied().unwrap_or_default();
        let may_be_before =
            |epoch: Epoch| epoch < begin && is_here(&epoch) && self.end_of(epoch).is_some();
        if let Some(found) = had.epochs().iter().rfind(|known| may_be_before(known.epoch)) {
            let after = Position { epoch: found.epoch, offset: found.walked };
            return Resume::History { after };
        }
        if had.epochs().iter().any(|known| self.end_of(known.epoch).is_some()) {
            return Resume::History { after: Position::UNKNOWN };
        }
        Resume::Unknown
    }

    /// The epochs of the current line, as far as they are known. Ascending.
    fn line(&self) -> Vec<Epoch> {
        let current = self.segments.back().map(|last| last.epoch);
        self.before.iter().map(|end| end.epoch).chain(current).collect()
    }

    /// The segment from which on the log has the rest of the line: everything after this place of
    /// the first of these epochs, and the others from their starts on.
    fn segment_with_rest(&self, line: &[Epoch], offset: Offset) -> Option<usize> {
        let mut segments = self.segments.iter();
        let mut before = segments.len();
        for (nth, epoch) in line.iter().enumerate().rev() {
            let found = segments.rposition(|segment| {
                segment.epoch == *epoch
                    && if nth == 0 {
                        segment.start <= offset
                    } else {
                        segment.previous.is_some_and(|previous| previous.epoch == line[nth - 1])
                    }
            });
            before = found?;
            segments = self.segments.iter();
            segments.nth_back(self.segments.len() - before - 1)?;
        }
        Some(before)
    }

    fn begin_epoch(&mut self, start: &EpochStart, number: u64) {
        let Position { epoch, offset } = start.position;
        self.learn(start.ends.iter().copied());
        self.learn([start.previous]);
        self.extend_line(start.previous);
        self.elsewhere.clear();
        self.segments.push_back(Segment {
            epoch,
            number,
            start: offset,
            end: offset,
            previous: Some(start.previous),
        });
        let over = self.segments.len().saturating_sub(MAX_KNOWN);
        // Epochs without a frame; their places are found in history.
        self.segments.drain(..over);
    }

    /// Another epoch goes on, after a place before `first`.
    fn continue_epoch(&mut self, epoch: Epoch, first: Offset, number: u64) {
        let before = Offset(first.0.saturating_sub(1));
        self.before.retain(|end| end.epoch < epoch);
        self.segments.push_back(Segment {
            epoch,
            number,
            start: before,
            end: before,
            previous: None,
        });
    }

    /// The current line has this epoch before the one that begins, up to this place.
    fn extend_line(&mut self, previous: Position) {
        self.before.retain(|end| end.epoch < previous.epoch);
        if previous.is_known() {
            self.before.push(previous);
            let over = self.before.len().saturating_sub(MAX_KNOWN);
            self.before.drain(..over);
        }
    }

    /// Takes in how far epochs go.
    pub fn learn(&mut self, ends: impl IntoIterator<Item = Position>) {
        for end in ends.into_iter().filter(|end| end.is_known()) {
            match self.ends.binary_search_by_key(&end.epoch, |known| known.epoch) {
                Ok(index) => self.ends[index].offset = self.ends[index].offset.max(end.offset),
                Err(index) => self.ends.insert(index, end),
            }
        }
        let over = self.ends.len().saturating_sub(MAX_KNOWN);
        self.ends.drain(..over);
    }
}
