//! Reports health while the gateway runs, drains it, and ends it on time.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::rooms::Rooms;
use crate::{bus::Health, config, hub::Hub, lifecycle::Drain, rpc::health::HealthState};

/// Reports the health of the bus over the health protocol, and to the streams, until the gateway
/// drains or ends.
pub async fn report_health(
    hub: Arc<Hub>,
    mut bus: watch::Receiver<Health>,
    mut last_values: watch::Receiver<String>,
    mut drain: watch::Receiver<Option<Drain>>,
    health: HealthState,
    ended: CancellationToken,
) {
    let mut before: Option<Health> = None;
    loop {
        let state = bus.borrow_and_update().clone();
        let served = before.as_ref().is_some_and(Health::serves);
        if before.as_ref() != Some(&state) {
            match &state {
                Health::Ready => tracing::info!("the bus is verified"),
                Health::Partial { unverified, why } => {
                    let (shards, of) = (unverified.len(), hub.bus().shards());
                    tracing::warn!(why, shards, of, "some shards are not verified any more");
                }
                Health::NotReady(why) if served => {
                    tracing::warn!(why, "the bus is not verified any more");
                }
                Health::NotReady(_) => {}
            }
            // Streams tell their nodes.
            hub.wake_all();
        }
        let has_values = last_values.borrow_and_update().is_empty();
        health.set(state.serves() && has_values && drain.borrow_and_update().is_none());
        before = Some(state);
        tokio::select! {
            changed = bus.changed() => if changed.is_err() { return },
            changed = last_values.changed() => if changed.is_err() { return },
            changed = drain.changed() => if changed.is_err() { return },
            () = ended.cancelled() => return,
        }
    }
}

/// The most of a drain's time that is kept for what follows when streams have ended: their
/// connections, the bus and the traces.
const CLOSING: Duration = Duration::from_secs(2);

/// The part of that which answers need to reach their clients.
const ANSWERS: Duration = Duration::from_millis(500);

/// The end of a gateway, which comes on time whatever waits for nodes, Redis or a collector.
#[derive(Clone, Copy, Debug)]
pub struct Closing {
    /// The process ends by then.
    end: Instant,
    /// Kept for what follows when streams have ended.
    closing: Duration,
}

impl Closing {
    /// The end of a gateway that is asked now to stop.
    pub fn new(drain: &config::Drain) -> Closing {
        let closing = CLOSING.min(drain.timeout / 4);
        Closing { end: Instant::now() + drain.delay + drain.timeout, closing }
    }

    /// The end of streams that have not left.
    fn streams(self) -> Instant {
        self.end - self.closing
    }

    /// When whatever still waits for the bus is answered.
    fn answers(self) -> Instant {
        self.end - ANSWERS.min(self.closing / 2)
    }

    /// Waits for `work`, not beyond the time when what waits for the bus is answered. True if it
    /// was done.
    pub async fn before_answers(self, work: impl Future) -> bool {
        timeout_at(self.answers(), work).await.is_ok()
    }

    /// Waits for `work`, not beyond the end. True if it was done.
    pub async fn before_end(self, work: impl Future) -> bool {
        timeout_at(self.end, work).await.is_ok()
    }
}

/// Asks the nodes to leave, and waits until they have left or their time is over.
pub async fn drain(drain: &config::Drain, closing: Closing, rooms: &Rooms, health: &HealthState) {
    // Load balancers learn it from the health protocol, and need a moment to ask.
    let start = Instant::now() + drain.delay;
    let deadline = closing.streams();
    rooms.gateway.start_drain(Drain {
        start,
        // All of them are asked before they are ended.
        spread: drain.spread.min(deadline - start),
        deadline: SystemTime::now() + (deadline - Instant::now()),
    });
    // Afterwards: a client that sees NOT_SERVING finds the gateway draining.
    health.set(false);
    tokio::time::sleep_until(start).await;
    while rooms.nodes.count() > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
