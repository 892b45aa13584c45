//! Connections to one Redis server.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use deadpool_redis::{Hook, HookError, Manager, Pool, PoolError, Runtime};
use futures_util::future::BoxFuture;
use parking_lot::RwLock;
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, ErrorKind, RedisError, RedisResult,
    aio::MultiplexedConnection,
};
use tokio::sync::{Mutex, watch};

use super::{
    addresses::Way,
    causes::{self, About, error_text},
    credentials::Contents,
    logins::Logins,
    names::ShardNames,
    replicas::Replicas,
    resolver::{Name, Resolver},
    rights::{self, Refusals},
    settings::Settings,
    size,
};
use crate::throttle::Throttle;

/// The time limit for opening a connection.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The time limit for the answer to whether a server is a replica.
const ROLE_TIMEOUT: Duration = Duration::from_millis(500);

static UNREADABLE: Throttle = Throttle::repeated();

/// One Redis server, and the connections to it that are not subscriptions.
pub(super) struct Server {
    /// `host:port` as it was announced or configured, or the path of a socket.
    pub address: String,
    /// What its errors are explained with.
    pub about: About,
    settings: Settings,
    /// How it is connected to: as the files of secrets and certificates were when a connection was
    /// opened last.
    access: RwLock<Access>,
    /// True if the pool has connections beside the command connection.
    pool_is_shared: bool,
    /// The connection that all writers of this server share. A checkout from the pool costs a round
    /// trip of its own, so it is checked out once and kept until it fails.
    command: Mutex<Option<Command>>,
    /// Its name, unless it is reached by an IP address.
    name: Option<Name>,
    resolver: Resolver,
    /// The bytes of the largest frame that it takes; 0: all that there can be.
    max_frame_bytes: AtomicUsize,
    /// When all connections were closed last. Those that are older are not used any more.
    closed: watch::Sender<Instant>,
    /// Since when it refuses what is written, for want of replicas.
    lacks_replicas: parking_lot::Mutex<Option<Instant>>,
}

/// How a server is connected to.
#[derive(Clone)]
struct Access {
    /// What was read of files; None before the first time.
    contents: Option<Contents>,
    info: ConnectionInfo,
    pool: Pool,
}

/// A connection for commands.
#[derive(Clone)]
pub(super) struct Command {
    pub connection: MultiplexedConnection,
    /// How replicas are waited for, where appends need some.
    pub replicas: Option<Arc<Replicas>>,
    /// Keeps the connection checked out of the pool.
    checkout: Arc<deadpool_redis::Connection>,
}

/// Reason why there is no connection. Nothing was sent.
#[derive(Clone, Debug, thiserror::Error)]
#[error("no connection to Redis at {address}: {why}")]
pub(super) struct ConnectError {
    address: String,
    why: String,
}

impl Server {
    /// A server of the configuration.
    pub(super) fn new(info: ConnectionInfo, settings: &Settings) -> RedisResult<Server> {
        let announced = info.addr().to_string();
        Server::by(Way { announced, info, resolver: Resolver::of_system() }, settings)
    }

    /// A server that another one named.
    pub(super) fn named(host: &str, port: u16, settings: &Settings) -> RedisResult<Server> {
        Server::by(settings.addresses.way(&settings.template, host, port), settings)
    }

    pub(super) fn by(way: Way, settings: &Settings) -> RedisResult<Server> {
        let Way { announced: address, info, resolver } = way;
        let (closed, _) = watch::channel(Instant::now());
        let pool = make_pool(&info, settings, &resolver, &closed)?;
        Ok(Server {
            about: settings.about(&info, &address),
            address,
            name: Name::of(info.addr(), resolver.clone()),
            settings: settings.clone(),
            access: RwLock::new(Access { contents: None, info, pool }),
            resolver,
            max_frame_bytes: AtomicUsize::new(0),
            closed,
            lacks_replicas: parking_lot::Mutex::default(),
            pool_is_shared: settings.pool.max_connections > 1,
            command: Mutex::new(None),
        })
    }

    /// How it is connected to now. Reads the files of certificates again; the error is that there
    /// is no login.
    pub(super) async fn info(&self) -> RedisResult<ConnectionInfo> {
        let info = self.with_files().await;
        let Some(logins) = &self.settings.credentials.logins else { return Ok(info) };
        let no_login = |why| (ErrorKind::InvalidClientConfig, "no login", why);
        let login = logins.login().await.map_err(no_login)?;
        let redis = info.redis_settings().clone();
        let redis = redis.set_username(login.username).set_password(login.secret);
        Ok(info.set_redis_settings(redis))
    }

    /// The settings of a connection to it.
    pub(super) fn config(&self) -> AsyncConnectionConfig {
        config(&self.settings, &self.resolver)
    }

    /// Waits until connections have another login than those that are made now.
    pub(super) fn login_changed(&self) -> impl Future<Output = ()> + Send + use<> {
        let changes = self.settings.credentials.logins.as_ref().map(Logins::changes);
        async move {
            match changes {
                Some(changes) => changes.await,
                None => std::future::pending().await,
            }
        }
    }

    async fn with_files(&self) -> ConnectionInfo {
        let known = self.access.read().clone();
        if !self.settings.credentials.has_files() {
            return known.info;
        }
        let credentials = self.settings.credentials.clone();
        // Reading may block, on a network file system for instance.
        let read = tokio::task::spawn_blocking(move || credentials.read()).await;
        let contents = match read {
            Ok(Ok(contents)) => contents,
            Ok(Err(why)) => return self.not_renewed(known, &why.to_string()),
            Err(_) => return known.info,
        };
        if known.contents.as_ref() == Some(&contents) {
            return known.info;
        }
        let renewed = contents.apply(known.info.clone()).and_then(|info| {
            let pool = make_pool(&info, &self.settings, &self.resolver, &self.closed)?;
            Ok(Access { contents: Some(contents), info, pool })
        });
        match renewed {
            Ok(renewed) => {
                if known.contents.is_some() {
                    tracing::info!(server = self.address, "a file of coordinator has changed");
                }
                let info = renewed.info.clone();
                *self.access.write() = renewed;
                info
            }
            Err(error) => self.not_renewed(known, &error_text(&error)),
        }
    }

    /// A file cannot be used: it may be being replaced.
    fn not_renewed(&self, known: Access, why: &str) -> ConnectionInfo {
        if let Some(left_out) = UNREADABLE.pass() {
            tracing::warn!(server = self.address, why, left_out, "what was read before is used");
        }
        known.info
    }

    /// A connection of the pool.
    async fn checkout(&self) -> Result<deadpool_redis::Connection, ConnectError> {
        if self.access.read().pool.status().available == 0
            && let Err(error) = self.info().await
        {
            return Err(self.error(error_text(&error)));
        }
        let pool = self.access.read().pool.clone();
        match pool.get().await {
            Ok(connection) => Ok(connection),
            Err(PoolError::Backend(error)) => Err(self.not_connected(&error).await),
            Err(PoolError::Timeout(_)) => Err(self.error("no connection of the pool in time")),
            Err(error) => Err(self.error(error)),
        }
    }

    /// The error of a connection that could not be opened, with what the server itself says of it.
    async fn not_connected(&self, error: &RedisError) -> ConnectError {
        if let Some(logins) = &self.settings.credentials.logins
            && (error.kind() == ErrorKind::AuthenticationFailed
                || matches!(error.code(), Some("WRONGPASS" | "NOAUTH")))
        {
            logins.refused();
        }
        let said = if error.code().is_none() { self.look().await } else { None };
        self.error(said.unwrap_or_else(|| error_text(error)))
    }

    /// What it says to a connection that says nothing.
    pub(super) async fn look(&self) -> Option<String> {
        let address = self.access.read().info.addr().clone();
        causes::look(&address, &self.resolver).await
    }

    fn close_idle(&self) {
        self.access.read().pool.retain(|_, _| false);
    }

    /// Tries the user's rights on the names of a shard; None: those to a transaction alone.
    pub(super) async fn try_rights(
        &self,
        names: Option<&ShardNames>,
    ) -> Result<Refusals, ConnectError> {
        // A connection of its own: nothing else may come between the commands of a transaction.
        let mut connection = self.connect_alone().await?;
        let tried = match names {
            Some(names) => rights::try_on(&mut connection, &self.settings, names).await,
            None => rights::try_transaction(&mut connection).await,
        };
        tried.map_err(|error: RedisError| self.error(error_text(&error)))
    }

    /// The connection that all writers share; opened if there is none.
    pub(super) async fn command(&self) -> Result<Command, ConnectError> {
        let mut slot = self.command.lock().await;
        if let Some(command) = &*slot {
            return Ok(command.clone());
        }
        let trial = if size::may_exceed(self.settings.max_event_bytes) {
            size::TIMEOUT
        } else {
            Duration::ZERO
        };
        // What the server says if the connection fails takes a moment more.
        let limit = 2 * CONNECT_TIMEOUT + trial;
        let made = tokio::time::timeout(limit, self.connect_command()).await;
        let command = made.map_err(|_| self.error("not connected in time"))??;
        *slot = Some(command.clone());
        Ok(command)
    }

    async fn connect_command(&self) -> Result<Command, ConnectError> {
        if size::may_exceed(self.settings.max_event_bytes) {
            // On every new connection, since the server may have closed the last one for it.
            let limit = self.largest_frame().await?;
            let limit = limit.unwrap_or(0);
            if self.max_frame_bytes.swap(limit, Ordering::Relaxed) != limit && limit > 0 {
                tracing::warn!(
                    server = self.address,
                    limit,
                    "events of more bytes are refused, although limits.maxEventBytes allows them: \
                     see the server's proto-max-bulk-len and client-query-buffer-limit"
                );
            }
        }
        let checkout = self.checkout().await?;
        let mut connection = (*checkout).clone();
        let needed = self.settings.min_replicas;
        let replicas =
            if needed > 0 { Some(self.replicas(&mut connection, needed).await?) } else { None };
        Ok(Command { connection, replicas, checkout: Arc::new(checkout) })
    }

    async fn replicas(
        &self,
        appends: &mut MultiplexedConnection,
        needed: u32,
    ) -> Result<Arc<Replicas>, ConnectError> {
        let other = self.connect_alone().await?;
        let beside = Replicas::beside(appends, other, needed).await;
        match beside.map_err(|error| self.error(error_text(&error)))? {
            Some(replicas) => Ok(Arc::new(replicas)),
            None => Err(self.error("two connections lead to different processes")),
        }
    }

    /// Closes a command connection that failed, unless a new one has replaced it already.
    pub(super) async fn discard(&self, failed: &Command) {
        let mut slot = self.command.lock().await;
        if slot.as_ref().is_some_and(|kept| Arc::ptr_eq(&kept.checkout, &failed.checkout)) {
            *slot = None;
            // Idle connections lead to the same server process, which may be gone.
            self.close_idle();
        }
    }

    /// True if the server's name no longer has an address that open connections may have.
    pub(super) async fn has_moved(&self) -> bool {
        match &self.name {
            Some(name) => name.lost_an_address().await,
            None => false,
        }
    }

    /// A call was answered, with an error or without one.
    pub(super) fn answered(&self, error: Option<&str>) {
        let lacks = error.is_some_and(|error| error.contains("NOREPLICAS"));
        let mut since = self.lacks_replicas.lock();
        *since = lacks.then(|| since.unwrap_or_else(Instant::now));
    }

    /// True if it has refused everything for so long for want of replicas: another one may be the
    /// master now. Then the time begins anew.
    pub(super) fn has_lacked_replicas(&self, time: Duration) -> bool {
        let mut since = self.lacks_replicas.lock();
        let has = since.is_some_and(|since| since.elapsed() >= time);
        if has {
            *since = None;
        }
        has
    }

    /// True if the command connection leads to a replica. False if there is none.
    pub(super) async fn is_replica(&self) -> bool {
        let Some(mut command) = self.command.lock().await.clone() else { return false };
        let asked = replication(&mut command);
        let answer = tokio::time::timeout(ROLE_TIMEOUT, asked).await;
        answer.is_ok_and(|info| info.is_ok_and(|info| info.contains("role:slave")))
    }

    /// Asks the server whether it is a master. The error says what it is instead.
    pub(super) async fn is_master(&self) -> Result<(), String> {
        let mut command = self.command().await.map_err(|error| error.to_string())?;
        let info = replication(&mut command).await.map_err(|error| self.explain(&error))?;
        match info.lines().find_map(|line| line.trim_end().strip_prefix("role:")) {
            Some("master") => Ok(()),
            Some("slave") => Err("it is a replica".to_owned()),
            _ => Err("it does not say that it is a master".to_owned()),
        }
    }

    /// Closes all connections: the next ones may lead to another server.
    pub(super) async fn close_connections(&self) {
        let mut slot = self.command.lock().await;
        self.closed.send_replace(Instant::now());
        *slot = None;
        self.close_idle();
    }

    /// Ends all that is under way, and closes idle connections. Those in use are closed by those
    /// who use them.
    pub(super) fn leave(&self) {
        self.closed.send_replace(Instant::now());
        self.close_idle();
    }

    /// What `work` on a connection comes to, unless all connections are closed meanwhile: the
    /// server may be frozen, and never answer.
    pub(super) async fn unless_closed<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut closings = self.closings();
        tokio::select! {
            biased;
            done = work => Some(done),
            _ = closings.changed() => None,
        }
    }

    /// Changes when all connections are to be closed.
    pub(super) fn closings(&self) -> watch::Receiver<Instant> {
        self.closed.subscribe()
    }

    /// A connection for a long query: one of its own if the pool has one, else the writers'.
    pub(super) async fn query(&self) -> Result<Query, ConnectError> {
        if self.pool_is_shared {
            Ok(Query::Pooled(self.checkout().await?))
        } else {
            Ok(Query::Command(self.command().await?))
        }
    }

    /// The bytes of the largest frame that it takes, if they are limited.
    pub(super) fn max_frame_bytes(&self) -> Option<usize> {
        Some(self.max_frame_bytes.load(Ordering::Relaxed)).filter(|limit| *limit > 0)
    }

    /// Tries how large a frame the server takes: the bytes, or None if it takes every one.
    pub(super) async fn largest_frame(&self) -> Result<Option<usize>, ConnectError> {
        let connect = || Box::pin(self.connect_alone()) as BoxFuture<'_, _>;
        size::largest(self.settings.max_event_bytes, connect).await
    }

    /// A connection of its own, outside the pool.
    async fn connect_alone(&self) -> Result<MultiplexedConnection, ConnectError> {
        let config = self.config();
        let connect = async {
            self.client().await?.get_multiplexed_async_connection_with_config(&config).await
        };
        match connect.await {
            Ok(connection) => Ok(connection),
            Err(error) => Err(self.not_connected(&error).await),
        }
    }

    /// A client for a connection outside the pool: a subscription.
    pub(super) async fn client(&self) -> RedisResult<Client> {
        Client::open(self.info().await?)
    }

    /// An error of the server, with its cause and cure.
    pub(super) fn explain(&self, error: &RedisError) -> String {
        self.about.explain(&error_text(error))
    }

    /// The error of a connection that was not opened in time.
    pub(super) fn slow(&self) -> ConnectError {
        self.error("no connection in time")
    }

    fn error(&self, why: impl fmt::Display) -> ConnectError {
        let why = self.about.explain(&why.to_string());
        ConnectError { address: self.shown(), why }
    }

    /// Its address, and where it is reached if that is another one.
    pub(super) fn shown(&self) -> String {
        let reached = self.access.read().info.addr().to_string();
        if reached == self.address {
            reached
        } else {
            format!("{} (reached at {reached})", self.address)
        }
    }
}

async fn replication(command: &mut Command) -> RedisResult<String> {
    redis::cmd("INFO").arg("replication").query_async(&mut command.connection).await
}

fn config(settings: &Settings, resolver: &Resolver) -> AsyncConnectionConfig {
    let config = AsyncConnectionConfig::new()
        .set_dns_resolver(resolver.clone())
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(settings.response_timeout));
    match &settings.credentials.logins {
        Some(logins) => config.set_credentials_provider(logins.clone()),
        None => config,
    }
}

fn make_pool(
    info: &ConnectionInfo,
    settings: &Settings,
    resolver: &Resolver,
    closed: &watch::Sender<Instant>,
) -> RedisResult<Pool> {
    let last_closed = closed.subscribe();
    Pool::builder(Manager::new_with_config(info.clone(), config(settings, resolver))?)
        .max_size(settings.pool.max_connections)
        .create_timeout(settings.pool.timeout_create)
        .wait_timeout(settings.pool.timeout_wait)
        .recycle_timeout(settings.pool.timeout_recycle)
        // A connection that was in use when all were closed comes back to the pool.
        .pre_recycle(Hook::sync_fn(move |_, metrics| {
            if metrics.created < *last_closed.borrow() {
                return Err(HookError::message("it may lead to another server"));
            }
            Ok(())
        }))
        .runtime(Runtime::Tokio1)
        .build()
        .map_err(|error| {
            RedisError::from((ErrorKind::InvalidClientConfig, "connection pool", error.to_string()))
        })
}

/// A connection from [`Server::query`].
pub(super) enum Query {
    Pooled(deadpool_redis::Connection),
    Command(Command),
}

impl Query {
    pub(super) fn connection(&mut self) -> &mut MultiplexedConnection {
        match self {
            Query::Pooled(connection) => connection,
            Query::Command(command) => &mut command.connection,
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the connection info: it holds the password.
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}
