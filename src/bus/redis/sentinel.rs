//! The sentinels: which server they name as the master, and which as its replicas.
//!
//! All are asked at once, over connections that stay open and on which a sentinel also tells of a
//! new master. What they say is a proposal: a server is the master if it says so itself.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use parking_lot::Mutex;
use redis::{
    FromRedisValue, PushInfo, PushKind, RedisError, RedisResult, Value, aio::MultiplexedConnection,
};
use tokio::sync::Notify;

use super::{causes::error_text, server::Server, settings::Settings};

/// Sentinels that are asked, and replicas that are used, whatever sentinels name.
const MAX_SENTINELS: usize = 32;
const MAX_REPLICAS: usize = 64;

/// The time limit for the answer of one sentinel.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The time that the others are given once one has answered.
const OTHERS: Duration = Duration::from_millis(300);

/// The channel on which a sentinel tells of a new master.
const SWITCHED: &str = "+switch-master";

/// Host and port.
pub(super) type Address = (String, u16);

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

/// What a sentinel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The master.
    pub master: Address,
    /// The number of the configuration that names this master: a later one is higher.
    pub epoch: u64,
    /// The replicas that the sentinel believes to be in sync.
    pub replicas: Vec<Address>,
    /// The other sentinels.
    pub sentinels: Vec<Address>,
}

/// The sentinels that were asked, and what each says, or why there is no answer.
pub(super) type Answers = Vec<(String, Result<Answer, String>)>;

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

fn questions(master: &str) -> redis::Pipeline {
    let mut pipe = redis::pipe();
    // A user may lack the right to all but the first.
    pipe.ignore_errors();
    for question in ["GET-MASTER-ADDR-BY-NAME", "MASTER", "REPLICAS", "SENTINELS"] {
        pipe.cmd("SENTINEL").arg(question).arg(master);
    }
    pipe
}

/// Reads the answers to the [`questions`].
fn read(answers: Vec<Value>) -> Result<Answer, String> {
    let Ok([named, master, replicas, sentinels]) = <[Value; 4]>::try_from(answers) else {
        return Err("an unknown form of SENTINEL".to_owned());
    };
    let named = named.extract_error().map_err(|error| error_text(&error))?;
    let address: Option<(String, String)> =
        FromRedisValue::from_redis_value(named).map_err(|error| error.to_string())?;
    let master_address = match address {
        None => return Err("it does not know a master of this name".to_owned()),
        Some((host, port)) => checked(&host, &port)
            .ok_or_else(|| "the address of its master cannot be used".to_owned())?,
    };
    let master: Instance = instances(Value::Array(vec![master])).pop().unwrap_or_default();
    let in_sync = |replica: &Instance| {
        let flags = replica.get("flags").map_or("", String::as_str);
        let down =
            flags.split(',').any(|flag| ["s_down", "o_down", "disconnected"].contains(&flag));
        !down && replica.get("master-link-status").is_some_and(|status| status == "ok")
    };
    let addresses = |list: Vec<Instance>, limit: usize| -> Vec<Address> {
        let address = |one: &Instance| checked(one.get("ip")?, one.get("port")?);
        list.iter().filter_map(address).take(limit).collect()
    };
    let replicas = instances(replicas).into_iter().filter(in_sync).collect();
    Ok(Answer {
        master: master_address,
        epoch: master.get("config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0),
        replicas: addresses(replicas, MAX_REPLICAS),
        sentinels: addresses(instances(sentinels), MAX_SENTINELS),
    })
}

/// What a sentinel says of one server or sentinel.
type Instance = HashMap<String, String>;

/// Those of an answer that can be read. None where it is an error.
fn instances(value: Value) -> Vec<Instance> {
    let Value::Array(list) = value else { return vec![] };
    list.into_iter().filter_map(|one| FromRedisValue::from_redis_value(one).ok()).collect()
}

/// An address as it can be connected to.
fn checked(host: &str, port: &str) -> Option<Address> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    let usable = (1..=253).contains(&host.len())
        && host.chars().all(plain)
        && !["0.0.0.0", "::"].contains(&host);
    let port = port.parse().ok().filter(|port| *port != 0)?;
    usable.then(|| (host.to_owned(), port))
}

/// What was answered, by those that did.
fn given(answers: &Answers) -> impl Iterator<Item = &Answer> {
    answers.iter().filter_map(|(_, answer)| answer.as_ref().ok())
}

/// The servers that may be the master, the most likely first: that of the latest configuration,
/// then the one that most sentinels name.
pub(super) fn candidates(answers: &Answers) -> Vec<Address> {
    let mut found: Vec<(u64, usize, Address)> = Vec::new();
    for Answer { master, epoch, .. } in given(answers) {
        match found.iter_mut().find(|(.., known)| known == master) {
            Some((latest, votes, _)) => (*latest, *votes) = ((*latest).max(*epoch), *votes + 1),
            None => found.push((*epoch, 1, master.clone())),
        }
    }
    found.sort_by(|one, two| two.cmp(one));
    found.into_iter().map(|(.., address)| address).collect()
}

/// The replicas of a master.
pub(super) fn replicas(answers: &Answers, master: &Address) -> Vec<Address> {
    let mut all: Vec<Address> = given(answers)
        .filter(|answer| answer.master == *master)
        .flat_map(|answer| answer.replicas.iter().cloned())
        .filter(|replica| replica != master)
        .collect();
    all.sort();
    all.dedup();
    all.truncate(MAX_REPLICAS);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn list(words: &[&str]) -> Value {
        Value::Array(words.iter().map(|word| bulk(word)).collect())
    }

    fn naming(host: &str, epoch: u64) -> (String, Result<Answer, String>) {
        let master = (host.to_owned(), 6379);
        let answer = Answer { master, epoch, replicas: vec![], sentinels: vec![] };
        (format!("{host}-{epoch}"), Ok(answer))
    }

    #[test]
    fn the_master_of_the_latest_configuration_is_tried_first_then_that_of_most_sentinels() {
        let hosts = |answers: &Answers| -> Vec<String> {
            candidates(answers).into_iter().map(|(host, _)| host).collect()
        };
        let silent = ("s".to_owned(), Err("refused".to_owned()));
        let answers = vec![naming("old", 3), naming("old", 3), naming("new", 4), silent.clone()];
        assert_eq!(hosts(&answers), ["new", "old"]);
        // Where sentinels do not show it.
        let answers = vec![naming("one", 0), naming("two", 0), naming("two", 0)];
        assert_eq!(hosts(&answers), ["two", "one"]);
        assert!(hosts(&vec![silent]).is_empty());
    }

    #[test]
    fn an_answer_is_read_as_far_as_it_can_be_used() {
        let replica = |host: &str, port: &str, flags: &str, link: &str| {
            list(&["ip", host, "port", port, "flags", flags, "master-link-status", link])
        };
        let sentinel = |host: &str, port: &str| list(&["ip", host, "port", port, "name", "x"]);
        let answers = |master: Value| {
            vec![
                master,
                list(&["name", "m", "config-epoch", "7"]),
                Value::Array(vec![
                    replica("10.0.0.2", "6379", "slave", "ok"),
                    replica("10.0.0.3", "6379", "slave", "err"),
                    replica("10.0.0.4", "6379", "s_down,slave", "ok"),
                    replica("0.0.0.0", "6379", "slave", "ok"),
                    bulk("rubbish"),
                ]),
                Value::Array(vec![
                    sentinel("10.0.0.5", "26379"),
                    sentinel("::1", "26379"),
                    sentinel("a b", "26379"),
                    sentinel("/tmp/socket", "26379"),
                    sentinel("10.0.0.6", "0"),
                    sentinel("10.0.0.6", "70000"),
                    sentinel(&"x".repeat(300), "1"),
                ]),
            ]
        };
        let answer = read(answers(list(&["10.0.0.1", "6379"]))).unwrap();
        let address = |host: &str, port| (host.to_owned(), port);
        assert_eq!((answer.epoch, answer.master), (7, address("10.0.0.1", 6379)));
        assert_eq!(answer.replicas, [address("10.0.0.2", 6379)]);
        assert_eq!(answer.sentinels, [address("10.0.0.5", 26379), address("::1", 26379)]);
        assert!(read(answers(Value::Nil)).unwrap_err().contains("master of this name"));
        assert!(read(answers(list(&["", "6379"]))).unwrap_err().contains("cannot be used"));
        assert!(read(vec![Value::Nil]).unwrap_err().contains("unknown form"));

        let many: Vec<_> = (1..=200).map(|n| sentinel("10.0.0.9", &n.to_string())).collect();
        let mut flood = answers(list(&["10.0.0.1", "6379"]));
        flood[3] = Value::Array(many);
        assert_eq!(read(flood).unwrap().sentinels.len(), MAX_SENTINELS);
    }
}
