//! The frames that a gateway could append again: its part in the bus's replication.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound,
};

use crate::bus::{
    Epoch, Name, Offset, Position, PublisherId, RequestId,
    redis::envelope::{MAX_ALIASES, StampedFrame, WriterId, events_of, read_requests},
};

/// Default limits: frames, and bytes of events in them.
pub const MAX_HELD: (usize, usize) = (65_536, 16 * 1024 * 1024);

/// The approximate cost of a frame in memory, besides its events and requests, in bytes.
const FRAME_COST: usize = 320;

/// A frame that a gateway holds.
#[derive(Clone, Debug)]
pub struct HeldFrame {
    /// Its first acceptance.
    pub name: Name,
    /// The frame as it was read.
    pub stamped: StampedFrame,
}

impl HeldFrame {
    /// The frame that was read, under its name.
    pub fn new(stamped: StampedFrame) -> HeldFrame {
        let frame = &stamped.frame;
        let named = frame.provenance.as_ref().and_then(|provenance| provenance.name.clone());
        let name = named.unwrap_or(Name {
            epoch: frame.epoch,
            first: frame.first,
            count: frame.count,
            left: vec![],
        });
        HeldFrame { name, stamped }
    }

    /// Where its first event was accepted first.
    pub fn first(&self) -> Position {
        Position { epoch: self.name.epoch, offset: self.name.first }
    }

    /// The index, among the events of the name, of the event that has this index now.
    pub fn index_in_name(&self, index: u64) -> u64 {
        let left = usize::try_from(index).ok().and_then(|index| self.name.left.get(index));
        left.copied().unwrap_or(index)
    }

    fn size(&self) -> usize {
        let stamped = &self.stamped;
        FRAME_COST + stamped.frame.events.len() + stamped.requests.len() + stamped.runs.len()
    }
}

/// The frames that are held, by their names. Bounded: the first that came are dropped.
#[derive(Debug)]
pub struct Held {
    limits: (usize, usize),
    frames: BTreeMap<Position, HeldFrame>,
    /// The names, in the order in which they came. A name that was replaced is not added again.
    arrivals: VecDeque<Position>,
    bytes: usize,
    /// What is known of frames in other epochs than the one that is being read, to find one that
    /// was accepted twice. None while all frames are of one epoch.
    elsewhere: Option<Identities>,
}

/// Frames by what makes two acceptances the same, of other epochs than one.
#[derive(Debug, Default)]
struct Identities {
    epoch: Epoch,
    sequences: HashMap<(WriterId, u64), Vec<Position>>,
    /// The frames that have events of a request. Where in them is looked at when it is asked for: a
    /// frame may be dropped, and come again without some of its events.
    requests: HashMap<RequestId, Vec<Position>>,
    /// The frames that have events of a publisher.
    publishers: HashMap<PublisherId, Vec<Position>>,
}

/// An event of a frame that is held under another name.
struct Same {
    /// Its index in the frame.
    index: u64,
    /// The other name.
    alias: Position,
    /// The frame that is held, and the index of the event there.
    held: Position,
    there: u64,
}

impl Held {
    /// Holds nothing; `limits` are frames, and bytes.
    pub fn new(limits: (usize, usize)) -> Held {
        Held {
            limits,
            frames: BTreeMap::new(),
            arrivals: VecDeque::new(),
            bytes: 0,
            elsewhere: None,
        }
    }

    /// Holds a frame. Of two readings of one frame, the one that knows more is kept.
    pub fn keep(&mut self, frame: HeldFrame) {
        let (name, size) = (frame.first(), frame.size());
        if let Some(before) = self.frames.get_mut(&name) {
            if knowledge(before) <= knowledge(&frame) {
                self.bytes = self.bytes - before.size() + size;
                if before.stamped.requests != frame.stamped.requests {
                    // Some were left out of one of them.
                    self.elsewhere = None;
                }
                *before = frame;
            }
        } else {
            self.bytes += size;
            if let Some(elsewhere) = &mut self.elsewhere {
                elsewhere.add(&frame);
            }
            self.frames.insert(name, frame);
            self.arrivals.push_back(name);
        }
        while self.frames.len() > self.limits.0 || self.bytes > self.limits.1 {
            let Some(oldest) = self.arrivals.pop_front() else { break };
            if let Some(dropped) = self.frames.remove(&oldest) {
                self.bytes -= dropped.size();
            }
        }
    }

    /// The frame with the lowest name that lies beyond `end_of` its epoch, of the epochs after
    /// `floor` and before `before`.
    pub fn first_beyond(
        &self,
        (floor, before): (Epoch, Epoch),
        end_of: impl Fn(Epoch) -> Offset,
    ) -> Option<&HeldFrame> {
        let next =
            |epoch: Epoch| Position { epoch: Epoch(epoch.0.saturating_add(1)), offset: Offset(0) };
        let mut from = next(floor);
        loop {
            let (name, _) = self.frames.range(from..).next()?;
            let epoch = name.epoch;
            if epoch >= before {
                return None;
            }
            let end = Position { epoch, offset: end_of(epoch) };
            // The end of a note may lie within a frame.
            let within = self.frames.range(..=end).next_back().map(|(_, frame)| frame);
            let within =
                within.filter(|frame| frame.name.last() > end && frame.first().epoch == epoch);
            let after = self.frames.range((Bound::Excluded(end), Bound::Unbounded)).next();
            let after = after.map(|(_, frame)| frame).filter(|frame| frame.first().epoch == epoch);
            if let Some(found) = within.or(after) {
                return Some(found);
            }
            from = next(epoch);
        }
    }

    /// True if a name is that of an event that is held.
    pub fn names(&self, name: Position) -> bool {
        let before = self.frames.range(..=name).next_back();
        before.is_some_and(|(_, frame)| name <= frame.name.last())
    }

    /// Other names of a frame's events, if they were accepted more than once: those under which
    /// they are held. What is held gets the frame's names: when it is appended again, others who
    /// had the event under these must know.
    pub fn aliases(&mut self, stamped: &StampedFrame) -> Vec<(u64, Position)> {
        let epoch = stamped.frame.epoch;
        let is_elsewhere = |name: Option<&Position>| name.is_some_and(|name| name.epoch != epoch);
        let frames = &self.frames;
        if ![frames.keys().next(), frames.keys().next_back()].into_iter().any(is_elsewhere) {
            self.elsewhere = None;
            return vec![];
        }
        let known = self.elsewhere.take().filter(|known| known.epoch == epoch);
        let known = known.unwrap_or_else(|| {
            let mut known = Identities { epoch, ..Identities::default() };
            for frame in frames.values() {
                known.add(frame);
            }
            known
        });
        let same = self.elsewhere.insert(known).same(stamped, frames);
        let mut found = Vec::new();
        for Same { index, alias, held, there } in same {
            if !found.contains(&(index, alias)) {
                found.push((index, alias));
            }
            if let Some(other) = self.frames.get_mut(&held) {
                let name = stamped.frame.name_of(index);
                let own = other.stamped.frame.name_of(there);
                let known = other.stamped.frame.provenance.get_or_insert_default();
                let has_room = known.aliases.len() < MAX_ALIASES;
                if has_room && name != own && !known.aliases.contains(&(there, name)) {
                    known.aliases.push((there, name));
                }
            }
        }
        found
    }

    /// Frames, and bytes.
    pub fn size(&self) -> (usize, usize) {
        (self.frames.len(), self.bytes)
    }
}

impl Identities {
    fn add(&mut self, frame: &HeldFrame) {
        let name = frame.first();
        if name.epoch == self.epoch {
            return;
        }
        let stamped = &frame.stamped;
        self.sequences.entry((stamped.writer, stamped.sequence)).or_default().push(name);
        for request in read_requests(&stamped.requests) {
            self.requests.entry(request.id).or_default().push(name);
        }
        for at in stamped.runs() {
            let frames = self.publishers.entry(at.run.publisher).or_default();
            if frames.last() != Some(&name) {
                frames.push(name);
            }
        }
    }

    /// The events of a frame that are held under other names.
    fn same(&self, stamped: &StampedFrame, frames: &BTreeMap<Position, HeldFrame>) -> Vec<Same> {
        let mut found = Vec::new();
        let mut add = |index: u64, other: &HeldFrame, there: u64| {
            if index >= stamped.frame.count || there >= other.stamped.frame.count {
                return;
            }
            let provenance = other.stamped.frame.provenance.as_ref();
            let known = provenance.map_or(&[][..], |provenance| &provenance.aliases);
            let known = known.iter().filter(|(at, _)| *at == there).map(|(_, alias)| *alias);
            for alias in known.chain([other.stamped.frame.name_of(there)]) {
                if alias != stamped.frame.name_of(index) {
                    found.push(Same { index, alias, held: other.first(), there });
                }
            }
        };
        let same = self.sequences.get(&(stamped.writer, stamped.sequence));
        for other in same.into_iter().flatten().filter_map(|name| frames.get(name)) {
            // One of them may lack events that were accepted before: the rest has the same order.
            let mut there = events_of(&other.stamped.frame.events).zip(0..);
            for (event, index) in events_of(&stamped.frame.events).zip(0..) {
                let mut rest = there.clone();
                if let Some((_, found)) = rest.find(|(other, _)| *other == event) {
                    add(index, other, found);
                    there = rest;
                }
            }
        }
        for request in read_requests(&stamped.requests) {
            let names = self.requests.get(&request.id).into_iter().flatten();
            for other in names.filter_map(|name| frames.get(name)) {
                let same = read_requests(&other.stamped.requests).find(|at| at.id == request.id);
                let Some(there) = same else { continue };
                for nth in 0..request.count.min(there.count) {
                    add(request.first + nth, other, there.first + nth);
                }
            }
        }
        for here in stamped.runs() {
            let names = self.publishers.get(&here.run.publisher).into_iter().flatten();
            for other in names.filter_map(|name| frames.get(name)) {
                let theirs = other.stamped.runs().filter(|there| {
                    there.run.publisher == here.run.publisher
                        && there.run.from <= here.run.last()
                        && here.run.from <= there.run.last()
                });
                for there in theirs {
                    for (sequence, index) in here.run.sequences.iter().zip(here.first..) {
                        if let Ok(nth) = there.run.sequences.binary_search(sequence) {
                            add(index, other, there.first + nth as u64);
                        }
                    }
                }
            }
        }
        found
    }
}

/// Of two forms of one frame, the one with more events is worth more, then that with more names. A
/// copy may lack events that were accepted twice.
fn knowledge(frame: &HeldFrame) -> (u64, usize) {
    let provenance = frame.stamped.frame.provenance.as_ref();
    (frame.stamped.frame.count, provenance.map_or(0, |provenance| provenance.aliases.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::{Frame, Name, Provenance, put_event, redis::envelope::put_request};

    /// A frame of one event and one request.
    fn held(epoch: u64, writer: WriterId, request: u8) -> HeldFrame {
        let (mut events, mut requests) = (Vec::new(), Vec::new());
        put_event(&mut events, b"event");
        put_request(&mut requests, &[request; 16], 0, 1);
        let frame = Frame {
            epoch: Epoch(epoch),
            first: Offset(1),
            count: 1,
            time_ms: 0,
            provenance: None,
            events: events.into(),
        };
        HeldFrame::new(StampedFrame {
            frame,
            writer,
            sequence: 1,
            requests: requests.into(),
            retain: vec![].into(),
            runs: vec![].into(),
            streams: vec![].into(),
        })
    }

    #[test]
    fn a_frame_that_was_accepted_twice_is_held_with_both_names() {
        // A request that was retried on both sides of a split brain, by two writers.
        let mut all = Held::new(MAX_HELD);
        all.keep(held(2, 1, 7));
        all.keep(held(3, 1, 8));
        let second = held(4, 2, 7).stamped;
        assert_eq!(all.aliases(&second), [(0, Position::new(2, 1))]);
        // The first is appended again with the name of the second, for who had that.
        let nothing_handled = |_| Offset(0);
        let offered = all.first_beyond((Epoch::NONE, Epoch(5)), nothing_handled).unwrap();
        let known = offered.stamped.frame.provenance.clone().unwrap();
        assert_eq!(known.aliases, [(0, Position::new(4, 1))]);
        // Reading it again changes nothing.
        assert_eq!(all.aliases(&second), [(0, Position::new(2, 1))]);
        let offered = all.first_beyond((Epoch::NONE, Epoch(5)), nothing_handled).unwrap();
        assert_eq!(offered.stamped.frame.provenance.as_ref().unwrap().aliases.len(), 1);
    }

    /// A frame of epoch 2 with these of three events and requests.
    fn with_events(left: &[u64]) -> HeldFrame {
        let (mut events, mut requests) = (Vec::new(), Vec::new());
        for (index, nth) in (0..).zip(left) {
            put_event(&mut events, format!("event {nth}").as_bytes());
            put_request(&mut requests, &[u8::try_from(*nth).unwrap(); 16], index, 1);
        }
        let mut frame = held(2, 1, 0);
        let whole = left.len() == 3;
        let name = Name {
            epoch: Epoch(2),
            first: Offset(1),
            count: 3,
            left: if whole { vec![] } else { left.to_vec() },
        };
        frame.stamped.frame.count = left.len() as u64;
        frame.stamped.frame.events = events.into();
        frame.stamped.requests = requests.into();
        if !whole {
            let named = Provenance { name: Some(name), ..Provenance::default() };
            frame.stamped.frame.provenance = Some(Box::new(named));
        }
        HeldFrame::new(frame.stamped)
    }

    #[test]
    fn a_frame_that_was_dropped_and_comes_again_without_an_event_has_no_wrong_names() {
        let mut all = Held::new((1, 1 << 20));
        let copy = with_events(&[1, 2]);
        all.keep(with_events(&[0, 1, 2]));
        let mut later = held(4, 2, 7).stamped;
        assert!(all.aliases(&later).is_empty());
        // Another one takes its place, and it comes back as a copy.
        all.keep(held(3, 1, 8));
        all.keep(copy.clone());
        later.requests = copy.stamped.requests.clone();
        (later.frame.count, later.frame.events) = (2, copy.stamped.frame.events.clone());
        let names = [(0, Position::new(2, 2)), (1, Position::new(2, 3))];
        assert_eq!(all.aliases(&later), names);
    }
}
