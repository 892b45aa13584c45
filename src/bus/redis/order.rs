//! The order of one shard: a state machine without I/O.
//!
//! The reader uses it for envelopes from the channel, and so does every reading of history. An
//! envelope that does not follow is a hole on the channel, to be repaired from history; in history
//! it is a gap, because there is no other source.
//!
//! A shard's epochs form a line: each begins behind a position of the one before. A Redis that lost
//! a tail, or won against another one, has another line than the gateway has read so far. The
//! epochs that are new in it are read from where the two lines part; nothing is read twice.

use std::collections::BTreeMap;

use super::{
    envelope::{Body, Envelope, StampedFrame},
    view::ShardView,
};
use crate::bus::{Delivery, Epoch, EpochStart, Gap, GapReason, Lost, Offset, Position, unix_ms};

/// The number of epochs that are remembered. With more, the lowest are forgotten.
const MAX_EPOCHS: usize = 256;

/// The order of one shard, up to a position.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// The last position delivered.
    position: Position,
    /// For each epoch the last offset delivered.
    walked: BTreeMap<Epoch, Offset>,
    /// For each epoch the last offset that the line reported: at its own place, as a copy or lost.
    /// Less than what was delivered, where the line goes on without a tail that was.
    reported: BTreeMap<Epoch, Offset>,
    /// The ends of epochs, as the last entry or view told of them.
    ends: BTreeMap<Epoch, Offset>,
    /// The shard has forgotten the epochs up to this one.
    floor: Epoch,
    /// True while the shard recovers: `ends` may not say yet how far earlier epochs went.
    recovering: bool,
    /// The names that the entries of the reading which is being taken, and those behind it, bring
    /// as copies, or report as lost: what of them history no longer has at its own place is not
    /// missing.
    coming: Vec<Lost>,
    /// How far `coming` goes, if the shard has copies or notes behind that.
    coming_to: Option<Position>,
    ahead: Ahead,
    /// The places of the shard's epoch that hold copies or notes: none of them is an event.
    copies: Vec<Lost>,
    /// The time of the last frame, in milliseconds since 1970.
    time_ms: Option<u64>,
    /// The order of a page of history for a stream, which may have a part of the next frame and has
    /// chosen where to begin.
    page: bool,
    /// History is read again, to find an epoch that was left out.
    read_again: Option<ReadAgain>,
}

/// A part of history that is read a second time, in one reading or several.
#[derive(Clone, Copy, Debug)]
struct ReadAgain {
    /// The position after which it begins.
    from: Position,
    /// The last entry that was taken: the next reading goes on there.
    to: Position,
}

/// Readings of history that are only looked at: a copy of what history no longer has at its own
/// place may stand behind the reading in which that is found to be missing.
#[derive(Clone, Copy, Debug, Default)]
enum Ahead {
    /// None.
    #[default]
    Nothing,
    /// The next reading begins here.
    Looking(Position),
    /// Everything was looked at up to here. The next reading is to be taken.
    Known(Position),
}

/// Meaning of an envelope that arrived.
#[derive(Debug)]
pub enum Step {
    /// It follows: to be delivered.
    Next(Delivery),
    /// It is not new.
    Nothing,
    /// Something before it has not arrived.
    Hole,
}

impl Order {
    /// An order of which everything was delivered that a view of the shard tells of.
    pub fn after(view: &ShardView) -> Order {
        let ends = view.ends.iter().chain([&view.tip]).map(|end| (end.epoch, end.offset));
        Order { position: view.tip, walked: ends.collect(), ..Order::default() }
    }

    /// The order of a page of history after `position`; unknown: from the oldest entry on.
    pub(super) fn page(position: Position) -> Order {
        let walked = position.is_known().then_some((position.epoch, position.offset));
        let walked = walked.into_iter().collect();
        Order { position, walked, page: true, ..Order::default() }
    }

    /// The last position delivered.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The position after which history is to be read.
    pub fn read_from(&self) -> Position {
        match self.ahead {
            Ahead::Looking(from) => from,
            _ => self.read_again.map_or(self.position, |again| again.to),
        }
    }

    /// True if the next reading is only looked at.
    pub(super) fn looks_ahead(&self) -> bool {
        matches!(self.ahead, Ahead::Looking(_))
    }

    /// Takes an envelope from the channel.
    pub fn offer(&mut self, envelope: &Envelope) -> Step {
        let at = envelope.position;
        if self.has(at) {
            return Step::Nothing;
        }
        match &envelope.body {
            Body::Frame(stamped)
                if at.epoch == self.position.epoch && self.is_next(stamped.frame.first) =>
            {
                Step::Next(self.take(stamped))
            }
            Body::Note(lost) if at.epoch == self.position.epoch && self.is_next(at.offset) => {
                Step::Next(self.note(at, *lost))
            }
            Body::EpochStart { previous, floor, ends }
                if at > self.position && self.has(*previous) =>
            {
                self.learn(*floor, ends);
                Step::Next(self.begin(at, *previous, ends))
            }
            _ => Step::Hole,
        }
    }

    /// Begins to take a reading of history, of which these are the entries; `more`: there may be
    /// others behind them. False: its entries are not to be taken, and history is to be read again,
    /// after [`Order::read_from`].
    pub fn begin_history(&mut self, view: &ShardView, entries: &[Envelope], more: bool) -> bool {
        self.learn(view.floor, &view.ends);
        // Without a state it is about to.
        self.recovering = view.recovering || !view.tip.is_known();
        let epoch = view.tip.epoch;
        let copies = view.copies.iter();
        self.copies = copies
            .map(|(first, last)| Lost { epoch, first: Offset(first), last: Offset(last) })
            .collect();
        let end = entries.last().map(|entry| entry.position);
        let seen = match self.ahead {
            Ahead::Nothing => {
                self.coming.clear();
                end
            }
            Ahead::Looking(before) | Ahead::Known(before) => Some(before).max(end),
        };
        entries.iter().filter_map(names_again).for_each(|names| join(&mut self.coming, names));
        let last = self.copies.last().map(|copies| Position { epoch, offset: copies.last });
        let beyond =
            |seen: Position| !view.tip.is_known() || Some(seen) < last || seen.epoch < epoch;
        self.coming_to = seen.filter(|seen| more && beyond(*seen));
        let looked = self.looks_ahead();
        self.ahead = match (looked, self.coming_to, seen) {
            (true, Some(to), _) => Ahead::Looking(to),
            (true, None, Some(seen)) => Ahead::Known(seen),
            _ => Ahead::Nothing,
        };
        !looked
    }

    /// Takes the next entry of history. Positions between are lost. False: an epoch before it was
    /// left out, or it cannot be said yet what is lost; history is to be read again, after
    /// [`Order::read_from`].
    pub fn take_history(&mut self, envelope: &Envelope, out: &mut Vec<Delivery>) -> bool {
        let taken = self.take_entry(envelope, out);
        if let Some(again) = self.read_again.as_mut().filter(|_| taken) {
            again.to = envelope.position;
        }
        taken
    }

    fn take_entry(&mut self, envelope: &Envelope, out: &mut Vec<Delivery>) -> bool {
        let at = envelope.position;
        if self.has(at) {
            return true;
        }
        let starts = matches!(envelope.body, Body::EpochStart { .. });
        if !starts && self.is_early(at.epoch) {
            return false;
        }
        match &envelope.body {
            Body::Frame(stamped) => {
                let first = stamped.frame.first;
                let walked = self.walked.get(&at.epoch).copied();
                if walked.is_some_and(|walked| walked >= first) && !self.page {
                    // Part of its positions was delivered with other events.
                    return self.skip(at, GapReason::Unreadable, out);
                }
                if !self.skip_before(at.epoch, first, out) {
                    return false;
                }
                out.push(self.take(stamped));
            }
            Body::Note(lost) => {
                if !self.skip_before(at.epoch, at.offset, out) {
                    return false;
                }
                out.push(self.note(at, *lost));
            }
            Body::EpochStart { previous, floor, ends } => {
                return self.take_start(at, *previous, (*floor, ends), out);
            }
            Body::Unreadable | Body::Forged => return self.skip(at, GapReason::Unreadable, out),
            Body::Probe { .. } => {}
        }
        true
    }

    fn take_start(
        &mut self,
        at: Position,
        previous: Position,
        (floor, ends): (Epoch, &[Position]),
        out: &mut Vec<Delivery>,
    ) -> bool {
        let follows = !self.position.is_known() || self.has(previous);
        if !follows && !self.page {
            // The part of the line before it may lie before the position, on which the shard no
            // longer is. Further back each time; at last from the oldest entry.
            let below = match self.read_again {
                Some(ReadAgain { from, .. }) => {
                    self.walked.range(..from.epoch.min(previous.epoch)).next_back()
                }
                None => self.walked.range(..=previous.epoch).next_back(),
            };
            let from = below.map_or(Position::UNKNOWN, |(epoch, offset)| Position {
                epoch: *epoch,
                offset: *offset,
            });
            if self.read_again.is_none_or(|again| from < again.from) && from < self.position {
                self.read_again = Some(ReadAgain { from, to: from });
                return false;
            }
        }
        // A page of a stream that comes from another line begins where the stream wants.
        let elsewhere = self.page && previous.epoch < self.position.epoch;
        if !(follows || elsewhere) && self.is_early(previous.epoch) {
            return false;
        }
        // The view of the reading is newer: more may have been appended again since.
        self.floor = self.floor.max(floor);
        for known in ends {
            let end = self.ends.entry(known.epoch).or_default();
            *end = (*end).max(known.offset);
        }
        if !(follows || elsewhere) {
            let end = self.ends.entry(previous.epoch).or_default();
            *end = (*end).max(previous.offset);
            if !self.skip(previous, GapReason::HistoryExpired, out) {
                return false;
            }
        }
        out.push(self.begin(at, previous, ends));
        true
    }

    /// Ends a reading of history: positions up to the end of the shard are lost. False: it cannot
    /// be said yet what is lost; history is to be read again.
    pub fn finish_history(&mut self, view: &ShardView, out: &mut Vec<Delivery>) -> bool {
        self.read_again = None;
        // A shard that is behind is on another line: its next epoch is greater, and says how it
        // goes on.
        if view.tip > self.position && !self.has(view.tip) {
            self.learn(view.floor, &view.ends);
            if self.is_early(view.tip.epoch) {
                return false;
            }
            let reason = if self.walked.contains_key(&view.tip.epoch) {
                GapReason::HistoryExpired
            } else {
                GapReason::EpochChanged
            };
            return self.skip(view.tip, reason, out);
        }
        true
    }

    /// True if history lacks what is before this epoch, and the shard recovers: until that is over
    /// its state may not say what was there, nor do notes, and a server that still has it may serve
    /// again.
    fn is_early(&self, epoch: Epoch) -> bool {
        self.recovering && !self.walked.contains_key(&epoch)
    }

    /// True if everything of its epoch up to the position was delivered.
    pub(super) fn has(&self, at: Position) -> bool {
        // No gateway uses epoch 0: what claims it is nothing to wait for.
        !at.is_known() || self.walked.get(&at.epoch).is_some_and(|walked| *walked >= at.offset)
    }

    fn is_next(&self, offset: Offset) -> bool {
        self.position.offset.plus(1) == offset
    }

    /// Learns of the ends of epochs.
    fn learn(&mut self, floor: Epoch, ends: &[Position]) {
        self.floor = self.floor.max(floor);
        self.ends.extend(ends.iter().map(|end| (end.epoch, end.offset)));
    }

    fn take(&mut self, stamped: &StampedFrame) -> Delivery {
        let frame = &stamped.frame;
        self.walk(frame.last());
        let provenance = frame.provenance.as_deref();
        if let Some(name) = provenance.and_then(|provenance| provenance.name.as_ref()) {
            self.handled(name.last());
        }
        self.time_ms = Some(frame.time_ms);
        Delivery::Frame(frame.clone())
    }

    fn note(&mut self, at: Position, lost: Lost) -> Delivery {
        self.walk(at);
        self.handled(Position { epoch: lost.epoch, offset: lost.last });
        Delivery::Gap(self.gap(GapReason::EpochChanged, vec![lost], false))
    }

    fn begin(&mut self, position: Position, previous: Position, ends: &[Position]) -> Delivery {
        self.walk(position);
        self.reported.extend(ends.iter().map(|end| (end.epoch, end.offset)));
        while self.reported.len() > MAX_EPOCHS {
            self.reported.pop_first();
        }
        Delivery::Epoch(EpochStart { position, previous, ends: ends.to_vec() })
    }

    fn walk(&mut self, to: Position) {
        self.position = to;
        self.handled(to);
    }

    /// Everything of an epoch up to a position was delivered, in its own place or as a copy, or was
    /// told as lost.
    fn handled(&mut self, to: Position) {
        for epochs in [&mut self.walked, &mut self.reported] {
            if epochs.len() >= MAX_EPOCHS && !epochs.contains_key(&to.epoch) {
                epochs.pop_first();
            }
            let end = epochs.entry(to.epoch).or_default();
            *end = (*end).max(to.offset);
        }
    }

    fn gap(&self, reason: GapReason, lost: Vec<Lost>, more: bool) -> Gap {
        let (from_ms, to_ms) = (self.time_ms, unix_ms());
        Gap { reason, lost, more, position: self.position, from_ms, to_ms }
    }

    /// Reports what is missing before the entry at `next`; false: see [`Order::skip`].
    fn skip_before(&mut self, epoch: Epoch, next: Offset, out: &mut Vec<Delivery>) -> bool {
        let before = Position { epoch, offset: Offset(next.0.saturating_sub(1)) };
        if !self.position.is_known() {
            // The oldest entry that is kept; its epoch began earlier.
            out.push(self.begin(before, before, &[]));
            return true;
        }
        self.has(before) || self.skip(before, GapReason::HistoryExpired, out)
    }

    /// Reports as missing what lies before `to`, and `to` itself. False: copies that are not known
    /// yet may bring it; they are looked for first.
    fn skip(&mut self, to: Position, mut reason: GapReason, out: &mut Vec<Delivery>) -> bool {
        if !self.position.is_known() {
            self.walk(to);
            return true;
        }
        let mut lost = Vec::new();
        let mut more = false;
        let lose = |lost: &mut Vec<Lost>, epoch, after: Offset, last: Offset, coming: &[Lost]| {
            if last > after {
                lost.extend(without(Lost { epoch, first: after.plus(1), last }, coming));
            }
        };
        if !self.walked.contains_key(&to.epoch) {
            // What the shard had of all epochs before, as far as it remembers them.
            let known = self.walked.range(..to.epoch).next_back();
            let forgotten = known.is_none_or(|(epoch, _)| *epoch <= self.floor);
            more = forgotten && self.floor != Epoch::NONE;
            if self.page && !self.ends.contains_key(&self.position.epoch) {
                (more, reason) = (true, GapReason::UnknownEpoch);
            }
        }
        // Copies and notes may be missing. A stream knows which of their names it had; one that
        // came from before a tail that was lost had none of them, even if this gateway had.
        for (epoch, end) in self.ends.range(..to.epoch) {
            let after = self.reported.get(epoch).or_else(|| self.walked.get(epoch));
            let after = after.copied().unwrap_or_default();
            lose(&mut lost, *epoch, after, *end, &self.coming);
        }
        if let Some(to) = self.coming_to.filter(|_| !lost.is_empty()) {
            self.ahead = Ahead::Looking(to);
            return false;
        }
        let after = self.walked.get(&to.epoch).copied().unwrap_or_default();
        // Whoever goes on behind a place has had all names before it.
        lose(&mut lost, to.epoch, after, to.offset, &self.copies);
        self.walk(to);
        for lost in &lost {
            self.handled(Position { epoch: lost.epoch, offset: lost.last });
        }
        if more || !lost.is_empty() {
            out.push(Delivery::Gap(self.gap(reason, lost, more)));
        }
        true
    }
}

/// The names that an entry brings as copies, or reports as lost.
fn names_again(entry: &Envelope) -> Option<Lost> {
    match &entry.body {
        Body::Frame(stamped) => {
            let name = stamped.frame.provenance.as_ref()?.name.as_ref()?;
            Some(Lost { epoch: name.epoch, first: name.first, last: name.last().offset })
        }
        Body::Note(lost) => Some(*lost),
        _ => None,
    }
}

/// Adds names, as a rule those behind the last ones.
fn join(all: &mut Vec<Lost>, names: Lost) {
    match all.last_mut() {
        Some(last) if last.epoch == names.epoch && last.last.plus(1) == names.first => {
            last.last = names.last;
        }
        _ => all.push(names),
    }
}

/// The runs that are left of a range of names without others.
fn without(names: Lost, others: &[Lost]) -> Vec<Lost> {
    let mut others: Vec<Lost> = others
        .iter()
        .filter(|other| other.epoch == names.epoch && other.last >= names.first)
        .copied()
        .collect();
    others.sort_unstable_by_key(|other| other.first);
    let (mut first, mut left) = (names.first, vec![]);
    for other in others.into_iter().take_while(|other| other.first <= names.last) {
        if other.first > first {
            left.push(Lost { first, last: Offset(other.first.0 - 1), ..names });
        }
        first = first.max(other.last.plus(1));
    }
    if first <= names.last {
        left.push(Lost { first, ..names });
    }
    left
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::bus::{Frame, Name, Provenance};

    fn stamped(epoch: u64, first: u64, count: u64) -> StampedFrame {
        let frame = Frame {
            epoch: Epoch(epoch),
            first: Offset(first),
            count,
            time_ms: 0,
            provenance: None,
            events: Bytes::new(),
        };
        StampedFrame {
            frame,
            writer: 1,
            sequence: 1,
            requests: Bytes::new(),
            retain: Bytes::new(),
            runs: Bytes::new(),
            streams: Bytes::new(),
        }
    }

    fn frame(epoch: u64, first: u64, count: u64) -> Envelope {
        let stamped = stamped(epoch, first, count);
        Envelope { position: stamped.frame.last(), body: Body::Frame(stamped) }
    }

    fn copy(epoch: u64, first: u64, count: u64, name: Position) -> Envelope {
        let mut stamped = stamped(epoch, first, count);
        let name = Name { epoch: name.epoch, first: name.offset, count, left: vec![] };
        let provenance = Provenance { name: Some(name), ..Provenance::default() };
        stamped.frame.provenance = Some(Box::new(provenance));
        Envelope { position: stamped.frame.last(), body: Body::Frame(stamped) }
    }

    fn epoch(epoch: u64, previous: Position, ends: &[Position]) -> Envelope {
        let body = Body::EpochStart { previous, floor: Epoch::NONE, ends: ends.to_vec() };
        Envelope { position: Position::new(epoch, 0), body }
    }

    fn view(tip: Position, ends: &[Position]) -> ShardView {
        ShardView { tip, ends: ends.to_vec(), ..ShardView::default() }
    }

    fn after(epoch: u64, offset: u64) -> Order {
        Order::after(&view(Position::new(epoch, offset), &[]))
    }

    fn at(epoch: u64, offset: u64) -> Position {
        Position::new(epoch, offset)
    }

    /// What a delivery says, in short.
    fn short(delivery: &Delivery) -> String {
        match delivery {
            Delivery::Frame(frame) => format!("{}..{}", frame.first.0, frame.last()),
            Delivery::Epoch(start) => format!("epoch {}", start.position),
            Delivery::Gap(gap) => {
                let lost = gap.lost.iter();
                let lost =
                    lost.map(|lost| format!("{}:{}-{} ", lost.epoch.0, lost.first.0, lost.last.0));
                let more = if gap.more { "and more " } else { "" };
                format!("lost {}{more}to {}", lost.collect::<String>(), gap.position)
            }
            Delivery::Start(_) => "start".into(),
        }
    }

    fn offered(order: &mut Order, envelope: &Envelope) -> String {
        match order.offer(envelope) {
            Step::Next(delivery) => short(&delivery),
            Step::Nothing => "nothing".into(),
            Step::Hole => "hole".into(),
        }
    }

    /// What entries of history bring.
    fn read(order: &mut Order, entries: &[Envelope]) -> Vec<String> {
        let mut out = Vec::new();
        for entry in entries {
            assert!(order.take_history(entry, &mut out), "history is to be read again");
        }
        out.iter().map(short).collect()
    }

    #[test]
    fn frames_are_delivered_in_order_and_repeats_are_ignored() {
        let mut order = after(5, 0);
        assert_eq!(offered(&mut order, &frame(5, 1, 2)), "1..5-2");
        assert_eq!(offered(&mut order, &frame(5, 1, 2)), "nothing");
        assert_eq!(offered(&mut order, &frame(5, 4, 1)), "hole");
        assert_eq!(offered(&mut order, &frame(5, 3, 1)), "3..5-3");
        assert_eq!(order.position(), at(5, 3));
    }

    #[test]
    fn a_page_that_begins_within_a_frame_has_the_whole_frame() {
        let mut order = Order::page(at(5, 3));
        assert_eq!(read(&mut order, &[frame(5, 1, 6), frame(5, 7, 1)]), ["1..5-6", "7..5-7"]);
    }

    #[test]
    fn a_page_of_everything_begins_with_the_oldest_entry_that_is_kept() {
        let mut order = Order::page(Position::UNKNOWN);
        assert_eq!(read(&mut order, &[frame(5, 4, 2)]), ["epoch 5-3", "4..5-5"]);
        let mut order = Order::page(Position::UNKNOWN);
        let entries = [epoch(5, at(4, 9), &[at(4, 9)]), frame(5, 1, 2)];
        assert_eq!(read(&mut order, &entries), ["epoch 5-0", "1..5-2"]);
    }

    #[test]
    fn a_new_epoch_says_nothing_about_loss() {
        let mut order = after(5, 3);
        // Redis lost the last event, which was delivered; its copy follows.
        assert_eq!(offered(&mut order, &epoch(9, at(5, 2), &[at(5, 2)])), "epoch 9-0");
        assert_eq!(offered(&mut order, &copy(9, 1, 1, at(5, 3))), "1..9-1");
        // Redis lost everything.
        assert_eq!(offered(&mut order, &epoch(12, Position::UNKNOWN, &[])), "epoch 12-0");
        // An event before it did not arrive.
        assert_eq!(offered(&mut order, &epoch(15, at(12, 2), &[at(12, 2)])), "hole");
    }

    #[test]
    fn a_note_is_a_gap_of_the_names_that_it_tells() {
        let mut order = after(9, 0);
        let lost = Lost { epoch: Epoch(5), first: Offset(3), last: Offset(4) };
        let note = Envelope { position: at(9, 1), body: Body::Note(lost) };
        assert_eq!(offered(&mut order, &note), "lost 5:3-4 to 9-1");
        assert_eq!(offered(&mut order, &frame(9, 2, 1)), "2..9-2");
    }

    #[test]
    fn missing_history_is_a_gap_with_a_count() {
        let mut order = after(5, 3);
        assert_eq!(read(&mut order, &[frame(5, 10, 2)]), ["lost 5:4-9 to 5-9", "10..5-11"]);
        let mut out = vec![];
        order.finish_history(&view(at(5, 20), &[]), &mut out);
        assert_eq!(out.iter().map(short).collect::<Vec<_>>(), ["lost 5:12-20 to 5-20"]);
    }

    #[test]
    fn what_history_brings_as_a_copy_is_not_missing_at_its_own_place() {
        // History lost everything up to the beginning of epoch 9.
        let mut order = after(5, 3);
        let entries = [copy(9, 1, 2, at(5, 7)), frame(9, 3, 1)];
        assert!(order.begin_history(&view(at(9, 3), &[at(5, 9)]), &entries, false));
        let found = ["lost 5:4-6 5:9-9 to 9-0", "1..9-2", "3..9-3"];
        assert_eq!(read(&mut order, &entries), found);
        let mut order = after(5, 3);
        let entries = [frame(9, 1, 1)];
        assert!(order.begin_history(&view(at(9, 1), &[at(5, 3)]), &entries, false));
        assert_eq!(read(&mut order, &entries), ["1..9-1"], "nothing was lost");
    }

    /// Takes readings of so many entries, as a reader does, until there are no more.
    fn read_in_parts(
        order: &mut Order,
        view: &ShardView,
        all: &[Envelope],
        asked: usize,
    ) -> String {
        let mut out = Vec::new();
        for _ in 0..100 {
            let from = order.read_from();
            let rest: Vec<_> = all.iter().filter(|entry| entry.position > from).cloned().collect();
            let more = rest.len() > asked;
            let entries = &rest[..asked.min(rest.len())];
            let takes = order.begin_history(view, entries, more);
            let taken = takes && entries.iter().all(|entry| order.take_history(entry, &mut out));
            if taken && !more && order.finish_history(view, &mut out) {
                return out.iter().map(short).collect::<Vec<_>>().join(", ");
            }
        }
        panic!("it does not end, after {out:?}");
    }

    #[test]
    fn what_comes_as_a_copy_in_a_later_reading_is_not_missing_at_its_own_place() {
        // History lost everything up to the beginning of epoch 9, in which copies come late.
        let entries = [
            frame(9, 2, 1),
            frame(9, 3, 1),
            copy(9, 4, 2, at(5, 4)),
            frame(9, 6, 1),
            copy(9, 7, 1, at(5, 7)),
            frame(9, 8, 1),
            frame(9, 9, 1),
        ];
        let mut known = view(at(9, 9), &[at(5, 9)]);
        for (first, last) in [(1, 1), (4, 5), (7, 7)] {
            known.copies.add(first, last);
        }
        let found =
            "lost 5:6-6 5:8-9 to 9-1, 2..9-2, 3..9-3, 4..9-5, 6..9-6, 7..9-7, 8..9-8, 9..9-9";
        for asked in 1..=7 {
            for order in [after(5, 3), Order::page(at(5, 3))] {
                assert_eq!(read_in_parts(&mut order.clone(), &known, &entries, asked), found);
            }
        }
    }

    #[test]
    fn copies_of_an_epoch_are_looked_for_no_further_than_the_shard_has_any() {
        let mut order = after(5, 3);
        let entries = [frame(9, 2, 1), frame(9, 3, 1)];
        let mut known = view(at(9, 1000), &[at(5, 9)]);
        known.copies.add(1, 1);
        assert!(order.begin_history(&known, &entries, true));
        assert_eq!(read(&mut order, &entries), ["lost 5:4-9 to 9-1", "2..9-2", "3..9-3"]);
    }

    #[test]
    fn missing_epochs_are_a_gap_with_a_count() {
        let mut order = after(5, 3);
        let ends = [at(5, 8), at(7, 2)];
        let entries = [epoch(9, at(7, 2), &ends), frame(9, 1, 1)];
        let found = ["lost 5:4-8 7:1-2 to 7-2", "epoch 9-0", "1..9-1"];
        assert_eq!(read(&mut order, &entries), found);
    }

    #[test]
    fn what_came_to_an_epoch_after_the_next_one_began_is_missing_too() {
        // A recovery passed over what history had; history has dropped it since.
        let entries = [epoch(9, at(7, 0), &[at(5, 3)]), frame(9, 1, 1)];
        let found = ["lost 5:4-8 to 7-0", "epoch 9-0", "1..9-1"];
        for mut order in [after(5, 3), Order::page(at(5, 3))] {
            assert!(order.begin_history(&view(at(9, 1), &[at(5, 8), at(7, 0)]), &entries, false));
            assert_eq!(read(&mut order, &entries), found);
        }
    }

    #[test]
    fn a_lost_tail_is_reported_again_if_its_note_is_gone() {
        // This gateway had, or began behind, a tail of epoch 5 that the line goes on without. A
        // stream that comes from before the tail goes on in its log.
        let mut order = after(5, 26);
        let start = epoch(9, at(5, 3), &[at(5, 3)]);
        assert_eq!(offered(&mut order, &start), "epoch 9-0");
        let entries = [frame(9, 2, 1)];
        let mut known = view(at(9, 2), &[at(5, 26)]);
        known.copies.add(1, 1);
        assert!(order.begin_history(&known, &entries, false));
        assert_eq!(read(&mut order, &entries), ["lost 5:4-26 to 9-1", "2..9-2"]);
        // Once: another one that is gone says nothing of it.
        let entries = [frame(9, 4, 1)];
        known.tip = at(9, 4);
        assert!(order.begin_history(&known, &entries, false));
        assert_eq!(read(&mut order, &entries), ["lost 9:3-3 to 9-3", "4..9-4"]);
    }

    #[test]
    fn an_epoch_that_was_left_out_is_read_from_where_the_lines_part() {
        // This gateway was on another line: 5, 8. The one that won is 5, 7, 9.
        let mut order = after(5, 3);
        assert_eq!(offered(&mut order, &epoch(8, at(5, 3), &[at(5, 3)])), "epoch 8-0");
        assert_eq!(offered(&mut order, &frame(8, 1, 1)), "1..8-1");
        let start = epoch(9, at(7, 2), &[at(5, 3), at(7, 2)]);
        assert_eq!(offered(&mut order, &start), "hole");
        let mut out = vec![];
        assert!(!order.take_history(&start, &mut out));
        assert_eq!(order.read_from(), at(5, 3));
        let line = [epoch(7, at(5, 3), &[at(5, 3)]), frame(7, 1, 2), frame(8, 1, 1), start];
        assert_eq!(read(&mut order, &line), ["epoch 7-0", "1..7-2", "epoch 9-0"]);
    }

    #[test]
    fn a_part_of_the_line_that_takes_several_readings_is_read_to_its_end() {
        let mut order = after(5, 3);
        assert_eq!(offered(&mut order, &epoch(8, at(5, 3), &[at(5, 3)])), "epoch 8-0");
        let start = epoch(9, at(7, 4), &[at(5, 3), at(7, 4)]);
        let mut out = vec![];
        assert!(!order.take_history(&start, &mut out));
        assert_eq!(order.read_from(), at(5, 3));
        let line = [epoch(7, at(5, 3), &[at(5, 3)]), frame(7, 1, 2)];
        assert_eq!(read(&mut order, &line), ["epoch 7-0", "1..7-2"]);
        assert_eq!(order.read_from(), at(7, 2));
        assert_eq!(read(&mut order, &[frame(7, 3, 2)]), ["3..7-4"]);
        // Also where it brings nothing new.
        assert!(read(&mut order, &[epoch(8, at(5, 3), &[at(5, 3)])]).is_empty());
        assert_eq!(order.read_from(), at(8, 0));
        assert_eq!(read(&mut order, &[start]), ["epoch 9-0"]);
        assert!(order.finish_history(&view(at(9, 0), &[]), &mut out));
        assert_eq!(order.read_from(), at(9, 0));
    }

    #[test]
    fn what_is_before_an_epoch_that_recovers_is_not_passed_over_before_its_state_says_what_it_was()
    {
        // Redis lost the state, which does not say yet that epoch 5 went on to 5-9, and then its
        // history, of which the next server may still have all.
        let known = |recovering, last| ShardView { recovering, ..view(at(9, 1), &[at(5, last)]) };
        for mut order in [after(5, 3), Order::page(at(5, 3))] {
            let mut out = vec![];
            for entries in [vec![], vec![copy(9, 1, 1, at(5, 1))]] {
                assert!(order.begin_history(&known(true, 1), &entries, false));
                assert!(entries.iter().all(|entry| !order.take_history(entry, &mut out)));
                assert!(!order.finish_history(&known(true, 1), &mut out));
                assert!(out.is_empty() && order.read_from() == at(5, 3));
            }
            let mut served = order.clone();
            let history = [frame(5, 4, 6), epoch(9, at(5, 9), &[at(5, 1)])];
            assert!(served.begin_history(&known(true, 1), &history, false));
            assert_eq!(read(&mut served, &history), ["4..5-9", "epoch 9-0"]);
            assert!(order.begin_history(&known(false, 9), &[], false));
            assert!(order.finish_history(&known(false, 9), &mut out));
            let reported: Vec<_> = out.iter().map(short).collect();
            assert_eq!(reported, ["lost 5:4-9 9:1-1 to 9-1"]);
        }
    }

    #[test]
    fn a_frame_that_overlaps_delivered_positions_is_an_unreadable_gap() {
        let mut order = after(5, 10);
        assert_eq!(offered(&mut order, &frame(5, 6, 15)), "hole");
        assert_eq!(read(&mut order, &[frame(5, 6, 15)]), ["lost 5:11-20 to 5-20"]);
        assert_eq!(order.position(), at(5, 20));
    }

    #[test]
    fn an_entry_of_epoch_0_is_ignored() {
        let mut order = after(5, 3);
        let unreadable = Envelope { position: at(0, 7), body: Body::Unreadable };
        assert_eq!(offered(&mut order, &unreadable), "nothing");
        assert!(read(&mut order, &[unreadable]).is_empty());
        assert_eq!(order.position(), at(5, 3));
        assert_eq!(read(&mut order, &[frame(5, 6, 1)]), ["lost 5:4-5 to 5-5", "6..5-6"]);
    }

    #[test]
    fn a_probe_reveals_a_lost_last_event() {
        let mut order = after(5, 3);
        let probe = |epoch, offset| {
            let view = Box::new(view(at(epoch, offset), &[]));
            Envelope {
                position: at(epoch, offset),
                body: Body::Probe { writer: 9, number: 1, shared: true, time_ms: 0, view },
            }
        };
        assert_eq!(offered(&mut order, &probe(5, 3)), "nothing");
        assert_eq!(offered(&mut order, &probe(5, 4)), "hole");
        assert_eq!(offered(&mut order, &probe(6, 0)), "hole");
    }
}
