//! Three servers behind three sentinels: who is the master, and what gateways make of it.
//!
//! Sentinels look, vote and promote as those of Redis do, one step at a time, while they may be cut
//! off from servers, from one another and from gateways. Which server a gateway uses is decided by
//! the gateway's own [`Choice`]; its calls, its subscription and its history lead there.

use trunkline::bus::redis::sentinel::{
    answer::{Address, Answer, Answers},
    choice::{Choice, Step},
};

use super::{
    mistakes::Mistake,
    world::{Act, World},
};

const SERVERS: usize = 3;
const SENTINELS: usize = 3;

/// Votes for a leader, and sentinels that must see a master down.
const MAJORITY: usize = 2;

/// How often sentinels and gateways look.
pub const ACTS: &[(Act, usize)] = &[(Act::Sentinel, 24), (Act::Look, 10)];

/// States of its master that a replica may lag behind.
const LAG: usize = 12;

/// Rounds within which sentinels agree once all faults are over.
const ROUNDS: usize = 20;

/// What a server says that it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The master with this number.
    Master(usize),
    /// A replica of that master.
    Replica(usize),
}

/// A server of the set.
struct Place {
    role: Role,
    alive: bool,
    /// It is frozen, and wakes up as it was.
    frozen: bool,
    /// The sentinels get no answer from it; gateways do.
    hidden: bool,
}

struct Sentinel {
    /// The server that it names as the master, and the number of that configuration.
    master: usize,
    epoch: u64,
    /// The last election in which it has voted.
    voted: u64,
    alive: bool,
    /// Cut off from the other sentinels.
    cut: bool,
}

/// The set.
pub struct Set {
    places: Vec<Place>,
    sentinels: Vec<Sentinel>,
    /// The gateways that get no answer of a sentinel.
    unanswered: Vec<(usize, usize)>,
    /// All faults are over.
    is_whole: bool,
}

/// The address of a server.
fn address(place: usize) -> Address {
    (format!("server-{place}"), 6379)
}

/// The server at an address.
fn place_of((host, _): &Address) -> usize {
    host.trim_start_matches("server-").parse().expect("an address of the set")
}

impl Set {
    /// The first server is the master, with number 0.
    pub fn new() -> Set {
        let place = |index| {
            let role = if index == 0 { Role::Master(0) } else { Role::Replica(0) };
            Place { role, alive: true, frozen: false, hidden: false }
        };
        let sentinel = |_| Sentinel { master: 0, epoch: 1, voted: 1, alive: true, cut: false };
        Set {
            places: (0..SERVERS).map(place).collect(),
            sentinels: (0..SENTINELS).map(sentinel).collect(),
            unanswered: vec![],
            is_whole: false,
        }
    }

    /// The number of the master that a server is, if it is one and runs.
    fn master_at(&self, place: usize) -> Option<usize> {
        match &self.places[place] {
            Place { role: Role::Master(master), alive: true, frozen: false, .. } => Some(*master),
            _ => None,
        }
    }

    /// True if a server runs and refuses what only masters do.
    fn is_replica(&self, place: usize) -> bool {
        let place = &self.places[place];
        place.alive && !place.frozen && matches!(place.role, Role::Replica(_))
    }

    fn sees(&self, place: usize) -> bool {
        let place = &self.places[place];
        place.alive && !place.frozen && !place.hidden
    }

    /// The other sentinels that one reaches.
    fn peers(&self, sentinel: usize) -> impl Iterator<Item = usize> {
        let up = |index: &usize| self.sentinels[*index].alive && !self.sentinels[*index].cut;
        (0..SENTINELS).filter(move |other| *other != sentinel && up(other) && up(&sentinel))
    }

    /// True if a sentinel finds the master that it names, as a master.
    fn is_fine(&self, sentinel: usize) -> bool {
        let master = self.sentinels[sentinel].master;
        self.sees(master) && self.master_at(master).is_some()
    }

    /// Takes over what another sentinel knows that is newer.
    fn learn(&mut self, sentinel: usize) {
        let newest = self.peers(sentinel).max_by_key(|other| self.sentinels[*other].epoch);
        if let Some(other) = newest
            && self.sentinels[other].epoch > self.sentinels[sentinel].epoch
        {
            let (master, epoch) = (self.sentinels[other].master, self.sentinels[other].epoch);
            let own = &mut self.sentinels[sentinel];
            (own.master, own.epoch) = (master, epoch);
        }
    }

    /// The number of the election that a sentinel wins, if it does.
    fn elect(&mut self, sentinel: usize) -> Option<u64> {
        let electors: Vec<usize> = self.peers(sentinel).chain([sentinel]).collect();
        let reached = electors.iter().map(|index| &self.sentinels[*index]);
        let epoch = reached.map(|it| it.epoch.max(it.voted)).max()? + 1;
        if electors.len() < MAJORITY {
            return None;
        }
        for index in electors {
            self.sentinels[index].voted = epoch;
        }
        Some(epoch)
    }

    /// What the sentinels answer to a gateway.
    fn answers(&self, gateway: usize) -> Answers {
        let answer = |(index, sentinel): (usize, &Sentinel)| {
            let name = format!("sentinel-{index}");
            if !sentinel.alive || self.unanswered.contains(&(gateway, index)) {
                return (name, Err("no answer in time".to_owned()));
            }
            let master = address(sentinel.master);
            let answer =
                Answer { master, epoch: sentinel.epoch, replicas: vec![], sentinels: vec![] };
            (name, Ok(answer))
        };
        self.sentinels.iter().enumerate().map(answer).collect()
    }
}

impl World {
    /// Does what `act` is behind sentinels. False if that is nothing of its own.
    pub fn act_on_set(&mut self, act: Act) -> bool {
        if self.set.is_none() {
            return false;
        }
        match act {
            Act::Sentinel => {
                let sentinel = self.rng.below(SENTINELS);
                self.sentinel_looks(sentinel);
            }
            Act::Look => {
                if let Some(gateway) = self.pick() {
                    self.look(gateway);
                }
            }
            Act::Failover => self.master_fails(),
            Act::Split => self.cut_of_set(),
            Act::EndSplit => self.mend_set(),
            _ => return false,
        }
        self.lead();
        true
    }

    fn set(&mut self) -> &mut Set {
        self.set.as_mut().expect("a set")
    }

    /// Gateways reach what the server is now that they use.
    fn lead(&mut self) {
        let Some(set) = &self.set else { return };
        for gateway in &mut self.gateways {
            let master = gateway.used.and_then(|place| set.master_at(place));
            gateway.away = master.is_none();
            gateway.side = master.unwrap_or(gateway.side);
        }
    }

    /// True if the server that a gateway uses is a replica.
    pub fn uses_replica(&self, gateway: usize) -> bool {
        let place = self.gateways[gateway].used;
        place.is_some_and(|place| self.set.as_ref().is_some_and(|set| set.is_replica(place)))
    }

    /// One sentinel learns, looks at the servers, and does what follows.
    fn sentinel_looks(&mut self, sentinel: usize) {
        let set = self.set();
        if !set.sentinels[sentinel].alive {
            return;
        }
        set.learn(sentinel);
        if set.is_fine(sentinel) {
            self.demote_others(sentinel);
            return;
        }
        let named = set.sentinels[sentinel].master;
        let peers: Vec<usize> = set.peers(sentinel).collect();
        let agree = peers
            .iter()
            .filter(|other| set.sentinels[**other].master == named && !set.is_fine(**other));
        if agree.count() + 1 >= MAJORITY {
            self.promote(sentinel);
        }
    }

    /// A sentinel makes one of the others that it reaches the master, if others vote for it.
    fn promote(&mut self, sentinel: usize) {
        let set = self.set();
        let named = set.sentinels[sentinel].master;
        let others = (0..SERVERS).filter(|place| *place != named && set.sees(*place));
        let others: Vec<usize> = others.collect();
        let Some(epoch) = set.elect(sentinel) else { return };
        if others.is_empty() {
            return;
        }
        let place = others[self.rng.below(others.len())];
        let (to, lag) = match self.set().places[place].role {
            // Another sentinel promoted it, and did not say so.
            Role::Master(already) => (already, 0),
            Role::Replica(follows) => {
                let lag = self.rng.below(LAG);
                (self.master_from(follows, lag), lag)
            }
        };
        self.set().places[place].role = Role::Master(to);
        self.absences = true;
        self.note(|| {
            format!(
                "sentinel {sentinel} makes server {place} the master, as number {to}, {lag} calls \
                 behind"
            )
        });
        self.count("promotions");
        // It may fail before it has said so.
        if !self.set().is_whole && self.rng.percent(10) {
            self.set().sentinels[sentinel].alive = false;
            return;
        }
        let own = &mut self.set().sentinels[sentinel];
        (own.master, own.epoch) = (place, epoch);
    }

    /// Masters that a sentinel does not name become replicas of the one that it does.
    fn demote_others(&mut self, sentinel: usize) {
        let named = self.set().sentinels[sentinel].master;
        let Some(master) = self.set().master_at(named) else { return };
        for place in 0..SERVERS {
            if place == named || !self.set().sees(place) {
                continue;
            }
            if let Some(demoted) = self.set().master_at(place) {
                self.masters[demoted].alive = false;
                self.note(|| format!("sentinel {sentinel} makes server {place} a replica"));
                self.count("masters demoted");
            }
            self.set().places[place].role = Role::Replica(master);
        }
    }

    /// A gateway asks the sentinels, and goes where they and the servers say.
    pub fn look(&mut self, gateway: usize) {
        let Some(set) = &self.set else { return };
        let answers = set.answers(gateway);
        let used = self.gateways[gateway].used;
        let cut = self.gateways[gateway].cut;
        let reaches = |place: usize| !cut && set.master_at(place).is_some();
        let said = answers.iter().filter_map(|(_, answer)| answer.as_ref().ok());
        let newest = said.clone().max_by_key(|answer| answer.epoch);
        let newest = newest.map(|answer| place_of(&answer.master));
        let any = said.map(|answer| place_of(&answer.master)).find(|place| reaches(*place));
        let mut given = answers.clone();
        if self.mistake == Some(Mistake::ConfigurationsOfOneAge) {
            for (_, answer) in &mut given {
                *answer = answer.clone().map(|answer| Answer { epoch: 0, ..answer });
            }
        }
        let in_use = used.map(address);
        let mut choice = Choice::new(&given, in_use.as_ref());
        let mut next = choice.step();
        let chosen = loop {
            next = match next {
                Step::Ask(asked) => {
                    let believes = self.mistake == Some(Mistake::SentinelsBelieved);
                    let place = place_of(&asked);
                    let role = match () {
                        () if believes || reaches(place) => Ok(()),
                        () if !cut && set.is_replica(place) => Err("it is a replica".to_owned()),
                        () => Err("no answer".to_owned()),
                    };
                    choice.answered(role)
                }
                Step::Use(master, _) => break Some(place_of(&master)),
                Step::Keep(_) => break None,
            }
        };
        let wrong = match (chosen, newest) {
            (Some(place), _) if Some(place) != used && !reaches(place) => "goes to no master",
            (_, Some(newest)) if reaches(newest) && chosen != Some(newest) => {
                "is not at the master of the latest configuration"
            }
            (None, _) if any.is_some_and(|place| Some(place) != used) => "goes to no master at all",
            _ => "",
        };
        if !wrong.is_empty() {
            let why = format!("Topology: gateway {gateway} {wrong}: {answers:?}");
            self.events.broken.push(why);
        }
        if let Some(place) = chosen
            && used != chosen
        {
            self.gateways[gateway].used = chosen;
            self.note(|| format!("gateway {gateway} uses server {place}"));
            self.count("masters followed");
        }
        self.lead();
    }

    /// A master dies or freezes, or is replaced by command.
    fn master_fails(&mut self) {
        let masters = |set: &Set| -> Vec<usize> {
            (0..SERVERS).filter(|place| set.master_at(*place).is_some()).collect()
        };
        let masters = masters(self.set());
        if masters.is_empty() {
            return self.mend_set();
        }
        let place = masters[self.rng.below(masters.len())];
        match self.rng.below(10) {
            0..3 => {
                let sentinel = self.rng.below(SENTINELS);
                let set = self.set();
                if set.sentinels[sentinel].alive && set.is_fine(sentinel) {
                    self.note(|| format!("sentinel {sentinel} is asked for a failover"));
                    self.promote(sentinel);
                }
            }
            how => {
                let frozen = how < 6;
                let Some(master) = self.set().master_at(place) else { return };
                self.masters[master].alive = false;
                let failed = &mut self.set().places[place];
                (failed.frozen, failed.alive) = (frozen, frozen);
                self.note(|| {
                    format!("server {place} {}", if frozen { "freezes" } else { "is killed" })
                });
            }
        }
    }

    /// Somebody cannot reach somebody else any more.
    fn cut_of_set(&mut self) {
        let (what, place) = (self.rng.below(5), self.rng.below(SERVERS));
        let gateway = self.rng.below(self.gateways.len());
        let set = self.set();
        let said = match what {
            0 => {
                set.places[place].hidden = true;
                format!("server {place} is hidden from the sentinels")
            }
            1 => {
                set.sentinels[place].cut = true;
                format!("sentinel {place} is cut off from the others")
            }
            2 => {
                set.sentinels[place].alive = false;
                format!("sentinel {place} is killed")
            }
            3 => {
                set.unanswered.push((gateway, place));
                format!("gateway {gateway} gets no answer of sentinel {place}")
            }
            _ => {
                set.unanswered.extend((0..SENTINELS).map(|sentinel| (gateway, sentinel)));
                format!("gateway {gateway} gets no answer of any sentinel")
            }
        };
        self.absences = true;
        self.note(|| said);
        self.count("cuts in a set");
    }

    /// One server or sentinel is as it was, and some of what was cut.
    fn mend_set(&mut self) {
        let place = self.rng.below(SERVERS);
        let set = self.set();
        set.places[place].hidden = false;
        (set.sentinels[place].cut, set.sentinels[place].alive) = (false, true);
        set.unanswered.retain(|(_, sentinel)| *sentinel != place);
        self.start(place);
    }

    /// Starts a server again that was killed, or wakes it up.
    fn start(&mut self, place: usize) {
        let state = &mut self.set().places[place];
        let (was_frozen, was_alive) = (state.frozen, state.alive);
        (state.frozen, state.alive) = (false, true);
        let Role::Master(master) = state.role else { return };
        if was_frozen {
            self.masters[master].alive = true;
            self.note(|| format!("server {place} wakes up, as master {master}"));
        } else if !was_alive {
            // It does not know yet that there is another one, and has what it had stored.
            let stored = self.rng.below(LAG);
            let to = self.master_from(master, stored);
            self.set().places[place].role = Role::Master(to);
            self.absences = true;
            self.note(|| format!("server {place} starts again, as master {to}"));
        }
    }

    /// Ends all that is wrong with the set, until one server is the master.
    pub fn mend_whole_set(&mut self) -> Result<(), String> {
        if self.set.is_none() {
            return Ok(());
        }
        let set = self.set();
        set.is_whole = true;
        set.unanswered.clear();
        for place in 0..SERVERS {
            let set = self.set();
            set.places[place].hidden = false;
            (set.sentinels[place].cut, set.sentinels[place].alive) = (false, true);
            self.start(place);
        }
        for _ in 0..ROUNDS {
            (0..SENTINELS).for_each(|sentinel| self.sentinel_looks(sentinel));
        }
        let set = self.set();
        let named = set.sentinels[0].master;
        let agreed = set.sentinels.iter().all(|sentinel| sentinel.master == named);
        let masters = (0..SERVERS).filter(|place| set.master_at(*place).is_some());
        if !agreed || masters.collect::<Vec<_>>() != [named] {
            return Err("Topology: the sentinels do not agree on one master".to_owned());
        }
        for gateway in 0..self.gateways.len() {
            self.gateways[gateway].cut = false;
            self.look(gateway);
            if self.gateways[gateway].used != Some(named) {
                return Err(format!("Topology: gateway {gateway} is not at server {named}"));
            }
        }
        Ok(())
    }
}
