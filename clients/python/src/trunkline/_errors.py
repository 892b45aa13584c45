"""Errors, by what a node can do about them."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"

_CODES: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

_M = TypeVar("_M", bound=Message)


class ErrorKind(enum.Enum):
    """The kind of an error, which tells what to do about it."""

    ADDRESS = "address"
    """An address of a gateway is not valid. Correct the node's configuration."""
    INVALID = "refused"
    """The gateway refused the request because something in it is wrong: see `Error.violations`.
    Nothing was published."""
    DENIED = "not allowed"
    """The node's credentials are missing or wrong, or do not allow the request. Nothing was
    published."""
    UNSUPPORTED = "not supported"
    """The server is not a gateway, or an older one that does not know the method."""
    TOO_SLOW = "disconnected"
    """The stream fell too far behind and `OVERFLOW_DISCONNECT` was asked for. Reload everything,
    and subscribe without a token."""
    FULL = "not taken"
    """The buffer of a publisher is full: the event was not taken."""
    TAKEN_OVER = "taken over"
    """Another process publishes under the id of this publisher: a copy of it, as a forked process
    or a restored image of a virtual machine is. Only the one that opened its stream last goes on.
    What was not acknowledged here may be published or not."""
    UNAVAILABLE = "not published in time"
    """No gateway accepted the events in time, and none can have published them."""
    OUTCOME_UNKNOWN = "not known whether published"
    """No gateway confirmed the events in time, but one may have published them: its response was
    lost or late. Publishing them again with the same request id is safe as long as gateways
    remember it (a minute unless configured)."""


@dataclass(frozen=True)
class Status:
    """The status of a gateway, or of the connection to it."""

    code: grpc.StatusCode
    message: str
    details: tuple[Any, ...] = ()

    def detail(self, kind: type[_M]) -> _M | None:
        """The detail of this type (AIP-193), if there is one."""
        for detail in self.details:
            message = kind()
            if detail.Unpack(message):
                return message
        return None

    @property
    def reason(self) -> str | None:
        """The reason that the gateway gave, such as `BUS_UNAVAILABLE`; None if it gave none."""
        info = self.detail(error_details_pb2.ErrorInfo)
        return info.reason if info and info.domain == "trunkline" else None

    @property
    def retry_delay(self) -> float | None:
        """The seconds after which the gateway asks for a retry; None if it does not ask."""
        info = self.detail(error_details_pb2.RetryInfo)
        return info.retry_delay.ToTimedelta().total_seconds() if info else None

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


class Error(Exception):
    """The error of a client."""

    def __init__(self, kind: ErrorKind, status: Status, accepted: Iterable[int] = ()) -> None:
        super().__init__(f"{kind.value}: {status.message}")
        self.kind = kind
        self.status = status
        """The last status of the gateway, or of the connection to it."""
        self.accepted_events = sorted(accepted)
        """The indexes of the events that were certainly published although the request failed. With
        `OUTCOME_UNKNOWN`, others may have been published too."""

    @property
    def violations(self) -> list[tuple[str, str]]:
        """The fields that are wrong, each with a description:
        `("events[3].mailbox_change.account_id", "is required")`."""
        bad = self.status.detail(error_details_pb2.BadRequest)
        return [(v.field, v.description) for v in bad.field_violations] if bad else []


def unavailable(message: str) -> Status:
    return Status(grpc.StatusCode.UNAVAILABLE, message)


def status_of_call(error: grpc.aio.AioRpcError) -> Status:
    """The status of a call, with its details."""
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                details = tuple(status_pb2.Status.FromString(value).details)
            except DecodeError:
                break
            return Status(error.code(), error.details() or "", details)
    return Status(error.code(), error.details() or "")


def error_of_message(status: status_pb2.Status) -> Error:
    """The error of a status that a message of a stream carries."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    found = Status(code, status.message, tuple(status.details))
    return Error(final_kind(found) or ErrorKind.INVALID, found)


def final_kind(status: Status) -> ErrorKind | None:
    """The kind of a status that is final; None if the request may be retried.

    All other codes may be retried: a gateway answers UNAVAILABLE, and a broken connection appears
    as UNKNOWN, INTERNAL, CANCELLED or UNAVAILABLE.
    """
    codes = grpc.StatusCode
    if status.code is codes.RESOURCE_EXHAUSTED and status.reason == "SUBSCRIBER_TOO_SLOW":
        return ErrorKind.TOO_SLOW
    return {
        codes.INVALID_ARGUMENT: ErrorKind.INVALID,
        codes.OUT_OF_RANGE: ErrorKind.INVALID,
        codes.FAILED_PRECONDITION: ErrorKind.INVALID,
        codes.NOT_FOUND: ErrorKind.INVALID,
        codes.ALREADY_EXISTS: ErrorKind.INVALID,
        codes.PERMISSION_DENIED: ErrorKind.DENIED,
        codes.UNAUTHENTICATED: ErrorKind.DENIED,
        codes.UNIMPLEMENTED: ErrorKind.UNSUPPORTED,
    }.get(status.code)


def nothing_published(status: Status) -> bool:
    """True if a publish request with this status certainly published nothing: the gateway says so,
    or there was no connection."""
    if status.reason:
        return status.reason in ("BUS_UNAVAILABLE", "DRAINING", "LIMIT_REACHED")
    # What gRPC says of requests that it has not sent.
    return status.message.startswith("failed to connect to all addresses")


def accepted_events(status: Status) -> list[int]:
    """The indexes of the events that the bus accepted, as a gateway reports that others were
    not."""
    info = status.detail(error_details_pb2.ErrorInfo)
    if info is None or info.domain != "trunkline":
        return []
    accepted = []
    for nth, digit in enumerate(info.metadata.get("accepted_events", "")):
        value = int(digit, 16) if digit in "0123456789abcdefABCDEF" else 0
        accepted += [4 * nth + bit for bit in range(4) if value & 8 >> bit]
    return accepted
