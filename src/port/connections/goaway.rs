//! Tells the client of a refused connection which limit is reached.
//!
//! A refused connection is accepted and closed at once: if it were not accepted, it would wait in
//! the listener's queue, and so would all connections behind it. Before it is closed it gets a
//! GOAWAY frame whose debug data names the limit, since HTTP/2 clients show that text.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use super::SlotsExhausted;

/// GOAWAY frames being sent at one time; further refused connections are closed without one.
const MAX_SENDING: usize = 64;

/// How long sending one may take.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes that are read from the client meanwhile. Closing a socket with unread bytes resets the
/// connection, and the client would lose what was written to it.
const MAX_READ: u64 = 4096;

/// Sends GOAWAY to refused connections. Dropping it closes those that are still being sent to.
#[derive(Debug)]
pub struct GoawaySender {
    /// Without TLS. A client that expects TLS cannot read a GOAWAY in plain text.
    plain_text: bool,
    /// Each ends after [`SEND_TIMEOUT`] at most.
    sending: JoinSet<()>,
}

impl GoawaySender {
    /// `plain_text`: true where connections begin without TLS.
    pub fn new(plain_text: bool) -> GoawaySender {
        GoawaySender { plain_text, sending: JoinSet::new() }
    }

    /// Closes a connection, after a GOAWAY where one can be sent.
    pub fn refuse(&mut self, stream: TcpStream, reached: SlotsExhausted) {
        while self.sending.try_join_next().is_some() {}
        if self.plain_text && self.sending.len() < MAX_SENDING {
            let text = format!("{} is reached: {}", reached.limit.key(), reached.allowed);
            self.sending.spawn(async move {
                let _ = timeout(SEND_TIMEOUT, send(stream, &text)).await;
            });
        }
    }
}

async fn send(mut stream: TcpStream, text: &str) -> io::Result<()> {
    stream.write_all(&goaway(text)).await?;
    stream.shutdown().await?;
    let mut rest = stream.take(MAX_READ);
    tokio::io::copy(&mut rest, &mut tokio::io::sink()).await.map(drop)
}

/// An empty SETTINGS frame, which must come first, and a GOAWAY with the code `ENHANCE_YOUR_CALM`
/// (RFC 9113, 6.5 and 6.8).
fn goaway(text: &str) -> Vec<u8> {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const NO_STREAM: [u8; 4] = [0; 4];
    const ENHANCE_YOUR_CALM: u32 = 0xb;
    let length = u32::try_from(8 + text.len()).unwrap_or(8).to_be_bytes();
    let mut bytes = SETTINGS.to_vec();
    bytes.extend_from_slice(&length[1..]);
    bytes.extend_from_slice(&[7, 0]);
    bytes.extend_from_slice(&NO_STREAM);
    bytes.extend_from_slice(&NO_STREAM);
    bytes.extend_from_slice(&ENHANCE_YOUR_CALM.to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes
}
