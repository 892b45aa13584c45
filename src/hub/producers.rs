//! The producers that publish on streams of this gateway.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bus::{PublisherId, StreamNumber};

/// Producers without a stream that are remembered, and for how long.
const MAX_IDLE: usize = 10_000;
const REMEMBER: Duration = Duration::from_mins(10);

/// Events of which a producer may have no answer yet: the window of a stream, and the messages that
/// it sends beyond.
const UNANSWERED: u64 = 1 << 15;

/// All producers that have, or had, a stream here.
#[derive(Debug, Default)]
pub struct Producers {
    known: Mutex<HashMap<PublisherId, Producer>>,
    streams: AtomicU64,
}

#[derive(Debug)]
struct Producer {
    /// The stream that has it, of all streams of this gateway.
    stream: u64,
    /// Its number on the bus; 0 until it is known.
    number: StreamNumber,
    accepted: u64,
    /// The last sequence that was rejected; 0: none.
    rejected: u64,
    /// Cancelled when another stream takes over.
    taken_over: CancellationToken,
    /// The time at which its last stream ended.
    idle: Option<Instant>,
}

/// A producer that a stream has.
#[derive(Debug)]
pub struct Claim {
    producers: Arc<Producers>,
    publisher: PublisherId,
    stream: u64,
    taken_over: CancellationToken,
}

impl Producers {
    /// Gives a producer to a new stream, and ends the stream that has it. Returns the last sequence
    /// up to which all were accepted here. After a rejection it is an earlier one, since nobody
    /// knows whether the producer had that answer: it sends again what it still has, and the bus
    /// knows what of it is there.
    pub fn claim(self: &Arc<Self>, publisher: PublisherId) -> (Claim, u64) {
        let stream = self.streams.fetch_add(1, Ordering::Relaxed);
        let taken_over = CancellationToken::new();
        let mut known = self.known.lock();
        let accepted = if let Some(producer) = known.get_mut(&publisher) {
            producer.taken_over.cancel();
            producer.taken_over = taken_over.clone();
            (producer.stream, producer.number, producer.idle) = (stream, 0, None);
            let in_doubt = producer.rejected + UNANSWERED > producer.accepted;
            let behind = if producer.rejected > 0 && in_doubt { UNANSWERED } else { 0 };
            producer.accepted.saturating_sub(behind)
        } else {
            forget_idle(&mut known);
            let taken_over = taken_over.clone();
            let producer =
                Producer { stream, number: 0, accepted: 0, rejected: 0, taken_over, idle: None };
            known.insert(publisher, producer);
            0
        };
        (Claim { producers: self.clone(), publisher, stream, taken_over }, accepted)
    }

    /// An event of this stream was received from the bus. Ends the stream that has the producer
    /// here, if that is an earlier one.
    pub fn publishes(&self, publisher: PublisherId, stream: StreamNumber) {
        let known = self.known.lock();
        let Some(producer) = known.get(&publisher) else { return };
        // One that has no number yet, or cannot have one, is found when it appends.
        if producer.number > 0 && producer.number < stream {
            producer.taken_over.cancel();
        }
    }
}

/// Looks at all of them only when there are many.
fn forget_idle(known: &mut HashMap<PublisherId, Producer>) {
    if known.len() < MAX_IDLE || known.len() < known.capacity() {
        return;
    }
    let now = Instant::now();
    known.retain(|_, producer| producer.idle.is_none_or(|since| now - since < REMEMBER));
    let idle = known.values().filter(|producer| producer.idle.is_some()).count();
    if idle > MAX_IDLE {
        known.retain(|_, producer| producer.idle.is_none());
    }
}

impl Claim {
    /// The bus has numbered the stream.
    pub fn numbered(&self, number: StreamNumber) {
        let mut known = self.producers.known.lock();
        let producer = known.get_mut(&self.publisher);
        if let Some(producer) = producer.filter(|producer| producer.stream == self.stream) {
            producer.number = number;
        }
    }

    /// Everything up to this sequence was accepted or rejected.
    pub fn accepted(&self, sequence: u64) {
        let mut known = self.producers.known.lock();
        if let Some(producer) = known.get_mut(&self.publisher) {
            producer.accepted = producer.accepted.max(sequence);
        }
    }

    /// The event with this sequence is rejected.
    pub fn rejected(&self, sequence: u64) {
        let mut known = self.producers.known.lock();
        if let Some(producer) = known.get_mut(&self.publisher) {
            producer.rejected = producer.rejected.max(sequence);
        }
    }

    /// Returns when another stream has taken over.
    pub fn taken_over(&self) -> impl Future<Output = ()> + Send + use<> {
        self.taken_over.clone().cancelled_owned()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut known = self.producers.known.lock();
        let producer = known.get_mut(&self.publisher);
        if let Some(producer) = producer.filter(|producer| producer.stream == self.stream) {
            producer.idle = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_later_stream_takes_over_and_knows_what_was_accepted() {
        let producers = Arc::<Producers>::default();
        let (first, accepted) = producers.claim([1; 16]);
        assert_eq!(accepted, 0);
        first.accepted(7);
        let (other, _) = producers.claim([2; 16]);
        assert!(first.taken_over().now_or_never().is_none());
        let (second, accepted) = producers.claim([1; 16]);
        assert_eq!(accepted, 7);
        assert!(first.taken_over().now_or_never().is_some());
        assert!(second.taken_over().now_or_never().is_none());
        // The end of the first stream says nothing about the second.
        drop(first);
        assert!(producers.known.lock()[&[1; 16]].idle.is_none());
        drop((second, other));
        assert!(producers.known.lock().values().all(|producer| producer.idle.is_some()));
    }

    #[test]
    fn what_may_have_been_rejected_without_an_answer_is_not_taken_for_accepted() {
        let producers = Arc::<Producers>::default();
        let accepted = || producers.claim([1; 16]).1;
        let (claim, _) = producers.claim([1; 16]);
        claim.rejected(3);
        claim.accepted(7);
        assert_eq!(accepted(), 0);
        claim.accepted(UNANSWERED + 2);
        assert_eq!(accepted(), 2);
        claim.accepted(UNANSWERED + 3);
        assert_eq!(accepted(), UNANSWERED + 3);
    }

    #[test]
    fn a_later_stream_of_another_gateway_takes_over() {
        let producers = Arc::<Producers>::default();
        let (claim, _) = producers.claim([1; 16]);
        let is_over = || claim.taken_over().now_or_never().is_some();
        producers.publishes([1; 16], 9);
        claim.numbered(5);
        producers.publishes([1; 16], 5);
        producers.publishes([1; 16], 4);
        producers.publishes([2; 16], 6);
        assert!(!is_over());
        producers.publishes([1; 16], 6);
        assert!(is_over());
    }

    #[test]
    fn producers_that_went_away_do_not_pile_up() {
        let producers = Arc::<Producers>::default();
        for number in 0..5 * MAX_IDLE as u128 {
            producers.claim(number.to_be_bytes());
        }
        assert!(producers.known.lock().len() < 4 * MAX_IDLE);
    }
}
