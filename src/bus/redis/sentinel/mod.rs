//! The sentinels: which server they name as the master, and which as its replicas.
//!
//! All are asked at once, over connections that stay open and on which a sentinel also tells of a
//! new master. What they say is a proposal: a server is the master if it says so itself.

pub mod answer;
pub mod choice;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use parking_lot::Mutex;
use redis::{PushInfo, PushKind, RedisError, RedisResult, Value, aio::MultiplexedConnection};
use tokio::sync::Notify;

use self::answer::{Address, Answer, Answers, MAX_SENTINELS, given, read};
use super::{server::Server, settings::Settings};

/// The time limit for the answer of one sentinel.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The time that the others are given once one has answered.
const OTHERS: Duration = Duration::from_millis(300);

/// The channel on which a sentinel tells of a new master.
const SWITCHED: &str = "+switch-master";

/// All sentinels that are known.
pub(super) struct Sentinels {
    /// How they are connected to.
    settings: Settings,
    master_name: String,
    known: Mutex<BTreeMap<String, Arc<Sentinel>>>,
    /// Notified when a sentinel tells of a new master, and when one ends its connection.
    switched: Arc<Notify>,
}

/// One sentinel.
struct Sentinel {
    server: Server,
    /// True if the configuration names it.
    is_configured: bool,
    connection: Mutex<Option<Connected>>,
}

/// A connection to a sentinel, which is subscribed.
#[derive(Clone)]
struct Connected {
    connection: MultiplexedConnection,
    /// Since when it has not answered, if it was asked.
    asked: Option<Instant>,
}

impl Sentinels {
    /// The sentinels of the configuration; None if it has none.
    pub(super) fn new(settings: &Settings) -> RedisResult<Option<Sentinels>> {
        let (Some(own), Some(sentinel)) = (settings.of_sentinels(), &settings.sentinel) else {
            return Ok(None);
        };
        let mut known = BTreeMap::new();
        for info in &own.seeds {
            let server = Server::new(info.clone(), &own)?;
            known.insert(server.address.clone(), Arc::new(Sentinel::new(server, true)));
        }
        Ok(Some(Sentinels {
            master_name: sentinel.master_name.clone(),
            settings: own,
            known: Mutex::new(known),
            switched: Arc::default(),
        }))
    }

    /// The addresses of those that are known.
    pub(super) fn addresses(&self) -> Vec<String> {
        self.known.lock().keys().cloned().collect()
    }

    /// Waits until a sentinel tells of a new master.
    pub(super) async fn switched(&self) {
        self.switched.notified().await;
    }

    /// Asks all of them, and waits only a moment for those that are slower than the first one.
    pub(super) async fn ask(&self) -> Answers {
        self.ask_for(OTHERS).await
    }

    /// Asks all of them, and waits for all.
    pub(super) async fn ask_all(&self) -> Answers {
        self.ask_for(ANSWER_TIMEOUT).await
    }

    async fn ask_for(&self, others: Duration) -> Answers {
        let known: Vec<_> = self.known.lock().values().cloned().collect();
        let ask = |sentinel: Arc<Sentinel>| async move {
            let asked = sentinel.ask(&self.master_name, &self.switched);
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, asked).await;
            let answer = answer.unwrap_or_else(|_| Err("no answer in time".to_owned()));
            (sentinel.server.shown(), answer)
        };
        let mut asked: FuturesUnordered<_> = known.iter().cloned().map(ask).collect();
        let mut answers = Answers::new();
        let mut end = tokio::time::Instant::now() + 2 * ANSWER_TIMEOUT;
        let mut late = false;
        while let Ok(Some(answer)) = tokio::time::timeout_at(end, asked.next()).await {
            if answer.1.is_ok() && !late {
                late = true;
                end = end.min(tokio::time::Instant::now() + others);
            }
            answers.push(answer);
        }
        for sentinel in known {
            let address = sentinel.server.shown();
            if answers.iter().all(|(answered, _)| *answered != address) {
                answers.push((address, Err("no answer in time".to_owned())));
            }
        }
        answers.sort_by(|one, two| one.0.cmp(&two.0));
        self.learn(&answers);
        answers
    }

    /// Adds the sentinels that others name, and forgets those that none names any more.
    fn learn(&self, answers: &Answers) {
        let named: Vec<&Address> = given(answers).flat_map(|answer| &answer.sentinels).collect();
        if given(answers).next().is_none() {
            return;
        }
        let text = |(host, port): &Address| format!("{host}:{port}");
        let answered = |address: &String| {
            answers.iter().any(|(other, answer)| other == address && answer.is_ok())
        };
        let mut known = self.known.lock();
        known.retain(|address, sentinel| {
            let is_named = named.iter().any(|named| text(named) == *address);
            sentinel.is_configured || is_named || answered(&sentinel.server.shown())
        });
        for address in named {
            let name = text(address);
            if known.len() >= MAX_SENTINELS || known.contains_key(&name) {
                continue;
            }
            if let Ok(server) = Server::named(&address.0, address.1, &self.settings) {
                tracing::debug!(sentinel = name, "another sentinel is known");
                known.insert(name, Arc::new(Sentinel::new(server, false)));
            }
        }
    }
}

impl Sentinel {
    fn new(server: Server, is_configured: bool) -> Sentinel {
        Sentinel { server, is_configured, connection: Mutex::default() }
    }

    async fn ask(&self, master: &str, switched: &Arc<Notify>) -> Result<Answer, String> {
        let open = self.connection.lock().clone();
        let hangs =
            |open: &Connected| open.asked.is_some_and(|asked| asked.elapsed() >= ANSWER_TIMEOUT);
        let mut connection = match open.filter(|open| !hangs(open)) {
            Some(open) => open.connection,
            None => self.connect(switched).await.map_err(|error| self.server.explain(&error))?,
        };
        let asked = Some(Instant::now());
        *self.connection.lock() = Some(Connected { connection: connection.clone(), asked });
        let answers: Result<Vec<Value>, RedisError> =
            questions(master).query_async(&mut connection).await;
        let answer = match answers {
            Ok(answers) => read(answers),
            Err(error) => {
                *self.connection.lock() = None;
                return Err(self.server.explain(&error));
            }
        };
        *self.connection.lock() = Some(Connected { connection, asked: None });
        answer.map_err(|why| self.server.about.explain(&why))
    }

    /// A connection that is subscribed.
    async fn connect(&self, switched: &Arc<Notify>) -> Result<MultiplexedConnection, RedisError> {
        let tells = switched.clone();
        let config =
            self.server.config().set_response_timeout(Some(ANSWER_TIMEOUT)).set_push_sender(
                move |push: PushInfo| {
                    if matches!(push.kind, PushKind::Message | PushKind::Disconnection) {
                        tells.notify_one();
                    }
                    Ok::<(), std::convert::Infallible>(())
                },
            );
        let client = self.server.client().await?;
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let _: Value = redis::cmd("SUBSCRIBE").arg(SWITCHED).query_async(&mut connection).await?;
        Ok(connection)
    }
}

/// What a sentinel is asked; [`read`] takes the answers.
fn questions(master: &str) -> redis::Pipeline {
    let mut pipe = redis::pipe();
    // A user may lack the right to all but the first.
    pipe.ignore_errors();
    for question in ["GET-MASTER-ADDR-BY-NAME", "MASTER", "REPLICAS", "SENTINELS"] {
        pipe.cmd("SENTINEL").arg(question).arg(master);
    }
    pipe
}
