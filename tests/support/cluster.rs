//! A real Redis Cluster for one test: one process per node, formed in about three seconds.
//!
//! Nodes are identified by their index, from 0, as long as the cluster lives; which of them are
//! masters changes.

use std::time::Duration;

use ::redis::RedisResult;
use futures_util::future::join_all;

use super::{
    ports::{BUS, Port},
    redis::{Data, RedisOptions, RedisServer},
    view::{NodeView, SLOTS, View},
    wait::{attempt, eventually, until},
};

/// How long a cluster may take to form, or to agree after a fault.
const SETTLE: Duration = Duration::from_secs(30);

/// Keys of a slot that are moved at one time.
const MOVED_KEYS: &str = "100";

/// The composition of a cluster.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Masters; at least 3, for a majority.
    pub masters: usize,
    /// Replicas, assigned to the masters in turn.
    pub replicas: usize,
    /// Time without an answer after which a node counts as down: `cluster-node-timeout`.
    pub node_timeout: Duration,
    /// Options of every node. A replica uses the password for its master as well.
    pub server: RedisOptions,
}

impl Default for ClusterOptions {
    fn default() -> ClusterOptions {
        ClusterOptions {
            masters: 3,
            replicas: 3,
            node_timeout: Duration::from_secs(2),
            server: RedisOptions::default(),
        }
    }
}

/// A running cluster. Dropping it kills all nodes and removes their folders.
#[derive(Debug)]
pub struct RedisCluster {
    options: ClusterOptions,
    nodes: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts three masters and three replicas; returns when all agree and the replicas are in
    /// sync.
    pub async fn start() -> RedisCluster {
        RedisCluster::with(ClusterOptions::default()).await
    }

    /// Starts a cluster; returns when all agree and the replicas are in sync.
    pub async fn with(options: ClusterOptions) -> RedisCluster {
        let mut cluster = RedisCluster { options, nodes: Vec::new() };
        let ClusterOptions { masters, replicas, .. } = cluster.options;
        for _ in 0..masters + replicas {
            cluster.launch();
        }
        join_all(cluster.nodes.iter().map(RedisServer::answers)).await;

        for (index, first, last) in split(masters) {
            let node = &cluster.nodes[index];
            node.cli(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]).await;
            // Distinct from the start, so that no election is needed.
            node.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]).await;
        }
        // Every node meets every other node: gossip alone takes seconds.
        for index in 1..cluster.nodes.len() {
            cluster.introduce(index, 0..index).await;
        }
        for replica in masters..masters + replicas {
            cluster.replicate(replica, replica % masters).await;
        }
        cluster.settled().await;
        cluster
    }

    /// A node.
    pub fn node(&self, index: usize) -> &RedisServer {
        &self.nodes[index]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    /// Time without an answer after which a node counts as down.
    pub fn node_timeout(&self) -> Duration {
        self.options.node_timeout
    }

    /// The URLs of all nodes, running or not.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(RedisServer::url).collect()
    }

    /// The masters that own slots, by index.
    pub async fn masters(&self) -> Vec<usize> {
        let view = self.view().await;
        let owns = |node: &&NodeView| node.is_master() && !node.failing() && !node.slots.is_empty();
        let mut masters: Vec<usize> =
            view.nodes.iter().filter(owns).filter_map(|node| self.index_of(node)).collect();
        masters.sort_unstable();
        masters
    }

    /// The replicas of a master.
    pub async fn replicas_of(&self, master: usize) -> Vec<usize> {
        let view = self.view().await;
        let id = view.on_port(self.nodes[master].port()).map(|node| node.id.clone());
        let follows = |node: &&NodeView| node.master.is_some() && node.master == id;
        view.nodes.iter().filter(follows).filter_map(|node| self.index_of(node)).collect()
    }

    /// Waits until every server lists this replica in CLUSTER SLOTS. A server lists it once gossip
    /// says that the replica has data of its master.
    pub async fn replica_is_named(&self, replica: usize) {
        let port = self.nodes[replica].port().to_string();
        until(SETTLE, "every server lists the replica", async || {
            let named = join_all(self.running().map(async |node| {
                let slots = node.cli(&["CLUSTER", "SLOTS"]).await;
                slots.lines().any(|line| line == port)
            }));
            named.await.into_iter().all(|named| named)
        })
        .await;
    }

    /// The master that owns a slot.
    pub async fn master_of_slot(&self, slot: u16) -> usize {
        eventually(SETTLE, "an owner of the slot", async || {
            self.view().await.owner(slot).and_then(|node| self.index_of(node))
        })
        .await
    }

    /// A slot that a master owns.
    pub async fn slot_of_master(&self, master: usize) -> u16 {
        let view = self.view().await;
        let node = view.on_port(self.nodes[master].port()).expect("the node is known");
        *node.slots.first().expect("the master owns slots").start()
    }

    /// Kills a node with SIGKILL.
    pub fn kill_9(&self, index: usize) {
        self.nodes[index].kill_9();
    }

    /// Kills the master of a slot with SIGKILL; returns its index. A replica takes over after the
    /// node timeout.
    pub async fn kill_master(&self, slot: u16) -> usize {
        let master = self.master_of_slot(slot).await;
        self.kill_9(master);
        master
    }

    /// Waits until another node than `old` owns the slot and all nodes that answer report that the
    /// cluster is ok. Returns the new owner.
    pub async fn taken_over(&self, slot: u16, old: usize) -> usize {
        attempt(SETTLE, "a new master", async || {
            let owners = join_all(self.others(old).map(async |node| {
                let view = look(node).await.ok()?;
                let state = cluster_info(node, "cluster_state").await?;
                Some((view.owner(slot).map(|owner| owner.port), state))
            }))
            .await;
            let mut owners: Vec<_> = owners.into_iter().flatten().collect();
            owners.dedup();
            match owners.as_slice() {
                [(Some(port), state)] if state == "ok" && *port != self.nodes[old].port() => {
                    Ok(self.index_of_port(*port).expect("the owner is one of ours"))
                }
                others => Err(format!("{others:?}")),
            }
        })
        .await
    }

    /// Restarts a node, and waits until all nodes agree.
    pub async fn restart(&self, index: usize, data: Data) {
        self.nodes[index].restart(data).await;
        self.settled().await;
    }

    /// Restarts a node with another address, as happens to containers, and waits until all nodes
    /// agree.
    pub async fn readdress(&mut self, index: usize) {
        self.nodes[index].move_to(Port::with_bus()).await;
        self.settled().await;
    }

    /// Makes a replica the master, without loss (CLUSTER FAILOVER). Returns when all nodes agree.
    pub async fn failover(&self, replica: usize) {
        let node = &self.nodes[replica];
        node.cli(&["CLUSTER", "FAILOVER"]).await;
        until(SETTLE, "the replica is master", async || {
            node.info("replication", "role").await.as_deref() == Some("master")
        })
        .await;
        self.settled().await;
    }

    /// Moves a slot with its keys to another master, while clients use it.
    pub async fn move_slot(&self, slot: u16, to: usize) {
        let from = self.master_of_slot(slot).await;
        if from == to {
            return;
        }
        let (source, target) = (&self.nodes[from], &self.nodes[to]);
        let (source_id, target_id) = (id(source).await, id(target).await);
        let slot_text = slot.to_string();
        let set = async |node: &RedisServer, what: &str, id: &str| {
            node.cli(&["CLUSTER", "SETSLOT", &slot_text, what, id]).await;
        };
        set(target, "IMPORTING", &source_id).await;
        set(source, "MIGRATING", &target_id).await;
        self.move_keys(source, target, &slot_text).await;
        // The target first: it gets the higher epoch, by which the others decide.
        set(target, "NODE", &target_id).await;
        set(source, "NODE", &target_id).await;
        for master in self.masters().await {
            if master != from && master != to {
                set(&self.nodes[master], "NODE", &target_id).await;
            }
        }
        self.settled().await;
    }

    /// Adds a master without slots; returns its index.
    pub async fn add_master(&mut self) -> usize {
        let index = self.launch();
        self.nodes[index].answers().await;
        self.introduce(index, 0..index).await;
        self.settled().await;
        index
    }

    /// Removes a master without slots: kills it, and makes all others forget it.
    pub async fn remove_master(&self, index: usize) {
        let gone = id(&self.nodes[index]).await;
        self.kill_9(index);
        for node in self.running() {
            node.cli(&["CLUSTER", "FORGET", &gone]).await;
        }
    }

    /// Waits until all running nodes report that the cluster is ok and agree on it, and every
    /// replica is in sync.
    pub async fn settled(&self) {
        attempt(SETTLE, "a cluster that agrees", async || {
            let mut agreed: Option<Vec<String>> = None;
            for node in self.running() {
                let port = node.port();
                let state = cluster_info(node, "cluster_state").await;
                if state.as_deref() != Some("ok") {
                    return Err(format!("port {port}: cluster_state is {state:?}"));
                }
                if node.info("replication", "role").await.as_deref() == Some("slave") {
                    let link = node.info("replication", "master_link_status").await;
                    if link.as_deref() != Some("up") {
                        return Err(format!("port {port}: the link to its master is {link:?}"));
                    }
                }
                let view = look(node).await.map_err(|error| error.to_string())?;
                self.complete(&view).map_err(|why| format!("port {port}: {why}"))?;
                let agreement = view.agreement();
                match &agreed {
                    Some(first) if *first != agreement => {
                        return Err(format!(
                            "port {port}: {agreement:?} where others have {first:?}"
                        ));
                    }
                    _ => agreed = Some(agreement),
                }
            }
            Ok(())
        })
        .await;
    }

    /// Checks that a view has every running node, connected and not failing.
    fn complete(&self, view: &View) -> Result<(), String> {
        for node in self.running() {
            match view.on_port(node.port()) {
                Some(seen) if !seen.failing() && seen.connected => {}
                seen => return Err(format!("{} is seen as {seen:?}", node.port())),
            }
        }
        Ok(())
    }

    /// The cluster as the first running node that answers sees it.
    async fn view(&self) -> View {
        attempt(SETTLE, "a node that answers", async || {
            let mut why = "no node runs".to_owned();
            for node in self.running() {
                match look(node).await {
                    Ok(view) => return Ok(view),
                    Err(error) => why = error.to_string(),
                }
            }
            Err(why)
        })
        .await
    }

    fn running(&self) -> impl Iterator<Item = &RedisServer> {
        self.nodes.iter().filter(|node| node.is_running())
    }

    fn others(&self, index: usize) -> impl Iterator<Item = &RedisServer> {
        let port = self.nodes[index].port();
        self.running().filter(move |node| node.port() != port)
    }

    fn index_of(&self, node: &NodeView) -> Option<usize> {
        self.index_of_port(node.port)
    }

    fn index_of_port(&self, port: u16) -> Option<usize> {
        self.nodes.iter().position(|node| node.port() == port)
    }

    /// Starts one more node, outside of the cluster.
    fn launch(&mut self) -> usize {
        let timeout = self.options.node_timeout.as_millis().to_string();
        let mut options = self.options.server.clone();
        let own = [
            ("--cluster-enabled", "yes"),
            ("--cluster-config-file", "nodes.conf"),
            ("--cluster-node-timeout", timeout.as_str()),
            ("--cluster-announce-ip", "127.0.0.1"),
            // Replicas stay with their masters, so that a test knows which replica is whose.
            ("--cluster-allow-replica-migration", "no"),
        ];
        let own = own.iter().flat_map(|(name, value)| [(*name).to_owned(), (*value).to_owned()]);
        let mut own: Vec<String> = own.collect();
        let port = Port::with_bus();
        if options.tls.is_some() {
            // Servers report their TLS ports to TLS clients only if they also use TLS among
            // themselves; their bus port must be given then, since it would be another.
            let bus = (port.number() + BUS).to_string();
            own.extend(["--tls-cluster", "yes", "--cluster-port", &bus].map(str::to_owned));
        }
        // Arguments of the test come last and take precedence.
        options.args.splice(0..0, own);
        self.nodes.push(RedisServer::launch(options, port));
        self.nodes.len() - 1
    }

    /// Makes a node meet others.
    async fn introduce(&self, index: usize, to: impl IntoIterator<Item = usize>) {
        for other in to {
            let port = self.nodes[other].port().to_string();
            self.nodes[index].cli(&["CLUSTER", "MEET", "127.0.0.1", &port]).await;
        }
    }

    /// Makes a node a replica of a master, once it has met it.
    async fn replicate(&self, replica: usize, master: usize) {
        let id = id(&self.nodes[master]).await;
        attempt(SETTLE, "the replica knows its master", async || {
            let answer: RedisResult<String> =
                self.nodes[replica].command(&["CLUSTER", "REPLICATE", &id]).await;
            answer.map_err(|error| error.to_string())
        })
        .await;
    }

    async fn move_keys(&self, source: &RedisServer, target: &RedisServer, slot: &str) {
        let port = target.port().to_string();
        loop {
            let keys: Vec<String> = source
                .command(&["CLUSTER", "GETKEYSINSLOT", slot, MOVED_KEYS])
                .await
                .expect("CLUSTER GETKEYSINSLOT");
            if keys.is_empty() {
                return;
            }
            let mut migrate = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000"];
            if let Some(password) = &self.options.server.password {
                migrate.extend(["AUTH", password]);
            }
            migrate.push("KEYS");
            migrate.extend(keys.iter().map(String::as_str));
            source.cli(&migrate).await;
        }
    }
}

/// The slots of each of `masters` masters: index, first, last.
fn split(masters: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    let slots = usize::from(SLOTS);
    (0..masters)
        .map(move |index| (index, index * slots / masters, (index + 1) * slots / masters - 1))
}

async fn look(node: &RedisServer) -> RedisResult<View> {
    let text: String = node.command(&["CLUSTER", "NODES"]).await?;
    Ok(View::parse(&text))
}

async fn id(node: &RedisServer) -> String {
    node.cli(&["CLUSTER", "MYID"]).await
}

/// A field of CLUSTER INFO.
async fn cluster_info(node: &RedisServer, field: &str) -> Option<String> {
    let text: String = node.command(&["CLUSTER", "INFO"]).await.ok()?;
    let value = |line: &str| Some(line.strip_prefix(field)?.strip_prefix(':')?.trim().to_owned());
    text.lines().find_map(value)
}
