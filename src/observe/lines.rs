//! The log lines of streams: one when a stream opens, one when it ends, one for each gap that it is told.
//!
//! A flood of nodes is many streams. What is left out of it is counted, and told.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::{
    bus::{Gap, ShardId},
    proto::v1,
    throttle::Throttle,
};

/// Lines of each sort that are written in each period.
const MAX: u32 = 100;
const PERIOD: Duration = Duration::from_secs(10);

static OPENED: Throttle = Throttle::new(MAX, PERIOD);
static ENDED: Throttle = Throttle::new(MAX, PERIOD);
static GAPS: Throttle = Throttle::new(MAX, PERIOD);

/// A stream that is open. Its end is written when this is dropped.
pub struct StreamLine {
    node: String,
    subscription: String,
    since: Instant,
    events: u64,
    gaps: u64,
    reason: &'static str,
}

impl StreamLine {
    /// A stream has opened.
    pub fn opened(node: &v1::Node, resumed: bool, replayed: u64) -> StreamLine {
        if OPENED.pass().is_some() {
            tracing::info!(
                node = node.node_id,
                subscription = node.subscription_id,
                peer = node.peer,
                resumed,
                replayed,
                "stream opened"
            );
        }
        StreamLine {
            node: node.node_id.clone(),
            subscription: node.subscription_id.clone(),
            since: Instant::now(),
            events: 0,
            gaps: 0,
            reason: "the node went away",
        }
    }

    /// Events were handed to the connection.
    pub fn sent(&mut self, events: u64) {
        self.events += events;
    }

    /// The stream is told a gap.
    pub fn gap(&mut self, shard: ShardId, gap: &Gap) {
        self.gaps += 1;
        if GAPS.pass().is_some() {
            tracing::info!(
                node = self.node,
                subscription = self.subscription,
                %shard,
                reason = %gap.reason,
                missed = gap.missed,
                "stream told a gap"
            );
        }
    }

    /// The gateway ends the stream, and why.
    pub fn ends(&mut self, reason: &'static str) {
        self.reason = reason;
    }
}

impl Drop for StreamLine {
    fn drop(&mut self) {
        if ENDED.pass().is_none() {
            return;
        }
        let milliseconds = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(
            node = self.node,
            subscription = self.subscription,
            reason = self.reason,
            events = self.events,
            gaps = self.gaps,
            milliseconds,
            "stream closed"
        );
    }
}

/// Tells how many lines were left out, until `ended`.
pub async fn tell_left_out(ended: CancellationToken) {
    loop {
        let last = tokio::select! {
            () = tokio::time::sleep(PERIOD) => false,
            () = ended.cancelled() => true,
        };
        let opened = OPENED.take_left_out();
        let (closed, gaps) = (ENDED.take_left_out(), GAPS.take_left_out());
        if opened + closed + gaps > 0 {
            tracing::info!(opened, closed, gaps, "lines of streams were left out");
        }
        if last {
            return;
        }
    }
}
