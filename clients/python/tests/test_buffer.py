"""The buffer of a publisher: batches, the window, and what happens to events without an answer."""

import unittest

from trunkline import Error, ErrorKind
from trunkline._buffer import MESSAGE_EVENTS, Buffer, Shared
from trunkline._errors import unavailable
from trunkline.v1 import Event, PublishOpened


class Answers:
    """A buffer, and the answers to its events by sequence: True if it was accepted."""

    def __init__(self, events: int = 0, max_events: int = 10_000) -> None:
        self.buffer = Buffer(max_events, 1 << 20)
        self.answers: dict[int, ErrorKind | bool] = {}
        self._next = 1
        for _ in range(events):
            self.push()

    def push(self, size: int = 0, now: float = 0.0) -> None:
        sequence, self._next = self._next, self._next + 1

        def answer(error: Error | None) -> None:
            self.answers[sequence] = error.kind if error else True

        self.buffer.push(Event(event_id=str(sequence)), size, now, answer)

    def open(self, accepted: int = 0, window: int = 10_000, window_bytes: int = 1 << 20) -> None:
        self.buffer.opened(
            PublishOpened(
                accepted_sequence=accepted, window_events=window, window_bytes=window_bytes
            )
        )

    def next(self) -> tuple[int, int] | None:
        """The first sequence of the next message, and its number of events."""
        if not self.buffer.has_next():
            return None
        message = self.buffer.next_message()
        ids = [event.event_id for event in message.events]
        assert ids == [str(message.first_sequence + nth) for nth in range(len(ids))]
        return message.first_sequence, len(ids)


class BufferTest(unittest.TestCase):
    def test_what_was_never_sent_is_acknowledged_by_no_other_process(self) -> None:
        it = Answers(3)
        with self.assertRaises(Shared):
            it.open(accepted=1)
        it.open()
        it.next()
        it.push()
        it.buffer.lost()
        it.open(accepted=3)
        self.assertEqual(it.next(), (4, 1))
        it.buffer.lost()
        with self.assertRaises(Shared):
            it.open(accepted=5)

    def test_all_that_waits_leaves_in_one_message(self) -> None:
        it = Answers(3)
        self.assertIsNone(it.next(), "no stream is open")
        it.open()
        self.assertEqual(it.next(), (1, 3))
        self.assertIsNone(it.next())
        it.push()
        it.push()
        self.assertEqual(it.next(), (4, 2))

    def test_a_message_is_bounded_in_events_and_bytes(self) -> None:
        it = Answers(MESSAGE_EVENTS + 1)
        it.open()
        self.assertEqual(it.next(), (1, MESSAGE_EVENTS))
        self.assertEqual(it.next(), (MESSAGE_EVENTS + 1, 1))
        large = Answers()
        for _ in range(3):
            large.push(size=100 << 10)
        large.open()
        self.assertEqual(large.next(), (1, 2))
        self.assertEqual(large.next(), (3, 1))

    def test_what_was_not_answered_is_sent_again_on_the_next_stream(self) -> None:
        it = Answers(5)
        it.open()
        self.assertEqual(it.next(), (1, 5))
        it.buffer.accepted(2)
        it.buffer.lost()
        it.push()
        # Another gateway knows of one more.
        it.open(accepted=3)
        self.assertEqual(it.next(), (4, 3))
        it.buffer.accepted(6)
        self.assertTrue(it.buffer.is_empty() and not it.buffer.is_unanswered())
        self.assertEqual(it.answers, dict.fromkeys(range(1, 7), True))

    def test_a_full_window_waits_for_answers(self) -> None:
        it = Answers(3)
        it.open(window=2)
        self.assertEqual(it.next(), (1, 3), "one message is always sent")
        it.push()
        self.assertIsNone(it.next())
        it.buffer.accepted(2)
        self.assertEqual(it.next(), (4, 1))

    def test_a_window_full_of_bytes_waits_for_answers(self) -> None:
        it = Answers(1)
        it.open(window_bytes=1)
        self.assertEqual(it.next(), (1, 1), "one message is always sent")
        it.push()
        self.assertIsNone(it.next())
        it.buffer.accepted(1)
        self.assertEqual(it.next(), (2, 1))

    def test_a_rejected_event_fails_alone_and_leaves_no_hole(self) -> None:
        it = Answers(3)
        it.open()
        it.next()
        it.buffer.rejected(2, Error(ErrorKind.INVALID, unavailable("bad")))
        self.assertEqual(it.answers, {2: ErrorKind.INVALID})
        it.buffer.lost()
        it.open()
        self.assertEqual(it.next(), (1, 3))
        it.buffer.accepted(3)
        self.assertTrue(it.buffer.is_empty())
        self.assertEqual(it.answers, {1: True, 2: ErrorKind.INVALID, 3: True})

    def test_old_events_are_given_up_only_without_a_stream(self) -> None:
        it = Answers(2)
        it.open(window=1)
        it.next()
        it.buffer.expire(now=5.0, age=1.0)
        self.assertFalse(it.buffer.is_empty() or it.buffer.drop_oldest())
        it.buffer.lost()
        it.push(now=5.0)
        it.buffer.expire(now=5.0, age=1.0)
        self.assertEqual(it.answers[1], ErrorKind.OUTCOME_UNKNOWN, "it was sent")
        self.assertTrue(it.buffer.drop_oldest())
        self.assertEqual(it.answers[3], ErrorKind.UNAVAILABLE, "it was not")
        # The next one keeps its own sequence.
        it.push(now=5.0)
        it.open()
        self.assertEqual(it.next(), (4, 1))

    def test_it_is_bounded_in_events_and_bytes(self) -> None:
        self.assertFalse(Answers(10, max_events=10).buffer.has_room(1))
        self.assertTrue(Answers(9, max_events=10).buffer.has_room(1))
        small = Buffer(10, 10)
        self.assertTrue(small.has_room(1 << 20), "an empty one takes any event")
        small.push(Event(), 0, 0.0, lambda error: None)
        self.assertFalse(small.has_room(1))

    def test_an_error_that_no_attempt_cures_fails_everything(self) -> None:
        it = Answers(2)
        it.buffer.fail(Error(ErrorKind.DENIED, unavailable("no")))
        self.assertEqual(it.answers, {1: ErrorKind.DENIED, 2: ErrorKind.DENIED})
        self.assertIsNotNone(it.buffer.failed)


if __name__ == "__main__":
    unittest.main()
