//! What a gateway knows of one shard, and what follows from it.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{Held, HeldFrame, Reported};
use crate::bus::{
    Epoch, Frame, Name, Offset, Position, Provenance, put_event,
    ranges::Ranges,
    redis::{
        envelope::{
            Body, Envelope, Header, StampedFrame, encode_frame, events_of, put_request,
            put_retained, put_run, read_requests, read_retained,
        },
        view::ShardView,
    },
};

/// The time that others have to append again what this gateway only knows to have existed, before
/// it is reported as lost.
const SETTLE: Duration = Duration::from_millis(400);

/// The age up to which a probe shows that its gateway is there.
const PRESENT: Duration = Duration::from_secs(3);

/// A frame to be appended again.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The frame, under its name.
    pub held: HeldFrame,
    /// Its encoding as a copy.
    pub frame: Vec<u8>,
}

impl Offer {
    fn of(held: HeldFrame) -> Box<Offer> {
        let frame = encode_copy(&held);
        Box::new(Offer { held, frame })
    }
}

/// What is to be done for a shard's recovery.
#[derive(Debug)]
pub enum Task {
    /// Append this again.
    Again(Box<Offer>),
    /// Nothing more is held: release the shard, or have told as lost what nobody appended again.
    Release,
    /// Nothing, until then or until something arrives.
    WaitUntil(Instant),
    /// Nothing.
    Nothing,
}

/// One gateway's memory of one shard.
#[derive(Debug)]
pub struct Memory {
    reported: Reported,
    held: Held,
    /// The form of a held frame that is offered next: some of its events were accepted again.
    cut: Option<HeldFrame>,
    tip: Position,
    ends: BTreeMap<Epoch, Offset>,
    floor: Epoch,
    recovering: bool,
    /// When something was found first that this gateway only knows to have existed.
    unaccounted: Option<Instant>,
    /// When a probe of a gateway of an earlier version arrived last.
    earlier: Option<Instant>,
    /// True once the gateway reads the shard.
    begun: bool,
}

impl Memory {
    /// Nothing is known yet.
    pub fn new(limits: (usize, usize)) -> Memory {
        Memory {
            reported: Reported::default(),
            held: Held::new(limits),
            cut: None,
            tip: Position::UNKNOWN,
            ends: BTreeMap::new(),
            floor: Epoch::NONE,
            recovering: false,
            unaccounted: None,
            earlier: None,
            begun: false,
        }
    }

    /// The gateway reads the shard from now on.
    pub fn begin(&mut self) {
        self.begun = true;
    }

    /// True once the gateway reads the shard.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Learns from an answer of the script, which is newer than anything before.
    pub fn learn_view(&mut self, view: &ShardView) {
        self.report_view(view);
        self.tip = view.tip;
        self.recovering = view.recovering;
        self.ends = view.ends.iter().map(|end| (end.epoch, end.offset)).collect();
        self.floor = self.floor.max(view.floor);
        // Frames of these epochs are not offered any more. They are held on, as long as there is
        // room: they show which events of a split brain's other side are the same.
        self.reported.forget(self.floor);
    }

    /// Learns which positions a message or an entry of history names.
    pub fn report(&mut self, envelope: &Envelope) {
        let at = envelope.position;
        match &envelope.body {
            Body::Frame(stamped) => {
                let frame = &stamped.frame;
                match frame.provenance.as_deref() {
                    Some(Provenance { name: Some(name), aliases, .. }) => {
                        self.reported.add_copy(frame.epoch, frame.first, at.offset);
                        for (_, alias) in aliases {
                            self.reported.add(*alias);
                        }
                        self.reported.add(name.last());
                    }
                    _ => self.reported.add(at),
                }
            }
            Body::Probe { view, .. } => self.report_view(view),
            Body::EpochStart { previous, ends, .. } => {
                self.reported.add(at);
                self.reported.add(*previous);
                for end in ends {
                    self.reported.add(*end);
                }
            }
            Body::Note(lost) => {
                self.reported.add_copy(at.epoch, at.offset, at.offset);
                self.reported.add(Position { epoch: lost.epoch, offset: lost.last });
            }
            // Anybody may have published it, at any position.
            Body::Unreadable | Body::Forged => {}
        }
    }

    /// Learns from a message of the channel, or an entry of history that the reader read. A frame
    /// gets the other names under which its events are held.
    pub fn learn(&mut self, envelope: &mut Envelope, now: Instant) {
        let at = envelope.position;
        if let Body::Frame(stamped) = &mut envelope.body {
            self.name(stamped);
        }
        self.report(envelope);
        match &envelope.body {
            Body::Frame(stamped) => {
                if at.epoch == self.tip.epoch {
                    self.tip = self.tip.max(at);
                }
                let provenance = stamped.frame.provenance.as_deref();
                if let Some(name) = provenance.and_then(|provenance| provenance.name.as_ref()) {
                    self.account_for(at.epoch, name.last());
                }
                self.held.keep(HeldFrame::new(stamped.clone()));
            }
            Body::Probe { shared, view, .. } => {
                self.advance(at, &view.ends);
                if !shared {
                    self.earlier = Some(now);
                }
            }
            // The end of the epoch before is among `ends`, but if the state was lost with the
            // records of writers: then all of it is appended again.
            Body::EpochStart { ends, .. } => self.advance(at, ends),
            Body::Note(lost) => {
                self.account_for(at.epoch, Position { epoch: lost.epoch, offset: lost.last });
            }
            Body::Unreadable | Body::Forged => {}
        }
    }

    /// A message of the epoch `by` says that an ended epoch is handled up to there. One of an epoch
    /// before the shard's says nothing: what came after it may be lost.
    fn account_for(&mut self, by: Epoch, last: Position) {
        if by == self.tip.epoch && last.epoch > self.floor {
            let end = self.ends.entry(last.epoch).or_default();
            *end = (*end).max(last.offset);
        }
    }

    /// A message told of a shard's end beyond the last answer.
    fn advance(&mut self, tip: Position, ends: &[Position]) {
        if tip > self.tip {
            if tip.epoch > self.tip.epoch {
                // What the line before had may be lost.
                self.ends = ends.iter().map(|end| (end.epoch, end.offset)).collect();
            }
            self.tip = tip;
        }
    }

    /// Learns which positions a reading of the shard's state names. It may be behind.
    pub fn report_view(&mut self, view: &ShardView) {
        self.reported.add(view.tip);
        self.reported.add_copies(view.tip.epoch, &view.copies);
        view.ends.iter().for_each(|end| self.reported.add(*end));
    }

    /// Holds a frame that this gateway appended.
    pub fn keep_own(&mut self, stamped: StampedFrame) {
        self.reported.add(stamped.frame.last());
        self.held.keep(HeldFrame::new(stamped));
    }

    /// Leaves out of what is offered next the requests, by index, that were accepted again before.
    pub fn offer_without(&mut self, held: &HeldFrame, seen: &[usize]) {
        let mut gone = Ranges::default();
        for (nth, request) in read_requests(&held.stamped.requests).enumerate() {
            if seen.contains(&nth) && request.count > 0 {
                gone.add(request.first, request.first + request.count - 1);
            }
        }
        self.cut = Some(without(held, &gone, &[]));
    }

    /// Leaves out of what is offered next the events whose publisher had them accepted again
    /// before: `covered` has runs, by index, and the sequences of their publishers.
    pub fn offer_without_covered(&mut self, held: &HeldFrame, covered: &[(usize, Ranges)]) {
        let mut gone = Ranges::default();
        for (nth, at) in held.stamped.runs().enumerate() {
            let covered = covered.iter().filter(|(index, _)| *index == nth);
            for (_, covered) in covered {
                for (sequence, index) in at.run.sequences.iter().zip(at.first..) {
                    if covered.has(*sequence) {
                        gone.add(index, index);
                    }
                }
            }
        }
        self.cut = Some(without(held, &gone, covered));
    }

    /// The end of the shard as far as this gateway knows it.
    pub fn tip(&self) -> Position {
        self.tip
    }

    /// The position that calls state as seen: of the greatest epoch, also if that is not the
    /// shard's. Then the shard is on another line, and must have a greater one.
    pub fn seen(&self) -> Position {
        let greatest = self.reported.greatest().filter(|last| last.epoch > self.tip.epoch);
        let offset = || self.reported.last(self.tip.epoch);
        greatest.unwrap_or_else(|| Position { epoch: self.tip.epoch, offset: offset() })
    }

    /// True while appends wait.
    pub fn is_recovering(&self) -> bool {
        self.recovering
    }

    /// What every call states: the positions that existed.
    pub fn reported(&self) -> String {
        self.reported.text()
    }

    /// True if an event of this name is held, and is offered if the bus loses it.
    pub fn holds(&self, name: Position) -> bool {
        name.epoch > self.floor && self.held.names(name)
    }

    /// True if a position of this name is known to have existed.
    pub fn knows_of(&self, name: Position) -> bool {
        self.reported.last(name.epoch) >= name.offset
    }

    /// Frames that are held, and their bytes.
    pub fn held(&self) -> (usize, usize) {
        self.held.size()
    }

    /// Gives a frame's events the other names under which they are held.
    pub fn name(&mut self, stamped: &mut StampedFrame) {
        let aliases = self.held.aliases(stamped);
        if !aliases.is_empty() {
            let provenance = stamped.frame.provenance.get_or_insert_default();
            for alias in aliases {
                if !provenance.aliases.contains(&alias) {
                    provenance.aliases.push(alias);
                }
            }
        }
    }

    /// True if a gateway of an earlier version is there: it is not among those that the shard
    /// knows, and knows of others only by their probes.
    pub fn receives_earlier(&self, now: Instant) -> bool {
        self.earlier.is_some_and(|at| now < at + PRESENT)
    }

    /// What is to be done next for the recovery of the shard.
    pub fn task(&mut self, now: Instant) -> Task {
        if self.tip == Position::UNKNOWN {
            return Task::Nothing;
        }
        if let Some(held) = self.first_beyond(|epoch| self.end_of(epoch)).cloned() {
            let cut = self.cut.take().filter(|cut| cut.first() == held.first());
            return Task::Again(Offer::of(cut.unwrap_or(held)));
        }
        if self.recovering {
            return Task::Release;
        }
        if !self.is_unaccounted() {
            self.unaccounted = None;
            return Task::Nothing;
        }
        let until = *self.unaccounted.get_or_insert(now) + SETTLE;
        if now < until {
            return Task::WaitUntil(until);
        }
        // Asked once, then again after the time.
        self.unaccounted = Some(now);
        Task::Release
    }

    /// True if there is something to be done for the shard's recovery now.
    pub fn has_task(&self, now: Instant) -> bool {
        self.recovering
            || self.first_beyond(|epoch| self.end_of(epoch)).is_some()
            || self.is_unaccounted() && self.unaccounted.is_none_or(|since| since + SETTLE <= now)
    }

    /// True if something existed, as far as this gateway knows, that is not handled.
    fn is_unaccounted(&self) -> bool {
        let mut earlier = self.reported.iter().filter(|last| last.epoch < self.tip.epoch);
        earlier.any(|last| last.offset > self.end_of(last.epoch))
    }

    /// What is to be offered behind a frame that ends at this name, if that is accepted.
    pub fn offer_after(&self, last: Position) -> Option<Box<Offer>> {
        let end_of = |epoch: Epoch| match epoch.cmp(&last.epoch) {
            Ordering::Less => Offset(u64::MAX),
            Ordering::Equal => self.end_of(epoch).max(last.offset),
            Ordering::Greater => self.end_of(epoch),
        };
        Some(Offer::of(self.first_beyond(end_of)?.clone()))
    }

    /// The first frame that is held beyond these ends.
    fn first_beyond(&self, end_of: impl Fn(Epoch) -> Offset) -> Option<&HeldFrame> {
        self.held.first_beyond((self.floor, self.tip.epoch), end_of)
    }

    fn end_of(&self, epoch: Epoch) -> Offset {
        if epoch == self.tip.epoch {
            self.tip.offset
        } else if epoch <= self.floor {
            Offset(u64::MAX)
        } else {
            self.ends.get(&epoch).copied().unwrap_or_default()
        }
    }
}

/// A held frame without the events that have these indices, and without what is covered of its
/// runs.
fn without(held: &HeldFrame, gone: &Ranges, covered: &[(usize, Ranges)]) -> HeldFrame {
    let stamped = &held.stamped;
    let (mut requests, mut runs, mut streams) = (Vec::new(), Vec::new(), Vec::new());
    let (mut events, mut left, mut moved) = (Vec::new(), Vec::new(), BTreeMap::new());
    for (event, index) in events_of(&stamped.frame.events).zip(0u64..) {
        if !gone.has(index) {
            moved.insert(index, left.len() as u64);
            left.push(held.index_in_name(index));
            put_event(&mut events, event);
        }
    }
    for request in read_requests(&stamped.requests) {
        if let Some(first) = moved.get(&request.first) {
            put_request(&mut requests, &request.id, *first, request.count);
        }
    }
    for (nth, at) in stamped.runs().enumerate() {
        let covered = covered.iter().find(|(index, _)| *index == nth).map(|(_, covered)| covered);
        let mut is_left = Vec::new();
        let parts = match covered {
            Some(covered) => at.run.without(covered, &mut is_left),
            None => vec![at.run.clone()],
        };
        let indices = (at.first..).zip(&at.run.sequences);
        let indices: Vec<u64> =
            indices.filter_map(|(index, _)| moved.get(&index).copied()).collect();
        let mut begin = 0;
        for part in parts {
            if let Some(first) = indices.get(begin) {
                put_run(&mut runs, &mut streams, *first, &part);
            }
            begin += part.sequences.len();
        }
    }
    let mut retain = Vec::new();
    for (index, key) in read_retained(&stamped.retain) {
        if let Some(index) = moved.get(&index) {
            put_retained(&mut retain, *index, key);
        }
    }
    let mut provenance = stamped.frame.provenance.as_deref().cloned().unwrap_or_default();
    let aliases = provenance.aliases.into_iter();
    provenance.aliases =
        aliases.filter_map(|(index, alias)| Some((*moved.get(&index)?, alias))).collect();
    let name = Name { left, ..held.name.clone() };
    provenance.name = Some(name.clone());
    let frame = Frame {
        count: name.left.len() as u64,
        provenance: Some(Box::new(provenance)),
        events: events.into(),
        ..stamped.frame.clone()
    };
    let stamped = StampedFrame {
        frame,
        writer: stamped.writer,
        sequence: stamped.sequence,
        requests: requests.into(),
        retain: retain.into(),
        runs: runs.into(),
        streams: streams.into(),
    };
    HeldFrame { name, stamped }
}

/// Encodes a held frame as a copy.
pub fn encode_copy(held: &HeldFrame) -> Vec<u8> {
    let stamped = &held.stamped;
    let provenance = Provenance {
        name: Some(held.name.clone()),
        ..stamped.frame.provenance.as_deref().cloned().unwrap_or_default()
    };
    let header = Header {
        writer: stamped.writer,
        sequence: stamped.sequence,
        count: stamped.frame.count,
        time_ms: stamped.frame.time_ms,
        provenance: Some(&provenance),
        requests: &stamped.requests,
        retain: &stamped.retain,
        runs: &stamped.runs,
        streams: &stamped.streams,
    };
    encode_frame(&header, &stamped.frame.events)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn frame(epoch: u64, sequence: u64) -> Envelope {
        let mut events = Vec::new();
        put_event(&mut events, b"event");
        let frame = Frame {
            epoch: Epoch(epoch),
            first: Offset(1),
            count: 1,
            time_ms: 0,
            provenance: None,
            events: events.into(),
        };
        let stamped = StampedFrame {
            frame,
            writer: 1,
            sequence,
            requests: Bytes::new(),
            retain: Bytes::new(),
            runs: Bytes::new(),
            streams: Bytes::new(),
        };
        Envelope { position: stamped.frame.last(), body: Body::Frame(stamped) }
    }

    #[test]
    fn an_event_of_an_epoch_that_the_shard_forgot_is_known_when_it_comes_under_another_name() {
        let (mut memory, now) = (Memory::new((100, 1 << 20)), Instant::now());
        let view = |epoch, floor| ShardView {
            tip: Position::new(epoch, 1),
            floor: Epoch(floor),
            ..ShardView::default()
        };
        memory.learn_view(&view(5, 0));
        memory.learn(&mut frame(5, 1), now);
        // The other side of a split brain stays: epoch 5 is over there since long.
        memory.learn_view(&view(9, 5));
        assert!(!memory.holds(Position::new(5, 1)));
        assert!(matches!(memory.task(now), Task::Nothing), "it is not offered any more");
        let mut again = frame(9, 1);
        memory.learn(&mut again, now);
        let Body::Frame(stamped) = again.body else { panic!("no frame") };
        let aliases = stamped.frame.provenance.map(|added| added.aliases);
        assert_eq!(aliases, Some(vec![(0, Position::new(5, 1))]));
        assert_eq!(memory.reported(), "9:1");
    }
}
