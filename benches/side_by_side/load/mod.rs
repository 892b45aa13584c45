//! The load on a contestant, and what is measured meanwhile. The same for all contestants.

mod fan_out;
mod filters;
mod idle;
mod latency;
mod updates;

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{contestant::System, payload::Payload, received::Received, recorder::Recorder};

pub use fan_out::{Offer, fan_out, growth};
pub use filters::filters;
pub use idle::idle;
pub use latency::latency;
pub use updates::updates;

/// Load before the measurement begins.
const WARM_UP: Duration = Duration::from_millis(500);

/// Time limit for the arrival of everything that was published.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections that are opened at a time.
const OPENING: usize = 16;

/// Subscribers, each on connections of its own.
struct Audience {
    received: Vec<Arc<Received>>,
    // Dropping them ends the subscribers.
    _tasks: Vec<JoinSet<()>>,
}

impl Audience {
    /// Connects `count` subscribers. `timed`: they record latencies.
    async fn gather(system: &System, count: usize, payload: &Payload, timed: bool) -> Audience {
        let opened: Vec<_> = stream::iter(0..count)
            .map(async |node| {
                let (recorder, mut tasks) = (Recorder::new(timed), JoinSet::new());
                let received = recorder.received().clone();
                system.subscribe(node, payload, recorder, &mut tasks).await;
                (received, tasks)
            })
            .buffer_unordered(OPENING)
            .collect()
            .await;
        let (received, tasks) = opened.into_iter().unzip();
        Audience { received, _tasks: tasks }
    }

    fn delivered(&self) -> u64 {
        self.received.iter().map(|received| received.events()).sum()
    }

    fn messages(&self) -> u64 {
        self.received.iter().map(|received| received.messages()).sum()
    }

    fn gaps(&self) -> u64 {
        self.received.iter().map(|received| received.gaps()).sum()
    }

    /// Waits until all have received `published` events. Returns the number of missing deliveries.
    async fn complete(&self, published: u64) -> u64 {
        let wanted = published * self.received.len() as u64;
        let all = async {
            while self.delivered() < wanted {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = timeout(ARRIVAL_TIMEOUT, all).await;
        wanted.saturating_sub(self.delivered())
    }
}

/// A count as a floating-point number.
#[allow(clippy::cast_precision_loss)] // Counts here are far below 2^52.
pub fn float(count: u64) -> f64 {
    count as f64
}
