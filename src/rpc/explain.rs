//! What a stream that explains itself tells: what became of every event that it passed.
//!
//! The verdicts are the filter's own. They are limited in number, so that a person who looks for one event does not weigh on
//! the gateway as a thousand nodes do; the counts are always whole.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    hub::{
        explanation::{Decision, Explanation},
        filter::Exclusion,
    },
    proto::v1,
    rpc::messages::wire_position,
};

/// Verdicts a second, and how many may come at once. The protocol promises this number.
const VERDICTS_A_SECOND: u32 = 200;

/// Counts without a verdict are told after so long.
const PAUSE: Duration = Duration::from_millis(100);

/// The explanations of one stream.
pub struct Explainer {
    /// Verdicts that may be given now, and as of when.
    room: f64,
    as_of: Instant,
    /// When an explanation was last told.
    told: Instant,
    pending: v1::Explanation,
}

impl Explainer {
    /// Nothing is explained yet.
    pub fn new(now: Instant) -> Explainer {
        let room = f64::from(VERDICTS_A_SECOND);
        Explainer { room, as_of: now, told: now, pending: v1::Explanation::default() }
    }

    /// How many verdicts may be given now.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0 to 200
    pub fn room(&mut self, now: Instant) -> usize {
        let rate = f64::from(VERDICTS_A_SECOND);
        let passed = now.saturating_duration_since(self.as_of).as_secs_f64();
        (self.room, self.as_of) = ((self.room + passed * rate).min(rate), now);
        self.room as usize
    }

    /// Adds the decisions about the events that were passed.
    pub fn add(&mut self, explanation: Explanation) {
        let verdicts = explanation.decisions.len();
        self.room -= f64::from(u32::try_from(verdicts).unwrap_or(VERDICTS_A_SECOND));
        self.pending.delivered_events += explanation.delivered;
        self.pending.withheld_events += explanation.withheld;
        let passed = explanation.delivered + explanation.withheld;
        self.pending.omitted_verdicts += passed - verdicts as u64;
        self.pending.verdicts.extend(explanation.decisions.into_iter().map(verdict));
    }

    /// When the next explanation is to be told; none if there is nothing to explain.
    pub fn due(&self) -> Option<Instant> {
        let pending = &self.pending;
        if pending.verdicts.is_empty() {
            (pending.omitted_verdicts > 0).then(|| self.told + PAUSE)
        } else {
            Some(self.told)
        }
    }

    /// The next explanation.
    pub fn take(&mut self, now: Instant, resume_token: Vec<u8>) -> v1::Explanation {
        self.told = now;
        v1::Explanation { resume_token, ..std::mem::take(&mut self.pending) }
    }
}

fn verdict(decision: Decision) -> v1::Verdict {
    let exclusion = |exclusion: Exclusion| v1::Exclusion::from(exclusion).into();
    v1::Verdict {
        position: Some(wire_position(decision.shard, decision.position)),
        kind: decision.kind.into(),
        event_id: decision.event_id,
        source: decision.source,
        account_id: decision.account.unwrap_or_default(),
        custom_type: decision.custom_type.unwrap_or_default(),
        delivered: decision.exclusions.is_empty(),
        exclusions: decision.exclusions.into_iter().map(exclusion).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::{Position, ShardId};

    fn explanation(decisions: usize, withheld: u64) -> Explanation {
        let decision = Decision {
            shard: ShardId(3),
            position: Position::new(7, 9),
            kind: 10,
            event_id: "e".into(),
            source: "n".into(),
            account: Some("a".into()),
            custom_type: None,
            exclusions: vec![Exclusion::Account],
        };
        Explanation::with(vec![decision; decisions], 0, withheld)
    }

    #[test]
    fn verdicts_are_limited_and_counts_are_whole() {
        let start = Instant::now();
        let mut explainer = Explainer::new(start);
        assert_eq!(explainer.due(), None);
        assert_eq!(explainer.room(start), 200);
        explainer.add(explanation(150, 150));
        assert_eq!(explainer.room(start), 50);
        explainer.add(explanation(50, 1000));
        assert_eq!(explainer.room(start), 0);
        assert_eq!(explainer.due(), Some(start), "verdicts are told at once");
        let told = explainer.take(start, vec![1]);
        assert_eq!((told.verdicts.len(), told.withheld_events), (200, 1150));
        assert_eq!((told.omitted_verdicts, told.resume_token), (950, vec![1]));
        assert_eq!(told.verdicts[0].exclusions, [v1::Exclusion::Account as i32]);
        explainer.add(explanation(0, 5));
        assert_eq!(explainer.due(), Some(start + PAUSE), "counts alone wait a little");
        assert_eq!(explainer.take(start, vec![]).omitted_verdicts, 5);
        assert_eq!(explainer.due(), None);
        assert_eq!(explainer.room(start + Duration::from_millis(500)), 100);
        assert_eq!(explainer.room(start + Duration::from_mins(1)), 200);
    }
}
