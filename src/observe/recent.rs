//! What went wrong lately, for people: the last gaps, ended streams and refused requests.
//!
//! Each ring holds the same small number, whatever happens; it is written once a gap, once an ended stream and once a refused
//! request, and never for an event.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;

use crate::{
    bus::{GapReason, ShardId},
    proto::v1,
};
use crate::{observe::counters::Method, rpc::error::Error};

/// How many of each are kept.
pub const KEPT: usize = 100;

/// Characters of a refusal's text that are kept.
const MAX_TEXT: usize = 200;

/// The rings.
#[derive(Debug, Default)]
pub struct Recent {
    gaps: Ring<ToldGap>,
    ended: Ring<EndedStream>,
    refused: Ring<Refusal>,
}

/// A gap that a stream was told.
#[derive(Clone, Debug)]
pub struct ToldGap {
    /// When.
    pub at: SystemTime,
    /// Whose stream.
    pub node_id: String,
    /// Of which shard.
    pub shard: ShardId,
    /// Why.
    pub reason: GapReason,
    /// How many events, where that is known.
    pub missed: Option<u64>,
}

/// A stream that is no more.
#[derive(Clone, Debug)]
pub struct EndedStream {
    /// When it ended.
    pub at: SystemTime,
    /// Whose it was.
    pub node_id: String,
    /// Its address and port.
    pub peer: String,
    /// How long it was open.
    pub lasted: Duration,
    /// How many events it was sent.
    pub delivered: u64,
    /// Why it ended.
    pub why: Ending,
}

/// Why a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Its node closed it, or the connection broke.
    ClientWent,
    /// It had all the events that it asked for.
    MaxEvents,
    /// Its time was up.
    MaxDuration,
    /// With this error: an [`Error::reason`].
    Error(&'static str),
}

/// A request that was answered with an error.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// When.
    pub at: SystemTime,
    /// What was asked for.
    pub method: Method,
    /// `ErrorInfo.reason`.
    pub reason: &'static str,
    /// What the node was told, or the beginning of it.
    pub text: String,
}

/// The last few of something.
#[derive(Debug)]
struct Ring<T>(Mutex<VecDeque<T>>);

impl Recent {
    /// A stream was told a gap.
    pub fn gap(&self, node: &v1::Node, shard: ShardId, reason: GapReason, missed: Option<u64>) {
        let node_id = node.node_id.clone();
        self.gaps.push(ToldGap { at: SystemTime::now(), node_id, shard, reason, missed });
    }

    /// A stream ended.
    pub fn ended(&self, stream: EndedStream) {
        self.ended.push(stream);
    }

    /// A request was refused.
    pub fn refused(&self, method: Method, error: &Error) {
        let text: String = error.to_string().chars().take(MAX_TEXT).collect();
        self.refused.push(Refusal { at: SystemTime::now(), method, reason: error.reason(), text });
    }

    /// The last gaps, the newest first.
    pub fn last_gaps(&self) -> Vec<ToldGap> {
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
    /// Its name: `client_went`, or a reason of `ErrorInfo` in small letters.
    pub fn name(self) -> String {
        match self {
            Ending::ClientWent => "client_went".into(),
            Ending::MaxEvents => "max_events".into(),
            Ending::MaxDuration => "max_duration".into(),
            Ending::Error(reason) => reason.to_ascii_lowercase(),
        }
    }
}

impl<T> Default for Ring<T> {
    fn default() -> Ring<T> {
        Ring(Mutex::new(VecDeque::with_capacity(KEPT)))
    }
}

impl<T: Clone> Ring<T> {
    fn push(&self, item: T) {
        let mut items = self.0.lock();
        if items.len() == KEPT {
            items.pop_front();
        }
        items.push_back(item);
    }

    fn newest_first(&self) -> Vec<T> {
        self.0.lock().iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_and_no_more() {
        let recent = Recent::default();
        for nth in 0..KEPT as u64 + 5 {
            let node = v1::Node { node_id: format!("n{nth}"), ..Default::default() };
            recent.gap(&node, ShardId(1), GapReason::HistoryExpired, Some(nth));
        }
        let gaps = recent.last_gaps();
        assert_eq!(gaps.len(), KEPT);
        assert_eq!((gaps[0].missed, gaps[KEPT - 1].missed), (Some(KEPT as u64 + 4), Some(5)));
        assert_eq!(gaps[0].node_id, format!("n{}", KEPT + 4));
    }

    #[test]
    fn a_refusal_keeps_the_beginning_of_what_was_told() {
        let recent = Recent::default();
        recent.refused(Method::Publish, &Error::bus_unavailable("é".repeat(5000)));
        let refusal = &recent.last_refused()[0];
        assert_eq!(refusal.text.chars().count(), MAX_TEXT);
        assert_eq!(refusal.reason, "BUS_UNAVAILABLE");
        assert!(refusal.text.starts_with("the bus is not available: é"), "{refusal:?}");
    }
}
