//! Drives the Rust client by lines of JSON: docs/conformance.md has the protocol.
//!
//!     cargo run --example conformance < commands > output

use std::{sync::LazyLock, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader, stdin},
    sync::watch,
    task::JoinSet,
};
use trunkline_client::{
    Client, Error, Interest, Notification, Progress, Publisher, PublisherOptions, SubscribeOptions,
    Subscription, WhenFull,
    v1::{DESCRIPTORS, Event, EventKind, Filter, Overflow, Start},
};

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(DESCRIPTORS).expect("the build encoded them"));

#[tokio::main]
async fn main() {
    let mut driver = Driver::default();
    let mut lines = BufReader::new(stdin()).lines();
    while let Some(line) = lines.next_line().await.expect("lines") {
        driver.obey(&serde_json::from_str(&line).expect("JSON")).await;
    }
    driver.end().await;
}

/// The client, and what it has open.
#[derive(Default)]
struct Driver {
    client: Option<Client>,
    publisher: Option<Publisher>,
    interest: Option<Interest>,
    /// How far the subscription was shown.
    shown: watch::Sender<Progress>,
    /// Commands whose outcome is not known, and the subscription.
    tasks: JoinSet<()>,
    subscription: JoinSet<()>,
}

impl Driver {
    async fn obey(&mut self, command: &Value) {
        match command["do"].as_str().expect("a command") {
            "connect" => self.client = Some(connect(command)),
            "publish" => {
                let (client, id) = (self.client().clone(), command["id"].clone());
                let events = events(command);
                self.tasks.spawn(async move {
                    let positions = client.publish(events).await;
                    outcome(&json!({"id": id}), positions.map(|all| to_json("Position", &all)));
                });
            }
            "publish_and_wait" => {
                let (client, id) = (self.client().clone(), command["id"].clone());
                let events = events(command);
                let acknowledged = command["acknowledged"] == true;
                let seconds = command["timeout"].as_f64().unwrap_or(5.0);
                self.tasks.spawn(async move {
                    let timeout = Duration::from_secs_f64(seconds);
                    let report = client.publish_and_wait(events, acknowledged, timeout).await;
                    let report = report.map(|report| one("DeliveryReport", &report));
                    outcome_of(&json!({"id": id}), report);
                });
            }
            "open_publisher" => {
                self.publisher = Some(self.client().publisher(publisher_options(command)));
            }
            "publish_stream" => {
                let publisher = self.publisher();
                for (index, event) in events(command).into_iter().enumerate() {
                    let about = json!({"id": command["id"], "index": index});
                    match publisher.publish(event).await {
                        Ok(acknowledgement) => {
                            self.tasks.spawn(async move {
                                outcome(&about, acknowledgement.await.map(|()| vec![]));
                            });
                        }
                        Err(error) => outcome(&about, Err(error)),
                    }
                }
            }
            "flush" => {
                let (publisher, id) = (self.publisher(), command["id"].clone());
                self.tasks.spawn(async move {
                    publisher.flush().await;
                    outcome(&json!({"id": id}), Ok(vec![]));
                });
            }
            "subscribe" => {
                let subscription = self.client().subscribe(subscribe_options(command));
                self.subscription.spawn(read(subscription, self.shown.clone()));
            }
            "watch" => {
                let (subscription, interest) = self.client().watch(subscribe_options(command));
                self.interest = Some(interest);
                self.subscription.spawn(read(subscription, self.shown.clone()));
            }
            "acknowledge" => {
                let interest = self.interest.as_ref().expect("`watch` comes before");
                interest.acknowledge(self.shown.borrow().clone());
            }
            how @ ("add" | "remove" | "replace") => {
                let interest = self.interest.clone().expect("`watch` comes before");
                let (how, about) = (how.to_owned(), json!({"id": command["id"]}));
                let accounts = texts(&command["accounts"]);
                self.tasks.spawn(async move {
                    let changed = match &*how {
                        "add" => interest.add(accounts).await,
                        "remove" => interest.remove(accounts).await,
                        _ => interest.replace(accounts).await,
                    };
                    outcome(&about, changed.map(|()| vec![]));
                });
            }
            other => panic!("{other:?} is no command of this client"),
        }
    }

    fn client(&self) -> &Client {
        self.client.as_ref().expect("`connect` comes first")
    }

    fn publisher(&self) -> Publisher {
        self.publisher.clone().expect("`open_publisher` comes before")
    }

    async fn end(mut self) {
        if let Some(publisher) = self.publisher.take() {
            publisher.close().await;
        }
        self.subscription.shutdown().await;
        while let Some(task) = self.tasks.join_next().await {
            task.expect("no panic");
        }
    }
}

fn connect(options: &Value) -> Client {
    let mut builder = Client::builder(options["node_id"].as_str().expect("a node id"))
        .gateways(texts(&options["gateways"]))
        .in_order();
    if let Some(seconds) = options["attempt_timeout"].as_f64() {
        builder = builder.attempt_timeout(Duration::from_secs_f64(seconds));
    }
    if let Some(seconds) = options["publish_timeout"].as_f64() {
        builder = builder.publish_timeout(Duration::from_secs_f64(seconds));
    }
    builder.build().expect("a client")
}

fn publisher_options(options: &Value) -> PublisherOptions {
    let number = |key: &str| options[key].as_u64().and_then(|number| usize::try_from(number).ok());
    let mut all = PublisherOptions::new();
    if let Some(events) = number("max_events") {
        all = all.max_events(events);
    }
    if let Some(bytes) = number("max_bytes") {
        all = all.max_bytes(bytes);
    }
    if let Some(seconds) = options["max_age"].as_f64() {
        all = all.max_age(Duration::from_secs_f64(seconds));
    }
    match options["when_full"].as_str() {
        None => all,
        Some("WAIT") => all.when_full(WhenFull::Wait),
        Some("FAIL") => all.when_full(WhenFull::Fail),
        Some("DROP_OLDEST") => all.when_full(WhenFull::DropOldest),
        Some(other) => panic!("{other:?} is no choice"),
    }
}

fn subscribe_options(options: &Value) -> SubscribeOptions {
    let kind = |name: String| EventKind::from_str_name(&name).expect("a kind").into();
    let mut all = SubscribeOptions::new().filter(Filter {
        kinds: texts(&options["kinds"]).into_iter().map(kind).collect(),
        accounts: texts(&options["accounts"]),
        custom_types: texts(&options["custom_types"]),
    });
    if options["include_own_events"] == true {
        all = all.include_own_events();
    }
    if let Some(token) = options["resume_token"].as_str() {
        all = all.resume_token(STANDARD.decode(token).expect("base64"));
    }
    if let Some(start) = options["start"].as_str() {
        all = all.start(Start::from_str_name(start).expect("a start"));
    }
    if let Some(overflow) = options["overflow"].as_str() {
        all = all.overflow(Overflow::from_str_name(overflow).expect("an overflow"));
    }
    if let Some(seconds) = options["heartbeat_interval"].as_f64() {
        all = all.heartbeat_interval(Duration::from_secs_f64(seconds));
    }
    all.max_events(options["max_events"].as_u64().unwrap_or_default())
}

async fn read(mut subscription: Subscription, shown: watch::Sender<Progress>) {
    while let Some(notification) = subscription.next().await {
        shown.send_replace(subscription.progress());
        match notification {
            Ok(notification) => show_notification(notification),
            Err(error) => return show("ended", &failure(&error)),
        }
    }
    show("ended", &json!({}));
}

fn show_notification(notification: Notification) {
    let (key, value) = match notification {
        Notification::Subscribed(it) => ("subscribed", one("Subscribed", &it)),
        Notification::Event(it) => ("event", one("Event", &*it)),
        Notification::Gap(it) => ("gap", one("Gap", &it)),
        Notification::Explanation(it) => ("explanation", one("Explanation", &it)),
        Notification::Heartbeat(it) => ("heartbeat", one("Heartbeat", &it)),
        Notification::CurrentNodes(it) => ("current_nodes", one("CurrentNodes", &it)),
        Notification::Draining(it) => ("draining", one("Draining", &it)),
        Notification::Notice(it) => ("notice", one("Notice", &it)),
        Notification::Reconnecting { reason, wait } => {
            ("reconnecting", json!({"reason": reason, "wait": wait.as_secs_f64()}))
        }
        other => panic!("{other:?} is newer than this driver"),
    };
    show(key, &value);
}

/// Shows the outcome of a command.
fn outcome(about: &Value, result: Result<Vec<Value>, Error>) {
    let value = |all: Vec<Value>| if all.is_empty() { Value::Null } else { all.into() };
    outcome_of(about, result.map(value));
}

/// Shows the outcome of a command that has a value, or none: null.
fn outcome_of(about: &Value, result: Result<Value, Error>) {
    let (key, more) = match result {
        Ok(Value::Null) => ("done", json!({})),
        Ok(value) => ("done", json!({"value": value})),
        Err(error) => ("failed", failure(&error)),
    };
    let mut whole = about.clone();
    for (name, value) in more.as_object().into_iter().flatten() {
        whole[name] = value.clone();
    }
    show(key, &whole);
}

fn failure(error: &Error) -> Value {
    // `OutcomeUnknown` is written `OUTCOME_UNKNOWN`.
    let mut kind = String::new();
    for letter in format!("{:?}", error.kind()).chars() {
        if letter.is_uppercase() && !kind.is_empty() {
            kind.push('_');
        }
        kind.extend(letter.to_uppercase());
    }
    json!({"kind": kind, "message": error.to_string(), "violations": error.violations()})
}

fn show(key: &str, value: &Value) {
    println!("{}", json!({ key: value }));
}

fn events(command: &Value) -> Vec<Event> {
    let all = command["events"].as_array().expect("events");
    all.iter()
        .map(|event| {
            let message =
                DynamicMessage::deserialize(descriptor("Event"), event).expect("an event");
            Event::decode(&*message.encode_to_vec()).expect("the same event")
        })
        .collect()
}

fn texts(value: &Value) -> Vec<String> {
    let all = value.as_array().into_iter().flatten();
    all.map(|text| text.as_str().expect("text").to_owned()).collect()
}

fn descriptor(name: &str) -> MessageDescriptor {
    POOL.get_message_by_name(&format!("trunkline.v1.{name}")).expect("a message of the API")
}

fn to_json(name: &str, messages: &[impl Message]) -> Vec<Value> {
    messages.iter().map(|message| one(name, message)).collect()
}

fn one(name: &str, message: &impl Message) -> Value {
    let message = DynamicMessage::decode(descriptor(name), &*message.encode_to_vec());
    serde_json::to_value(message.expect("a message of the API")).expect("JSON")
}
