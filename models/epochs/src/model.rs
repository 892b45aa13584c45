//! The model: two gateways, a server of which copies of earlier states are kept, and what can
//! happen.

use std::collections::BTreeSet;

use stateright::{Model, Property};

use crate::{
    gateway::{Gateway, Known},
    script::{Broken, Entry, Epoch, Ghost, Identity, Position, Script, Server, Status},
};

/// Numbers that a new epoch may have.
const CHOICES: u8 = 8;

/// The bounds of what happens.
#[derive(Clone, Copy, Debug)]
pub struct Epochs {
    /// Events. The first gateway publishes the even ones, the second the odd ones.
    pub events: u8,
    /// Times that the server is replaced by an earlier state of itself, or an empty one.
    pub failovers: u8,
    /// Times that a gateway loses its memory.
    pub crashes: u8,
    /// A rule that is left out.
    pub broken: Option<Broken>,
}

/// How far the publication of an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Progress {
    /// Not answered: it is sent, or sent again.
    Open,
    /// Answered OK.
    Accepted,
    /// Its gateway crashed: nobody sends it again.
    GivenUp,
}

/// Everything at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    server: Server,
    gateways: [Gateway; 2],
    /// The gateways that have called this server, a bit for each.
    took_part: u8,
    events: Vec<Progress>,
    /// Earlier states that later failovers go back to.
    saved: Vec<Server>,
    failovers_left: u8,
    crashes_left: u8,
    ghost: Ghost,
}

/// One step. Gateways are counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A gateway appends an event; `answered` is false if the answer is lost. `choice`: which
    /// number an epoch gets that is opened.
    Append { gateway: usize, event: u8, answered: bool, choice: u8 },
    /// A gateway appends again the first thing that is missing.
    Again { gateway: usize, choice: u8 },
    /// A gateway has nothing to append again, and says so.
    Release { gateway: usize, choice: u8 },
    /// A gateway reads the shard: it holds everything of it afterwards.
    Read { gateway: usize },
    /// A gateway learns the end of the shard, and reads nothing.
    Probe { gateway: usize, choice: u8 },
    /// A gateway loses its memory.
    Crash { gateway: usize },
    /// The state is one to which a failover will go back.
    Save,
    /// Another server with a saved state takes over; without a number, one that is empty.
    Failover(Option<usize>),
}

impl Epochs {
    /// Makes a call from a gateway; it learns from the answer. None if nothing is new about it.
    fn call(
        &self,
        world: &mut World,
        gateway: usize,
        choice: u8,
        answered: bool,
        op: impl FnOnce(&mut Script<'_>) -> Status,
    ) -> Option<Status> {
        world.took_part |= 1 << gateway;
        let greatest = world.epochs().last().copied().unwrap_or(0);
        let caller = &world.gateways[gateway];
        let peers = (0..2).filter(|peer| world.took_part & (1 << peer) != 0);
        let mut script = Script {
            server: &mut world.server,
            ghost: &mut world.ghost,
            choice,
            greatest,
            opened: false,
            no_choice: false,
            seen: caller.seen(),
            stated: caller.known.clone(),
            peers: peers.map(|peer| (world.gateways[peer].clone(), peer == gateway)).collect(),
            broken: self.broken,
        };
        let status = op(&mut script);
        // Without an epoch there is one choice.
        if script.no_choice || (choice > 0 && !script.opened) {
            return None;
        }
        if answered {
            world.gateways[gateway].answered(&world.server);
        }
        Some(status)
    }
}

impl Model for Epochs {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        // Both gateways have received the start of the first epoch.
        let start = Position(2, 0);
        let server = Server {
            run: Some(Identity::This),
            tip: Some(start),
            line: vec![(start, Entry::Start)],
            ..Server::default()
        };
        let mut gateway = Gateway::default();
        gateway.answered(&server);
        vec![World {
            server,
            gateways: [gateway.clone(), gateway],
            took_part: 3,
            events: vec![Progress::Open; usize::from(self.events)],
            saved: vec![],
            failovers_left: self.failovers,
            crashes_left: self.crashes,
            ghost: Ghost { meaning: [(start, Entry::Start)].into(), failure: None },
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.ghost.failure.is_some() {
            return;
        }
        for gateway in 0..2 {
            // A gateway publishes its events one after the other.
            let own = (0..self.events).filter(|event| usize::from(event % 2) == gateway);
            let next = own
                .into_iter()
                .find(|event| matches!(world.events[usize::from(*event)], Progress::Open));
            for choice in 0..CHOICES {
                if let Some(event) = next {
                    for answered in [true, false] {
                        actions.push(Action::Append { gateway, event, answered, choice });
                    }
                }
                if world.gateways[gateway].offer(&world.server).is_some() {
                    actions.push(Action::Again { gateway, choice });
                } else {
                    actions.push(Action::Release { gateway, choice });
                }
                actions.push(Action::Probe { gateway, choice });
            }
            actions.push(Action::Read { gateway });
            if world.crashes_left > 0 {
                actions.push(Action::Crash { gateway });
            }
        }
        if world.failovers_left > 0 {
            actions.extend((0..world.saved.len()).map(|saved| Action::Failover(Some(saved))));
            // A failover for which nothing was saved goes back to the beginning.
            if world.saved.len() < usize::from(world.failovers_left) {
                actions.extend([Action::Save, Action::Failover(None)]);
            }
        }
    }

    fn next_state(&self, before: &World, action: Action) -> Option<World> {
        let mut world = before.clone();
        match action {
            Action::Append { gateway, event, answered, choice } => {
                let call = |script: &mut Script<'_>| script.append(event);
                let status = self.call(&mut world, gateway, choice, answered, call)?;
                match status {
                    Status::Named(name) if answered => {
                        world.gateways[gateway].held.insert(name, event);
                        world.events[usize::from(event)] = Progress::Accepted;
                    }
                    Status::Named(_) => {}
                    // Without an answer it is like a call that was never made, or a probe.
                    _ if !answered => return None,
                    _ => {}
                }
            }
            Action::Again { gateway, choice } => {
                let (name, event) = before.gateways[gateway].offer(&before.server)?;
                let call = |script: &mut Script<'_>| script.again(name, event);
                self.call(&mut world, gateway, choice, true, call)?;
            }
            Action::Release { gateway, choice } => {
                self.call(&mut world, gateway, choice, true, |script| script.release())?;
            }
            Action::Probe { gateway, choice } => {
                let call = |script: &mut Script<'_>| {
                    script.fence();
                    Status::Done
                };
                self.call(&mut world, gateway, choice, true, call)?;
            }
            Action::Read { gateway } => world.gateways[gateway].read(&before.server),
            Action::Crash { gateway } => {
                world.gateways[gateway] = Gateway::default();
                world.took_part &= !(1 << gateway);
                world.crashes_left -= 1;
                let own = world.events.iter_mut().skip(gateway).step_by(2);
                if let Some(open) = own.into_iter().find(|event| **event == Progress::Open) {
                    *open = Progress::GivenUp;
                }
            }
            Action::Save => {
                let mut saved = before.server.clone();
                saved.run = saved.run.map(|_| Identity::Other);
                if let Some(recovery) = &mut saved.recovery {
                    recovery.0 = Identity::Other;
                }
                world.saved.push(saved);
                world.saved.sort();
            }
            Action::Failover(saved) => {
                world.server = saved.map(|saved| world.saved.remove(saved)).unwrap_or_default();
                world.took_part = 0;
                world.failovers_left -= 1;
            }
        }
        if world == *before {
            return None;
        }
        world.normalize();
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Epochs>> {
        vec![
            Property::always("always: what a call does keeps the promises", |_, world: &World| {
                world.ghost.failure.is_none()
            }),
            Property::always(
                "always: nothing that is handled is lost in silence",
                |_, world: &World| world.is_everything_accounted_for(),
            ),
            Property::always("always: an event stands once on a line", |_, world: &World| {
                (0..u8::try_from(world.events.len()).unwrap_or(u8::MAX)).all(|event| {
                    let same = |(_, entry): &&(_, Entry)| {
                        matches!(entry, Entry::Event(e) | Entry::Copy(e, _) if *e == event)
                    };
                    world.server.line.iter().filter(same).count() <= 1
                })
            }),
            Property::sometimes(
                "sometimes: all is accepted after the last failover",
                |_, world: &World| {
                    world.failovers_left == 0
                        && world.server.run == Some(Identity::This)
                        && world.events.iter().all(|event| *event == Progress::Accepted)
                },
            ),
            Property::sometimes(
                "sometimes: copies of all events follow one another",
                |_, world: &World| {
                    let copies = |(_, entry): &&(_, Entry)| matches!(entry, Entry::Copy(..));
                    world.server.line.iter().filter(copies).count() == world.events.len()
                },
            ),
            Property::sometimes(
                "sometimes: an accepted event is noted as lost",
                |_, world: &World| {
                    let noted = |(_, entry): &(_, Entry)| matches!(entry, Entry::Note(..));
                    world.server.line.iter().any(noted)
                        && world.events.contains(&Progress::Accepted)
                },
            ),
        ]
    }
}

/// The names of all properties.
pub fn properties() -> impl Iterator<Item = &'static str> {
    let model = Epochs { events: 0, failovers: 0, crashes: 0, broken: None };
    model.properties().into_iter().map(|property| property.name)
}

impl World {
    /// The epochs that the server, gateways or later failovers know, ascending.
    fn epochs(&self) -> Vec<Epoch> {
        let mut epochs = BTreeSet::new();
        for server in self.saved.iter().chain([&self.server]) {
            epochs.extend(server.line.iter().map(|(at, _)| at.0));
            epochs.extend(server.ends.keys());
            epochs.extend(server.recovery.iter().flat_map(|(_, known)| known.keys()));
        }
        for gateway in &self.gateways {
            epochs.extend(gateway.known.keys());
            epochs.extend(gateway.held.keys().map(|name| name.0));
            epochs.extend(gateway.tip.map(|tip| tip.0));
        }
        epochs.into_iter().collect()
    }

    /// Gives epochs the numbers 2, 4, 6 and so on, in their order, and forgets what nobody knows:
    /// two worlds that differ in nothing else are the same.
    fn normalize(&mut self) {
        let epochs = self.epochs();
        let of = |epoch: Epoch| -> Epoch {
            let rank = epochs.binary_search(&epoch).expect("all epochs that are known");
            u8::try_from(2 * rank + 2).expect("few epochs")
        };
        let at = |position: Position| Position(of(position.0), position.1);
        let entry = |entry: Entry| match entry {
            Entry::Copy(event, name) => Entry::Copy(event, at(name)),
            Entry::Note(epoch, first, last) => Entry::Note(of(epoch), first, last),
            other => other,
        };
        let renumber = |known: &Known| -> Known {
            known.iter().map(|(epoch, last)| (of(*epoch), *last)).collect()
        };
        for server in self.saved.iter_mut().chain([&mut self.server]) {
            server.tip = server.tip.map(at);
            server.ends = server.ends.iter().map(|(epoch, end)| (of(*epoch), *end)).collect();
            server.line.iter_mut().for_each(|(place, what)| {
                (*place, *what) = (at(*place), entry(*what));
            });
            if let Some((_, known)) = &mut server.recovery {
                *known = renumber(known);
            }
        }
        for gateway in &mut self.gateways {
            gateway.known = renumber(&gateway.known);
            gateway.held = gateway.held.iter().map(|(name, event)| (at(*name), *event)).collect();
            gateway.tip = gateway.tip.map(at);
        }
        let known = |position: &Position| epochs.binary_search(&position.0).is_ok();
        let unknown = Entry::Start;
        self.ghost.meaning = std::mem::take(&mut self.ghost.meaning)
            .into_iter()
            .filter(|(place, _)| known(place))
            .map(|(place, what)| {
                let what = match what {
                    Entry::Copy(_, name) if !known(&name) => unknown,
                    Entry::Note(epoch, ..) if !known(&Position(epoch, 0)) => unknown,
                    what => entry(what),
                };
                (at(place), what)
            })
            .collect();
    }

    /// True if every event that was accepted at a position which counts as handled is there, or is
    /// noted as lost.
    fn is_everything_accounted_for(&self) -> bool {
        self.ghost.meaning.iter().all(|(at, entry)| match entry {
            Entry::Event(event) if self.server.ends.get(&at.0).is_some_and(|end| *end >= at.1) => {
                self.server.handles(*at, *event)
            }
            _ => true,
        })
    }

    /// What matters of a state in which a promise is broken.
    pub fn summary(&self) -> String {
        let line: Vec<String> =
            self.server.line.iter().map(|(at, entry)| format!("{at:?} {entry:?}")).collect();
        let failure = self.ghost.failure.unwrap_or("see the property");
        format!("  {failure}\n  on the line: {}", line.join(", "))
    }
}
