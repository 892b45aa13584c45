//! Events as their publisher numbers them: what makes a stream of events safe to send again.
//!
//! A publisher numbers its events. It may send those that were not acknowledged again, cut into
//! other batches and through another gateway: the bus appends each number once. For that a batch
//! names, for each shard, the [`Run`] of numbers that it covers; the shard keeps the runs that it
//! has, one as a rule, and lets a batch know which of its events are among them.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{AppendError, Batch, ShardId, ranges::Ranges};

/// A publisher, as the bus knows it.
pub type PublisherId = [u8; 16];

/// The number of a publisher's stream: that of one which was opened later, on any gateway, is
/// greater. 0: the bus has not numbered it.
pub type StreamNumber = u64;

/// Sequences are smaller than this: the script of Redis computes with doubles.
pub const MAX_SEQUENCE: u64 = 1 << 53;

/// Events that follow one another in a batch, as their publisher numbers them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The publisher.
    pub publisher: PublisherId,
    /// The stream that it came on.
    pub stream: StreamNumber,
    /// The first sequence that the run covers. Of all that the publisher numbered from here to the
    /// last event of the run, the events of the run are the only ones for this shard.
    pub from: u64,
    /// The sequence of each event, ascending, none below `from`; at least one.
    pub sequences: Vec<u64>,
}

impl Run {
    /// The last sequence that the run covers.
    pub fn last(&self) -> u64 {
        self.sequences.last().copied().unwrap_or(self.from)
    }

    /// The number of its events.
    pub fn len(&self) -> u64 {
        self.sequences.len() as u64
    }

    /// True if it has no event: no run is.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// True if the shard has some of what the run covers.
    pub fn overlaps(&self, covered: &Ranges) -> bool {
        covered.iter().any(|(first, last)| first <= self.last() && self.from <= last)
    }

    /// The run without what the shard has already: the parts that are left. For each event of the
    /// run, `left` gets true if it is in one of them.
    pub fn without(&self, covered: &Ranges, left: &mut Vec<bool>) -> Vec<Run> {
        let mut parts: Vec<Run> = Vec::new();
        // The first sequence that the next part may cover.
        let mut from = self.from;
        for sequence in &self.sequences {
            let is_left = !covered.has(*sequence);
            left.push(is_left);
            if !is_left {
                continue;
            }
            // What is covered before it, and behind the event before it.
            let before = covered.iter().take_while(|(first, _)| first < sequence).last();
            let behind = before.map_or(0, |(_, last)| last + 1);
            match parts.last_mut() {
                Some(part) if behind <= part.last() => part.sequences.push(*sequence),
                _ => parts.push(Run {
                    publisher: self.publisher,
                    stream: self.stream,
                    from: from.max(behind),
                    sequences: vec![*sequence],
                }),
            }
            from = *sequence + 1;
        }
        parts
    }

    /// Takes in the run that follows it in the batch. Gives it back if that has another publisher
    /// or stream, or leaves out sequences between.
    pub fn join(&mut self, next: Run) -> Option<Run> {
        let is_other = next.publisher != self.publisher || next.stream != self.stream;
        if is_other || next.from != self.last() + 1 {
            return Some(next);
        }
        self.sequences.extend(next.sequences);
        None
    }
}

/// The time for which a publisher that publishes nothing is remembered: longer than any that comes
/// back is away.
const REMEMBER: Duration = Duration::from_mins(10);

/// What a shard has of each publisher, for a bus that keeps it in memory.
#[derive(Debug, Default)]
pub struct Publishers {
    known: HashMap<PublisherId, Known>,
    /// The time at which those that had not published for long were forgotten last.
    swept: Option<Instant>,
}

impl Publishers {
    /// Leaves out of a batch the events that the shard has from their publishers, and remembers
    /// the others. True if it left out any.
    ///
    /// # Errors
    ///
    /// [`AppendError::TakenOver`] if the shard has events of a later stream of a publisher.
    pub fn cover(&mut self, batch: &mut Batch) -> Result<bool, AppendError> {
        if batch.runs.is_empty() {
            return Ok(false);
        }
        let now = Instant::now();
        if self.swept.is_none_or(|at| now - at > REMEMBER / 10) {
            self.known.retain(|_, known| now - known.at < REMEMBER);
            self.swept = Some(now);
        }
        for run in &batch.runs {
            let known = self.known.get(&run.publisher);
            if run.stream > 0 && known.is_some_and(|known| run.stream < known.stream) {
                return Err(AppendError::TakenOver);
            }
        }
        let mut publishers: Vec<(PublisherId, StreamNumber)> =
            batch.runs.iter().map(|run| (run.publisher, run.stream)).collect();
        publishers.dedup();
        let mut is_partial = false;
        for (publisher, stream) in publishers {
            if let Some(known) = self.known.get_mut(&publisher) {
                known.stream = known.stream.max(stream);
                is_partial |= batch.leave_out(&publisher, &known.had);
            }
        }
        for run in &batch.runs {
            let known = self.known.entry(run.publisher);
            let known = known.or_insert_with(|| Known::new(now));
            known.had.add(run.from, run.last());
            known.stream = known.stream.max(run.stream);
            known.at = now;
        }
        Ok(is_partial)
    }
}

/// What a shard has of one publisher.
#[derive(Debug)]
struct Known {
    had: Ranges,
    /// The last of its streams.
    stream: StreamNumber,
    /// The time of its last events.
    at: Instant,
}

impl Known {
    fn new(at: Instant) -> Known {
        Known { had: Ranges::default(), stream: 0, at }
    }
}

/// What a stream of events remembers of the numbers that its publisher gave them: for each shard
/// what the next run may cover.
#[derive(Clone, Debug)]
pub struct Numbering {
    publisher: PublisherId,
    stream: StreamNumber,
    /// For each shard the sequence behind the last event that the stream had for it.
    next: Vec<u64>,
    /// The sequence behind the last event that was rejected: no run covers that one.
    behind_rejected: u64,
}

impl Numbering {
    /// A stream whose first event has this sequence: what came before was answered on others.
    pub fn new(publisher: PublisherId, stream: StreamNumber, first: u64, shards: u16) -> Numbering {
        let next = vec![first; usize::from(shards)];
        Numbering { publisher, stream, next, behind_rejected: 0 }
    }

    /// The bus has numbered the stream, before its first event.
    pub fn set_stream(&mut self, stream: StreamNumber) {
        self.stream = stream;
    }

    /// Adds an event to the runs of a batch for its shard. Sequences must rise.
    pub fn add(&mut self, shard: ShardId, sequence: u64, runs: &mut Vec<Run>) {
        let Some(next) = self.next.get_mut(shard.index()) else { return };
        let from = (*next).max(self.behind_rejected);
        *next = sequence + 1;
        if let Some(run) = runs.last_mut().filter(|run| run.last() + 1 == from) {
            run.sequences.push(sequence);
            return;
        }
        let (publisher, stream) = (self.publisher, self.stream);
        runs.push(Run { publisher, stream, from, sequences: vec![sequence] });
    }

    /// An event was rejected: it is in no shard, and would not be taken for one that is.
    pub fn reject(&mut self, sequence: u64) {
        self.behind_rejected = sequence + 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(from: u64, sequences: &[u64]) -> Run {
        Run { publisher: [7; 16], stream: 3, from, sequences: sequences.to_vec() }
    }

    fn ranges(text: &str) -> Ranges {
        Ranges::parse(text).unwrap()
    }

    #[test]
    fn a_run_is_cut_where_the_shard_has_it() {
        let whole = run(1, &[2, 4, 7, 9]);
        for (covered, parts) in [
            ("", vec![run(1, &[2, 4, 7, 9])]),
            ("1-5", vec![run(6, &[7, 9])]),
            ("3-4", vec![run(1, &[2]), run(5, &[7, 9])]),
            // No event of it, but a part of what it covers.
            ("5-5", vec![run(1, &[2, 4]), run(6, &[7, 9])]),
            ("8-20", vec![run(1, &[2, 4, 7])]),
            ("10-20", vec![run(1, &[2, 4, 7, 9])]),
            ("1-9", vec![]),
        ] {
            let mut left = Vec::new();
            assert_eq!(whole.without(&ranges(covered), &mut left), parts, "{covered}");
            assert_eq!(
                left.iter().filter(|left| **left).count(),
                parts.iter().map(|part| part.sequences.len()).sum::<usize>()
            );
            assert_eq!(whole.overlaps(&ranges(covered)), !["", "10-20"].contains(&covered));
        }
    }

    #[test]
    fn runs_join_where_nothing_lies_between() {
        let mut first = run(1, &[2, 4]);
        assert_eq!(first.join(run(5, &[9])), None);
        assert_eq!(first, run(1, &[2, 4, 9]));
        assert_eq!(first.join(run(11, &[12])), Some(run(11, &[12])));
        let of_another_stream = Run { stream: 4, ..run(10, &[10]) };
        assert_eq!(first.join(of_another_stream.clone()), Some(of_another_stream));
    }

    #[test]
    fn runs_cover_what_went_to_other_shards_and_not_what_was_rejected() {
        let mut numbering = Numbering::new([7; 16], 3, 5, 2);
        let mut runs = [vec![], vec![]];
        for (shard, sequence) in [(0, 5), (1, 6), (0, 8)] {
            numbering.add(ShardId(shard), sequence, &mut runs[usize::from(shard)]);
        }
        assert_eq!(runs, [vec![run(5, &[5, 8])], vec![run(5, &[6])]]);
        numbering.reject(9);
        numbering.add(ShardId(0), 10, &mut runs[0]);
        let mut later = Vec::new();
        numbering.add(ShardId(1), 12, &mut later);
        assert_eq!(runs[0], [run(5, &[5, 8]), run(10, &[10])]);
        assert_eq!(later, [run(10, &[12])]);
    }

    proptest! {
        #[test]
        fn what_is_left_is_what_was_not_covered(
            gaps in prop::collection::vec(0u64..4, 1..20),
            ahead in 0u64..5,
            covered in prop::collection::vec((0u64..60, 0u64..9), 0..6),
        ) {
            let from = 5;
            let mut next = from + ahead;
            let mut sequences = Vec::new();
            for gap in gaps {
                sequences.push(next);
                next += 1 + gap;
            }
            let mut ranges = Ranges::default();
            for (first, count) in &covered {
                ranges.add(*first, first + count);
            }
            let whole = Run { publisher: [1; 16], stream: 1, from, sequences };
            let mut left = Vec::new();
            let parts = whole.without(&ranges, &mut left);
            let kept: Vec<u64> = parts.iter().flat_map(|part| part.sequences.clone()).collect();
            let marked: Vec<u64> = (whole.sequences.iter().zip(&left))
                .filter_map(|(sequence, left)| left.then_some(*sequence)).collect();
            let expected: Vec<u64> =
                whole.sequences.iter().copied().filter(|sequence| !ranges.has(*sequence)).collect();
            prop_assert_eq!(&kept, &expected);
            prop_assert_eq!(&marked, &expected);
            for part in &parts {
                prop_assert!(!part.overlaps(&ranges));
                prop_assert!(part.from >= whole.from && part.from <= part.sequences[0]);
            }
            // Together they still cover everything of the run that nobody covered, up to the last
            // event that is left.
            if let Some(last) = kept.last() {
                for sequence in whole.from..=*last {
                    let covers = |part: &Run| part.from <= sequence && sequence <= part.last();
                    if !ranges.has(sequence) && whole.sequences.contains(&sequence) {
                        prop_assert!(parts.iter().any(covers));
                    }
                }
            }
        }
    }
}
