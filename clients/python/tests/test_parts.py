"""Backoff, recent events, errors, addresses and tokens."""

import unittest
from unittest.mock import MagicMock

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2
from trunkline import Client, Credentials, Error, ErrorKind, RecentEvents, Status, Token
from trunkline._backoff import FIRST, MAX, MAX_REQUESTED, Backoff
from trunkline._errors import accepted_events, final_kind, nothing_published, unavailable
from trunkline._publisher import Takeovers
from trunkline._recent import CAPACITY
from trunkline.v1 import Event


class BackoffTest(unittest.TestCase):
    def test_waits_are_random_and_bounded(self) -> None:
        backoff = Backoff()
        waits = [backoff.next() for _ in range(200)]
        self.assertLessEqual(waits[0], FIRST)
        self.assertLessEqual(max(waits), MAX)
        # Full jitter: all of the range is used.
        self.assertLess(min(waits[10:]), MAX / 4)
        self.assertGreater(max(waits[10:]), MAX / 4 * 3)

    def test_the_requested_wait_is_kept_up_to_a_limit(self) -> None:
        backoff = Backoff()
        self.assertEqual(backoff.next(5.0), 5.0)
        self.assertEqual(backoff.next(86_400.0), MAX_REQUESTED)


class RecentEventsTest(unittest.TestCase):
    def test_an_event_is_new_once_for_each_source(self) -> None:
        recent = RecentEvents()
        order = [("a", "1"), ("b", "1"), ("a", "2"), ("a", "1"), ("b", "1")]
        new = [recent.is_new(Event(source=source, event_id=id_)) for source, id_ in order]
        self.assertEqual(new, [True, True, True, False, False])

    def test_one_without_an_id_and_one_that_stands_for_several_are_always_new(self) -> None:
        recent = RecentEvents()
        self.assertTrue(recent.is_new(Event()) and recent.is_new(Event()))
        self.assertTrue(recent.is_new(Event(event_id="1")))
        self.assertTrue(recent.is_new(Event(event_id="1", merged_events=2)))
        self.assertFalse(recent.is_new(Event(event_id="1", merged_events=1)))

    def test_the_last_events_are_remembered_and_no_more(self) -> None:
        recent = RecentEvents()
        self.assertTrue(all(recent.is_new(Event(event_id=str(n))) for n in range(CAPACITY + 1)))
        self.assertFalse(recent.is_new(Event(event_id="1")))
        self.assertTrue(recent.is_new(Event(event_id="0")), "the oldest is forgotten")


def status(code: grpc.StatusCode, reason: str, **metadata: str) -> Status:
    info = error_details_pb2.ErrorInfo(reason=reason, domain="trunkline", metadata=metadata)
    detail = Any()
    detail.Pack(info)
    return Status(code, "text", (detail,))


class TakeoversTest(unittest.TestCase):
    def test_a_takeover_is_final_unless_a_stream_of_its_own_may_have_come_late(self) -> None:
        codes = grpc.StatusCode
        taken_over = status(codes.ABORTED, "TAKEN_OVER")
        takeovers = Takeovers()
        # Gateways that ended a stream do not open it later.
        self.assertIsNone(takeovers.final_kind(status(codes.UNAVAILABLE, "DRAINING")))
        self.assertEqual(takeovers.final_kind(taken_over), ErrorKind.TAKEN_OVER)
        self.assertIsNone(takeovers.final_kind(unavailable("no answer in time")))
        self.assertIsNone(takeovers.final_kind(taken_over))
        self.assertEqual(takeovers.final_kind(taken_over), ErrorKind.TAKEN_OVER)
        never_sent = Status(codes.ALREADY_EXISTS, "")
        self.assertEqual(takeovers.final_kind(never_sent), ErrorKind.TAKEN_OVER)


class ErrorTest(unittest.TestCase):
    def test_final_statuses_differ_from_those_that_may_be_retried(self) -> None:
        codes = grpc.StatusCode
        for code in (codes.UNAVAILABLE, codes.UNKNOWN, codes.INTERNAL, codes.CANCELLED):
            self.assertIsNone(final_kind(Status(code, "")), code)
        self.assertIsNone(final_kind(status(codes.RESOURCE_EXHAUSTED, "LIMIT_REACHED")))
        slow = status(codes.RESOURCE_EXHAUSTED, "SUBSCRIBER_TOO_SLOW")
        self.assertIs(final_kind(slow), ErrorKind.TOO_SLOW)
        self.assertIs(final_kind(Status(codes.INVALID_ARGUMENT, "")), ErrorKind.INVALID)
        self.assertIs(final_kind(Status(codes.UNAUTHENTICATED, "")), ErrorKind.DENIED)
        self.assertIs(final_kind(Status(codes.UNIMPLEMENTED, "")), ErrorKind.UNSUPPORTED)

    def test_nothing_was_published_only_if_it_is_certain(self) -> None:
        code = grpc.StatusCode.UNAVAILABLE
        self.assertTrue(nothing_published(status(code, "BUS_UNAVAILABLE")))
        self.assertFalse(nothing_published(status(code, "OUTCOME_UNKNOWN")))
        self.assertFalse(nothing_published(unavailable("Socket closed")))

    def test_accepted_events_are_those_of_the_bitmap(self) -> None:
        def of(bitmap: str) -> list[int]:
            code = grpc.StatusCode.UNAVAILABLE
            return accepted_events(status(code, "PARTLY_ACCEPTED", accepted_events=bitmap))

        self.assertEqual(of("c4"), [0, 1, 5])
        self.assertEqual(of("0x1"), [11], "a digit that is none marks no event")
        self.assertEqual(of(""), [])

    def test_an_error_tells_what_failed_and_why(self) -> None:
        why = Status(grpc.StatusCode.INVALID_ARGUMENT, "node_id: is required")
        self.assertEqual(str(Error(ErrorKind.INVALID, why)), "refused: node_id: is required")


class AddressTest(unittest.TestCase):
    def test_an_address_has_a_default_port_and_a_scheme_that_follows_the_certificates(self) -> None:
        plain, tls = Credentials(), Credentials(ca_certificate=b"pem")
        for address, expected in (
            ("gateway-1", "gateway-1:7420"),
            ("10.0.0.1", "10.0.0.1:7420"),
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("::1", "[::1]:7420"),
            ("[::1]", "[::1]:7420"),
            ("[::1]:80", "[::1]:80"),
            ("gateway-1/", "gateway-1:7420"),
        ):
            self.assertEqual(plain.target(address), (expected, False))
            self.assertEqual(tls.target(address), (expected, True))
            self.assertEqual(tls.target(f"http://{address}"), (expected, False))
            self.assertEqual(plain.target(f"https://{address}"), (expected, True))
        wrong = "", "http://", "redis://a", "a b", "a:x", "a:0", "a:99999", "a/b", "u@a", "a?b"
        for address in (*wrong, ":80", "a:", "a#b"):
            with self.assertRaises(Error, msg=address) as raised:
                plain.target(address)
            self.assertIs(raised.exception.kind, ErrorKind.ADDRESS)

    def test_gateways_are_tried_in_a_random_order_unless_asked_otherwise(self) -> None:
        gateways = [f"gateway-{number}" for number in range(20)]

        def order(in_order: bool) -> list[str]:
            client = Client("n", gateways, in_order=in_order)
            return [client._gateway(number).address for number in range(len(gateways))]

        self.assertEqual(order(in_order=True), gateways)
        self.assertNotEqual(order(in_order=False), order(in_order=False))
        self.assertEqual(sorted(order(in_order=False)), sorted(gateways))

    def test_a_secret_is_not_shown(self) -> None:
        credentials = Credentials(None, b"secret", b"secret", "secret")
        self.assertNotIn("secret", repr(credentials))
        self.assertEqual(credentials.metadata, [("authorization", "Bearer secret")])
        for wrong in ({"token": "a\nb"}, {"client_key": b"key"}):
            with self.assertRaises(ValueError):
                Credentials(**wrong)

    def test_a_token_knows_its_stream_and_is_bytes(self) -> None:
        token = Token.of(3, b"abc")
        self.assertEqual((token, token.stream, Token(b"abc").stream), (b"abc", 3, 0))


class AcknowledgeTest(unittest.TestCase):
    def test_only_what_came_on_the_open_stream_is_acknowledged(self) -> None:
        """A gateway ends a stream on which a token of another one is acknowledged."""
        watch = Client("n").watch()
        watch.acknowledge(Token.of(0, b"no stream"))
        watch._stream, watch._streams = MagicMock(), 2
        watch.acknowledge(Token.of(1, b"earlier"))
        watch.acknowledge(Token(b"of another process"))
        watch.acknowledge()
        self.assertEqual(len(watch._watching.outgoing), 0)
        watch.acknowledge(Token.of(2, b"this one"))
        (request,) = watch._watching.outgoing
        self.assertEqual(request.acknowledge.resume_token, b"this one")


if __name__ == "__main__":
    unittest.main()
