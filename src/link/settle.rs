//! The answers of the destination.

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{sync::mpsc, time::timeout};
use trunkline_client::{Acknowledgement, Error, ErrorKind, Publisher};

use super::{Shared, count};

/// The time without an answer after which the log says so.
const QUIET: Duration = Duration::from_secs(5);

/// What is settled, and not in the state file yet.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Settled {
    /// Everything up to this sequence has its answer.
    pub sequence: u64,
    /// So many of these the destination does not have, or may not have: to be reported.
    pub missed: u64,
}

/// Reads the answers in the order of the sequences, until no more can come: none. Or until the
/// publisher has ended: its error.
pub(super) async fn run(
    shared: Arc<Shared>,
    restored: Vec<Acknowledgement>,
    mut unread: mpsc::Receiver<Acknowledgement>,
) -> Option<Error> {
    for answer in restored {
        if let Err(error) = settle(&shared, answer).await {
            return Some(error);
        }
    }
    while let Some(answer) = unread.recv().await {
        if let Err(error) = settle(&shared, answer).await {
            return Some(error);
        }
    }
    None
}

/// Takes an answer. Those of a publisher that has ended settle nothing: the next process sends the
/// events again.
async fn settle(shared: &Shared, answer: Acknowledgement) -> Result<(), Error> {
    let answer = patiently(shared, answer).await;
    if let Err(error) = &answer {
        if let Some(error) = shared.publisher.get().and_then(Publisher::failure) {
            return Err(error);
        }
        if error.kind() == ErrorKind::OutcomeUnknown {
            count(&shared.counters.in_doubt, 1);
        } else {
            count(&shared.counters.rejected, 1);
        }
        if let Some(suppressed) = shared.rejected.pass() {
            let what = "the destination did not take an event: its nodes get a gap";
            tracing::warn!(%error, suppressed, "{what}");
        }
    } else {
        count(&shared.counters.carried, 1);
    }
    let mut settled = shared.settled.lock();
    settled.sequence += 1;
    settled.missed += u64::from(answer.is_err());
    Ok(())
}

/// Waits for an answer, and says so where it takes long.
async fn patiently<T>(shared: &Shared, answer: impl Future<Output = T>) -> T {
    let mut answer = pin!(answer);
    let in_time = timeout(QUIET, &mut answer).await;
    if in_time.is_err() && shared.is_accepting.swap(false, Ordering::Relaxed) {
        tracing::warn!(?QUIET, "the destination has accepted nothing for a time; events wait");
    }
    let answer = match in_time {
        Ok(answer) => answer,
        Err(_) => answer.await,
    };
    if !shared.is_accepting.swap(true, Ordering::Relaxed) {
        tracing::info!("the destination accepts events again");
    }
    answer
}
