"""A node in Python: publishing that is safe to retry, and a stream that reconnects and resumes by itself.

    async with Client("imap-1", ["10.0.0.1:7420", "10.0.0.2:7420"]) as client:
        await client.publish(Event(mailbox_change=MailboxChange(account_id="a1", change_id=7)))
        async for message in client.subscribe():
            ...

The client does two of the three duties of a node: it keeps the resume token, and it publishes under a request id. The third
is yours: on a `Gap`, load again what it concerns.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
import uuid
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

# Waits between attempts, in seconds: the bound of the first one, and of all.
FIRST_WAIT = 0.05
MOST_WAIT = 2.0

# How many heartbeats may fail to come before a connection counts as dead.
MISSED_HEARTBEATS = 3

# How long one attempt to publish may take, in seconds. A gateway answers earlier, unless it is frozen or cut off.
ATTEMPT_TIMEOUT = 12.0

# gRPC waits by itself between attempts to connect: up to two minutes, unless it is told otherwise.
CHANNEL_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # This one is how long an attempt may take.
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
]

# Under one request id all of these are safe to try again.
PUBLISH_AGAIN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}

# Subscribing again does not help against these.
REFUSED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
}


class Client:
    """A node's connections to the gateways. The first gateway is used while it serves, then the others in turn."""

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
        """`publish_timeout`, in seconds, must stay below the gateways' `requestIdWindow`, a minute unless set.

        `heartbeat`: the interval that is asked for, in seconds, 1 to 3600. After three without a word a gateway counts as gone.

        `credentials` are for TLS, as `grpc.ssl_channel_credentials` makes them; without, the connections are plain text. `token` is
        what proves who this is, where no certificate does.
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
        """Publishes 1 to 1,000 events; returns their positions. Every event is accepted when it returns.

        Raises `grpc.aio.AioRpcError`: at once if the events were refused; else after the publish timeout, and then it is not
        known whether they were published.
        """
        request = service.PublishRequest(node_id=self.node_id, request_id=str(uuid.uuid4()), events=events)
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
                asked = retry_delay(error)
                if error.code() not in PUBLISH_AGAIN and asked is None:
                    raise
                wait = backoff.next(asked)
                if time.monotonic() + wait >= deadline:
                    raise
                log.warning("not published (%s: %s); again in %.2f s", error.code().name, error.details(), wait)
            await asyncio.sleep(wait)
        raise AssertionError("the attempts do not end")

    async def subscribe(self, *, resume_token: bytes = b"", **options: object) -> AsyncIterator[Message]:
        """Yields `Subscribed` whenever a stream is open, then `EventBatch` and `Gap` as they come, without end.

        Each carries the `resume_token` that stands for all up to and including it. A message counts as dealt with when the
        next one is asked for: a stream that is lost before that brings it again. Give the token of the last message to the
        next process, if it is to go on where this one ended.

        `options` are the other fields of `SubscribeRequest`: `filter`, `include_own_events`, `start`, `overflow`.

        Raises `grpc.aio.AioRpcError` if the subscription was refused.
        """
        request = service.SubscribeRequest(
            node_id=self.node_id, incarnation=self.incarnation, roles=self.roles, resume_token=resume_token, **options
        )
        request.heartbeat_interval.seconds = self.heartbeat
        silence = self.heartbeat * MISSED_HEARTBEATS
        backoff = Backoff()
        for attempt in itertools.count():
            call = self._stub(attempt).Subscribe(request, metadata=self._metadata)
            asked, reason = None, "the stream ended"
            try:
                while (response := await asyncio.wait_for(call.read(), silence)) is not grpc.aio.EOF:
                    arm = response.WhichOneof("response")
                    if arm is None:
                        continue  # a newer gateway's
                    message = getattr(response, arm)
                    if arm == "notice":
                        # For whoever runs the node; it stands for no place.
                        log.warning("the gateway says: %s", message.text)
                        continue
                    if arm == "draining":
                        asked = message.reconnect_delay.ToTimedelta().total_seconds()
                        continue
                    if arm == "subscribed":
                        backoff = Backoff()
                    if arm != "heartbeat":
                        yield message
                    request.resume_token = message.resume_token
            except asyncio.TimeoutError:
                reason = "no heartbeat came"
            except grpc.aio.AioRpcError as error:
                reason = f"{error.code().name}: {error.details()}"
                lost_token = error_reason(error) == "RESUME_TOKEN_MALFORMED"
                if error.code() in REFUSED and not lost_token:
                    raise
                asked = max(asked or 0.0, retry_delay(error) or 0.0)
                if lost_token:
                    # It is another deployment's, or damaged. Begin anew; what was missed is not known.
                    request.resume_token = b""
                    yield Gap(reason=service.GAP_REASON_UNKNOWN_EPOCH, action=service.GAP_ACTION_RESYNC)
            finally:
                call.cancel()
            wait = backoff.next(asked)
            log.warning("not subscribed (%s); again in %.2f s", reason, wait)
            await asyncio.sleep(wait)


def _channel(gateway: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(gateway, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(gateway, credentials, options=CHANNEL_OPTIONS)


class Backoff:
    """Waits between attempts, in seconds: full jitter under a bound that doubles, so that nodes do not come back in step."""

    def __init__(self) -> None:
        self._bound = FIRST_WAIT

    def next(self, asked: float | None = None) -> float:
        """The next wait: not less than the gateway asked for, and otherwise at most 2 s."""
        asked = asked or 0.0
        wait = min(asked + random.uniform(0.0, self._bound), max(asked, MOST_WAIT))
        self._bound = min(self._bound * 2, MOST_WAIT)
        return wait


def retry_delay(error: grpc.aio.AioRpcError) -> float | None:
    """After how many seconds the gateway asks to be tried again; None if it does not say."""
    info = _detail(error, error_details_pb2.RetryInfo)
    return info and info.retry_delay.ToTimedelta().total_seconds()


def error_reason(error: grpc.aio.AioRpcError) -> str | None:
    """The gateway's own name for what is wrong, such as BUS_UNAVAILABLE; None if it is not the gateway who says so."""
    info = _detail(error, error_details_pb2.ErrorInfo)
    return info and info.reason


def _detail(error: grpc.aio.AioRpcError, kind: type):
    """The detail of this type that an error carries (AIP-193), if it does."""
    for key, value in error.trailing_metadata() or ():
        if key == rpc_status.GRPC_DETAILS_METADATA_KEY:
            for detail in rpc_status.status_pb2.Status.FromString(value).details:
                if detail.Is(kind.DESCRIPTOR):
                    message = kind()
                    detail.Unpack(message)
                    return message
    return None
