//! Connections to one Redis server.

use std::{fmt, sync::Arc, time::Duration};

use deadpool_redis::{Manager, Pool, Runtime};
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, RedisError, RedisResult,
    aio::MultiplexedConnection,
};
use tokio::sync::Mutex;

use super::settings::Settings;

/// The time limit for opening a connection.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

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
}

/// A connection for commands, with the identity of the server process at its other end: a process
/// that ends closes its connections, so the identity stays true.
#[derive(Clone)]
pub(super) struct Command {
    pub connection: MultiplexedConnection,
    /// `run_id` of the server. Empty if the server does not report it: then a restart without data
    /// is found by the missing state alone.
    pub run: Arc<str>,
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
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(settings.response_timeout));
        let pool = Pool::builder(Manager::new_with_config(info.clone(), config)?)
            .max_size(settings.pool.max_connections)
            .create_timeout(settings.pool.timeout_create)
            .wait_timeout(settings.pool.timeout_wait)
            .recycle_timeout(settings.pool.timeout_recycle)
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
            info,
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
        let mut connection = (*checkout).clone();
        let asked: Result<String, _> =
            redis::cmd("INFO").arg("server").query_async(&mut connection).await;
        let info = asked.map_err(|error| self.error(error))?;
        Ok(Command { connection, run: run_id(&info).into(), checkout: Arc::new(checkout) })
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

fn run_id(info: &str) -> &str {
    info.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap_or_default().trim()
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the connection info: it holds the password.
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}
