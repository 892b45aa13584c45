//! `trunkline publish`.

use std::{
    fmt::Display,
    io::IsTerminal,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesOrdered};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::mpsc,
};
use trunkline::json;
use trunkline_client::{Client, Error, ErrorKind, PublisherOptions};
use trunkline_proto::v1::{DeliveryReport, Event, Target};

use super::{
    Failure, GatewayArgs, NodeArgs,
    duration::parse_duration,
    kinds::EventArgs,
    values::{self, Found, Problem, Values},
    visible,
};

/// Most events of one request.
const MAX_BATCH: usize = 500;

/// Bytes of the input that are read at one time, and how often before their events are taken.
/// Besides them, the objects that end in each are held.
const PART: usize = 64 << 10;
const MAX_PARTS: usize = 2;

/// Events whose rejection is reported.
const MAX_REJECTED: usize = 20;

/// The time between two numbers of published events.
const PROGRESS: Duration = Duration::from_millis(100);

/// Time for which an event is published again, once in all, while the gateway or its bus is not
/// available.
const RETRY_FOR: Duration = Duration::from_secs(30);

#[derive(Args)]
#[command(after_help = "\
Examples:
  trunkline publish mailbox-change --account a1 --change-id 7 --types email,mailbox
  trunkline publish blocked-ip 192.0.2.7 --reason 'too many failed logins' --expires-in 24h
  trunkline publish cache-invalidation role:7 domain
  trunkline publish --to-role mta queue-refresh
  trunkline publish --wait-for delivered cache-invalidation role:7
  trunkline publish --json '{\"queueStatus\":{\"state\":\"STATE_PAUSED\"}}'
  trunkline publish custom com.example.paid --payload '{\"invoice\": 42}'
  cat events.jsonl | trunkline publish -
  trunkline subscribe --pretty --max-events 10 > events.json
  trunkline publish - < events.json
  trunkline subscribe --gateway a:7420 | trunkline publish --gateway b:7420 -

Standard input is JSON objects that follow one another, each on one line or over several; what is
wrong is reported with line and column, and events before it are published. One object has at most
32 MiB.

Prints nothing on success; on a terminal, - counts what is published. While the gateway is not
available, events are retried for half a minute; a retry never publishes twice.")]
pub(super) struct Publish {
    #[command(flatten)]
    gateway: GatewayArgs,
    #[command(flatten)]
    node: NodeArgs,
    /// An event as JSON, as `subscribe` prints it, or several; may be given several times
    #[arg(long, value_name = "EVENT", global = true)]
    json: Vec<String>,
    /// Only for this node; may be given several times and with --to-role: one match is enough
    #[arg(long, value_name = "NODE_ID", global = true)]
    to_node: Vec<String>,
    /// Only for nodes with this role
    #[arg(long, value_name = "ROLE", global = true)]
    to_role: Vec<String>,
    /// Wait until every node that the events concern has received them, or has acknowledged them on
    /// its watch; fails with the nodes that have not
    #[arg(long, value_name = "STAGE", value_enum, global = true)]
    wait_for: Option<Stage>,
    /// How long to wait, at most 60s
    #[arg(
        long,
        value_name = "TIME",
        default_value = "5s",
        value_parser = parse_duration,
        global = true
    )]
    wait_timeout: Duration,
    /// `-`: read events from standard input, as JSON
    #[arg(value_parser = ["-"])]
    input: Option<String>,
    #[command(subcommand)]
    event: Option<EventArgs>,
}

/// How far events must have come.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// Handed to the connection of each node.
    Delivered,
    /// Acknowledged by each node, which needs a watch.
    Acknowledged,
}

impl Publish {
    pub(super) async fn run(mut self) -> Result<(), Failure> {
        let mut events = Vec::new();
        for text in &self.json {
            let wrong = |why: &dyn Display| Failure::Input(format!("--json: {why}"));
            let objects = values::all(text).map_err(|problem| wrong(&problem))?;
            for object in &objects {
                let several = objects.len() > 1;
                let name = || if several { format!("{}: ", object.name()) } else { String::new() };
                let parsed = object.parse().map_err(|problem| wrong(&problem))?;
                let read = json::events_from_json(parsed);
                events.extend(read.map_err(|why| wrong(&format!("{}{why}", name())))?);
            }
        }
        if let Some(args) = self.event.take() {
            if self.input.is_some() && args.reads_standard_input() {
                let problem = "standard input cannot be both the events and a payload";
                return Err(Failure::Usage(problem.into()));
            }
            events.push(args.into_kind()?.into());
        }
        if events.is_empty() && self.input.is_none() {
            let problem = "nothing to publish: name a kind, or give --json or -; see --help";
            return Err(Failure::Usage(problem.into()));
        }
        if self.wait_for.is_some() && self.input.is_some() {
            let problem = "--wait-for is for events of the command line, not for -";
            return Err(Failure::Usage(problem.into()));
        }
        // A missing gateway fails at once; only one that goes away later is waited for.
        self.gateway.connect().await?;
        let client = self
            .gateway
            .client(&self.node)?
            .publish_timeout(RETRY_FOR)
            .build()
            .map_err(|error| Failure::Usage(error.to_string()))?;
        for batch in events.chunks(MAX_BATCH) {
            let events = batch.iter().map(|event| self.targeted(event.clone()));
            let Some(stage) = self.wait_for else {
                client.publish(events).await.map_err(|error| self.failure(&error))?;
                continue;
            };
            let acknowledged = stage == Stage::Acknowledged;
            let report = client.publish_and_wait(events, acknowledged, self.wait_timeout).await;
            done(&report.map_err(|error| self.failure(&error))?)?;
        }
        if self.input.is_some() { self.publish_input(&client).await } else { Ok(()) }
    }

    /// Publishes standard input on a stream. What the gateway rejects is reported by line at the
    /// end; what is not an event ends it.
    async fn publish_input(&self, client: &Client) -> Result<(), Failure> {
        let (sender, mut parts) = mpsc::channel(MAX_PARTS);
        let reader = tokio::spawn(read_parts(tokio::io::stdin(), sender));
        let publisher = client.publisher(PublisherOptions::new().max_age(RETRY_FOR));
        let mut answers: FuturesOrdered<BoxFuture<'_, (String, Result<(), Error>)>> =
            FuturesOrdered::new();
        let mut progress = Progress::new();
        let (mut rejected, mut wrong) = (Vec::new(), None);
        let mut reads = true;
        loop {
            tokio::select! {
                biased;
                Some((place, answer)) = answers.next(), if !answers.is_empty() => match answer {
                    Ok(()) => progress.published(),
                    Err(error) if error.kind() == ErrorKind::Invalid => {
                        if rejected.len() < MAX_REJECTED {
                            rejected.extend(by_place(&error, &place));
                        }
                    }
                    Err(error) => return Err(self.failure(&error)),
                },
                part = parts.recv(), if reads => {
                    let Some(Part { objects, end }) = part else {
                        reads = false;
                        continue;
                    };
                    for object in objects {
                        // Events before what is wrong are published.
                        let events = match events_of(&object) {
                            Ok(events) => events,
                            Err(why) => {
                                wrong = Some(why);
                                break;
                            }
                        };
                        for event in events {
                            let published = publisher.publish(self.targeted(event)).await;
                            let answer = published.map_err(|error| self.failure(&error))?;
                            let place = object.name();
                            answers.push_back(async move { (place, answer.await) }.boxed());
                        }
                    }
                    match end {
                        Some(End::Failed(error)) => return Err(error.into()),
                        Some(End::Wrong(problem)) => wrong = wrong.or(Some(problem.to_string())),
                        None => {}
                    }
                    if wrong.is_some() {
                        reads = false;
                        reader.abort();
                    }
                }
                else => break,
            }
        }
        rejected.extend(wrong);
        if rejected.is_empty() { Ok(()) } else { Err(Failure::Input(rejected.join("\n"))) }
    }

    /// The event, for those that the command line names.
    fn targeted(&self, mut event: Event) -> Event {
        if !self.to_node.is_empty() || !self.to_role.is_empty() {
            let (node_ids, roles) = (self.to_node.clone(), self.to_role.clone());
            event.target = Some(Target { node_ids, roles });
        }
        event
    }

    fn failure(&self, error: &Error) -> Failure {
        if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::OutcomeUnknown) {
            let address = self.gateway.address();
            return Failure::Unavailable { address, why: error.to_string() };
        }
        match error.status() {
            Some(status) => Failure::Gateway(status.clone()),
            None => Failure::Other(error.to_string()),
        }
    }
}

/// Fails with who has not what was waited for.
fn done(report: &DeliveryReport) -> Result<(), Failure> {
    if report.complete {
        return Ok(());
    }
    let (done, all) = (report.done_nodes, report.concerned_nodes);
    let mut text = vec![format!("published; {done} of {all} nodes have it")];
    for (what, ids) in [
        ("nodes that have not", &report.pending_node_ids),
        ("gateways that did not say", &report.silent_gateway_ids),
    ] {
        if !ids.is_empty() {
            let ids: Vec<_> = ids.iter().map(|id| visible(id)).collect();
            text.push(format!("{what}: {}", ids.join(", ")));
        }
    }
    Err(Failure::Other(text.join("; ")))
}

/// What was read of the input at one time.
struct Part {
    objects: Vec<Found>,
    /// Why nothing more is read, if that is not its end.
    end: Option<End>,
}

enum End {
    Failed(std::io::Error),
    Wrong(Problem),
}

/// Reads the objects of a text, as they arrive.
async fn read_parts(mut input: impl AsyncRead + Unpin, to: mpsc::Sender<Part>) {
    let (mut values, mut buffer) = (Values::new(), vec![0; PART]);
    loop {
        let mut objects = Vec::new();
        let (end, is_last) = match input.read(&mut buffer).await {
            Ok(0) => (values.end().err().map(End::Wrong), true),
            Ok(count) => {
                let read = values.read(&buffer[..count], &mut objects);
                (read.err().map(End::Wrong), false)
            }
            Err(error) => (Some(End::Failed(error)), true),
        };
        let is_last = is_last || end.is_some();
        if to.send(Part { objects, end }).await.is_err() || is_last {
            return;
        }
    }
}

/// The events of an object that `subscribe` printed: one, or with --all those of a response.
fn events_of(object: &Found) -> Result<Vec<Event>, String> {
    let parsed = object.parse().map_err(|problem| problem.to_string())?;
    json::events_from_json(parsed).map_err(|why| format!("{}: {why}", object.name()))
}

/// What is wrong with the event of a line. The fields are those of its message on the stream:
/// `events[3].custom.type`.
fn by_place(error: &Error, place: &str) -> Vec<String> {
    let violations = error.violations();
    if violations.is_empty() {
        return vec![format!("{place}: {error}")];
    }
    let text = |(field, why): (String, String)| {
        let path = field.strip_prefix("events[").and_then(|rest| rest.split_once(']'));
        match path.map_or(&*field, |(_, path)| path.trim_start_matches('.')) {
            "" => format!("{place}: {why}"),
            path => format!("{place}: {path}: {why}"),
        }
    };
    violations.into_iter().map(text).collect()
}

/// How many events were published, on a terminal.
struct Progress {
    shown: Option<Instant>,
    published: u64,
}

impl Progress {
    /// Nothing was published yet.
    fn new() -> Progress {
        let on_a_terminal = std::io::stderr().is_terminal();
        Progress { shown: on_a_terminal.then(Instant::now), published: 0 }
    }

    /// One more was published. Shown some times a second.
    fn published(&mut self) {
        self.published += 1;
        if self.shown.is_some_and(|shown| shown.elapsed() >= PROGRESS) {
            self.shown = Some(Instant::now());
            eprint!("\r{} published", self.published);
        }
    }
}

impl Drop for Progress {
    /// Leaves the last number in a line of its own, if any was shown.
    fn drop(&mut self) {
        if self.shown.is_some() && self.published > 0 {
            eprintln!("\r{} published", self.published);
        }
    }
}
