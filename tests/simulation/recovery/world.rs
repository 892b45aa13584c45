//! Gateways, masters and clients of one seed, and the steps that they take.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::oneshot;
use trunkline::{
    bus::{
        AppendError, Appended, Batch, Delivery, Position, ShardId,
        redis::{
            envelope::Envelope,
            history::{self, Reading},
            reader::{Found, ShardReader},
            recovery::Memory,
            script::{self, Answer, Call, Failure, Target},
            writer::{CallLimits, Core, Job, Shown, Step},
        },
    },
    config::{Config, Sources},
};

use super::rng::Rng;
use crate::redis::{Identity, Reply, Server};

/// The clock of all servers at the beginning, in microseconds since 1970.
const START: u64 = 1_790_000_000_000_000;

/// States of a master that a failover may go back to.
const SNAPSHOTS: usize = 40;

pub struct Master {
    pub server: Server,
    pub alive: bool,
    snapshots: VecDeque<Server>,
    /// The clock of this server is so many ms ahead.
    skew_ms: i64,
}

/// A call on its way.
enum Flight {
    Sent(Box<Call>),
    Answered(Result<Answer, Failure>),
}

pub struct Gateway {
    pub id: u64,
    pub alive: bool,
    pub frozen: bool,
    /// Cut off from every server.
    pub cut: bool,
    /// The master that it can reach.
    pub side: usize,
    subscription: Option<usize>,
    core: Core,
    pub memory: Memory,
    pub reader: ShardReader,
    flight: Option<Flight>,
    inbox: VecDeque<Vec<u8>>,
    wants_history: bool,
    wake: Option<Instant>,
    pub log: Vec<Delivery>,
    /// The step of the first delivery.
    pub started: Option<u64>,
    answers: Vec<(usize, oneshot::Receiver<Result<Appended, AppendError>>)>,
    /// What happened while it took no part: the judge excuses what follows from that.
    pub absent: bool,
}

/// A request of a client.
pub struct Request {
    pub id: Option<[u8; 16]>,
    pub events: Vec<u64>,
    /// The positions of its answers.
    pub answers: BTreeSet<(u64, u64)>,
    /// The step of the first one.
    pub answered: Option<u64>,
}

/// What may happen in a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    Publish,
    Retry,
    Step,
    Execute,
    Answer,
    Inbox,
    History,
    Time,
    Subscribe,
    Failover,
    Split,
    EndSplit,
    Flush,
    Crash,
    Freeze,
    Thaw,
    Cut,
    Uncut,
    LoseCall,
    LateCall,
    LoseAnswer,
    LoseMessage,
    Pause,
    Clock,
    EvictState,
    EvictHistory,
}

/// All of them, with how often they happen.
pub const ACTS: &[(Act, usize)] = &[
    (Act::Publish, 10),
    (Act::Retry, 4),
    (Act::Step, 30),
    (Act::Execute, 30),
    (Act::Answer, 30),
    (Act::Inbox, 50),
    (Act::History, 20),
    (Act::Time, 14),
    (Act::Subscribe, 16),
    (Act::Failover, 2),
    (Act::Split, 2),
    (Act::EndSplit, 3),
    (Act::Flush, 1),
    (Act::Crash, 2),
    (Act::Freeze, 2),
    (Act::Thaw, 4),
    (Act::Cut, 2),
    (Act::Uncut, 4),
    (Act::LoseCall, 4),
    (Act::LateCall, 3),
    (Act::LoseAnswer, 6),
    (Act::LoseMessage, 5),
    (Act::Pause, 1),
    (Act::Clock, 1),
    (Act::EvictState, 1),
    (Act::EvictHistory, 1),
];

/// The faults among them: each seed has some.
pub const FAULTS: &[Act] = &[
    Act::Retry,
    Act::Failover,
    Act::Split,
    Act::Flush,
    Act::Crash,
    Act::Freeze,
    Act::Cut,
    Act::LoseCall,
    Act::LateCall,
    Act::LoseAnswer,
    Act::LoseMessage,
    Act::Pause,
    Act::Clock,
    Act::EvictState,
    Act::EvictHistory,
];

pub struct World {
    pub rng: Rng,
    base: Instant,
    pub elapsed: Duration,
    pub masters: Vec<Master>,
    pub gateways: Vec<Gateway>,
    pub requests: Vec<Request>,
    strays: Vec<(usize, Call)>,
    target: Target,
    limits: CallLimits,
    next_id: u64,
    next_event: u64,
    /// Steps until now.
    steps: u64,
    pub trace: bool,
    pub history: Vec<String>,
    /// Faults that took a gateway or a server out of a recovery.
    pub absences: bool,
    pub happened: BTreeMap<&'static str, u64>,
}

macro_rules! note {
    ($world:expr, $($text:tt)*) => {
        if $world.trace {
            let line = format!("{:>7.3} {}", $world.elapsed.as_secs_f64(), format!($($text)*));
            $world.history.push(line);
        }
    };
}

impl World {
    pub fn new(seed: u64, gateways: usize, trace: bool) -> World {
        let text = br#"{"coordinator": {"@type": "Redis", "url": "redis://127.0.0.1:1"}}"#;
        let config = Config::load_text(text, &Sources::default()).expect("a valid configuration");
        let settings = Arc::new(
            trunkline::bus::redis::Settings::from_config(&config).expect("valid settings"),
        );
        let limits = settings.call_limits();
        let target = Target::new(&settings, ShardId(0), 1, "protocol 2".into());
        let mut world = World {
            rng: Rng(seed),
            base: Instant::now(),
            elapsed: Duration::ZERO,
            masters: vec![],
            gateways: vec![],
            requests: vec![],
            strays: vec![],
            target,
            limits,
            next_id: 1,
            next_event: 1,
            steps: 0,
            trace,
            history: vec![],
            absences: false,
            happened: BTreeMap::new(),
        };
        let identity = world.identity();
        let server = Server::new(identity);
        world.add_master(server);
        for _ in 0..gateways {
            let gateway = world.gateway(0);
            world.gateways.push(gateway);
        }
        world
    }

    pub fn now(&self) -> Instant {
        self.base + self.elapsed
    }

    fn identity(&mut self) -> Identity {
        self.next_id += 1;
        let id = format!("{:040x}", self.next_id);
        Identity { run_id: id.clone(), replication_id: id }
    }

    fn add_master(&mut self, server: Server) {
        let snapshots = VecDeque::from([server.clone()]);
        self.masters.push(Master { server, alive: true, snapshots, skew_ms: 0 });
    }

    fn gateway(&mut self, side: usize) -> Gateway {
        self.next_id += 1;
        let id = self.next_id << 32 | 0xabcd_ef01;
        let limit = if self.rng.percent(20) { 3 + self.rng.below(10) } else { 10_000 };
        let now = self.now();
        Gateway {
            id,
            alive: true,
            frozen: false,
            cut: false,
            side,
            subscription: None,
            core: Core::new(ShardId(0), id, self.limits, None, self.rng.next(), now),
            memory: Memory::new(id, (limit, 1 << 24)),
            reader: ShardReader::new(id, false),
            flight: None,
            inbox: VecDeque::new(),
            wants_history: false,
            wake: None,
            log: vec![],
            started: None,
            answers: vec![],
            absent: limit < 10_000,
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.happened.entry(what).or_default() += 1;
    }

    /// Executes a command on a master; what it publishes reaches the subscribers.
    fn execute<A: AsRef<[u8]>>(&mut self, master: usize, args: &[A]) -> Reply {
        let elapsed = i64::try_from(self.elapsed.as_micros()).expect("some seconds");
        let state = &mut self.masters[master];
        let micros = elapsed + state.skew_ms * 1000;
        state.server.set_time(START.saturating_add_signed(micros));
        let reply = state.server.call(args);
        let published = state.server.take_published();
        state.snapshots.push_back(state.server.clone());
        if state.snapshots.len() > SNAPSHOTS {
            state.snapshots.pop_front();
        }
        for message in published {
            for gateway in &mut self.gateways {
                if gateway.alive && gateway.subscription == Some(master) {
                    gateway.inbox.push_back(message.payload.clone());
                }
            }
        }
        reply
    }

    fn call_script(&mut self, master: usize, call: &Call) -> Result<Answer, Failure> {
        let args = arguments(&call.command(&self.target));
        let mut reply = self.execute(master, &args);
        if reply.error_code() == Some("NOSCRIPT") {
            self.execute(master, &[b"SCRIPT".to_vec(), b"LOAD".to_vec(), script::SHARD.into()]);
            reply = self.execute(master, &args);
        }
        if let Reply::Error(text) = &reply {
            // Nothing in a simulation makes the script fail: it is a mistake in it.
            panic!("the script failed: {text}");
        }
        let value = value(&reply);
        Ok(script::parse(&value).unwrap_or_else(|| panic!("no answer: {reply:?}")))
    }

    fn reachable(&self, gateway: usize) -> Option<usize> {
        let gateway = &self.gateways[gateway];
        (!gateway.cut && self.masters[gateway.side].alive).then_some(gateway.side)
    }

    pub fn live_masters(&self) -> Vec<usize> {
        (0..self.masters.len()).filter(|index| self.masters[*index].alive).collect()
    }

    /// A gateway that is up.
    fn pick(&mut self) -> Option<usize> {
        let up: Vec<usize> = (0..self.gateways.len())
            .filter(|index| self.gateways[*index].alive && !self.gateways[*index].frozen)
            .collect();
        (!up.is_empty()).then(|| up[self.rng.below(up.len())])
    }

    pub fn act(&mut self, act: Act) {
        self.steps += 1;
        match act {
            Act::Publish => {
                let events = 1 + self.rng.below(2) as u64;
                let first = self.next_event;
                self.next_event += events;
                let mut id = [0; 16];
                id[..8].copy_from_slice(&first.to_be_bytes());
                let id = (self.rng.below(3) > 0).then_some(id);
                let events = (first..first + events).collect();
                self.requests.push(Request { id, events, answers: BTreeSet::new(), answered: None });
                self.publish(self.requests.len() - 1);
            }
            Act::Retry => {
                let with_id: Vec<usize> = (0..self.requests.len())
                    .filter(|index| self.requests[*index].id.is_some())
                    .rev()
                    .take(8)
                    .collect();
                if !with_id.is_empty() {
                    let request = with_id[self.rng.below(with_id.len())];
                    self.publish(request);
                }
            }
            Act::Step => {
                if let Some(gateway) = self.pick() {
                    self.step(gateway);
                }
            }
            Act::Execute => {
                if let Some(gateway) = self.pick() {
                    self.execute_flight(gateway);
                }
                if !self.strays.is_empty() && self.rng.percent(10) {
                    let stray = self.rng.below(self.strays.len());
                    let (master, call) = self.strays.remove(stray);
                    if self.masters[master].alive {
                        note!(self, "a late call arrives at master {master}: {}", describe(&call));
                        let answer = self.call_script(master, &call);
                        note!(self, "  {answer:?}");
                        self.count("late calls");
                    }
                }
            }
            Act::Answer => {
                if let Some(gateway) = self.pick() {
                    self.answer(gateway);
                }
            }
            Act::Inbox => {
                if let Some(gateway) = self.pick() {
                    self.inbox(gateway);
                }
            }
            Act::History => {
                if let Some(gateway) = self.pick() {
                    self.read_history(gateway);
                }
            }
            Act::Time => {
                let ms = self.rng.below(4);
                self.elapsed += Duration::from_millis(ms as u64);
            }
            Act::Subscribe => {
                if let Some(gateway) = self.pick() {
                    self.reconnect(gateway);
                }
            }
            Act::LoseCall | Act::LateCall => {
                if let Some(gateway) = self.pick()
                    && matches!(self.gateways[gateway].flight, Some(Flight::Sent(_)))
                {
                    let Some(Flight::Sent(call)) = self.gateways[gateway].flight.take() else {
                        return;
                    };
                    note!(self, "gateway {gateway}: its call is {act:?}");
                    if act == Act::LateCall
                        && let Some(master) = self.reachable(gateway)
                    {
                        self.strays.push((master, *call));
                    }
                    let lost = Err(Failure::Unknown("lost".into()));
                    self.gateways[gateway].flight = Some(Flight::Answered(lost));
                    self.count("lost calls");
                }
            }
            Act::LoseAnswer => {
                if let Some(gateway) = self.pick()
                    && let Some(Flight::Answered(answer)) = &mut self.gateways[gateway].flight
                {
                    *answer = Err(Failure::Unknown("lost".into()));
                    note!(self, "gateway {gateway}: its answer is lost");
                    self.count("lost answers");
                }
            }
            Act::LoseMessage => {
                if let Some(gateway) = self.pick() {
                    let length = self.gateways[gateway].inbox.len();
                    if length > 0 {
                        let at = self.rng.below(length);
                        self.gateways[gateway].inbox.remove(at);
                        note!(self, "gateway {gateway}: a message is lost");
                        self.count("lost messages");
                    }
                }
            }
            Act::Pause => {
                // Everybody is slower than a recovery waits.
                let ms = self.rng.below(1500);
                self.elapsed += Duration::from_millis(ms as u64);
                self.absences = true;
                note!(self, "a pause of {ms} ms");
                self.count("pauses");
            }
            Act::Clock => {
                self.absences = true;
                let masters = self.live_masters();
                let master = masters[self.rng.below(masters.len())];
                let jump = self.rng.below(20_000);
                let jump = i64::try_from(jump).expect("small") - 10_000;
                self.masters[master].skew_ms += jump;
                note!(self, "the clock of master {master} jumps {jump} ms");
                self.count("clock jumps");
            }
            _ => self.fault(act),
        }
    }

    fn fault(&mut self, act: Act) {
        let masters = self.live_masters();
        let master = masters[self.rng.below(masters.len())];
        match act {
            Act::Failover => {
                let age = self.rng.below(self.masters[master].snapshots.len());
                let snapshots = &self.masters[master].snapshots;
                let mut server = snapshots[snapshots.len() - 1 - age].clone();
                server.set_identity(self.identity());
                self.masters[master].alive = false;
                self.add_master(server);
                let to = self.masters.len() - 1;
                for gateway in &mut self.gateways {
                    if gateway.side == master {
                        gateway.side = to;
                    }
                }
                note!(self, "master {master} fails over to {to}, {age} calls back");
                self.count("failovers");
            }
            Act::Split if masters.len() == 1 => {
                let age = self.rng.below(self.masters[master].snapshots.len().min(8));
                let snapshots = &self.masters[master].snapshots;
                let mut server = snapshots[snapshots.len() - 1 - age].clone();
                server.set_identity(self.identity());
                self.add_master(server);
                let to = self.masters.len() - 1;
                for index in 0..self.gateways.len() {
                    if self.rng.percent(50) {
                        self.gateways[index].side = to;
                    }
                }
                self.absences = true;
                note!(self, "split: master {to} beside {master}, {age} calls back");
                self.count("splits");
            }
            Act::EndSplit if masters.len() > 1 => {
                self.masters[master].alive = false;
                let rest = masters.into_iter().find(|index| *index != master).expect("another");
                for gateway in &mut self.gateways {
                    gateway.side = rest;
                }
                note!(self, "the split ends: master {master} is gone");
            }
            Act::Flush => {
                self.execute(master, &["FLUSHALL"]);
                note!(self, "FLUSHALL on master {master}");
                self.count("flushes");
            }
            Act::EvictState | Act::EvictHistory => {
                let end = if act == Act::EvictState { "state" } else { "history" };
                let server = &mut self.masters[master].server;
                let names = server.key_names();
                for name in names.iter().filter(|name| name.ends_with(end.as_bytes())) {
                    server.evict(name);
                }
                note!(self, "the {end} of master {master} is evicted");
                self.absences = true;
                self.count("evictions");
            }
            Act::Crash => {
                if let Some(gateway) = self.pick() {
                    let side = self.gateways[gateway].side;
                    note!(self, "gateway {gateway} crashes and starts anew");
                    self.gateways[gateway] = self.gateway(side);
                    self.absences = true;
                    self.count("crashes");
                }
            }
            Act::Freeze => {
                if let Some(gateway) = self.pick() {
                    self.gateways[gateway].frozen = true;
                    self.gateways[gateway].absent = true;
                    self.absences = true;
                    note!(self, "gateway {gateway} freezes");
                    self.count("freezes");
                }
            }
            Act::Thaw => {
                let gateway = self.rng.below(self.gateways.len());
                self.gateways[gateway].frozen = false;
            }
            Act::Cut => {
                let gateway = self.rng.below(self.gateways.len());
                let state = &mut self.gateways[gateway];
                (state.cut, state.absent, state.subscription) = (true, true, None);
                state.inbox.clear();
                self.absences = true;
                note!(self, "gateway {gateway} is cut off");
                self.count("cuts");
            }
            Act::Uncut => {
                let gateway = self.rng.below(self.gateways.len());
                self.gateways[gateway].cut = false;
            }
            _ => {}
        }
    }

    fn publish(&mut self, request: usize) {
        let Some(gateway) = self.pick() else { return };
        if !self.gateways[gateway].reader.is_started() {
            return;
        }
        let Request { id, events, .. } = &self.requests[request];
        let bytes = |event: &u64| Bytes::from(format!("event {event}"));
        let batch = Batch {
            events: events.iter().map(bytes).collect(),
            request_id: *id,
            retain: vec![],
            trace: None,
        };
        let (answer, answered) = oneshot::channel();
        let deadline = self.now() + Duration::from_secs(10);
        let sent = Arc::new(AtomicBool::new(false));
        note!(self, "gateway {gateway} gets request {request} with {events:?}");
        self.gateways[gateway].core.add(Job { batch, deadline, sent, answer });
        self.gateways[gateway].answers.push((request, answered));
    }

    pub fn step(&mut self, index: usize) {
        let now = self.now();
        let gateway = &mut self.gateways[index];
        if gateway.flight.is_some() {
            return;
        }
        match gateway.core.step(now, &mut gateway.memory) {
            Step::Call(call) => {
                note!(self, "gateway {index} calls {}", describe(&call));
                self.gateways[index].flight = Some(Flight::Sent(call));
            }
            Step::WaitUntil(until) => gateway.wake = Some(until),
        }
        self.collect(index);
    }

    pub fn execute_flight(&mut self, index: usize) {
        let Some(Flight::Sent(call)) = self.gateways[index].flight.take() else { return };
        let answer = match self.reachable(index) {
            Some(master) => self.call_script(master, &call),
            None => Err(Failure::NotConnected("nobody there".into())),
        };
        note!(self, "gateway {index} is answered {answer:?}");
        self.gateways[index].flight = Some(Flight::Answered(answer));
    }

    pub fn answer(&mut self, index: usize) {
        let now = self.now();
        let gateway = &mut self.gateways[index];
        let Some(flight) = gateway.flight.take() else { return };
        let Flight::Answered(answer) = flight else {
            gateway.flight = Some(flight);
            return;
        };
        let shown = gateway.core.answered(now, answer, &mut gateway.memory);
        if let Shown::Failed(_) = shown {
            // As the writer does: it looks where the shard is.
        }
        self.collect(index);
    }

    /// Takes the answers that clients got.
    fn collect(&mut self, index: usize) {
        let mut answers = std::mem::take(&mut self.gateways[index].answers);
        answers.retain_mut(|(request, answered)| match answered.try_recv() {
            Ok(Ok(appended)) => {
                note!(self, "request {request} is answered {appended:?}");
                let at = (appended.epoch.0, appended.first.0);
                self.requests[*request].answers.insert(at);
                self.requests[*request].answered.get_or_insert(self.steps);
                *self.happened.entry("acknowledged").or_default() += 1;
                false
            }
            Ok(Err(error)) => {
                note!(self, "request {request} fails: {error:?}");
                false
            }
            Err(oneshot::error::TryRecvError::Empty) => true,
            Err(oneshot::error::TryRecvError::Closed) => false,
        });
        self.gateways[index].answers = answers;
    }

    pub fn inbox(&mut self, index: usize) {
        let now = self.now();
        let gateway = &mut self.gateways[index];
        let Some(message) = gateway.inbox.pop_front() else { return };
        let Some(envelope) = Envelope::parse(message.clone().into()) else {
            panic!("an unknown message: {}", message.escape_ascii());
        };
        let found = gateway.reader.arrived(envelope, &mut gateway.memory, now);
        self.found(index, found);
    }

    fn found(&mut self, index: usize, found: Found) {
        let gateway = &mut self.gateways[index];
        gateway.wants_history |= found.read_history;
        for delivery in found.deliveries {
            note!(self, "gateway {index} delivers {}", describe_delivery(&delivery));
            self.gateways[index].started.get_or_insert(self.steps);
            self.gateways[index].log.push(delivery);
        }
    }

    pub fn read_history(&mut self, index: usize) {
        if !self.gateways[index].wants_history {
            return;
        }
        let Some(master) = self.reachable(index) else { return };
        let after = self.gateways[index].reader.read_from();
        let reading = self.reading(master, after);
        note!(self, "gateway {index} reads history of master {master} after {after}: {} entries, \
            end {}", reading.entries.len(), reading.view.tip);
        let now = self.now();
        let gateway = &mut self.gateways[index];
        gateway.wants_history = false;
        let found = gateway.reader.repaired(reading, &mut gateway.memory, now);
        self.found(index, found);
    }

    pub fn reading(&mut self, master: usize, after: Position) -> Reading {
        let [entries, state] = history::reading(&self.target, after);
        let entries = self.execute(master, &arguments(&entries));
        let state = self.execute(master, &arguments(&state));
        Reading::read(&self.target, value(&entries), &value(&state)).expect("a reading")
    }

    /// Subscribes where the shard is now.
    pub fn reconnect(&mut self, index: usize) {
        let now = self.now();
        let Some(master) = self.reachable(index) else {
            self.gateways[index].subscription = None;
            return;
        };
        let gateway = &mut self.gateways[index];
        if gateway.subscription == Some(master) {
            return;
        }
        gateway.subscription = Some(master);
        gateway.inbox.clear();
        gateway.core.probe_now(now);
        gateway.wants_history |= gateway.reader.repair();
        note!(self, "gateway {index} subscribes to master {master}");
    }

    /// Ends all faults and lets everything come to rest.
    pub fn heal(&mut self) -> Result<(), String> {
        let masters = self.live_masters();
        let last = *masters.last().expect("a master");
        for master in masters {
            self.masters[master].alive = master == last;
        }
        for gateway in &mut self.gateways {
            (gateway.side, gateway.cut, gateway.frozen) = (last, false, false);
        }
        self.strays.clear();
        note!(self, "all faults end");
        let mut quiet = 0;
        for _ in 0..4000 {
            let before = self.fingerprint();
            for index in 0..self.gateways.len() {
                self.reconnect(index);
                self.step(index);
                self.execute_flight(index);
                self.answer(index);
                while !self.gateways[index].inbox.is_empty() {
                    self.inbox(index);
                }
                self.read_history(index);
            }
            self.elapsed += Duration::from_millis(20);
            let busy = self.gateways.iter().any(|gateway| {
                gateway.core.is_busy() || gateway.wants_history || gateway.memory.is_recovering()
            });
            quiet = if busy || before != self.fingerprint() { 0 } else { quiet + 1 };
            // Three seconds without anything new: some rounds of probes.
            if quiet > 150 {
                return Ok(());
            }
        }
        let state: Vec<String> = self
            .gateways
            .iter()
            .map(|gateway| {
                format!(
                    "at {} of {}, busy {}, recovering {}",
                    gateway.reader.position(),
                    gateway.memory.tip(),
                    gateway.core.is_busy(),
                    gateway.memory.is_recovering()
                )
            })
            .collect();
        Err(format!("it does not come to rest: {state:?}"))
    }

    fn fingerprint(&self) -> Vec<(usize, Position)> {
        let gateways = self.gateways.iter();
        gateways.map(|gateway| (gateway.log.len(), gateway.reader.position())).collect()
    }
}

fn describe(call: &Call) -> String {
    use trunkline::bus::redis::script::Op;
    let op = match &call.op {
        Op::Append(framed) => format!("append seq {} x{}", framed.sequence, framed.count),
        Op::Again(framed, name) => {
            format!("again seq {} x{} name {name:?}", framed.sequence, framed.count)
        }
        Op::Probe(_) => "probe".into(),
        Op::Release { .. } => "release".into(),
    };
    format!("{op}, seen {}, heard [{}]", call.seen, call.heard)
}

fn describe_delivery(delivery: &Delivery) -> String {
    match delivery {
        Delivery::Frame(frame) => format!(
            "{}..{} {:?} {}",
            frame.first.0,
            frame.last(),
            frame.provenance,
            frame.events.escape_ascii()
        ),
        other => format!("{other:?}"),
    }
}

/// The arguments of a command.
fn arguments(cmd: &::redis::Cmd) -> Vec<Vec<u8>> {
    cmd.args_iter()
        .map(|arg| match arg {
            ::redis::Arg::Simple(bytes) => bytes.to_vec(),
            _ => vec![],
        })
        .collect()
}

/// A reply as the client library gives it.
fn value(reply: &Reply) -> ::redis::Value {
    use ::redis::Value;
    match reply {
        Reply::Nil => Value::Nil,
        Reply::Integer(number) => Value::Int(*number),
        Reply::Status(text) => Value::SimpleString(text.clone()),
        Reply::Error(text) => panic!("an error: {text}"),
        Reply::Bulk(bytes) => Value::BulkString(bytes.clone()),
        Reply::Array(parts) => Value::Array(parts.iter().map(value).collect()),
    }
}
