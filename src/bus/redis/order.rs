//! The order of one shard: a state machine without I/O.
//!
//! The reader uses it for envelopes from the channel, and so does every reading of history. An
//! envelope that does not follow the last position is a hole on the channel, to be repaired from
//! history; in history it is a gap, because there is no other source.

use std::collections::HashMap;

use super::envelope::{Body, Envelope, StampedFrame, WriterId};
use crate::bus::{Delivery, Gap, GapReason, Position, unix_ms};

/// The number of writers that are remembered; a gateway that restarts is a new one. Forgetting a
/// writer matters only if its frames are re-appended after that.
const MAX_WRITERS: usize = 1024;

/// The number of ended epochs that are remembered.
const MAX_EPOCHS: usize = 64;

/// The order of one shard, up to a position.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// The last position delivered.
    position: Position,
    /// The time of the last frame, in milliseconds since 1970.
    time_ms: Option<u64>,
    /// Each writer's last sequence, to recognize frames that are re-appended after Redis lost them.
    writers: HashMap<WriterId, u64>,
    /// The last position delivered of each epoch that has ended: a frame whose origin is at or
    /// before it was delivered.
    ended: Vec<Position>,
    /// True if `position` may lie within a frame: no frame was delivered yet.
    within: bool,
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
    /// An order of which everything up to `position` was delivered.
    pub(super) fn after(position: Position) -> Order {
        Order { position, ended: vec![position], ..Order::default() }
    }

    /// The order of a subscriber, who may have received a part of the next frame.
    pub(super) fn within(position: Position) -> Order {
        Order { within: true, ..Order::after(position) }
    }

    /// The last position delivered.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Takes an envelope from the channel.
    pub fn offer(&mut self, envelope: &Envelope) -> Step {
        let at = envelope.position;
        if at <= self.position {
            return Step::Nothing;
        }
        match &envelope.body {
            Body::Frame(frame) if self.follows(frame) => Step::Next(self.take(frame)),
            Body::EpochStart { previous }
                if self.position.is_known() && *previous == self.position =>
            {
                Step::Next(self.begin(at))
            }
            _ => Step::Hole,
        }
    }

    /// Takes the next entry of history. Positions between are lost.
    pub fn take_history(&mut self, envelope: &Envelope, out: &mut Vec<Delivery>) {
        let at = envelope.position;
        if at <= self.position {
            return;
        }
        match &envelope.body {
            // Part of its positions was delivered with other events.
            Body::Frame(frame) if self.overlaps(frame) => {
                self.skip(at, GapReason::Unreadable, out);
            }
            Body::Frame(frame) => {
                if !self.joins(frame) {
                    let before = Position::new(at.epoch.0, frame.frame.first.0 - 1);
                    self.skip(before, GapReason::HistoryExpired, out);
                }
                out.push(self.take(frame));
            }
            Body::EpochStart { previous } => {
                let ended_with_us = previous.epoch == self.position.epoch;
                if !self.position.is_known() {
                    self.position = at;
                } else if ended_with_us && previous.offset <= self.position.offset {
                    // Redis may have lost frames that were delivered. Their writers re-append them,
                    // and they are recognized by writer and sequence.
                    out.push(self.begin(at));
                } else {
                    if ended_with_us {
                        self.skip(*previous, GapReason::HistoryExpired, out);
                    } else if previous.is_known() {
                        self.skip(at, GapReason::HistoryExpired, out);
                    } else {
                        self.skip(at, GapReason::EpochChanged, out);
                    }
                    if at > self.position {
                        out.push(self.begin(at));
                    }
                }
            }
            Body::Unreadable | Body::Forged => self.skip(at, GapReason::Unreadable, out),
            Body::Probe { .. } => {}
        }
    }

    /// Ends a reading of history, with the shard's end at `tip`: positions between are lost.
    pub fn finish_history(&mut self, tip: Position, out: &mut Vec<Delivery>) {
        if tip > self.position {
            let reason = if tip.epoch == self.position.epoch {
                GapReason::HistoryExpired
            } else {
                GapReason::EpochChanged
            };
            self.skip(tip, reason, out);
        }
    }

    fn follows(&self, frame: &StampedFrame) -> bool {
        frame.frame.epoch == self.position.epoch
            && frame.frame.first == self.position.offset.plus(1)
    }

    /// True if the frame leaves no hole. A subscriber may have a part of it already.
    fn joins(&self, frame: &StampedFrame) -> bool {
        let next = self.position.offset.plus(1);
        frame.frame.epoch == self.position.epoch
            && (frame.frame.first == next || self.within && frame.frame.first < next)
    }

    /// True if a part of its positions was delivered in other frames.
    fn overlaps(&self, frame: &StampedFrame) -> bool {
        !self.within
            && frame.frame.epoch == self.position.epoch
            && frame.frame.first <= self.position.offset
    }

    fn take(&mut self, stamped: &StampedFrame) -> Delivery {
        let frame = &stamped.frame;
        (self.position, self.within) = (frame.last(), false);
        let restored =
            self.writers.get(&stamped.writer).is_some_and(|last| stamped.sequence <= *last)
                || frame.origin.is_some_and(|origin| self.delivered(origin));
        if restored {
            return Delivery::Restored(frame.clone());
        }
        if self.writers.len() >= MAX_WRITERS && !self.writers.contains_key(&stamped.writer) {
            self.writers.clear();
        }
        self.writers.insert(stamped.writer, stamped.sequence);
        self.time_ms = Some(frame.time_ms);
        Delivery::Frame(frame.clone())
    }

    /// True if the event at `origin` was delivered there.
    fn delivered(&self, origin: Position) -> bool {
        self.ended.iter().any(|last| last.epoch == origin.epoch && origin.offset <= last.offset)
    }

    fn begin(&mut self, start: Position) -> Delivery {
        self.end_epoch();
        self.position = start;
        Delivery::Epoch(start)
    }

    fn end_epoch(&mut self) {
        if self.ended.len() >= MAX_EPOCHS {
            self.ended.remove(0);
        }
        self.ended.push(self.position);
    }

    fn skip(&mut self, to: Position, reason: GapReason, out: &mut Vec<Delivery>) {
        if self.position.is_known() {
            out.push(Delivery::Gap(Gap {
                reason,
                from: self.position,
                to,
                missed: self.position.events_until(to),
                from_ms: self.time_ms,
                to_ms: unix_ms(),
            }));
        }
        if to.epoch != self.position.epoch {
            self.end_epoch();
        }
        self.position = to;
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
