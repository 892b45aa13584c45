//! The record of one open stream: what it counts, what it logs, and its end.
//!
//! A stream logs one line when it opens, one when it ends and one for each gap. Many nodes at once
//! mean many lines: those beyond a limit are suppressed, and their number is logged.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio_util::sync::CancellationToken;

use super::{
    Records,
    counters::Method,
    recent::{EndedStream, Ending},
};
use crate::{bus::ShardId, errors::Error, hub::cursor::Missing, proto::v1, throttle::Throttle};

/// Lines of each sort that are written in each period.
const MAX_LINES: u32 = 100;
const PERIOD: Duration = Duration::from_secs(10);

static OPENED: Throttle = Throttle::new(MAX_LINES, PERIOD);
static CLOSED: Throttle = Throttle::new(MAX_LINES, PERIOD);
static GAPS: Throttle = Throttle::new(MAX_LINES, PERIOD);

/// An open stream. Its end is recorded when this is dropped.
pub struct StreamRecord {
    records: Arc<Records>,
    method: Method,
    node_id: String,
    subscription_id: String,
    peer: String,
    since: Instant,
    events: u64,
    gaps: u64,
    ending: Ending,
}

impl StreamRecord {
    /// A stream has opened.
    pub fn opened(
        records: Arc<Records>,
        method: Method,
        node: &v1::Node,
        resumed: bool,
        replayed: u64,
    ) -> StreamRecord {
        if OPENED.pass().is_some() {
            tracing::info!(
                node = node.node_id,
                subscription = node.subscription_id,
                peer = node.peer,
                method = method.name(),
                resumed,
                replayed,
                "stream opened"
            );
        }
        StreamRecord {
            records,
            method,
            node_id: node.node_id.clone(),
            subscription_id: node.subscription_id.clone(),
            peer: node.peer.clone(),
            since: Instant::now(),
            events: 0,
            gaps: 0,
            ending: Ending::ClientDisconnected,
        }
    }

    /// A batch was handed to the connection. `oldest_ms`: when its oldest frame was made.
    pub fn delivered(&mut self, events: u64, oldest_ms: Option<u64>) {
        self.events += events;
        self.records.counters.delivered(events, oldest_ms);
    }

    /// A gap is sent on the stream.
    pub fn gap(&mut self, shard: ShardId, gap: &Missing) {
        self.gaps += 1;
        self.records.counters.gap(gap.reason, gap.missed);
        self.records.recent.gap(&self.node_id, shard, gap.reason, gap.missed);
        if GAPS.pass().is_some() {
            tracing::info!(
                node = self.node_id,
                subscription = self.subscription_id,
                %shard,
                reason = %gap.reason,
                missed = gap.missed,
                "gap sent"
            );
        }
    }

    /// The gateway ends the stream with an error.
    pub fn failed(&mut self, error: &Error) {
        self.records.counters.failed(self.method, error);
        self.ending = Ending::Error(error.reason());
    }

    /// The gateway ends the stream. A stream that ends without this was closed by its client.
    pub fn ends(&mut self, ending: Ending) {
        self.ending = ending;
    }
}

impl Drop for StreamRecord {
    fn drop(&mut self) {
        let lasted = self.since.elapsed();
        if CLOSED.pass().is_some() {
            tracing::info!(
                node = self.node_id,
                subscription = self.subscription_id,
                reason = self.ending.describe(),
                events = self.events,
                gaps = self.gaps,
                milliseconds = u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX),
                "stream closed"
            );
        }
        self.records.recent.ended(EndedStream {
            at: SystemTime::now(),
            node_id: std::mem::take(&mut self.node_id),
            peer: std::mem::take(&mut self.peer),
            lasted,
            delivered: self.events,
            why: self.ending,
        });
    }
}

/// Logs how many lines were suppressed in each period, until `ended`.
pub async fn log_suppressed(ended: CancellationToken) {
    loop {
        let last = tokio::select! {
            () = tokio::time::sleep(PERIOD) => false,
            () = ended.cancelled() => true,
        };
        let opened = OPENED.take_suppressed();
        let (closed, gaps) = (CLOSED.take_suppressed(), GAPS.take_suppressed());
        if opened + closed + gaps > 0 {
            tracing::info!(opened, closed, gaps, "log lines of streams were suppressed");
        }
        if last {
            return;
        }
    }
}
