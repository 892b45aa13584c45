"""The waits between attempts: exponential backoff with full jitter, so that nodes do not reconnect
at the same time."""

from __future__ import annotations

import random

FIRST = 0.05
MAX = 2.0

# The limit of the wait that a gateway may ask for.
MAX_REQUESTED = 60.0


class Backoff:
    """The wait before the next attempt, in seconds."""

    def __init__(self) -> None:
        self._bound = FIRST

    def next(self, requested: float | None = None) -> float:
        """A random part of the bound, which doubles up to 2 s, but not less than the gateway asked
        for, up to a minute."""
        wait = random.uniform(0.0, self._bound)
        self._bound = min(self._bound * 2, MAX)
        return max(wait, min(requested or 0.0, MAX_REQUESTED))
