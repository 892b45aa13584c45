//! A TCP proxy in front of a Redis server or a gateway that can drop all bytes while its
//! connections stay open, like a dead host, a firewall that lost its state, or dropped packets; or
//! forward them slowly or late, or close them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// What a connection does with the bytes that it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Forward,
    /// Reads and drops them, in both directions.
    Drop,
    /// Reads and drops those that the server sends.
    DropAnswers,
    /// Forwards at most this many bytes to the client in each [`SLICE`].
    Slow(usize),
    /// Forwards what the client sends after this time.
    Far(Duration),
}

/// The period of [`Mode::Slow`].
const SLICE: Duration = Duration::from_millis(20);

/// A running proxy. Dropping it closes all its connections.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    to: watch::Sender<u16>,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    /// The mode of all connections, new ones too.
    all: watch::Sender<Mode>,
    /// Counts up when all connections are to be closed.
    cuts: watch::Sender<u64>,
    connections: Mutex<Vec<Arc<Connection>>>,
    accepted: AtomicUsize,
    /// What clients have sent, once it records.
    received: Mutex<Option<Vec<u8>>>,
}

#[derive(Debug)]
struct Connection {
    mode: watch::Sender<Mode>,
    /// True once the client has subscribed on it.
    subscribed: Mutex<bool>,
}

impl Proxy {
    /// Starts a proxy to a port on loopback.
    pub async fn start(to: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("a local address").port();
        let shared = Arc::new(Shared {
            all: watch::Sender::new(Mode::Forward),
            cuts: watch::Sender::new(0),
            connections: Mutex::default(),
            accepted: AtomicUsize::new(0),
            received: Mutex::default(),
        });
        let (to, target) = watch::channel(to);
        let state = shared.clone();
        let task = tokio::spawn(async move {
            // Dropped with the task, which ends all of them.
            let mut serving = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                state.accepted.fetch_add(1, Ordering::Relaxed);
                serving.spawn(serve(state.clone(), client, *target.borrow()));
            }
        });
        Proxy { port, to, shared, task }
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The URL of a gateway behind it.
    pub fn gateway_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The number of connections so far.
    pub fn connections(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Keeps what clients send from now on.
    pub fn record(&self) {
        *self.shared.received.lock() = Some(vec![]);
    }

    /// What clients have sent since then.
    pub fn received(&self) -> Vec<u8> {
        self.shared.received.lock().clone().expect("it records")
    }

    /// Forwards new connections to another port. Open ones stay where they are.
    pub fn move_to(&self, to: u16) {
        self.to.send_replace(to);
    }

    /// Drops all bytes from now on, on open connections and new ones.
    pub fn drop_bytes(&self) {
        self.shared.all.send_replace(Mode::Drop);
    }

    /// Drops what the server sends from now on. What clients send arrives.
    pub fn drop_answers(&self) {
        self.shared.all.send_replace(Mode::DropAnswers);
    }

    /// Forwards all bytes again. Connections that have dropped bytes are closed.
    pub fn forward(&self) {
        self.shared.all.send_replace(Mode::Forward);
    }

    /// What clients send arrives so much later, as on a long line.
    pub fn move_away(&self, delay: Duration) {
        self.shared.all.send_replace(Mode::Far(delay));
    }

    /// Closes all open connections. New ones are served.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Drops all bytes of the connections that have subscribed; others are not affected.
    pub fn drop_subscriptions(&self) {
        self.set_subscriptions(Mode::Drop);
    }

    /// Forwards at most this many bytes a second to each client that has subscribed; None: as fast
    /// as it can.
    pub fn slow_subscriptions(&self, bytes_per_second: Option<usize>) {
        self.set_subscriptions(bytes_per_second.map_or(Mode::Forward, |bytes| {
            Mode::Slow((bytes / usize::try_from(1000 / SLICE.as_millis()).expect("50")).max(1))
        }));
    }

    fn set_subscriptions(&self, mode: Mode) {
        let connections = self.shared.connections.lock();
        for connection in connections.iter().filter(|connection| *connection.subscribed.lock()) {
            connection.mode.send_replace(mode);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(shared: Arc<Shared>, mut client: TcpStream, to: u16) {
    let (mut all, mut cuts) = (shared.all.subscribe(), shared.cuts.subscribe());
    while *all.borrow_and_update() == Mode::Drop {
        // A new connection to a dead host: nothing answers.
        if all.changed().await.is_err() {
            return;
        }
    }
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", to)).await else { return };
    let connection = Arc::new(Connection {
        mode: watch::Sender::new(Mode::Forward),
        subscribed: Mutex::new(false),
    });
    shared.connections.lock().push(connection.clone());
    let (mut from_client, mut from_server) = (vec![0; 65_536], vec![0; 65_536]);
    let mut lost = false;
    loop {
        let drops = *all.borrow() == Mode::Drop || *connection.mode.borrow() == Mode::Drop;
        let drops_answers = drops || *all.borrow() == Mode::DropAnswers;
        if lost && !drops_answers {
            return;
        }
        let slow = match *connection.mode.borrow() {
            Mode::Slow(bytes) => Some(bytes),
            _ => None,
        };
        let limit = slow.unwrap_or(from_server.len()).min(from_server.len());
        tokio::select! {
            read = client.read(&mut from_client) => {
                let Ok(count @ 1..) = read else { return };
                let bytes = &from_client[..count];
                if let Some(received) = shared.received.lock().as_mut() {
                    received.extend_from_slice(bytes);
                }
                if bytes.windows(9).any(|window| window.eq_ignore_ascii_case(b"SUBSCRIBE")) {
                    *connection.subscribed.lock() = true;
                }
                lost |= drops;
                let mode = *all.borrow();
                if let Mode::Far(delay) = mode {
                    tokio::time::sleep(delay).await;
                }
                if !drops && server.write_all(bytes).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut from_server[..limit]) => {
                let Ok(count @ 1..) = read else { return };
                lost |= drops_answers;
                if slow.is_some() {
                    tokio::time::sleep(SLICE).await;
                }
                if !drops_answers && client.write_all(&from_server[..count]).await.is_err() {
                    return;
                }
            }
            changed = all.changed() => if changed.is_err() { return },
            _ = cuts.changed() => return,
            // The connection's own mode is checked this often.
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    }
}
