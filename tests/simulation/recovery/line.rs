//! What the simulation knows of the events, and of the line that each master has. The judge excuses
//! only what follows from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use trunkline::bus::{
    Position, PublisherId, StreamNumber,
    redis::{
        envelope::{Body, Envelope, StampedFrame, events_of, read_retained},
        recovery::Memory,
    },
};

use super::event;

/// An epoch and an offset.
pub type At = (u64, u64);

/// The time for which a recovery waits for gateways of which it does not know.
pub const SETTLE_MS: u128 = 300;

/// The time within which gateways have called that take part in a recovery.
const PRESENT_MS: u128 = 3000;

/// Half of the time for which requests are remembered: clocks jump by less than that.
const REMEMBERED_MS: u128 = 30_000;

/// The time after which tokens leave out an epoch that ended, less what clocks jump.
const TOKEN_MS: u128 = (8 * 86_400 - 60) * 1000;

/// The line of one master. A snapshot of the server has one of its own.
#[derive(Clone, Default)]
#[allow(clippy::struct_excessive_bools)] // independent facts
pub struct Line {
    /// Events that stand in the line.
    pub present: Rc<BTreeSet<u64>>,
    /// For each epoch the highest offset that a call told this line of.
    pub told: Rc<BTreeMap<u64, u64>>,
    /// The gateways that took part in the last recovery: they knew of it, and had appended again
    /// all that they held, these names.
    pub took_part: Rc<BTreeMap<u64, BTreeSet<At>>>,
    /// The gateway among these whose call is executed now. It takes no part after all if that finds
    /// another server, and begins an epoch.
    pub joins: Option<u64>,
    /// The greatest epoch in which something was accepted.
    pub accepted: u64,
    pub recovering: bool,
    /// The epoch that began last.
    pub epoch: u64,
    /// When the recovery began, or when something was appended again in it last, in ms.
    pub since: u128,
    /// True if single keys of it were evicted.
    pub evicted: bool,
    /// True while its state is evicted.
    pub stateless: bool,
    /// True if its state was evicted: then it has what is held a second time, behind history that
    /// may lack some of it.
    pub again: bool,
    /// For each epoch up to where everything is there, was appended again, or was told as lost.
    pub handled: Rc<BTreeMap<u64, u64>>,
    /// Names that a recovery without the state passed over, since history has them and nobody
    /// offered them in time: the records of their writers and requests are gone.
    pub unrecorded: Rc<BTreeSet<At>>,
    /// When the records of each event's request and publisher were written here last, in ms: those
    /// of another line say nothing here.
    pub recorded: Rc<BTreeMap<u64, u128>>,
    /// Events whose request's record was evicted.
    pub forgotten: Rc<BTreeSet<u64>>,
    /// For each key the greatest name of an event that became its last value here.
    pub retained: Rc<BTreeMap<u8, At>>,
    /// For each publisher the last stream of which it has events, and when that came last, in ms.
    pub streams: Rc<BTreeMap<PublisherId, (StreamNumber, u128)>>,
    /// For each writer the greatest sequence that was accepted here.
    pub sequences: Rc<BTreeMap<u64, u64>>,
    /// When each gateway called last that was in step with the shard, in ms, and how far ahead the
    /// server's clock was then.
    pub called_by: Rc<BTreeMap<u64, (u128, i64)>>,
    /// The gateways that had called until the recovery began: it waits for them. Empty where the
    /// state with their records was lost.
    pub waits: Rc<BTreeSet<u64>>,
    /// True if gateways called by different clocks until then, since it jumped or another server
    /// took over: nobody can say which of them called at about the same time.
    pub unsure: bool,
    /// When a gateway's probe was accepted last, or the first call after the state was lost.
    pub called: Option<u128>,
}

/// What happened to the events of a seed.
#[derive(Default)]
pub struct Events {
    /// For each event the names under which it was accepted, in this order.
    pub names: BTreeMap<u64, Vec<At>>,
    /// The event of each name.
    pub truth: BTreeMap<At, u64>,
    /// The event of each place that holds a copy.
    pub copies: BTreeMap<At, u64>,
    /// The step of the first acceptance.
    pub first: BTreeMap<u64, u64>,
    /// The (writer, sequence) of each acceptance.
    pub stamps: BTreeMap<u64, BTreeSet<(u64, u64)>>,
    /// The doubts of each acceptance, by its name.
    pub doubts: BTreeMap<At, Vec<At>>,
    /// Accepted a second time, since no gateway that took part had it.
    pub double: BTreeSet<u64>,
    /// Accepted a second time though a gateway that took part had it.
    pub bad_double: BTreeSet<u64>,
    /// Appended again after the recovery, or accepted while two masters were alive: of the orders
    /// on the two lines, one has to give way.
    pub late: BTreeSet<u64>,
    /// True while two masters are alive.
    pub split: bool,
    /// When each event was accepted last on any line, in ms.
    pub recorded: BTreeMap<u64, u128>,
    /// Accepted a second time, since its request's record was gone: by age, or evicted.
    pub expired: BTreeSet<u64>,
    /// The greatest epoch that any line has forgotten by its age. Gateways that know that no longer
    /// say that such epochs existed, and nothing waits for what others still have of them.
    pub floor: u64,
    /// All epochs that were opened on any line, with the time, in ms.
    pub opened: BTreeMap<u64, u128>,
    /// Accepted behind a later frame of the same writer.
    pub overtaken: BTreeSet<u64>,
    /// A caller got the answer that nobody knows whether it was accepted.
    pub given_up: BTreeSet<u64>,
    /// Names that were told as lost.
    pub declared: BTreeSet<At>,
    /// Promises that were broken on the way.
    pub broken: Vec<String>,
}

/// The position as a pair of numbers.
pub fn at(position: Position) -> At {
    (position.epoch.0, position.offset.0)
}

/// The numbers of a frame's events.
pub fn numbers(stamped: &StampedFrame) -> Vec<u64> {
    events_of(&stamped.frame.events).map(event::number).collect()
}

impl Line {
    /// Takes in what a call told the server of.
    pub fn report(&mut self, reported: &str) {
        let told = Rc::make_mut(&mut self.told);
        for entry in reported.split_ascii_whitespace() {
            let mut parts = entry.split(':').map(|part| part.parse::<u64>().ok());
            if let (Some(Some(epoch)), Some(Some(offset))) = (parts.next(), parts.next()) {
                let known = told.entry(epoch).or_default();
                *known = (*known).max(offset);
            }
        }
    }

    /// Takes in a message that the script published.
    pub fn published(&mut self, message: &Envelope, events: &mut Events, step: u64, now: u128) {
        match &message.body {
            Body::Frame(stamped) if stamped.frame.is_copy() => {
                self.since = now;
                let numbers = numbers(stamped);
                let places =
                    (stamped.frame.first.0..).map(|offset| (stamped.frame.epoch.0, offset));
                events.copies.extend(places.zip(numbers.iter().copied()));
                // What a recovery had to leave out comes behind newer events (X3).
                let name = at(stamped.frame.name_of(0));
                self.retain(stamped);
                let count = stamped.frame.provenance.as_ref().and_then(|added| added.name.as_ref());
                self.handle(name, name.1 + count.map_or(1, |name| name.count) - 1, events);
                // Who was away when an epoch was forgotten may bring it back.
                let forgotten = name.0 <= events.floor;
                if !self.recovering || self.accepted > name.0 || self.again || forgotten {
                    events.late.extend(&numbers);
                }
                let records = numbers.iter().map(|number| (*number, now));
                Rc::make_mut(&mut self.recorded).extend(records);
                Rc::make_mut(&mut self.present).extend(&numbers);
                self.publishes(stamped, now, |_| ());
            }
            Body::Frame(stamped) => self.accepted(stamped, events, step, now),
            Body::EpochStart { ends, floor, .. } => {
                events.floor = events.floor.max(floor.0);
                events.opened.insert(message.position.epoch.0, now);
                self.handled = Rc::new(ends.iter().copied().map(at).collect());
                let called = std::mem::take(&mut self.called_by);
                let last = called.values().map(|(at, _)| *at).max().unwrap_or_default();
                let present = called.iter().filter(|(_, (at, _))| at + PRESENT_MS > last + 100);
                let clocks: BTreeSet<i64> = called.values().map(|(_, ahead)| *ahead).collect();
                let waits = Rc::make_mut(&mut self.waits);
                if !self.recovering || self.stateless {
                    waits.clear();
                    self.unsure = false;
                }
                self.unsure |= clocks.len() > 1;
                if let Some(gateway) = self.joins.take() {
                    Rc::make_mut(&mut self.took_part).remove(&gateway);
                }
                waits.retain(|gateway| !self.took_part.contains_key(gateway));
                if !self.stateless {
                    waits.extend(present.map(|(gateway, _)| *gateway));
                }
                (self.recovering, self.since, self.stateless) = (true, now, false);
                self.epoch = message.position.epoch.0;
                self.took_part = Rc::default();
            }
            Body::Note(lost) => {
                self.handle((lost.epoch.0, lost.first.0), lost.last.0, events);
                for offset in lost.first.0..=lost.last.0 {
                    let name = (lost.epoch.0, offset);
                    events.declared.insert(name);
                    let Some(event) = events.truth.get(&name) else { continue };
                    let mut holders =
                        self.took_part.iter().filter(|(_, held)| held.contains(&name));
                    if let Some((gateway, _)) = holders.next() {
                        events.broken.push(format!(
                            "NoFalseGap: event {event} is told as lost as {name:?}, and gateway \
                             {gateway:x} that took part held it"
                        ));
                    }
                }
            }
            Body::Probe { .. } | Body::Unreadable | Body::Forged => {}
        }
    }

    fn retain(&mut self, stamped: &StampedFrame) {
        for (index, key) in read_retained(&stamped.retain) {
            let name = at(stamped.frame.name_of(index));
            let last = Rc::make_mut(&mut self.retained).entry(key).or_insert(name);
            *last = (*last).max(name);
        }
    }

    /// The names from `first` to `last` are handled now, and so are those before them.
    fn handle(&mut self, first: At, last: u64, events: &Events) {
        let before = *self.handled.get(&first.0).unwrap_or(&0);
        if self.again && before + 1 < first.1 {
            let passed = events.truth.range((first.0, before + 1)..first).map(|(name, _)| *name);
            Rc::make_mut(&mut self.unrecorded).extend(passed);
        }
        Rc::make_mut(&mut self.handled).insert(first.0, before.max(last));
    }

    /// The recovery is over: what was not handled in it is, from now on.
    pub fn release(&mut self, events: &Events) {
        self.recovering = false;
        if self.again {
            let earlier = events.truth.range(..(self.epoch, 0)).map(|(name, _)| *name);
            let handled = |name: &At| self.handled.get(&name.0).is_some_and(|end| *end >= name.1);
            let passed = earlier.filter(|name| !handled(name));
            Rc::make_mut(&mut self.unrecorded).extend(passed);
        }
    }

    /// Takes in of which streams the events are; `late` is told of one that was taken over.
    fn publishes(&mut self, stamped: &StampedFrame, now: u128, mut late: impl FnMut(String)) {
        for (publisher, stream) in stamped.streams() {
            let streams = Rc::make_mut(&mut self.streams);
            let (last, at) = streams.entry(publisher).or_insert((stream, now));
            // What the records of publishers had is gone with the state, and in time.
            if stream < *last && !self.evicted && now < *at + REMEMBERED_MS {
                late(format!("an event of stream {stream} is accepted after one of {last}"));
            }
            if *last <= stream {
                (*last, *at) = (stream, now);
            }
        }
    }

    fn accepted(&mut self, stamped: &StampedFrame, events: &mut Events, step: u64, now: u128) {
        let frame = &stamped.frame;
        self.retain(stamped);
        self.accepted = self.accepted.max(frame.epoch.0);
        self.publishes(stamped, now, |why| events.broken.push(format!("TakenOver: {why}")));
        let last = Rc::make_mut(&mut self.sequences).entry(stamped.writer).or_default();
        // What the records of writers had is gone with the state.
        if stamped.sequence < *last && !self.evicted {
            events.overtaken.extend(numbers(stamped));
        }
        *last = (*last).max(stamped.sequence);
        let provenance = frame.provenance.as_deref();
        let doubts: Vec<At> =
            provenance.map_or(vec![], |added| added.doubts.iter().copied().map(at).collect());
        for (event, nth) in numbers(stamped).into_iter().zip(0..) {
            let name = at(frame.name_of(nth));
            if events.split {
                events.late.insert(event);
            }
            let before = events.names.entry(event).or_default();
            if !before.is_empty() {
                let held = |name: &At| self.took_part.values().any(|held| held.contains(name));
                let recorded = self.recorded.get(&event).or(events.recorded.get(&event));
                let old = recorded.is_none_or(|at| *at + REMEMBERED_MS < now);
                if old || self.forgotten.contains(&event) {
                    events.expired.insert(event);
                } else if self.present.contains(&event) && !self.evicted {
                    events.broken.push(format!(
                        "Once: event {event} is accepted as {name:?}, and stands in the line as \
                         one of {before:?}"
                    ));
                }
                let recorded = |name: &&At| !self.unrecorded.contains(name);
                if before.iter().filter(recorded).any(held) {
                    events.bad_double.insert(event);
                }
                events.double.insert(event);
            }
            before.push(name);
            events.recorded.insert(event, now);
            Rc::make_mut(&mut self.recorded).insert(event, now);
            if *events.truth.entry(name).or_insert(event) != event {
                events.broken.push(format!("Position: {name:?} is given to event {event} too"));
            }
            events.first.entry(event).or_insert(step);
            events.stamps.entry(event).or_default().insert((stamped.writer, stamped.sequence));
            events.doubts.insert(name, doubts.clone());
            Rc::make_mut(&mut self.present).insert(event);
        }
    }
}

impl Events {
    /// True if tokens may no longer say that a node had the event: another epoch began behind its
    /// own, on whatever line, and the last one so long after that.
    pub fn is_old(&self, event: u64) -> bool {
        let last = self.opened.values().max().copied().unwrap_or_default();
        self.names[&event].iter().any(|(epoch, _)| {
            let mut later = self.opened.range(epoch + 1..);
            later.next().is_some_and(|(_, opened)| *opened + TOKEN_MS < last)
        })
    }

    /// The names of events that a gateway holds.
    pub fn held_by(&self, memory: &Memory) -> BTreeSet<At> {
        let names = self.truth.keys().copied();
        names.filter(|(epoch, offset)| memory.holds(Position::new(*epoch, *offset))).collect()
    }
}
