//! curl, and what it receives.

use serde_json::Value;

use crate::support::{
    LIMIT, eventually,
    process::{Process, Program},
    tools,
};

/// A request.
pub struct Curl {
    args: Vec<String>,
    body: Option<String>,
}

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    /// The status of HTTP.
    pub code: u16,
    /// The header fields, one a line.
    pub headers: String,
    /// The body.
    pub body: String,
}

impl Curl {
    pub fn new(url: String) -> Curl {
        let args = ["--silent", "--show-error", "--no-buffer", "--include", "--max-time", "60"];
        let mut args: Vec<String> = args.map(str::to_owned).to_vec();
        args.push(url);
        Curl { args, body: None }
    }

    pub fn arg(mut self, arg: impl Into<String>) -> Curl {
        self.args.push(arg.into());
        self
    }

    pub fn header(self, header: impl Into<String>) -> Curl {
        self.arg("--header").arg(header)
    }

    pub fn token(self, token: &str) -> Curl {
        self.header(format!("authorization: Bearer {token}"))
    }

    pub fn body(mut self, body: impl Into<String>) -> Curl {
        self.body = Some(body.into());
        self.arg("--data-binary").arg("@-")
    }

    fn program(self) -> Program {
        let program = Program::new(tools::curl(), self.args);
        match self.body {
            Some(body) => program.stdin(body),
            None => program,
        }
    }

    /// Sends the request, and waits for the whole answer.
    pub async fn send(self) -> Answer {
        let output = self.program().run(LIMIT).await;
        Answer::read(&output.stdout)
            .unwrap_or_else(|| panic!("no answer: {}{}", output.stdout, output.stderr))
    }

    /// Opens a stream of events.
    pub fn stream(self) -> Stream {
        Stream(Process::start("curl", self.program()))
    }
}

impl Answer {
    fn read(text: &str) -> Option<Answer> {
        let mut rest = text;
        loop {
            let (head, body) = rest.split_once("\r\n\r\n")?;
            let code = head.split(' ').nth(1)?.parse().ok()?;
            // What was answered before the body was sent.
            if code == 100 {
                rest = body;
                continue;
            }
            return Some(Answer { code, headers: head.to_lowercase(), body: body.to_owned() });
        }
    }

    /// The body of an answer with this status.
    pub fn json(&self, code: u16) -> Value {
        assert_eq!(self.code, code, "{self:?}");
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The name of the error, and its message.
    pub fn error(&self, code: u16) -> (String, String) {
        let json = self.json(code);
        assert_eq!(json["error"]["code"], code, "{json}");
        let text = |key: &str| json["error"][key].as_str().expect("a text").to_owned();
        (text("status"), text("message"))
    }
}

/// A stream of server-sent events.
pub struct Stream(pub Process);

/// One of its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub name: String,
    pub id: Option<String>,
    pub retry: Option<u64>,
    pub data: Value,
}

impl Stream {
    /// The complete events so far.
    pub fn events(&self) -> Vec<Event> {
        let text = self.0.stdout();
        let Some(answer) = Answer::read(&text) else { return vec![] };
        let Some((whole, _)) = answer.body.rsplit_once("\n\n") else { return vec![] };
        whole.split("\n\n").filter_map(Event::read).collect()
    }

    /// Waits until `look` finds something among the events.
    pub async fn wait<T>(&self, what: &str, mut look: impl FnMut(&[Event]) -> Option<T>) -> T {
        let wait = eventually(LIMIT, what, async || look(&self.events()));
        wait.await
    }

    /// Waits for an event of this name.
    pub async fn named(&self, name: &str) -> Event {
        let found = |events: &[Event]| events.iter().find(|event| event.name == name).cloned();
        self.wait(&format!("an event {name}"), found).await
    }

    /// Waits for so many published events; returns all that have come.
    pub async fn published(&self, count: usize) -> Vec<Value> {
        self.wait(&format!("{count} published events"), |events| {
            let all = published(events);
            (all.len() >= count).then_some(all)
        })
        .await
    }
}

/// The published events of a stream.
pub fn published(events: &[Event]) -> Vec<Value> {
    let batches = events.iter().filter(|event| event.name == "events");
    batches.flat_map(|batch| batch.data["events"].as_array().cloned().unwrap_or_default()).collect()
}

impl Event {
    fn read(text: &str) -> Option<Event> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        Some(Event {
            name: field("event: ")?.to_owned(),
            id: field("id: ").map(str::to_owned),
            retry: field("retry: ").map(|text| text.parse().expect("milliseconds")),
            data: serde_json::from_str(field("data: ")?).expect("JSON"),
        })
    }
}
