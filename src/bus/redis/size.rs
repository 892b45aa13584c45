//! The size of the largest command that a server takes. `proto-max-bulk-len` and
//! `client-query-buffer-limit` may be as low as 1 MiB, and a server closes the connection of a
//! client that sends more: so it is tried, before a frame of such a size is sent, with a command
//! that does nothing.

use std::time::Duration;

use futures_util::future::BoxFuture;
use redis::aio::MultiplexedConnection;

/// What every server takes: the least that both settings may be.
const ALWAYS: usize = 1 << 20;

/// The bytes of a call beside its frame, and of a frame beside its events.
const BESIDE: usize = 64 << 10;

/// How exactly the limit is found.
const STEP: usize = 64 << 10;

/// The time limit of all tries.
pub(super) const TIMEOUT: Duration = Duration::from_secs(3);

/// True if an event of these bytes may be more than what a server takes.
pub(super) fn may_exceed(event: usize) -> bool {
    event + 2 * BESIDE > ALWAYS
}

/// The bytes of the largest frame that a server takes; None if it takes one of an event of these
/// bytes. `connect` opens a connection to it.
pub(super) async fn largest<'a, E>(
    event: usize,
    connect: impl Fn() -> BoxFuture<'a, Result<MultiplexedConnection, E>>,
) -> Result<Option<usize>, E> {
    let mut refused = event + 2 * BESIDE;
    if takes(&mut connect().await?, refused).await {
        return Ok(None);
    }
    let mut taken = 0;
    while refused - taken > STEP {
        let tried = if taken == 0 { ALWAYS.min(refused / 2) } else { taken.midpoint(refused) };
        if takes(&mut connect().await?, tried).await {
            taken = tried;
        } else {
            refused = tried;
        }
    }
    Ok(Some(taken.saturating_sub(BESIDE)))
}

/// True if the server takes a command of these bytes. A refusal of the size is a protocol error, or
/// none at all, after which the connection is closed.
async fn takes(connection: &mut MultiplexedConnection, bytes: usize) -> bool {
    let mut command = redis::cmd("EVALSHA");
    // No script has this hash, so the command does nothing.
    command.arg("0".repeat(40)).arg(0).arg(vec![b'x'; bytes]);
    match command.query_async::<redis::Value>(connection).await {
        Ok(_) => true,
        Err(error) => error.code().is_some_and(|code: &str| ["NOSCRIPT", "NOPERM"].contains(&code)),
    }
}
