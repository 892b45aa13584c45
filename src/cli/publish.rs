//! `trunkline publish`.

use std::time::Duration;

use clap::Args;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    sync::mpsc,
};
use trunkline_client::{Client, Error, ErrorKind};
use trunkline_proto::v1::{Event, Target};

use super::{Failure, GatewayArgs, NodeArgs, json, kinds::EventArgs};

/// Most events of one request.
const MAX_BATCH: usize = 500;

/// Time for which a request is retried, under one request id, while the gateway or its bus is not
/// available.
const RETRY_FOR: Duration = Duration::from_secs(30);

#[derive(Args)]
#[command(after_help = "\
Examples:
  trunkline publish mailbox-change --account a1 --change-id 7 --types email,mailbox
  trunkline publish blocked-ip 192.0.2.7 --reason 'too many failed logins' --expires-in 24h
  trunkline publish cache-invalidation role:7 domain
  trunkline publish --to-role mta queue-refresh
  trunkline publish --json '{\"queueStatus\":{\"state\":\"STATE_PAUSED\"}}'
  cat events.jsonl | trunkline publish -
  trunkline subscribe --gateway a:7420 | trunkline publish --gateway b:7420 -

Prints nothing on success. While the gateway is not available, a request is retried for half a
minute; a retry never publishes twice.")]
pub(super) struct Publish {
    #[command(flatten)]
    gateway: GatewayArgs,
    #[command(flatten)]
    node: NodeArgs,
    /// An event as JSON, as `subscribe` prints it; may be given several times
    #[arg(long, value_name = "EVENT", global = true)]
    json: Vec<String>,
    /// Only for this node; may be given several times and with --to-role: one match is enough
    #[arg(long, value_name = "NODE_ID", global = true)]
    to_node: Vec<String>,
    /// Only for nodes with this role
    #[arg(long, value_name = "ROLE", global = true)]
    to_role: Vec<String>,
    /// `-`: read events from standard input, one JSON object per line
    #[arg(value_parser = ["-"])]
    input: Option<String>,
    #[command(subcommand)]
    event: Option<EventArgs>,
}

impl Publish {
    pub(super) async fn run(mut self) -> Result<(), Failure> {
        let mut events = Vec::new();
        for text in &self.json {
            events.extend(parse(text).map_err(|error| Failure::Input(format!("--json: {error}")))?);
        }
        if let Some(args) = self.event.take() {
            events.push(args.into_kind().into());
        }
        if events.is_empty() && self.input.is_none() {
            let problem = "nothing to publish: name a kind, or give --json or -; see --help";
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
            self.send(&client, batch.to_vec(), &[]).await?;
        }
        if self.input.is_some() { self.publish_lines(&client).await } else { Ok(()) }
    }

    /// Publishes standard input. Lines that are read while a request is in flight form the next
    /// one.
    async fn publish_lines(&self, client: &Client) -> Result<(), Failure> {
        let (sender, mut lines) = mpsc::channel::<std::io::Result<String>>(2 * MAX_BATCH);
        let reader = tokio::spawn(async move {
            let mut input = BufReader::new(tokio::io::stdin()).lines();
            loop {
                let line = match input.next_line().await {
                    Ok(Some(line)) => Ok(line),
                    Ok(None) => return,
                    Err(error) => Err(error),
                };
                let failed = line.is_err();
                if sender.send(line).await.is_err() || failed {
                    return;
                }
            }
        });
        let mut number = 0;
        let mut ready = Vec::with_capacity(MAX_BATCH);
        while lines.recv_many(&mut ready, MAX_BATCH).await > 0 {
            let mut events = Vec::with_capacity(ready.len());
            let mut numbers = Vec::with_capacity(ready.len());
            let mut wrong = None;
            for line in ready.drain(..) {
                let line = line?;
                number += 1;
                if line.trim().is_empty() {
                    continue;
                }
                match parse(&line) {
                    Ok(of_line) => {
                        numbers.resize(numbers.len() + of_line.len(), number);
                        events.extend(of_line);
                    }
                    Err(error) => {
                        wrong = Some(Failure::Input(format!("line {number}: {error}")));
                        break;
                    }
                }
            }
            // Events before the wrong line are published.
            for (events, numbers) in events.chunks(MAX_BATCH).zip(numbers.chunks(MAX_BATCH)) {
                self.send(client, events.to_vec(), numbers).await?;
            }
            if let Some(wrong) = wrong {
                reader.abort();
                return Err(wrong);
            }
        }
        Ok(())
    }

    /// Publishes a batch. `lines` are the line numbers of its events, empty if it was not read from
    /// lines.
    async fn send(
        &self,
        client: &Client,
        mut events: Vec<Event>,
        lines: &[u64],
    ) -> Result<(), Failure> {
        if !self.to_node.is_empty() || !self.to_role.is_empty() {
            for event in &mut events {
                let (node_ids, roles) = (self.to_node.clone(), self.to_role.clone());
                event.target = Some(Target { node_ids, roles });
            }
        }
        match client.publish(events).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.failure(&error, lines)),
        }
    }

    fn failure(&self, error: &Error, lines: &[u64]) -> Failure {
        if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::OutcomeUnknown) {
            let address = self.gateway.address();
            return Failure::Unavailable { address, why: error.to_string() };
        }
        let violations = error.violations();
        if error.kind() == ErrorKind::Invalid && !lines.is_empty() && !violations.is_empty() {
            let texts: Vec<_> =
                violations.iter().map(|(field, why)| by_line(field, why, lines)).collect();
            return Failure::Input(texts.join("\n"));
        }
        match error.status() {
            Some(status) => Failure::Gateway(status.clone()),
            None => Failure::Other(error.to_string()),
        }
    }
}

/// A violation with the line number of its event: `events[3].custom.type` is on the fourth of
/// `lines`.
fn by_line(field: &str, why: &str, lines: &[u64]) -> String {
    let of_event = field.strip_prefix("events[").and_then(|rest| {
        let (index, path) = rest.split_once(']')?;
        let line = lines.get(index.parse::<usize>().ok()?)?;
        Some((line, path.trim_start_matches('.')))
    });
    match of_event {
        Some((line, "")) => format!("line {line}: {why}"),
        Some((line, path)) => format!("line {line}: {path}: {why}"),
        None => format!("{field}: {why}"),
    }
}

/// The events of a line that `subscribe` printed: one, or with --all those of a response.
fn parse(text: &str) -> Result<Vec<Event>, String> {
    let json: Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    json::events_from_json(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_violation_names_the_line_of_its_event() {
        let lines = [2, 4];
        assert_eq!(
            by_line("events[1].custom.type", "is required", &lines),
            "line 4: custom.type: is required"
        );
        assert_eq!(by_line("events[0]", "has no kind", &lines), "line 2: has no kind");
        assert_eq!(by_line("node_id", "is required", &lines), "node_id: is required");
    }
}
