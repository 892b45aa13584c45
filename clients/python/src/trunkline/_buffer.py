"""The events of a publisher that have no answer yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice, takewhile

from ._errors import Error, ErrorKind, unavailable
from .v1 import Event, PublishEvents, PublishOpened

# Events and bytes of one message.
MESSAGE_EVENTS = 1000
MESSAGE_BYTES = 256 << 10

# The approximate memory of an event besides its bytes.
EVENT_COST = 128

Answer = Callable[["Error | None"], None]
"""Takes the answer to an event: None if it is accepted."""


class Shared(Exception):
    """Another process publishes under the id of this publisher."""


@dataclass(slots=True)
class _Waiting:
    event: Event
    size: int
    since: float
    # None once it was rejected.
    answer: Answer | None
    # True if it was ever sent.
    tried: bool = False


class Buffer:
    """Events in the order of their sequences, which have no holes. Those that were sent on the open
    stream come first."""

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._max = (max_events, max_bytes)
        self._waiting: deque[_Waiting] = deque()
        self._bytes = 0
        # The sequence of the next event.
        self._next = 1
        # The number of those that were sent on the open stream, and their bytes.
        self._sent = (0, 0)
        # The same as the gateway limits them; None while no stream is open.
        self._window: tuple[int, int] | None = None
        # The reason why nothing is sent any more.
        self.failed: Error | None = None

    def is_empty(self) -> bool:
        return not self._waiting

    def is_unanswered(self) -> bool:
        """True while the open stream has not answered everything that was sent on it."""
        return self._sent[0] > 0

    def has_room(self, size: int) -> bool:
        """True if one more event of this size fits. An empty buffer takes any."""
        events, bytes_ = self._max
        return not self._waiting or (
            len(self._waiting) < events and self._bytes + size + EVENT_COST <= bytes_
        )

    def push(self, event: Event, size: int, now: float, answer: Answer) -> None:
        """Adds an event."""
        size += EVENT_COST
        self._bytes += size
        self._next += 1
        self._waiting.append(_Waiting(event, size, now, answer))

    def _first(self) -> int:
        """The sequence of the first event."""
        return self._next - len(self._waiting)

    def opened(self, opened: PublishOpened) -> None:
        """A stream is open. Raises `Shared` if the gateway has accepted what was never sent."""
        tried = sum(1 for _ in takewhile(lambda waiting: waiting.tried, self._waiting))
        if opened.accepted_sequence >= self._first() + tried:
            raise Shared()
        self._sent = (0, 0)
        self._window = (opened.window_events, opened.window_bytes)
        self.accepted(opened.accepted_sequence)

    def lost(self) -> None:
        """The stream is lost."""
        self._sent, self._window = (0, 0), None

    def has_next(self) -> bool:
        """True if there is something to send."""
        events, bytes_ = self._sent
        # The window is for what is on its way; one message may always be.
        fits = self._window is not None and (
            events == 0 or (events < self._window[0] and bytes_ < self._window[1])
        )
        return fits and events < len(self._waiting)

    def next_message(self) -> PublishEvents:
        """The next message, of all that waits and fits: `has_next` is true."""
        sent, sent_bytes = self._sent
        message = PublishEvents(first_sequence=self._first() + sent)
        size = 0
        for waiting in islice(self._waiting, sent, sent + MESSAGE_EVENTS):
            if size > 0 and size + waiting.size > MESSAGE_BYTES:
                break
            waiting.tried = True
            size += waiting.size
            message.events.append(waiting.event)
        self._sent = (sent + len(message.events), sent_bytes + size)
        return message

    def accepted(self, sequence: int) -> None:
        """Everything up to a sequence is accepted."""
        while self._waiting and self._first() <= sequence:
            self._answer_first(None)

    def rejected(self, sequence: int, error: Error) -> None:
        """An event is rejected."""
        index = sequence - self._first()
        if not 0 <= index < len(self._waiting):
            return
        waiting = self._waiting[index]
        if waiting.answer:
            waiting.answer(error)
            waiting.answer = None

    def expire(self, now: float, age: float) -> None:
        """Gives up the events that have waited for longer than `age`, while no stream is open."""
        while self._window is None and self._waiting and now - self._waiting[0].since >= age:
            self._give_up_first("no gateway accepted the event in time")

    def drop_oldest(self) -> bool:
        """Gives up the oldest event for a new one. False while a stream is open: what was sent on
        it has to be answered."""
        can = self._window is None and bool(self._waiting)
        if can:
            self._give_up_first("newer events took its place in the publisher's buffer")
        return can

    def _give_up_first(self, why: str) -> None:
        tried = self._waiting[0].tried
        kind = ErrorKind.OUTCOME_UNKNOWN if tried else ErrorKind.UNAVAILABLE
        self._answer_first(Error(kind, unavailable(why)))

    def close(self, why: str) -> None:
        """Gives up everything, and takes nothing any more: the publisher ends."""
        self.failed = Error(ErrorKind.UNAVAILABLE, unavailable(why))
        while self._waiting:
            self._give_up_first(why)

    def fail(self, error: Error) -> None:
        """Gives up everything: no attempt would succeed."""
        self.failed = error
        while self._waiting:
            self._answer_first(error)

    def _answer_first(self, error: Error | None) -> None:
        waiting = self._waiting.popleft()
        self._bytes -= waiting.size
        events, bytes_ = self._sent
        if events > 0:
            self._sent = (events - 1, bytes_ - waiting.size)
        if waiting.answer:
            waiting.answer(error)
