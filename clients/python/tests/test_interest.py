"""The accounts of a watch: what is sent for them, and when a change is in force."""

import unittest

from trunkline import Error
from trunkline._interest import MESSAGE_ACCOUNTS, Watching
from trunkline.v1 import InterestRejected, SubscribeRequest, WatchRequest


def names(begin: int, end: int) -> list[str]:
    return [f"a{number:06}" for number in range(begin, end)]


def sent(watching: Watching) -> list[WatchRequest]:
    requests = list(watching.outgoing)
    watching.outgoing.clear()
    return requests


def opened(accounts: list[str]) -> Watching:
    watching = Watching(accounts)
    watching.open(SubscribeRequest())
    sent(watching)
    return watching


class WatchingTest(unittest.TestCase):
    def test_an_interest_that_does_not_fit_one_message_comes_in_parts(self) -> None:
        watching = Watching(names(0, 12_000))
        # On each stream.
        for _ in range(2):
            watching.open(SubscribeRequest(node_id="n"))
            first, *rest = sent(watching)
            self.assertTrue(first.open.incomplete and first.open.accounts_named)
            self.assertEqual(first.open.subscribe.node_id, "n")
            self.assertEqual(len(first.open.subscribe.filter.accounts), MESSAGE_ACCOUNTS)
            parts = [
                (part.update.update_id, len(part.update.add.accounts), part.update.incomplete)
                for part in rest
            ]
            self.assertEqual(parts, [(1, 5000, True), (2, 2000, False)])
            watching.lost()

    def test_a_change_is_confirmed_by_its_update_or_by_the_next_stream(self) -> None:
        watching = opened(names(0, 1))
        outcomes: list[Error | None] = []
        watching.add(names(1, 2), outcomes.append)
        watching.add(names(2, 3), outcomes.append)
        watching.updated(1)
        self.assertEqual(outcomes, [None])
        watching.lost()
        self.assertEqual(sent(watching), [])
        watching.remove(names(0, 1), outcomes.append)
        watching.open(SubscribeRequest())
        (request,) = sent(watching)
        self.assertEqual(list(request.open.subscribe.filter.accounts), names(1, 3))
        self.assertEqual(outcomes, [None])
        watching.updated(0)
        self.assertEqual(outcomes, [None, None, None])

    def test_a_change_of_nothing_has_an_answer_too(self) -> None:
        watching = opened(["a"])
        outcomes: list[Error | None] = []
        watching.add(["a"], outcomes.append)
        self.assertEqual(len(sent(watching)), 1)
        watching.updated(1)
        self.assertEqual(outcomes, [None])

    def test_a_large_change_takes_effect_as_one(self) -> None:
        watching = opened([])
        watching.replace(names(0, 12_000), lambda error: None)
        parts = [request.update for request in sent(watching)]
        self.assertEqual([part.incomplete for part in parts], [True, True, False])
        watching.replace(names(11_999, 12_001), lambda error: None)
        parts = [request.update for request in sent(watching)]
        self.assertEqual([len(part.remove.accounts) for part in parts], [5000, 5000, 1999])
        added = [list(part.add.accounts) for part in parts]
        self.assertEqual(added, [names(12_000, 12_001), [], []])

    def test_a_rejected_change_is_undone(self) -> None:
        watching = opened(names(0, 2))
        outcomes: list[Error | None] = []
        watching.replace(names(1, 4), outcomes.append)
        watching.rejected(InterestRejected(update_id=1))
        self.assertIsInstance(outcomes[0], Error)
        watching.open(SubscribeRequest())
        (request,) = sent(watching)
        self.assertEqual(sorted(request.open.subscribe.filter.accounts), names(0, 2))

    def test_acknowledgements_that_wait_become_one(self) -> None:
        watching = opened([])
        watching.acknowledge(b"1")
        watching.acknowledge(b"2")
        watching.add(["a"], lambda error: None)
        watching.acknowledge(b"3")
        requests = sent(watching)
        arms = [request.WhichOneof("request") for request in requests]
        self.assertEqual(arms, ["acknowledge", "update", "acknowledge"])
        self.assertEqual(requests[0].acknowledge.resume_token, b"2")


if __name__ == "__main__":
    unittest.main()
