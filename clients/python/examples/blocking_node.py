"""A node without an event loop: watches accounts on one thread, and publishes on another.

    python blocking_node.py --node-id imap-1 --gateway 10.0.0.1 alice bob

Each line of its input publishes a change of the account that it names, and is answered when the
gateway has accepted it. Prints the account of each change that other nodes publish.
"""

from __future__ import annotations

import argparse
import sys
import threading

from trunkline import Client, SubscribeOptions
from trunkline.blocking import BlockingClient, BlockingWatch
from trunkline.v1 import Event, Gap, MailboxChange


def read(watch: BlockingWatch) -> None:
    for notification in watch:
        if isinstance(notification, Event):
            print(f"{notification.mailbox_change.account_id} changed", flush=True)
        elif isinstance(notification, Gap):
            print("reload all accounts", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node-id", required=True)
    parser.add_argument("--gateway", action="append", help="several times for several gateways")
    parser.add_argument("account", nargs="*", help="whose changes are printed")
    args = parser.parse_args()
    client = BlockingClient(Client(args.node_id, args.gateway or ["127.0.0.1"]))
    with client, client.publisher() as publisher, client.watch(SubscribeOptions()) as watch:
        threading.Thread(target=read, args=[watch]).start()
        watch.add(*args.account)
        print("watching", flush=True)
        for line in sys.stdin:
            event = Event(mailbox_change=MailboxChange(account_id=line.strip()))
            publisher.publish(event).result()
            print(f"{line.strip()} published", flush=True)


if __name__ == "__main__":
    main()
