//! The shard's script and its state, reduced to epochs, names, copies and notes. Each call is one
//! step, as in `src/bus/redis/shard.lua`, whose functions have the same names here.

use std::collections::BTreeMap;

use crate::gateway::{Gateway, Known};

/// The number of an epoch. Only the order of numbers matters; between steps they are even.
pub type Epoch = u8;

/// A place in the shard; also the name of what was accepted there first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub Epoch, pub u8);

/// An entry of the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entry {
    /// The start of an epoch.
    Start,
    /// An event that was accepted here first.
    Event(u8),
    /// An event that was appended again, and its name.
    Copy(u8, Position),
    /// These offsets of an epoch are lost.
    Note(Epoch, u8, u8),
}

/// One rule of the protocol that is left out, to see that the checker finds what it is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Broken {
    /// The server's identity is not compared.
    Identity,
    /// An epoch may have a number that was used, of which neither server nor caller knows.
    Numbers,
    /// Notes are written without waiting for others.
    Settle,
    /// What a caller knows of and nobody holds is not noted.
    Notes,
    /// Positions of copies and notes are noted as lost like events.
    Copies,
    /// A call states only the end of the shard that the caller knows.
    Stated,
    /// The script takes what is offered, whatever is missing before it.
    Order,
    /// A gateway counts as done that has not seen this recovery.
    View,
    /// A frame that is there is appended again.
    Writers,
}

/// The ghost: what the checker remembers, and nobody in the system knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ghost {
    /// What each position meant first.
    pub meaning: BTreeMap<Position, Entry>,
    /// The promise that was broken.
    pub failure: Option<&'static str>,
}

/// A Redis server's state of the shard.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Server {
    /// The server that may append; none while the shard recovers.
    pub run: Option<Identity>,
    pub tip: Option<Position>,
    /// The offsets of the tip's epoch that are copies or notes: a bit for each.
    pub copies: u32,
    /// For each earlier epoch the offset up to which everything is handled.
    pub ends: BTreeMap<Epoch, u8>,
    pub line: Vec<(Position, Entry)>,
    /// The server whose recovery this is, and the positions that its callers know of.
    pub recovery: Option<(Identity, Known)>,
}

/// The server that a state names: the one that has it, or an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    This,
    Other,
}

/// The answer of a call, besides what the shard looks like then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Appended, or there before: the event's name.
    Named(Position),
    /// Done.
    Done,
    /// Nothing was done.
    Refused,
}

/// A server that takes calls.
pub struct Script<'a> {
    pub server: &'a mut Server,
    pub ghost: &'a mut Ghost,
    /// Which of the numbers that an epoch may have it gets, if this call opens one.
    pub choice: u8,
    /// The greatest number that was used.
    pub greatest: Epoch,
    /// True if this call opened an epoch.
    pub opened: bool,
    /// True if there is no such choice.
    pub no_choice: bool,
    /// What the caller states.
    pub seen: Option<Position>,
    pub stated: Known,
    /// The gateways that called this server, each with whether it is the caller.
    pub peers: Vec<(Gateway, bool)>,
    pub broken: Option<Broken>,
}

impl Script<'_> {
    fn is(&self, rule: Broken) -> bool {
        self.broken == Some(rule)
    }

    fn recovers(&self) -> bool {
        self.server.run.is_none()
    }

    /// The beginning of every call: compares the server, and begins a recovery.
    pub fn fence(&mut self) {
        if self.is(Broken::Stated) {
            let tip = self.seen.map(|tip| tip.0);
            self.stated.retain(|epoch, _| Some(*epoch) == tip);
        }
        let same = self.server.run == Some(Identity::This)
            || (self.is(Broken::Identity) && self.server.run.is_some());
        let behind = self.seen > self.server.tip;
        if self.server.tip.is_some() && same && !behind {
            return;
        }
        let before = self.server.recovery.take();
        let (of, mut stated) = before.unwrap_or((Identity::Other, Known::new()));
        merge(&mut stated, &self.stated);
        let most = stated.last_key_value().map(|(epoch, _)| *epoch);
        let epoch = self.server.tip.map(|tip| tip.0);
        if of != Identity::This || behind || epoch.is_none() || most > epoch {
            self.open_epoch(most.max(self.seen.map(|seen| seen.0)));
        }
        self.server.run = None;
        self.server.recovery = Some((Identity::This, stated));
    }

    fn open_epoch(&mut self, most: Option<Epoch>) {
        let ended = self.server.ends.last_key_value().map(|(epoch, _)| *epoch);
        let most = most.max(ended).max(self.server.tip.map(|tip| tip.0));
        if let Some(Position(epoch, offset)) = self.server.tip {
            self.server.ends.insert(epoch, offset);
        }
        // Any number above those that are known, since clocks may show anything: one above all that
        // were used, or between them. The used ones are even.
        let most = most.unwrap_or(0);
        let step = if self.is(Broken::Numbers) { 1 } else { 2 };
        let epoch = most + 1 + self.choice * step;
        (self.opened, self.no_choice) = (true, epoch > self.greatest.max(most) + 1);
        self.server.tip = Some(Position(epoch, 0));
        self.server.copies = 0;
        self.place_at(Position(epoch, 0), Entry::Start);
    }

    fn place_at(&mut self, at: Position, entry: Entry) {
        if *self.ghost.meaning.entry(at).or_insert(entry) != entry {
            self.fail("a position means two things");
        }
        self.server.line.push((at, entry));
    }

    fn place(&mut self, entry: Entry) -> Position {
        let tip = self.server.tip.expect("an epoch is open");
        let at = Position(tip.0, tip.1 + 1);
        self.server.tip = Some(at);
        if !matches!(entry, Entry::Event(_)) {
            self.server.copies |= 1 << at.1;
        }
        self.place_at(at, entry);
        at
    }

    fn fail(&mut self, what: &'static str) {
        self.ghost.failure.get_or_insert(what);
    }

    fn epoch(&self) -> Epoch {
        self.server.tip.expect("an epoch is open").0
    }

    fn end_of(&self, epoch: Epoch) -> u8 {
        self.server.end_of(epoch)
    }

    fn set_end(&mut self, epoch: Epoch, last: u8) {
        let end = self.server.ends.entry(epoch).or_default();
        *end = (*end).max(last);
    }

    /// Notes as lost what is not handled of an epoch up to `last`, without copies.
    fn note(&mut self, epoch: Epoch, last: u8, copies: u32) {
        let missing: Vec<u8> = (self.end_of(epoch) + 1..=last)
            .filter(|offset| self.is(Broken::Copies) || copies & (1 << offset) == 0)
            .collect();
        if self.is(Broken::Notes) {
            return;
        }
        for run in missing.chunk_by(|one, next| one + 1 == *next) {
            for offset in run {
                let name = Position(epoch, *offset);
                if !matches!(self.ghost.meaning.get(&name), Some(Entry::Event(_))) {
                    self.fail("what is no event is noted as lost");
                }
                if self.peers.iter().any(|(peer, _)| peer.held.contains_key(&name)) {
                    self.fail("an event is noted as lost that a gateway holds which takes part");
                }
            }
            self.place(Entry::Note(epoch, run[0], run[run.len() - 1]));
        }
        self.set_end(epoch, last);
    }

    fn note_all(&mut self, stated: &Known, before: Epoch) {
        for (epoch, (last, copies)) in stated.range(..before) {
            if *last > self.end_of(*epoch) {
                self.note(*epoch, *last, *copies);
            }
        }
    }

    /// True if no other gateway that takes part has anything before this name to offer. The real
    /// script waits until nothing was appended again for a time, or all say that they are done.
    fn settled(&self, before: Position) -> bool {
        self.is(Broken::Settle)
            || self.peers.iter().all(|(peer, caller)| {
                *caller || peer.offer(self.server).is_none_or(|(name, _)| name >= before)
            })
    }

    /// Appends an event.
    pub fn append(&mut self, event: u8) -> Status {
        self.fence();
        if self.recovers() {
            return Status::Refused;
        }
        if let Some(name) = self.server.name_of(event)
            && !self.is(Broken::Writers)
        {
            return Status::Named(name);
        }
        if self.seen.map(|seen| seen.0) != Some(self.epoch()) {
            return Status::Refused;
        }
        Status::Named(self.place(Entry::Event(event)))
    }

    /// Appends an event again, under its name.
    pub fn again(&mut self, name: Position, event: u8) -> Status {
        self.fence();
        let Position(epoch, offset) = name;
        if epoch >= self.epoch() || offset <= self.end_of(epoch) {
            return Status::Done;
        }
        let stated = self.stated.clone();
        let older = stated.range(..epoch).any(|(older, known)| known.0 > self.end_of(*older));
        if (older || offset > self.end_of(epoch) + 1) && !self.is(Broken::Order) {
            if !self.settled(name) {
                return Status::Refused;
            }
            self.note_all(&stated, epoch);
            let stated = self.server.recovery.as_ref().map_or(&stated, |(_, stated)| stated);
            let copies = stated.get(&epoch).map_or(0, |known| known.1);
            self.note(epoch, offset - 1, copies);
        }
        if self.server.name_of(event).is_none() || self.is(Broken::Writers) {
            self.place(Entry::Copy(event, name));
        }
        self.set_end(epoch, offset);
        Status::Done
    }

    /// Ends the recovery, or notes what only the caller knows of.
    pub fn release(&mut self) -> Status {
        self.fence();
        let end = Position(self.epoch(), 0);
        let known = self.seen.map(|seen| seen.0) == Some(end.0);
        if !self.settled(end) || !(known || self.is(Broken::View)) {
            return Status::Refused;
        }
        let Some((_, stated)) = self.server.recovery.clone() else {
            let stated = self.stated.clone();
            self.note_all(&stated, end.0);
            return Status::Done;
        };
        self.note_all(&stated, end.0);
        self.server.run = Some(Identity::This);
        self.server.recovery = None;
        self.judge_release(end.0);
        Status::Done
    }

    /// What gateways that take part know of, or hold, must be handled now.
    fn judge_release(&mut self, epoch: Epoch) {
        for (peer, _) in self.peers.clone() {
            for (older, (last, _)) in peer.known.range(..epoch) {
                for offset in self.end_of(*older) + 1..=*last {
                    let meant = self.ghost.meaning.get(&Position(*older, offset));
                    if matches!(meant, Some(Entry::Event(_))) {
                        self.fail("released, and an event is neither there nor noted");
                    }
                }
            }
            for (name, event) in &peer.held {
                if name.0 < epoch && !self.server.handles(*name, *event) {
                    self.fail("released, and an event is not there that a gateway holds");
                }
            }
        }
    }
}

impl Server {
    /// The offset up to which an epoch is handled.
    pub fn end_of(&self, epoch: Epoch) -> u8 {
        let tip = self.tip.filter(|tip| tip.0 == epoch).map(|tip| tip.1);
        tip.or(self.ends.get(&epoch).copied()).unwrap_or(0)
    }

    /// The name of an event that is there.
    pub fn name_of(&self, event: u8) -> Option<Position> {
        self.line.iter().find_map(|(at, entry)| match entry {
            Entry::Event(found) if *found == event => Some(*at),
            Entry::Copy(found, name) if *found == event => Some(*name),
            _ => None,
        })
    }

    /// True if the event is there, or its name is noted as lost.
    pub fn handles(&self, name: Position, event: u8) -> bool {
        self.name_of(event).is_some()
            || self.line.iter().any(|(_, entry)| match entry {
                Entry::Note(epoch, first, last) => {
                    *epoch == name.0 && (*first..=*last).contains(&name.1)
                }
                _ => false,
            })
    }
}

/// Adds what is known of positions.
pub fn merge(into: &mut Known, from: &Known) {
    for (epoch, (last, copies)) in from {
        let known = into.entry(*epoch).or_default();
        known.0 = known.0.max(*last);
        known.1 |= copies;
    }
}
