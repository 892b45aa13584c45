"""The client for programs without an event loop: the same methods, which wait.

    with BlockingClient(Client("imap-1", ["10.0.0.1:7420"])) as client:
        client.publish(Event(queue_refresh=QueueRefresh()))
        for notification in client.subscribe():
            ...

The client runs in an event loop on a thread of its own. All methods may be called from any thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from ._client import Client
from ._publisher import Publisher, PublisherOptions
from ._subscription import Notification, SubscribeOptions, Subscription, Token
from ._watch import Watch
from .v1 import DeliveryReport, Event, Position

_T = TypeVar("_T")
_S = TypeVar("_S", bound=Subscription)


class _Loop:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="trunkline", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def start(self, task: Coroutine[Any, Any, _T]) -> Future[_T]:
        return asyncio.run_coroutine_threadsafe(task, self._loop)

    def run(self, task: Coroutine[Any, Any, _T]) -> _T:
        """Waits for a task. An exception in this thread, such as `KeyboardInterrupt`, ends it."""
        future = self.start(task)
        try:
            return future.result()
        finally:
            future.cancel()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


class BlockingClient:
    """A `Client` for programs without an event loop."""

    def __init__(self, client: Client) -> None:
        """`client` must not be used otherwise."""
        self._client = client
        self._loop = _Loop()

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """As `Client.close`."""
        self._loop.run(self._client.close())
        self._loop.stop()

    def publish(self, *events: Event, request_id: str | None = None) -> list[Position]:
        """As `Client.publish`."""
        return self._loop.run(self._client.publish(*events, request_id=request_id))

    def publish_and_wait(
        self, *events: Event, acknowledged: bool = False, timeout: float = 5.0
    ) -> DeliveryReport:
        """As `Client.publish_and_wait`."""
        return self._loop.run(
            self._client.publish_and_wait(*events, acknowledged=acknowledged, timeout=timeout)
        )

    def publisher(self, options: PublisherOptions = PublisherOptions()) -> BlockingPublisher:
        """As `Client.publisher`."""

        async def make() -> Publisher:
            return self._client.publisher(options)

        return BlockingPublisher(self._loop, self._loop.run(make()))

    def subscribe(
        self, options: SubscribeOptions = SubscribeOptions()
    ) -> BlockingSubscription[Subscription]:
        """As `Client.subscribe`."""

        async def make() -> Subscription:
            return self._client.subscribe(options)

        return BlockingSubscription(self._loop, self._loop.run(make()))

    def watch(self, options: SubscribeOptions = SubscribeOptions()) -> BlockingWatch:
        """As `Client.watch`."""

        async def make() -> Watch:
            return self._client.watch(options)

        return BlockingWatch(self._loop, self._loop.run(make()))


class BlockingPublisher:
    """A `Publisher` for programs without an event loop."""

    def __init__(self, loop: _Loop, publisher: Publisher) -> None:
        self._loop = loop
        self._publisher = publisher

    def __enter__(self) -> BlockingPublisher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def publish(self, event: Event) -> Future[None]:
        """As `Publisher.publish`."""
        acknowledged: Future[None] = Future()
        self._loop.run(self._publish(event, acknowledged))
        return acknowledged

    async def _publish(self, event: Event, acknowledged: Future[None]) -> None:
        def done(answer: asyncio.Future[None]) -> None:
            error = None if answer.cancelled() else answer.exception()
            if not acknowledged.set_running_or_notify_cancel():
                return
            if error:
                acknowledged.set_exception(error)
            else:
                acknowledged.set_result(None)

        (await self._publisher.publish(event)).add_done_callback(done)

    def flush(self) -> None:
        """As `Publisher.flush`."""
        self._loop.run(self._publisher.flush())

    def close(self) -> None:
        """As `Publisher.close`."""
        self._loop.run(self._publisher.close())


class BlockingSubscription(Generic[_S]):
    """A `Subscription` for programs without an event loop: `for notification in ...`."""

    def __init__(self, loop: _Loop, subscription: _S) -> None:
        self._loop = loop
        self._subscription = subscription

    def __enter__(self: _B) -> _B:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self: _B) -> _B:
        return self

    def __next__(self) -> Notification:
        try:
            return self._loop.run(self._subscription.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    @property
    def resume_token(self) -> Token:
        """As `Subscription.resume_token`."""
        return self._subscription.resume_token

    def close(self) -> None:
        """As `Subscription.aclose`."""
        self._loop.run(self._subscription.aclose())


_B = TypeVar("_B", bound=BlockingSubscription[Any])


class BlockingWatch(BlockingSubscription[Watch]):
    """A `Watch` for programs without an event loop. Another thread must iterate it while one waits
    for a change."""

    def add(self, *accounts: str) -> None:
        """As `Watch.add`; returns when the change is in force."""
        self._loop.run(self._changed(Watch.add, accounts))

    def remove(self, *accounts: str) -> None:
        """As `Watch.remove`; returns when the change is in force."""
        self._loop.run(self._changed(Watch.remove, accounts))

    def replace(self, *accounts: str) -> None:
        """As `Watch.replace`; returns when the change is in force."""
        self._loop.run(self._changed(Watch.replace, accounts))

    async def _changed(self, change: Any, accounts: tuple[str, ...]) -> None:
        await change(self._subscription, *accounts)

    def acknowledge(self, token: Token | None = None) -> None:
        """As `Watch.acknowledge`."""

        async def acknowledge() -> None:
            self._subscription.acknowledge(token)

        self._loop.run(acknowledge())
