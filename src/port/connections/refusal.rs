//! How a client is told that there is no place for its connection.
//!
//! It is accepted and closed at once: one that is not accepted would wait, and so would everybody behind it. Before that it is told
//! why, in a way that clients of HTTP/2 show: a GOAWAY with a text.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use super::Full;

/// Refused connections that are told at one time; more are closed without a word.
const MAX_REFUSALS: usize = 64;

/// How long telling one may take.
const TELL_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes that are read of it meanwhile: what lies unread when a connection is closed takes back what was written.
const MAX_READ: u64 = 4096;

/// Tells clients why they are refused. Dropping it ends what is being told.
#[derive(Debug)]
pub struct Refusals {
    /// Whether they can be told: not in plain text where they expect TLS.
    plain: bool,
    /// Each ends after [`TELL_TIMEOUT`] at most.
    telling: JoinSet<()>,
}

impl Refusals {
    /// `plain`: whether connections begin without TLS.
    pub fn new(plain: bool) -> Refusals {
        Refusals { plain, telling: JoinSet::new() }
    }

    /// Closes a connection.
    pub fn refuse(&mut self, stream: TcpStream, full: Full) {
        while self.telling.try_join_next().is_some() {}
        // Otherwise it is closed here and now.
        if self.plain && self.telling.len() < MAX_REFUSALS {
            let text = format!("{} is reached: {}", full.limit.key(), full.allowed);
            self.telling.spawn(async move {
                let _ = timeout(TELL_TIMEOUT, tell(stream, &text)).await;
            });
        }
    }
}

async fn tell(mut stream: TcpStream, text: &str) -> io::Result<()> {
    stream.write_all(&farewell(text)).await?;
    stream.shutdown().await?;
    let mut rest = stream.take(MAX_READ);
    tokio::io::copy(&mut rest, &mut tokio::io::sink()).await.map(drop)
}

/// An empty SETTINGS frame, which comes first, and a GOAWAY with the code `ENHANCE_YOUR_CALM` (RFC 9113, 6.5 and 6.8).
fn farewell(text: &str) -> Vec<u8> {
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
