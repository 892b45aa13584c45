//! The last failures, for people: gaps, ended streams and refused requests.
//!
//! Each ring keeps the same small number of entries, whatever happens. It is written once per gap,
//! ended stream or refused request, never for an event.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;

use super::counters::Method;
use crate::{
    bus::{GapReason, ShardId},
    errors::{Error, Requester},
};

/// Entries that each ring keeps.
pub const KEPT: usize = 100;

/// Characters of a refusal's message that are kept.
const MAX_TEXT: usize = 200;

/// The rings of failures.
#[derive(Debug, Default)]
pub struct Recent {
    gaps: Ring<SentGap>,
    ended: Ring<EndedStream>,
    refused: Ring<Refusal>,
}

/// A gap that was sent on a stream.
#[derive(Clone, Debug)]
pub struct SentGap {
    /// Its number among all gaps that were sent, from 1.
    pub number: u64,
    /// When it was sent.
    pub at: SystemTime,
    /// The node of the stream.
    pub node_id: String,
    /// The shard of the gap.
    pub shard: ShardId,
    /// The cause.
    pub reason: GapReason,
    /// The number of missed events, where it is known.
    pub missed: Option<u64>,
}

/// A stream that has ended.
#[derive(Clone, Debug)]
pub struct EndedStream {
    /// When it ended.
    pub at: SystemTime,
    /// Its node.
    pub node_id: String,
    /// The address and port of its client.
    pub peer: String,
    /// How long it was open.
    pub lasted: Duration,
    /// The number of events that were sent on it.
    pub delivered: u64,
    /// Why it ended.
    pub why: Ending,
}

/// Why a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The client closed it, or the connection broke.
    ClientDisconnected,
    /// The `max_events` of its request were sent.
    MaxEvents,
    /// The `max_duration` of its request was over.
    MaxDuration,
    /// An error with this [`Error::reason`].
    Error(&'static str),
}

/// A request that was answered with an error.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// When it was answered.
    pub at: SystemTime,
    /// The method called.
    pub method: Method,
    /// Who sent it.
    pub who: String,
    /// [`Error::rule`].
    pub rule: Option<String>,
    /// `ErrorInfo.reason`.
    pub reason: &'static str,
    /// The message of the status, or its beginning.
    pub text: String,
}

/// The last few entries.
#[derive(Debug)]
struct Ring<T>(Mutex<Kept<T>>);

#[derive(Debug)]
struct Kept<T> {
    items: VecDeque<T>,
    /// The number of entries that there were.
    pushed: u64,
}

impl Recent {
    /// A gap was sent on a stream of `node_id`.
    pub fn gap(&self, node_id: &str, shard: ShardId, reason: GapReason, missed: Option<u64>) {
        let node_id = node_id.to_owned();
        self.gaps.push(|number| {
            let at = SystemTime::now();
            SentGap { number, at, node_id, shard, reason, missed }
        });
    }

    /// A stream ended.
    pub fn ended(&self, stream: EndedStream) {
        self.ended.push(|_| stream);
    }

    /// A request was refused.
    pub fn refused(&self, method: Method, requester: &Requester, error: &Error) {
        let shortened = |text: String| -> String { text.chars().take(MAX_TEXT).collect() };
        let refusal = Refusal {
            at: SystemTime::now(),
            method,
            who: shortened(requester.to_string()),
            rule: error.rule().map(shortened),
            reason: error.reason(),
            text: shortened(error.to_string()),
        };
        self.refused.push(|_| refusal);
    }

    /// The last gaps, the newest first.
    pub fn last_gaps(&self) -> Vec<SentGap> {
        self.gaps.newest_first()
    }

    /// The streams that ended last, the newest first.
    pub fn last_ended(&self) -> Vec<EndedStream> {
        self.ended.newest_first()
    }

    /// The requests that were refused last, the newest first.
    pub fn last_refused(&self) -> Vec<Refusal> {
        self.refused.newest_first()
    }
}

impl Ending {
    /// The name on the page: `client_went`, or a reason of `ErrorInfo` in lower case.
    pub fn name(self) -> String {
        match self {
            Ending::ClientDisconnected => "client_went".into(),
            Ending::MaxEvents => "max_events".into(),
            Ending::MaxDuration => "max_duration".into(),
            Ending::Error(reason) => reason.to_ascii_lowercase(),
        }
    }

    /// The reason in the log line of the stream.
    pub fn describe(self) -> &'static str {
        match self {
            Ending::ClientDisconnected => "the client disconnected",
            Ending::MaxEvents => "max_events is reached",
            Ending::MaxDuration => "max_duration is reached",
            Ending::Error(reason) => reason,
        }
    }
}

impl<T> Default for Ring<T> {
    fn default() -> Ring<T> {
        Ring(Mutex::new(Kept { items: VecDeque::with_capacity(KEPT), pushed: 0 }))
    }
}

impl<T: Clone> Ring<T> {
    /// Adds the entry that is made with its number, from 1.
    fn push(&self, item: impl FnOnce(u64) -> T) {
        let mut kept = self.0.lock();
        kept.pushed += 1;
        if kept.items.len() == KEPT {
            kept.items.pop_front();
        }
        let item = item(kept.pushed);
        kept.items.push_back(item);
    }

    fn newest_first(&self) -> Vec<T> {
        self.0.lock().items.iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_entries_are_kept_and_no_more() {
        let recent = Recent::default();
        for nth in 0..KEPT as u64 + 5 {
            recent.gap(&format!("n{nth}"), ShardId(1), GapReason::HistoryExpired, Some(nth));
        }
        let gaps = recent.last_gaps();
        assert_eq!(gaps.len(), KEPT);
        assert_eq!((gaps[0].missed, gaps[KEPT - 1].missed), (Some(KEPT as u64 + 4), Some(5)));
        assert_eq!(gaps[0].node_id, format!("n{}", KEPT + 4));
        let numbers = gaps.iter().map(|gap| gap.number);
        assert!(numbers.eq((6..=KEPT as u64 + 5).rev()));
    }

    #[test]
    fn a_refusal_keeps_the_beginning_of_its_message() {
        let recent = Recent::default();
        let requester = Requester::default().node(&"n".repeat(5000));
        recent.refused(Method::Publish, &requester, &Error::BusUnavailable("é".repeat(5000)));
        let refusal = &recent.last_refused()[0];
        assert_eq!(refusal.text.chars().count(), MAX_TEXT);
        assert_eq!(refusal.who.chars().count(), MAX_TEXT);
        assert_eq!((refusal.reason, &refusal.rule), ("BUS_UNAVAILABLE", &None));
        assert!(refusal.text.starts_with("the bus is not available: é"), "{refusal:?}");
    }
}
