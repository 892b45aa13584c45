//! The state of this gateway: it starts, serves while its bus is verified, and drains.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use parking_lot::RwLock;
use rand::Rng;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    bus::Health,
    errors::Error,
    hub::Hub,
    leave::{Leave, LeaveReason},
    proto::v1::GatewayState,
};

/// The time that a new stream waits for a bus that is not verified, before it is refused.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest delay before a reconnect that a draining gateway asks its nodes for.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(1);

/// Facts about this gateway that do not change while it runs.
#[derive(Clone, Debug)]
pub struct About {
    /// Identity of the gateway.
    pub gateway_id: String,
    /// Name of the deployment; empty if it has none.
    pub deployment: String,
    /// The listening address; empty if others could not use it.
    pub address: String,
    /// When the gateway started, by the clock of that time.
    pub started: SystemTime,
    /// The same by a clock that is never set.
    pub since: Instant,
}

impl About {
    /// The time since the gateway started, whatever happened to the clock.
    pub fn uptime(&self) -> Duration {
        self.since.elapsed()
    }
}

/// The schedule of a drain.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// When the first stream is asked to leave.
    pub start: Instant,
    /// The streams are asked to leave at random times over this period.
    pub spread: Duration,
    /// When the gateway stops.
    pub deadline: SystemTime,
}

impl Drain {
    /// When one stream is asked to leave: at a random time, so that the nodes do not all arrive
    /// elsewhere at once.
    pub fn leave_at(&self) -> Instant {
        self.start + self.spread.mul_f64(rand::rng().random_range(0.0..1.0))
    }
}

/// The state of this gateway. Everything that depends on it shares one.
pub struct Lifecycle {
    /// Facts that do not change.
    pub about: About,
    /// Set once the bus has started.
    pub hub: OnceLock<Arc<Hub>>,
    /// The reason why the bus has not started yet.
    pub waiting: RwLock<String>,
    /// The reason why the last values are not known; empty once they are.
    last_values: watch::Sender<String>,
    /// The delay before a reconnect that nodes are asked for.
    reconnect_delay: Duration,
    drain: watch::Sender<Option<Drain>>,
    stopping: CancellationToken,
}

impl Lifecycle {
    /// A gateway that starts. `drain_spread` is the period over which a drain spreads its streams.
    pub fn new(about: About, drain_spread: Duration) -> Lifecycle {
        Lifecycle {
            about,
            hub: OnceLock::new(),
            waiting: RwLock::new("connecting".into()),
            last_values: watch::Sender::new("not read yet".into()),
            reconnect_delay: drain_spread.min(MAX_RECONNECT_DELAY),
            drain: watch::Sender::new(None),
            stopping: CancellationToken::new(),
        }
    }

    /// Records why the last values are not known, or, with an empty text, that they are.
    pub fn set_last_values(&self, missing: String) {
        self.last_values.send_replace(missing);
    }

    /// The reason why the last values are not known, and its changes; empty once they are known.
    pub fn last_values(&self) -> watch::Receiver<String> {
        self.last_values.subscribe()
    }

    /// The reason why the last values are not known, if they are not.
    fn missing_values(&self) -> Option<String> {
        let missing = self.last_values.borrow().clone();
        (!missing.is_empty()).then(|| format!("the last values could not be read: {missing}"))
    }

    /// Starts to drain: streams leave by this schedule.
    pub fn start_drain(&self, drain: Drain) {
        self.drain.send_replace(Some(drain));
        if let Some(hub) = self.hub.get() {
            hub.wake_all();
        }
    }

    /// Ends the requests that still wait for the bus: the gateway waits for them no longer.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// Returns when requests must not wait for the bus any longer.
    pub async fn stopping(&self) {
        self.stopping.cancelled().await;
    }

    /// The schedule of the drain, once there is one.
    pub fn drain(&self) -> watch::Receiver<Option<Drain>> {
        self.drain.subscribe()
    }

    /// True once the gateway drains.
    pub fn is_draining(&self) -> bool {
        self.drain.borrow().is_some()
    }

    /// What a drain asks a stream for.
    pub fn stopping_by(&self, drain: Drain) -> Leave {
        let (deadline, reconnect_delay) = (drain.deadline, self.reconnect_delay);
        Leave { reason: LeaveReason::Stopping, deadline, reconnect_delay, to: None }
    }

    /// The delay before a reconnect that nodes are asked for.
    pub fn reconnect_delay(&self) -> Duration {
        self.reconnect_delay
    }

    /// Refuses a request once streams are asked to leave. Before that, while load balancers look
    /// away, requests are still served.
    pub fn refuse_if_draining(&self) -> Result<(), Error> {
        match *self.drain.borrow() {
            Some(drain) if drain.start <= Instant::now() => {
                Err(Error::Draining { retry_after: self.reconnect_delay })
            }
            _ => Ok(()),
        }
    }

    /// The state as the wire API names it.
    pub fn state(&self) -> GatewayState {
        if self.is_draining() {
            return GatewayState::Draining;
        }
        match self.hub.get() {
            Some(hub)
                if hub.bus().health().borrow().serves() && self.missing_values().is_none() =>
            {
                GatewayState::Serving
            }
            _ => GatewayState::NotServing,
        }
    }

    /// The reason why the gateway does not serve; none if it does.
    pub fn why_not_serving(&self) -> Option<String> {
        let Some(hub) = self.hub.get() else {
            return Some(format!("the bus has not started: {}", self.waiting.read()));
        };
        if self.is_draining() {
            return Some("draining".into());
        }
        match &*hub.bus().health().borrow() {
            Health::NotReady(why) => Some(why.clone()),
            Health::Ready | Health::Partial { .. } => self.missing_values(),
        }
    }

    /// The reason why some shards are not served while others are; none if all are or none is.
    pub fn why_partial(&self) -> Option<String> {
        match &*self.hub.get()?.bus().health().borrow() {
            Health::Partial { why, .. } => Some(why.clone()),
            Health::Ready | Health::NotReady(_) => None,
        }
    }

    /// The hub, once the bus has started.
    pub fn hub(&self) -> Result<&Arc<Hub>, Error> {
        self.hub.get().ok_or_else(|| Error::BusUnavailable(self.waiting.read().clone()))
    }

    /// The hub, once the path through the bus is verified, for some of the shards at least. Waits
    /// for that, but not for long.
    pub async fn verified_hub(&self) -> Result<&Arc<Hub>, Error> {
        let hub = self.hub()?;
        let (mut health, mut values) = (hub.bus().health(), self.last_values.subscribe());
        let ready = async {
            // A stream begins with the last values.
            let verified = health.wait_for(Health::serves).await.is_ok();
            verified && values.wait_for(String::is_empty).await.is_ok()
        };
        let ready = tokio::time::timeout(VERIFY_TIMEOUT, ready).await;
        if ready == Ok(true) && hub.is_started() {
            return Ok(hub);
        }
        let why = match &*hub.bus().health().borrow() {
            Health::NotReady(why) => why.clone(),
            Health::Ready | Health::Partial { .. } => {
                self.missing_values().unwrap_or_else(|| "the bus has just started".into())
            }
        };
        Err(Error::BusUnavailable(why))
    }
}
