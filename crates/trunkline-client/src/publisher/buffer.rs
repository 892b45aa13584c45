//! The events of a publisher that have no answer yet.

use std::{collections::VecDeque, time::Duration};

use prost::Message;
use tokio::{sync::oneshot, time::Instant};
use tonic::Status;

use crate::{Error, ErrorKind};
use trunkline_proto::v1::{Event, PublishEvents, PublishOpened};

/// Events and bytes of one message.
const MESSAGE_EVENTS: usize = 1000;
const MESSAGE_BYTES: usize = 256 << 10;

/// The approximate memory of an event besides its bytes.
const EVENT_COST: usize = 128;

pub(super) type Answer = Result<(), Error>;

/// Events in the order of their sequences, which have no holes. Those that were sent on the open
/// stream come first.
#[derive(Debug)]
pub(super) struct Buffer {
    max: (usize, usize),
    waiting: VecDeque<Waiting>,
    bytes: usize,
    /// The sequence of the next event.
    next: u64,
    /// The number of those that were sent on the open stream, and their bytes.
    sent: (usize, usize),
    /// The same as the gateway limits them; none while no stream is open.
    window: Option<(usize, usize)>,
    /// The reason why nothing is sent any more.
    pub failed: Option<Error>,
}

#[derive(Debug)]
struct Waiting {
    event: Event,
    bytes: usize,
    since: Instant,
    /// When it was sent first, if it ever was.
    tried: Option<Instant>,
    /// None once it was rejected.
    answer: Option<oneshot::Sender<Answer>>,
}

impl Buffer {
    /// An empty one; `max` are events, and bytes.
    pub(super) fn new(max: (usize, usize)) -> Buffer {
        Buffer {
            max,
            waiting: VecDeque::new(),
            bytes: 0,
            next: 1,
            sent: (0, 0),
            window: None,
            failed: None,
        }
    }

    /// The events that another publisher did not get acknowledged, the first with this sequence.
    pub(super) fn restore(
        &mut self,
        first_sequence: u64,
        events: impl IntoIterator<Item = (Event, Duration)>,
        now: Instant,
    ) -> Vec<oneshot::Receiver<Answer>> {
        self.next = first_sequence.max(1);
        let since = |waited| now.checked_sub(waited).unwrap_or(now);
        let push = |(event, waited)| self.push(event, since(waited));
        let answers = events.into_iter().map(push).collect();
        // Any of them may have been sent.
        self.waiting.iter_mut().for_each(|waiting| waiting.tried = Some(waiting.since));
        answers
    }

    /// The sequence of the first event, and all events with how long they have waited.
    pub(super) fn contents(&self, now: Instant) -> (u64, Vec<(Event, Duration)>) {
        let event = |waiting: &Waiting| (waiting.event.clone(), now - waiting.since);
        (self.first(), self.waiting.iter().map(event).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// True while the open stream has not answered everything that was sent on it.
    pub(super) fn is_unanswered(&self) -> bool {
        self.sent.0 > 0
    }

    /// True if one more event of this size fits. An empty buffer takes any.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.is_empty()
            || self.waiting.len() < self.max.0 && self.bytes + bytes + EVENT_COST <= self.max.1
    }

    /// Adds an event.
    pub(super) fn push(&mut self, event: Event, now: Instant) -> oneshot::Receiver<Answer> {
        let (answer, receiver) = oneshot::channel();
        let bytes = event.encoded_len() + EVENT_COST;
        self.bytes += bytes;
        self.next += 1;
        let answer = Some(answer);
        self.waiting.push_back(Waiting { event, bytes, since: now, tried: None, answer });
        receiver
    }

    /// What waits.
    pub(super) fn waiting(&self, now: Instant) -> super::Waiting {
        super::Waiting {
            events: self.waiting.len(),
            bytes: self.bytes,
            age: self.waiting.front().map(|first| now - first.since),
        }
    }

    /// The sequence of the first event.
    fn first(&self) -> u64 {
        self.next - self.waiting.len() as u64
    }

    /// A stream is open.
    ///
    /// # Errors
    ///
    /// If the gateway has accepted what was never sent: somebody else publishes under this id.
    pub(super) fn opened(&mut self, opened: &PublishOpened) -> Result<(), Status> {
        let tried =
            self.waiting.iter().take_while(|waiting| waiting.tried.is_some()).count() as u64;
        if opened.accepted_sequence >= self.first() + tried {
            let why = "another process publishes under the id of this publisher";
            return Err(Status::already_exists(why));
        }
        self.sent = (0, 0);
        let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        self.window = Some((number(opened.window_events.into()), number(opened.window_bytes)));
        self.accepted(opened.accepted_sequence);
        Ok(())
    }

    /// The stream is lost.
    pub(super) fn lost(&mut self) {
        (self.sent, self.window) = ((0, 0), None);
    }

    /// True if there is something to send.
    pub(super) fn has_next(&self) -> bool {
        // The window is for what is on its way; one message may always be.
        let fits = self.window.is_some_and(|(events, bytes)| {
            self.sent.0 == 0 || self.sent.0 < events && self.sent.1 < bytes
        });
        fits && self.sent.0 < self.waiting.len()
    }

    /// The next message.
    pub(super) fn next_message(&mut self, now: Instant) -> Option<PublishEvents> {
        if !self.has_next() {
            return None;
        }
        let first_sequence = self.first() + self.sent.0 as u64;
        let (mut events, mut bytes) = (Vec::new(), 0);
        for waiting in self.waiting.range_mut(self.sent.0..).take(MESSAGE_EVENTS) {
            if bytes > 0 && bytes + waiting.bytes > MESSAGE_BYTES {
                break;
            }
            waiting.tried.get_or_insert(now);
            bytes += waiting.bytes;
            events.push(waiting.event.clone());
        }
        self.sent.0 += events.len();
        self.sent.1 += bytes;
        Some(PublishEvents { first_sequence, events, ..Default::default() })
    }

    /// Everything up to a sequence is accepted.
    pub(super) fn accepted(&mut self, sequence: u64) {
        while self.first() <= sequence && !self.is_empty() {
            self.answer_first(Ok(()));
        }
    }

    /// An event is rejected.
    pub(super) fn rejected(&mut self, sequence: u64, error: Error) {
        let index = sequence.checked_sub(self.first()).and_then(|at| usize::try_from(at).ok());
        let waiting = index.and_then(|index| self.waiting.get_mut(index));
        if let Some(answer) = waiting.and_then(|waiting| waiting.answer.take()) {
            // Nobody may wait for it.
            let _ = answer.send(Err(error));
        }
    }

    /// Gives up the events that have waited for longer than `age`, and those that were sent first
    /// longer than `doubt` ago, while no stream is open.
    pub(super) fn expire(&mut self, now: Instant, age: Duration, doubt: Duration) {
        let is_over = |waiting: &Waiting| {
            now - waiting.since >= age || waiting.tried.is_some_and(|at| now - at >= doubt)
        };
        while self.window.is_none() && self.waiting.front().is_some_and(is_over) {
            self.give_up_first("no gateway accepted the event in time");
        }
    }

    /// Gives up the oldest event for a new one. False while a stream is open: what was sent on it
    /// has to be answered.
    pub(super) fn drop_oldest(&mut self) -> bool {
        let can = self.window.is_none() && !self.is_empty();
        if can {
            self.give_up_first("newer events took its place in the publisher's buffer");
        }
        can
    }

    fn give_up_first(&mut self, why: &str) {
        let tried = self.waiting.front().is_some_and(|waiting| waiting.tried.is_some());
        let kind = if tried { ErrorKind::OutcomeUnknown } else { ErrorKind::Unavailable };
        self.answer_first(Err(Error::new(kind, Status::unavailable(why))));
    }

    /// Gives up everything: no attempt would succeed.
    pub(super) fn fail(&mut self, error: &Error) {
        self.failed = Some(error.clone());
        while !self.is_empty() {
            self.answer_first(Err(error.clone()));
        }
    }

    fn answer_first(&mut self, answer: Answer) {
        let Some(waiting) = self.waiting.pop_front() else { return };
        self.bytes -= waiting.bytes;
        if self.sent.0 > 0 {
            self.sent.0 -= 1;
            self.sent.1 = self.sent.1.saturating_sub(waiting.bytes);
        }
        if let Some(to) = waiting.answer {
            // Nobody may wait for it.
            let _ = to.send(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(events: usize) -> (Buffer, Vec<oneshot::Receiver<Answer>>) {
        let mut buffer = Buffer::new((10, 1 << 20));
        let now = Instant::now();
        let answers = (0..events).map(|_| buffer.push(Event::default(), now)).collect();
        (buffer, answers)
    }

    fn opened(accepted_sequence: u64, window_events: u32) -> PublishOpened {
        PublishOpened {
            accepted_sequence,
            window_events,
            window_bytes: 1 << 20,
            ..Default::default()
        }
    }

    fn next(buffer: &mut Buffer) -> Option<(u64, usize)> {
        buffer
            .next_message(Instant::now())
            .map(|message| (message.first_sequence, message.events.len()))
    }

    #[test]
    fn what_was_not_answered_is_sent_again_on_the_next_stream() {
        let (mut buffer, mut answers) = buffer(5);
        assert_eq!(next(&mut buffer), None, "no stream is open");
        buffer.opened(&opened(0, 100)).unwrap();
        assert_eq!(next(&mut buffer), Some((1, 5)));
        assert_eq!(next(&mut buffer), None);
        buffer.accepted(2);
        buffer.lost();
        buffer.push(Event::default(), Instant::now());
        // Another gateway knows of one more.
        buffer.opened(&opened(3, 100)).unwrap();
        assert_eq!(next(&mut buffer), Some((4, 3)));
        buffer.accepted(6);
        assert!(buffer.is_empty() && !buffer.is_unanswered());
        assert!(answers.iter_mut().all(|answer| answer.try_recv().is_ok_and(|it| it.is_ok())));
    }

    #[test]
    fn what_was_not_acknowledged_keeps_its_sequence_and_its_age_in_another_buffer() {
        let (mut first, _) = buffer(5);
        first.opened(&opened(0, 100)).unwrap();
        next(&mut first);
        first.accepted(2);
        let (age, later) = (Duration::from_secs(3), Instant::now() + Duration::from_secs(2));
        let (sequence, events) = first.contents(later);
        assert_eq!((sequence, events.len()), (3, 3));
        let mut second = Buffer::new((10, 1 << 20));
        let mut answers = second.restore(sequence, events, later);
        second.push(Event::default(), later);
        second.opened(&opened(3, 100)).unwrap();
        assert_eq!(next(&mut second), Some((4, 3)));
        second.lost();
        second.expire(later + Duration::from_secs(2), age, Duration::MAX);
        assert!(answers[0].try_recv().unwrap().is_ok());
        let error = answers[2].try_recv().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
        assert!(!second.is_empty(), "the new one is younger");
    }

    #[test]
    fn what_was_never_sent_is_acknowledged_by_no_other_process() {
        let (mut buffer, mut answers) = buffer(3);
        assert!(buffer.opened(&opened(1, 100)).is_err());
        buffer.opened(&opened(0, 100)).unwrap();
        next(&mut buffer);
        let mut fourth = buffer.push(Event::default(), Instant::now());
        buffer.lost();
        buffer.opened(&opened(3, 100)).unwrap();
        assert!(answers.iter_mut().all(|answer| answer.try_recv().is_ok_and(|it| it.is_ok())));
        assert_eq!(next(&mut buffer), Some((4, 1)));
        buffer.lost();
        assert!(buffer.opened(&opened(5, 100)).is_err());
        assert!(fourth.try_recv().is_err(), "it has no answer");
    }

    #[test]
    fn a_full_window_waits_for_answers() {
        let (mut buffer, _) = buffer(3);
        buffer.opened(&opened(0, 2)).unwrap();
        assert_eq!(next(&mut buffer), Some((1, 3)), "one message is always sent");
        buffer.push(Event::default(), Instant::now());
        assert_eq!(next(&mut buffer), None);
        buffer.accepted(2);
        assert_eq!(next(&mut buffer), Some((4, 1)));
    }

    #[test]
    fn a_rejected_event_leaves_no_hole() {
        let (mut buffer, mut answers) = buffer(3);
        buffer.opened(&opened(0, 100)).unwrap();
        next(&mut buffer);
        let error = Error::new(ErrorKind::Invalid, Status::invalid_argument("bad"));
        buffer.rejected(2, error);
        assert_eq!(answers[1].try_recv().unwrap().unwrap_err().kind(), ErrorKind::Invalid);
        buffer.lost();
        buffer.opened(&opened(0, 100)).unwrap();
        assert_eq!(next(&mut buffer), Some((1, 3)));
        buffer.accepted(3);
        assert!(buffer.is_empty());
    }

    #[test]
    fn old_events_are_given_up_only_without_a_stream_and_say_whether_they_were_sent() {
        let (mut buffer, mut answers) = buffer(2);
        let (age, later) = (Duration::from_secs(1), Instant::now() + Duration::from_secs(5));
        buffer.opened(&opened(0, 1)).unwrap();
        next(&mut buffer);
        buffer.expire(later, age, Duration::MAX);
        assert!(!buffer.is_empty() && !buffer.drop_oldest());
        buffer.lost();
        let mut third = buffer.push(Event::default(), later);
        buffer.expire(later, age, Duration::MAX);
        let kind =
            |answer: &mut oneshot::Receiver<Answer>| answer.try_recv().unwrap().unwrap_err().kind();
        assert_eq!(kind(&mut answers[0]), ErrorKind::OutcomeUnknown);
        assert!(buffer.drop_oldest());
        assert_eq!(kind(&mut third), ErrorKind::Unavailable);
        // The next one keeps its own sequence.
        buffer.push(Event::default(), later);
        buffer.opened(&opened(0, 100)).unwrap();
        assert_eq!(next(&mut buffer), Some((4, 1)));
    }

    #[test]
    fn what_was_sent_too_long_ago_is_given_up_and_what_was_not_sent_waits() {
        let (mut buffer, mut answers) = buffer(2);
        buffer.opened(&opened(0, 1)).unwrap();
        next(&mut buffer);
        buffer.lost();
        let mut third = buffer.push(Event::default(), Instant::now());
        let (later, doubt) = (Instant::now() + Duration::from_secs(9), Duration::from_secs(8));
        buffer.expire(later, Duration::MAX, doubt * 2);
        assert!(answers[0].try_recv().is_err(), "it has no answer yet");
        buffer.expire(later, Duration::MAX, doubt);
        for answer in &mut answers {
            let error = answer.try_recv().unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
        }
        assert!(third.try_recv().is_err() && !buffer.is_empty());
    }

    #[test]
    fn the_buffer_is_bounded() {
        let (buffer, _) = buffer(10);
        assert!(!buffer.has_room(1));
        let mut small = Buffer::new((10, 10));
        assert!(small.has_room(1 << 20), "an empty one takes any event");
        small.push(Event::default(), Instant::now());
        assert!(!small.has_room(1));
    }
}
