"""Drives this client by lines of JSON: docs/conformance.md of the repository has the protocol.

    python -m trunkline.conformance < commands > output
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from . import (
    Client,
    Error,
    Notification,
    Publisher,
    PublisherOptions,
    Reconnecting,
    SubscribeOptions,
    Subscription,
    Watch,
    WhenFull,
)
from .v1 import Event, EventKind, Overflow, Start

# The names of notifications in the output.
NAMES = {
    "Subscribed": "subscribed",
    "Event": "event",
    "Gap": "gap",
    "Explanation": "explanation",
    "Heartbeat": "heartbeat",
    "CurrentNodes": "current_nodes",
    "Draining": "draining",
    "Notice": "notice",
}


def show(name: str, value: object) -> None:
    print(json.dumps({name: value}), flush=True)


def failure(error: Error) -> dict[str, object]:
    return {"kind": error.kind.name, "message": str(error), "violations": error.violations}


class Driver:
    """The client, and what it has open."""

    def __init__(self) -> None:
        self._client: Client | None = None
        self._publisher: Publisher | None = None
        self._subscription: Subscription | None = None
        self._tasks: set[asyncio.Future[Any]] = set()

    async def run(self) -> None:
        """Obeys commands until there are no more."""
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            command = json.loads(line)
            action: Callable[[dict[str, Any]], Awaitable[None]] = getattr(
                self, "do_" + command.pop("do")
            )
            await action(command)
        if self._publisher:
            await self._publisher.close()
        if self._client:
            await self._client.close()
        await asyncio.gather(*self._tasks)

    def _start(self, id_: object, outcome: Awaitable[object], **more: object) -> None:
        """Shows the outcome of a command when it is there."""

        async def wait() -> None:
            try:
                value = await outcome
                show("done", {"id": id_, **more, **({"value": value} if value else {})})
            except Error as error:
                show("failed", {"id": id_, **more, **failure(error)})

        self._spawn(wait())

    def _spawn(self, work: Awaitable[object]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def _open_client(self) -> Client:
        assert self._client, "the first command is `connect`"
        return self._client

    async def do_connect(self, options: dict[str, Any]) -> None:
        self._client = Client(**options, in_order=True)

    async def do_publish(self, command: dict[str, Any]) -> None:
        events = [json_format.ParseDict(event, Event()) for event in command["events"]]

        async def publish() -> list[object]:
            return [as_json(position) for position in await self._open_client.publish(*events)]

        self._start(command["id"], publish())

    async def do_publish_and_wait(self, command: dict[str, Any]) -> None:
        events = [json_format.ParseDict(event, Event()) for event in command["events"]]
        options = {name: command[name] for name in ("acknowledged", "timeout") if name in command}

        async def publish() -> object:
            return as_json(await self._open_client.publish_and_wait(*events, **options))

        self._start(command["id"], publish())

    async def do_open_publisher(self, options: dict[str, Any]) -> None:
        if "when_full" in options:
            options["when_full"] = WhenFull[options["when_full"]]
        self._publisher = self._open_client.publisher(PublisherOptions(**options))

    async def do_publish_stream(self, command: dict[str, Any]) -> None:
        assert self._publisher, "`open_publisher` comes before"
        for index, event in enumerate(command["events"]):
            try:
                acknowledged = await self._publisher.publish(json_format.ParseDict(event, Event()))
            except Error as error:
                show("failed", {"id": command["id"], "index": index, **failure(error)})
            else:
                self._start(command["id"], acknowledged, index=index)

    async def do_flush(self, command: dict[str, Any]) -> None:
        assert self._publisher, "`open_publisher` comes before"
        self._start(command["id"], self._publisher.flush())

    async def do_subscribe(self, options: dict[str, Any]) -> None:
        self._subscription = self._open_client.subscribe(subscribe_options(options))
        self._spawn(self._read(self._subscription))

    async def do_watch(self, options: dict[str, Any]) -> None:
        self._subscription = self._open_client.watch(subscribe_options(options))
        self._spawn(self._read(self._subscription))

    async def _read(self, subscription: Subscription) -> None:
        try:
            async for notification in subscription:
                show_notification(notification)
            show("ended", {})
        except Error as error:
            show("ended", failure(error))

    def _watched(self) -> Watch:
        assert isinstance(self._subscription, Watch), "`watch` comes before"
        return self._subscription

    async def do_add(self, command: dict[str, Any]) -> None:
        self._start(command["id"], self._watched().add(*command["accounts"]))

    async def do_remove(self, command: dict[str, Any]) -> None:
        self._start(command["id"], self._watched().remove(*command["accounts"]))

    async def do_replace(self, command: dict[str, Any]) -> None:
        self._start(command["id"], self._watched().replace(*command["accounts"]))

    async def do_acknowledge(self, _: dict[str, Any]) -> None:
        self._watched().acknowledge()


def subscribe_options(options: dict[str, Any]) -> SubscribeOptions:
    if "kinds" in options:
        options["kinds"] = [EventKind.Value(name) for name in options["kinds"]]
    if "start" in options:
        options["start"] = Start.Value(options["start"])
    if "overflow" in options:
        options["overflow"] = Overflow.Value(options["overflow"])
    if "resume_token" in options:
        options["resume_token"] = base64.b64decode(options["resume_token"])
    return SubscribeOptions(**options)


def show_notification(notification: Notification) -> None:
    if isinstance(notification, Reconnecting):
        show("reconnecting", {"reason": notification.reason, "wait": notification.wait})
    else:
        show(NAMES[type(notification).__name__], as_json(notification))


def as_json(message: Message) -> dict[str, object]:
    return json_format.MessageToDict(message)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    asyncio.run(Driver().run())
