//! A client in another process, driven by lines of JSON.

use std::cell::Cell;

use serde_json::{Value, json};

use super::Language;
use crate::support::{Gateway, LIMIT, eventually, process::Process, wait::attempt};

/// A running client.
pub struct Driver {
    process: Process,
    /// The number of the last change of interest.
    changes: Cell<u64>,
}

impl Driver {
    /// Starts a client that knows these gateways, the first one preferred, and retries soon.
    pub fn start(language: Language, node_id: &str, gateways: &[&Gateway]) -> Driver {
        let gateways: Vec<_> = gateways.iter().map(|gateway| gateway.url()).collect();
        Driver::start_at(language, node_id, &gateways)
    }

    /// The same with URLs.
    pub fn start_at(language: Language, node_id: &str, gateways: &[String]) -> Driver {
        let process = Process::start("the client", language().talks());
        let driver = Driver { process, changes: Cell::new(0) };
        let options = json!({"node_id": node_id, "gateways": gateways, "attempt_timeout": 1.0});
        driver.say("connect", options);
        driver
    }

    /// Gives a command.
    pub fn say(&self, command: &str, mut options: Value) {
        options["do"] = command.into();
        self.process.write_line(&options.to_string());
    }

    /// The lines that it has printed so far, each an object with one key.
    fn lines(&self) -> Vec<Value> {
        let text = self.process.stdout();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
    }

    /// The values under a key, in order.
    pub fn all(&self, key: &str) -> Vec<Value> {
        self.lines().iter().filter_map(|line| line.get(key).cloned()).collect()
    }

    /// How many values there are under a key.
    pub fn count(&self, key: &str) -> usize {
        let begin = format!("{{\"{key}\"");
        let text = self.process.stdout();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().filter(|line| line.starts_with(&begin)).count()
    }

    /// Waits until there are so many values under a key.
    pub async fn all_of(&self, key: &str, count: usize) -> Vec<Value> {
        self.wait(&format!("{count} of {key}"), || {
            Some(self.all(key)).filter(|all| all.len() >= count)
        })
        .await
    }

    /// Waits until it has opened so many streams, and returns `subscribed` of the last one.
    pub async fn streams(&self, count: usize) -> Value {
        self.all_of("subscribed", count).await.swap_remove(count - 1)
    }

    /// Waits until the ids of its events are these.
    pub async fn has_events(&self, expected: &[&str]) {
        let has = async || {
            let events = self.all("event");
            let ids: Vec<_> = events.iter().filter_map(|event| event["eventId"].as_str()).collect();
            if ids == expected { Ok(()) } else { Err(format!("{ids:?}")) }
        };
        attempt(LIMIT, &format!("{expected:?}"), has).await;
    }

    /// Waits for the outcome of a command.
    pub async fn done(&self, id: impl Into<Value>) -> Result<Value, Value> {
        let id = id.into();
        self.outcome(&id, &Value::Null).await
    }

    /// Waits for the answer to one of the events of `publish_stream`.
    pub async fn answer(&self, id: impl Into<Value>, index: u64) -> Result<Value, Value> {
        let id = id.into();
        self.outcome(&id, &index.into()).await
    }

    async fn outcome(&self, id: &Value, index: &Value) -> Result<Value, Value> {
        self.wait(&format!("the outcome of {id}"), || {
            let of = |key: &str| {
                let all = self.all(key).into_iter();
                all.rev().find(|it| it["id"] == *id && it["index"] == *index)
            };
            let done = of("done").map(|done| Ok(done["value"].clone()));
            done.or_else(|| of("failed").map(Err))
        })
        .await
    }

    /// Changes the interest, and waits until that is in force.
    pub async fn change(&self, how: &str, accounts: &[&str]) -> Result<Value, Value> {
        self.changes.set(self.changes.get() + 1);
        let id = format!("change {}", self.changes.get());
        self.say(how, json!({"id": id, "accounts": accounts}));
        self.done(id).await
    }

    async fn wait<T>(&self, what: &str, look: impl Fn() -> Option<T>) -> T {
        eventually(LIMIT, what, async || {
            assert!(self.process.ended().is_none(), "it has ended: {}", self.process.stderr());
            look()
        })
        .await
    }

    /// Ends its input, and asserts that it exits with success.
    pub async fn end(self) {
        self.process.end_input();
        let (status, _) = self.process.wait(LIMIT).await;
        assert!(status.success(), "{}", self.process.stderr());
    }
}
