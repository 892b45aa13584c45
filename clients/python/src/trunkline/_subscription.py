"""Subscribing: streams, one after the other, each resumed where the one before ended."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, Union

import grpc
from google.protobuf.message import Message
from grpc.aio import Metadata, UnaryStreamCall

from ._backoff import Backoff
from ._errors import Error, Status, final_kind, status_of_call, unavailable
from ._recent import RecentEvents
from ._rpc import Gateway, Lost, WatchCall, abandon, within
from .v1 import (
    GAP_ACTION_RESYNC,
    GAP_REASON_UNKNOWN_EPOCH,
    OVERFLOW_UNSPECIFIED,
    START_UNSPECIFIED,
    CurrentNodes,
    Draining,
    Event,
    EventKind,
    Explanation,
    Filter,
    Gap,
    Heartbeat,
    Notice,
    OtherGateway,
    Overflow,
    Start,
    Subscribed,
    SubscribeRequest,
    SubscribeResponse,
)

if TYPE_CHECKING:
    from ._client import Client

log = logging.getLogger("trunkline")

# The number of missed heartbeats after which a connection counts as dead.
_MISSED_HEARTBEATS = 2


@dataclass(frozen=True)
class SubscribeOptions:
    """The options of a subscription. Default: all events of other nodes, from now on."""

    kinds: Sequence[EventKind] = ()
    """Kinds to include. Default: all kinds, including those that are newer than this program,
    without `node_joined` and `node_left`."""
    accounts: Sequence[str] = ()
    """Accounts to include. Kinds that concern no account are delivered regardless. Default: all
    accounts; for `Client.watch`, none."""
    custom_types: Sequence[str] = ()
    """Types of custom events, whole (`com.example.paid`) or as a prefix (`com.example.*`). Other
    kinds are delivered regardless. Default: all types."""
    include_own_events: bool = False
    """Includes the node's own events."""
    resume_token: bytes = b""
    """Resumes an earlier subscription, also one of another process or gateway, from its
    `resume_token`. Empty: none. A token that is damaged, or of another deployment, gives a gap."""
    start: Start = START_UNSPECIFIED
    """Where to begin without a token. Default: with the next event."""
    overflow: Overflow = OVERFLOW_UNSPECIFIED
    """What happens if the node falls further behind than history reaches. Default: it gets a gap
    and continues."""
    heartbeat_interval: float = 10.0
    """The interval of heartbeats on an idle stream, 1 s to 1 h. A connection on which nothing is
    received for twice as long is given up."""
    max_events: int = 0
    """Ends the subscription after this many events, over all its streams. Default: 0, never."""
    explain: bool = False
    """Asks for the filter decision of each event, with its reasons."""
    current_nodes: bool = False
    """Begins with the list of the nodes that are there, on each stream: `node_joined` events with
    `current`, then `CurrentNodes`. Whoever keeps a map of them by `subscription_id` begins a new
    one with each `Subscribed`; after a `Gap`, open the subscription anew. The list does not count
    in `max_events`. Needs `EVENT_KIND_NODE_JOINED` among the kinds."""


@dataclass(frozen=True)
class Reconnecting:
    """The stream was lost, and is opened again after `wait` seconds. No event is lost: the stream
    resumes."""

    reason: str
    wait: float


Notification = Union[
    Subscribed, Event, Gap, CurrentNodes, Explanation, Heartbeat, Draining, Notice, Reconnecting
]
"""An item of a subscription.

`Subscribed`: a stream is open, the first one or one that resumes. Every event that is acknowledged
from now on is delivered or reported as a gap. A node that loads its state after the first of these,
and not before, misses nothing.

`Event`: an event.

`Gap`: events that will not be delivered: reload the state that they may have changed. All events
before the gap were delivered, all events after it follow.

`CurrentNodes`: the list of the nodes that are there is complete, if it was asked for.

`Heartbeat`: nothing else was received for one interval. A good moment to store the resume token.

`Draining`: the gateway is draining. The subscription moves to another one by itself, after the wait
that the gateway asked for.

`Notice`: for the operator of the node, such as another live process with the same node id. Log it.

`Explanation`: the filter decisions for events, if they were asked for.

`Reconnecting`: the stream was lost, and is opened again.
"""


class Token(bytes):
    """A resume token. It also knows on which stream of its subscription it came, since a gateway
    takes acknowledgements of its own stream only."""

    stream: int = 0

    @classmethod
    def of(cls, stream: int, token: bytes) -> Token:
        made = cls(token)
        made.stream = stream
        return made


_Call = Union[UnaryStreamCall[Message, SubscribeResponse], WatchCall]


class Stream:
    """An open stream. Its tasks outlive the calls that wait for them."""

    def __init__(self, call: _Call, writing: asyncio.Future[None] | None = None) -> None:
        self._call = call
        self._writing = writing
        self._opening: asyncio.Future[Metadata] | None = asyncio.ensure_future(
            call.initial_metadata()
        )
        self._reading: asyncio.Future[object] | None = None

    async def opened(self, limit: float) -> None:
        """Returns when the gateway has answered; raises `Lost` after the limit."""
        if self._opening:
            await within(limit, self._opening, "no answer in time")
            self._opening = None

    async def message(self, limit: float) -> SubscribeResponse | None:
        """The next message; None at the end. Raises `Lost` after the limit."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._call.read())
        message = await within(limit, self._reading, f"nothing received for {limit:g} s")
        self._reading = None
        return message if isinstance(message, SubscribeResponse) else None

    def close(self) -> None:
        self._call.cancel()
        abandon(self._opening, self._reading, self._writing)


class Subscription:
    """Notifications, one after the other: `async for`. It ends only after an error that a retry
    does not cure, which it raises, after `SubscribeOptions.max_events`, or when it is closed.

    It reads from the gateway only as it is iterated: the memory of a slow node does not grow, and
    it gets a gap when history no longer has the events that it has not read. A wait for the next
    notification can be cancelled, and nothing is lost. `aclose`, `async with`, or dropping it
    closes it, at once at the gateway too.
    """

    _stream: Stream | None = None

    def __init__(self, client: Client, options: SubscribeOptions) -> None:
        self._client = client
        # The request for the next stream. Its token covers all events that were delivered.
        self._request = SubscribeRequest(
            node_id=client.node_id,
            incarnation=client.incarnation,
            client_version=client.client_version,
            roles=client.roles,
            filter=Filter(
                kinds=options.kinds, accounts=options.accounts, custom_types=options.custom_types
            ),
            include_own_events=options.include_own_events,
            resume_token=options.resume_token,
            start=options.start,
            overflow=options.overflow,
            max_events=options.max_events,
            explain=options.explain,
            current_nodes=options.current_nodes,
        )
        self._request.heartbeat_interval.FromMilliseconds(int(options.heartbeat_interval * 1000))
        self._token = Token(options.resume_token)
        self._heartbeat = options.heartbeat_interval
        # The number of the stream.
        self._streams = 0
        # The number of the gateway that is used, or tried next.
        self._number = client._preferred
        # Events that were received and not delivered yet, and the token after the last of them.
        self._events: deque[Event] = deque()
        self._batch_token = b""
        self._recent = RecentEvents()
        self._backoff = Backoff()
        # When the next stream may be opened, and the wait that a draining gateway asked for.
        self._not_before = 0.0
        self._requested_wait: float | None = None
        # The gateway that it named to go on at.
        self._named: OtherGateway | None = None
        self._ended = False

    @property
    def resume_token(self) -> Token:
        """Covers everything that was taken from the subscription, in whole batches. Store it after
        those events are processed, and pass it to the subscription of the next process, which
        continues there. It repeats the events of the last batch if not all of them were taken."""
        return self._token

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Notification:
        while True:
            while self._events:
                event = self._events.popleft()
                if not self._events:
                    # The token covers the whole batch, so it changes with the last event.
                    self._advance(self._batch_token)
                if not self._recent.is_new(event):
                    log.debug("event %s of %s came before", event.event_id, event.source)
                    continue
                if self._request.max_events > 0 and not event.node_joined.current:
                    # The next stream is asked for the rest.
                    self._request.max_events -= 1
                    if self._request.max_events == 0:
                        self._close()
                return event
            if self._ended:
                raise StopAsyncIteration
            try:
                notification = self._take(await self._message())
            except grpc.aio.AioRpcError as error:
                return self._lost(status_of_call(error))
            except Lost as lost:
                if self._ended:
                    raise StopAsyncIteration from None
                return self._lost(unavailable(str(lost)))
            if notification is not None:
                return notification

    async def _message(self) -> SubscribeResponse:
        """The next message of the open stream, or of a new one."""
        if self._stream is None:
            await asyncio.sleep(max(self._not_before - time.monotonic(), 0.0))
            self._stream = self._open()
        await self._stream.opened(self._client.attempt_timeout)
        message = await self._stream.message(self._heartbeat * _MISSED_HEARTBEATS)
        if message is None:
            raise Lost("the stream ended")
        return message

    def _open(self) -> Stream:
        self._streams += 1
        self._requested_wait = None
        self._named = None
        return self._call(self._client._gateway(self._number))

    def _call(self, gateway: Gateway) -> Stream:
        return Stream(gateway.subscribe(self._request))

    def _advance(self, token: bytes) -> None:
        self._token = Token.of(self._streams, token)
        self._request.resume_token = token

    def _take(self, response: SubscribeResponse) -> Notification | None:
        arm = response.WhichOneof("response")
        if arm not in ("subscribed", "draining"):
            # The stream works: the next loss starts a new series of attempts.
            self._backoff = Backoff()
        if arm == "subscribed":
            subscribed = response.subscribed
            self._client._works(self._number, subscribed.gateway_id)
            self._advance(subscribed.resume_token)
            if subscribed.HasField("heartbeat_interval"):
                self._heartbeat = subscribed.heartbeat_interval.ToTimedelta().total_seconds()
            self._confirmed(0)
            return subscribed
        if arm == "events":
            self._batch_token = response.events.resume_token
            self._events.extend(response.events.events)
            if not self._events:
                self._advance(self._batch_token)
        elif arm == "gap":
            self._advance(response.gap.resume_token)
            return response.gap
        elif arm == "heartbeat":
            self._advance(response.heartbeat.resume_token)
            return response.heartbeat
        elif arm == "explanation":
            self._advance(response.explanation.resume_token)
            return response.explanation
        elif arm == "interest_updated":
            self._advance(response.interest_updated.resume_token)
            self._confirmed(response.interest_updated.update_id)
        elif arm == "interest_rejected":
            self._rejected(response)
        elif arm == "current_nodes":
            return response.current_nodes
        elif arm == "notice":
            return response.notice
        elif arm == "draining":
            delay = response.draining.reconnect_delay
            self._requested_wait = delay.ToTimedelta().total_seconds()
            if response.draining.HasField("gateway"):
                self._named = response.draining.gateway
            return response.draining
        return None

    def _confirmed(self, update_id: int) -> None:
        """The interest of an update is in force."""

    def _rejected(self, response: SubscribeResponse) -> None:
        """An update of the interest was refused."""

    def _drop_stream(self) -> None:
        if self._stream:
            self._stream.close()
            self._stream = None

    def _lost(self, status: Status) -> Notification:
        """Handles the end of a stream, or the refusal of one."""
        self._drop_stream()
        if status.reason == "RESUME_TOKEN_MALFORMED":
            # The token is damaged: start again without one, and report that events may be missing.
            self._advance(b"")
            return Gap(
                reason=GAP_REASON_UNKNOWN_EPOCH,
                kinds=self._request.filter.kinds,
                action=GAP_ACTION_RESYNC,
            )
        kind = final_kind(status)
        if kind:
            self._close()
            raise Error(kind, status)
        reason = f"{self._client._gateway(self._number).address}: {status}"
        self._number = self._client._after(self._number, self._named)
        asked = max(self._requested_wait or 0.0, status.retry_delay or 0.0)
        wait = self._backoff.next(asked)
        self._not_before = time.monotonic() + wait
        log.info("%s; reconnecting the subscription in %.2f s", reason, wait)
        return Reconnecting(reason, wait)

    async def aclose(self) -> None:
        """Ends the subscription."""
        self._close()

    def _close(self) -> None:
        self._ended = True
        self._events.clear()
        self._drop_stream()

    def __del__(self) -> None:
        # Dropped in the middle of an iteration: the gateway need not wait for it. A loop that is
        # closed has no stream any more.
        if self._stream:
            with suppress(RuntimeError):
                self._stream.close()

    async def __aenter__(self: _S) -> _S:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


_S = TypeVar("_S", bound=Subscription)

