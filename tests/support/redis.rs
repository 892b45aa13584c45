//! A real Redis server for one test, which the test can kill, freeze and restart.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ::redis::{AsyncConnectionConfig, Client, FromRedisValue, RedisResult, Value, cmd};
use parking_lot::Mutex;
use tempfile::TempDir;

use super::{
    folder,
    ports::Port,
    process::{Process, Program},
    tools,
    wait::{LIMIT, attempt, until},
};

/// How long a server may take to answer PING after its start.
const START: Duration = Duration::from_secs(10);

/// How long a command of the harness may take: a frozen server must not freeze the test.
const COMMAND: Duration = Duration::from_secs(5);

/// How a server is started. The default: no persistence, no limit on memory, no password, TCP only.
#[derive(Clone, Debug, Default)]
pub struct RedisOptions {
    /// Writes every change to disk, so that a killed server restarts with its data.
    pub append_only: bool,
    /// The memory limit and the eviction policy: `("8mb", "allkeys-lru")`.
    pub max_memory: Option<(String, String)>,
    /// Password of the default user.
    pub password: Option<String>,
    /// Listens on a Unix socket too.
    pub unix_socket: bool,
    /// Listens with TLS too, on its own port; the servers of a cluster then use TLS among
    /// themselves.
    pub tls: Option<TlsFiles>,
    /// Runs as a sentinel, with a file of these lines, to which it adds what it learns.
    pub sentinel: Option<String>,
    /// Further arguments of `redis-server`; they take precedence over those of the harness.
    pub args: Vec<String>,
}

/// A folder with `server.pem`, `server.key` and `ca.pem`.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The folder.
    pub folder: PathBuf,
    /// True if clients need a certificate of that authority.
    pub asks_clients: bool,
}

/// The data of a restarted server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// Its files. Without `append_only` there are none.
    Kept,
    /// None: it lost its disk. A node of a cluster keeps its identity in the cluster.
    Wiped,
}

/// A running server on loopback. Dropping it kills it and removes its folder.
#[derive(Debug)]
pub struct RedisServer {
    options: RedisOptions,
    // None while it is down.
    process: Mutex<Option<Arc<Process>>>,
    port: Port,
    tls_port: Option<Port>,
    folder: TempDir,
}

impl RedisServer {
    /// Starts a server on a free port, and returns when it answers.
    ///
    /// The binary is `redis-server`, or what `TRUNKLINE_TEST_REDIS_SERVER` names.
    pub async fn start(options: RedisOptions) -> RedisServer {
        let server = RedisServer::launch(options, Port::free());
        server.answers().await;
        server
    }

    /// Starts a server and its replica, and returns when the replica is in sync.
    pub async fn with_replica() -> (RedisServer, RedisServer) {
        let master = RedisServer::start(RedisOptions::default()).await;
        let port = master.port().to_string();
        let args = ["--replicaof", "127.0.0.1", &port].map(str::to_owned).to_vec();
        let replica = RedisServer::start(RedisOptions { args, ..RedisOptions::default() }).await;
        until(LIMIT, "the replica is in sync", async || {
            replica.info("replication", "master_link_status").await.as_deref() == Some("up")
        })
        .await;
        (master, replica)
    }

    /// Starts a server on `port` without waiting for it.
    pub(super) fn launch(options: RedisOptions, port: Port) -> RedisServer {
        let tls_port = options.tls.is_some().then(Port::free);
        let process = Mutex::new(None);
        let server = RedisServer { options, process, port, tls_port, folder: folder::new() };
        server.run();
        server
    }

    /// Waits until the server answers PING, its data loaded.
    ///
    /// # Panics
    ///
    /// After 10 s.
    pub async fn answers(&self) {
        let what = format!("an answer from the redis server on port {}", self.port());
        attempt(START, &what, async || {
            if let Some(status) = self.process.lock().as_ref().and_then(|process| process.ended()) {
                panic!("the redis server on port {} has ended: {status}", self.port());
            }
            self.command::<String>(&["PING"]).await.map_err(|error| error.to_string())
        })
        .await;
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Its process id.
    ///
    /// # Panics
    ///
    /// If it is down.
    pub fn pid(&self) -> u32 {
        self.process.lock().as_ref().expect("the server is down").pid()
    }

    /// True if its process runs or is frozen.
    pub fn is_running(&self) -> bool {
        self.process.lock().as_ref().is_some_and(|process| process.ended().is_none())
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its URL, the password included.
    pub fn url(&self) -> String {
        let password = self.options.password.as_ref();
        let user = password.map(|password| format!(":{password}@")).unwrap_or_default();
        format!("redis://{user}127.0.0.1:{}", self.port())
    }

    /// Its URL with TLS; needs `RedisOptions::tls`.
    ///
    /// # Panics
    ///
    /// If it does not listen with TLS.
    pub fn tls_url(&self) -> String {
        format!("rediss://127.0.0.1:{}", self.tls_port())
    }

    /// Its port with TLS; needs `RedisOptions::tls`.
    ///
    /// # Panics
    ///
    /// If it does not listen with TLS.
    pub fn tls_port(&self) -> u16 {
        self.tls_port.as_ref().expect("it listens with TLS").number()
    }

    /// Its URL by Unix socket, the password included; needs `RedisOptions::unix_socket`.
    pub fn unix_url(&self) -> String {
        let password = self.options.password.as_ref();
        let query = password.map(|password| format!("?pass={password}")).unwrap_or_default();
        format!("unix://{}{query}", self.socket())
    }

    /// Kills it with SIGKILL, and returns when it has ended.
    pub fn kill_9(&self) {
        let process = self.process.lock().take();
        if let Some(process) = process {
            process.kill_9();
        }
    }

    /// Restarts it on its port, and returns when it answers. Kills it first if it runs.
    pub async fn restart(&self, data: Data) {
        self.kill_9();
        if data == Data::Wiped {
            self.wipe();
        }
        self.run();
        self.answers().await;
    }

    /// Restarts it with its files on another port, and returns when it answers.
    pub(super) async fn move_to(&mut self, port: Port) {
        self.kill_9();
        self.port = port;
        self.run();
        self.answers().await;
    }

    /// Freezes it with SIGSTOP, and returns when it has stopped: its connections stay open, and
    /// nothing answers.
    pub async fn pause(&self) {
        let process = self.process.lock().clone();
        process.expect("the server is down").pause().await;
    }

    /// Continues it after `pause`.
    pub fn resume(&self) {
        self.process.lock().as_ref().expect("the server is down").resume();
    }

    /// Runs one command on a new connection.
    pub async fn command<T: FromRedisValue>(&self, args: &[&str]) -> RedisResult<T> {
        command(&self.url(), args).await
    }

    /// Runs one command; returns the answer as text, a line for each element, like `redis-cli`.
    ///
    /// # Panics
    ///
    /// If the server answers with an error, or not at all.
    pub async fn cli(&self, args: &[&str]) -> String {
        cli(&self.url(), args).await
    }

    /// A field of INFO, such as `("replication", "master_link_status")`. None: there is no such
    /// field, or no answer.
    pub async fn info(&self, section: &str, field: &str) -> Option<String> {
        let text: String = self.command(&["INFO", section]).await.ok()?;
        let value =
            |line: &str| Some(line.strip_prefix(field)?.strip_prefix(':')?.trim().to_owned());
        text.lines().find_map(value)
    }

    /// How often it has executed a command, such as `xrange`.
    pub async fn calls(&self, command: &str) -> u64 {
        let calls = self.command_stat(command, "calls").await;
        calls.map_or(0, |calls| calls.parse().expect("the calls"))
    }

    /// What it counts of a command, by its name in INFO: calls, usec. None: it has executed none.
    pub async fn command_stat(&self, command: &str, name: &str) -> Option<String> {
        let stats = self.info("commandstats", &format!("cmdstat_{command}")).await?;
        let value = |part: &str| Some(part.strip_prefix(name)?.strip_prefix('=')?.to_owned());
        stats.split(',').find_map(value)
    }

    /// Its connections, except the one that asks.
    pub async fn clients(&self) -> Vec<ConnectedClient> {
        clients(&self.url()).await
    }

    fn socket(&self) -> String {
        self.folder.path().join("redis.sock").display().to_string()
    }

    fn run(&self) {
        let name = format!("redis server on port {}", self.port());
        let process = Process::start(&name, Program::new(tools::redis_server(), self.args()));
        *self.process.lock() = Some(Arc::new(process));
    }

    fn args(&self) -> Vec<String> {
        let port = self.port().to_string();
        let folder = self.folder.path().display().to_string();
        let append_only = if self.options.append_only { "yes" } else { "no" };
        let mut args = Vec::new();
        if let Some(lines) = &self.options.sentinel {
            let file = self.folder.path().join("sentinel.conf");
            if !file.exists() {
                fs::write(&file, lines).expect("a file");
            }
            args.extend([file.display().to_string(), "--sentinel".to_owned()]);
        }
        let common = [
            ("--bind", "127.0.0.1"),
            ("--port", &port),
            ("--dir", &folder),
            ("--save", ""),
            ("--appendonly", append_only),
            // A new replica is synchronised at once, not after five seconds.
            ("--repl-diskless-sync-delay", "0"),
        ];
        args.extend(common.iter().flat_map(|(name, value)| [*name, *value]).map(str::to_owned));
        let mut add = |name: &str, value: &str| args.extend([name.to_owned(), value.to_owned()]);
        if let Some((limit, policy)) = &self.options.max_memory {
            add("--maxmemory", limit);
            add("--maxmemory-policy", policy);
        }
        if let Some(password) = &self.options.password {
            add("--requirepass", password);
            add("--masterauth", password);
        }
        if self.options.unix_socket {
            add("--unixsocket", &self.socket());
        }
        if let (Some(tls), Some(port)) = (&self.options.tls, &self.tls_port) {
            let file = |name: &str| tls.folder.join(name).display().to_string();
            add("--tls-port", &port.number().to_string());
            add("--tls-cert-file", &file("server.pem"));
            add("--tls-key-file", &file("server.key"));
            add("--tls-ca-cert-file", &file("ca.pem"));
            add("--tls-auth-clients", if tls.asks_clients { "yes" } else { "no" });
        }
        args.extend(self.options.args.iter().cloned());
        args
    }

    fn wipe(&self) {
        for entry in fs::read_dir(self.folder.path()).expect("the server's folder").flatten() {
            let path = entry.path();
            if entry.file_name() == "nodes.conf" {
                continue;
            }
            let removed =
                if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            removed.expect("the server's files are ours");
        }
    }
}

/// A line of CLIENT LIST.
#[derive(Clone, Debug)]
pub struct ConnectedClient {
    /// The line.
    pub line: String,
}

impl ConnectedClient {
    /// A field: `id`, `addr`, `name`, `sub`, `psub`, `ssub`, `cmd`, `flags`, `resp`; empty if this
    /// server has no such field.
    pub fn field(&self, name: &str) -> &str {
        let mut fields = self.line.split(' ').filter_map(|pair| pair.split_once('='));
        fields.find(|(key, _)| *key == name).map_or("", |(_, value)| value)
    }

    /// True if it is subscribed to channels: plain, by pattern or sharded.
    pub fn is_subscriber(&self) -> bool {
        ["sub", "psub", "ssub"].iter().any(|name| !matches!(self.field(name), "" | "0"))
    }

    /// True if it links a replica with its master.
    pub fn is_replication(&self) -> bool {
        self.field("flags").contains(['S', 'M'])
    }
}

/// The connections of the server at `url`, except the one that asks.
pub async fn clients(url: &str) -> Vec<ConnectedClient> {
    let mut connection = connect(url).await.expect("a connection to the redis server");
    let mut ask = async |args: [&str; 2]| -> RedisResult<String> {
        cmd(args[0]).arg(args[1]).query_async(&mut connection).await
    };
    let own = ask(["CLIENT", "ID"]).await.expect("CLIENT ID");
    let list = ask(["CLIENT", "LIST"]).await.expect("CLIENT LIST");
    list.lines()
        .map(|line| ConnectedClient { line: line.to_owned() })
        .filter(|client| client.field("id") != own)
        .collect()
}

/// Runs one command on a new connection to the server at `url`.
pub async fn command<T: FromRedisValue>(url: &str, args: &[&str]) -> RedisResult<T> {
    let mut connection = connect(url).await?;
    cmd(args[0]).arg(&args[1..]).query_async(&mut connection).await
}

/// Like `RedisServer::cli`, for the server at `url`.
pub async fn cli(url: &str, args: &[&str]) -> String {
    let answer: RedisResult<Value> = command(url, args).await;
    text(&answer.unwrap_or_else(|error| panic!("{args:?}: {error}")))
}

async fn connect(url: &str) -> RedisResult<::redis::aio::MultiplexedConnection> {
    let limits = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(COMMAND))
        .set_response_timeout(Some(COMMAND));
    Client::open(url)?.get_multiplexed_async_connection_with_config(&limits).await
}

fn text(value: &Value) -> String {
    match value {
        Value::Nil => String::new(),
        Value::Okay => "OK".to_owned(),
        Value::Int(number) => number.to_string(),
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(string) => string.clone(),
        Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join("\n"),
        other => format!("{other:?}"),
    }
}
