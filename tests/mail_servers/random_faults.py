"""Many messages from one host to the other while everything fails at random.

A program on the second host publishes changes of accounts, each with a number of its own, one after
the other. A subscriber on the first host gets what the mail server there gets. Each change that was
answered must arrive there once, and those of an account in order; or a healing that names its
account must arrive after it was answered. The mail server itself has a session that is told of new
mail, which the other one stores all the time: it must hear of it again when a fault is over, and in
the end know of all of it.
"""

import random
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress

import lablib

# Accounts that no mail server of the laboratory has.
FIRST_ACCOUNT, ACCOUNTS = 1000, 500

# The program on the second host, in its messages; agents have their own.
PROGRAM, AGENT = 5, 65535

# Changes of a program have one type, and those of a healing all types.
EMAIL, SEVERAL = 1, 2

CHANNEL = b"stwt.agora"


class Connection:
    """A connection of a program. What it sent and was not answered is lost with it."""

    def __init__(self, address):
        self.socket = socket.create_connection(address, 10)
        self.socket.settimeout(30)
        self.lines = self.socket.makefile("rb", 1 << 16)

    def send(self, *commands):
        parts = []
        for command in commands:
            parts.append(b"*%d\r\n" % len(command))
            parts.extend(b"$%d\r\n%s\r\n" % (len(each), each) for each in command)
        self.socket.sendall(b"".join(parts))

    def line(self):
        line = self.lines.readline()
        if not line.endswith(b"\r\n"):
            raise EOFError
        return line[:-2]

    def bulk(self):
        length = int(self.line()[1:])
        data = self.lines.read(length + 2)
        if len(data) < length + 2:
            raise EOFError
        return data[:-2]

    def close(self):
        with suppress(OSError):
            self.socket.close()


class Sender(threading.Thread):
    """Publishes changes, evenly over a time."""

    TOGETHER = 20

    def __init__(self, address, count, seconds):
        super().__init__(daemon=True)
        self.address, self.count, self.seconds = address, count, seconds
        # Of those that were answered: when.
        self.answered = {}
        self.reconnects = 0

    def run(self):
        connection, begun = None, time.time()
        for first in range(1, self.count + 1, self.TOGETHER):
            numbers = range(first, min(first + self.TOGETHER, self.count + 1))
            time.sleep(max(0.0, begun + first / self.count * self.seconds - time.time()))
            try:
                if connection is None:
                    connection = Connection(self.address)
                connection.send(*((b"PUBLISH", CHANNEL, message(number)) for number in numbers))
                for number in numbers:
                    if connection.line()[:1] == b":":
                        self.answered[number] = time.time()
            except (OSError, EOFError):
                self.reconnects += 1
                if connection:
                    connection.close()
                connection = None
                time.sleep(0.02)


def account_of(number):
    return FIRST_ACCOUNT + number % ACCOUNTS


def message(number):
    parts = (number, EMAIL, account_of(number))
    return b"\x05\0" + b"".join(lablib.leb(part) for part in parts)


class Receiver(threading.Thread):
    """What a mail server gets."""

    def __init__(self, address):
        super().__init__(daemon=True)
        self.address = address
        self.received, self.times = [], {}
        # When a healing named an account last.
        self.named = {}
        self.healings = 0
        self.stopping = False

    def run(self):
        while not self.stopping:
            connection = None
            try:
                connection = Connection(self.address)
                connection.socket.settimeout(None)
                connection.send((b"SUBSCRIBE", CHANNEL))
                while True:
                    if connection.line() == b"*3" and connection.bulk() == b"message":
                        connection.bulk()
                        self.read(connection.bulk())
            except (OSError, EOFError):
                if connection:
                    connection.close()
                time.sleep(0.02)

    def read(self, payload):
        now = time.time()
        _, events = lablib.decode(payload)
        for event in events:
            if event["event"] == "CacheInvalidateAll":
                self.healings += 1
            elif event["event"] == "StateChange" and event["account_id"] >= FIRST_ACCOUNT:
                if len(event["type_names"]) >= SEVERAL:
                    self.named[event["account_id"]] = now
                else:
                    self.received.append(event["change_id"])
                    self.times[event["change_id"]] = now

    def missed(self, answered):
        """Those that neither arrived nor were healed."""
        return [
            number
            for number, at in list(answered.items())
            if number not in self.times and self.named.get(account_of(number), 0) < at
        ]


class Faults:
    """What fails, drawn from a seed."""

    def __init__(self, world, seed):
        self.world, self.random = world, random.Random(seed)
        self.counts, self.log = {}, []

    def next(self):
        """Lets something fail, until it is over: what it was, and when it was over."""
        world, seconds = self.world, self.random.uniform(0.5, 3)
        faults = {
            "Redis killed": (self.killed, [world.redis]),
            "Redis frozen": (self.frozen, [world.redis]),
            "gateway killed": (self.killed, [self.random.choice(world.gateways)]),
            "gateway frozen": (self.frozen, [self.random.choice(world.gateways)]),
            "both gateways killed": (self.killed, world.gateways),
            "agent killed": (self.killed, [self.random.choice(world.agents)]),
            "agent stopped": (self.stopped, [self.random.choice(world.agents)]),
            "connections to Redis cut": (self.cut, []),
        }
        name = self.random.choice(sorted(faults))
        self.counts[name] = self.counts.get(name, 0) + 1
        fault, processes = faults[name]
        begun = time.time()
        fault(processes, seconds)
        self.log.append((begun, time.time(), name, [process.name for process in processes]))
        return name, time.time()

    @staticmethod
    def killed(processes, seconds):
        Faults.away(processes, seconds, lambda one: one.kill(), lambda one: one.start())

    @staticmethod
    def stopped(processes, seconds):
        Faults.away(processes, seconds, lambda one: one.stop(), lambda one: one.start())

    @staticmethod
    def frozen(processes, seconds):
        freeze, thaw = signal.SIGSTOP, signal.SIGCONT
        Faults.away(processes, seconds, lambda one: one.send(freeze), lambda one: one.send(thaw))

    @staticmethod
    def away(processes, seconds, leave, come_back):
        """All of them leave, and come back later."""
        for process in processes:
            leave(process)
        time.sleep(seconds)
        for process in processes:
            come_back(process)

    def cut(self, _, seconds):
        end = time.time() + seconds
        while time.time() < end:
            for of in ("normal", "pubsub"):
                command = ["redis-cli", "-p", str(self.world.redis_port), "CLIENT", "KILL"]
                subprocess.run([*command, "TYPE", of, "SKIPME", "yes"], capture_output=True)
            time.sleep(0.3)


def run(world, hosts, port, sessions, count, seconds, seed, limit):
    """The rows of the result: name, value, whether it holds."""
    listener, appender = sessions
    receiver = Receiver((hosts[0], port))
    receiver.start()
    sender = Sender((hosts[1], port), count, seconds)
    faults, deaf = Faults(world, seed), []
    sender.start()
    while sender.is_alive():
        time.sleep(faults.random.uniform(0.5, 2))
        name, over = faults.next()
        received = next_after(listener, over)
        deaf.append((float("inf") if received is None else round(received - over, 2), name))
        world.serving()
    end = time.time() + 30
    while receiver.missed(sender.answered) and time.time() < end:
        time.sleep(0.1)
    receiver.stopping = True
    missed = receiver.missed(sender.answered)
    twice = len(receiver.received) - len(receiver.times)
    if missed:
        tell(missed, sender.answered, faults.log)
    last, disordered = {}, 0
    for number in receiver.received:
        account = account_of(number)
        disordered += last.get(account, 0) > number
        last[account] = max(last.get(account, 0), number)
    arrived = sum(number in receiver.times for number in sender.answered)
    healed = len(sender.answered) - arrived - len(missed)
    # The appender goes on: what it has stored by now is known within a moment.
    stored = appender.stored
    known = 0
    end = time.time() + 10
    while known < stored and time.time() < end:
        received = listener.next(1)
        known = max(known, received[1]) if received else known
    longest = max(deaf)
    of = ", ".join(f"{name} {times}" for name, times in sorted(faults.counts.items()))
    return [
        (f"random faults, seed {seed}", of, True),
        ("messages that were answered", len(sender.answered), len(sender.answered) > 0),
        ("arrived once, and in order", arrived, twice == 0 and disordered == 0),
        ("not arrived, and healed", healed, True),
        ("neither arrived nor healed", len(missed), not missed),
        ("arrived twice; out of order", (twice, disordered), twice == 0 and disordered == 0),
        ("healings", receiver.healings, True),
        ("longest time until the node hears again, s", longest, longest[0] <= limit),
        ("mail that the node's session knows of, of", (known, stored), known >= stored),
    ]


def tell(missed, answered, log):
    """Prints when those were answered that were missed, and what failed before and after."""
    moments = sorted({round(answered[number], 1) for number in missed})
    print(f"missed: {len(missed)}, answered at {moments[0]} to {moments[-1]}:", missed[:5])
    for begun, over, name, processes in log:
        marks = [number for number in missed if begun - 2 < answered[number] < over + 2]
        print(f"  {begun:.1f} to {over:.1f} {name} {processes}: {len(marks)} near it")


def next_after(listener, over, limit=60.0):
    """When the session is notified for the first time after that."""
    end = time.time() + limit
    while (left := end - time.time()) > 0:
        received = listener.next(left)
        if received and received[0] >= over:
            return received[0]
    return None
