//! Waiting for a condition, with a limit.

use std::time::{Duration, Instant};

/// How long a test waits for what should take a moment. Generous: a busy machine is slow, and a test that passes does not
/// wait for it.
pub const LIMIT: Duration = Duration::from_secs(15);

/// How often a condition is looked at.
const PACE: Duration = Duration::from_millis(10);

/// Looks until `probe` gives a value, and returns it.
///
/// # Panics
///
/// After `limit`, naming `what` was waited for.
pub async fn eventually<T>(
    limit: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> T {
    attempt(limit, what, async || probe().await.ok_or_else(|| "not yet".to_owned())).await
}

/// Looks until `probe` says true.
///
/// # Panics
///
/// After `limit`, naming `what` was waited for.
pub async fn until(limit: Duration, what: &str, mut probe: impl AsyncFnMut() -> bool) {
    eventually(limit, what, async || probe().await.then_some(())).await;
}

/// Tries until `probe` succeeds, and returns its value.
///
/// # Panics
///
/// After `limit`, naming `what` was waited for and the last reason why not.
pub async fn attempt<T>(
    limit: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let start = Instant::now();
    let mut reason = String::from("the first look has not come back");
    loop {
        // A probe that hangs must not outlive the limit.
        let left = limit.saturating_sub(start.elapsed());
        match tokio::time::timeout(left, probe()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(why)) => reason = why,
            Err(_) => {}
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}; last seen: {reason}");
        tokio::time::sleep(PACE).await;
    }
}
