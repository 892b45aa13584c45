//! Gateways, masters and clients of one seed, and the steps that they take.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use trunkline::{
    bus::{
        AppendError, Appended, Batch, Delivery, GapReason, Lost, Position, ShardId, Sink,
        StreamNumber,
        redis::{
            CallLimits,
            envelope::{Body, Envelope, Header, encode_frame, encode_probe},
            history::{self, Page, Reading},
            reader::{Found, ShardReader},
            recovery::Memory,
            script::{self, Answer, Call, Failure, Op, Placing, Probe, Published, Status, Target},
            writer::{Core, Job, Shown, Step},
        },
    },
    config::{Config, Sources},
    hub::{Hub, log::Capacity},
};

use super::{
    bus::{Ask, AskedBus},
    event,
    line::{self, At, Events, Line, SETTLE_MS, at},
    mistakes::Mistake,
    more::{HISTORIES, More},
    node::{self, Got, Node},
    publisher::{self, Publisher},
    rng::Rng,
    sentinels::Set,
};
use crate::redis::{Identity, Reply, Server, Text};

/// The clock of all servers at the beginning, in microseconds since 1970.
const START: u64 = 1_790_000_000_000_000;

/// The script of gateways of an earlier version, with the same protocol: they serve together.
const EARLIER: &str = include_str!("../versions/protocol-2.lua");

/// What all gateways state.
const DEPLOYMENT: &str = "protocol 2";

/// A deployment may be replaced when its gateways have not called for so long.
const ABANDONED_MS: u128 = 3900;

/// Entries of history of one reading, at most.
const ENTRIES: usize = 128;

/// States of a master that a failover may go back to.
const SNAPSHOTS: usize = 40;

pub struct Master {
    pub server: Server,
    pub alive: bool,
    pub line: Line,
    snapshots: VecDeque<(Server, Line)>,
    /// The clock of this server is so many ms ahead.
    skew_ms: i64,
}

/// A call on its way.
enum Flight {
    Sent(Sent),
    Answered(Result<Answer, Failure>),
}

/// A call, and what is to be known of its sender.
struct Sent {
    call: Box<Call>,
    gateway: u64,
    /// The script that the gateway calls.
    sha: Text,
    /// The names that the gateway held when it sent a release.
    held: BTreeSet<At>,
}

#[allow(clippy::struct_excessive_bools)] // independent faults
pub struct Gateway {
    pub id: u64,
    pub alive: bool,
    /// It has an earlier version.
    earlier: bool,
    /// The script that it calls.
    sha: Text,
    pub frozen: bool,
    /// It takes few messages at a time.
    slow: bool,
    /// Cut off from every server.
    pub cut: bool,
    /// The master that it can reach.
    pub side: usize,
    /// Behind sentinels, the server that it uses.
    pub used: Option<usize>,
    /// That server is no master, or gone.
    pub away: bool,
    subscription: Option<usize>,
    core: Core,
    pub memory: Memory,
    pub reader: ShardReader,
    /// The calls that are under way: those with an answer first.
    flights: VecDeque<Flight>,
    /// Messages, read without a key, and their bytes.
    inbox: VecDeque<(Envelope, Text)>,
    /// With the key of its own that it verifies with.
    target: Target,
    /// Its clock is so many ms ahead.
    skew_ms: Arc<AtomicI64>,
    wants_history: bool,
    wake: Option<Instant>,
    pub log: Vec<Delivery>,
    pub hub: Arc<Hub>,
    bus: Arc<AskedBus>,
    /// The events that the shard had when the gateway's probe was published with which it began.
    pub before: Rc<BTreeSet<u64>>,
    /// What the shard had been told of when the hub asked for its end, with the step.
    tips: Vec<(u64, Rc<BTreeMap<u64, u64>>)>,
    answers: Vec<(Answers, oneshot::Receiver<Result<Appended, AppendError>>)>,
    /// What happened while it took no part: the judge excuses what follows from that.
    pub absent: bool,
}

/// What an answer is for.
pub enum Answers {
    /// This request.
    Request(usize),
    /// A batch of a publisher's stream.
    Stream(publisher::Sent),
}

/// A request of a client, or an event of a publisher's stream.
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
    Stream,
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
    Turn,
    Read,
    Move,
    LoseStream,
    Page,
    Age,
    EvictKey,
    Join,
    GatewayClock,
    /// One sentinel looks, behind sentinels.
    Sentinel,
    /// A gateway asks the sentinels.
    Look,
}

/// All of them, with how often they happen.
pub const ACTS: &[(Act, usize)] = &[
    (Act::Publish, 10),
    (Act::Stream, 12),
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
    (Act::LoseCall, 6),
    (Act::LateCall, 3),
    (Act::LoseAnswer, 20),
    (Act::LoseMessage, 5),
    (Act::Pause, 1),
    (Act::Clock, 1),
    (Act::EvictState, 1),
    (Act::EvictHistory, 1),
    (Act::Turn, 40),
    (Act::Read, 40),
    (Act::Move, 3),
    (Act::LoseStream, 2),
    (Act::Page, 24),
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
    Act::Move,
    Act::LoseStream,
];

#[allow(clippy::struct_excessive_bools)] // independent faults
pub struct World {
    pub rng: Rng,
    base: Instant,
    pub elapsed: Duration,
    /// The time of those whose clock is right, in ms since 1970.
    wall_ms: Arc<AtomicU64>,
    /// What draws how wrong gateways' clocks are, where they are.
    clocks: Option<Rng>,
    /// The most that a gateway's clock was ahead, once one has jumped: nobody may know of such a
    /// time any more.
    jumped_from_ms: Option<i64>,
    pub masters: Vec<Master>,
    /// The servers and their sentinels, in seeds that have them.
    pub set: Option<Set>,
    pub gateways: Vec<Gateway>,
    pub requests: Vec<Request>,
    pub nodes: Vec<Node>,
    pub publishers: Vec<Publisher>,
    pub events: Events,
    /// The events that the shard had when each probe was published.
    probed: BTreeMap<(u64, u64), Rc<BTreeSet<u64>>>,
    /// Numbers of streams that were given after a recovery in which a gateway took no part that was
    /// frozen or cut off: it may know of greater ones.
    pub unsure_streams: BTreeSet<StreamNumber>,
    /// Gateways that have an earlier version.
    earlier: BTreeSet<u64>,
    runtime: Rc<tokio::runtime::Runtime>,
    pub mistake: Option<Mistake>,
    sha: Text,
    earlier_sha: Text,
    strays: Vec<(usize, Sent)>,
    target: Target,
    /// The shard of another deployment, which has the same keys.
    other: Target,
    /// True if a gateway of that was accepted.
    joined: bool,
    more: More,
    limits: CallLimits,
    next_id: u64,
    next_event: u64,
    /// Steps until now.
    steps: u64,
    /// Pages of history that streams got until now, and that had something.
    pages: usize,
    pub trace: bool,
    pub history: Vec<String>,
    /// Faults that took a gateway or a server out of a recovery.
    pub absences: bool,
    /// Faults after which all that lived may have forgotten the epochs of a token.
    pub forgets: bool,
    /// Epochs up to this one were forgotten by the shard in the end.
    pub floor: u64,
    /// A gateway's bounds are small: it drops what it held.
    pub drops: bool,
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

/// What all seeds share.
pub struct Setting {
    pub mistake: Option<Mistake>,
    /// Sentinels name the master.
    pub sentinels: bool,
    /// An empty server that knows the script and the earlier one, and their SHA-1.
    server: Server,
    sha: Text,
    earlier_sha: Text,
    /// For each of [`HISTORIES`], and the same with a key.
    settings: Vec<Arc<trunkline::bus::redis::Settings>>,
    /// Its clock stands still, and goes on with that of the seed.
    runtime: Rc<tokio::runtime::Runtime>,
}

impl Setting {
    pub fn new(mistake: Option<Mistake>) -> Setting {
        let key =
            r#", "frameKey": {"@type": "Value", "secret": "0123456789abcdef0123456789abcdef"}"#;
        let histories = HISTORIES.iter().map(|history| (history, ""));
        let histories = histories.chain(HISTORIES.iter().map(|history| (history, key)));
        let settings = histories.map(|(history, key)| {
            let url = r#"{"@type": "Redis", "url": "redis://127.0.0.1:1"}"#;
            let text = format!(r#"{{"coordinator": {url}, "history": {history}{key}}}"#);
            let config = Config::load_text(text.as_bytes(), &Sources::default());
            let config = config.expect("a valid configuration");
            let settings = trunkline::bus::redis::Settings::from_config(&config);
            Arc::new(settings.expect("valid settings"))
        });
        let settings = settings.collect();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let mut server = Server::default();
        let mut load = |script: &str| match server.call(&["SCRIPT", "LOAD", script]) {
            Reply::Bulk(sha) => sha,
            other => panic!("not loaded: {other:?}"),
        };
        let (sha, earlier_sha) = (load(&Mistake::script(mistake)), load(EARLIER));
        let runtime = Rc::new(runtime.expect("a runtime"));
        Setting { mistake, sentinels: false, server, sha, earlier_sha, settings, runtime }
    }

    /// The same, with sentinels that name the master.
    pub fn behind_sentinels(self) -> Setting {
        Setting { sentinels: true, ..self }
    }

    /// Entered while a seed runs.
    pub fn runtime(&self) -> Rc<tokio::runtime::Runtime> {
        self.runtime.clone()
    }
}

impl Gateway {
    /// Gives `number` the number of a stream, some time. Earlier versions number none.
    pub fn number_stream(&mut self, number: oneshot::Sender<StreamNumber>) {
        if !self.earlier {
            self.core.number(number);
        }
    }

    /// What it reads of a message: earlier versions do not know all fields.
    fn reads(&self, envelope: &mut Envelope) {
        if let Body::Frame(stamped) = &mut envelope.body
            && self.earlier
        {
            stamped.streams.clear();
        }
    }
}

impl World {
    pub fn new(seed: u64, setting: &Setting, gateways: usize, more: More, trace: bool) -> World {
        // A mistake in what a frame says must not be found by its tag.
        let more = More { key: more.key && setting.mistake.is_none_or(Mistake::is_tagged), ..more };
        let with_key = if more.key { HISTORIES.len() } else { 0 };
        let settings = setting.settings[with_key + more.history].clone();
        // Also small frames leave behind others.
        let limits = CallLimits { min_behind: 1, ..settings.call_limits() };
        let target = Target::new(&settings, ShardId(0), 1, DEPLOYMENT.into());
        let other = Target::new(&settings, ShardId(0), 2, "protocol 2, 2 shards".into());
        let mut world = World {
            rng: Rng(seed),
            base: Instant::now(),
            elapsed: Duration::ZERO,
            wall_ms: Arc::new(AtomicU64::new(START / 1000)),
            clocks: (more.key && more.clocks).then_some(Rng(seed ^ 0x636c_6f63_6b00_0000)),
            jumped_from_ms: None,
            masters: vec![],
            set: setting.sentinels.then(Set::new),
            gateways: vec![],
            requests: vec![],
            nodes: vec![],
            publishers: (1..=2).map(Publisher::new).collect(),
            events: Events::default(),
            probed: BTreeMap::new(),
            unsure_streams: BTreeSet::new(),
            earlier: BTreeSet::new(),
            runtime: setting.runtime.clone(),
            mistake: setting.mistake,
            sha: setting.sha.clone(),
            earlier_sha: setting.earlier_sha.clone(),
            strays: vec![],
            target,
            other,
            joined: false,
            more,
            limits,
            next_id: 1,
            next_event: 1,
            steps: 0,
            pages: 0,
            trace,
            history: vec![],
            absences: false,
            forgets: false,
            floor: 0,
            drops: false,
            happened: BTreeMap::new(),
        };
        let identity = world.identity();
        let mut server = setting.server.clone();
        server.set_identity(identity);
        if world.trims() {
            server.set_stream_node_entries(world.more.node_entries);
        }
        world.add_master(server, Line::default());
        world.nodes = (0..3).map(|index| Node::new(index == 0)).collect();
        for _ in 0..gateways {
            let gateway = world.gateway(0);
            world.gateways.push(gateway);
        }
        world.right_clock();
        world
    }

    /// True if history is kept within small limits.
    pub fn trims(&self) -> bool {
        self.more.history > 0 || self.more.ages
    }

    pub fn now(&self) -> Instant {
        self.base + self.elapsed
    }

    fn identity(&mut self) -> Identity {
        self.next_id += 1;
        let id = format!("{:040x}", self.next_id);
        Identity { run_id: id.clone(), replication_id: id }
    }

    fn add_master(&mut self, server: Server, line: Line) {
        let snapshots = VecDeque::from([(server.clone(), line.clone())]);
        self.masters.push(Master { server, alive: true, line, snapshots, skew_ms: 0 });
    }

    fn pass(&mut self, time: Duration) {
        self.elapsed += time;
        let elapsed = u64::try_from(self.elapsed.as_millis()).expect("some weeks");
        self.wall_ms.store(START / 1000 + elapsed, Ordering::Relaxed);
        self.runtime.block_on(tokio::time::advance(time));
    }

    /// Lets tasks go on that have something to do.
    fn run_tasks(&self) {
        self.runtime.block_on(async {
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
        });
    }

    fn gateway(&mut self, side: usize) -> Gateway {
        self.next_id += 1;
        let id = self.next_id << 32 | 0xabcd_ef01;
        let limit = if self.rng.percent(20) { 3 + self.rng.below(10) } else { 10_000 };
        let now = self.now();
        let events = if self.rng.percent(20) { 4 + self.rng.below(12) } else { 10_000 };
        let slow = self.more.slow && self.rng.percent(40);
        let mixed = self.mistake.is_none_or(|mistake| matches!(mistake, Mistake::Mixed(_)));
        let earlier = self.more.mixed && mixed && self.rng.percent(50);
        let hub = Arc::new(Hub::new(1, Capacity { bytes: 1 << 20, events }));
        let bus = Arc::new(AskedBus::new());
        let skew_ms = Arc::new(AtomicI64::new(self.draw_skew()));
        let target = if self.more.key {
            let (wall, skew) = (self.wall_ms.clone(), skew_ms.clone());
            self.target.by_clock(Arc::new(move || {
                let skew = skew.load(Ordering::Relaxed);
                wall.load(Ordering::Relaxed).saturating_add_signed(skew)
            }))
        } else {
            self.target.clone()
        };
        hub.attach(bus.clone());
        self.drops |= limit < 10_000 || events < 10_000;
        // Behind sentinels it has asked none yet.
        let away = self.set.is_some();
        if earlier {
            self.earlier.insert(id);
        }
        Gateway {
            id,
            alive: true,
            earlier,
            sha: if earlier { self.earlier_sha.clone() } else { self.sha.clone() },
            frozen: false,
            slow,
            cut: false,
            side,
            used: None,
            away,
            subscription: None,
            core: Core::new(
                ShardId(0),
                id,
                self.limits,
                target.authenticator(),
                self.rng.next(),
                now,
            ),
            memory: Memory::new((limit, 1 << 24)),
            reader: ShardReader::new(id, self.more.key),
            target,
            skew_ms,
            flights: VecDeque::new(),
            inbox: VecDeque::new(),
            wants_history: false,
            wake: None,
            log: vec![],
            hub,
            bus,
            before: Rc::default(),
            tips: vec![],
            answers: vec![],
            absent: limit < 10_000,
        }
    }

    /// Not all gateways' clocks are behind that of Redis: none of them would serve.
    fn right_clock(&mut self) {
        if let Some(first) = self.gateways.first() {
            first.skew_ms.fetch_max(0, Ordering::Relaxed);
        }
    }

    /// How far ahead a gateway's clock is: behind as often as ahead, by seconds up to days.
    fn draw_skew(&mut self) -> i64 {
        let Some(draw) = &mut self.clocks else { return 0 };
        let most: usize = [1, 60, 3600, 86_400, 6 * 86_400][draw.below(5)];
        let skew = i64::try_from(draw.below(2000 * most)).expect("days");
        if draw.percent(40) { 0 } else { skew - 1000 * i64::try_from(most).expect("days") }
    }

    pub fn count(&mut self, what: &'static str) {
        *self.happened.entry(what).or_default() += 1;
    }

    /// Executes a command on a master; what it publishes reaches the subscribers.
    fn execute(&mut self, master: usize, args: &[Text]) -> Reply {
        self.events.split = self.live_masters().len() > 1;
        let elapsed = i64::try_from(self.elapsed.as_micros()).expect("some seconds");
        let state = &mut self.masters[master];
        let micros = elapsed + state.skew_ms * 1000;
        state.server.set_time(START.saturating_add_signed(micros));
        let reply = state.server.call_with(args);
        let published = state.server.take_published();
        let published: Vec<(Envelope, Text)> =
            published.into_iter().map(|sent| (parsed(&sent.payload), sent.payload)).collect();
        for (envelope, _) in &published {
            if let Body::Probe { writer, number, .. } = &envelope.body {
                self.probed.insert((*writer, *number), state.line.present.clone());
            }
            let now = self.elapsed.as_millis();
            state.line.published(envelope, &mut self.events, self.steps, now);
        }
        state.snapshots.push_back((state.server.clone(), state.line.clone()));
        if state.snapshots.len() > SNAPSHOTS {
            state.snapshots.pop_front();
        }
        for message in published {
            for gateway in &mut self.gateways {
                if gateway.alive && gateway.subscription == Some(master) {
                    gateway.inbox.push_back(message.clone());
                }
            }
        }
        reply
    }

    fn call_script(&mut self, master: usize, sent: &Sent) -> Result<Answer, Failure> {
        let call = &sent.call;
        let mut args = arguments(&call.command(&self.target));
        args[1] = sent.sha.clone();
        if let Op::Release { .. } = call.op
            && let epoch = self.masters[master].line.epoch
            && epoch == call.seen.epoch.0
        {
            let line = &mut self.masters[master].line;
            let before = Rc::make_mut(&mut line.took_part).insert(sent.gateway, sent.held.clone());
            line.joins = before.is_none().then_some(sent.gateway);
        }
        let called_by = self.masters[master].line.called_by.clone();
        let reply = self.execute(master, &args);
        self.masters[master].line.joins = None;
        if sent.sha != self.sha {
            // An epoch that the script of an earlier version begins leaves these records alone.
            self.masters[master].line.called_by = called_by;
        }
        if let Reply::Error(text) = &reply {
            // Nothing in a simulation makes the script fail: it is a mistake in it.
            self.events.broken.push(format!("Script: it failed: {text}"));
            return Err(Failure::Refused(text.clone()));
        }
        let now = self.elapsed.as_millis();
        let value = value(&reply);
        let mut answer = script::parse(&value).unwrap_or_else(|| panic!("no answer: {reply:?}"));
        if let (Op::Probe(probe), Answer::Shard(view, status)) = (&call.op, &mut answer)
            && *status == Status::Done(None)
        {
            // The script of an earlier version publishes each of them.
            let probe = Some((probe.writer, probe.number));
            *status = Status::Probed(Published { probe, ..Published::entry(view.tip) });
        }
        if let Answer::Shard(view, status) = &answer {
            self.events.floor = self.events.floor.max(view.floor.0);
            let probed = matches!(status, Status::Probed(_));
            let state = &mut self.masters[master];
            let line = &mut state.line;
            let takes_part = probed || matches!(call.op, Op::Release { .. });
            if takes_part && sent.sha == self.sha {
                let called = (now, state.skew_ms);
                Rc::make_mut(&mut line.called_by).insert(sent.gateway, called);
            }
            if probed || line.called.is_none() {
                line.called = Some(now);
            }
            if line.recovering || matches!(call.op, Op::Release { .. }) {
                line.report(&call.reported);
            }
        }
        if let (Op::Number(count), Answer::Shard(_, Status::Numbered(last))) = (&call.op, &answer) {
            let took_part = &self.masters[master].line.took_part;
            let is_away =
                |gateway: &Gateway| gateway.absent && !took_part.contains_key(&gateway.id);
            if self.gateways.iter().any(is_away) {
                self.unsure_streams.extend(last + 1 - *count as StreamNumber..=*last);
            }
        }
        if let (Op::Release { .. }, Answer::Shard(view, Status::Done(_))) = (&call.op, &answer)
            && !view.recovering
        {
            self.released(master);
        }
        let state = &mut self.masters[master];
        if let Some((_, line)) = state.snapshots.back_mut() {
            // With what the answer says.
            line.clone_from(&state.line);
        }
        Ok(answer)
    }

    /// A recovery ends at once only if all gateways took part that had probed until it began, and
    /// if these are known.
    fn released(&mut self, master: usize) {
        let now = self.elapsed.as_millis();
        let steady = self.masters[master].skew_ms == 0;
        let line = &mut self.masters[master].line;
        let absent = line.waits.iter().find(|peer| !line.took_part.contains_key(peer));
        if line.recovering
            && now < line.since + SETTLE_MS
            && steady
            && !line.unsure
            && (absent.is_some() || line.waits.is_empty())
        {
            self.events.broken.push(format!(
                "Settled: the shard is released at {now} ms, and of {:x?} did not take part: \
                 {absent:x?}",
                line.waits
            ));
        }
        line.release(&self.events);
        // What nobody had who took part comes behind newer events, if it comes at all.
        let held: BTreeSet<At> = line.took_part.values().flatten().copied().collect();
        for (event, names) in &self.events.names {
            if !line.present.contains(event) && !names.iter().any(|name| held.contains(name)) {
                self.events.late.insert(*event);
            }
        }
    }

    fn reachable(&self, gateway: usize) -> Option<usize> {
        let gateway = &self.gateways[gateway];
        let reaches = !gateway.cut && !gateway.away && self.masters[gateway.side].alive;
        reaches.then_some(gateway.side)
    }

    pub fn live_masters(&self) -> Vec<usize> {
        (0..self.masters.len()).filter(|index| self.masters[*index].alive).collect()
    }

    /// A gateway that is up.
    pub fn pick(&mut self) -> Option<usize> {
        let up: Vec<usize> = (0..self.gateways.len())
            .filter(|index| self.gateways[*index].alive && !self.gateways[*index].frozen)
            .collect();
        (!up.is_empty()).then(|| up[self.rng.below(up.len())])
    }

    pub fn act(&mut self, act: Act) {
        self.steps += 1;
        if self.act_on_set(act) {
            return;
        }
        match act {
            Act::Publish => {
                let requests = if self.more.bursts { 1 + self.rng.below(4) } else { 1 };
                let gateway = self.pick();
                for _ in 0..requests {
                    let events = 1 + self.rng.below(2) as u64;
                    let events: Vec<u64> = (0..events).map(|_| self.new_event()).collect();
                    let mut id = [0; 16];
                    id[..8].copy_from_slice(&events[0].to_be_bytes());
                    let id = (self.rng.below(3) > 0 && !self.more.no_ids).then_some(id);
                    self.add_request(id, events);
                    let Some(gateway) = gateway else { continue };
                    self.publish(gateway, self.requests.len() - 1);
                    // Each may leave as a frame of its own, behind those that are under way.
                    if self.more.bursts && self.rng.percent(70) {
                        self.step(gateway);
                    }
                }
            }
            Act::Stream => self.stream(),
            Act::Retry => {
                let with_id: Vec<usize> = (0..self.requests.len())
                    .filter(|index| self.requests[*index].id.is_some())
                    .rev()
                    .take(8)
                    .collect();
                if !with_id.is_empty()
                    && let Some(gateway) = self.pick()
                {
                    let request = with_id[self.rng.below(with_id.len())];
                    self.publish(gateway, request);
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
                    let (master, sent) = self.strays.remove(stray);
                    if self.masters[master].alive {
                        note!(
                            self,
                            "a late call arrives at master {master}: {}",
                            describe(&sent.call)
                        );
                        let answer = self.call_script(master, &sent);
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
                self.pass(Duration::from_millis(ms as u64));
            }
            Act::Subscribe => {
                if let Some(gateway) = self.pick() {
                    self.reconnect(gateway);
                }
            }
            Act::LoseCall | Act::LateCall => {
                if let Some(gateway) = self.pick()
                    && matches!(self.gateways[gateway].flights.back(), Some(Flight::Sent(_)))
                {
                    note!(self, "gateway {gateway}: its call is {act:?}");
                    self.lose_calls(gateway, act == Act::LateCall);
                    self.count("lost calls");
                }
            }
            Act::LoseAnswer => {
                if let Some(gateway) = self.pick()
                    && matches!(self.gateways[gateway].flights.front(), Some(Flight::Answered(_)))
                {
                    // The connection is gone, and with it all answers that were on their way. Some
                    // may have arrived before.
                    let flights = self.gateways[gateway].flights.iter();
                    let answered = flights.filter(|it| matches!(it, Flight::Answered(_))).count();
                    let from = if self.rng.percent(50) { 0 } else { self.rng.below(answered) };
                    for flight in self.gateways[gateway].flights.iter_mut().skip(from) {
                        if let Flight::Answered(answer) = flight {
                            *answer = Err(Failure::Unknown("lost".into()));
                        }
                    }
                    self.lose_calls(gateway, false);
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
                self.pass(Duration::from_millis(ms as u64));
                self.absences = true;
                note!(self, "a pause of {ms} ms");
                self.count("pauses");
            }
            Act::Turn => {
                if let Some(gateway) = self.pick() {
                    self.turn(gateway);
                }
            }
            Act::Read => {
                let node = self.rng.below(self.nodes.len());
                // The last one is slow where anybody is.
                if !self.more.slow || node != self.nodes.len() - 1 || self.rng.percent(10) {
                    self.read(node);
                }
            }
            Act::Move => {
                let node = self.rng.below(self.nodes.len());
                note!(self, "node {node} leaves");
                self.nodes[node].leave();
                self.count("moves");
            }
            Act::LoseStream => {
                let node = self.rng.below(self.nodes.len());
                if self.at(node) {
                    note!(self, "node {node} loses its stream, and a message");
                    self.nodes[node].lose_message();
                    self.count("streams lost");
                }
            }
            Act::Page => {
                if let Some(gateway) = self.pick() {
                    self.page(gateway);
                }
            }
            Act::Clock => {
                self.absences = true;
                let Some(master) = self.pick_master() else { return };
                let jump = self.rng.below(20_000);
                let jump = i64::try_from(jump).expect("small") - 10_000;
                self.masters[master].skew_ms += jump;
                note!(self, "the clock of master {master} jumps {jump} ms");
                self.count("clock jumps");
            }
            Act::Age => {
                // No call is under way for so long.
                (0..self.gateways.len()).for_each(|gateway| self.lose_calls(gateway, false));
                self.strays.clear();
                let seconds = match self.rng.below(10) {
                    0 => (1 + self.rng.below(10)) * 86_400,
                    1..=2 => 3600 + self.rng.below(7200),
                    _ => 20 + self.rng.below(400),
                };
                self.pass(Duration::from_secs(seconds as u64));
                // Tokens and the shard's state forget epochs that ended so long ago.
                self.forgets |= seconds >= 3600;
                self.absences = true;
                note!(self, "{seconds} s pass");
                self.count("ages");
            }
            Act::GatewayClock => {
                let gateway = self.rng.below(self.gateways.len());
                let skew = self.draw_skew();
                let before = self.gateways[gateway].skew_ms.swap(skew, Ordering::Relaxed);
                self.jumped_from_ms = self.jumped_from_ms.max(Some(before));
                self.right_clock();
                note!(self, "the clock of gateway {gateway} is {skew} ms ahead from now on");
                self.count("gateways' clock jumps");
            }
            Act::EvictKey => self.evict_key(),
            Act::Join => self.join(),
            _ => self.fault(act),
        }
    }

    /// The calls of a gateway that did not arrive get lost; `late` ones arrive some time.
    fn lose_calls(&mut self, index: usize, late: bool) {
        let master = self.reachable(index);
        for flight in &mut self.gateways[index].flights {
            if matches!(flight, Flight::Sent(_)) {
                let lost = Flight::Answered(Err(Failure::Unknown("lost".into())));
                let Flight::Sent(sent) = std::mem::replace(flight, lost) else { continue };
                if let Some(master) = master.filter(|_| late) {
                    self.strays.push((master, sent));
                }
            }
        }
    }

    /// A gateway does all that it has to do.
    fn turn(&mut self, gateway: usize) {
        if self.gateways[gateway].away {
            // As after a call that failed.
            self.look(gateway);
        }
        self.reconnect(gateway);
        self.step(gateway);
        for _ in 0..self.gateways[gateway].flights.len() {
            self.execute_flight(gateway);
            // Some answers are still on their way when the next thing happens.
            if self.rng.percent(60) {
                self.answer(gateway);
            }
        }
        let slow = self.gateways[gateway].slow;
        let messages = if slow { self.rng.below(3) } else { usize::MAX };
        for _ in 0..messages.min(self.gateways[gateway].inbox.len()) {
            self.inbox(gateway);
        }
        self.read_history(gateway);
    }

    /// Lets all gateways begin.
    pub fn begin(&mut self) {
        for _ in 0..10 {
            for _ in 0..2 {
                (0..self.gateways.len()).for_each(|gateway| self.turn(gateway));
            }
            self.pass(Duration::from_millis(350));
        }
    }

    /// A master that is alive: there may be none behind sentinels.
    fn pick_master(&mut self) -> Option<usize> {
        let masters = self.live_masters();
        (!masters.is_empty()).then(|| masters[self.rng.below(masters.len())])
    }

    /// Another master, with what a master had so many calls ago. Its number.
    pub fn master_from(&mut self, master: usize, age: usize) -> usize {
        let snapshots = &self.masters[master].snapshots;
        let last = snapshots.len() - 1;
        let (mut server, line) = snapshots[last - age.min(last)].clone();
        server.set_identity(self.identity());
        self.add_master(server, line);
        self.masters.len() - 1
    }

    fn fault(&mut self, act: Act) {
        let Some(master) = self.pick_master() else { return };
        let masters = self.live_masters();
        match act {
            Act::Failover => {
                let age = self.rng.below(self.masters[master].snapshots.len());
                let to = self.master_from(master, age);
                self.masters[master].alive = false;
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
                let to = self.master_from(master, age);
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
                self.masters[master].line = Line::default();
                self.execute(master, &texts(["FLUSHALL"]));
                note!(self, "FLUSHALL on master {master}");
                self.count("flushes");
            }
            Act::EvictState | Act::EvictHistory => {
                let stored = Rc::new(self.stored(master));
                let end = if act == Act::EvictState { "state" } else { "history" };
                let server = &mut self.masters[master].server;
                let names = server.key_names();
                for name in names.iter().filter(|name| name.ends_with(end.as_bytes())) {
                    server.evict(name);
                }
                note!(self, "the {end} of master {master} is evicted");
                let line = &mut self.masters[master].line;
                line.evicted = true;
                if act == Act::EvictState {
                    // What history has is all that is left.
                    (line.told, line.present, line.called) = (Rc::default(), stored, None);
                    (line.recovering, line.stateless, line.again) = (false, true, true);
                    line.called_by = Rc::default();
                } else if line.stateless {
                    line.present = Rc::default();
                }
                self.absences = true;
                self.count("evictions");
            }
            Act::Crash => {
                if let Some(gateway) = self.pick() {
                    let side = self.gateways[gateway].side;
                    note!(self, "gateway {gateway} crashes and starts anew");
                    // Its clock is the machine's.
                    let skew_ms = self.gateways[gateway].skew_ms.load(Ordering::Relaxed);
                    self.gateways[gateway] = self.gateway(side);
                    self.gateways[gateway].skew_ms.store(skew_ms, Ordering::Relaxed);
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

    /// Evicts a key beside state and history.
    fn evict_key(&mut self) {
        let Some(master) = self.pick_master() else { return };
        let mut names = self.masters[master].server.key_names();
        names.retain(|name| !name.ends_with(b":state") && !name.ends_with(b":history"));
        if names.is_empty() {
            return;
        }
        let name = names.swap_remove(self.rng.below(names.len()));
        self.masters[master].server.evict(&name);
        if name.ends_with(b":retained") {
            self.masters[master].line.retained = Rc::default();
        }
        let text = String::from_utf8_lossy(&name).into_owned();
        note!(self, "{text} of master {master} is evicted");
        if let Some((_, id)) = text.split_once(":request:") {
            let line = &mut self.masters[master].line;
            let digits = |id: [u8; 16]| format!("{:032x}", u128::from_be_bytes(id));
            let of = |request: &&Request| request.id.map(digits).is_some_and(|it| it == id);
            if let Some(request) = self.requests.iter().find(of) {
                Rc::make_mut(&mut line.forgotten).extend(&request.events);
            }
        }
        self.count("keys evicted");
    }

    /// A gateway of another deployment probes.
    fn join(&mut self) {
        let Some(master) = self.pick_master() else { return };
        let entropy = u32::try_from(self.rng.below(4096)).expect("small");
        let call = Call {
            seen: Position::UNKNOWN,
            placing: Placing::Anywhere,
            reported: String::new(),
            entropy,
            op: Op::Probe(probe_of(0xffff, self.steps)),
            limit: Duration::from_secs(1),
        };
        let mut args = arguments(&call.command(&self.other));
        args[1] = self.sha.clone();
        let reply = self.execute(master, &args);
        let answer = script::parse(&value(&reply)).unwrap_or_else(|| panic!("{reply:?}"));
        note!(self, "a gateway of another deployment probes master {master}: {answer:?}");
        if matches!(answer, Answer::Deployment(_)) {
            self.count("other deployments refused");
            return;
        }
        let (now, steady) = (self.elapsed.as_millis(), !self.happened.contains_key("clock jumps"));
        if let Some(called) = self.masters[master].line.called
            && now < called + ABANDONED_MS
            && steady
        {
            self.events.broken.push(format!(
                "Deployment: another one is accepted at {now} ms; this one called at {called} ms"
            ));
        }
        self.count("other deployments accepted");
        (self.joined, self.absences) = (true, true);
    }

    pub fn new_event(&mut self) -> u64 {
        self.next_event += 1;
        self.next_event - 1
    }

    pub fn add_request(&mut self, id: Option<[u8; 16]>, events: Vec<u64>) {
        self.requests.push(Request { id, events, answers: BTreeSet::new(), answered: None });
    }

    /// True if some gateways have, or had, an earlier version.
    pub fn is_mixed(&self) -> bool {
        !self.earlier.is_empty()
    }

    pub fn steps(&self) -> u64 {
        self.steps
    }

    pub fn note(&mut self, text: impl FnOnce() -> String) {
        note!(self, "{}", text());
    }

    pub fn add_job(
        &mut self,
        gateway: usize,
        job: Job,
        answers: Answers,
        answered: oneshot::Receiver<Result<Appended, AppendError>>,
    ) {
        self.gateways[gateway].core.add(job);
        self.gateways[gateway].answers.push((answers, answered));
    }

    fn publish(&mut self, gateway: usize, request: usize) {
        if !self.gateways[gateway].reader.is_started() {
            return;
        }
        let Request { id, events, .. } = &self.requests[request];
        // The same in every attempt.
        let retains = self.more.retains && events[0] % 3 == 0;
        let batch = Batch {
            events: events.iter().copied().map(event::encode).collect(),
            request_id: *id,
            runs: vec![],
            retain: if retains { vec![(events.len() - 1, 3)] } else { vec![] },
            trace: None,
        };
        let (answer, answered) = oneshot::channel();
        let deadline = self.now() + Duration::from_secs(10);
        let sent = Arc::new(AtomicBool::new(false));
        note!(self, "gateway {gateway} gets request {request} with {events:?}");
        let job = Job { batch, deadline, sent, answer };
        self.add_job(gateway, job, Answers::Request(request), answered);
    }

    pub fn step(&mut self, index: usize) {
        let now = self.now();
        loop {
            let gateway = &mut self.gateways[index];
            match gateway.core.step(now, &mut gateway.memory) {
                Step::Call(call) => self.send(index, call),
                Step::WaitUntil(until) => {
                    gateway.wake = Some(until);
                    break;
                }
            }
            if self.rng.percent(30) {
                break;
            }
        }
        self.collect(index);
    }

    fn send(&mut self, index: usize, mut call: Box<Call>) {
        if let Some(mistake) = self.mistake {
            spoil_call(mistake, &mut call);
        }
        note!(self, "gateway {index} calls {}", describe(&call));
        let gateway = &mut self.gateways[index];
        let releases = matches!(call.op, Op::Release { .. });
        let held = releases.then(|| self.events.held_by(&gateway.memory));
        let held = held.unwrap_or_default();
        let sent = Sent { call, gateway: gateway.id, sha: gateway.sha.clone(), held };
        gateway.flights.push_back(Flight::Sent(sent));
        let frames = gateway.flights.iter().filter(|flight| {
            matches!(flight, Flight::Sent(Sent { call, .. }) if matches!(call.op, Op::Append(_)))
        });
        if frames.count() > 1 {
            self.count("frames sent behind others");
        }
    }

    /// The first call of a gateway that has not arrived does.
    pub fn execute_flight(&mut self, index: usize) {
        let mut flights = self.gateways[index].flights.iter();
        let Some(first) = flights.position(|flight| matches!(flight, Flight::Sent(_))) else {
            return;
        };
        let master = self.reachable(index);
        let arrived = Flight::Answered(Err(Failure::NotConnected("nobody there".into())));
        let flight = &mut self.gateways[index].flights[first];
        let Flight::Sent(sent) = std::mem::replace(flight, arrived) else { return };
        let refused = self.more.refuses && self.rng.percent(8);
        let answer = match master {
            Some(_) if refused => {
                self.count("calls refused");
                Err(Failure::Refused("OOM".into()))
            }
            Some(master) => self.call_script(master, &sent),
            None if self.uses_replica(index) => Err(Failure::Refused("READONLY".into())),
            None => Err(Failure::NotConnected("nobody there".into())),
        };
        note!(self, "gateway {index} is answered {answer:?}");
        self.gateways[index].flights[first] = Flight::Answered(answer);
    }

    pub fn answer(&mut self, index: usize) {
        let now = self.now();
        let gateway = &mut self.gateways[index];
        let Some(flight) = gateway.flights.pop_front() else { return };
        let Flight::Answered(answer) = flight else {
            gateway.flights.push_front(flight);
            return;
        };
        let shown = gateway.core.answered(now, answer, &mut gateway.memory);
        if let Shown::Failed(_) = shown {
            // As the writer does: it looks where the shard is.
        }
        // What is behind a call without an answer has none either.
        let under_way = gateway.core.under_way();
        let behind: Vec<Flight> = gateway.flights.drain(under_way..).collect();
        for flight in behind {
            if let Flight::Sent(sent) = flight
                && let Some(master) = self.reachable(index)
                && self.rng.percent(30)
            {
                self.strays.push((master, sent));
            }
        }
        self.collect(index);
    }

    /// Takes the answers that clients got.
    fn collect(&mut self, index: usize) {
        let mut answers = std::mem::take(&mut self.gateways[index].answers);
        answers.retain_mut(|(answers, answered)| {
            let answer = match answered.try_recv() {
                Ok(answer) => answer,
                Err(oneshot::error::TryRecvError::Empty) => return true,
                Err(oneshot::error::TryRecvError::Closed) => return false,
            };
            let unknown = matches!(answer, Err(AppendError::OutcomeUnknown(_)));
            match (answers, answer) {
                (Answers::Stream(sent), answer) => {
                    if unknown {
                        self.events.given_up.extend(&sent.events);
                    }
                    self.stream_answered(sent, answer.as_ref().map(|_| ()));
                }
                (Answers::Request(request), Ok(appended)) => {
                    note!(self, "request {request} is answered {appended:?}");
                    if self.more.key {
                        *self.happened.entry("acknowledged with a key").or_default() += 1;
                    }
                    let at = (appended.epoch.0, appended.first.0);
                    self.requests[*request].answers.insert(at);
                    self.requests[*request].answered.get_or_insert(self.steps);
                    *self.happened.entry("acknowledged").or_default() += 1;
                }
                (Answers::Request(request), Err(error)) => {
                    if unknown {
                        self.events.given_up.extend(&self.requests[*request].events);
                    }
                    note!(self, "request {request} fails: {error:?}");
                }
            }
            false
        });
        self.gateways[index].answers = answers;
    }

    pub fn inbox(&mut self, index: usize) {
        let now = self.now();
        let gateway = &mut self.gateways[index];
        let Some((mut envelope, bytes)) = gateway.inbox.pop_front() else { return };
        if self.more.key {
            let others_clock = self.mistake == Some(Mistake::ClocksNotLearned);
            let target = if others_clock { &self.target } else { &gateway.target };
            envelope = target.open(bytes.to_vec().into()).expect("a known message");
        }
        gateway.reads(&mut envelope);
        let probe = match &mut envelope.body {
            Body::Probe { writer, number, shared, .. } => {
                *shared &= !self.earlier.contains(writer);
                Some((*writer, *number))
            }
            _ => None,
        };
        let found = gateway.reader.arrived(envelope, &mut gateway.memory, now);
        if let Some(Delivery::Start(_)) = found.deliveries.first()
            && let Some(before) = probe.and_then(|probe| self.probed.get(&probe))
        {
            gateway.before = before.clone();
        }
        self.found(index, found);
    }

    fn found(&mut self, index: usize, found: Found) {
        let gateway = &mut self.gateways[index];
        gateway.wants_history |= found.read_history.is_some();
        for mut delivery in found.deliveries {
            if let Some(mistake) = self.mistake {
                spoil_delivery(mistake, &mut delivery);
            }
            note!(self, "gateway {index} delivers {}", describe_delivery(&delivery));
            self.gateways[index].hub.deliver(ShardId(0), delivery.clone());
            self.gateways[index].log.push(delivery);
        }
    }

    pub fn read_history(&mut self, index: usize) {
        if !self.gateways[index].wants_history {
            return;
        }
        let Some(master) = self.reachable(index) else { return };
        let after = self.gateways[index].reader.read_from();
        let mut reading = self.reading_of(index, master, after);
        reading.entries.iter_mut().for_each(|entry| self.gateways[index].reads(entry));
        note!(
            self,
            "gateway {index} reads history of master {master} after {after}: {} entries, \
            end {}",
            reading.entries.len(),
            reading.view.tip
        );
        let now = self.now();
        let gateway = &mut self.gateways[index];
        gateway.wants_history = false;
        let found = gateway.reader.repaired(reading, &mut gateway.memory, now);
        self.check_gaps(index, master, &found.deliveries);
        self.found(index, found);
    }

    /// True if the node has a stream whose gateway is up.
    fn at(&mut self, node: usize) -> bool {
        let Some((gateway, id)) = self.nodes[node].gateway else { return false };
        if self.gateways[gateway].id != id {
            note!(self, "node {node} loses its gateway");
            self.nodes[node].leave();
            return false;
        }
        !self.gateways[gateway].frozen
    }

    /// An event that a node was handed on, with its stream, if the gateway does not hold it.
    fn unheld(&self, node: usize, got: &Got) -> Option<(u64, usize)> {
        let (gateway, _) = self.nodes[node].gateway?;
        let Got::Event(event, stream) = got else { return None };
        let memory = &self.gateways[gateway].memory;
        let mut names = self.events.names.get(event)?.iter();
        let held = names.any(|(epoch, offset)| memory.holds(Position::new(*epoch, *offset)));
        (!held).then_some((*event, *stream))
    }

    /// A node reads its stream, or opens one.
    pub fn read(&mut self, node: usize) {
        if self.at(node) {
            let reader = &mut self.nodes[node];
            let (told, token) = (reader.got.len(), reader.token.clone());
            let read = reader.read(self.steps);
            if let Some(what) = read {
                note!(self, "node {node} {what}");
            } else {
                // It has asked its gateway's tasks for more.
                self.run_tasks();
            }
            let unheld: Vec<_> = self.nodes[node].got[told..]
                .iter()
                .filter_map(|got| self.unheld(node, got))
                .collect();
            self.nodes[node].unheld.extend(unheld);
            let got = self.nodes[node].got.get(told);
            if let Some(Got::Gap(missing, _)) = got
                && missing.reason == GapReason::UnknownEpoch
                && !self.forgets
                && let Some((gateway, _)) = self.nodes[node].gateway
                && let opened = self.nodes[node].opened
                && let tips = &self.gateways[gateway].tips
                && let Some(epoch) = node::epochs(token.as_deref()).iter().find(|epoch| {
                    let mut tips = tips.iter().filter(|(step, _)| *step >= opened);
                    tips.all(|(_, told)| told.contains_key(epoch))
                })
            {
                self.events.broken.push(format!(
                    "Resumable: node {node} is told {missing:?}; the shard was told of {epoch}"
                ));
            }
            return;
        }
        if self.nodes[node].gateway.is_some() {
            return;
        }
        let Some(gateway) = self.pick() else { return };
        let state = &self.gateways[gateway];
        if !state.hub.is_started() {
            return;
        }
        note!(
            self,
            "node {node} opens a stream on gateway {gateway}, with {}",
            self.nodes[node].had()
        );
        let (id, hub) = (state.id, state.hub.clone());
        let reader = &mut self.nodes[node];
        if reader.token.is_none() {
            reader.not_owed = Some(self.events.first.keys().copied().collect());
        }
        reader.opened = self.steps;
        reader.open((gateway, id), &hub);
    }

    /// Answers what the hub of a gateway asked first.
    pub fn page(&mut self, index: usize) {
        let Some(ask) = self.gateways[index].bus.asks.lock().pop_front() else { return };
        let master = self.reachable(index);
        let unreachable = || AppendError::Unavailable("no master is known".into());
        match ask {
            Ask::Tip(answer) => {
                let end = Position::new(u64::MAX, u64::MAX - 1);
                let view = master.map(|master| self.reading(master, end).view);
                if let Some(master) = master {
                    let told = self.masters[master].line.told.clone();
                    self.gateways[index].tips.push((self.steps, told));
                }
                let tip = view.map(|view| (view.tip, view.ends));
                let _ = answer.send(tip.ok_or_else(unreachable));
            }
            Ask::Page(after, max_bytes, answer) => {
                let Some(master) = master else {
                    let _ = answer.send(Err(unreachable()));
                    return;
                };
                let mut page = Page::after(after, max_bytes);
                let taken = loop {
                    let reading = self.reading_of(index, master, page.read_from());
                    let memory = &mut self.gateways[index].memory;
                    if let Some(taken) = page.take(reading, memory) {
                        break taken;
                    }
                };
                self.check_gaps(index, master, &taken.deliveries);
                let mut taken = taken;
                if let Some(mistake) = self.mistake {
                    taken.deliveries.iter_mut().for_each(|item| spoil_delivery(mistake, item));
                }
                note!(
                    self,
                    "gateway {index} reads a page of master {master} after {after}: \
                    {} deliveries",
                    taken.deliveries.len()
                );
                self.pages += usize::from(!taken.deliveries.is_empty());
                if !after.is_known() {
                    let kept = self.stored(master);
                    let id = self.gateways[index].id;
                    // The stream is not owed what was before the entry with which it begins.
                    let begin: Vec<At> = match taken.deliveries.first() {
                        Some(Delivery::Epoch(start)) => {
                            start.ends.iter().chain([&start.position]).copied().map(at).collect()
                        }
                        _ => vec![],
                    };
                    let names = &self.events.names;
                    let was_before = |event: &u64| {
                        let passed =
                            |name: &At| begin.iter().any(|end| end.0 == name.0 && name.1 <= end.1);
                        names[event].iter().any(passed)
                    };
                    for node in &mut self.nodes {
                        let begins = node.oldest && node.got.is_empty();
                        if begins && node.gateway == Some((index, id)) {
                            let events = self.events.first.keys().copied();
                            let not_owed = node.not_owed.get_or_insert_default();
                            if node.begun != node.streams {
                                node.begun = node.streams;
                                not_owed.clear();
                            }
                            not_owed.extend(
                                events.filter(|event| !kept.contains(event) || was_before(event)),
                            );
                        }
                    }
                }
                let _ = answer.send(Ok(taken));
            }
        }
    }

    /// The positions of the last values in the end, by key.
    pub fn last_values(&mut self) -> BTreeMap<u8, At> {
        let master = self.live_masters()[0];
        let server = &mut self.masters[master].server;
        let mut names = server.key_names().into_iter();
        let Some(name) = names.find(|name| name.ends_with(b":retained")) else {
            return BTreeMap::new();
        };
        let Reply::Array(parts) = server.call(&[b"HGETALL", &name[..]]) else { panic!("no hash") };
        let parts: Vec<String> = parts
            .iter()
            .map(|part| match part {
                Reply::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                other => panic!("no text: {other:?}"),
            })
            .collect();
        let position = |text: &str| {
            let (epoch, offset) = text.split(' ').next()?.split_once('-')?;
            Some((epoch.parse().ok()?, offset.parse().ok()?))
        };
        let pairs = parts.chunks(2);
        let values = pairs.map(|pair| (pair[0].parse().expect("a key"), position(&pair[1])));
        values.map(|(key, at)| (key, at.expect("a position"))).collect()
    }

    /// Learns which epochs the shard has forgotten.
    pub fn learn_floor(&mut self) {
        let master = self.live_masters()[0];
        let end = Position::new(u64::MAX, u64::MAX - 1);
        self.floor = self.reading(master, end).view.floor.0;
    }

    /// The entries that the history of a master has.
    fn entries(&mut self, master: usize) -> Vec<Envelope> {
        let names = self.masters[master].server.key_names();
        let Some(history) = names.into_iter().find(|name| name.ends_with(b":history")) else {
            return vec![];
        };
        let range = self.masters[master].server.call(&[b"XRANGE", &history[..], b"-", b"+"]);
        let Reply::Array(entries) = range else { panic!("no entries: {range:?}") };
        let parsed = entries.into_iter().filter_map(|entry| {
            let Reply::Array(parts) = entry else { return None };
            let [Reply::Bulk(id), Reply::Array(fields)] = &parts[..] else { return None };
            let [Reply::Bulk(field), Reply::Bulk(value)] = &fields[..] else { return None };
            Envelope::parse_history(id, field, &value.to_vec().into())
        });
        parsed.collect()
    }

    /// The events that the history of a master has.
    fn stored(&mut self, master: usize) -> BTreeSet<u64> {
        let entries = self.entries(master).into_iter();
        let events = entries.filter_map(|entry| match entry.body {
            Body::Frame(stamped) => Some(line::numbers(&stamped)),
            _ => None,
        });
        events.flatten().collect()
    }

    /// What a reading does not bring is not missing if history brings it as a copy further on.
    fn check_gaps(&mut self, index: usize, master: usize, deliveries: &[Delivery]) {
        let gaps = deliveries.iter().filter_map(|delivery| match delivery {
            Delivery::Gap(gap) if !gap.lost.is_empty() => Some(gap),
            _ => None,
        });
        let gaps: Vec<_> = gaps.collect();
        if gaps.is_empty() {
            return;
        }
        let entries = self.entries(master);
        for gap in gaps {
            // What a note reports may come again after all, once the state was lost.
            let is_note = |entry: &Envelope| {
                matches!(entry.body, Body::Note(_)) && entry.position == gap.position
            };
            if entries.iter().any(is_note) {
                continue;
            }
            for entry in entries.iter().filter(|entry| entry.position > gap.position) {
                let Body::Frame(stamped) = &entry.body else { continue };
                let frame = &stamped.frame;
                for name in (0..frame.count).map(|nth| frame.name_of(nth)) {
                    let is_in = |lost: &Lost| {
                        let offsets = lost.first..=lost.last;
                        lost.epoch == name.epoch && offsets.contains(&name.offset)
                    };
                    // Whoever goes on behind a place has had all names of its epoch before it.
                    let passed = name.epoch == gap.position.epoch;
                    if !passed && gap.lost.iter().any(is_in) {
                        self.events.broken.push(format!(
                            "NoFalseGap: gateway {index} reports {name} as missing up to {}, and \
                             history has it at {}",
                            gap.position, entry.position
                        ));
                    }
                }
            }
        }
    }

    /// What a gateway reads.
    fn reading_of(&mut self, index: usize, master: usize, after: Position) -> Reading {
        if self.mistake == Some(Mistake::ClocksNotLearned) {
            return self.reading(master, after);
        }
        let target = self.gateways[index].target.clone();
        self.reading_with(&target, master, after)
    }

    pub fn reading(&mut self, master: usize, after: Position) -> Reading {
        let target = self.target.clone();
        self.reading_with(&target, master, after)
    }

    fn reading_with(&mut self, target: &Target, master: usize, after: Position) -> Reading {
        let asked = self.more.few_entries.unwrap_or(ENTRIES);
        let [entries, state] = history::reading(target, after, asked);
        let entries = self.execute(master, &arguments(&entries));
        let state = self.execute(master, &arguments(&state));
        Reading::read(target, asked, value(&entries), &value(&state)).expect("a reading")
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
        self.mend_whole_set()?;
        let masters = self.live_masters();
        let last = *masters.last().expect("a master");
        for master in masters {
            self.masters[master].alive = master == last;
        }
        for gateway in &mut self.gateways {
            (gateway.side, gateway.cut, gateway.frozen) = (last, false, false);
            gateway.slow = false;
            // Clocks pass a time that one of them showed before it went back.
            if let Some(passed) = self.jumped_from_ms {
                gateway.skew_ms.fetch_max(passed, Ordering::Relaxed);
            }
        }
        self.strays.clear();
        note!(self, "all faults end");
        let (mut quiet, mut last) = (0, None);
        for _ in 0..4000 {
            let before = self.fingerprint();
            for index in 0..self.gateways.len() {
                self.turn(index);
                while !self.gateways[index].bus.asks.lock().is_empty() {
                    self.page(index);
                }
            }
            for publisher in 0..self.publishers.len() {
                self.send_waiting(publisher, usize::MAX);
            }
            for node in 0..self.nodes.len() {
                for _ in 0..4 {
                    self.read(node);
                }
            }
            // Where nothing happens, only probes are waited for.
            let passed = if quiet < 500 { 50 } else { 250 };
            self.pass(Duration::from_millis(passed));
            let busy = self.gateways.iter().any(|gateway| {
                gateway.core.is_busy() || gateway.wants_history || gateway.memory.is_recovering()
            }) || self.publishers.iter().any(Publisher::waits);
            let rests = !busy && before == self.fingerprint();
            quiet = if rests { quiet + passed } else { 0 };
            // By then a gateway reads the shard, and of another deployment nothing is left.
            let all_read = self.gateways.iter().all(|gateway| gateway.reader.is_started());
            let due = match (self.joined, all_read) {
                (true, _) => 8000,
                (false, true) => 500,
                (false, false) => 5000,
            };
            if last.is_none() && quiet > due {
                last = Some(self.requests.len());
                (0..self.gateways.len()).for_each(|gateway| self.publish_last(gateway));
                quiet = 0;
            }
            // Three seconds without anything new: some rounds of probes.
            if let Some(first) = last
                && quiet > if self.joined { 13_000 } else { 3000 }
            {
                return self.all_serve(first);
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

    /// A gateway is asked to publish one event more.
    fn publish_last(&mut self, gateway: usize) {
        let event = self.new_event();
        self.add_request(None, vec![event]);
        self.publish(gateway, self.requests.len() - 1);
    }

    /// Each gateway has accepted its last event.
    fn all_serve(&self, first: usize) -> Result<(), String> {
        if self.joined && self.happened.contains_key("clock jumps") {
            // That of the server went back, and it may take longer until the other one is over.
            return Ok(());
        }
        match self.requests[first..].iter().position(|request| request.answered.is_none()) {
            Some(gateway) => {
                Err(format!("Serves: gateway {gateway} does not accept an event in the end"))
            }
            None => Ok(()),
        }
    }

    /// A stream that goes back through the epochs of its token does not rest either.
    fn fingerprint(&self) -> Vec<(usize, Position)> {
        let gateways = self.gateways.iter();
        let gateways = gateways.map(|gateway| (gateway.log.len(), gateway.reader.position()));
        let nodes = self.nodes.iter().map(|node| (node.got.len(), Position::UNKNOWN));
        let pages = std::iter::once((self.pages, Position::UNKNOWN));
        gateways.chain(nodes).chain(pages).collect()
    }
}

/// A call of a gateway that makes a mistake.
fn spoil_call(mistake: Mistake, call: &mut Call) {
    match mistake {
        Mistake::TipOnly if !matches!(call.op, Op::Again(..)) => {
            call.reported = format!("{}:{}", call.seen.epoch.0, call.seen.offset.0);
        }
        Mistake::NoPredecessor => {
            if let Op::Append(framed) = &mut call.op {
                framed.after = None;
            }
        }
        Mistake::NoDoubts => {
            let Op::Append(framed) = &mut call.op else { return };
            let id = format!("1-{}", framed.count);
            let bytes = framed.bytes.clone().into();
            let parsed = Envelope::parse_history(id.as_bytes(), b"f", &bytes);
            let Some(Envelope { body: Body::Frame(stamped), .. }) = parsed else { return };
            let header = Header {
                writer: stamped.writer,
                sequence: stamped.sequence,
                count: framed.count,
                time_ms: stamped.frame.time_ms,
                provenance: None,
                requests: &stamped.requests,
                retain: &stamped.retain,
                runs: &stamped.runs,
                streams: &stamped.streams,
            };
            framed.bytes = encode_frame(&header, &stamped.frame.events);
        }
        _ => {}
    }
}

/// A delivery of a gateway that makes a mistake.
fn spoil_delivery(mistake: Mistake, delivery: &mut Delivery) {
    let Delivery::Frame(frame) = delivery else { return };
    let Some(provenance) = &mut frame.provenance else { return };
    match mistake {
        Mistake::NoAliases => provenance.aliases.clear(),
        Mistake::NoNames => provenance.name = None,
        _ => {}
    }
}

fn probe_of(writer: u64, number: u64) -> Probe {
    Probe { writer, number, bytes: encode_probe(writer, number, 0), unless_within: None }
}

fn describe(call: &Call) -> String {
    let op = match &call.op {
        Op::Append(framed) => {
            format!("append seq {} x{} after {:?}", framed.sequence, framed.count, framed.after)
        }
        Op::Again(framed, name) => {
            format!("again seq {} x{} name {name:?}", framed.sequence, framed.count)
        }
        Op::Probe(_) => "probe".into(),
        Op::Release { .. } => "release".into(),
        Op::Number(streams) => format!("number {streams} streams"),
    };
    format!("{op}, seen {}, reported [{}]", call.seen, call.reported)
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

fn parsed(message: &[u8]) -> Envelope {
    let Some(envelope) = Envelope::parse(message.to_vec().into()) else {
        panic!("an unknown message: {}", message.escape_ascii());
    };
    envelope
}

/// The arguments of a command.
fn arguments(cmd: &::redis::Cmd) -> Vec<Text> {
    cmd.args_iter()
        .map(|arg| match arg {
            ::redis::Arg::Simple(bytes) => bytes.into(),
            _ => Text::default(),
        })
        .collect()
}

fn texts<const N: usize>(args: [&str; N]) -> [Text; N] {
    args.map(|arg| arg.as_bytes().into())
}

/// A reply as the client library gives it.
fn value(reply: &Reply) -> ::redis::Value {
    use ::redis::Value;
    match reply {
        Reply::Nil => Value::Nil,
        Reply::Integer(number) => Value::Int(*number),
        Reply::Status(text) => Value::SimpleString(text.clone()),
        Reply::Error(text) => panic!("an error: {text}"),
        Reply::Bulk(bytes) => Value::BulkString(bytes.to_vec()),
        Reply::Array(parts) => Value::Array(parts.iter().map(value).collect()),
    }
}

#[cfg(test)]
mod tests {
    use trunkline::bus::redis::view::ShardView;

    use super::*;

    /// The shard after a probe of a gateway that has seen this much.
    fn probe(world: &mut World, seen: Position, reported: &str) -> ShardView {
        let call = Box::new(Call {
            seen,
            placing: Placing::Anywhere,
            reported: reported.into(),
            entropy: 7,
            op: Op::Probe(probe_of(1, 1)),
            limit: Duration::from_secs(1),
        });
        let sent = Sent { call, gateway: 1, sha: world.sha.clone(), held: BTreeSet::new() };
        match world.call_script(0, &sent) {
            Ok(Answer::Shard(view, _)) => view,
            other => panic!("no view: {other:?}"),
        }
    }

    #[test]
    fn an_old_epoch_that_went_on_on_another_line_is_not_forgotten() {
        let setting = Setting::new(None);
        let runtime = setting.runtime();
        let _entered = runtime.enter();
        for (last, forgotten) in [(0, true), (5, false)] {
            let mut world = World::new(1, &setting, 0, More::default(), false);
            let first = probe(&mut world, Position::UNKNOWN, "").tip;
            // A split brain: on this side another epoch begins at once.
            let identity = world.identity();
            world.masters[0].server.set_identity(identity);
            let second = probe(&mut world, first, &format!("{}:0", first.epoch.0)).tip;
            assert!(second.epoch > first.epoch);
            // It ends after two hours, and this side fails over as well.
            world.pass(Duration::from_hours(2));
            let identity = world.identity();
            world.masters[0].server.set_identity(identity);
            let reported = format!("{}:{last} {}:0", first.epoch.0, second.epoch.0);
            let third = probe(&mut world, second, &reported);
            assert_eq!(third.floor == first.epoch, forgotten);
            assert_eq!(third.ends.contains(&first), !forgotten);
            // A gateway of the other side comes now.
            for (last, forgotten) in [(0, forgotten), (5, false), (5, false)] {
                let later = probe(&mut world, third.tip, &format!("{}:{last}", first.epoch.0));
                assert_eq!((later.tip, later.recovering), (third.tip, true));
                assert_eq!(later.floor == first.epoch, forgotten);
                assert_eq!(later.ends.contains(&first), !forgotten);
                assert!(later.ends.contains(&second));
            }
        }
    }
}
