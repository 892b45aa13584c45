//! A small mail server node that shows what Trunkline does for one.
//!
//! Start a gateway and two nodes, each in its own terminal, and type commands:
//!
//!     cargo run -- serve
//!     cargo run --example mail_server -- mx1
//!     cargo run --example mail_server -- mx2
//!
//!     mx2> idle alice              a client of alice waits in IDLE on mx2
//!     mx1> deliver alice           a message arrives on mx1, and the client on mx2 is woken
//!     mx1> ban 192.0.2.7           refused by both nodes from now on
//!     mx1> login bob               mx1 caches the permissions of bob ...
//!     mx2> password bob            ... until mx2 changes his password
//!     mx1> renew example.org       both nodes load the new certificate
//!
//! The nodes of a real server share a database; this one only prints what it would read and write.
//! Trunkline tells a node *when* to look: it receives at once what another node has done. Three
//! rules make that safe, and are marked below:
//!
//! 1. subscribe first, then load;
//! 2. after a gap, reload whatever it may concern;
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
use trunkline_client::{
    Client, Notification, SubscribeOptions,
    v1::{
        BlockedIp, CacheInvalidation, CertificateChange, ChangedType, EmailDelivery, Event,
        EventKind, Gap, MailboxChange, QueueRefresh, blocked_ip,
        cache_invalidation::{Entry, Scope},
        certificate_change,
        event::Kind,
    },
};

/// The kinds of events that this node handles, and therefore subscribes to.
const KINDS: [EventKind; 6] = [
    EventKind::MailboxChange,
    EventKind::EmailDelivery,
    EventKind::BlockedIp,
    EventKind::CertificateChange,
    EventKind::CacheInvalidation,
    EventKind::QueueRefresh,
];

/// Shortest interval between two writes of the resume token.
const STORE_EVERY: Duration = Duration::from_secs(1);

/// A small mail server node
#[derive(Parser)]
struct Args {
    /// Id of the node: unique in the cluster, and the same after a restart
    node_id: String,
    /// Address of a gateway; may be given several times, to fall back to the next
    #[arg(long, default_value = "http://127.0.0.1:7420")]
    gateway: Vec<String>,
    /// Role of this node: events can be targeted at a role
    #[arg(long, default_value = "imap")]
    role: Vec<String>,
    /// File for the resume token, to resume after a restart
    #[arg(long)]
    state: Option<PathBuf>,
}

#[tokio::main]
async fn main() {
    let result = run(Args::parse()).await;
    if let Err(error) = &result {
        eprintln!("{error}");
    }
    // Returning would wait for the thread that reads standard input.
    std::process::exit(i32::from(result.is_err()))
}

async fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let mut client = Client::builder(&args.node_id).gateways(args.gateway);
    for role in args.role {
        client = client.role(role);
    }
    let client = client.build()?;

    // A node needs to keep the token over a restart if it must not miss events: one that sends
    // calendar alerts or works on a queue. Caches and sessions are empty after a restart anyway.
    let mut token = Token::load(args.state)?;
    let mut options = SubscribeOptions::new().resume_token(token.bytes.clone());
    for kind in KINDS {
        options = options.kind(kind);
    }
    let mut events = client.subscribe(options);

    let mut server = Server::new(client);
    // Commands are read only once the stream is open: a node that serves must receive all events.
    let mut commands: Option<Lines<BufReader<Stdin>>> = None;
    let mut terminate = signal(SignalKind::terminate())?;
    loop {
        tokio::select! {
            notification = events.next() => {
                // An error is final: the subscription itself is wrong, and a retry would not help.
                let Some(notification) = notification.transpose()? else { break };
                if matches!(notification, Notification::Subscribed(_)) && commands.is_none() {
                    // 1. Subscribe first, then load: changes after the load come as events.
                    server.load(&KINDS);
                    commands = Some(BufReader::new(tokio::io::stdin()).lines());
                }
                server.on_notification(notification);
                token.set(events.resume_token())?;
            }
            line = next_line(&mut commands) => server.command(&line?).await,
            _ = terminate.recv() => break,
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    // Closing the stream tells the gateway that this node has left.
    drop(events);
    token.store()?;
    Ok(())
}

/// The next command. Never returns before commands are read and after the last one.
async fn next_line(commands: &mut Option<Lines<BufReader<Stdin>>>) -> io::Result<String> {
    if let Some(lines) = commands
        && let Some(line) = lines.next_line().await?
    {
        return Ok(line);
    }
    std::future::pending().await
}

/// The state that a node has in memory, which events of other nodes can make stale.
struct Server {
    client: Client,
    /// Clients in IDLE by account.
    idle: BTreeMap<String, usize>,
    /// Networks that are refused.
    banned: BTreeSet<String>,
    /// Accounts whose permissions are cached: entries of the cache `access_token`.
    permissions: BTreeSet<String>,
    /// Number of the last change, which a real server reads from its database.
    change_id: u64,
}

impl Server {
    fn new(client: Client) -> Server {
        let change_id = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |age| age.as_secs());
        Server {
            client,
            idle: BTreeMap::new(),
            banned: BTreeSet::new(),
            permissions: BTreeSet::new(),
            change_id,
        }
    }

    /// Handles a notification of the subscription.
    fn on_notification(&mut self, notification: Notification) {
        match notification {
            Notification::Subscribed(subscribed) => {
                println!("connected to {}", subscribed.gateway_id);
            }
            Notification::Event(event) => self.on_event(&event),
            Notification::Gap(gap) => self.on_gap(&gap),
            Notification::Reconnecting { reason, wait } => {
                // Nothing is lost: the subscription resumes. The node continues to serve.
                println!("reconnecting in {wait:.1?}: {reason}");
            }
            // The subscription moves to another gateway by itself.
            Notification::Draining(draining) => println!("gateway leaves: {}", draining.reason),
            // Heartbeats, and notifications that later versions may add.
            _ => {}
        }
    }

    /// Handles an event of another node.
    fn on_event(&mut self, event: &Event) {
        let source = &event.source;
        match &event.kind {
            Some(Kind::MailboxChange(change)) => {
                let account = &change.account_id;
                // Most accounts have no client here. A node with few accounts could filter by
                // account.
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
            Some(Kind::CacheInvalidation(invalidation)) => self.invalidate(invalidation),
            Some(Kind::QueueRefresh(_)) => println!("reread the queue ({source})"),
            // No other kind arrives: the subscription is for KINDS alone.
            _ => {}
        }
    }

    fn invalidate(&mut self, invalidation: &CacheInvalidation) {
        if invalidation.scope() == Scope::All {
            self.permissions.clear();
            println!("clear all caches");
        }
        for entry in invalidation.entries.iter().filter(|entry| entry.cache == "access_token") {
            if entry.id.is_empty() {
                self.permissions.clear();
            } else {
                self.permissions.remove(&entry.id);
            }
            println!("drop the cached permissions of {}", entry.id);
        }
    }

    /// 2. After a gap, reload whatever it may concern: a ban or a revoked permission may be
    ///    missing.
    fn on_gap(&mut self, gap: &Gap) {
        let count = gap.missed_events.map_or("some".to_owned(), |count| count.to_string());
        println!("missed {count} events");
        let kinds: Vec<EventKind> = gap.kinds().collect();
        self.load(if kinds.is_empty() { &KINDS } else { &kinds });
    }

    /// Reloads the state that events of these kinds change.
    fn load(&mut self, kinds: &[EventKind]) {
        for kind in kinds {
            match kind {
                EventKind::MailboxChange => {
                    println!("load: states of {} accounts in IDLE", self.idle.len());
                }
                EventKind::BlockedIp => println!("load: banned networks"),
                EventKind::CertificateChange => println!("load: certificates"),
                EventKind::CacheInvalidation => {
                    // A cache is not reloaded but emptied: entries are looked up when needed.
                    self.permissions.clear();
                    println!("load: caches emptied");
                }
                EventKind::QueueRefresh => println!("load: queue"),
                // A missed delivery shows in the state of its account.
                _ => {}
            }
        }
    }

    /// Handles a command: an action of a client of this node.
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
                let known = !self.permissions.insert(account.to_owned());
                println!("{account}: permissions {}", if known { "cached" } else { "looked up" });
            }
            ["password", account] => {
                self.permissions.remove(account);
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

    /// Stores a message that has arrived on this node, and publishes that.
    async fn deliver(&mut self, account: &str) {
        self.change_id += 1;
        let email_id = format!("message-{}", self.change_id);
        // 3. Publish after the change is stored: other nodes look it up at once, and must find it.
        println!("{account}: stored {email_id}");
        if let Some(clients) = self.idle.get(account) {
            // A node does not receive its own events: it wakes its own clients directly.
            println!("{account}: wake {clients} IDLE (change {}, here)", self.change_id);
        }
        let delivery =
            EmailDelivery { account_id: account.to_owned(), email_id, change_id: self.change_id };
        let change = MailboxChange {
            account_id: account.to_owned(),
            change_id: self.change_id,
            changed_types: vec![ChangedType::Email.into(), ChangedType::Mailbox.into()],
            ..Default::default()
        };
        // One request is published as a whole. The refresh is only for nodes that send mail.
        self.publish([
            Event::from(change),
            delivery.into(),
            Event::from(QueueRefresh {}).for_role("mta"),
        ])
        .await;
    }

    /// Publishes, and gives up after the half minute for which the client retries. A real server
    /// stores an event that must arrive together with the change and a request id, and calls
    /// `publish_as` with both until it succeeds.
    async fn publish<E: Into<Event>>(&self, events: impl IntoIterator<Item = E>) {
        match self.client.publish(events).await {
            Ok(positions) => println!("published {} events", positions.len()),
            Err(error) => println!("not published, {:?}: {error}", error.kind()),
        }
    }
}

/// The resume token, and the file that keeps it over a restart.
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

    /// Updates the token. Called after an event is handled: a node that is killed in between
    /// receives the event again.
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
        // Renamed into place, so that the file is never half written.
        let new = path.with_extension("new");
        fs::write(&new, &self.bytes)?;
        fs::rename(new, path)
    }
}
