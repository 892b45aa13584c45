//! Streams over any history of losses: lines that lose their ends, failovers that are undone,
//! copies, notes, gateways that are behind or start anew, and streams that resume anywhere.
//!
//! The world here keeps the rules of a bus, and nothing more: whatever a gateway has read and the
//! servers lost is appended again under its name, lowest name first, before anything new; what no
//! gateway has is noted as lost.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    bus::{TestBus, end, ends, frame, lost, note, start},
    *,
};
use crate::{
    bus::{Delivery, Epoch, Frame, Name, Offset, Provenance},
    hub::token::ResumeToken,
};

const GATEWAYS: usize = 2;
const NODES: usize = 3;

#[derive(Clone, Debug)]
enum Act {
    /// Events are accepted, in one frame.
    Publish(u64),
    /// A gateway reads up to this many deliveries.
    Read(usize, usize),
    /// The servers lose everything after a part of their line, and begin a new epoch.
    Lose(usize),
    /// The servers go back to a line of before, and begin a new epoch.
    GoBack(usize),
    /// A gateway starts anew, with nothing.
    Restart(usize),
    /// A node reads up to this many events.
    Take(usize, u64),
    /// A node resumes with its token on a gateway.
    Resume(usize, usize),
}

fn act() -> impl Strategy<Value = Act> {
    let (gateway, node) = (|| 0..GATEWAYS, || 0..NODES);
    prop_oneof![
        6 => (1..4_u64).prop_map(Act::Publish),
        6 => (gateway(), 1..6_usize).prop_map(|(gateway, count)| Act::Read(gateway, count)),
        2 => (0..100_usize).prop_map(Act::Lose),
        1 => (0..100_usize).prop_map(Act::GoBack),
        1 => gateway().prop_map(Act::Restart),
        5 => (node(), 1..5_u64).prop_map(|(node, count)| Act::Take(node, count)),
        4 => (node(), gateway()).prop_map(|(node, gateway)| Act::Resume(node, gateway)),
    ]
}

struct Gateway {
    hub: Arc<Hub>,
    bus: Arc<TestBus>,
    /// The places that it has read, by epoch.
    walked: BTreeMap<Epoch, Offset>,
    /// The first names of the frames that it has read.
    held: BTreeSet<Position>,
}

struct Node {
    had: Vec<Had>,
    gateway: usize,
    got: Vec<u64>,
    told: BTreeSet<u64>,
    /// The events that it must get.
    owed: BTreeSet<u64>,
}

struct World {
    line: Vec<Delivery>,
    /// Lines of before.
    old_lines: Vec<Vec<Delivery>>,
    /// Every frame that was accepted, by the name of its first event.
    frames: BTreeMap<Position, Frame>,
    epoch: u64,
    next_id: u64,
    /// Ids by name, and the names that were noted as lost.
    ids: BTreeMap<Position, u64>,
    noted: BTreeSet<u64>,
    log: Capacity,
    gateways: Vec<Gateway>,
    nodes: Vec<Node>,
}

impl World {
    async fn new(log: usize) -> World {
        let line = vec![Delivery::Epoch(start(Position::new(10, 0), Position::UNKNOWN, &[]))];
        let mut world = World {
            line,
            old_lines: vec![],
            frames: BTreeMap::new(),
            epoch: 10,
            next_id: 0,
            ids: BTreeMap::new(),
            noted: BTreeSet::new(),
            log: Capacity { bytes: 1 << 20, events: log },
            gateways: vec![],
            nodes: vec![],
        };
        for _ in 0..GATEWAYS {
            let gateway = world.new_gateway();
            world.gateways.push(gateway);
        }
        for nth in 0..NODES {
            let begin = if nth == 0 { Begin::Oldest } else { Begin::Latest };
            let gateway = nth % GATEWAYS;
            let cursor = open(&world.gateways[gateway].hub, everything("n"), begin).await;
            world.nodes.push(Node {
                had: cursor.to_had(),
                gateway,
                got: vec![],
                told: BTreeSet::new(),
                owed: BTreeSet::new(),
            });
        }
        world
    }

    fn new_gateway(&self) -> Gateway {
        let (hub, bus) = TestBus::without_start(1, usize::MAX, self.log);
        bus.set_line(0, self.line.clone());
        let at = self.line.last().map_or(Position::UNKNOWN, end);
        let start = start(at, Position::UNKNOWN, &ends(&self.line));
        bus.deliver(0, Delivery::Start(start));
        let mut walked = BTreeMap::new();
        for position in self.line.iter().map(end) {
            walked.insert(position.epoch, position.offset);
        }
        Gateway { hub, bus, walked, held: BTreeSet::new() }
    }

    fn push(&mut self, delivery: Delivery) {
        self.line.push(delivery);
        for gateway in &self.gateways {
            gateway.bus.set_line(0, self.line.clone());
        }
    }

    fn tip(&self) -> Position {
        self.line.last().map_or(Position::UNKNOWN, end)
    }

    fn publish(&mut self, count: u64) {
        let Position { epoch, offset } = self.tip();
        let ids = self.next_id + 1..=self.next_id + count;
        self.next_id += count;
        let events: Vec<_> = ids.clone().map(|id| event(id, "p", "x")).collect();
        let frame = frame(epoch.0, offset.0 + 1, &events);
        for (index, id) in ids.clone().enumerate() {
            self.ids.insert(frame.name_of(index as u64), id);
        }
        self.nodes.iter_mut().for_each(|node| node.owed.extend(ids.clone()));
        self.frames.insert(frame.name_of(0), frame.clone());
        self.push(Delivery::Frame(frame));
    }

    fn read(&mut self, gateway: usize, count: usize) {
        let gateway = &mut self.gateways[gateway];
        let mut left = count;
        for delivery in &self.line {
            let at = end(delivery);
            if gateway.walked.get(&at.epoch).is_some_and(|walked| *walked >= at.offset) {
                continue;
            }
            if left == 0 {
                return;
            }
            left -= 1;
            gateway.walked.insert(at.epoch, at.offset);
            if let Delivery::Frame(frame) = delivery {
                gateway.held.insert(frame.name_of(0));
            }
            gateway.bus.deliver(0, delivery.clone());
        }
    }

    /// The servers have this line now. What they lost is appended again, or noted.
    fn recover(&mut self, line: Vec<Delivery>) {
        let before = std::mem::replace(&mut self.line, line);
        self.old_lines.push(before);
        let known: BTreeMap<Epoch, Offset> =
            ends(&self.line).into_iter().map(|end| (end.epoch, end.offset)).collect();
        let previous = self.tip();
        self.epoch += 10;
        let at = Position::new(self.epoch, 0);
        let start = start(at, previous, &ends(&self.line));
        self.push(Delivery::Epoch(start));
        let mut place = 1;
        let lost_frames: Vec<_> = self
            .frames
            .iter()
            .filter(|(name, _)| known.get(&name.epoch).is_none_or(|end| name.offset > *end))
            .map(|(name, frame)| (*name, frame.clone()))
            .collect();
        for (name, frame) in lost_frames {
            let at = Position::new(self.epoch, place);
            if self.gateways.iter().any(|gateway| gateway.held.contains(&name)) {
                place += frame.count;
                let named = Name {
                    epoch: name.epoch,
                    first: name.offset,
                    count: frame.count,
                    left: vec![],
                };
                let provenance = Provenance { name: Some(named), ..Provenance::default() };
                self.push(Delivery::Frame(Frame {
                    epoch: at.epoch,
                    first: at.offset,
                    provenance: Some(provenance.into()),
                    ..frame
                }));
            } else {
                place += 1;
                let last = name.offset.0 + frame.count - 1;
                for offset in name.offset.0..=last {
                    self.noted.insert(self.ids[&Position::new(name.epoch.0, offset)]);
                }
                self.push(note(at, lost(name.epoch.0, name.offset.0, last)));
            }
        }
    }

    async fn take(&mut self, node: usize, most: u64) {
        let node = &mut self.nodes[node];
        // The token goes over the wire.
        let token =
            ResumeToken { deployment: 7, shards: node.had.clone(), behind: None }.to_bytes();
        let token = ResumeToken::decode(&token, 7).unwrap();
        assert_eq!(token.shards, node.had);
        let options = ReadOptions { max_events: Some(most), ..ReadOptions::default() };
        let hub = &self.gateways[node.gateway].hub;
        let opened = hub.open(everything("n"), &Begin::After(token.shards), options).await.unwrap();
        let mut cursor = opened.cursor;
        loop {
            let item = tokio::time::timeout(std::time::Duration::from_millis(200), cursor.next());
            let Ok(item) = item.await else { break };
            match item.unwrap() {
                Item::Events(batch) => node.got.extend(ids(&batch.chunks)),
                Item::Gap(_, gap) => {
                    assert!(gap.missed.is_some(), "a gap of unknown size: {gap:?}");
                    for offset in gap.from.offset.0 + 1..=gap.to.offset.0 {
                        let name = Position::new(gap.to.epoch.0, offset);
                        let id = self.ids[&name];
                        assert!(self.noted.contains(&id), "{id} at {name} was not lost");
                        assert!(node.told.insert(id), "{id} was told twice");
                    }
                }
            }
        }
        node.had = cursor.to_had();
    }

    async fn act(&mut self, act: &Act) {
        match *act {
            Act::Publish(count) => self.publish(count),
            Act::Read(gateway, count) => self.read(gateway, count),
            Act::Lose(percent) => {
                let keep = 1 + (self.line.len() - 1) * percent / 100;
                self.recover(self.line[..keep].to_vec());
            }
            Act::GoBack(which) => {
                if !self.old_lines.is_empty() {
                    let line = self.old_lines[which % self.old_lines.len()].clone();
                    self.recover(line);
                }
            }
            Act::Restart(gateway) => {
                let new = self.new_gateway();
                self.gateways[gateway] = new;
            }
            Act::Take(node, most) => self.take(node, most).await,
            Act::Resume(node, gateway) => self.nodes[node].gateway = gateway,
        }
    }

    async fn check(mut self) {
        for gateway in 0..GATEWAYS {
            self.read(gateway, usize::MAX);
        }
        for node in 0..NODES {
            self.take(node, 1_000_000).await;
            self.nodes[node].gateway = (self.nodes[node].gateway + 1) % GATEWAYS;
            let before = (self.nodes[node].got.len(), self.nodes[node].told.len());
            self.take(node, 1_000_000).await;
            let Node { got, told, owed, .. } = &self.nodes[node];
            assert_eq!(before, (got.len(), told.len()), "nothing is left to read");
            let once: BTreeSet<u64> = got.iter().copied().collect();
            assert_eq!(once.len(), got.len(), "node {node} got one twice: {got:?}");
            let both: Vec<_> = once.intersection(told).collect();
            assert!(both.is_empty(), "node {node} was told that {both:?} are lost, which it had");
            let all: BTreeSet<u64> = once.union(told).copied().collect();
            let missing: Vec<_> = owed.difference(&all).collect();
            assert!(missing.is_empty(), "node {node} never got {missing:?}; got {got:?}");
        }
    }
}

/// Acts in one world, to the end.
fn run(acts: &[Act], log: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        tokio::time::pause();
        let mut world = World::new(log).await;
        for act in acts {
            world.act(act).await;
        }
        world.check().await;
    });
}

/// Found by the property below, with other random numbers.
#[test]
fn servers_that_go_back_twice_lose_nothing() {
    let acts = [
        Act::Publish(1),
        Act::Lose(0),
        Act::Publish(1),
        Act::Read(1, 3),
        Act::Publish(1),
        Act::Lose(0),
        Act::GoBack(72),
        Act::Lose(25),
        Act::Read(1, 1),
        Act::Lose(0),
        Act::GoBack(71),
        Act::Lose(80),
        Act::Read(1, 1),
        Act::Lose(0),
    ];
    run(&acts, 100_000);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        ..ProptestConfig::default()
    })]

    /// Whatever is lost, appended again and undone, and wherever a stream resumes: each event comes
    /// once, or is told as lost, and nothing is told as lost that was had or is still there.
    #[test]
    fn streams_get_everything_once_over_any_losses(
        acts in proptest::collection::vec(act(), 1..60),
        log in prop_oneof![Just(100_000_usize), 2..20_usize],
    ) {
        run(&acts, log);
    }
}
