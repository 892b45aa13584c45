//! `trunkline publish`.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    sync::mpsc,
};
use tonic::{Code, transport::Channel};
use trunkline::proto::v1::{
    self, Event, PublishRequest, coordination_service_client::CoordinationServiceClient,
    event::Kind,
};
use uuid::Uuid;

use super::{Failure, Gateway, Node, json};

/// Events of one request at the most.
const BATCH: usize = 500;

/// How long a request is tried again while the gateway or its bus is not available.
const RETRY_FOR: Duration = Duration::from_secs(30);
const RETRY_WAIT: Duration = Duration::from_millis(250);

#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  trunkline publish mailbox-change --account a1 --change-id 7 --types email --types mailbox
  trunkline publish blocked-ip 192.0.2.7 --reason 'too many failed logins'
  trunkline publish cache-invalidation role:7 domain
  trunkline publish --json '{\"queueStatus\":{\"state\":\"STATE_PAUSED\"}}'
  cat events.jsonl | trunkline publish -
  trunkline subscribe --gateway http://a:7420 | trunkline publish --gateway http://b:7420 -"
)]
pub(super) struct Publish {
    #[command(flatten)]
    gateway: Gateway,
    #[command(flatten)]
    node: Node,
    /// An event as JSON, as `subscribe` prints it
    #[arg(long)]
    json: Vec<String>,
    /// `-`: events from standard input, one JSON object a line; what is ready leaves together
    #[arg(value_parser = ["-"])]
    input: Option<String>,
    #[command(subcommand)]
    event: Option<What>,
}

#[derive(Subcommand)]
enum What {
    /// Something changed in an account
    MailboxChange {
        #[arg(long)]
        account: String,
        #[arg(long, default_value_t = 0)]
        change_id: u64,
        /// What changed; may be given several times
        #[arg(long, value_parser = parse_type)]
        types: Vec<i32>,
    },
    /// A message was delivered
    EmailDelivery {
        #[arg(long)]
        account: String,
        #[arg(long, default_value = "")]
        email: String,
        #[arg(long, default_value_t = 0)]
        change_id: u64,
    },
    /// An address or network is banned, or no longer
    BlockedIp {
        address: String,
        #[arg(long)]
        removed: bool,
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// A certificate is to be loaded
    CertificateChange {
        certificate: String,
        #[arg(long)]
        domain: Vec<String>,
    },
    /// An object of the registry changed
    RegistryChange {
        object_type: String,
        #[arg(default_value = "")]
        object_id: String,
    },
    /// Entries of caches are no longer valid: CACHE or CACHE:ID
    CacheInvalidation { entries: Vec<String> },
    /// The queue was paused or resumed
    QueueStatus { state: QueueState },
    /// The queue is to be read again
    QueueRefresh,
}

#[derive(Clone, Copy, ValueEnum)]
enum QueueState {
    Running,
    Paused,
}

fn parse_type(text: &str) -> Result<i32, String> {
    let name = format!("CHANGED_TYPE_{}", text.replace('-', "_").to_uppercase());
    let known = v1::ChangedType::from_str_name(&name);
    known.map(i32::from).ok_or_else(|| {
        "no such type; try email, email-delivery, mailbox, thread, calendar-event, contact-card"
            .into()
    })
}

impl What {
    fn kind(&self) -> Kind {
        match self {
            What::MailboxChange { account, change_id, types } => {
                Kind::MailboxChange(v1::MailboxChange {
                    account_id: account.clone(),
                    change_id: *change_id,
                    changed_types: types.clone(),
                })
            }
            What::EmailDelivery { account, email, change_id } => {
                Kind::EmailDelivery(v1::EmailDelivery {
                    account_id: account.clone(),
                    email_id: email.clone(),
                    change_id: *change_id,
                })
            }
            What::BlockedIp { address, removed, reason } => {
                use v1::blocked_ip::Action;
                let action = if *removed { Action::Removed } else { Action::Added };
                Kind::BlockedIp(v1::BlockedIp {
                    address: address.clone(),
                    action: action.into(),
                    expires_at: None,
                    reason: reason.clone(),
                })
            }
            What::CertificateChange { certificate, domain } => {
                Kind::CertificateChange(v1::CertificateChange {
                    certificate_id: certificate.clone(),
                    domain_names: domain.clone(),
                    action: 0,
                })
            }
            What::RegistryChange { object_type, object_id } => {
                Kind::RegistryChange(v1::RegistryChange {
                    object_type: object_type.clone(),
                    object_id: object_id.clone(),
                    action: 0,
                })
            }
            What::CacheInvalidation { entries } => {
                let entry = |text: &String| {
                    let (cache, id) = text.split_once(':').unwrap_or((text, ""));
                    v1::cache_invalidation::Entry { cache: cache.into(), id: id.into() }
                };
                let entries = entries.iter().map(entry).collect();
                Kind::CacheInvalidation(v1::CacheInvalidation { entries, scope: 0 })
            }
            What::QueueStatus { state } => {
                use v1::queue_status::State;
                let state = match state {
                    QueueState::Running => State::Running,
                    QueueState::Paused => State::Paused,
                };
                Kind::QueueStatus(v1::QueueStatus { state: state.into() })
            }
            What::QueueRefresh => Kind::QueueRefresh(v1::QueueRefresh {}),
        }
    }
}

impl Publish {
    pub(super) async fn run(&self) -> Result<(), Failure> {
        let mut events = Vec::new();
        for text in &self.json {
            events.push(parse(text).map_err(|error| Failure::Input(format!("--json: {error}")))?);
        }
        if let Some(what) = &self.event {
            events.push(Event { kind: Some(what.kind()), ..Default::default() });
        }
        if events.is_empty() && self.input.is_none() {
            return Err(Failure::Input("nothing to publish: see trunkline publish --help".into()));
        }
        let mut client = self.gateway.connect().await?;
        for batch in events.chunks(BATCH) {
            self.send(&mut client, batch.to_vec()).await?;
        }
        if self.input.is_some() { self.publish_lines(&mut client).await } else { Ok(()) }
    }

    /// Publishes standard input: what has been read while a request was under way leaves with the next one.
    async fn publish_lines(
        &self,
        client: &mut CoordinationServiceClient<Channel>,
    ) -> Result<(), Failure> {
        let (sender, mut lines) = mpsc::channel::<std::io::Result<String>>(2 * BATCH);
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
        let mut ready = Vec::with_capacity(BATCH);
        while lines.recv_many(&mut ready, BATCH).await > 0 {
            let mut events = Vec::with_capacity(ready.len());
            let mut wrong = None;
            for line in ready.drain(..) {
                let line = line?;
                number += 1;
                if line.trim().is_empty() {
                    continue;
                }
                match parse(&line) {
                    Ok(event) => events.push(event),
                    Err(error) => {
                        wrong = Some(Failure::Input(format!("line {number}: {error}")));
                        break;
                    }
                }
            }
            // What came before the wrong line is published all the same.
            if !events.is_empty() {
                self.send(client, events).await?;
            }
            if let Some(wrong) = wrong {
                reader.abort();
                return Err(wrong);
            }
        }
        Ok(())
    }

    /// Publishes a batch, under one request id however often it is tried.
    async fn send(
        &self,
        client: &mut CoordinationServiceClient<Channel>,
        events: Vec<Event>,
    ) -> Result<(), Failure> {
        let request = PublishRequest {
            node_id: self.node.id(),
            request_id: Uuid::new_v4().to_string(),
            events,
        };
        let started = Instant::now();
        loop {
            match client.publish(request.clone()).await {
                Ok(_) => return Ok(()),
                Err(status)
                    if status.code() == Code::Unavailable && started.elapsed() < RETRY_FOR =>
                {
                    tokio::time::sleep(RETRY_WAIT).await;
                }
                Err(status) => return Err(status.into()),
            }
        }
    }
}

fn parse(text: &str) -> Result<Event, String> {
    let json: Value = serde_json::from_str(text).map_err(|error| format!("no JSON: {error}"))?;
    json::event_from_json(json)
}
