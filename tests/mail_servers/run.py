"""Real mail servers that do not know Trunkline, on agents: how long they hear nothing, and whether
what one does during an outage is in force at the other.

    run.py --lab FOLDER --trunkline BINARY [--long] [--only NAME]... [--json FILE]

The folder has the mail server and what sets up two nodes of it: `lab.sh`, `lablib.py` and the
binary. Nothing is written there. The nodes look for Redis at one name and port, which is an agent
of its own for each of them: they run with hosts files of their own.

Each line is a row of docs/agent.md; the exit code is 1 if one does not hold. `--long` adds what
takes minutes: a Redis that is away for 70 s, one that is frozen for 20 s, and the same nodes on
Redis directly.
"""

import argparse
import atexit
import json
import os
import queue
import re
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

# The address where the nodes look for Redis. Each resolves the name on its own.
NAME, PORT = "coordinator.lab.test", int(os.environ.get("LAB_REDIS_PORT", "18379"))
HOSTS = ("127.0.0.1", "127.0.0.2")

# What must hold, in seconds after an outage is over.
HEARS_AFTER, IN_FORCE_AFTER = 0.5, 1.0

# The same for random faults, where processes have yet to start.
RANDOM_FAULTS_AFTER = 2.0

# MB of an agent that serves one node.
OWN_MEMORY = 10


def say(*words):
    print(*words, flush=True)


def free_port():
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait(what, condition, limit=30.0):
    """Until the condition holds; its value."""
    end = time.time() + limit
    while True:
        value = condition()
        if value:
            return value
        if time.time() > end:
            raise TimeoutError(what)
        time.sleep(0.01)


class Process:
    """A process of this run. All of them end with it."""

    def __init__(self, name, command, folder, **more):
        self.name, self.command, self.more = name, command, more
        self.log = Path(folder) / f"{name}.log"
        self.process = None
        atexit.register(self.kill)

    def start(self):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, **self.more
            )
        return self

    def send(self, number):
        self.process.send_signal(number)

    def memory(self):
        """Its own, and with the pages of its file that are resident, in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        kib = [int(re.search(rf"{key}:\s+(\d+) kB", status)[1]) for key in ("RssAnon", "VmRSS")]
        return [round(each * 1024 / 1e6, 1) for each in kib]

    def stop(self):
        self.send(signal.SIGTERM)
        self.process.wait(20)

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class World:
    """Redis, two gateways, two agents and two nodes."""

    def __init__(self, arguments, folder):
        self.folder, self.lab = Path(folder), Path(arguments.lab)
        self.env = {
            **os.environ,
            "LAB": str(self.folder / "lab"),
            "BIN": mail_server(arguments.lab, folder),
            "LAB_REDIS_PORT": str(PORT),
        }
        self.redis_port = free_port()
        self.redis = self.redis_at("redis", ["127.0.0.1"], self.redis_port)
        self.direct = self.redis_at("direct", HOSTS, PORT)
        ports = [free_port() for _ in range(4)]
        self.gateways = [
            Process(
                f"gateway-{n}",
                [arguments.trunkline, "serve", "--listen", f"127.0.0.1:{ports[n]}"]
                + ["--admin", f"127.0.0.1:{ports[2 + n]}"]
                + ["--redis", f"redis://127.0.0.1:{self.redis_port}"],
                folder,
                env=clean(),
            )
            for n in (0, 1)
        ]
        self.urls = [f"http://127.0.0.1:{ports[n]}" for n in (0, 1)]
        self.admin = ports[2:]
        self.trunkline = arguments.trunkline
        self.sockets, self.agents = [], []

    def redis_at(self, name, hosts, port):
        command = ["redis-server", "--port", str(port), "--bind", *hosts, "--save", ""]
        command += ["--appendonly", "no", "--dir", str(self.folder)]
        return Process(name, command, self.folder)

    def script(self, *arguments, host=None):
        """Runs the laboratory's script, with a hosts file of its own."""
        command = ["bash", str(self.lab / "lab.sh"), *arguments]
        if host:
            hosts = self.folder / f"hosts-{host}"
            hosts.write_text(f"{host} {NAME}\n127.0.0.1 localhost\n")
            mount = 'mount --bind "$0" /etc/hosts && exec "$@"'
            command = ["unshare", "-m", "bash", "-c", mount, str(hosts), *command]
        with (self.folder / "lab.log").open("ab") as log:
            subprocess.run(command, env=self.env, stdout=log, stderr=log, check=True, timeout=120)

    def start_node(self, n):
        self.script("start", f"n{n}", host=HOSTS[n])

    def stop_nodes(self):
        self.script("stop", "n0", "n1")

    def start_gateways(self):
        for gateway in self.gateways:
            gateway.start()

    def serving(self, *which):
        for n in which or (0, 1):
            wait(f"gateway {n}", lambda n=n: get(self.admin[n], "/readyz") == 200)

    def make_agents(self):
        """Agents whose listening sockets outlive them: nobody else can listen there any more."""
        for n, host in enumerate(HOSTS):
            first, second = self.urls[n], self.urls[1 - n]
            state = self.folder / f"state-{n}"
            state.mkdir(mode=0o700)
            command = [self.trunkline, "agent", "--node-id", f"agent-{n}"]
            command += ["--gateway", f"{first},{second}", "--mail-server", "0.16.19"]
            command += ["--state-dir", str(state)]
            # As systemd hands it over: as descriptor 3, to the process that has this id.
            self.sockets.append(listening(host))
            fd = self.sockets[n].fileno()
            script = f'exec 3<&{fd}; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"'
            command = ["bash", "-c", script, "agent", *command]
            more = {"env": clean(), "pass_fds": [fd]}
            self.agents.append(Process(f"agent-{n}", command, self.folder, **more))

    def start_agents(self):
        self.make_agents()
        for n in (0, 1):
            self.agents[n].start()
            wait(f"agent {n}", lambda n=n: answers(HOSTS[n]))


def clean():
    """The environment without what configures Trunkline."""
    return {key: value for key, value in os.environ.items() if not key.startswith("TRUNKLINE_")}


def listening(host):
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((host, PORT))
    server.listen(128)
    return server


def get(port, path):
    try:
        with closing(socket.create_connection(("127.0.0.1", port), 1)) as s:
            s.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            return int(s.recv(64).split()[1])
    except (OSError, IndexError, ValueError):
        return None


def answers(host, port=PORT):
    try:
        with closing(socket.create_connection((host, port), 1)) as s:
            s.sendall(b"PING\r\n")
            s.settimeout(2)
            return s.recv(16).startswith(b"+PONG")
    except OSError:
        return False


class Listener:
    """An IMAP IDLE session at a node that notes when it hears of new mail."""

    def __init__(self, node, user="alice"):
        self.session = lablib.Imap(node, user)
        self.session.ok("SELECT INBOX")
        self.session.idle()
        self.received = queue.SimpleQueue()
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        try:
            while (line := self.session.line(3600)) is not None:
                if " EXISTS" in line:
                    self.received.put((time.time(), int(line.split()[1])))
        except (EOFError, OSError):
            pass

    def next(self, limit=30.0):
        """When it was notified of mail, and how much there is."""
        try:
            return self.received.get(timeout=limit)
        except queue.Empty:
            return None

    def close(self):
        self.session.close()


class Appender:
    """Appends a message at a node ten times a second."""

    def __init__(self, node, user="alice"):
        self.session = lablib.Imap(node, user)
        selected = " ".join(self.session.ok("SELECT INBOX"))
        # Messages that are there.
        self.stored = int(re.search(r"\* (\d+) EXISTS", selected)[1])
        self.stopping = threading.Event()
        self.longest = 0.0
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.stopping.wait(0.1):
            begun = time.time()
            self.session.append()
            self.stored += 1
            self.longest = max(self.longest, time.time() - begun)

    def close(self):
        self.stopping.set()
        self.thread.join()
        self.session.close()


def percentile(values, part):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def latency(count):
    """Milliseconds from an APPEND at one node until an IDLE at the other hears of it."""
    listener, writer = Listener(0), lablib.Imap(1, "alice")
    writer.append()
    listener.next()
    times = []
    for _ in range(count):
        begun = time.time()
        writer.append()
        received = listener.next()
        if received is None:
            raise TimeoutError("an APPEND was not received")
        times.append((received[0] - begun) * 1000)
        time.sleep(0.01)
    listener.close()
    writer.close()
    return round(statistics.median(times), 1), round(percentile(times, 0.99), 1)


def stores(seconds, sessions=4):
    """STOREs a second at one node, and the longest of them."""
    clients = []
    for number in range(sessions):
        client = lablib.Imap(1, "alice")
        box = f"store{number}"
        client.cmd(f"CREATE {box}")
        client.append(box)
        client.ok(f"SELECT {box}")
        clients.append(client)
    counts, longest = [0] * sessions, [0.0] * sessions
    end = time.time() + seconds

    def run(number):
        client, sign = clients[number], "+"
        while (begun := time.time()) < end:
            client.ok(f"STORE 1 {sign}FLAGS.SILENT (\\Seen)")
            sign = "-" if sign == "+" else "+"
            counts[number] += 1
            longest[number] = max(longest[number], time.time() - begun)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(sessions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients:
        client.close()
    return round(sum(counts) / seconds), round(max(longest), 2)


def throughput(count, most=40_000):
    """Messages of one event a second, from a program at one agent to one at the other, with at most
    so many on their way."""
    # A change id of four bytes, so that an event has seven: the rest of a message is its sender.
    first, size = 1 << 21, 7
    subscriber = socket.create_connection((HOSTS[1], PORT), 10)
    subscriber.sendall(b"SUBSCRIBE stwt.agora\r\n")
    lines = subscriber.makefile("rb", 1 << 20)
    arrived, done = [0], threading.Event()

    def receive():
        while arrived[0] < count:
            line = lines.readline()
            if line == b"$10\r\n" and lines.readline() == b"stwt.agora\r\n":
                length = lines.readline()
                if length.startswith(b"$"):
                    payload = lines.read(int(length[1:]) + 2)[3:-2]
                    if len(payload) % size == 0 and payload[:1] == b"\0":
                        arrived[0] += len(payload) // size
        done.set()

    threading.Thread(target=receive, daemon=True).start()
    publisher = socket.create_connection((HOSTS[0], PORT), 10)

    def drain():
        with suppress(OSError):
            while publisher.recv(1 << 20):
                pass

    threading.Thread(target=drain, daemon=True).start()
    command = b"*3\r\n$7\r\nPUBLISH\r\n$10\r\nstwt.agora\r\n$8\r\n\x05\0%s\x01\x01\r\n"
    pieces = []
    for at in range(0, count, 1000):
        changes = range(first + at, first + min(at + 1000, count))
        pieces.append(b"".join(command % lablib.leb(change) for change in changes))
    begun, sent = time.time(), 0
    for piece in pieces:
        while sent - arrived[0] > most:
            time.sleep(0.0005)
        publisher.sendall(piece)
        sent += 1000
    if not done.wait(60):
        raise TimeoutError(f"{arrived[0]} of {count} events arrived")
    seconds = time.time() - begun
    publisher.close()
    subscriber.close()
    return round(count / seconds)


def deaf(outage):
    """Seconds from the end of an outage until new mail is received of, and the longest APPEND."""
    listener, appender = Listener(0), Appender(1)
    for _ in range(3):
        if listener.next() is None:
            raise TimeoutError("nothing is received before the outage")
    over = outage()
    limit = time.time() + 150
    after = None
    while after is None:
        received = listener.next(max(0.1, limit - time.time()))
        if received is None:
            break
        if received[0] >= over:
            after = round(received[0] - over, 2)
    appender.close()
    listener.close()
    return after, round(appender.longest, 2)


class Changes:
    """Changes that an administrator or an attacker makes at node 1, and whether they are in force
    at node 0."""

    rounds = 0

    def __init__(self):
        Changes.rounds += 1
        self.round = Changes.rounds
        self.polls = 0
        self.old = lablib.USERS["bob"]
        self.new = f"changed-violin-orbit-{self.round}"
        self.banned = f"127.0.9.{self.round}"
        self.alias, self.list = f"alias{self.round}", f"list{self.round}"
        self.host = f"host{self.round}.{lablib.DOMAIN}"
        self.certificate, self.key = certificate(self.host)
        self.bob, self.carol = account_id("bob"), account_id("carol")
        self.checks = {
            "password": self.password_changed,
            "permission": self.permission_removed,
            "ban": self.is_banned,
            "alias": lambda: self.is_recipient(self.alias),
            "list": lambda: self.is_recipient(self.list),
            "certificate": self.is_shown,
            "queue pause": self.is_paused,
        }
        # Node 0 has all of it in its caches, as it was.
        wait("a node as before", lambda: not any(check() for check in self.checks.values()))

    def source(self):
        # Wrong passwords of one address would ban it.
        self.polls += 1
        return f"127.{10 + self.round}.{self.polls // 250}.{self.polls % 250 + 1}"

    def make(self):
        secret = {"@type": "Password", "secret": self.new}
        lablib.update(1, "Account", self.bob, {"credentials": {"0": secret}})
        disabled = {"disabledPermissions": {"imapSelect": True}, "enabledPermissions": {}}
        permissions = {"@type": "Merge", **disabled}
        lablib.update(1, "Account", self.carol, {"permissions": permissions})
        for _ in range(6):
            try:
                with closing(lablib.Imap(1, src=self.banned)) as client:
                    client.cmd("LOGIN nobody@lab.test wrong")
            except (EOFError, OSError):
                break
        domain = lablib.reg(1, "Domain", "query", filter={"name": lablib.DOMAIN})["ids"][0]
        aliases = {"0": {"name": self.alias, "domainId": domain}}
        lablib.update(1, "Account", self.bob, {"aliases": aliases})
        recipients = {f"bob@{lablib.DOMAIN}": True}
        values = {"name": self.list, "domainId": domain, "recipients": recipients}
        lablib.create(1, "MailingList", values)
        text = {"certificate": {"@type": "Text", "value": self.certificate}}
        text["privateKey"] = {"@type": "Text", "secret": self.key}
        lablib.create(1, "Certificate", text)
        lablib.action(1, "ReloadTlsCertificates")
        lablib.action(1, "PauseMtaQueue")
        early = [name for name, check in self.checks.items() if check()]
        if early:
            raise AssertionError(f"in force before the outage is over: {early}")

    def in_force(self):
        """Seconds until each change is in force at node 0; None: not within 20 s."""
        begun, found = time.time(), {}
        while time.time() < begun + 20 and len(found) < len(self.checks):
            for name, check in self.checks.items():
                if name not in found and check():
                    found[name] = round(time.time() - begun, 2)
            time.sleep(0.02)
        return {name: found.get(name) for name in self.checks}

    def undo(self):
        secret = {"@type": "Password", "secret": self.old}
        lablib.update(1, "Account", self.bob, {"credentials": {"0": secret}, "aliases": {}})
        lablib.update(1, "Account", self.carol, {"permissions": {"@type": "Inherit"}})
        lablib.action(1, "ResumeMtaQueue")
        wait("a password as before", lambda: not self.password_changed())

    def password_changed(self):
        auth = (f"bob@{lablib.DOMAIN}", self.old)
        return lablib.http_(0, "GET", "/jmap/session", auth=auth, src=self.source())[0] == 401

    def permission_removed(self):
        client = lablib.Imap(0, "carol")
        try:
            return " OK" not in client.cmd("SELECT INBOX")[-1]
        except EOFError:
            return True
        finally:
            client.close()

    def is_banned(self):
        try:
            client = lablib.Imap(0, src=self.banned)
        except (EOFError, OSError):
            return True
        client.close()
        return client.greet is None

    def lmtp(self):
        # Of one address, a node takes five connections a second.
        source = (self.source(), 0)
        return socket.create_connection(("127.0.0.1", lablib.port(0, "lmtp")), 10, source)

    def lmtp_answers(self, *commands):
        """A connection on which these were sent, and the answer to the last one."""
        s = self.lmtp()
        lines = s.makefile("rb")

        def answer():
            while (line := lines.readline())[3:4] == b"-":
                pass
            return line

        last = answer()
        for command in commands:
            s.sendall(command.encode() + b"\r\n")
            last = answer()
        return s, last

    def is_recipient(self, name):
        recipient = f"RCPT TO:<{name}@{lablib.DOMAIN}>"
        with suppress(OSError):
            commands = "LHLO x.test", "MAIL FROM:<a@elsewhere.test>", recipient
            s, answer = self.lmtp_answers(*commands)
            s.close()
            return answer.startswith(b"250")
        return False

    def is_shown(self):
        """Whether the node shows the certificate for its name."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with suppress(OSError):
            s, _ = self.lmtp_answers("LHLO x.test", "STARTTLS")
            with closing(context.wrap_socket(s, server_hostname=self.host)) as shown:
                return shown.getpeercert(True) == ssl.PEM_cert_to_DER_cert(self.certificate)
        return False

    def is_paused(self):
        """The log of the node tells: what a queue does not do takes time to be seen."""
        text = (Path(os.environ["LAB"]) / "n0.log").read_text(errors="replace")
        states = re.findall(r'details = "MtaQueue(\w+)"', text)
        return bool(states) and states[-1] == "Paused"


def certificate(name):
    """A new certificate that it signs itself, and its key."""
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 7"
    command += f" -subj /CN={name} -addext subjectAltName=DNS:{name}"
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / file) for file in ("certificate", "key")]
        command = ["openssl", *command.split(), "-out", files[0], "-keyout", files[1]]
        subprocess.run(command, check=True, capture_output=True)
        return [Path(file).read_text() for file in files]


def account_id(name):
    for account in lablib.reg(1, "Account", "get", ids=None)["list"]:
        if account["name"] == name:
            return account["id"]
    raise KeyError(name)


class Outages:
    """What goes wrong. Each begins, lasts, ends, and tells when it was over."""

    def __init__(self, world, redis, port):
        self.world, self.redis, self.port = world, redis, port

    def redis_away(self, seconds, during=None):
        self.redis.stop()
        self.last(seconds, during)
        self.redis.start()
        wait("Redis", lambda: answers("127.0.0.1", self.port))
        return time.time()

    def redis_frozen(self, seconds, during=None):
        self.redis.send(signal.SIGSTOP)
        self.last(seconds, during)
        over = time.time()
        self.redis.send(signal.SIGCONT)
        return over

    def gateway_killed(self, seconds, during=None):
        """The one that agent 0 uses; the other one lives."""
        over = time.time()
        self.world.gateways[0].kill()
        self.last(seconds, during)
        self.world.gateways[0].start()
        return over

    def gateways_killed(self, seconds, during=None):
        for gateway in self.world.gateways:
            gateway.kill()
        self.last(seconds, during)
        self.world.start_gateways()
        self.world.serving()
        return time.time()

    def agent_restarted(self, seconds, during=None):
        self.world.agents[0].stop()
        self.last(seconds, during)
        over = time.time()
        self.world.agents[0].start()
        return over

    def agent_killed(self, seconds, during=None):
        self.world.agents[0].kill()
        self.last(seconds, during)
        over = time.time()
        self.world.agents[0].start()
        return over

    @staticmethod
    def last(seconds, during):
        begun = time.time()
        if during:
            during()
        time.sleep(max(0.0, begun + seconds - time.time()))


class Results:
    def __init__(self, only, slack):
        self.only, self.slack, self.rows, self.failed = only, slack, [], False

    def wanted(self, name):
        return not self.only or any(part in name for part in self.only)

    def within(self, name, value, limit):
        limit *= self.slack
        self.row(name, value, value is not None and value <= limit, limit)

    def row(self, name, value, good=True, limit=""):
        self.failed |= not good
        self.rows.append({"check": name, "value": value, "limit": limit, "ok": bool(good)})
        say(f"{'ok  ' if good else 'FAIL'} {name}: {value}{f' (at most {limit})' if limit else ''}")


def on_redis_directly(world, results):
    """The same nodes without Trunkline."""
    world.direct.start()
    wait("Redis", lambda: answers(HOSTS[1]))
    world.start_node(0)
    world.start_node(1)
    if results.wanted("direct latency"):
        results.row("on Redis directly: APPEND until EXISTS, p50 and p99, ms", latency(200))
    if results.wanted("direct store"):
        results.row("on Redis directly: STORE/s, longest s", stores(5))
        world.direct.send(signal.SIGSTOP)
        frozen = stores(20)
        world.direct.send(signal.SIGCONT)
        results.row("on Redis directly, frozen: STORE/s, longest s", frozen)
    if results.wanted("direct deaf"):
        direct = Outages(world, world.direct, PORT)
        after, _ = deaf(lambda: direct.redis_away(5))
        results.row("on Redis directly: deaf after Redis away 5 s, s", after)
    world.stop_nodes()
    world.direct.stop()


def measure(world, results, long, seed):
    outages = Outages(world, world.redis, world.redis_port)
    carol = {"@type": "User", "name": "carol", "description": "carol"}
    if long:
        on_redis_directly(world, results)
    world.redis.start()
    world.start_gateways()
    world.serving()
    world.start_agents()
    world.start_node(0)
    world.start_node(1)
    domain = lablib.reg(1, "Domain", "query", filter={"name": lablib.DOMAIN})["ids"][0]
    secret = {"@type": "Password", "secret": lablib.USERS["carol"]}
    lablib.create(1, "Account", {**carol, "domainId": domain, "credentials": {"0": secret}})

    if results.wanted("memory"):
        # Once it has reported that there is a node.
        time.sleep(1.5)
        own, resident = world.agents[0].memory()
        results.row("memory of an agent with one node, MB: resident", resident)
        results.row("of it its own, without its file", own, own <= OWN_MEMORY, OWN_MEMORY)
    if results.wanted("latency"):
        results.row("APPEND until EXISTS, p50 and p99, ms", latency(200 if long else 60))

    def hears(name, outage):
        name = f"deaf after {name}, s"
        if not results.wanted(name):
            return
        after, longest = deaf(outage)
        results.within(name, after, HEARS_AFTER)
        results.row(f"longest APPEND meanwhile, s: {name}", longest)
        world.serving()

    def in_force(name, outage):
        name = f"changes during: {name}"
        if not results.wanted(name):
            return
        changes = Changes()
        outage(during=changes.make)
        found = changes.in_force()
        for change, after in found.items():
            results.within(f"{name}: {change}, s", after, IN_FORCE_AFTER)
        world.serving()
        changes.undo()

    hears("Redis away 5 s", lambda: outages.redis_away(5))
    in_force("Redis away", lambda during: outages.redis_away(5, during))
    if long:
        hears("Redis away 70 s", lambda: outages.redis_away(70))
    hears("Redis frozen", lambda: outages.redis_frozen(20 if long else 5))
    in_force("Redis frozen", lambda during: outages.redis_frozen(5, during))
    hears("a gateway is killed", lambda: outages.gateway_killed(3))
    in_force("both gateways away", lambda during: outages.gateways_killed(5, during))
    hears("the agent is restarted", lambda: outages.agent_restarted(2))
    in_force("the agent restarted", lambda during: outages.agent_restarted(3, during))
    hears("the agent is killed", lambda: outages.agent_killed(2))
    in_force("the agent killed", lambda during: outages.agent_killed(3, during))
    if results.wanted("node started first"):
        world.stop_nodes()
        for gateway in world.gateways:
            gateway.kill()
        world.redis.stop()
        world.start_node(0)
        world.start_node(1)
        listener, appender = Listener(0), Appender(1)
        time.sleep(2)
        world.redis.start()
        world.start_gateways()
        world.serving()
        over = time.time()
        received = listener.next(150)
        appender.close()
        listener.close()
        after = None if received is None else max(0.0, round(received[0] - over, 2))
        results.within("deaf after the nodes were started first, s", after, HEARS_AFTER)
    if results.wanted("random faults"):
        sessions = Listener(0), Appender(1)
        count, seconds = (200_000, 120) if long else (20_000, 20)
        limit = RANDOM_FAULTS_AFTER * results.slack
        # Not before there is a path to what the laboratory has.
        import random_faults

        rows = random_faults.run(world, HOSTS, PORT, sessions, count, seconds, seed, limit)
        for row in rows:
            results.row(*row)
        for session in sessions:
            session.close()
    # These fill the logs of the gateways, which give all of it to a Redis that has lost it.
    if results.wanted("store"):
        before = stores(5 if long else 3)
        results.row("STORE/s, longest s", before)
        world.redis.send(signal.SIGSTOP)
        frozen = stores(20 if long else 4)
        world.redis.send(signal.SIGCONT)
        good = frozen[0] >= before[0] / 2
        results.row("STORE/s while Redis is frozen, longest s", frozen, good)
        world.serving()
    if results.wanted("messages"):
        rate = throughput(1_000_000 if long else 200_000)
        results.row("messages of one event, one agent to the other, /s", rate)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lab", required=True)
    parser.add_argument("--trunkline", required=True)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--slack", type=float, default=1, help="multiplies the limits of times")
    parser.add_argument("--seed", type=int, default=1, help="of the random faults")
    parser.add_argument("--json")
    parser.add_argument("--keep", action="store_true", help="keep logs")
    arguments = parser.parse_args()
    arguments.trunkline = str(Path(arguments.trunkline).resolve())
    arguments.lab = str(Path(arguments.lab).resolve())
    folder = tempfile.mkdtemp(prefix="trunkline-mail-servers-")
    # The last thing that happens, once all processes have ended.
    remove = []
    atexit.register(lambda: [shutil.rmtree(each, True) for each in remove])
    os.environ["LAB"] = str(Path(folder) / "lab")
    sys.path.insert(0, arguments.lab)
    sys.dont_write_bytecode = True
    import lablib as found

    globals()["lablib"] = found
    found.USERS["carol"] = "oboe-lantern-cellar-58"
    begun, finished = time.time(), False
    results = Results(arguments.only, arguments.slack)
    try:
        # Before agents hold the port: the set-up has a Redis of its own there.
        set_up(arguments, folder)
        measure(World(arguments, folder), results, arguments.long, arguments.seed)
        finished = True
    finally:
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(results.rows, indent=1))
        if arguments.keep or results.failed or not finished:
            say(f"logs: {folder}")
        else:
            remove.append(folder)
    say(f"{len(results.rows)} rows in {time.time() - begun:.0f} s")
    sys.exit(results.failed)


def set_up(arguments, folder):
    """Two nodes that find their coordinator by a name, once they are started again."""
    script = Path(arguments.lab) / "lab.sh"
    env = {**os.environ, "LAB_REDIS_PORT": str(PORT), "BIN": mail_server(arguments.lab, folder)}
    with (Path(folder) / "setup.log").open("ab") as log:

        def run(*step):
            command = ["bash", str(script), *step]
            subprocess.run(command, env=env, stdout=log, stderr=log, check=True, timeout=120)

        atexit.register(subprocess.run, ["bash", str(script), "stop"], env=env, stdout=-3)
        run("setup")
        run("start", "redis", "n0")
        url = f"redis://{NAME}:{PORT}"
        lablib.setting(0, "Coordinator", {"@type": "Redis", "url": url})
        # An address that is not known is answered at once, so that it can be asked for again.
        lablib.setting(0, "MtaStageRcpt", {"waitOnFail": {"match": {}, "else": "1ms"}})
        for listener in lablib.reg(0, "NetworkListener", "get", ids=None)["list"]:
            if listener["name"].startswith("lmtp"):
                lablib.update(0, "NetworkListener", listener["id"], {"useTls": True})
        run("stop")


def mail_server(lab, folder):
    """The binary: that of the laboratory, or where its script unpacks one."""
    unpacked = Path(lab) / "stalwart"
    return str(unpacked if unpacked.exists() else Path(folder) / "stalwart")


if __name__ == "__main__":
    main()
