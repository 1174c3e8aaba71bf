"""A team that runs, driven by clients that know nothing of Natterjack: the `nats` command, and a bare socket.

The team is `natterjack up` with a process for each agent. What any NATS client does on these subjects is all there is
to taking part: events, questions, answering as an agent, the shared context, the stored streams, discovery.
"""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import socket
import subprocess
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from natterjack.testing import NatsServer
from natterjack.testing.command import LIMIT, Cli, Process

pytestmark = pytest.mark.open_mode(reason="they have no key")

TEAM = """\
[team]
name = "garden"
external = ["visitor.arrived"]

[context]
visitors = []

[agents.greeter]
kind = "agents:Greeter"
on = ["visitor.arrived"]
replicas = 2

[agents.relay]
kind = "agents:Relay"
"""

AGENTS = '''\
import json

from natterjack import Agent


class Greeter(Agent):
    """Greets visitors."""

    async def handle(self, event, ctx):
        await ctx.shared.update("visitors", lambda known: [*known, event.data["name"]])
        await ctx.emit("visitor.greeted", event.data)

    async def answer(self, question, ctx):
        return f"{question} {len(question)} letters"


class Relay(Agent):
    """Asks a stranger alone, and together with an agent of ours."""

    async def answer(self, question, ctx):
        if question == "chunks":
            for chunk in ("one ", "two ", "three"):
                yield chunk
            return
        alone = await ctx.ask_peer(question, "Who are you?", timeout=20)
        together = await ctx.broadcast([question, "greeter"], "Who are you?", timeout=20)
        yield json.dumps({"alone": alone, "together": together})
'''

CHUNKS = [
    {"type": "status", "data": "ack"},
    *({"type": "response", "data": text} for text in ("one ", "two ", "three")),
]
"""What the agent `relay` says to "chunks": an empty message ends it."""


@pytest.fixture(scope="module")
def garden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """The command line in the folder of the team, which runs."""
    cli = Cli(tmp_path_factory.mktemp("garden"))
    cli.write(team_toml=TEAM, agents_py=AGENTS)
    with NatsServer() as server:
        cli.env["NATS_URL"] = server.url
        with cli.start("up") as up:
            up.wait_line("^ready +3 agents")
            yield cli
            assert up.end() == 0, up.output


# --- the nats command ---------------------------------------------------------------------------------------------


class NatsCommand:
    """The real `nats`, as it stands, against the server of the team."""

    def __init__(self, path: str, cli: Cli) -> None:
        self.path, self.cli = path, cli

    def run(self, *args: str) -> str:
        done = subprocess.run(
            [self.path, *args], env=self.cli.environment, capture_output=True, text=True, timeout=LIMIT, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    @contextmanager
    def start(self, *args: str, until: str) -> Iterator[Process]:
        """Run until the end of the block, begun once it prints a line that matches."""
        with subprocess.Popen(
            [self.path, *args], env=self.cli.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            running = Process(process)
            try:
                running.wait_line(until)
                yield running
            finally:
                process.kill()
                running.wait()

    def run_on_a_terminal(self, *args: str) -> str:
        """Run what refuses to talk to anything but a terminal."""
        ours, its = pty.openpty()
        with subprocess.Popen([self.path, *args], env=self.cli.environment, stdin=its, stdout=its, stderr=its) as child:
            os.close(its)
            shown = b""
            with suppress(OSError):  # how the end of a terminal shows
                while data := os.read(ours, 65536):
                    shown += data
            assert child.wait(LIMIT) == 0, shown
        os.close(ours)
        return shown.decode()


@pytest.fixture
def nats(garden: Cli, nats_command: str | None) -> NatsCommand:
    if nats_command is None:
        pytest.skip("the nats command is not installed; the bare socket covers the same subjects")
    return NatsCommand(nats_command, garden)


def test_nats_pub_wakes_an_agent_and_nats_sub_sees_it(nats: NatsCommand) -> None:
    with nats.start("sub", "feed.events.>", until="Subscribing") as feed:
        nats.run("pub", "events.visitor.arrived", '{"name": "Ada"}')
        feed.wait_line(r'"feed\.events\.anyone\.visitor\.arrived"')
        feed.wait_line(r'"feed\.events\.anyone\.visitor\.greeted"')
        feed.wait_line("^Natterjack: s=greeter;")
        assert feed.wait_line("Ada").string == '{"name":"Ada"}'


def test_nats_sub_sees_events_as_they_are_published(nats: NatsCommand) -> None:
    with nats.start("sub", "events.>", until="Subscribing") as published:
        nats.cli.run("emit", "visitor.left", '"Bob"')
        published.wait_line(r'"events\.visitor\.left"')
        assert published.wait_line("Bob").string == '"Bob"'


def test_nats_req_returns_once_an_event_is_stored(nats: NatsCommand) -> None:
    stored = json.loads(nats.run("req", "--raw", "events.visitor.left", "{}"))
    assert stored["stream"] == "EVENTS"
    assert nats.cli.json("emit", "visitor.left")["sequence"] > stored["seq"]


def test_nats_req_injects_an_event_for_one_agent(nats: NatsCommand) -> None:
    with nats.start("sub", "feed.events.*.visitor.greeted", until="Subscribing") as greeted:
        stored = json.loads(nats.run("req", "--raw", "inbox.greeter.visitor.arrived", '{"name": "Kim"}'))
        assert stored["stream"] == "INBOX"
        greeted.wait_line(re.escape('{"name":"Kim"}'))


def test_nats_req_asks_an_agent(nats: NatsCommand) -> None:
    assert nats.run("req", "--raw", "agents.ask.greeter", "How long?") == "How long? 9 letters"


def test_nats_req_reads_an_answer_in_chunks(nats: NatsCommand) -> None:
    waits = ("--wait-for-empty", "--reply-timeout=20s", "--timeout=20s")
    told = nats.run("req", "--raw", *waits, "agents.prompt.natterjack.garden.relay", "chunks")
    assert [json.loads(line) for line in told.splitlines() if line.startswith("{")] == CHUNKS


def test_nats_reply_is_an_agent(nats: NatsCommand) -> None:
    with nats.start("reply", "agents.ask.stranger", "a shell line", until="Listening"):
        assert nats.cli.text("ask", "stranger", "Who are you?") == "a shell line"
        check_relayed(nats.cli, "stranger", "a shell line")


def test_nats_kv_reads_writes_and_watches_the_context(nats: NatsCommand) -> None:
    nats.cli.run("context", "set", "weather.now", '"rain"')
    assert nats.run("kv", "get", "context", "weather.now", "--raw") == '"rain"'
    with nats.start("kv", "watch", "context", "weather.>", until=re.escape('weather.now: "rain"')) as watch:
        nats.run("kv", "put", "context", "weather.now", '"sun"')
        watch.wait_line(r'PUT context > weather\.now: "sun"')
    assert nats.cli.text("context", "get", "weather.now") == "sun"


def test_nats_stream_view_shows_what_is_stored(nats: NatsCommand) -> None:
    nats.run("req", "events.visitor.viewed", '{"name": "Eve"}')
    shown = nats.run_on_a_terminal("stream", "view", "EVENTS", "--subject", "stored.events.*.visitor.viewed")
    assert "Subject: stored.events.anyone.visitor.viewed" in shown
    assert '{"name": "Eve"}' in shown
    assert "EVENTS" in nats.run("stream", "ls", "--names").split()


def test_nats_micro_discovers_the_agents(nats: NatsCommand) -> None:
    asked = nats.run("req", "--raw", "agents.ask.greeter", "?")
    assert asked == "? 1 letters"
    names = [service["metadata"]["session"] for service in json.loads(nats.run("micro", "ls", "--json"))]
    assert sorted(names) == ["greeter", "greeter", "relay"]
    assert re.search(r"agents\.ask\.(greeter|relay)\b", nats.run("micro", "info", "agents"))  # of one of them
    statistics = json.loads(nats.run("micro", "stats", "agents", "--json"))
    assert sum(endpoint["num_requests"] for service in statistics for endpoint in service["endpoints"]) > 0
    assert len(re.findall("^agents ", nats.run("micro", "ping"), re.MULTILINE)) == 3


def check_relayed(cli: Cli, name: str, answer: str) -> None:
    """Check that an agent gets a stranger's answer, asked alone and among others."""
    told = json.loads(cli.text("ask", "relay", name))
    assert told == {"alone": answer, "together": {name: answer, "greeter": "Who are you? 12 letters"}}


# --- a bare socket ------------------------------------------------------------------------------------------------


class BareClient:
    """NATS by hand: a socket, text lines, no library, no headers."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._socket = socket.create_connection((address.hostname, address.port), timeout=LIMIT)
        self._lines = self._socket.makefile("rb")
        self._got: dict[int, deque[tuple[str, str, bytes]]] = {}
        assert self._lines.readline().startswith(b"INFO {")
        self._send(b'CONNECT {"verbose": false, "headers": false}')

    def _send(self, *lines: bytes) -> None:
        self._socket.sendall(b"".join(line + b"\r\n" for line in lines))

    def publish(self, subject: str, data: str = "", reply: str = "") -> None:
        payload = data.encode()
        self._send(f"PUB {subject} {reply} {len(payload)}".encode(), payload)

    def subscribe(self, subject: str) -> int:
        """Subscribe, and return the number of the subscription once the server has it."""
        number = len(self._got) + 1
        self._got[number] = deque()
        self._send(f"SUB {subject} {number}".encode(), b"PING")
        while self._read() != b"PONG":
            pass
        return number

    def next(self, number: int) -> tuple[str, str, bytes]:
        """Return subject, reply and data of the next message of a subscription."""
        while not self._got[number]:
            self._read()
        return self._got[number].popleft()

    def request(self, subject: str, data: str = "") -> Any:
        """Return the reply, as JSON where it is JSON."""
        inbox = f"_INBOX.bare.{len(self._got)}"
        number = self.subscribe(inbox)
        self.publish(subject, data, inbox)
        return self.next(number)[2].decode()

    def _read(self) -> bytes:
        line = self._lines.readline().rstrip()
        assert line, "the server has closed the connection"
        assert not line.startswith(b"-ERR"), line
        if line == b"PING":
            self._send(b"PONG")
        if line.startswith(b"MSG "):
            _, subject, number, *reply, size = line.decode().split()
            data = self._lines.read(int(size) + 2)[:-2]
            self._got[int(number)].append((subject, reply[0] if reply else "", data))
        return line

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@pytest.fixture
def bare(garden: Cli) -> Iterator[BareClient]:
    client = BareClient(garden.env["NATS_URL"])
    yield client
    client.close()


def test_bare_client_wakes_an_agent_and_sees_its_event(bare: BareClient) -> None:
    feed = bare.subscribe("feed.events.>")
    bare.publish("events.visitor.arrived", '{"name": "Zoe"}')
    assert bare.next(feed) == ("feed.events.anyone.visitor.arrived", "", b'{"name": "Zoe"}')
    assert bare.next(feed) == ("feed.events.anyone.visitor.greeted", "", b'{"name":"Zoe"}')


def test_bare_client_is_told_that_an_event_is_stored(bare: BareClient) -> None:
    first = json.loads(bare.request("events.visitor.counted"))
    greeted = bare.subscribe("feed.events.*.visitor.greeted")
    second = json.loads(bare.request("inbox.greeter.visitor.arrived", '{"name": "Max"}'))
    assert (first["stream"], second["stream"]) == ("EVENTS", "INBOX")
    assert bare.next(greeted)[2] == b'{"name":"Max"}'
    found = json.loads(bare.request("$JS.API.STREAM.MSG.GET.EVENTS", json.dumps({"seq": first["seq"]})))
    assert found["message"]["subject"] == "stored.events.anyone.visitor.counted"


def test_bare_client_asks_an_agent(bare: BareClient) -> None:
    assert bare.request("agents.ask.greeter", "How long?") == "How long? 9 letters"


def test_bare_client_reads_an_answer_in_chunks(bare: BareClient) -> None:
    replies = bare.subscribe("_INBOX.bare.chunks")
    bare.publish("agents.prompt.natterjack.garden.relay", "chunks", "_INBOX.bare.chunks")
    assert [json.loads(data) for data in iter(lambda: bare.next(replies)[2], b"")] == CHUNKS


def test_bare_client_is_an_agent(bare: BareClient, garden: Cli) -> None:
    questions = bare.subscribe("agents.ask.bare")
    with garden.start("ask", "relay", "bare") as asking:
        for _ in range(2):  # alone, and by broadcast
            _, reply, question = bare.next(questions)
            assert question == b"Who are you?"
            bare.publish(reply, "a socket")
        assert asking.wait() == 0
    assert json.loads(asking.output)["together"] == {"bare": "a socket", "greeter": "Who are you? 12 letters"}


def test_bare_client_reads_writes_and_watches_the_context(bare: BareClient, garden: Cli) -> None:
    garden.run("context", "set", "weather.here", '"rain"')
    assert bare.request("$JS.API.DIRECT.GET.KV_context.$KV.context.weather.here") == '"rain"'
    watch = bare.subscribe("feed.context.weather.here")
    assert json.loads(bare.request("$KV.context.weather.here", '"sun"'))["stream"] == "KV_context"
    assert bare.next(watch)[2] == b'"sun"'
    assert garden.text("context", "get", "weather.here") == "sun"


@pytest.mark.parametrize("verb", ["PING", "INFO", "STATS"])
def test_bare_client_discovers_the_agents(bare: BareClient, verb: str) -> None:
    replies = bare.subscribe("_INBOX.bare.services")
    bare.publish(f"$SRV.{verb}", reply="_INBOX.bare.services")
    found = [json.loads(bare.next(replies)[2]) for _ in range(3)]
    assert {service["type"] for service in found} == {f"io.nats.micro.v1.{verb.lower()}_response"}
    assert sorted(service["metadata"]["session"] for service in found) == ["greeter", "greeter", "relay"]


# --- the JavaScript client ----------------------------------------------------------------------------------------


@pytest.fixture
def javascript(garden: Cli) -> subprocess.CompletedProcess[str]:
    """What `real_client.mjs` does with the official client, in the folder where that is installed."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "natterjack"
    if not (cache / "node" / "node_modules" / "@nats-io" / "kv").is_dir() or shutil.which("node") is None:
        pytest.skip("no node, or no JavaScript client where .ci/run installs it")
    script = (Path(__file__).parent / "real_client.mjs").read_text()
    return subprocess.run(
        ["node", "--input-type=module", "-e", script],  # modules are then looked for in the current folder
        cwd=cache / "node",
        env=garden.environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def test_javascript_client_asks_emits_and_watches(javascript: subprocess.CompletedProcess[str]) -> None:
    assert javascript.returncode == 0, javascript.stderr
    told = [json.loads(line) for line in javascript.stdout.splitlines()]
    asked, stored, greeted, watched = told
    assert asked == {"ask": "How long? 9 letters"}
    assert stored["stored"]["stream"] == "EVENTS"
    assert greeted == {"event": "feed.events.anyone.visitor.greeted", "data": {"name": "Grace"}}
    assert watched["watch"] == "visitors"
    assert watched["value"][-1] == "Grace"
