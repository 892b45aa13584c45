"""The events that were handed on last."""

from __future__ import annotations

from collections import OrderedDict

from .v1 import Event

# The number of events that are remembered.
CAPACITY = 1024


class RecentEvents:
    """The last 1,024 events that a node handed on, by source and id.

    A gateway delivers an event twice only if it cannot know that the node had it: gateways that had
    it died or were cut off, the publisher repeated its request meanwhile, and the node moved. Every
    event has an id, which stays the same over all attempts of its request, so a node that remembers
    the last ids does not hand on such an event again. `Client.subscribe` does so; this is for
    programs that read streams by themselves.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()

    def is_new(self, event: Event) -> bool:
        """Remembers an event that is about to be handed on; False if it was handed on before. An
        event without an id, and one that stands for several (`merged_events`), is always new."""
        if not event.event_id:
            return True
        key = (event.source, event.event_id)
        if key in self._known:
            return event.merged_events > 1
        self._known[key] = None
        if len(self._known) > CAPACITY:
            self._known.popitem(last=False)
        return True
