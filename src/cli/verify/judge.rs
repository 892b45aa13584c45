//! The judge of a drill: knows what was published and what each stream received, and says whether
//! the promises were kept. No sockets, clocks or tasks: times are nanoseconds of the caller.

use std::ops::Range;

use hdrhistogram::Histogram;

use crate::cli::bench::histogram;

/// What a publisher knows of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No answer yet.
    Waiting,
    /// Acknowledged: every stream receives it, once, or a gap.
    Acknowledged,
    /// Not acknowledged in time, or refused: it may arrive, but not twice.
    NotAcknowledged,
}

#[derive(Clone, Copy)]
struct Sent {
    at: u64,
    outcome: Outcome,
}

/// How an event arrived on a stream.
#[derive(Clone, Copy, Default)]
struct Arrival {
    /// How often.
    times: u64,
    /// How many arrivals of its series were before the first.
    position: usize,
}

/// What a stream received of a series.
#[derive(Default)]
struct Arrivals {
    /// By the number of the event.
    of: Vec<Arrival>,
    /// Arrivals in all.
    count: usize,
}

#[derive(Default)]
struct Stream {
    series: Vec<Arrivals>,
    /// Gaps of this phase, and the events that they report as missed; none where one of them does
    /// not know.
    gaps: u64,
    missed: Option<u64>,
    last_arrival: u64,
    longest_silence: u64,
    /// Events that nobody published, of the whole drill.
    strange: u64,
}

/// Knows what was published and received since the drill began.
pub struct Judge {
    /// What was sent, by series: events that are published one after the other, and so arrive in
    /// this order.
    sent: Vec<Vec<Sent>>,
    streams: Vec<Stream>,
    /// The number of the first event of the phase, for each series.
    first: Vec<usize>,
    /// Strange events of earlier phases.
    strange_before: u64,
    latency: Histogram<u64>,
    answers: Histogram<u64>,
}

/// The figures of a phase, or of the whole drill.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events that were acknowledged.
    pub acknowledged: u64,
    /// Events that were sent and not acknowledged in time.
    pub not_acknowledged: u64,
    /// Acknowledged events that arrived, counted once for each stream.
    pub delivered: u64,
    /// Acknowledged events that did not arrive, and that no gap reports.
    pub lost: u64,
    /// Acknowledged events that did not arrive, on streams that got a gap.
    pub in_gaps: u64,
    /// Gaps of all streams.
    pub gaps: u64,
    /// Arrivals of events that had arrived before.
    pub twice: u64,
    /// Acknowledged events that arrived after a later one of their publisher and type.
    pub out_of_order: u64,
    /// Arrivals of events that nobody published.
    pub strange: u64,
}

/// The verdict on a phase.
pub struct Verdict {
    /// What was counted.
    pub counts: Counts,
    /// The longest time for which a stream received nothing while events were published.
    pub longest_silence: u64,
    /// From sending to arrival, each event and stream.
    pub latency: Histogram<u64>,
    /// From sending to the answer.
    pub answers: Histogram<u64>,
}

impl Judge {
    /// A judge of so many series and streams.
    pub fn new(series: usize, streams: usize) -> Judge {
        let stream = || Stream {
            series: (0..series).map(|_| Arrivals::default()).collect(),
            missed: Some(0),
            ..Stream::default()
        };
        Judge {
            sent: vec![vec![]; series],
            streams: (0..streams).map(|_| stream()).collect(),
            first: vec![0; series],
            strange_before: 0,
            latency: histogram(),
            answers: histogram(),
        }
    }

    /// A phase begins: what was sent before belongs to others.
    pub fn begins(&mut self, now: u64) {
        self.first = self.sent.iter().map(Vec::len).collect();
        self.strange_before = self.strange();
        for stream in &mut self.streams {
            (stream.gaps, stream.missed) = (0, Some(0));
            (stream.last_arrival, stream.longest_silence) = (now, 0);
        }
        self.latency.reset();
        self.answers.reset();
    }

    /// An event of a series is sent; returns its number.
    pub fn sends(&mut self, series: usize, now: u64) -> usize {
        let sent = &mut self.sent[series];
        sent.push(Sent { at: now, outcome: Outcome::Waiting });
        sent.len() - 1
    }

    /// The outcome of an event.
    pub fn ends(&mut self, series: usize, number: usize, outcome: Outcome, now: u64) {
        let sent = &mut self.sent[series][number];
        sent.outcome = outcome;
        if outcome == Outcome::Acknowledged {
            self.answers.saturating_record(now.saturating_sub(sent.at));
        }
    }

    /// A stream receives the event with this id: [`id`].
    pub fn receives(&mut self, stream: usize, id: &str, now: u64) {
        let stream = &mut self.streams[stream];
        let silence = now.saturating_sub(stream.last_arrival);
        stream.longest_silence = stream.longest_silence.max(silence);
        stream.last_arrival = now;
        let event = parse(id).and_then(|(series, number)| {
            let sent = self.sent.get(series)?.get(number)?;
            Some((series, number, sent.at))
        });
        match event {
            Some((series, number, at)) => {
                stream.series[series].add(number);
                self.latency.saturating_record(now.saturating_sub(at));
            }
            None => stream.strange += 1,
        }
    }

    /// A stream gets a gap, which reports so many events as missed, where it knows that.
    pub fn gap(&mut self, stream: usize, missed: Option<u64>) {
        let stream = &mut self.streams[stream];
        stream.gaps += 1;
        stream.missed = stream.missed.zip(missed).map(|(all, more)| all.saturating_add(more));
    }

    /// True once every stream has all that was acknowledged in this phase, or a gap.
    pub fn is_complete(&self) -> bool {
        self.streams.iter().all(|stream| {
            let has_all = |(series, numbers): (usize, Range<usize>)| {
                let arrivals = &stream.series[series];
                // The latest are missing first.
                let mut numbers = self.acknowledged(series, numbers).rev();
                numbers.all(|number| arrivals.get(number).times > 0)
            };
            stream.gaps > 0 || self.phase().enumerate().all(has_all)
        })
    }

    /// The verdict on the phase that began last, now that nothing is sent any more.
    pub fn verdict(&self) -> Verdict {
        let strange = self.strange() - self.strange_before;
        Verdict {
            counts: Counts { strange, ..self.count(self.phase()) },
            longest_silence: self.streams.iter().map(|s| s.longest_silence).max().unwrap_or(0),
            latency: self.latency.clone(),
            answers: self.answers.clone(),
        }
    }

    /// What arrived twice, or out of nowhere, since the drill began: an event may come again long
    /// after its phase.
    pub fn repeated(&self) -> u64 {
        self.count(self.sent.iter().map(|sent| 0..sent.len())).twice + self.strange()
    }

    fn strange(&self) -> u64 {
        self.streams.iter().map(|stream| stream.strange).sum()
    }

    /// The numbers of the phase that began last, by series.
    fn phase(&self) -> impl Iterator<Item = Range<usize>> {
        self.first.iter().zip(&self.sent).map(|(first, sent)| *first..sent.len())
    }

    /// Those of a series that are acknowledged.
    fn acknowledged(
        &self,
        series: usize,
        numbers: Range<usize>,
    ) -> impl DoubleEndedIterator<Item = usize> {
        let sent = &self.sent[series];
        numbers.filter(|number| sent[*number].outcome == Outcome::Acknowledged)
    }

    /// Counts events with these numbers, by series.
    fn count(&self, numbers: impl Iterator<Item = Range<usize>>) -> Counts {
        let numbers: Vec<_> = numbers.collect();
        let mut counts = Counts::default();
        for (series, numbers) in numbers.iter().enumerate() {
            let acknowledged = self.acknowledged(series, numbers.clone()).count();
            counts.acknowledged += acknowledged as u64;
            counts.not_acknowledged += (numbers.len() - acknowledged) as u64;
        }
        for stream in &self.streams {
            let mut missing = 0;
            for (series, numbers) in numbers.iter().enumerate() {
                let arrivals = &stream.series[series];
                let times = numbers.clone().map(|number| arrivals.get(number).times);
                counts.twice += times.map(|times| times.saturating_sub(1)).sum::<u64>();
                // The position of the first of those with a higher number.
                let mut later = usize::MAX;
                for number in self.acknowledged(series, numbers.clone()).rev() {
                    let Arrival { times, position } = arrivals.get(number);
                    if times == 0 {
                        missing += 1;
                        continue;
                    }
                    counts.delivered += 1;
                    counts.out_of_order += u64::from(position > later);
                    later = later.min(position);
                }
            }
            // A gap counts the events of its shard, those of others among them.
            let reported = if stream.gaps > 0 { stream.missed.unwrap_or(missing) } else { 0 };
            counts.in_gaps += missing.min(reported);
            counts.lost += missing.saturating_sub(reported);
            counts.gaps += stream.gaps;
        }
        counts
    }
}

impl Arrivals {
    fn add(&mut self, number: usize) {
        if self.of.len() <= number {
            self.of.resize(number + 1, Arrival::default());
        }
        let arrival = &mut self.of[number];
        if arrival.times == 0 {
            arrival.position = self.count;
        }
        arrival.times += 1;
        self.count += 1;
    }

    fn get(&self, number: usize) -> Arrival {
        self.of.get(number).copied().unwrap_or_default()
    }
}

/// The id of an event.
pub fn id(series: usize, number: usize) -> String {
    format!("{series}-{number}")
}

fn parse(id: &str) -> Option<(usize, usize)> {
    let (series, number) = id.split_once('-')?;
    Some((series.parse().ok()?, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two series and two streams; three events of each series are acknowledged.
    fn published() -> Judge {
        let mut judge = Judge::new(2, 2);
        judge.begins(0);
        for series in 0..2 {
            for number in 0..3 {
                assert_eq!(judge.sends(series, 10), number);
                judge.ends(series, number, Outcome::Acknowledged, 20);
            }
        }
        judge
    }

    fn deliver(judge: &mut Judge, stream: usize, series: usize, numbers: &[usize]) {
        for number in numbers {
            judge.receives(stream, &id(series, *number), 30);
        }
    }

    #[test]
    fn what_arrives_once_and_in_order_is_right() {
        let mut judge = published();
        for stream in 0..2 {
            deliver(&mut judge, stream, 1, &[0, 1, 2]);
            assert!(!judge.is_complete());
            deliver(&mut judge, stream, 0, &[0, 1, 2]);
        }
        assert!(judge.is_complete());
        let verdict = judge.verdict();
        let right = Counts { acknowledged: 6, delivered: 12, ..Counts::default() };
        assert_eq!(verdict.counts, right);
        assert_eq!((verdict.latency.len(), verdict.answers.len()), (12, 6));
        assert_eq!(verdict.longest_silence, 30);
        assert_eq!(judge.repeated(), 0);
    }

    #[test]
    fn each_way_to_break_a_promise_is_counted() {
        let mut judge = published();
        deliver(&mut judge, 0, 0, &[0, 2, 1, 1]);
        deliver(&mut judge, 0, 1, &[0, 1, 2]);
        deliver(&mut judge, 1, 0, &[0, 1]);
        deliver(&mut judge, 1, 1, &[0, 1, 2]);
        for strange in ["0-3", "2-0", "x", ""] {
            judge.receives(1, strange, 40);
        }
        assert!(!judge.is_complete());
        let counts = judge.verdict().counts;
        let found = (counts.lost, counts.twice, counts.out_of_order, counts.strange);
        assert_eq!(found, (1, 1, 1, 4));
        assert_eq!((counts.in_gaps, counts.gaps, counts.delivered), (0, 0, 11));
        assert_eq!(judge.repeated(), 5);
    }

    #[test]
    fn a_gap_covers_no_more_than_it_says_and_no_other_stream() {
        for (missed, in_gaps, lost) in [(Some(1), 1, 8), (Some(99), 3, 6), (None, 3, 6)] {
            let mut judge = published();
            deliver(&mut judge, 0, 0, &[0, 1, 2]);
            judge.gap(0, missed);
            assert!(!judge.is_complete(), "the other stream has nothing");
            let counts = judge.verdict().counts;
            assert_eq!((counts.in_gaps, counts.lost, counts.gaps), (in_gaps, lost, 1));
        }
        let mut judge = published();
        judge.gap(0, None);
        judge.gap(1, Some(0));
        assert!(judge.is_complete());
        assert_eq!(judge.verdict().counts.lost, 6, "a gap of nothing covers nothing");
    }

    #[test]
    fn what_was_not_acknowledged_may_arrive_but_not_twice_nor_count_for_the_order() {
        let mut judge = published();
        let unsure = judge.sends(0, 20);
        judge.ends(0, unsure, Outcome::NotAcknowledged, 30);
        let later = judge.sends(0, 20);
        judge.ends(0, later, Outcome::Acknowledged, 30);
        for stream in 0..2 {
            deliver(&mut judge, stream, 1, &[0, 1, 2]);
            deliver(&mut judge, stream, 0, &[0, 1, 2, 4]);
        }
        assert!(judge.is_complete());
        deliver(&mut judge, 0, 0, &[3]);
        let counts = judge.verdict().counts;
        let right =
            Counts { acknowledged: 7, not_acknowledged: 1, delivered: 14, ..Counts::default() };
        assert_eq!(counts, right);
        deliver(&mut judge, 0, 0, &[3]);
        assert_eq!(judge.verdict().counts.twice, 1);
    }

    #[test]
    fn a_phase_counts_by_itself_and_late_repeats_are_found_in_the_end() {
        let mut judge = published();
        for stream in 0..2 {
            deliver(&mut judge, stream, 0, &[0, 1, 2]);
            deliver(&mut judge, stream, 1, &[0, 1, 2]);
        }
        judge.begins(100);
        let number = judge.sends(1, 100);
        judge.ends(1, number, Outcome::Acknowledged, 110);
        judge.receives(0, &id(1, number), 150);
        judge.receives(1, &id(1, number), 160);
        // Of the first phase.
        deliver(&mut judge, 1, 0, &[2]);
        let verdict = judge.verdict();
        let right = Counts { acknowledged: 1, delivered: 2, ..Counts::default() };
        assert_eq!((verdict.counts, verdict.longest_silence), (right, 60));
        assert_eq!(judge.repeated(), 1);
    }
}
