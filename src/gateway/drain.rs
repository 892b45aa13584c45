//! Reports health while the gateway runs, and drains it.

use std::time::{Duration, SystemTime};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::rooms::Rooms;
use crate::{bus::Health, config, lifecycle::Drain, rpc::health::HealthState};

/// Reports the health of the bus over the health protocol, until the gateway drains or ends.
pub async fn report_health(
    mut bus: watch::Receiver<Health>,
    mut drain: watch::Receiver<Option<Drain>>,
    health: HealthState,
    ended: CancellationToken,
) {
    let mut was_ready = false;
    loop {
        let state = bus.borrow_and_update().clone();
        let ready = state == Health::Ready;
        match state {
            Health::Ready if !was_ready => tracing::info!("the bus is verified"),
            Health::NotReady(why) if was_ready => {
                tracing::warn!(why, "the bus is not verified any more");
            }
            _ => {}
        }
        was_ready = ready;
        health.set(ready && drain.borrow_and_update().is_none());
        tokio::select! {
            changed = bus.changed() => if changed.is_err() { return },
            changed = drain.changed() => if changed.is_err() { return },
            () = ended.cancelled() => return,
        }
    }
}

/// Asks the nodes to leave, and waits until they have left or the time is over.
pub async fn drain(drain: &config::Drain, rooms: &Rooms, health: &HealthState) {
    // Load balancers learn it from the health protocol, and need a moment to ask.
    let start = Instant::now() + drain.delay;
    let deadline = start + drain.timeout;
    rooms.gateway.start_drain(Drain {
        start,
        spread: drain.spread,
        deadline: SystemTime::now() + drain.delay + drain.timeout,
    });
    // Afterwards: a client that sees NOT_SERVING finds the gateway draining.
    health.set(false);
    tokio::time::sleep_until(start).await;
    while rooms.nodes.count() > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
