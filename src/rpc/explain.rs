//! The explanations of a stream: for every event that it read, why it was delivered or withheld.
//!
//! The decisions are those of the filter. Their number is limited, so that a person who looks for
//! one event does not cost the gateway as much as a thousand nodes do; the counts are complete.

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

/// Verdicts a second, and the burst of verdicts. The protocol promises this number.
const VERDICTS_PER_SECOND: u32 = 200;

/// The delay of an explanation that has counts and no verdicts.
const COUNTS_DELAY: Duration = Duration::from_millis(100);

/// The explanations of one stream.
pub struct Explainer {
    /// A token bucket: verdicts that may be sent, as of a time.
    tokens: f64,
    as_of: Instant,
    /// When the last explanation was sent.
    last_sent: Instant,
    pending: v1::Explanation,
}

impl Explainer {
    /// An explainer with nothing to explain yet.
    pub fn new(now: Instant) -> Explainer {
        let tokens = f64::from(VERDICTS_PER_SECOND);
        Explainer { tokens, as_of: now, last_sent: now, pending: v1::Explanation::default() }
    }

    /// The number of verdicts that may be sent now.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0 to 200
    pub fn available(&mut self, now: Instant) -> usize {
        let rate = f64::from(VERDICTS_PER_SECOND);
        let passed = now.saturating_duration_since(self.as_of).as_secs_f64();
        (self.tokens, self.as_of) = ((self.tokens + passed * rate).min(rate), now);
        self.tokens as usize
    }

    /// Adds the decisions about the events that were passed.
    pub fn add(&mut self, explanation: Explanation) {
        let verdicts = explanation.decisions.len();
        self.tokens -= f64::from(u32::try_from(verdicts).unwrap_or(VERDICTS_PER_SECOND));
        self.pending.delivered_events += explanation.delivered;
        self.pending.withheld_events += explanation.withheld;
        let passed = explanation.delivered + explanation.withheld;
        self.pending.omitted_verdicts += passed - verdicts as u64;
        self.pending.verdicts.extend(explanation.decisions.into_iter().map(verdict));
    }

    /// When the next explanation is due; none if there is nothing to explain.
    pub fn due(&self) -> Option<Instant> {
        let pending = &self.pending;
        if pending.verdicts.is_empty() {
            (pending.omitted_verdicts > 0).then(|| self.last_sent + COUNTS_DELAY)
        } else {
            Some(self.last_sent)
        }
    }

    /// The next explanation.
    pub fn take(&mut self, now: Instant, resume_token: Vec<u8>) -> v1::Explanation {
        self.last_sent = now;
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
    fn verdicts_are_limited_and_counts_are_complete() {
        let start = Instant::now();
        let mut explainer = Explainer::new(start);
        assert_eq!(explainer.due(), None);
        assert_eq!(explainer.available(start), 200);
        explainer.add(explanation(150, 150));
        assert_eq!(explainer.available(start), 50);
        explainer.add(explanation(50, 1000));
        assert_eq!(explainer.available(start), 0);
        assert_eq!(explainer.due(), Some(start), "verdicts are sent at once");
        let sent = explainer.take(start, vec![1]);
        assert_eq!((sent.verdicts.len(), sent.withheld_events), (200, 1150));
        assert_eq!((sent.omitted_verdicts, sent.resume_token), (950, vec![1]));
        assert_eq!(sent.verdicts[0].exclusions, [v1::Exclusion::Account as i32]);
        explainer.add(explanation(0, 5));
        assert_eq!(explainer.due(), Some(start + COUNTS_DELAY), "counts alone are delayed");
        assert_eq!(explainer.take(start, vec![]).omitted_verdicts, 5);
        assert_eq!(explainer.due(), None);
        assert_eq!(explainer.available(start + Duration::from_millis(500)), 100);
        assert_eq!(explainer.available(start + Duration::from_mins(1)), 200);
    }
}
