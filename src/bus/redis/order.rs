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
    recovery::ShardView,
};
use crate::bus::{
    Delivery, Epoch, EpochStart, Gap, GapReason, Lost, Offset, Position, unix_ms,
};

/// The number of epochs that are remembered. With more, the lowest are forgotten.
const MAX_EPOCHS: usize = 256;

/// The order of one shard, up to a position.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// The last position delivered.
    position: Position,
    /// For each epoch the last offset delivered.
    walked: BTreeMap<Epoch, Offset>,
    /// The ends of epochs, as the last entry or view told of them.
    ends: BTreeMap<Epoch, Offset>,
    /// The shard has forgotten the epochs up to this one.
    floor: Epoch,
    /// The time of the last frame, in milliseconds since 1970.
    time_ms: Option<u64>,
    /// The order of a page of history for a stream, which may have a part of the next frame and has
    /// chosen where to begin.
    page: bool,
    /// Where history was read again from, to find an epoch that was left out.
    read_again: Option<Position>,
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
        self.read_again.unwrap_or(self.position)
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
                if at > self.position && (!previous.is_known() || self.has(*previous)) =>
            {
                self.learn(*floor, ends);
                Step::Next(self.begin(at, *previous, ends))
            }
            _ => Step::Hole,
        }
    }

    /// Takes the next entry of history. Positions between are lost. False: an epoch before it was
    /// left out; history is to be read again, after [`Order::read_from`].
    pub fn take_history(&mut self, envelope: &Envelope, out: &mut Vec<Delivery>) -> bool {
        let at = envelope.position;
        if self.has(at) {
            return true;
        }
        match &envelope.body {
            Body::Frame(stamped) => {
                let first = stamped.frame.first;
                let walked = self.walked.get(&at.epoch).copied();
                if walked.is_some_and(|walked| walked >= first) && !self.page {
                    // Part of its positions was delivered with other events.
                    self.skip(at, GapReason::Unreadable, out);
                    return true;
                }
                self.skip_before(at.epoch, first, out);
                out.push(self.take(stamped));
            }
            Body::Note(lost) => {
                self.skip_before(at.epoch, at.offset, out);
                out.push(self.note(at, *lost));
            }
            Body::EpochStart { previous, floor, ends } => {
                return self.take_start(at, *previous, (*floor, ends), out);
            }
            Body::Unreadable | Body::Forged => self.skip(at, GapReason::Unreadable, out),
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
        let follows = !previous.is_known() || !self.position.is_known() || self.has(previous);
        let left_out = !follows && !self.walked.contains_key(&previous.epoch);
        if left_out && !self.page {
            // Further back each time; at last from the oldest entry.
            let again = self.read_again.map(|again| again.epoch);
            let before = again.map_or(previous.epoch, |again| again.min(previous.epoch));
            let below = self.walked.range(..before).next_back();
            let from = below.map_or(Position::UNKNOWN, |(epoch, offset)| Position {
                epoch: *epoch,
                offset: *offset,
            });
            if self.read_again.is_none_or(|again| from < again) && from < self.position {
                self.read_again = Some(from);
                return false;
            }
        }
        self.learn(floor, ends);
        // A page of a stream that comes from another line begins where the stream wants.
        if !follows && !(self.page && previous.epoch < self.position.epoch) {
            let end = self.ends.entry(previous.epoch).or_default();
            *end = (*end).max(previous.offset);
            self.skip(previous, GapReason::HistoryExpired, out);
        }
        out.push(self.begin(at, previous, ends));
        true
    }

    /// Ends a reading of history: positions up to the end of the shard are lost.
    pub fn finish_history(&mut self, view: &ShardView, out: &mut Vec<Delivery>) {
        self.read_again = None;
        // A shard that is behind is on another line: its next epoch is greater, and says how it goes
        // on.
        if view.tip > self.position && !self.has(view.tip) {
            self.learn(view.floor, &view.ends);
            let reason = if self.walked.contains_key(&view.tip.epoch) {
                GapReason::HistoryExpired
            } else {
                GapReason::EpochChanged
            };
            self.skip(view.tip, reason, out);
        }
    }

    /// True if everything of its epoch up to the position was delivered.
    pub(super) fn has(&self, at: Position) -> bool {
        self.walked.get(&at.epoch).is_some_and(|walked| *walked >= at.offset)
    }

    fn is_next(&self, offset: Offset) -> bool {
        self.position.offset.plus(1) == offset
    }

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
        Delivery::Epoch(EpochStart { position, previous, ends: ends.to_vec() })
    }

    fn walk(&mut self, to: Position) {
        self.position = to;
        self.handled(to);
    }

    /// Everything of an epoch up to a position was delivered, in its own place or as a copy, or was
    /// told as lost.
    fn handled(&mut self, to: Position) {
        if self.walked.len() >= MAX_EPOCHS && !self.walked.contains_key(&to.epoch) {
            self.walked.pop_first();
        }
        let walked = self.walked.entry(to.epoch).or_default();
        *walked = (*walked).max(to.offset);
    }

    fn gap(&self, reason: GapReason, lost: Vec<Lost>, more: bool) -> Gap {
        let (from_ms, to_ms) = (self.time_ms, unix_ms());
        Gap { reason, lost, more, position: self.position, from_ms, to_ms }
    }

    /// Tells what is missing before the entry at `next`.
    fn skip_before(&mut self, epoch: Epoch, next: Offset, out: &mut Vec<Delivery>) {
        let before = Position { epoch, offset: Offset(next.0.saturating_sub(1)) };
        if self.position.is_known() {
            if !self.has(before) {
                self.skip(before, GapReason::HistoryExpired, out);
            }
        } else {
            // The oldest entry that is kept.
            out.push(self.begin(before, Position::UNKNOWN, &[]));
        }
    }

    /// Tells as missing what lies before `to`, and `to` itself.
    fn skip(&mut self, to: Position, reason: GapReason, out: &mut Vec<Delivery>) {
        if !self.position.is_known() {
            self.walk(to);
            return;
        }
        let mut lost = Vec::new();
        let mut more = false;
        let lose = |lost: &mut Vec<Lost>, epoch, after: Offset, last: Offset| {
            if last > after {
                lost.push(Lost { epoch, first: after.plus(1), last });
            }
        };
        if !self.walked.contains_key(&to.epoch) {
            // What the shard had of all epochs before, as far as it remembers them.
            let known = self.walked.range(..to.epoch).next_back();
            let forgotten = known.is_none_or(|(epoch, _)| *epoch <= self.floor);
            more = forgotten && self.floor != Epoch::NONE;
            for (epoch, end) in self.ends.range(..to.epoch) {
                let after = self.walked.get(epoch).copied().unwrap_or_default();
                if !self.page || *epoch >= self.position.epoch {
                    lose(&mut lost, *epoch, after, *end);
                }
            }
        }
        let after = self.walked.get(&to.epoch).copied().unwrap_or_default();
        lose(&mut lost, to.epoch, after, to.offset);
        self.walk(to);
        for lost in &lost {
            self.handled(Position { epoch: lost.epoch, offset: lost.last });
        }
        if more || !lost.is_empty() {
            out.push(Delivery::Gap(self.gap(reason, lost, more)));
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::bus::{Epoch, Frame, Offset};

    fn frame(epoch: u64, first: u64, count: u64, sequence: u64) -> Envelope {
        let frame = Frame {
            epoch: Epoch(epoch),
            first: Offset(first),
            count,
            time_ms: 0,
            origin: None,
            events: Bytes::new(),
        };
        let position = frame.last();
        Envelope { position, body: Body::Frame(StampedFrame { frame, writer: 1, sequence }) }
    }

    fn restored(mut envelope: Envelope, writer: WriterId, origin: Position) -> Envelope {
        if let Body::Frame(stamped) = &mut envelope.body {
            stamped.writer = writer;
            stamped.frame.origin = Some(origin);
        }
        envelope
    }

    fn epoch(epoch: u64, previous: Position) -> Envelope {
        Envelope { position: Position::new(epoch, 0), body: Body::EpochStart { previous } }
    }

    fn probe(epoch: u64, offset: u64) -> Envelope {
        Envelope {
            position: Position::new(epoch, offset),
            body: Body::Probe { writer: 9, number: 1 },
        }
    }

    fn is_gap(delivery: &Delivery, from: Position, to: Position, missed: Option<u64>) -> bool {
        let Delivery::Gap(gap) = delivery else { return false };
        (gap.from, gap.to, gap.missed) == (from, to, missed)
    }

    #[test]
    fn frames_are_delivered_in_order_and_repeats_are_ignored() {
        let mut order = Order::after(Position::new(5, 0));
        assert!(matches!(order.offer(&frame(5, 1, 2, 1)), Step::Next(Delivery::Frame(_))));
        assert!(matches!(order.offer(&frame(5, 1, 2, 1)), Step::Nothing));
        assert!(matches!(order.offer(&frame(5, 4, 1, 3)), Step::Hole));
        assert!(matches!(order.offer(&frame(5, 3, 1, 2)), Step::Next(Delivery::Frame(_))));
        assert_eq!(order.position(), Position::new(5, 3));
    }

    #[test]
    fn a_subscriber_within_a_frame_resumes_from_history_without_a_gap() {
        let mut order = Order::within(Position::new(5, 3));
        let mut out = Vec::new();
        order.take_history(&frame(5, 1, 6, 1), &mut out);
        order.take_history(&frame(5, 7, 1, 2), &mut out);
        assert!(matches!(&out[..], [Delivery::Frame(_), Delivery::Frame(_)]), "{out:?}");
        assert_eq!(order.position(), Position::new(5, 7));
    }

    #[test]
    fn a_probe_reveals_a_lost_last_event() {
        let mut order = Order::after(Position::new(5, 3));
        assert!(matches!(order.offer(&probe(5, 3)), Step::Nothing));
        assert!(matches!(order.offer(&probe(5, 4)), Step::Hole));
        assert!(matches!(order.offer(&probe(6, 0)), Step::Hole));
    }

    #[test]
    fn an_epoch_that_continues_where_the_last_ended_is_no_gap() {
        let mut order = Order::after(Position::new(5, 3));
        let step = order.offer(&epoch(9, Position::new(5, 3)));
        assert!(
            matches!(step, Step::Next(Delivery::Epoch(position)) if position == Position::new(9, 0))
        );
        assert!(matches!(order.offer(&frame(9, 1, 1, 1)), Step::Next(Delivery::Frame(_))));
    }

    #[test]
    fn missing_history_is_a_gap_with_a_count() {
        let mut order = Order::after(Position::new(5, 3));
        let mut out = vec![];
        order.take_history(&frame(5, 10, 2, 8), &mut out);
        assert!(is_gap(&out[0], Position::new(5, 3), Position::new(5, 9), Some(6)));
        assert!(matches!(&out[1], Delivery::Frame(_)));
        order.finish_history(Position::new(5, 20), &mut out);
        assert!(is_gap(&out[2], Position::new(5, 11), Position::new(5, 20), Some(9)));
    }

    #[test]
    fn total_loss_of_redis_is_one_gap_of_unknown_size() {
        let mut order = Order::after(Position::new(5, 3));
        let mut out = vec![];
        order.take_history(&epoch(9, Position::UNKNOWN), &mut out);
        assert_eq!(out.len(), 1);
        assert!(is_gap(&out[0], Position::new(5, 3), Position::new(9, 0), None));
        order.finish_history(Position::new(9, 0), &mut out);
        assert_eq!(out.len(), 1);
    }

    #[test]
    fn loss_of_delivered_frames_is_no_gap_and_their_copies_are_restored() {
        let mut order = Order::after(Position::new(5, 0));
        let mut out = vec![];
        order.offer(&frame(5, 1, 1, 1));
        order.offer(&frame(5, 2, 1, 2));
        order.take_history(&epoch(9, Position::new(5, 1)), &mut out);
        assert!(matches!(out[..], [Delivery::Epoch(_)]));
        assert!(matches!(order.offer(&frame(9, 1, 1, 2)), Step::Next(Delivery::Restored(_))));
        assert!(matches!(order.offer(&frame(9, 2, 1, 3)), Step::Next(Delivery::Frame(_))));
    }

    #[test]
    fn resuming_on_another_gateway_recognizes_delivered_frames_by_origin() {
        let mut order = Order::after(Position::new(5, 7));
        let mut out = vec![];
        order.take_history(&epoch(9, Position::new(5, 4)), &mut out);
        order.take_history(&restored(frame(9, 1, 3, 40), 2, Position::new(5, 7)), &mut out);
        order.take_history(&restored(frame(9, 4, 1, 41), 2, Position::new(5, 8)), &mut out);
        assert!(matches!(out[..], [Delivery::Epoch(_), Delivery::Restored(_), Delivery::Frame(_)]));
    }

    #[test]
    fn a_frame_that_overlaps_delivered_positions_is_an_unreadable_gap() {
        let mut order = Order::after(Position::new(5, 10));
        let mut out = vec![];
        assert!(matches!(order.offer(&frame(5, 6, 15, 1)), Step::Hole));
        order.take_history(&frame(5, 6, 15, 1), &mut out);
        assert!(is_gap(&out[0], Position::new(5, 10), Position::new(5, 20), Some(10)));
        assert_eq!((out.len(), order.position()), (1, Position::new(5, 20)));
    }

    #[test]
    fn missing_events_of_an_ended_epoch_are_counted() {
        let mut order = Order::after(Position::new(5, 3));
        let mut out = vec![];
        order.take_history(&epoch(9, Position::new(5, 8)), &mut out);
        assert!(is_gap(&out[0], Position::new(5, 3), Position::new(5, 8), Some(5)));
        assert!(matches!(out[1], Delivery::Epoch(_)));
    }
}
