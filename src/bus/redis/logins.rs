//! Logins at Redis that change while the gateway runs: a password in a file, or what a command
//! prints until it expires. Open connections are authenticated again when it changes.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use futures_util::{Stream, stream};
use redis::{
    RedisError, RedisResult,
    auth::{BasicAuth, StreamingCredentialsProvider},
};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};

use super::command;
use crate::{
    config::{LoginCommand, Password, Secret},
    throttle::Throttle,
};

/// The interval at which a file is read.
const FILE_INTERVAL: Duration = Duration::from_secs(1);

/// The interval at which a command is run that prints no expiry.
const COMMAND_INTERVAL: Duration = Duration::from_mins(5);

/// A command is run again when so much of its time is left at most.
const MAX_MARGIN: Duration = Duration::from_mins(5);

/// The waits before a command is run again that failed, or whose login was refused.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

static FAILED: Throttle = Throttle::repeated();

/// The user of a connection that names none.
const DEFAULT_USER: &str = "default";

/// The logins of one password.
#[derive(Clone)]
pub(super) struct Logins(Arc<Issuer>);

struct Issuer {
    /// The key of the configuration.
    key: &'static str,
    source: Source,
    username: Option<String>,
    state: watch::Sender<State>,
    /// Notified when a server refuses the login: it may have been revoked.
    refused: Arc<Notify>,
    /// Renews the login; begins when it is first asked for.
    task: OnceLock<Renewal>,
}

/// The task that renews a login, ended with its owner.
struct Renewal(JoinHandle<()>);

#[derive(Clone)]
enum Source {
    File(Secret),
    Command(LoginCommand),
}

/// The last login, and why there is no newer one.
#[derive(Clone, Default)]
struct State {
    login: Option<Login>,
    failure: Option<String>,
}

/// A user and its password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Login {
    pub username: String,
    pub secret: String,
    /// When it is of no use any more.
    expires: Option<SystemTime>,
}

impl Logins {
    /// The logins of a password that may change; None for any other.
    pub(super) fn new(
        key: &'static str,
        username: Option<&str>,
        password: &Password,
    ) -> Option<Logins> {
        let source = match password {
            Password::Secret(secret) if secret.is_in_file() => Source::File(secret.clone()),
            Password::Secret(_) => return None,
            Password::Command(command) => Source::Command(command.clone()),
        };
        let username = username.map(str::to_owned);
        let (state, task) = (watch::Sender::default(), OnceLock::new());
        let refused = Arc::default();
        Some(Logins(Arc::new(Issuer { key, source, username, state, refused, task })))
    }

    /// The login for a new connection. The error is for people.
    pub(super) async fn login(&self) -> Result<Login, String> {
        self.begin();
        if let Source::File(_) = self.0.source {
            // It may have been replaced since it was last read.
            renew(&self.0.source, self.0.username.as_deref(), &self.0.state, self.0.key).await;
        }
        let mut states = self.0.state.subscribe();
        let known = |state: &State| state.current().is_some() || state.failure.is_some();
        // The sender is held here.
        let Ok(state) = states.wait_for(known).await else { return Err(String::new()) };
        state.of_now(self.0.key)
    }

    /// A server refused the login: it is renewed soon.
    pub(super) fn refused(&self) {
        self.0.refused.notify_one();
    }

    /// Changes when there is another login.
    pub(super) fn changes(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut states = self.0.state.subscribe();
        let before = states.borrow_and_update().login.clone();
        async move {
            let changed = |state: &State| state.login != before;
            let _ = states.wait_for(changed).await;
        }
    }

    fn begin(&self) {
        self.0.task.get_or_init(|| {
            let (source, state) = (self.0.source.clone(), self.0.state.clone());
            let (username, key) = (self.0.username.clone(), self.0.key);
            let refused = self.0.refused.clone();
            Renewal(tokio::spawn(async move {
                let mut retry = RETRY.0;
                loop {
                    let renewed = renew(&source, username.as_deref(), &state, key).await;
                    let in_time = match renewed {
                        Some(wait) => tokio::time::timeout(wait, refused.notified()).await.is_err(),
                        None => false,
                    };
                    if in_time {
                        retry = RETRY.0;
                    } else {
                        tokio::time::sleep(retry).await;
                        retry = (retry * 2).min(RETRY.1);
                    }
                }
            }))
        });
    }
}

impl Drop for Renewal {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl State {
    /// The login, if it has not expired.
    fn current(&self) -> Option<&Login> {
        let now = SystemTime::now();
        self.login.as_ref().filter(|login| login.expires.is_none_or(|expires| expires > now))
    }

    fn of_now(&self, key: &str) -> Result<Login, String> {
        match (self.current(), &self.failure) {
            (Some(login), _) => Ok(login.clone()),
            (None, Some(why)) => Err(format!("{key}: {why}")),
            (None, None) => Err(format!("{key}: nothing is known yet")),
        }
    }
}

/// Reads the source again. The time until it is to be read the next time; None if it failed.
async fn renew(
    source: &Source,
    username: Option<&str>,
    state: &watch::Sender<State>,
    key: &str,
) -> Option<Duration> {
    let user = || username.unwrap_or(DEFAULT_USER).to_owned();
    let (login, wait) = match source {
        Source::File(secret) => {
            let secret = secret.clone();
            // Reading may block, on a network file system for instance.
            let read = tokio::task::spawn_blocking(move || secret.read_again()).await;
            let read = read.unwrap_or_else(|error| Err(error.to_string()));
            let login = read.map(|secret| Login { username: user(), secret, expires: None });
            (login, FILE_INTERVAL)
        }
        Source::Command(command) => match command::run(command).await {
            Ok(printed) => {
                let wait = printed.expires.map_or(COMMAND_INTERVAL, renew_after);
                let username = printed.username.unwrap_or_else(user);
                let login = Login { username, secret: printed.secret, expires: printed.expires };
                (Ok(login), wait)
            }
            Err(why) => (Err(format!("{}: {why}", command.path.display())), RETRY.0),
        },
    };
    match login {
        Ok(login) => {
            state.send_if_modified(|state| {
                let before = state.login.replace(login);
                let failed = state.failure.take().is_some();
                let changed = before != state.login;
                if changed && before.is_some() {
                    tracing::info!(key, "the login at Redis has changed");
                }
                changed || failed
            });
            Some(wait)
        }
        Err(why) => {
            if let Some(left_out) = FAILED.pass() {
                tracing::warn!(key, why, left_out, "what was read before is used");
            }
            state.send_modify(|state| state.failure = Some(why));
            None
        }
    }
}

/// The time after which a login that expires is renewed: with a quarter of its time left, or five
/// minutes.
fn renew_after(expires: SystemTime) -> Duration {
    let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
    left.saturating_sub((left / 4).min(MAX_MARGIN))
}

impl StreamingCredentialsProvider for Logins {
    /// The login, and each later one. The client library takes the first one for a new connection,
    /// and authenticates the open connection again with the others. If a server refuses one, the
    /// connection stays as it was, and ends when the server ends it.
    fn subscribe(&self) -> Pin<Box<dyn Stream<Item = RedisResult<BasicAuth>> + Send + 'static>> {
        self.begin();
        let (states, key) = (self.0.state.subscribe(), self.0.key);
        let begin = (states, None, true);
        Box::pin(stream::unfold(begin, move |(mut states, last, first)| async move {
            // Only who has no login yet is told why there is none.
            let is_new = |state: &State| {
                state.current().is_some_and(|login| last.as_ref() != Some(login))
                    || first && state.failure.is_some()
            };
            let state = states.wait_for(is_new).await.ok()?.clone();
            match state.of_now(key) {
                Ok(login) => {
                    let auth = BasicAuth::new(login.username.clone(), login.secret.clone());
                    Some((Ok(auth), (states, Some(login), false)))
                }
                Err(why) => {
                    let error = (redis::ErrorKind::InvalidClientConfig, "no login", why);
                    Some((Err(RedisError::from(error)), (states, last, false)))
                }
            }
        }))
    }
}
