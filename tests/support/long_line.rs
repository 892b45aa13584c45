//! A long TCP line: what is sent arrives after a delay, in both directions, however much is on its
//! way. It can be cut.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until},
};

/// Pieces of at most [`PIECE`] bytes that may be on their way in one direction of a connection.
const PIECES: usize = 4096;
const PIECE: usize = 16 << 10;

/// A running line. Dropping it closes all its connections.
#[derive(Debug)]
pub struct LongLine {
    port: u16,
    is_up: Arc<watch::Sender<bool>>,
    task: JoinHandle<()>,
}

impl LongLine {
    /// Starts a line to a port on loopback, with this delay each way.
    pub async fn start(to: u16, delay: Duration) -> LongLine {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("a local address").port();
        let is_up = Arc::new(watch::Sender::new(true));
        let state = is_up.clone();
        let task = tokio::spawn(async move {
            // Dropped with the task, which ends all of them.
            let mut serving = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                serving.spawn(serve(client, to, delay, state.subscribe()));
            }
        });
        LongLine { port, is_up, task }
    }

    /// The URL of the gateway at its end.
    pub fn gateway_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Cuts it: what is on its way is lost, and nothing answers.
    pub fn cut(&self) {
        self.is_up.send_replace(false);
    }

    /// It is there again. Connections that it had lost are closed.
    pub fn restore(&self) {
        self.is_up.send_replace(true);
    }
}

impl Drop for LongLine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut client: TcpStream, to: u16, delay: Duration, mut is_up: watch::Receiver<bool>) {
    if *is_up.borrow_and_update() {
        let Ok(mut server) = TcpStream::connect(("127.0.0.1", to)).await else { return };
        for stream in [&client, &server] {
            stream.set_nodelay(true).expect("a TCP socket");
        }
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::select! {
            () = carry(from_client, to_server, delay) => return,
            () = carry(from_server, to_client, delay) => return,
            _ = is_up.wait_for(|is_up| !is_up) => {}
        }
    }
    // Both ends know nothing of it, until the line is there again.
    let _ = is_up.wait_for(|is_up| *is_up).await;
    drop(client);
}

/// Carries bytes in one direction, until an end is closed.
async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, delay: Duration) {
    let (pieces, mut on_the_way) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES);
    let leaves = async move {
        let mut buffer = vec![0; PIECE];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let piece = (Instant::now() + delay, buffer[..count].to_vec());
            if pieces.send(piece).await.is_err() {
                return;
            }
        }
    };
    let arrives = async move {
        while let Some((at, piece)) = on_the_way.recv().await {
            sleep_until(at).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(leaves, arrives);
}
