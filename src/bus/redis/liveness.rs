//! The liveness of one shard: shared by its writer and the reader, each of which sees one half of
//! the path.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    envelope::{Body, Envelope, WriterId},
    script::Published,
};
use crate::bus::{Position, ShardBusStatus};

/// A path that was last verified longer ago than this does not count as verified: two probes were
/// missed. Each gateway asks once a second what was published last.
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

/// What was published may arrive this much later: that many calls may wait for it.
const MAX_EXPECTED: usize = 8;

/// The last probes that arrived, which are remembered.
const MAX_PROBES: usize = 32;

/// The greatest age of what was published last that is believed: each second something is.
const MAX_AGE: Duration = Duration::from_secs(2);

/// What arrived on the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A frame at this position, and all before it.
    Frame(Position),
    /// What anybody could have written: it says no more than that this position exists.
    Entry(Position),
    /// A probe, by its writer and number.
    Probe(WriterId, u64),
}

impl Received {
    /// What an envelope shows, if it can be read. `tagged`: messages without a tag may be forged.
    pub fn of(envelope: &Envelope, tagged: bool) -> Option<Received> {
        let at = envelope.position;
        match &envelope.body {
            Body::Probe { writer, number, .. } => Some(Received::Probe(*writer, *number)),
            Body::EpochStart { .. } | Body::Note(_) if tagged => Some(Received::Entry(at)),
            Body::Frame(_) | Body::EpochStart { .. } | Body::Note(_) => Some(Received::Frame(at)),
            Body::Unreadable | Body::Forged => None,
        }
    }
}

/// What has arrived.
#[derive(Debug, Default)]
struct Arrived {
    frame: Position,
    entry: Position,
    probes: VecDeque<(WriterId, u64)>,
}

impl Arrived {
    fn add(&mut self, received: Received) {
        match received {
            Received::Frame(at) => self.frame = self.frame.max(at),
            Received::Entry(at) => self.entry = at,
            Received::Probe(writer, number) => {
                if self.probes.len() >= MAX_PROBES {
                    self.probes.pop_front();
                }
                self.probes.push_back((writer, number));
            }
        }
    }

    /// True if this has arrived, or something that was published later.
    fn has(&self, published: &Published) -> bool {
        let tip = published.tip;
        match published.probe {
            None => self.frame >= tip || self.entry == tip,
            Some(probe) => self.frame > tip || self.probes.contains(&probe),
        }
    }
}

/// State of the path through one shard.
#[derive(Default)]
pub(super) struct Liveness {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The last position that the reader delivered.
    position: Position,
    arrived: Arrived,
    /// What Redis says was published, and has not arrived.
    expected: VecDeque<Published>,
    /// When the last thing was published that had not arrived when Redis said so.
    accepted: Option<Instant>,
    /// When everything of which Redis said that it was published had arrived.
    verified: Option<Instant>,
    /// When the first thing was published of which nothing has arrived since.
    unreceived: Option<Instant>,
    /// The error of the last call, if Redis has answered none since.
    failure: Option<String>,
    /// The server whose subscription was found to be deaf, if nothing has arrived since.
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
    /// When the first thing was published of which nothing has arrived, where the last thing was at
    /// `accepted`, and this was `before` when it was looked at last.
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
    /// Records that Redis answered, and what it says was published last: by that the path to it is
    /// verified, and, if it has arrived, the path back.
    pub(super) fn published(&self, published: &Published) {
        self.state.lock().published(Instant::now(), published);
    }

    /// Records that a call failed.
    pub(super) fn failed(&self, why: String) {
        self.state.lock().failure = Some(why);
    }

    /// Records what arrived. True if that verifies the path.
    pub(super) fn received(&self, received: Received) -> bool {
        self.state.lock().received(Instant::now(), received)
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
        match state.verified {
            Some(verified) if verified.elapsed() <= MAX_LIVENESS_AGE => None,
            verified => Some(state.failure.clone().unwrap_or_else(|| {
                let since = match verified {
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
        let age = state.verified.map(|verified| verified.elapsed());
        ShardBusStatus {
            position: state.position,
            verified_age: age,
            verified: age.is_some_and(|age| age <= MAX_LIVENESS_AGE),
            repairs: state.repairs,
        }
    }
}

impl State {
    fn published(&mut self, now: Instant, published: &Published) {
        self.failure = None;
        if self.arrived.has(published) {
            self.expected.clear();
            self.verify(now);
            return;
        }
        self.accepted = now.checked_sub(published.age.min(MAX_AGE)).max(self.accepted);
        if self.expected.len() < MAX_EXPECTED && self.expected.back() != Some(published) {
            self.expected.push_back(*published);
        }
    }

    fn received(&mut self, now: Instant, received: Received) -> bool {
        self.arrived.add(received);
        let Some(last) = self.expected.iter().rposition(|published| self.arrived.has(published))
        else {
            return false;
        };
        self.expected.drain(..=last);
        self.verify(now);
        true
    }

    fn verify(&mut self, now: Instant) {
        (self.verified, self.deaf) = (Some(now), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(offset: u64, number: u64, age_ms: u64) -> Published {
        let (tip, age) = (Position::new(7, offset), Duration::from_millis(age_ms));
        Published { tip, probe: Some((1, number)), age }
    }

    #[test]
    fn a_path_is_verified_by_what_was_published_last_whoever_published_it() {
        let (mut state, now) = (State::default(), Instant::now());
        let entry = Published::entry(Position::new(7, 4));
        state.published(now, &entry);
        assert_eq!((state.verified, state.accepted), (None, Some(now)));
        assert!(!state.received(now, Received::Frame(Position::new(7, 3))), "it came before");
        assert!(!state.received(now, Received::Entry(Position::new(7, 5))), "it may be forged");
        assert!(state.received(now, Received::Frame(Position::new(7, 4))));
        assert_eq!(state.verified, Some(now));
        // What has arrived before Redis says so verifies the path each time.
        let later = now + Duration::from_secs(1);
        assert!(!state.received(now, Received::Probe(1, 9)));
        state.published(later, &probe(4, 9, 300));
        assert_eq!((state.verified, state.accepted), (Some(later), Some(now)));
        // One that never arrives was published when the age says.
        let last = later + Duration::from_secs(1);
        state.published(last, &probe(4, 10, 300));
        assert_eq!(state.verified, Some(later));
        assert_eq!(state.accepted, last.checked_sub(Duration::from_millis(300)));
        // An entry behind it shows that later messages arrive; one at its position does not.
        assert!(!state.received(last, Received::Frame(Position::new(7, 4))));
        assert!(state.received(last, Received::Frame(Position::new(7, 5))));
    }

    #[test]
    fn a_path_that_lags_is_verified_by_each_message_that_was_expected() {
        let (mut state, start) = (State::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        for number in 1..=20 {
            // Each arrives three seconds late.
            state.published(at(number), &probe(4, number, 0));
            if number > 3 {
                assert!(state.received(at(number), Received::Probe(1, number - 3)));
                assert_eq!(state.verified, Some(at(number)));
            }
        }
        assert!(state.expected.len() <= 3 && state.arrived.probes.len() <= MAX_PROBES);
    }

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
