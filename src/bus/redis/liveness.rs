//! The liveness of one shard: shared by its writer and the reader, each of which sees one half of
//! the path.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::bus::{Position, ShardBusStatus};

/// A path that was last verified longer ago than this does not count as verified: two probes were
/// missed.
pub(super) const MAX_LIVENESS_AGE: Duration = Duration::from_millis(2500);

/// The time that what Redis accepted may take to come over the channel before the subscription
/// counts as deaf.
pub(super) const DEAF_AFTER: Duration = Duration::from_millis(1200);

/// State of the path through one shard.
#[derive(Default)]
pub(super) struct Liveness {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The last position that the reader delivered.
    position: Position,
    /// When Redis last accepted something from this gateway.
    accepted: Option<Instant>,
    /// When something from this gateway last came back over the channel.
    returned: Option<Instant>,
    /// The error of the last probe, if Redis has accepted nothing since.
    failure: Option<String>,
    repairs: u64,
}

impl Liveness {
    /// Records that Redis accepted a frame or a probe.
    pub(super) fn accepted(&self) {
        let mut state = self.state.lock();
        state.accepted = Some(Instant::now());
        state.failure = None;
    }

    /// Records that a probe was not accepted.
    pub(super) fn failed(&self, why: String) {
        self.state.lock().failure = Some(why);
    }

    /// Records that something from this gateway came back: the path is verified.
    pub(super) fn returned(&self) {
        self.state.lock().returned = Some(Instant::now());
    }

    /// Records that the reader has delivered everything up to `position`.
    pub(super) fn reached(&self, position: Position) {
        self.state.lock().position = position;
    }

    /// Counts a repair.
    pub(super) fn repaired(&self) {
        self.state.lock().repairs += 1;
    }

    /// The last position that the reader delivered.
    pub(super) fn position(&self) -> Position {
        self.state.lock().position
    }

    /// True if Redis accepts what the subscription, made at `since`, does not receive.
    pub(super) fn is_deaf(&self, since: Instant) -> bool {
        let state = self.state.lock();
        let Some(accepted) = state.accepted.filter(|accepted| *accepted > since) else {
            return false;
        };
        let received = state.returned.is_some_and(|returned| returned + DEAF_AFTER >= accepted);
        !received && since.elapsed() > DEAF_AFTER
    }

    /// The reason why the path is not verified; None if it is.
    pub(super) fn problem(&self) -> Option<String> {
        let state = self.state.lock();
        match state.returned {
            Some(returned) if returned.elapsed() <= MAX_LIVENESS_AGE => None,
            _ => Some(state.failure.clone().unwrap_or_else(|| match state.returned {
                None => "nothing has come over the channel yet".into(),
                Some(at) => format!("nothing has come over the channel for {:.1?}", at.elapsed()),
            })),
        }
    }

    pub(super) fn status(&self) -> ShardBusStatus {
        let state = self.state.lock();
        let age = state.returned.map(|returned| returned.elapsed());
        ShardBusStatus {
            position: state.position,
            verified_age: age,
            verified: age.is_some_and(|age| age <= MAX_LIVENESS_AGE),
            repairs: state.repairs,
        }
    }
}
