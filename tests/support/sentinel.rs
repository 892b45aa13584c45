//! Real sentinels for one test, with the servers that they watch.
//!
//! Servers and sentinels are identified by their index, from 0, as long as the set lives; which
//! server is the master changes.

use std::time::Duration;

use ::redis::RedisResult;
use futures_util::future::join_all;

use super::{
    ports::Port,
    proxy::Proxy,
    redis::{RedisOptions, RedisServer},
    wait::{attempt, until},
};

/// How long sentinels may take to agree.
const SETTLE: Duration = Duration::from_mins(1);

/// The name of the master.
pub const MASTER: &str = "mymaster";

/// The user by which sentinels come to the servers, and its password.
const WATCHER: (&str, &str) = ("watcher", "watched");

/// How a set is started.
#[derive(Clone, Debug)]
pub struct SentinelOptions {
    /// Servers; the first one begins as the master, and the others as its replicas.
    pub servers: usize,
    /// Sentinels; two must agree that a master is down.
    pub sentinels: usize,
    /// Time without an answer after which a server counts as down.
    pub down_after: Duration,
    /// Options of every server.
    pub server: RedisOptions,
    /// Options of every sentinel.
    pub sentinel: RedisOptions,
    /// Further lines in the file of every sentinel.
    pub lines: Vec<String>,
    /// True if servers announce the ports of proxies, through which sentinels reach them.
    pub behind_proxies: bool,
}

impl Default for SentinelOptions {
    fn default() -> SentinelOptions {
        SentinelOptions {
            servers: 2,
            sentinels: 3,
            down_after: Duration::from_secs(1),
            server: RedisOptions::default(),
            sentinel: RedisOptions::default(),
            lines: vec![],
            behind_proxies: false,
        }
    }
}

/// A running set. Dropping it kills all processes and removes their folders.
#[derive(Debug)]
pub struct SentinelSet {
    options: SentinelOptions,
    servers: Vec<RedisServer>,
    /// One for each server, where servers announce them.
    proxies: Vec<Proxy>,
    sentinels: Vec<RedisServer>,
}

impl SentinelSet {
    /// A master, a replica and three sentinels; returns when all know one another and the replica
    /// is in sync.
    pub async fn start() -> SentinelSet {
        SentinelSet::with(SentinelOptions::default()).await
    }

    /// Starts a set; returns when all know one another and the replicas are in sync.
    pub async fn with(options: SentinelOptions) -> SentinelSet {
        let mut set = SentinelSet { options, servers: vec![], proxies: vec![], sentinels: vec![] };
        for index in 0..set.options.servers {
            let mut server = set.options.server.clone();
            let (user, password) = WATCHER;
            let rights = format!("--user {user} on >{password} ~* &* +@all");
            server.args.extend(rights.split(' ').map(str::to_owned));
            let mut add = |args: String| server.args.extend(args.split(' ').map(str::to_owned));
            if index > 0 {
                add(format!("--replicaof 127.0.0.1 {}", set.announced(0)));
            }
            if server.tls.is_some() {
                add("--tls-replication yes".to_owned());
            }
            if set.options.behind_proxies {
                let proxy = Proxy::start(0).await;
                add(format!(
                    "--replica-announce-ip 127.0.0.1 --replica-announce-port {}",
                    proxy.port()
                ));
                set.proxies.push(proxy);
            }
            set.servers.push(RedisServer::start(server).await);
            if let Some(proxy) = set.proxies.get(index) {
                proxy.move_to(set.servers[index].port());
            }
        }
        for _ in 0..set.options.sentinels {
            set.launch();
        }
        join_all(set.sentinels.iter().map(RedisServer::answers)).await;
        set.settled().await;
        set
    }

    /// Starts one more sentinel; returns when all know it.
    pub async fn add_sentinel(&mut self) -> usize {
        self.launch();
        let last = self.sentinels.len() - 1;
        self.sentinels[last].answers().await;
        self.settled().await;
        last
    }

    fn launch(&mut self) {
        let (user, password) = WATCHER;
        let port = self.announced(0);
        let (down, limit) = (self.options.down_after.as_millis(), 5000);
        let mut lines = vec![
            format!("sentinel monitor {MASTER} 127.0.0.1 {port} 2"),
            format!("sentinel down-after-milliseconds {MASTER} {down}"),
            format!("sentinel failover-timeout {MASTER} {limit}"),
            format!("sentinel auth-user {MASTER} {user}"),
            format!("sentinel auth-pass {MASTER} {password}"),
        ];
        lines.extend(self.options.lines.iter().cloned());
        let sentinel = Some(lines.join("\n"));
        let mut options = RedisOptions { sentinel, ..self.options.sentinel.clone() };
        if options.tls.is_some() {
            options.args.extend(["--tls-replication", "yes"].map(str::to_owned));
        }
        self.sentinels.push(RedisServer::launch(options, Port::free()));
    }

    /// Waits until every sentinel that runs knows all others and all replicas.
    pub async fn settled(&self) {
        let running: Vec<_> = self.sentinels.iter().filter(|one| one.is_running()).collect();
        for sentinel in &running {
            attempt(SETTLE, "the sentinels agree", async || {
                let answer: RedisResult<String> = sentinel.command(&["INFO", "sentinel"]).await;
                let info = answer.map_err(|error| error.to_string())?;
                let expected = format!(
                    "status=ok,address=127.0.0.1:{},slaves={},sentinels={}",
                    self.announced(self.named_by(sentinel).await.unwrap_or(0)),
                    self.servers.len() - 1,
                    running.len()
                );
                if info.contains(&expected) { Ok(()) } else { Err(info) }
            })
            .await;
        }
        // A failover that was asked for may begin now: who is the master is looked at each time.
        until(SETTLE, "the replicas are in sync", async || {
            let master = self.master().await;
            for (_, replica) in self.servers.iter().enumerate().filter(|(at, _)| *at != master) {
                let link = replica.info("replication", "master_link_status").await;
                if link.as_deref() != Some("up") {
                    return false;
                }
            }
            true
        })
        .await;
    }

    /// The URLs of all sentinels.
    pub fn urls(&self) -> Vec<String> {
        let url = if self.options.sentinel.tls.is_some() {
            RedisServer::tls_url
        } else {
            RedisServer::url
        };
        self.sentinels.iter().map(url).collect()
    }

    /// The port that a server announces.
    pub fn announced(&self, index: usize) -> u16 {
        let server = &self.servers[index];
        match self.proxies.get(index) {
            Some(proxy) => proxy.port(),
            None if self.options.server.tls.is_some() => server.tls_port(),
            None => server.port(),
        }
    }

    /// The proxy that a server announces.
    pub fn proxy(&self, index: usize) -> &Proxy {
        &self.proxies[index]
    }

    /// A server.
    pub fn server(&self, index: usize) -> &RedisServer {
        &self.servers[index]
    }

    /// All servers.
    pub fn servers(&self) -> &[RedisServer] {
        &self.servers
    }

    /// A sentinel.
    pub fn sentinel(&self, index: usize) -> &RedisServer {
        &self.sentinels[index]
    }

    /// All sentinels.
    pub fn sentinels(&self) -> &[RedisServer] {
        &self.sentinels
    }

    /// The server that a sentinel names as the master, if it answers and names one of them.
    pub async fn named_by(&self, sentinel: &RedisServer) -> Option<usize> {
        let question = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER];
        let (_, port): (String, u16) = sentinel.command(&question).await.ok()?;
        (0..self.servers.len()).find(|index| self.announced(*index) == port)
    }

    /// The server that the first sentinel that answers names as the master.
    pub async fn master(&self) -> usize {
        for sentinel in self.sentinels.iter().filter(|sentinel| sentinel.is_running()) {
            if let Some(master) = self.named_by(sentinel).await {
                return master;
            }
        }
        panic!("no sentinel names a master")
    }

    /// Waits until a sentinel names another master than this server, which says that it is one;
    /// returns it.
    pub async fn taken_over(&self, from: usize) -> usize {
        super::wait::eventually(SETTLE, "another server is the master", async || {
            for sentinel in self.sentinels.iter().filter(|sentinel| sentinel.is_running()) {
                if let Some(master) = self.named_by(sentinel).await.filter(|to| *to != from)
                    && self.is_master(master).await
                {
                    return Some(master);
                }
            }
            None
        })
        .await
    }

    /// True if the server says that it is a master.
    pub async fn is_master(&self, index: usize) -> bool {
        self.servers[index].info("replication", "role").await.as_deref() == Some("master")
    }

    /// Fails over by command; returns the new master when a sentinel names it.
    pub async fn fail_over(&self) -> usize {
        let from = self.master().await;
        attempt(SETTLE, "the sentinels take the command", async || {
            let answer: RedisResult<String> =
                self.sentinels[0].command(&["SENTINEL", "FAILOVER", MASTER]).await;
            answer.map_err(|error| error.to_string())
        })
        .await;
        self.taken_over(from).await
    }

    /// Cuts a server off from all sentinels, and from nobody else.
    pub async fn hide(&self, index: usize) {
        let server = &self.servers[index];
        server.cli(&["ACL", "SETUSER", WATCHER.0, "off"]).await;
        server.cli(&["CLIENT", "KILL", "USER", WATCHER.0]).await;
    }

    /// Ends what [`SentinelSet::hide`] began.
    pub async fn show(&self, index: usize) {
        self.servers[index].cli(&["ACL", "SETUSER", WATCHER.0, "on"]).await;
    }
}
