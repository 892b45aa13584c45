"""A node in Python: publishing that is safe to retry, and a stream that reconnects and resumes.

    async with Client("imap-1", ["10.0.0.1:7420", "10.0.0.2:7420"]) as client:
        await client.publish(Event(mailbox_change=MailboxChange(account_id="a1", change_id=7)))
        async for message in client.subscribe():
            ...

The client does two of the three duties of a node: it keeps the resume token, and it publishes under
a request id. The third is yours: after a `Gap`, reload whatever it concerns.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Union

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from stubs import event, service, service_grpc

Event = event.Event
Filter = service.Filter
Gap = service.Gap
EventBatch = service.EventBatch
Subscribed = service.Subscribed
Message = Union[Subscribed, EventBatch, Gap]

log = logging.getLogger("trunkline")

# Upper bounds of the waits between attempts, in seconds: of the first wait, and of all.
FIRST_WAIT = 0.05
MAX_WAIT = 2.0

# Heartbeats that may be missed before a connection counts as dead.
MAX_MISSED_HEARTBEATS = 2

# Limit of one attempt to publish, in seconds. A gateway answers earlier unless it is not reachable.
ATTEMPT_TIMEOUT = 12.0

# By default, gRPC waits up to two minutes between attempts to connect.
CHANNEL_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # In spite of its name, the limit of one attempt.
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
]

# The number of events that a subscription remembers.
RECENT_EVENTS = 1024

# Errors after which a request is retried, which its request id makes safe.
RETRIED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}

# Errors that end a subscription: a retry would not help.
REFUSED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
}


class Client:
    """A node's connections to the gateways: the first while it serves, then the others in turn."""

    def __init__(
        self,
        node_id: str,
        gateways: Sequence[str] = ("127.0.0.1:7420",),
        *,
        roles: Iterable[str] = (),
        publish_timeout: float = 30.0,
        heartbeat: int = 10,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
    ) -> None:
        """`publish_timeout`, in seconds: below the gateways' `requestIdWindow` (default: 60 s).

        `heartbeat`: the requested interval in seconds, 1 to 3600. A gateway counts as gone after
        three intervals without a message.

        `credentials` are for TLS, from `grpc.ssl_channel_credentials`; without them the connections
        are not encrypted. `token` authenticates the node where no client certificate does.
        """
        self.node_id = node_id
        self.incarnation = str(uuid.uuid4())
        self.roles = list(roles)
        self.publish_timeout = publish_timeout
        self.heartbeat = heartbeat
        self._metadata = [("authorization", f"Bearer {token}")] if token else []
        self._channels = [_channel(gateway, credentials) for gateway in gateways]
        self._stubs = [service_grpc.CoordinationServiceStub(channel) for channel in self._channels]

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections, and with them the subscriptions."""
        await asyncio.gather(*(channel.close() for channel in self._channels))

    def _stub(self, attempt: int) -> service_grpc.CoordinationServiceStub:
        return self._stubs[attempt % len(self._stubs)]

    async def publish(self, *events: Event) -> list[service.Position]:
        """Publishes 1 to 1,000 events. Returns their positions once every event is accepted.

        Raises `grpc.aio.AioRpcError`: at once if the events were refused; otherwise after the
        publish timeout, and then it is not known whether they were published.
        """
        request = service.PublishRequest(
            node_id=self.node_id, request_id=str(uuid.uuid4()), events=events
        )
        deadline = time.monotonic() + self.publish_timeout
        backoff = Backoff()
        for attempt in itertools.count():
            left = deadline - time.monotonic()
            try:
                response = await self._stub(attempt).Publish(
                    request, timeout=min(left, ATTEMPT_TIMEOUT), metadata=self._metadata
                )
                return list(response.positions)
            except grpc.aio.AioRpcError as error:
                delay = retry_delay(error)
                if error.code() not in RETRIED and delay is None:
                    raise
                wait = backoff.next(delay)
                if time.monotonic() + wait >= deadline:
                    raise
                log.warning(
                    "not published (%s: %s); retrying in %.2f s",
                    error.code().name,
                    error.details(),
                    wait,
                )
            await asyncio.sleep(wait)
        raise AssertionError("the attempts do not end")

    async def subscribe(
        self, *, resume_token: bytes = b"", **options: object
    ) -> AsyncIterator[Message]:
        """Yields `Subscribed` whenever a stream is open, then each `EventBatch` and `Gap`, forever.

        Each message carries the `resume_token` up to and including it. A message counts as handled
        when the next one is requested: if the stream is lost before that, it is delivered again. To
        resume in the next process, give it the token of the last message.

        `options` are the other fields of `SubscribeRequest`: `filter`, `include_own_events`,
        `start`, `overflow`.

        Raises `grpc.aio.AioRpcError` if the subscription was refused.
        """
        request = service.SubscribeRequest(
            node_id=self.node_id,
            incarnation=self.incarnation,
            roles=self.roles,
            resume_token=resume_token,
            **options,
        )
        request.heartbeat_interval.seconds = self.heartbeat
        silence = self.heartbeat * MAX_MISSED_HEARTBEATS
        recent = RecentEvents()
        backoff = Backoff()
        for attempt in itertools.count():
            call = self._stub(attempt).Subscribe(request, metadata=self._metadata)
            delay, reason = None, "the stream ended"
            try:
                while True:
                    response = await asyncio.wait_for(call.read(), silence)
                    if response is grpc.aio.EOF:
                        break
                    arm = response.WhichOneof("response")
                    if arm is None:
                        continue  # a message that a newer gateway sends
                    message = getattr(response, arm)
                    if arm == "notice":
                        # For the operator of the node; it has no position.
                        log.warning("notice from the gateway: %s", message.text)
                        continue
                    if arm == "draining":
                        delay = message.reconnect_delay.ToTimedelta().total_seconds()
                        continue
                    if arm == "subscribed":
                        backoff = Backoff()
                    if arm == "events":
                        new = [event for event in message.events if recent.is_new(event)]
                        if len(new) < len(message.events):
                            message = EventBatch(events=new, resume_token=message.resume_token)
                    if arm != "heartbeat":
                        yield message
                        if arm == "events":
                            recent.add(message.events)
                    request.resume_token = message.resume_token
            except asyncio.TimeoutError:
                reason = "no heartbeat came"
            except grpc.aio.AioRpcError as error:
                reason = f"{error.code().name}: {error.details()}"
                bad_token = error_reason(error) == "RESUME_TOKEN_MALFORMED"
                if error.code() in REFUSED and not bad_token:
                    raise
                delay = max(delay or 0.0, retry_delay(error) or 0.0)
                if bad_token:
                    # The token is damaged, or of another deployment. Start anew; the number of
                    # missed events is not known.
                    request.resume_token = b""
                    yield Gap(
                        reason=service.GAP_REASON_UNKNOWN_EPOCH, action=service.GAP_ACTION_RESYNC
                    )
            finally:
                call.cancel()
            wait = backoff.next(delay)
            log.warning("not subscribed (%s); retrying in %.2f s", reason, wait)
            await asyncio.sleep(wait)


def _channel(gateway: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(gateway, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(gateway, credentials, options=CHANNEL_OPTIONS)


class RecentEvents:
    """The events that were handled last, by source and id. In rare cases a gateway delivers an
    event a second time: it cannot know that the node had it, since all gateways that knew are gone,
    and its publisher repeated the request meanwhile."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()

    def is_new(self, event: Event) -> bool:
        """False if it was handled. One that stands for several events is always new."""
        known = (event.source, event.event_id) in self._known
        return not known or not event.event_id or event.merged_events > 1

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            self._known[event.source, event.event_id] = None
            if len(self._known) > RECENT_EVENTS:
                self._known.popitem(last=False)


class Backoff:
    """Waits between attempts in seconds: full jitter below a bound that doubles, so that nodes do
    not reconnect in step."""

    def __init__(self) -> None:
        self._bound = FIRST_WAIT

    def next(self, delay: float | None = None) -> float:
        """The next wait: at least the delay that the gateway asks for, otherwise at most 2 s."""
        delay = delay or 0.0
        wait = min(delay + random.uniform(0.0, self._bound), max(delay, MAX_WAIT))
        self._bound = min(self._bound * 2, MAX_WAIT)
        return wait


def retry_delay(error: grpc.aio.AioRpcError) -> float | None:
    """The seconds after which the gateway asks for a retry; None if it does not ask."""
    info = _detail(error, error_details_pb2.RetryInfo)
    return info and info.retry_delay.ToTimedelta().total_seconds()


def error_reason(error: grpc.aio.AioRpcError) -> str | None:
    """The reason in an error of the gateway, such as BUS_UNAVAILABLE; None for any other error."""
    info = _detail(error, error_details_pb2.ErrorInfo)
    return info and info.reason


def _detail(error: grpc.aio.AioRpcError, kind: type):
    """The detail of this type in an error (AIP-193), if there is one."""
    for key, value in error.trailing_metadata() or ():
        if key == rpc_status.GRPC_DETAILS_METADATA_KEY:
            for detail in rpc_status.status_pb2.Status.FromString(value).details:
                if detail.Is(kind.DESCRIPTOR):
                    message = kind()
                    detail.Unpack(message)
                    return message
    return None
