//! The liveness of one shard: shared by its writer and the reader, each of which sees one half of
//! the path.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::bus::{Position, ShardBusStatus};

/// A path that was last verified longer ago than this does not count as verified: two probes were
/// missed.
pub(super) const MAX_LIVENESS_AGE: Duration = Duration::from_millis(2500);

/// A subscription on which nothing arrives for this time, although Redis accepted something, counts
/// as deaf.
const DEAF_AFTER: Duration = Duration::from_millis(1200);

/// The same if only the messages of one shard are missing on the connection: where it lags by a
/// backlog of other shards' messages, those of a quiet shard come rarely.
const CHANNEL_LOST_AFTER: Duration = Duration::from_secs(10);

/// A message may arrive this much earlier than the answer to the call that published it. An
/// acceptance within this time of a message does not count as one whose message is missing.
const ANSWER_LAG: Duration = Duration::from_millis(600);

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
    /// When Redis accepted the first thing of which nothing has arrived since.
    unreceived: Option<Instant>,
    /// The error of the last probe, if Redis has accepted nothing since.
    failure: Option<String>,
    /// The server whose subscription was found to be deaf, if nothing has come back since.
    deaf: Option<String>,
    repairs: u64,
}

/// The messages that have arrived on a subscription.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrivals {
    /// When all channels were subscribed.
    pub subscribed: Instant,
    /// When the last message of the shard arrived.
    pub of_shard: Option<Instant>,
    /// When the last message of any shard arrived.
    pub of_any: Option<Instant>,
}

impl Arrivals {
    /// When Redis accepted the first thing of which nothing has arrived, where it accepted the last
    /// thing at `accepted`, and this was `before` when it was looked at last.
    fn unreceived(&self, accepted: Option<Instant>, before: Option<Instant>) -> Option<Instant> {
        let last = self.of_shard.map_or(self.subscribed, |arrived| arrived + ANSWER_LAG);
        let accepted = accepted.filter(|accepted| *accepted > last)?;
        Some(before.filter(|before| *before > last).unwrap_or(accepted))
    }

    /// True if the subscription is deaf: something was accepted at `unreceived`, and nothing has
    /// arrived. As long as messages arrive, however old they are, it only lags, and a new
    /// connection would be slower still.
    fn is_deaf(&self, unreceived: Option<Instant>, now: Instant) -> bool {
        let Some(unreceived) = unreceived else { return false };
        let waited = now.saturating_duration_since(unreceived);
        let silent = now.saturating_duration_since(self.of_any.unwrap_or(self.subscribed));
        waited > CHANNEL_LOST_AFTER || waited > DEAF_AFTER && silent > DEAF_AFTER
    }
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
        let mut state = self.state.lock();
        (state.returned, state.deaf) = (Some(Instant::now()), None);
    }

    /// Records that the subscription at this server is deaf.
    pub(super) fn deaf(&self, server: &str) {
        self.state.lock().deaf = Some(server.to_owned());
    }

    /// Records that the reader has delivered everything up to `position`.
    pub(super) fn reached(&self, position: Position) {
        self.state.lock().position = position;
    }

    /// Counts a repair.
    pub(super) fn repaired(&self) {
        self.state.lock().repairs += 1;
    }

    /// True if the subscription with these arrivals does not receive what Redis accepts. To be
    /// asked several times within [`DEAF_AFTER`].
    pub(super) fn is_deaf(&self, arrivals: &Arrivals) -> bool {
        let mut state = self.state.lock();
        state.unreceived = arrivals.unreceived(state.accepted, state.unreceived);
        arrivals.is_deaf(state.unreceived, Instant::now())
    }

    /// The reason why the path is not verified; None if it is.
    pub(super) fn problem(&self) -> Option<String> {
        let state = self.state.lock();
        match state.returned {
            Some(returned) if returned.elapsed() <= MAX_LIVENESS_AGE => None,
            returned => Some(state.failure.clone().unwrap_or_else(|| {
                let since = match returned {
                    None => "yet".to_owned(),
                    Some(at) => format!("for {:.1?}", at.elapsed()),
                };
                let deaf = state.deaf.as_ref().map(|server| {
                    format!(
                        ": Redis takes what is published, and {server} does not deliver it to its \
                         subscribers (see its cluster links, or what is between)"
                    )
                });
                format!("nothing has come over the channel {since}{}", deaf.unwrap_or_default())
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at a subscription every 200 ms, as the reader does, while a probe is accepted every
    /// second. A message arrives at each of the times in milliseconds since it was made. The time
    /// at which it counts as deaf, if it does within 30 s.
    fn deaf_at(of_shard: &[u64], of_others: &[u64]) -> Option<u64> {
        let subscribed = Instant::now();
        let at = |ms: u64| subscribed + Duration::from_millis(ms);
        let last = |times: &[u64], now: u64| times.iter().copied().filter(|ms| *ms <= now).max();
        let mut unreceived = None;
        (0..30_000).step_by(200).find(|now| {
            let of_shard = last(of_shard, *now);
            let arrivals = Arrivals {
                subscribed,
                of_shard: of_shard.map(at),
                of_any: of_shard.max(last(of_others, *now)).map(at),
            };
            // Accepted 50 ms after the beginning of each second.
            let accepted = now.checked_sub(50).map(|ms| at(ms / 1000 * 1000 + 50));
            unreceived = arrivals.unreceived(accepted, unreceived);
            arrivals.is_deaf(unreceived, at(*now))
        })
    }

    fn every(period: u64, from: u64, to: u64) -> Vec<u64> {
        (from..to).step_by(usize::try_from(period).unwrap()).collect()
    }

    #[test]
    fn a_subscription_that_receives_what_is_accepted_is_not_deaf() {
        // Before the answer, and after it.
        assert_eq!(deaf_at(&every(1000, 40, 30_000), &[]), None);
        assert_eq!(deaf_at(&every(1000, 60, 30_000), &[]), None);
    }

    #[test]
    fn a_subscription_on_which_nothing_arrives_any_more_is_deaf() {
        assert_eq!(deaf_at(&[], &[]), Some(1400));
        // The last message at 4.06 s; the next probe is accepted at 5.05 s.
        assert_eq!(deaf_at(&every(1000, 60, 5000), &[]), Some(6400));
        assert_eq!(deaf_at(&every(1000, 60, 5000), &every(100, 0, 5000)), Some(6400));
    }

    #[test]
    fn a_subscription_that_lags_is_not_deaf_while_old_messages_arrive() {
        // A backlog from the first second on: messages of the shard come at a third of the rate at
        // which they are accepted, those of other shards all the time.
        assert_eq!(deaf_at(&every(3000, 3000, 30_000), &every(50, 0, 30_000)), None);
        // The shard alone, more than a second behind: what arrives is always old.
        assert_eq!(deaf_at(&every(1000, 2300, 30_000), &every(50, 0, 2300)), None);
    }

    #[test]
    fn a_lost_channel_is_found_although_other_shards_receive() {
        assert_eq!(deaf_at(&every(1000, 60, 5000), &every(50, 0, 30_000)), Some(15_200));
    }

    #[test]
    fn nothing_is_missing_while_redis_accepts_nothing() {
        let subscribed = Instant::now();
        let arrivals = Arrivals { subscribed, of_shard: None, of_any: None };
        let unreceived = arrivals.unreceived(Some(subscribed), None);
        assert!(!arrivals.is_deaf(unreceived, subscribed + Duration::from_mins(1)));
    }
}
