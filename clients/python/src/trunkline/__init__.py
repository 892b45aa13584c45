"""The Python client of Trunkline: README.md shows its use. `trunkline.v1` has the messages,
`trunkline.blocking` the client for programs without an event loop."""

from ._client import VERSION, Client
from ._credentials import Credentials
from ._errors import Error, ErrorKind, Status
from ._publisher import Publisher, PublisherOptions, WhenFull
from ._recent import RecentEvents
from ._subscription import Notification, Reconnecting, SubscribeOptions, Subscription, Token
from ._watch import Watch

__version__ = VERSION

__all__ = [
    "Client",
    "Credentials",
    "Error",
    "ErrorKind",
    "Notification",
    "Publisher",
    "PublisherOptions",
    "RecentEvents",
    "Reconnecting",
    "Status",
    "SubscribeOptions",
    "Subscription",
    "Token",
    "Watch",
    "WhenFull",
]
