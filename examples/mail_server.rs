//! A node: as much of a mail server as it takes to see what Trunkline does for one.
//!
//! Start a gateway and two nodes, each in a terminal of its own, and type commands:
//!
//!     cargo run -- serve
//!     cargo run --example mail_server -- mx1
//!     cargo run --example mail_server -- mx2
//!
//!     mx2> idle alice              a client of alice waits on mx2
//!     mx1> deliver alice           a message arrives on mx1, and the client on mx2 is told
//!     mx1> ban 192.0.2.7           refused by both from now on
//!     mx1> login bob               mx1 remembers bob's rights ...
//!     mx2> password bob            ... until mx2 changes his password
//!     mx1> renew example.org       both load the new certificate
//!
//! Whatever the nodes share lies in the database of a real server; here it is said in words. What Trunkline adds is *when* to
//! look: every node hears at once what another one has done. Three things make that safe, and are marked below:
//!
//! 1. subscribe first, then load;
//! 2. on a gap, load again what it may have concerned;
//! 3. publish after the change is stored, never before.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fs, io,
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use clap::Parser;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines, Stdin},
    signal::unix::{SignalKind, signal},
};
use trunkline_client::{Client, Notification, SubscribeOptions};
use trunkline_proto::v1::{
    BlockedIp, CacheInvalidation, CertificateChange, ChangedType, EmailDelivery, Event, EventKind,
    Gap, MailboxChange, QueueRefresh, blocked_ip,
    cache_invalidation::{Entry, Scope},
    certificate_change,
    event::Kind,
};

/// The kinds that this node does something about. It is not sent any other.
const KINDS: [EventKind; 6] = [
    EventKind::MailboxChange,
    EventKind::EmailDelivery,
    EventKind::BlockedIp,
    EventKind::CertificateChange,
    EventKind::CacheInvalidation,
    EventKind::QueueRefresh,
];

/// How often the resume token is stored at most.
const STORE_EVERY: Duration = Duration::from_secs(1);

/// A small mail server node
#[derive(Parser)]
struct Args {
    /// Its own in the cluster, and the same after a restart
    node_id: String,
    /// A gateway; several are used in turn
    #[arg(long, default_value = "http://127.0.0.1:7420")]
    gateway: Vec<String>,
    /// What this node is for: events can be meant for a role
    #[arg(long, default_value = "imap")]
    role: Vec<String>,
    /// Where to keep the resume token, to go on after a restart where this node stopped
    #[arg(long)]
    state: Option<PathBuf>,
}

#[tokio::main]
async fn main() {
    let result = run(Args::parse()).await;
    if let Err(error) = &result {
        eprintln!("{error}");
    }
    // Not by returning: the thread that waits for standard input would keep the process.
    std::process::exit(i32::from(result.is_err()))
}

async fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let mut client = Client::builder(&args.node_id).gateways(args.gateway);
    for role in args.role {
        client = client.role(role);
    }
    let client = client.build()?;

    // Whether to keep the token over a restart depends on what the node does. Caches and sessions are gone after one anyway;
    // but who sends calendar alerts or talks to a queue wants to know what happened in between.
    let mut token = Token::load(args.state)?;
    let mut options = SubscribeOptions::new().resume_token(token.bytes.clone());
    for kind in KINDS {
        options = options.kind(kind);
    }
    let mut events = client.subscribe(options);

    let mut server = Server::new(client);
    // Commands wait for the stream: what others do must not pass unheard while this node begins to serve.
    let mut commands: Option<Lines<BufReader<Stdin>>> = None;
    let mut terminate = signal(SignalKind::terminate())?;
    loop {
        tokio::select! {
            notification = events.next() => {
                // An error is final: something about the subscription is wrong, and trying again does not help.
                let Some(notification) = notification.transpose()? else { break };
                if matches!(notification, Notification::Subscribed(_)) && commands.is_none() {
                    // 1. Subscribe first, then load: what changes meanwhile comes as an event.
                    server.load(&KINDS);
                    commands = Some(BufReader::new(tokio::io::stdin()).lines());
                }
                server.notice(notification);
                token.set(events.resume_token())?;
            }
            line = next_line(&mut commands) => server.command(&line?).await,
            _ = terminate.recv() => break,
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    // Closing the stream tells the gateway that this node is gone.
    drop(events);
    token.store()?;
    Ok(())
}

/// The next command; never, before there can be one and after the last.
async fn next_line(commands: &mut Option<Lines<BufReader<Stdin>>>) -> io::Result<String> {
    if let Some(lines) = commands
        && let Some(line) = lines.next_line().await?
    {
        return Ok(line);
    }
    std::future::pending().await
}

/// What a node has in memory, and must not keep when it is no longer true.
struct Server {
    client: Client,
    /// How many clients of an account wait in IDLE.
    idle: BTreeMap<String, usize>,
    /// Networks that are refused.
    banned: BTreeSet<String>,
    /// Rights of accounts that have logged in: entries of the cache `access_token`.
    rights: BTreeSet<String>,
    /// Number of the last change, which a real server takes from its database.
    change_id: u64,
}

impl Server {
    fn new(client: Client) -> Server {
        let change_id = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |age| age.as_secs());
        Server {
            client,
            idle: BTreeMap::new(),
            banned: BTreeSet::new(),
            rights: BTreeSet::new(),
            change_id,
        }
    }

    /// Deals with what the subscription brings.
    fn notice(&mut self, notification: Notification) {
        match notification {
            Notification::Subscribed(subscribed) => {
                println!("connected to {}", subscribed.gateway_id);
            }
            Notification::Event(event) => self.handle(&event),
            Notification::Gap(gap) => self.catch_up(&gap),
            Notification::Reconnecting { reason, wait } => {
                // Nothing is lost by it: the subscription resumes. The node serves on meanwhile.
                println!("reconnecting in {wait:.1?}: {reason}");
            }
            // The subscription goes to another gateway by itself.
            Notification::Draining(draining) => println!("gateway leaves: {}", draining.reason),
            // Heartbeats, and what newer versions may bring.
            _ => {}
        }
    }

    /// Deals with what another node has done.
    fn handle(&mut self, event: &Event) {
        let source = &event.source;
        match &event.kind {
            Some(Kind::MailboxChange(change)) => {
                let account = &change.account_id;
                // Nobody here waits for most accounts. A node with few of them subscribes to those accounts alone.
                if let Some(clients) = self.idle.get(account) {
                    println!(
                        "{account}: wake {clients} IDLE (change {}, {source})",
                        change.change_id
                    );
                }
            }
            Some(Kind::EmailDelivery(delivery)) => {
                println!("{}: push {} ({source})", delivery.account_id, delivery.email_id);
            }
            Some(Kind::BlockedIp(blocked)) => {
                if blocked.action() == blocked_ip::Action::Removed {
                    self.banned.remove(&blocked.address);
                    println!("accept {} ({source})", blocked.address);
                } else {
                    self.banned.insert(blocked.address.clone());
                    println!("refuse {}: {} ({source})", blocked.address, blocked.reason);
                }
            }
            Some(Kind::CertificateChange(change)) => {
                let names = change.domain_names.join(", ");
                println!("load certificate {} for {names} ({source})", change.certificate_id);
            }
            Some(Kind::CacheInvalidation(invalidation)) => self.forget(invalidation),
            Some(Kind::QueueRefresh(_)) => println!("read the queue again ({source})"),
            // A newer node may send a kind that this one does not know. It asked for KINDS only, so nothing comes here.
            _ => {}
        }
    }

    fn forget(&mut self, invalidation: &CacheInvalidation) {
        if invalidation.scope() == Scope::All {
            self.rights.clear();
            println!("forget everything");
        }
        for entry in invalidation.entries.iter().filter(|entry| entry.cache == "access_token") {
            if entry.id.is_empty() {
                self.rights.clear();
            } else {
                self.rights.remove(&entry.id);
            }
            println!("forget the rights of {}", entry.id);
        }
    }

    /// 2. On a gap, load again what it may have concerned: a ban or a revoked right may be among what was missed.
    fn catch_up(&mut self, gap: &Gap) {
        let count = gap.missed_events.map_or("some".to_owned(), |count| count.to_string());
        println!("missed {count} events");
        let kinds: Vec<EventKind> = gap.kinds().collect();
        self.load(if kinds.is_empty() { &KINDS } else { &kinds });
    }

    /// Brings memory in line with the database, for these kinds.
    fn load(&mut self, kinds: &[EventKind]) {
        for kind in kinds {
            match kind {
                EventKind::MailboxChange => {
                    println!("load: states of {} accounts in IDLE", self.idle.len());
                }
                EventKind::BlockedIp => println!("load: banned networks"),
                EventKind::CertificateChange => println!("load: certificates"),
                EventKind::CacheInvalidation => {
                    // A cache is not loaded but emptied: who is asked for next is looked up again.
                    self.rights.clear();
                    println!("load: caches emptied");
                }
                EventKind::QueueRefresh => println!("load: queue"),
                // A delivery that was missed shows in the state of its account.
                _ => {}
            }
        }
    }

    /// What clients of this node do.
    async fn command(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [] => {}
            ["idle", account] => {
                *self.idle.entry(account.to_owned()).or_default() += 1;
                println!("{account}: IDLE");
            }
            ["deliver", account] => self.deliver(account).await,
            ["ban", address] => {
                self.banned.insert(address.to_owned());
                self.publish([BlockedIp {
                    address: address.to_owned(),
                    action: blocked_ip::Action::Added.into(),
                    reason: "too many failed logins".to_owned(),
                    ..BlockedIp::default()
                }])
                .await;
            }
            ["login", account] => {
                let known = !self.rights.insert(account.to_owned());
                println!("{account}: rights {}", if known { "remembered" } else { "looked up" });
            }
            ["password", account] => {
                self.rights.remove(account);
                let entry = Entry { cache: "access_token".into(), id: account.into() };
                let entries = vec![entry];
                self.publish([CacheInvalidation { entries, scope: Scope::Entries.into() }]).await;
            }
            ["renew", domain] => {
                self.publish([CertificateChange {
                    certificate_id: format!("acme-{domain}"),
                    domain_names: vec![domain.to_owned()],
                    action: certificate_change::Action::Renewed.into(),
                }])
                .await;
            }
            _ => println!("idle|deliver|login|password ACCOUNT, ban ADDRESS, renew DOMAIN"),
        }
    }

    /// A message has arrived on this node.
    async fn deliver(&mut self, account: &str) {
        self.change_id += 1;
        let email_id = format!("message-{}", self.change_id);
        // 3. Publish after the change is stored: who hears of it looks, and must find it.
        println!("{account}: stored {email_id}");
        if let Some(clients) = self.idle.get(account) {
            // A node does not get its own events: its own clients are told directly.
            println!("{account}: wake {clients} IDLE (change {}, here)", self.change_id);
        }
        let delivery =
            EmailDelivery { account_id: account.to_owned(), email_id, change_id: self.change_id };
        let change = MailboxChange {
            account_id: account.to_owned(),
            change_id: self.change_id,
            changed_types: vec![ChangedType::Email.into(), ChangedType::Mailbox.into()],
        };
        // One request: it is published whole. The refresh is for those who send mail only.
        self.publish([
            Event::from(change),
            delivery.into(),
            Event::from(QueueRefresh {}).for_role("mta"),
        ])
        .await;
    }

    /// Publishes, and goes on without: the client has tried for half a minute. A real server keeps what must arrive beside the
    /// change itself, with a request id, and gives both to `publish_as` until it has worked.
    async fn publish<E: Into<Event>>(&self, events: impl IntoIterator<Item = E>) {
        match self.client.publish(events).await {
            Ok(positions) => println!("published {} events", positions.len()),
            Err(error) => println!("not published, {:?}: {error}", error.kind()),
        }
    }
}

/// The resume token, and the file where it lies between two starts.
struct Token {
    path: Option<PathBuf>,
    bytes: Vec<u8>,
    stored: Instant,
}

impl Token {
    fn load(path: Option<PathBuf>) -> io::Result<Token> {
        let bytes = match &path {
            Some(path) if path.exists() => fs::read(path)?,
            _ => vec![],
        };
        Ok(Token { path, bytes, stored: Instant::now() })
    }

    /// Called after an event was dealt with, not before: a node that is killed between the two gets it again.
    fn set(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes != self.bytes {
            self.bytes = bytes.to_vec();
            if self.stored.elapsed() >= STORE_EVERY {
                self.store()?;
            }
        }
        Ok(())
    }

    fn store(&mut self) -> io::Result<()> {
        self.stored = Instant::now();
        let Some(path) = &self.path else { return Ok(()) };
        // Whole or not at all.
        let new = path.with_extension("new");
        fs::write(&new, &self.bytes)?;
        fs::rename(new, path)
    }
}
