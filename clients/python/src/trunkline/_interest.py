"""The accounts of a subscription, which change while it lives."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from ._errors import Error, error_of_message
from .v1 import (
    Acknowledge,
    Filter,
    InterestRejected,
    InterestUpdate,
    SubscribeRequest,
    WatchOpen,
    WatchRequest,
)

# Accounts of one message. A gateway takes 10,000 unless configured otherwise.
MESSAGE_ACCOUNTS = 5_000

Done = Callable[["Error | None"], None]
"""Takes the outcome of a change: None if it is in force."""


@dataclass(eq=False)
class _Waiting:
    # The number of its update; 0: it is in what the stream is opened with.
    id: int
    # The accounts that it added and removed.
    added: list[str]
    removed: list[str]
    done: Done


class Watching:
    """The accounts of a subscription, and the changes that are not confirmed."""

    def __init__(self, accounts: Iterable[str]) -> None:
        # In the order in which they were added.
        self._accounts = dict.fromkeys(accounts)
        # The number of the last update of the open stream; None while it is not open.
        self._last_id: int | None = None
        self._waiting: deque[_Waiting] = deque()
        # Requests that are still to be sent on the open stream, and a signal that there are some.
        self.outgoing: deque[WatchRequest] = deque()
        self.filled = asyncio.Event()

    def open(self, subscribe: SubscribeRequest) -> None:
        """A stream is opened: with all accounts, in as many requests as they need."""
        first, *rest = _parts(list(self._accounts)) or [[]]
        request = WatchRequest(open=WatchOpen(accounts_named=True, incomplete=bool(rest)))
        request.open.subscribe.CopyFrom(subscribe)
        request.open.subscribe.filter.accounts.extend(first)
        self.outgoing.clear()
        self._send(request)
        self._last_id = 0
        self._updates([(part, []) for part in rest])
        for waiting in self._waiting:
            waiting.id = 0

    def lost(self) -> None:
        """The stream is lost."""
        self._last_id = None
        self.outgoing.clear()

    def add(self, accounts: Iterable[str], done: Done) -> None:
        self._change(accounts, [], done)

    def remove(self, accounts: Iterable[str], done: Done) -> None:
        self._change([], accounts, done)

    def replace(self, accounts: Iterable[str], done: Done) -> None:
        whole = dict.fromkeys(accounts)
        self._change(whole, [name for name in self._accounts if name not in whole], done)

    def acknowledge(self, token: bytes) -> None:
        """Everything up to a token of the open stream was processed."""
        if self.outgoing and self.outgoing[-1].HasField("acknowledge"):
            self.outgoing.pop()
        self._send(WatchRequest(acknowledge=Acknowledge(resume_token=token)))

    def _change(self, add: Iterable[str], remove: Iterable[str], done: Done) -> None:
        removed = [name for name in dict.fromkeys(remove) if name in self._accounts]
        for name in removed:
            del self._accounts[name]
        added = [name for name in dict.fromkeys(add) if name not in self._accounts]
        self._accounts.update(dict.fromkeys(added))
        # At least one, so that there is an answer.
        pairs = zip_longest(_parts(added), _parts(removed))
        parts = [(more or [], less or []) for more, less in pairs] or [([], [])]
        self._waiting.append(_Waiting(self._updates(parts), added, removed, done))

    def _updates(self, parts: Sequence[tuple[list[str], list[str]]]) -> int:
        """Queues updates that take effect together: what each adds and removes. Returns the number
        of the last one; 0 while no stream is open."""
        if self._last_id is None:
            return 0
        for nth, (add, remove) in enumerate(parts, 1):
            self._last_id += 1
            update = InterestUpdate(
                update_id=self._last_id,
                add=Filter(accounts=add),
                remove=Filter(accounts=remove),
                incomplete=nth < len(parts),
            )
            self._send(WatchRequest(update=update))
        return self._last_id

    def _send(self, request: WatchRequest) -> None:
        self.outgoing.append(request)
        self.filled.set()

    def updated(self, id_: int) -> None:
        """Everything up to this update is in force; 0: what the stream was opened with."""
        while self._waiting and self._waiting[0].id <= id_:
            self._waiting.popleft().done(None)

    def rejected(self, rejected: InterestRejected) -> None:
        """An update has changed nothing."""
        for waiting in self._waiting:
            if waiting.id == rejected.update_id:
                break
        else:
            # The answer to a part: that to the whole follows.
            return
        self._waiting.remove(waiting)
        for name in waiting.added:
            self._accounts.pop(name, None)
        self._accounts.update(dict.fromkeys(waiting.removed))
        waiting.done(error_of_message(rejected.status))

    def fail(self, error: Error) -> None:
        """The subscription has ended."""
        while self._waiting:
            self._waiting.popleft().done(error)


def _parts(names: list[str]) -> list[list[str]]:
    return [
        names[begin : begin + MESSAGE_ACCOUNTS] for begin in range(0, len(names), MESSAGE_ACCOUNTS)
    ]
