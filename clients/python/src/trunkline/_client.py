"""A node's connection to the gateways, and publishing with one request id over all attempts."""

from __future__ import annotations

import asyncio
import datetime
import logging
import random
import time
import uuid
import weakref
from collections.abc import Iterable, Sequence
from typing import Protocol

import grpc

from ._backoff import Backoff
from ._credentials import Credentials
from ._errors import (
    Error,
    ErrorKind,
    Status,
    accepted_events,
    final_kind,
    nothing_published,
    status_of_call,
)
from ._publisher import Publisher, PublisherOptions
from ._rpc import Gateway
from ._subscription import SubscribeOptions, Subscription
from ._watch import Watch
from .v1 import (
    WAIT_FOR_ACKNOWLEDGED,
    WAIT_FOR_DELIVERED,
    DeliveryReport,
    Event,
    OtherGateway,
    Position,
    PublishRequest,
    PublishResponse,
)

log = logging.getLogger("trunkline")

VERSION = "0.1.0"


class _Closable(Protocol):
    def _close(self) -> None: ...


class Client:
    """A node's connection to the gateways. It connects when it is first used, in the event loop
    that uses it.

        async with Client("imap-1", ["10.0.0.1:7420", "10.0.0.2:7420"]) as client:
            await client.publish(Event(mailbox_change=MailboxChange(account_id="a1")))
            async for notification in client.subscribe():
                ...
    """

    def __init__(
        self,
        node_id: str,
        gateways: Sequence[str] = ("127.0.0.1",),
        *,
        credentials: Credentials = Credentials(),
        roles: Iterable[str] = (),
        incarnation: str | None = None,
        client_version: str = f"trunkline-python {VERSION}",
        publish_timeout: float = 30.0,
        attempt_timeout: float = 5.0,
        connect_timeout: float = 2.0,
        in_order: bool = False,
    ) -> None:
        """`node_id`: at most 128 bytes, unique in the cluster, and the same after a restart.

        `gateways`: `https://gateway.example.org`, `10.0.0.1:7420`, or `10.0.0.1` (see
        `Credentials.target`). One is used as long as it serves, then the next one, in turn: in a
        random order, so that nodes spread over the gateways, or with `in_order` in that given.

        `roles` of the node (`imap`, `mta`): events may be targeted at roles.

        `incarnation`: identity of this start of the process; distinguishes two live processes with
        the same node id. Default: a random one.

        `client_version`: name and version of the node's software, which the list of nodes shows.

        `publish_timeout`: seconds after which publishing fails; until then it is retried, on all
        gateways in turn. Must be shorter than the gateways' `requestIdWindow` (60 s unless
        configured), or the last attempts may publish twice.

        `attempt_timeout`: seconds after which an attempt is given up and the next gateway is tried.

        `connect_timeout`: seconds for connecting.

        Raises `Error` with `ErrorKind.ADDRESS` if an address is not valid.
        """
        self.node_id = node_id
        self.incarnation = incarnation or str(uuid.uuid4())
        self.client_version = client_version
        self.roles = list(roles)
        self.publish_timeout = publish_timeout
        self.attempt_timeout = attempt_timeout
        self._gateways = [Gateway(address, credentials, connect_timeout) for address in gateways]
        if not self._gateways:
            raise ValueError("a client needs the address of a gateway")
        if not in_order:
            random.shuffle(self._gateways)
        # The number of the gateway that worked last: the next attempt begins there.
        self._preferred = 0
        self._users: weakref.WeakSet[_Closable] = weakref.WeakSet()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the subscriptions and publishers, and closes the connections. What a publisher had
        no answer for may or may not be published: `Publisher.close` waits for it."""
        for user in list(self._users):
            user._close()
        await asyncio.gather(*(gateway.close() for gateway in self._gateways))

    def _gateway(self, number: int) -> Gateway:
        """The gateway with this number. Attempts count up through the gateways, round and round."""
        return self._gateways[number % len(self._gateways)]

    def _works(self, number: int, gateway_id: str | None = None) -> None:
        self._preferred = number % len(self._gateways)
        if gateway_id is not None:
            self._gateway(number).gateway_id = gateway_id

    def _after(self, number: int, named: OtherGateway | None) -> int:
        """The number of the gateway to try after this one: the one that it named, else one that
        this client has not used yet, which may be it, and without a name the next one."""
        after = range(number + 1, number + len(self._gateways))
        if named:
            for other in after:
                gateway = self._gateway(other)
                if gateway.gateway_id == named.gateway_id or gateway.is_at(named.address):
                    return other
            for other in after:
                if self._gateway(other).gateway_id is None:
                    return other
        return number + 1

    async def publish(self, *events: Event, request_id: str | None = None) -> list[Position]:
        """Publishes 1 to 1,000 events in one request, and returns their positions in the same
        order. Tries the gateways in turn until the publish timeout, with one request id: however
        many attempts it takes, each event is published once.

        `request_id`: a UUID of the caller. A caller that stores it with the events can publish them
        again with it after `ErrorKind.OUTCOME_UNKNOWN` or a restart. Default: a random one.

        If it is cancelled, the events may or may not be published.

        Raises `Error`: INVALID, DENIED and UNSUPPORTED at once; UNAVAILABLE and OUTCOME_UNKNOWN
        after the publish timeout. `Error.accepted_events` has what was published all the same.
        """
        request = PublishRequest(
            node_id=self.node_id, request_id=request_id or str(uuid.uuid4()), events=events
        )
        return list((await self._publish(request, 0.0)).positions)

    async def publish_and_wait(
        self, *events: Event, acknowledged: bool = False, timeout: float = 5.0
    ) -> DeliveryReport:
        """As `publish`, and then waits until every node that the events concern has received them,
        or, with `acknowledged`, until it has acknowledged them on its watch; but no longer than
        `timeout` seconds, at most 60. The report says whether all have (`complete`), or who has
        not. The events are published in any case.

        If the first attempt was accepted and its answer lost, the report of the next one knows
        nothing of the nodes, and is not complete.

        Raises `Error` as `publish` does. A gateway of an earlier version does not wait:
        UNSUPPORTED, and the events are published.
        """
        request = PublishRequest(
            node_id=self.node_id,
            request_id=str(uuid.uuid4()),
            events=events,
            wait_for=WAIT_FOR_ACKNOWLEDGED if acknowledged else WAIT_FOR_DELIVERED,
        )
        request.wait_timeout.FromTimedelta(datetime.timedelta(seconds=timeout))
        response = await self._publish(request, timeout)
        if response.HasField("delivery"):
            return response.delivery
        text = "the events are published, and the gateway does not wait for nodes"
        raise Error(ErrorKind.UNSUPPORTED, Status(grpc.StatusCode.UNIMPLEMENTED, text))

    async def _publish(self, request: PublishRequest, longer: float) -> PublishResponse:
        """Publishes a request whose answers take so many seconds longer than others."""
        deadline = time.monotonic() + self.publish_timeout + longer
        backoff = Backoff()
        number = self._preferred
        kind = ErrorKind.UNAVAILABLE
        accepted: set[int] = set()
        while True:
            left = deadline - time.monotonic()
            gateway = self._gateway(number)
            try:
                response = await gateway.publish(request, min(left, self.attempt_timeout + longer))
                self._works(number)
                return response
            except grpc.aio.AioRpcError as error:
                status = status_of_call(error)
            accepted.update(accepted_events(status))
            final = final_kind(status)
            if final:
                raise Error(final, status, accepted)
            if not nothing_published(status):
                kind = ErrorKind.OUTCOME_UNKNOWN
            wait = backoff.next(status.retry_delay)
            if time.monotonic() + wait >= deadline:
                raise Error(kind, status, accepted)
            log.info("%s: %s; retrying to publish in %.2f s", gateway.address, status, wait)
            await asyncio.sleep(wait)
            number += 1

    def publisher(self, options: PublisherOptions = PublisherOptions()) -> Publisher:
        """Opens a publisher: a stream of events to a gateway, opened again wherever it ends. It
        connects with the first event."""
        publisher = Publisher(self, options)
        self._users.add(publisher)
        return publisher

    def subscribe(self, options: SubscribeOptions = SubscribeOptions()) -> Subscription:
        """Opens a subscription. It connects when it is first iterated, and reconnects after a loss,
        to the gateways in turn, after a wait with full jitter of at most 2 s (or longer, if a
        gateway asks for it)."""
        subscription = Subscription(self, options)
        self._users.add(subscription)
        return subscription

    def watch(self, options: SubscribeOptions = SubscribeOptions()) -> Watch:
        """Opens a subscription whose accounts change while it lives: those of the options are the
        first ones, and with none, no event that concerns an account is delivered. It reconnects as
        `subscribe` does, with the accounts of that time."""
        watch = Watch(self, options)
        self._users.add(watch)
        return watch
