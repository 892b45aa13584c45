//! What the writer and the reader of one shard tell each other: how far they are, and whether the path works.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::bus::{Position, ShardBusStatus};

/// A path whose last proof is older than this is not proven: two beacons were missed.
pub(super) const PROOF_AGE: Duration = Duration::from_millis(2500);

/// How long what Redis accepted may take to come over the channel before the subscription counts as deaf.
pub(super) const DEAF_AFTER: Duration = Duration::from_millis(1200);

/// Shared by one shard's writer and the reader.
#[derive(Default)]
pub(super) struct Proof {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The last place that the reader handed on.
    position: Position,
    /// When Redis last accepted something from this gateway.
    accepted: Option<Instant>,
    /// When something from this gateway last came back over the channel.
    returned: Option<Instant>,
    /// Why the last beacon failed, since Redis last accepted something.
    failure: Option<String>,
    repairs: u64,
}

impl Proof {
    /// Redis accepted a frame or a beacon.
    pub(super) fn accepted(&self) {
        let mut state = self.state.lock();
        state.accepted = Some(Instant::now());
        state.failure = None;
    }

    /// A beacon was not accepted.
    pub(super) fn failed(&self, why: String) {
        self.state.lock().failure = Some(why);
    }

    /// Something from this gateway came back: the path is proven.
    pub(super) fn returned(&self) {
        self.state.lock().returned = Some(Instant::now());
    }

    /// The reader has handed on everything up to `place`.
    pub(super) fn reached(&self, position: Position) {
        self.state.lock().position = position;
    }

    pub(super) fn repaired(&self) {
        self.state.lock().repairs += 1;
    }

    pub(super) fn position(&self) -> Position {
        self.state.lock().position
    }

    /// Whether Redis accepts what the subscription does not bring. `since`: when the subscription was made.
    pub(super) fn is_deaf(&self, since: Instant) -> bool {
        let state = self.state.lock();
        let Some(accepted) = state.accepted.filter(|accepted| *accepted > since) else {
            return false;
        };
        let heard = state.returned.is_some_and(|returned| returned + DEAF_AFTER >= accepted);
        !heard && since.elapsed() > DEAF_AFTER
    }

    /// Why the path is not proven; none if it is.
    pub(super) fn doubt(&self) -> Option<String> {
        let state = self.state.lock();
        match state.returned {
            Some(returned) if returned.elapsed() <= PROOF_AGE => None,
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
            proof_age: age,
            proven: age.is_some_and(|age| age <= PROOF_AGE),
            repairs: state.repairs,
        }
    }
}
