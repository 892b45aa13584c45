//! Deployments, links between them, and nodes that record what they receive.

use std::{path::Path, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use trunkline_client::{Client, Notification, SubscribeOptions, v1::Gap};
use trunkline_proto::v1::{Event, GapReason};

use crate::support::{
    LIMIT, eventually, folder,
    gateway::{Gateway, GatewayOptions, trunkline},
    ports::Port,
    process::Process,
};

/// A gateway with the embedded bus: a deployment of its own.
pub async fn deployment(name: &str) -> Gateway {
    Gateway::start(GatewayOptions::embedded().set("deployment", name)).await
}

/// A link under test: the process, and what it is started with.
#[derive(Debug)]
pub struct Link {
    args: Vec<String>,
    process: Process,
    admin: Port,
    folder: Arc<TempDir>,
}

impl Link {
    /// Starts a link between gateways, by their URLs, with other flags.
    pub fn start(from: &[String], to: &[String], flags: &[&str]) -> Link {
        let (folder, admin) = (Arc::new(folder::new()), Port::free());
        let state = folder.path().join("state").display().to_string();
        let address = format!("127.0.0.1:{}", admin.number());
        let (from, to) = (from.join(","), to.join(","));
        let args = ["link", "--from", &from, "--to", &to, "--state", &state, "--admin", &address];
        let args: Vec<String> = args.iter().chain(flags).map(|arg| (*arg).to_owned()).collect();
        let process = Process::start("link", trunkline(args.clone()));
        Link { args, process, admin, folder }
    }

    /// The same between single gateways.
    pub fn between(from: &Gateway, to: &Gateway, flags: &[&str]) -> Link {
        Link::start(&[from.url()], &[to.url()], flags)
    }

    /// Kills it with SIGKILL.
    pub fn kill_9(&self) {
        self.process.kill_9();
    }

    /// Starts it again with its state.
    pub fn restart(&mut self) {
        self.process.kill_9();
        self.process = Process::start("link", trunkline(self.args.clone()));
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its state file.
    pub fn state(&self) -> std::path::PathBuf {
        self.folder.path().join("state")
    }

    /// Waits until the source delivers events.
    pub async fn is_connected(&self) {
        self.process.stderr_has("the source delivers events", LIMIT).await;
    }

    /// A metric: its name with its labels.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let address = format!("127.0.0.1:{}", self.admin.number());
        let body = get(&address, "/metrics").await.ok()?;
        let line = body.lines().find_map(|line| line.strip_prefix(&format!("trunkline_{name} ")));
        line.and_then(|value| value.parse().ok())
    }

    /// The body of its admin port's answer to a GET.
    pub async fn admin(&self, path: &str) -> std::io::Result<String> {
        get(&format!("127.0.0.1:{}", self.admin.number()), path).await
    }
}

async fn get(address: &str, path: &str) -> std::io::Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

/// A client for some gateways.
pub fn client(node_id: &str, urls: &[String]) -> Client {
    Client::builder(node_id).gateways(urls).build().expect("addresses")
}

/// A client of a node with a role.
pub fn client_with_role(node_id: &str, url: &str, role: &str) -> Client {
    Client::builder(node_id).gateway(url).role(role).build().expect("an address")
}

/// One thing that a node received.
#[derive(Clone, Debug)]
pub enum Received {
    Subscribed,
    Event(Box<Event>),
    Gap(Box<Gap>),
}

/// A node that records what it receives, over all reconnects.
pub struct Recorder {
    pub received: Arc<Mutex<Vec<Received>>>,
    task: JoinHandle<()>,
}

impl Recorder {
    /// Subscribes, and returns when that is confirmed.
    pub async fn start(client: &Client, options: SubscribeOptions) -> Recorder {
        let received = Arc::new(Mutex::new(vec![]));
        let mut subscription = client.subscribe(options.heartbeat_interval(Duration::from_secs(2)));
        let record = received.clone();
        let task = tokio::spawn(async move {
            while let Some(next) = subscription.next().await {
                record.lock().extend(match next.expect("no final error") {
                    Notification::Subscribed(_) => Some(Received::Subscribed),
                    Notification::Event(event) => Some(Received::Event(event)),
                    Notification::Gap(gap) => Some(Received::Gap(Box::new(gap))),
                    _ => None,
                });
            }
        });
        let recorder = Recorder { received, task };
        recorder.wait("subscribed", |all| (!all.is_empty()).then_some(())).await;
        recorder
    }

    /// Of all events of other nodes.
    pub async fn of(gateway: &Gateway, node_id: &str) -> Recorder {
        Recorder::start(&client(node_id, &[gateway.url()]), SubscribeOptions::new()).await
    }

    /// Waits until `look` finds something.
    pub async fn wait<T>(&self, what: &str, look: impl Fn(&[Received]) -> Option<T>) -> T {
        eventually(LIMIT, what, async || look(&self.received.lock())).await
    }

    /// Waits for an event; returns it.
    pub async fn event(&self, id: &str) -> Event {
        self.wait(id, |all| {
            all.iter().find_map(|one| match one {
                Received::Event(event) if event.event_id == id => Some((**event).clone()),
                _ => None,
            })
        })
        .await
    }

    /// Waits for so many gaps, and returns them.
    pub async fn gaps(&self, count: usize) -> Vec<Gap> {
        self.wait(&format!("{count} gaps"), |all| {
            let gaps: Vec<Gap> = gaps(all);
            (gaps.len() >= count).then_some(gaps)
        })
        .await
    }

    /// The ids of all events so far.
    pub fn ids(&self) -> Vec<String> {
        let received = self.received.lock();
        let id = |one: &Received| match one {
            Received::Event(event) => Some(event.event_id.clone()),
            _ => None,
        };
        received.iter().filter_map(id).collect()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn gaps(received: &[Received]) -> Vec<Gap> {
    let gap = |one: &Received| match one {
        Received::Gap(gap) => Some((**gap).clone()),
        _ => None,
    };
    received.iter().filter_map(gap).collect()
}

/// Checks that a gap is the report of a link that lost events of a deployment.
pub fn is_of(gap: &Gap, deployment: &str, missed: Option<u64>) {
    assert_eq!((gap.reason(), gap.missed_events), (GapReason::Link, missed), "{gap:?}");
    let origin = gap.origin.as_ref().expect("an origin");
    assert_eq!(origin.deployments, [deployment], "{gap:?}");
}

/// The flags of a command line that is to end with an error.
pub async fn fails(from: &str, to: &str, state: &Path, flags: &[&str]) -> (Option<i32>, String) {
    let state = state.display().to_string();
    let args = ["link", "--from", from, "--to", to, "--state", &state];
    let args: Vec<&str> = args.iter().chain(flags).copied().collect();
    let output = trunkline(args).run(LIMIT).await;
    (output.status.code(), output.stderr)
}
