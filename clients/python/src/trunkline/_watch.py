"""Subscriptions whose accounts change while they live."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ._errors import Error, ErrorKind, unavailable
from ._interest import Done, Watching
from ._publisher import settle
from ._rpc import Gateway, WatchCall
from ._subscription import Stream, SubscribeOptions, Subscription, Token
from .v1 import SubscribeResponse

if TYPE_CHECKING:
    from ._client import Client


class Watch(Subscription):
    """A subscription whose accounts change while it lives.

    `add`, `remove` and `replace` return futures, which are done when the change is in force. It
    takes effect in order with the events, so only while the subscription is iterated, and waits
    while there is no stream: do not await the future in the loop that iterates.
    """

    def __init__(self, client: Client, options: SubscribeOptions) -> None:
        self._watching = Watching(options.accounts)
        super().__init__(client, replace(options, accounts=()))

    def add(self, *accounts: str) -> asyncio.Future[None]:
        """Adds accounts. Once the future is done, every event that concerns one of them, and that
        is acknowledged to its publisher after that, is delivered or reported as a gap, over all
        streams of the subscription.

        The future raises `Error`: INVALID and DENIED for accounts that the gateway rejects, and
        nothing has changed then; UNAVAILABLE if the subscription has ended.
        """
        return self._change(self._watching.add, accounts)

    def remove(self, *accounts: str) -> asyncio.Future[None]:
        """Removes accounts. Events that concern them may be delivered until the future is done. It
        raises as that of `add` does."""
        return self._change(self._watching.remove, accounts)

    def replace(self, *accounts: str) -> asyncio.Future[None]:
        """Replaces all accounts by these. The future raises as that of `add` does."""
        return self._change(self._watching.replace, accounts)

    def _change(
        self, change: Callable[[Iterable[str], Done], None], accounts: Iterable[str]
    ) -> asyncio.Future[None]:
        changed = asyncio.get_running_loop().create_future()
        if self._ended:
            changed.set_exception(_ended())
        else:
            change(accounts, partial(settle, changed))
        return changed

    def acknowledge(self, token: Token | None = None) -> None:
        """Tells the gateway that everything up to a token was processed. Default: all that was
        taken from the subscription. It is for operators and for publishers that wait; what came on
        an earlier stream needs none, and is not sent."""
        token = self.resume_token if token is None else token
        if token and self._stream and token.stream == self._streams:
            self._watching.acknowledge(token)

    def _call(self, gateway: Gateway) -> Stream:
        self._watching.open(self._request)
        call = gateway.watch()
        return Stream(call, asyncio.ensure_future(_write(call, self._watching)))

    def _confirmed(self, update_id: int) -> None:
        self._watching.updated(update_id)

    def _rejected(self, response: SubscribeResponse) -> None:
        self._watching.rejected(response.interest_rejected)

    def _drop_stream(self) -> None:
        super()._drop_stream()
        self._watching.lost()

    def _close(self) -> None:
        super()._close()
        self._watching.fail(_ended())


async def _write(call: WatchCall, watching: Watching) -> None:
    """Sends what the interest has to say. If the stream is over, its responses say so. A task of
    this does not keep the subscription."""
    while True:
        while not watching.outgoing:
            watching.filled.clear()
            await watching.filled.wait()
        await call.write(watching.outgoing.popleft())


def _ended() -> Error:
    return Error(ErrorKind.UNAVAILABLE, unavailable("the subscription has ended"))
