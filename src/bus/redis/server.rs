//! Connections to one Redis server.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use deadpool_redis::{Hook, HookError, Manager, Pool, Runtime};
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, RedisError, RedisResult,
    aio::MultiplexedConnection,
};
use tokio::sync::{Mutex, watch};

use super::{
    resolver::{Name, Resolver},
    settings::Settings,
};

/// The time limit for opening a connection.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The time limit for the answer to whether a server is a replica.
const ROLE_TIMEOUT: Duration = Duration::from_millis(500);

/// One Redis server, and the connections to it that are not subscriptions.
pub(super) struct Server {
    /// `host:port`, or the path of a socket.
    pub address: String,
    pub info: ConnectionInfo,
    pool: Pool,
    /// True if the pool has connections beside the command connection.
    pool_is_shared: bool,
    /// The connection that all writers of this server share. A checkout from the pool costs a round
    /// trip of its own, so it is checked out once and kept until it fails.
    command: Mutex<Option<Command>>,
    /// Its name, unless it is reached by an IP address.
    name: Option<Name>,
    resolver: Resolver,
    /// When all connections were closed last. Those that are older are not used any more.
    closed: watch::Sender<Instant>,
}

/// A connection for commands.
#[derive(Clone)]
pub(super) struct Command {
    pub connection: MultiplexedConnection,
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
    pub(super) fn new(info: ConnectionInfo, settings: &Settings) -> RedisResult<Server> {
        Server::with_resolver(info, settings, Resolver::of_system())
    }

    pub(super) fn with_resolver(
        info: ConnectionInfo,
        settings: &Settings,
        resolver: Resolver,
    ) -> RedisResult<Server> {
        let (closed, last_closed) = watch::channel(Instant::now());
        let config = AsyncConnectionConfig::new()
            .set_dns_resolver(resolver.clone())
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(settings.response_timeout));
        let pool = Pool::builder(Manager::new_with_config(info.clone(), config)?)
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
                RedisError::from((
                    redis::ErrorKind::InvalidClientConfig,
                    "connection pool",
                    error.to_string(),
                ))
            })?;
        Ok(Server {
            address: info.addr().to_string(),
            name: Name::of(info.addr(), resolver.clone()),
            info,
            resolver,
            closed,
            pool,
            pool_is_shared: settings.pool.max_connections > 1,
            command: Mutex::new(None),
        })
    }

    /// The connection that all writers share; opened if there is none.
    pub(super) async fn command(&self) -> Result<Command, ConnectError> {
        let mut slot = self.command.lock().await;
        if let Some(command) = &*slot {
            return Ok(command.clone());
        }
        let made = tokio::time::timeout(CONNECT_TIMEOUT, self.connect_command()).await;
        let command = made.map_err(|_| self.error("not connected in time"))??;
        *slot = Some(command.clone());
        Ok(command)
    }

    async fn connect_command(&self) -> Result<Command, ConnectError> {
        let checkout = self.pool.get().await.map_err(|error| self.error(error))?;
        let connection = (*checkout).clone();
        Ok(Command { connection, checkout: Arc::new(checkout) })
    }

    /// Closes a command connection that failed, unless a new one has replaced it already.
    pub(super) async fn discard(&self, failed: &Command) {
        let mut slot = self.command.lock().await;
        if slot.as_ref().is_some_and(|kept| Arc::ptr_eq(&kept.checkout, &failed.checkout)) {
            *slot = None;
            // Idle connections lead to the same server process, which may be gone.
            self.pool.retain(|_, _| false);
        }
    }

    /// True if the server's name no longer has an address that open connections may have.
    pub(super) async fn has_moved(&self) -> bool {
        match &self.name {
            Some(name) => name.lost_an_address().await,
            None => false,
        }
    }

    /// True if the command connection leads to a replica. False if there is none.
    pub(super) async fn is_replica(&self) -> bool {
        let Some(mut command) = self.command.lock().await.clone() else { return false };
        let mut info = redis::cmd("INFO");
        let asked = info.arg("replication").query_async::<String>(&mut command.connection);
        let answer = tokio::time::timeout(ROLE_TIMEOUT, asked).await;
        answer.is_ok_and(|info| info.is_ok_and(|info| info.contains("role:slave")))
    }

    /// Closes all connections: the next ones may lead to another server.
    pub(super) async fn close_connections(&self) {
        let mut slot = self.command.lock().await;
        self.closed.send_replace(Instant::now());
        *slot = None;
        self.pool.retain(|_, _| false);
    }

    /// Changes when all connections are to be closed.
    pub(super) fn closings(&self) -> watch::Receiver<Instant> {
        self.closed.subscribe()
    }

    /// Resolves the server's name, as all connections to it should.
    pub(super) fn resolver(&self) -> Resolver {
        self.resolver.clone()
    }

    /// A connection for a long query: one of its own if the pool has one, else the writers'.
    pub(super) async fn query(&self) -> Result<Query, ConnectError> {
        if self.pool_is_shared {
            let checkout = self.pool.get().await.map_err(|error| self.error(error))?;
            Ok(Query::Pooled(checkout))
        } else {
            Ok(Query::Command(self.command().await?))
        }
    }

    /// A client for a connection outside the pool: a subscription.
    pub(super) fn client(&self) -> RedisResult<Client> {
        Client::open(self.info.clone())
    }

    /// The error of a connection that was not opened in time.
    pub(super) fn slow(&self) -> ConnectError {
        self.error("no connection in time")
    }

    fn error(&self, why: impl fmt::Display) -> ConnectError {
        ConnectError { address: self.address.clone(), why: why.to_string() }
    }
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
