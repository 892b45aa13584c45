//! A TCP proxy in front of a Redis server, whose connections can be made to stay open and bring nothing: what a dead host, a
//! middle box that forgot, or dropped packets look like from the other end.

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

/// What a connection does with what it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Pass,
    /// Reads on, and hands nothing on, in both directions.
    Swallow,
}

/// A running proxy. Dropping it closes all its connections.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    /// For connections made from now on, too.
    all: watch::Sender<Way>,
    connections: Mutex<Vec<Arc<Connection>>>,
    made: AtomicUsize,
}

#[derive(Debug)]
struct Connection {
    way: watch::Sender<Way>,
    /// Whether the client has subscribed on it.
    subscribed: Mutex<bool>,
}

impl Proxy {
    /// Starts a proxy to a port on loopback.
    pub async fn start(to: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("a local address").port();
        let shared = Arc::new(Shared {
            all: watch::Sender::new(Way::Pass),
            connections: Mutex::default(),
            made: AtomicUsize::new(0),
        });
        let state = shared.clone();
        let task = tokio::spawn(async move {
            // Ends with the task: nothing is left behind.
            let mut serving = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                state.made.fetch_add(1, Ordering::Relaxed);
                serving.spawn(serve(state.clone(), client, to));
            }
        });
        Proxy { port, shared, task }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// How many connections were made through it so far.
    pub fn connections(&self) -> usize {
        self.shared.made.load(Ordering::Relaxed)
    }

    /// Hands nothing on any more, on the connections that are there and on new ones.
    pub fn swallow(&self) {
        self.shared.all.send_replace(Way::Swallow);
    }

    /// Hands everything on again. What was swallowed is gone, so connections that lost something are closed.
    pub fn pass(&self) {
        self.shared.all.send_replace(Way::Pass);
    }

    /// Hands nothing on any more, on the connections that subscribe now; others are not touched.
    pub fn swallow_subscriptions(&self) {
        let connections = self.shared.connections.lock();
        for connection in connections.iter().filter(|connection| *connection.subscribed.lock()) {
            connection.way.send_replace(Way::Swallow);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(shared: Arc<Shared>, mut client: TcpStream, to: u16) {
    let mut all = shared.all.subscribe();
    while *all.borrow_and_update() == Way::Swallow {
        // A new connection to a host that is gone: nobody answers.
        if all.changed().await.is_err() {
            return;
        }
    }
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", to)).await else { return };
    let connection =
        Arc::new(Connection { way: watch::Sender::new(Way::Pass), subscribed: Mutex::new(false) });
    shared.connections.lock().push(connection.clone());
    let (mut from_client, mut from_server) = (vec![0; 65_536], vec![0; 65_536]);
    let mut lost = false;
    loop {
        let swallows = *all.borrow() == Way::Swallow || *connection.way.borrow() == Way::Swallow;
        if lost && !swallows {
            return;
        }
        tokio::select! {
            read = client.read(&mut from_client) => {
                let Ok(count @ 1..) = read else { return };
                let bytes = &from_client[..count];
                if bytes.windows(9).any(|window| window.eq_ignore_ascii_case(b"SUBSCRIBE")) {
                    *connection.subscribed.lock() = true;
                }
                lost |= swallows;
                if !swallows && server.write_all(bytes).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut from_server) => {
                let Ok(count @ 1..) = read else { return };
                lost |= swallows;
                if !swallows && client.write_all(&from_server[..count]).await.is_err() {
                    return;
                }
            }
            changed = all.changed() => if changed.is_err() { return },
            // A way is set from outside, and looked at often enough.
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    }
}
