"""The methods of a gateway."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from grpc.aio import Channel, StreamStreamCall, UnaryStreamCall, UnaryUnaryCall

from ._credentials import Credentials
from .v1 import (
    PublishRequest,
    PublishResponse,
    PublishStreamRequest,
    PublishStreamResponse,
    SubscribeRequest,
    SubscribeResponse,
    WatchRequest,
)

PublishCall = StreamStreamCall[Message, PublishStreamResponse]
WatchCall = StreamStreamCall[Message, SubscribeResponse]

_SERVICE = "/trunkline.v1.CoordinationService"

# Larger than the largest batch of a gateway.
_MAX_MESSAGE = 16 << 20


def _options(connect_timeout: float) -> list[tuple[str, int]]:
    return [
        # By default, gRPC waits up to two minutes between attempts to connect.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # In spite of its name, the limit of one attempt.
        ("grpc.min_reconnect_backoff_ms", int(connect_timeout * 1000)),
        ("grpc.max_receive_message_length", _MAX_MESSAGE),
        # A connection without any answer is closed after these two together.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.max_pings_without_data", 0),
    ]


class Gateway:
    """The connection to one gateway: made when it is first used, and again after a loss."""

    def __init__(self, address: str, credentials: Credentials, connect_timeout: float) -> None:
        self.address = address
        self._target, self._tls = credentials.target(address)
        self._credentials = credentials
        self._options = _options(connect_timeout)
        self._channel: Channel | None = None
        # Its id, once it has said it.
        self.gateway_id: str | None = None

    def is_at(self, address: str) -> bool:
        """True if this is how gateways name the one at this address."""
        return bool(address) and self._target == address

    def _connection(self) -> Channel:
        # A channel belongs to the event loop that runs when it is made.
        if self._channel is None and self._tls:
            credentials = self._credentials.channel_credentials()
            self._channel = grpc.aio.secure_channel(self._target, credentials, self._options)
        elif self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._target, self._options)
        return self._channel

    async def close(self) -> None:
        if self._channel:
            await self._channel.close()

    def publish(
        self, request: PublishRequest, timeout: float
    ) -> UnaryUnaryCall[Message, PublishResponse]:
        method = self._connection().unary_unary(
            f"{_SERVICE}/Publish",
            request_serializer=PublishRequest.SerializeToString,
            response_deserializer=PublishResponse.FromString,
        )
        return method(request, timeout=timeout, metadata=self._credentials.metadata)

    def publish_stream(self) -> PublishCall:
        method = self._connection().stream_stream(
            f"{_SERVICE}/PublishStream",
            request_serializer=PublishStreamRequest.SerializeToString,
            response_deserializer=PublishStreamResponse.FromString,
        )
        return method(metadata=self._credentials.metadata)

    def subscribe(self, request: SubscribeRequest) -> UnaryStreamCall[Message, SubscribeResponse]:
        method = self._connection().unary_stream(
            f"{_SERVICE}/Subscribe",
            request_serializer=SubscribeRequest.SerializeToString,
            response_deserializer=SubscribeResponse.FromString,
        )
        return method(request, metadata=self._credentials.metadata)

    def watch(self) -> WatchCall:
        method = self._connection().stream_stream(
            f"{_SERVICE}/Watch",
            request_serializer=WatchRequest.SerializeToString,
            response_deserializer=SubscribeResponse.FromString,
        )
        return method(metadata=self._credentials.metadata)


_T = TypeVar("_T")


class Lost(Exception):
    """A stream is lost, for this reason."""


class Late(Lost):
    """Something did not happen within its limit."""


async def within(seconds: float, task: asyncio.Future[_T], late: str = "") -> _T:
    """The result of a task; raises `Late` with this reason after the limit. The task is never
    cancelled by this, since gRPC ends a call of which a read is cancelled."""
    done, _ = await asyncio.wait({task}, timeout=max(seconds, 0.0))
    if not done:
        raise Late(late)
    if task.cancelled():
        raise Lost("the call was cancelled")
    return task.result()


def abandon(*tasks: asyncio.Future[Any] | None) -> None:
    """Ends tasks whose results nobody needs."""
    for task in tasks:
        if task:
            task.cancel()
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
