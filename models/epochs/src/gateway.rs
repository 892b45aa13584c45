//! What a gateway knows of a shard, reduced to what recovery needs.

use std::collections::BTreeMap;

use crate::script::{Entry, Epoch, Position, Server};

/// For each epoch the last position that is known to have existed, and the offsets that are known
/// to be copies or notes: a bit for each.
pub type Known = BTreeMap<Epoch, (u8, u32)>;

/// A gateway's memory of the shard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Gateway {
    /// The events that it can append again, by name.
    pub held: BTreeMap<Position, u8>,
    pub known: Known,
    /// The end of the shard as it knows it.
    pub tip: Option<Position>,
}

impl Gateway {
    /// The position that a call states as seen.
    pub fn seen(&self) -> Option<Position> {
        let Position(epoch, offset) = self.tip?;
        let last = self.known.get(&epoch).map_or(0, |known| known.0);
        Some(Position(epoch, offset.max(last)))
    }

    fn learn(&mut self, Position(epoch, offset): Position, copies: u32) {
        let known = self.known.entry(epoch).or_default();
        known.0 = known.0.max(offset);
        known.1 |= copies;
    }

    /// Learns from the answer of a call.
    pub fn answered(&mut self, server: &Server) {
        let tip = server.tip.expect("a call opens an epoch");
        self.learn(tip, server.copies);
        for (epoch, offset) in &server.ends {
            self.learn(Position(*epoch, *offset), 0);
        }
        self.tip = Some(tip);
    }

    /// Reads all entries.
    pub fn read(&mut self, server: &Server) {
        for (at, entry) in &server.line {
            match entry {
                Entry::Start => self.learn(*at, 0),
                Entry::Event(event) => {
                    self.learn(*at, 0);
                    self.held.insert(*at, *event);
                }
                Entry::Copy(event, name) => {
                    self.learn(*at, 1 << at.1);
                    self.learn(*name, 0);
                    self.held.insert(*name, *event);
                }
                Entry::Note(epoch, _, last) => {
                    self.learn(*at, 1 << at.1);
                    self.learn(Position(*epoch, *last), 0);
                }
            }
        }
        self.tip = self.tip.max(server.tip);
    }

    /// The first event, by name, that is not handled.
    pub fn offer(&self, server: &Server) -> Option<(Position, u8)> {
        let before = server.tip?.0;
        let offers = self.held.iter().map(|(name, event)| (*name, *event));
        offers
            .take_while(|(name, _)| name.0 < before)
            .find(|(name, _)| name.1 > server.end_of(name.0))
    }
}
