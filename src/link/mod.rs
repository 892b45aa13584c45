//! The link: a process that carries events from one deployment, the source, to another one, the
//! destination, over a line that may be long and is cut at times.
//!
//! It is a node of both: it subscribes at the source with a resume token, and publishes at the
//! destination with a publisher id, so that neither side loses or repeats anything. Between the two
//! lies its state file (`journal.rs`), and with that the promise holds over a link that is killed.
//! What the source reports as a gap is published at the destination as an event that streams there
//! get as a gap (`carry.rs`); so is what the destination rejects, and what was sent so long ago
//! that the destination may have forgotten it.
//!
//! It stands on `trunkline-client` alone, like any node.

mod admin;
mod carry;
mod journal;
mod reading;
mod settle;

use std::{
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;
use trunkline_client::{
    Client, Error, ErrorKind, Publisher, PublisherOptions, SubscribeOptions, Subscription,
    Unacknowledged, kinds::TABLE, v1::EventKind,
};

pub use self::journal::StateError;
use self::{
    carry::{Carry, LeftOut},
    journal::{Identity, Journal},
    reading::Reading,
    settle::Settled,
};
use crate::throttle::Throttle;

/// The wait before a deployment that could not be reached is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// The interval of heartbeats of the source: a gateway that is silent for twice as long is given
/// up.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// How long events may be in doubt. Gateways remember a publisher for a minute longer.
const MAX_DOUBT: Duration = Duration::from_mins(9);

/// Events that may wait for their answers, whatever their size.
const MAX_EVENTS: usize = 100_000;

/// The length of an id.
const MAX_ID: usize = 128;

/// What a link carries, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The kinds of events; empty: all that this version knows.
    pub kinds: Vec<EventKind>,
    /// The accounts of kinds that concern one; empty: all.
    pub accounts: Vec<String>,
    /// Also carries what other links have brought to the source.
    pub transit: bool,
    /// Its node id at both ends; none: one that is made of the names of the deployments.
    pub node_id: Option<String>,
    /// Bytes of events that may wait for their answers.
    pub in_flight: usize,
    /// The state file.
    pub state: PathBuf,
}

/// Why a link ends.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A deployment has no name.
    #[error(
        "{side}: the gateway {gateway} says no name of its deployment: set the key `deployment` on \
         all of its gateways, each deployment with a name of its own"
    )]
    Unnamed {
        /// The flag.
        side: &'static str,
        /// The id of the gateway.
        gateway: String,
    },
    /// Both ends are one deployment.
    #[error(
        "--from and --to are both the deployment {0:?}: a link to itself carries nothing; if they \
         are two deployments, give each a name of its own (the key `deployment`)"
    )]
    Itself(String),
    /// The deployment behind an address is another one than at the start.
    #[error("{side}: {gateway} is of the deployment {found:?} now, and was of {expected:?}")]
    Replaced {
        /// The flag.
        side: &'static str,
        /// The id of the gateway.
        gateway: String,
        /// What it says.
        found: String,
        /// What the state of the link is of.
        expected: String,
    },
    /// The state file is of no use.
    #[error("--state {}: {why}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// Why.
        why: StateError,
    },
    /// A deployment refuses what the link asks for.
    #[error("{side}: {error}")]
    Refused {
        /// The flag.
        side: &'static str,
        /// The error.
        error: Error,
    },
    /// Somebody else publishes under the link's publisher id.
    #[error(
        "--to: the deployment has events that {} knows nothing of: another link runs with a copy \
         of it, or an older one was restored",
        path.display()
    )]
    TakenOver {
        /// The state file.
        path: PathBuf,
    },
}

/// What a link counts.
#[derive(Debug, Default)]
struct Counters {
    /// Events from the source.
    received: AtomicU64,
    /// Events, and reports of missed ones, that the destination has accepted.
    carried: AtomicU64,
    /// Events that were left out, by [`LeftOut`].
    left_out: [AtomicU64; LeftOut::ALL.len()],
    /// Gaps of the source that were passed on.
    gaps: AtomicU64,
    /// Events that the destination rejected.
    rejected: AtomicU64,
    /// Events of which nobody knows whether the destination has them.
    in_doubt: AtomicU64,
    /// Streams of events that the source opened.
    streams: AtomicU64,
}

fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// A link between two deployments.
#[derive(Clone, Debug)]
pub struct Link {
    shared: Arc<Shared>,
}

/// What the tasks of a link share.
#[derive(Debug)]
struct Shared {
    from: Client,
    to: Client,
    options: Options,
    counters: Counters,
    started: SystemTime,
    /// A stream of the source is open.
    is_connected: AtomicBool,
    /// The destination answers, or nothing waits for it.
    is_accepting: AtomicBool,
    publisher: OnceLock<Publisher>,
    settled: Mutex<Settled>,
    disconnected: Throttle,
    rejected: Throttle,
}

impl Link {
    /// A link; it connects when it runs. `from` must take as many bytes in flight on one stream as
    /// the line is long.
    pub fn new(from: Client, to: Client, options: Options) -> Link {
        let shared = Shared {
            from,
            to,
            options,
            counters: Counters::default(),
            started: SystemTime::now(),
            is_connected: AtomicBool::new(false),
            is_accepting: AtomicBool::new(true),
            publisher: OnceLock::new(),
            settled: Mutex::default(),
            disconnected: Throttle::repeated(),
            rejected: Throttle::repeated(),
        };
        Link { shared: Arc::new(shared) }
    }

    /// Carries events until `stop` is cancelled. While a deployment cannot be reached, it waits.
    ///
    /// # Errors
    ///
    /// What an operator has to cure: all of [`LinkError`].
    pub async fn run(&self, stop: CancellationToken) -> Result<(), LinkError> {
        let shared = &self.shared;
        let names = async {
            let from = shared.name_of("--from", &shared.from).await?;
            Ok((from, shared.name_of("--to", &shared.to).await?))
        };
        let Some(names) = stop.run_until_cancelled(names).await else { return Ok(()) };
        let (from, to) = names?;
        if from == to {
            return Err(LinkError::Itself(from));
        }
        let identity = Identity { node_id: shared.node_id(&from, &to), from, to };
        let opened = Journal::open(&shared.options.state, &identity);
        let (journal, unsettled) = opened.map_err(|why| shared.state(why))?;
        let Identity { from, to, node_id } = &identity;
        tracing::info!(from, to, node_id, waiting = unsettled.len(), "the link begins");
        let options = PublisherOptions::new()
            .max_events(MAX_EVENTS)
            .max_bytes(shared.options.in_flight)
            .max_age(Duration::MAX)
            .max_doubt(MAX_DOUBT)
            .deployment(to);
        let before = Unacknowledged {
            publisher_id: journal.publisher_id().to_owned(),
            first_sequence: journal.settled() + 1,
            events: unsettled,
        };
        let client = shared.to.for_node(node_id);
        let (publisher, restored) = client.publisher_after(before, options);
        let publisher = shared.publisher.get_or_init(|| publisher);
        let (answers, unread) = mpsc::channel(2 * MAX_EVENTS);
        *shared.settled.lock() = Settled { sequence: journal.settled(), missed: 0 };
        let settling = tokio::spawn(settle::run(shared.clone(), restored, unread));
        let mut reading = Reading {
            shared,
            carry: Carry { identity: &identity, options: &shared.options },
            subscription: shared.subscribe(&identity, journal.token()),
            journal,
            publisher,
            answers: Some(answers),
            settling,
            events: vec![],
            bytes: 0,
            last_values: vec![],
        };
        let ended = reading.run(&stop).await;
        reading.settling.abort();
        ended
    }
}

impl Shared {
    /// The name of a deployment, once one of its gateways answers.
    async fn name_of(&self, side: &'static str, client: &Client) -> Result<String, LinkError> {
        let throttle = Throttle::repeated();
        loop {
            match client.status().await {
                Ok(status) if status.deployment.is_empty() => {
                    return Err(LinkError::Unnamed { side, gateway: status.gateway_id });
                }
                Ok(status) => return Ok(status.deployment),
                Err(error) if error.kind() != ErrorKind::Unavailable => {
                    return Err(LinkError::Refused { side, error });
                }
                Err(error) => {
                    if let Some(suppressed) = throttle.pass() {
                        let why = error.status().map(ToString::to_string).unwrap_or_default();
                        let what = "no gateway answers; the next attempt follows";
                        tracing::warn!(side, why, suppressed, "{what}");
                    }
                }
            }
            sleep(RETRY).await;
        }
    }

    /// The node id of the link.
    fn node_id(&self, from: &str, to: &str) -> String {
        let made = || {
            let mut id = format!("link-{from}-{to}");
            id.truncate(id.floor_char_boundary(MAX_ID));
            id
        };
        self.options.node_id.clone().unwrap_or_else(made)
    }

    fn subscribe(&self, identity: &Identity, token: &[u8]) -> Subscription {
        // The nodes of one deployment are not those of another.
        let all = TABLE.iter().filter(|row| row.is_between_nodes()).map(|row| row.kind);
        let kinds: Vec<EventKind> = match &self.options.kinds[..] {
            [] => all.collect(),
            kinds => kinds.to_vec(),
        };
        let options = SubscribeOptions::new()
            .resume_token(token)
            .heartbeat_interval(HEARTBEAT)
            // Another link may have its node id.
            .include_own_events();
        let options = kinds.into_iter().fold(options, SubscribeOptions::kind);
        let accounts = self.options.accounts.iter();
        let options = accounts.fold(options, SubscribeOptions::account);
        self.from.for_node(&identity.node_id).subscribe(options)
    }

    fn state(&self, why: StateError) -> LinkError {
        LinkError::State { path: self.options.state.clone(), why }
    }

    /// The error of a publisher that has ended.
    fn refused(&self, error: Error) -> LinkError {
        match error.kind() {
            ErrorKind::TakenOver => LinkError::TakenOver { path: self.options.state.clone() },
            _ => LinkError::Refused { side: "--to", error },
        }
    }
}
