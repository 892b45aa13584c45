"""A mail server's node as a command: prints what it would do for each event, and publishes.

    python mail_node.py --node-id imap-1 subscribe
    python mail_node.py --node-id mta-1 publish '{"mailboxChange": {"accountId": "a1"}}'
    python mail_node.py --node-id imap-1 --gateway gw.example.org:7420 --tls-ca ca.pem \\
        --token-file token subscribe
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import pathlib
import signal
import sys

from google.protobuf import json_format
from google.protobuf.message import Message
from trunkline import Client, Credentials, Error, Notification, SubscribeOptions
from trunkline.v1 import Event, Gap, Subscribed

# The duty of a mail server for each kind of event from another server of its cluster.
DUTIES = {
    "mailbox_change": "wake the IDLE and JMAP sessions of account {0.account_id}",
    "email_delivery": "push message {0.email_id} to the devices of account {0.account_id}",
    "calendar_alert": "show alert {0.alert_id} to account {0.account_id}",
    "push_subscription_change": "load the push subscriptions of account {0.account_id}",
    "blocked_ip": "change the ban of {0.address}",
    "certificate_change": "load certificate {0.certificate_id}",
    "registry_change": "load {0.object_type} {0.object_id}",
    "cache_invalidation": "drop the entries from the caches",
    "queue_status": "pause or resume the queue",
    "queue_refresh": "read the queue",
    "custom": "pass it to the handler of {0.type}",
}


def handle(notification: Notification) -> None:
    """Prints a JSON object per line where a mail server would act."""
    if isinstance(notification, Subscribed):
        show(subscribed=as_json(notification))
    elif isinstance(notification, Event):
        kind = notification.WhichOneof("kind")
        # A kind that a newer node publishes has no duty here.
        duty = DUTIES[kind].format(getattr(notification, kind)) if kind else "nothing"
        show(event=as_json(notification), duty=duty)
    elif isinstance(notification, Gap):
        # Missed events do not arrive later: reload whatever they may concern.
        duty = "drop all caches; load bans, settings and certificates; wake all sessions"
        show(gap=as_json(notification), duty=duty)


def as_json(message: Message) -> dict[str, object]:
    try:
        return json_format.MessageToDict(message)
    except TypeError:
        # The payload of a custom event has a type that this program does not know.
        known = Event.FromString(message.SerializeToString())
        known.custom.ClearField("payload")
        return json_format.MessageToDict(known)


def show(**parts: object) -> None:
    print(json.dumps(parts), flush=True)


async def subscribe(
    client: Client, heartbeat: float, resume_file: pathlib.Path | None
) -> None:
    token = resume_file.read_bytes() if resume_file and resume_file.exists() else b""
    options = SubscribeOptions(resume_token=token, heartbeat_interval=heartbeat)
    async with client.subscribe(options) as subscription:
        async for notification in subscription:
            handle(notification)
            if resume_file and subscription.resume_token != token:
                # Renamed into place, so that the file is never half written. A node that is killed
                # before that receives the batch again.
                token = subscription.resume_token
                draft = resume_file.with_suffix(".new")
                draft.write_bytes(token)
                os.replace(draft, resume_file)


async def publish(client: Client, texts: list[str]) -> None:
    events = [json_format.Parse(text, Event()) for text in texts]
    for position in await client.publish(*events):
        show(position=as_json(position))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--node-id", required=True)
    add("--gateway", action="append", help="may be given several times [127.0.0.1:7420]")
    add("--role", action="append", default=[])
    add("--heartbeat", type=int, default=10, help="seconds; a gateway that misses two is left")
    add("--tls-ca", type=pathlib.Path, help="authority of the gateways")
    add("--tls-cert", type=pathlib.Path, help="client certificate; needs --tls-key")
    add("--tls-key", type=pathlib.Path, help="private key of the client certificate")
    add("--token-file", type=pathlib.Path, help="file with the bearer token")
    commands = parser.add_subparsers(dest="command", required=True)
    subscribing = commands.add_parser(
        "subscribe", help="print events as they arrive, one JSON object per line"
    )
    subscribing.add_argument(
        "--resume-file", type=pathlib.Path, help="file that keeps the resume token over a restart"
    )
    publishing = commands.add_parser("publish", help="publish events in one request")
    publishing.add_argument("event", nargs="+", help="in proto3 JSON")
    args = parser.parse_args()
    if (args.tls_cert is None) != (args.tls_key is None):
        parser.error("--tls-cert and --tls-key go together")
    return args


def credentials(args: argparse.Namespace) -> Credentials:
    """What authenticates this node, and the gateways."""
    ca, certificate, key = (
        path and path.read_bytes() for path in (args.tls_ca, args.tls_cert, args.tls_key)
    )
    token = args.token_file and args.token_file.read_text()
    return Credentials(ca, certificate, key, token)


async def main() -> int:
    args = arguments()
    # SIGTERM ends the node between two messages.
    task = asyncio.current_task()
    assert task, "this is a task"
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    gateways = args.gateway or ["127.0.0.1"]
    node = Client(args.node_id, gateways, roles=args.role, credentials=credentials(args))
    async with node as client:
        try:
            if args.command == "subscribe":
                await subscribe(client, args.heartbeat, args.resume_file)
            else:
                await publish(client, args.event)
        except asyncio.CancelledError:
            pass
        except Error as error:
            print(error.status, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    try:
        sys.exit(asyncio.run(main()))
    except KeyboardInterrupt:
        pass
