//! The servers of the deployment, and the owner of each shard.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::RwLock;
use rand::seq::{IteratorRandom, SliceRandom};
use redis::Value;
use tokio::sync::{Mutex, Notify, watch};

use super::{
    sentinel::{
        Sentinels,
        answer::Answers,
        choice::{Choice, Step},
    },
    server::Server,
    settings::Settings,
    slots::{self, SlotRange, owner},
};
use crate::{bus::ShardId, throttle::Throttle};

/// A refresh is not repeated before this has passed.
const MIN_AGE: Duration = Duration::from_millis(100);

/// The time limit for one server's answer to `CLUSTER SLOTS`.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The time for which a replica that failed is not asked. If it hangs, each attempt costs a time
/// limit.
const BACK_OFF: Duration = Duration::from_secs(10);

/// The time limit for a server's answer to whether it is the master.
const ROLE_TIMEOUT: Duration = Duration::from_secs(1);

/// Throttles the log lines about replicas that failed.
static REPLICA: Throttle = Throttle::repeated();

/// The servers, and the shards that each owns. One standalone server, or the master that sentinels
/// name, owns everything.
pub(super) struct Topology {
    settings: Settings,
    /// The sentinels, if these name the master.
    sentinels: Option<Sentinels>,
    /// The slot of each shard.
    slots: Vec<u16>,
    /// One `Server` for each address, so that connections outlive a refresh.
    servers: RwLock<HashMap<String, Arc<Server>>>,
    map: RwLock<Map>,
    /// Replicas that failed, by address, and when.
    failed: RwLock<HashMap<String, Instant>>,
    /// Notified when a call to a standalone server may have failed.
    failed_call: Notify,
    /// Counts the changes of the map.
    version: watch::Sender<u64>,
    /// When the map was last read. Locked during a refresh, so that many callers cause one.
    last_refresh: Mutex<Option<Instant>>,
}

#[derive(Clone, Default, PartialEq, Eq)]
struct Map {
    /// The address of each shard's master.
    masters: Vec<Option<String>>,
    /// The addresses of its replicas.
    replicas: Vec<Vec<String>>,
}

/// No server, and no sentinel, said which servers own the shards.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct TopologyError(pub String);

impl Topology {
    /// A topology that knows the seeds. A standalone server owns all shards at once; in a cluster,
    /// and behind sentinels, no owner is known before the first refresh.
    pub(super) fn new(settings: Settings, slots: Vec<u16>) -> Result<Topology, TopologyError> {
        let sentinels = Sentinels::new(&settings).map_err(|e| TopologyError(e.to_string()))?;
        let mut servers = HashMap::new();
        for info in settings.seeds.iter().filter(|_| sentinels.is_none()) {
            let server =
                Server::new(info.clone(), &settings).map_err(|e| TopologyError(e.to_string()))?;
            servers.insert(server.address.clone(), Arc::new(server));
        }
        let is_known = !settings.cluster && sentinels.is_none();
        let owner = is_known.then(|| settings.seeds[0].addr().to_string());
        let map = Map { masters: vec![owner; slots.len()], replicas: vec![vec![]; slots.len()] };
        Ok(Topology {
            settings,
            sentinels,
            slots,
            servers: RwLock::new(servers),
            map: RwLock::new(map),
            failed: RwLock::default(),
            failed_call: Notify::new(),
            version: watch::Sender::new(0),
            last_refresh: Mutex::new(None),
        })
    }

    /// The master of a shard, if known.
    pub(super) fn master(&self, shard: ShardId) -> Option<Arc<Server>> {
        let address = self.map.read().masters[shard.index()].clone()?;
        self.servers.read().get(&address).cloned()
    }

    /// A random replica of a shard that has not failed recently, if there is one.
    pub(super) fn replica(&self, shard: ShardId) -> Option<Arc<Server>> {
        let failed = self.failed.read();
        let serves = |address: &&String| {
            failed.get(*address).is_none_or(|since| since.elapsed() >= BACK_OFF)
        };
        let map = self.map.read();
        let address = map.replicas[shard.index()].iter().filter(serves).choose(&mut rand::rng())?;
        self.server(address)
    }

    /// Records that a replica failed: it is not asked for a while.
    pub(super) fn back_off(&self, replica: &Server, why: impl fmt::Display) {
        self.failed.write().insert(replica.address.clone(), Instant::now());
        if let Some(left_out) = REPLICA.pass() {
            tracing::warn!(server = replica.address, %why, left_out,
                "a replica did not serve history; its master does");
        }
    }

    /// All servers, those that own shards first.
    pub(super) fn any(&self) -> Vec<Arc<Server>> {
        let owners: Vec<_> = self.map.read().masters.iter().flatten().cloned().collect();
        let mut servers: Vec<_> = self.servers.read().values().cloned().collect();
        servers.shuffle(&mut rand::rng());
        servers.sort_by_key(|server| !owners.contains(&server.address));
        servers
    }

    /// The addresses of servers and sentinels as others announce them.
    pub(super) fn announced(&self) -> Vec<String> {
        let map = self.map.read();
        let servers = map.masters.iter().flatten().chain(map.replicas.iter().flatten());
        let sentinels = self.sentinels.iter().flat_map(Sentinels::addresses);
        servers.cloned().chain(sentinels).collect()
    }

    /// True for a cluster.
    pub(super) fn is_cluster(&self) -> bool {
        self.settings.cluster
    }

    /// True if the server at this address owns a shard.
    pub(super) fn owns(&self, address: &str) -> bool {
        self.map.read().masters.iter().flatten().any(|owner| owner == address)
    }

    /// Changes of the owners.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// The server at an address that another server reported.
    pub(super) fn server(&self, address: &str) -> Option<Arc<Server>> {
        if let Some(server) = self.servers.read().get(address) {
            return Some(server.clone());
        }
        let server = self.make(address)?;
        let mut servers = self.servers.write();
        Some(servers.entry(address.to_owned()).or_insert(server).clone())
    }

    /// A server at an address that another server reported, without connections.
    fn make(&self, address: &str) -> Option<Arc<Server>> {
        let (host, port) = address.rsplit_once(':')?;
        let server = Server::named(host, port.parse().ok()?, &self.settings);
        Some(Arc::new(server.ok()?))
    }

    /// Waits for a call of [`Topology::refresh`], unless this is a cluster.
    pub(super) async fn failed_call(&self) {
        self.failed_call.notified().await;
    }

    /// Waits until a sentinel tells of a new master.
    pub(super) async fn switched(&self) {
        match &self.sentinels {
            Some(sentinels) => sentinels.switched().await,
            None => std::future::pending().await,
        }
    }

    /// Reads the owners of the shards from the cluster, or asks the sentinels. Of a server without
    /// a cluster it has looked at whether it has moved, and does not wait for that.
    pub(super) async fn refresh(&self) -> Result<(), TopologyError> {
        if !self.settings.cluster {
            self.failed_call.notify_one();
            return self.ask_sentinels().await;
        }
        let mut last = self.last_refresh.lock().await;
        if last.is_some_and(|at| at.elapsed() < MIN_AGE) {
            return Ok(());
        }
        let mut why = String::from("no server of the cluster is known");
        // The view with the most owners: a server that has lost sight of the others knows few.
        let mut best: Option<(usize, Vec<SlotRange>)> = None;
        // A server that does not answer costs a time limit, so the order is random.
        for server in self.any() {
            let asked = tokio::time::timeout(ANSWER_TIMEOUT, ask(&server));
            match asked.await.unwrap_or_else(|_| Err("no answer in time".into())) {
                Ok(ranges) => {
                    let owned = self.slots.iter().filter(|slot| owner(&ranges, **slot).is_some());
                    let owned = owned.count();
                    if best.as_ref().is_none_or(|(most, _)| owned > *most) {
                        best = Some((owned, ranges));
                    }
                    if owned == self.slots.len() {
                        break;
                    }
                }
                Err(error) => why = format!("{}: {error}", server.address),
            }
        }
        let Some((_, ranges)) = best else { return Err(TopologyError(why)) };
        self.adopt(&ranges);
        *last = Some(Instant::now());
        Ok(())
    }

    /// Asks the sentinels, if there are any, for the master. One that they name is believed if it
    /// says itself that it is a master; without one, what was known stays.
    pub(super) async fn ask_sentinels(&self) -> Result<(), TopologyError> {
        let Some(sentinels) = &self.sentinels else { return Ok(()) };
        let mut last = self.last_refresh.lock().await;
        if last.is_some_and(|at| at.elapsed() < MIN_AGE) {
            return Ok(());
        }
        let answers = sentinels.ask().await;
        let found = self.choose(&answers).await;
        *last = Some(Instant::now());
        found
    }

    async fn choose(&self, answers: &Answers) -> Result<(), TopologyError> {
        let used = self.map.read().masters.first().cloned().flatten();
        let used = used.and_then(|address| {
            let (host, port) = address.rsplit_once(':')?;
            Some((host.to_owned(), port.parse().ok()?))
        });
        let mut choice = Choice::new(answers, used.as_ref());
        let mut next = choice.step();
        loop {
            next = match next {
                Step::Ask(master) => choice.answered(self.role(&text_of(&master)).await),
                Step::Use(master, replicas) => {
                    let replicas: Vec<_> = replicas.iter().map(text_of).collect();
                    self.adopt_master(&text_of(&master), &replicas);
                    return Ok(());
                }
                Step::Keep(why) => return Err(TopologyError(why)),
            }
        }
    }

    /// Whether the server at an address says that it is a master. It is known from then on.
    async fn role(&self, address: &str) -> Result<(), String> {
        let server = self.make(address).ok_or_else(|| "it cannot be connected to".to_owned())?;
        let asked = tokio::time::timeout(ROLE_TIMEOUT, server.is_master()).await;
        asked.unwrap_or_else(|_| Err(server.slow().to_string()))?;
        self.servers.write().insert(address.to_owned(), server);
        Ok(())
    }

    /// All shards are at this master.
    fn adopt_master(&self, address: &str, replicas: &[String]) {
        let map = Map {
            masters: vec![Some(address.to_owned()); self.slots.len()],
            replicas: vec![replicas.to_vec(); self.slots.len()],
        };
        let mut servers = self.servers.write();
        let demoted = self.map.read().masters.first().cloned().flatten();
        if let Some(server) = demoted.filter(|demoted| demoted != address)
            && let Some(server) = servers.remove(&server)
        {
            // Its connections may stay open for ever, and calls on them without an answer.
            server.leave();
        }
        servers.retain(|known, _| known == address || replicas.contains(known));
        drop(servers);
        self.take(map);
    }

    fn adopt(&self, ranges: &[SlotRange]) {
        let mut map = Map::default();
        for slot in &self.slots {
            let range = owner(ranges, *slot);
            let mut nodes = range.map(|range| range.nodes.iter()).into_iter().flatten();
            let mut next = || nodes.next().map(text_of);
            map.masters.push(next());
            map.replicas.push(std::iter::from_fn(next).collect());
        }
        for address in map.masters.iter().flatten() {
            self.server(address);
        }
        // Forget servers that left: where containers get new addresses there would be more and more
        // of them, and each costs a time limit when no master answers.
        let mut kept: HashSet<String> =
            ranges.iter().flat_map(|range| range.nodes.iter().map(text_of)).collect();
        kept.extend(self.settings.seeds.iter().map(|seed| seed.addr().to_string()));
        self.servers.write().retain(|address, _| kept.contains(address));
        self.take(map);
    }

    fn take(&self, map: Map) {
        self.failed.write().retain(|_, since| since.elapsed() < BACK_OFF);
        let changed = *self.map.read() != map;
        if changed {
            tracing::info!(masters = ?map.masters, "the shards' masters are known");
            *self.map.write() = map;
            self.version.send_modify(|version| *version += 1);
        }
    }
}

/// An address as servers are known by.
fn text_of((host, port): &(String, u16)) -> String {
    format!("{host}:{port}")
}

async fn ask(server: &Server) -> Result<Vec<SlotRange>, String> {
    let mut command = server.command().await.map_err(|error| error.to_string())?;
    let answer: Result<Value, _> =
        redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut command.connection).await;
    match answer {
        Ok(value) => {
            let asked = server.address.rsplit_once(':');
            let asked = asked.and_then(|(host, port)| Some((host, port.parse().ok()?)));
            slots::parse(&value, asked.unwrap_or(("", 0)))
                .ok_or_else(|| "an unknown form of CLUSTER SLOTS".into())
        }
        Err(error) => {
            if error.code().is_none() {
                server.discard(&command).await;
            }
            Err(server.explain(&error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Sources};

    fn of_slots(slots: Vec<u16>) -> Topology {
        let text = br#"{"coordinator":{"@type":"RedisCluster","urls":["redis://seed:7000"]}}"#;
        let config = Config::load_text(text, &Sources::default()).unwrap();
        let settings = Settings::from_config(&config).unwrap();
        Topology::new(settings, slots).unwrap()
    }

    #[test]
    fn servers_that_left_are_forgotten_but_seeds_are_kept() {
        let topology = of_slots(vec![5, 16_000]);
        let range = |first, last, hosts: [&str; 2]| SlotRange {
            first,
            last,
            nodes: hosts.map(|host| (host.to_owned(), 7000)).to_vec(),
        };
        let known = |topology: &Topology| {
            let mut all: Vec<_> = topology.any().iter().map(|s| s.address.clone()).collect();
            all.sort();
            all
        };
        topology.adopt(&[range(0, 9999, ["a", "b"]), range(10_000, 16_383, ["c", "d"])]);
        let (first, second) = (ShardId(0), ShardId(1));
        let kept = topology.master(second).unwrap();
        assert_eq!(topology.replica(first).unwrap().address, "b:7000");
        assert_eq!(known(&topology), ["a:7000", "b:7000", "c:7000", "seed:7000"]);
        topology.adopt(&[range(0, 9999, ["e", "f"]), range(10_000, 16_383, ["c", "d"])]);
        assert_eq!(known(&topology), ["c:7000", "e:7000", "seed:7000"]);
        assert!(Arc::ptr_eq(&kept, &topology.master(second).unwrap()), "connections are kept");
    }

    #[test]
    fn only_a_replica_that_failed_is_not_asked_for_a_while() {
        let topology = of_slots(vec![5]);
        let nodes = ["a", "b", "c"].map(|host| (host.to_owned(), 7000)).to_vec();
        topology.adopt(&[SlotRange { first: 0, last: 16_383, nodes }]);
        let failed = topology.replica(ShardId(0)).unwrap();
        topology.back_off(&failed, "a test");
        for _ in 0..20 {
            let other = topology.replica(ShardId(0)).unwrap();
            assert_ne!(other.address, failed.address);
        }
        topology.back_off(&topology.replica(ShardId(0)).unwrap(), "a test");
        assert!(topology.replica(ShardId(0)).is_none(), "the master serves");
    }
}
