//! The load: who publishes what, when, and what is measured meanwhile. The same for all contestants.

mod fan_out;
mod filters;
mod idle;
mod latency;

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{contestant::System, heard::Heard, payload::Payload};

pub use fan_out::{Offer, fan_out, growth};
pub use filters::filters;
pub use idle::idle;
pub use latency::latency;

/// Load before the measurement begins.
const WARM_UP: Duration = Duration::from_millis(500);

/// How long all that was published may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(10);

/// How many connections are opened at a time.
const OPENING: usize = 16;

/// Subscribers, each on connections of its own.
struct Audience {
    heard: Vec<Arc<Heard>>,
    // They end with it.
    _tasks: Vec<JoinSet<()>>,
}

impl Audience {
    async fn gather(system: &System, count: usize, payload: &Payload, latency: bool) -> Audience {
        let opened: Vec<_> = stream::iter(0..count)
            .map(async |node| {
                let (heard, mut tasks) = (Heard::new(latency), JoinSet::new());
                system.subscribe(node, payload, heard.clone(), &mut tasks).await;
                (heard, tasks)
            })
            .buffer_unordered(OPENING)
            .collect()
            .await;
        let (heard, tasks) = opened.into_iter().unzip();
        Audience { heard, _tasks: tasks }
    }

    fn delivered(&self) -> u64 {
        self.heard.iter().map(|heard| heard.events()).sum()
    }

    fn messages(&self) -> u64 {
        self.heard.iter().map(|heard| heard.messages()).sum()
    }

    fn gaps(&self) -> u64 {
        self.heard.iter().map(|heard| heard.gaps()).sum()
    }

    /// Waits until all have heard `published` events; returns how many deliveries are missing.
    async fn complete(&self, published: u64) -> u64 {
        let wanted = published * self.heard.len() as u64;
        let all = async {
            while self.delivered() < wanted {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = timeout(ARRIVAL, all).await;
        wanted.saturating_sub(self.delivered())
    }
}

/// A count as what a rate is made of.
#[allow(clippy::cast_precision_loss)] // Counts here are far below 2^52.
pub fn float(count: u64) -> f64 {
    count as f64
}
