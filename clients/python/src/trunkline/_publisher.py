"""Publishing on a stream that is opened again wherever it ends."""

from __future__ import annotations

import asyncio
import enum
import logging
import time
import uuid
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import grpc

from ._backoff import Backoff
from ._buffer import Buffer, Shared
from ._errors import (
    Error,
    ErrorKind,
    Status,
    error_of_message,
    final_kind,
    status_of_call,
    unavailable,
)
from ._rpc import Late, Lost, PublishCall, abandon, within
from .v1 import Event, OtherGateway, PublishOpen, PublishStreamRequest, PublishStreamResponse

if TYPE_CHECKING:
    from ._client import Client

log = logging.getLogger("trunkline")

# The interval at which old events are looked for, in seconds.
_EXPIRY = 0.1


class WhenFull(enum.Enum):
    """What `Publisher.publish` does while the buffer is full."""

    WAIT = "wait"
    """It waits until there is room."""
    FAIL = "fail"
    """It raises `Error` with `ErrorKind.FULL`."""
    DROP_OLDEST = "drop oldest"
    """While no gateway can be reached, the oldest event gives its place to the new one, and its
    acknowledgement fails. Otherwise it waits."""


@dataclass(frozen=True)
class PublisherOptions:
    """The options of a `Publisher`."""

    max_events: int = 10_000
    """How many events may wait for their acknowledgement."""
    max_bytes: int = 16 << 20
    """How many bytes of them may wait."""
    max_age: float = 30.0
    """For how many seconds an event is kept while no gateway accepts any."""
    when_full: WhenFull = WhenFull.WAIT
    """What happens when the buffer is full."""


class _Signal:
    """Wakes all that wait for it. There is no lost wakeup between a check and a wait without an
    `await` between them: only the event loop's thread uses it."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        self._event.set()
        self._event.clear()

    async def wait(self) -> None:
        await self._event.wait()


class Publisher:
    """Publishes events on one stream, the fast way for a node that publishes much: events that wait
    leave together, and one acknowledgement stands for thousands.

    Events with the same routing key (account, else kind) keep their order. Where the stream ends,
    by a drain, a crash or a lost connection, it is opened again on any of the gateways, and what
    was not acknowledged is sent again: each event is published once, however often that happens.

        async with client.publisher() as publisher:
            acknowledged = await publisher.publish(Event(queue_refresh=QueueRefresh()))
            await acknowledged
    """

    def __init__(self, client: Client, options: PublisherOptions) -> None:
        self._client = client
        self._options = options
        self._id = str(uuid.uuid4())
        self._buffer = Buffer(max(options.max_events, 1), options.max_bytes)
        # There is something to send; there is room, or nothing is left.
        self._filled, self._emptied = _Signal(), _Signal()
        self._backoff = Backoff()
        self._task: asyncio.Task[None] | None = None
        # Since when the open stream has given no answer that it owes.
        self._answered_at = 0.0
        self._draining = False
        # The gateway that it named to go on at.
        self._named: OtherGateway | None = None

    async def __aenter__(self) -> Publisher:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def publish(self, event: Event) -> asyncio.Future[None]:
        """Takes a copy of an event, and returns a future that is done when the event is
        acknowledged: the bus has accepted it. Cancelling that withdraws nothing. Waits while the
        buffer is full, if `PublisherOptions.when_full` says so.

        Raises `Error` with `ErrorKind.FULL`; and after an error that no attempt would cure, such as
        missing permission, that error. The future raises `Error`: INVALID for an event that the
        gateway rejects, UNAVAILABLE or OUTCOME_UNKNOWN for one that is given up.
        """
        size = event.ByteSize()
        while True:
            if self._buffer.failed:
                raise self._buffer.failed
            if self._make_room(size):
                return self._take(event, size)
            await self._emptied.wait()

    def _make_room(self, size: int) -> bool:
        """True if there is room for one more event."""
        when_full = self._options.when_full
        while not self._buffer.has_room(size):
            if when_full is WhenFull.FAIL:
                message = "the publisher's buffer is full"
                raise Error(ErrorKind.FULL, Status(grpc.StatusCode.RESOURCE_EXHAUSTED, message))
            if when_full is WhenFull.WAIT or not self._buffer.drop_oldest():
                return False
        return True

    def _take(self, event: Event, size: int) -> asyncio.Future[None]:
        acknowledged = asyncio.get_running_loop().create_future()
        copy = Event()
        copy.CopyFrom(event)
        self._buffer.push(copy, size, time.monotonic(), partial(settle, acknowledged))
        self._filled.notify()
        if self._task is None:
            self._task = asyncio.create_task(self._run())
            self._task.add_done_callback(self._ended)
        return acknowledged

    async def flush(self) -> None:
        """Waits until everything that was published is acknowledged, or given up."""
        while not self._buffer.is_empty():
            await self._emptied.wait()

    async def close(self) -> None:
        """Waits as `flush` does, then ends the stream."""
        await self.flush()
        self._close()

    def _close(self) -> None:
        abandon(self._task)
        if not self._buffer.failed:
            self._buffer.lost()
            self._buffer.close("the publisher was closed")
        self._emptied.notify()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Nobody waits for what will not come, even if the task has a bug."""
        error = None if task.cancelled() else task.exception()
        if error:
            log.error("the publisher has failed", exc_info=error)
            self._close()

    async def _run(self) -> None:
        """Opens streams, one after the other."""
        number = self._client._preferred
        takeovers = Takeovers()
        while True:
            while self._buffer.is_empty():
                await self._filled.wait()
            status = await self._stream(number)
            self._buffer.lost()
            kind = takeovers.final_kind(status) or final_kind(status)
            if kind:
                self._buffer.fail(Error(kind, status))
                self._emptied.notify()
                return
            wait = self._backoff.next(status.retry_delay)
            address = self._client._gateway(number).address
            log.info("%s: %s; publishing elsewhere in %.2f s", address, status, wait)
            number = self._client._after(number, self._named)
            until = time.monotonic() + wait
            while True:
                self._buffer.expire(time.monotonic(), self._options.max_age)
                self._emptied.notify()
                left = until - time.monotonic()
                if left <= 0:
                    break
                await asyncio.sleep(min(left, _EXPIRY))

    async def _stream(self, number: int) -> Status:
        """Runs one stream until it ends; returns the reason."""
        limit = self._client.attempt_timeout
        call = self._client._gateway(number).publish_stream()
        reading: asyncio.Future[object] = asyncio.ensure_future(self._open(call))
        writing: asyncio.Future[None] | None = None
        self._draining = False
        self._named = None
        try:
            first = await within(limit, reading, "no answer in time")
            if not isinstance(first, PublishStreamResponse) or not first.HasField("opened"):
                return unavailable(f"not opened: {first}")
            self._buffer.opened(first.opened)
            self._emptied.notify()
            self._client._works(number, first.opened.gateway_id)
            self._answered_at = time.monotonic()
            writing = asyncio.ensure_future(self._write(call))
            while True:
                reading = asyncio.ensure_future(call.read())
                response = await self._answer(reading, limit)
                if not isinstance(response, PublishStreamResponse):
                    return unavailable("the gateway ended the stream")
                self._answered_at = time.monotonic()
                self._answered(response)
        except Lost as lost:
            return unavailable(str(lost))
        except Shared as shared:
            return Status(grpc.StatusCode.ALREADY_EXISTS, str(shared.__doc__))
        except grpc.aio.AioRpcError as error:
            return status_of_call(error)
        finally:
            abandon(reading, writing)
            call.cancel()

    async def _open(self, call: PublishCall) -> object:
        open_ = PublishOpen(node_id=self._client.node_id, publisher_id=self._id)
        await call.write(PublishStreamRequest(open=open_))
        return await call.read()

    async def _write(self, call: PublishCall) -> None:
        """Sends all that waits. What is published while a message leaves is in the next one."""
        while True:
            while self._draining or not self._buffer.has_next():
                await self._filled.wait()
            if not self._buffer.is_unanswered():
                self._answered_at = time.monotonic()
            # If the stream is over, its responses say so.
            await call.write(PublishStreamRequest(events=self._buffer.next_message()))

    async def _answer(self, reading: asyncio.Future[object], limit: float) -> object:
        """The next response; raises `Late` when one is owed for longer than the limit."""
        while True:
            owed = self._buffer.is_unanswered()
            since = self._answered_at if owed else time.monotonic()
            left = since + limit - time.monotonic()
            try:
                return await within(left, reading, f"nothing received for {limit:g} s")
            except Late:
                if owed and time.monotonic() >= self._answered_at + limit:
                    raise

    def _answered(self, response: PublishStreamResponse) -> None:
        arm = response.WhichOneof("response")
        if arm == "accepted":
            # The stream works: the next loss starts a new series of attempts.
            self._backoff = Backoff()
            self._buffer.accepted(response.accepted.sequence)
            self._emptied.notify()
            # There may be room in the window.
            self._filled.notify()
        elif arm == "rejected":
            error = error_of_message(response.rejected.status)
            self._buffer.rejected(response.rejected.sequence, error)
        elif arm == "draining":
            self._draining = True
            if response.draining.HasField("gateway"):
                self._named = response.draining.gateway


class Takeovers:
    """Tells a takeover by somebody else from one by an earlier stream of this publisher, whose
    request was delayed on its way to its gateway and came after a later one."""

    def __init__(self) -> None:
        # Streams of which no gateway has said that they ended.
        self._delayed = 0

    def final_kind(self, status: Status) -> ErrorKind | None:
        """The kind of a status if somebody else publishes under this id."""
        if status.code is grpc.StatusCode.ALREADY_EXISTS:
            return ErrorKind.TAKEN_OVER
        if status.reason != "TAKEN_OVER":
            self._delayed += status.reason is None
            return None
        if not self._delayed:
            return ErrorKind.TAKEN_OVER
        self._delayed -= 1
        return None


def settle(future: asyncio.Future[None], error: Error | None) -> None:
    """The outcome of a future, which its owner may have cancelled."""
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
