//! Waits for a condition, with a time limit.

use std::time::{Duration, Instant};

/// How long a test waits for something that should take a moment. Generous, since a busy machine is
/// slow; a test that passes does not wait that long.
pub const LIMIT: Duration = Duration::from_secs(15);

/// The pause between two checks of a condition.
const PAUSE: Duration = Duration::from_millis(10);

/// Calls `probe` until it returns a value.
///
/// # Panics
///
/// After `limit`, with `what` as the condition.
pub async fn eventually<T>(
    limit: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> T {
    attempt(limit, what, async || probe().await.ok_or_else(|| "not yet".to_owned())).await
}

/// Calls `probe` until it returns true.
///
/// # Panics
///
/// After `limit`, with `what` as the condition.
pub async fn until(limit: Duration, what: &str, mut probe: impl AsyncFnMut() -> bool) {
    eventually(limit, what, async || probe().await.then_some(())).await;
}

/// Calls `probe` until it succeeds; returns its value.
///
/// # Panics
///
/// After `limit`, with `what` as the condition, and with the last error.
pub async fn attempt<T>(
    limit: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let start = Instant::now();
    let mut reason = String::from("the first probe has not returned");
    loop {
        // A probe that hangs must not outlive the limit.
        let left = limit.saturating_sub(start.elapsed());
        match tokio::time::timeout(left, probe()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(why)) => reason = why,
            Err(_) => {}
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}; last error: {reason}");
        tokio::time::sleep(PAUSE).await;
    }
}
