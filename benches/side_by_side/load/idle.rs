//! Idle streams.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::time::sleep;

use super::{OPENING, float};
use crate::{contestant::System, counts::Sample, report::Metrics, subscriber::open_idle};

/// Time for which the idle CPU is measured.
const MEASURED: Duration = Duration::from_secs(4);

/// Measures memory and CPU of a gateway, or of the floor, with idle streams, `per_connection` on
/// each connection.
pub async fn idle(system: &System, streams: usize, per_connection: usize) -> Metrics {
    // The first stream allocates what all streams share.
    let warm = system.server().await;
    drop(open_idle(system.contestant, &warm, 0).await);
    sleep(Duration::from_millis(300)).await;
    let before = system.rss_bytes();
    let connections = streams / per_connection;
    let held: Vec<_> = stream::iter(0..connections)
        .map(async |connection| {
            let channel = system.server().await;
            let mut held = vec![];
            for stream in 0..per_connection {
                let node = 1 + connection * per_connection + stream;
                held.push(open_idle(system.contestant, &channel, node).await);
            }
            held
        })
        .buffer_unordered(OPENING)
        .collect()
        .await;
    sleep(Duration::from_millis(500)).await;
    let first = Sample::begin(system).await;
    sleep(MEASURED).await;
    let second = Sample::end(system).await;
    let bytes = float(system.rss_bytes().saturating_sub(before));
    let mut metrics = Metrics::new();
    second.since(&first, 1, &mut metrics);
    metrics.retain(|name, _| name.ends_with("cpu_percent") || name == "redis_connections");
    metrics.insert("rss_bytes_per_stream".to_owned(), bytes / float(streams as u64));
    metrics.insert("rss_bytes_per_connection".to_owned(), bytes / float(connections as u64));
    drop(held);
    metrics
}
