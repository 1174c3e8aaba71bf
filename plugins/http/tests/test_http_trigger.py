"""The trigger: what holds for each, its settings, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from natterjack import AgentProcess, AgentRuntime, TeamClient, Tokens
from natterjack.testing import NatsServer, ScriptedAgent, ScriptedClock, until
from natterjack.testing.contracts import TriggerContract
from natterjack_http import HttpTrigger

LOOPBACK = "127.0.0.1:0"
SECRET = "a secret of thirty-two bytes, or more"


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NATTERJACK_TOKEN_KEY", raising=False)


class Remembered(HttpTrigger):
    """An `HttpTrigger` that a test finds again."""

    made: ClassVar[list[HttpTrigger]] = []

    def __init__(self, config: HttpTrigger.Config) -> None:
        super().__init__(config)
        self.made.append(self)


class TestHttpTrigger(TriggerContract):
    component = Remembered
    settings: ClassVar[dict[str, Any]] = {"listen": LOOPBACK}
    wrong_settings = (
        {"listen": "9001"},
        {"listen": "127.0.0.1:90010"},
        {"listen": "example.com:80"},
        {"listen": LOOPBACK, "key": SECRET},
        {"listen": LOOPBACK, "jwks": "file:///keys"},
        {"listen": LOOPBACK, "key": "env:KEY", "jwks": "https://example.com/keys"},
        {"listen": LOOPBACK, "audience": ""},
        {"listen": LOOPBACK, "leeway": -1},
        {"listen": LOOPBACK, "max_body": 0},
    )

    async def provoke(self, team: TeamClient, clock: ScriptedClock) -> None:
        async with httpx.AsyncClient(timeout=20) as client:
            for accept in ("application/json", "text/event-stream"):  # each with no more than an agent's rights
                answer = await client.post(
                    f"{self.component.made[-1].url}/ask", json={"question": "x"}, headers={"accept": accept}
                )
                assert answer.status_code == 200, answer.text

    async def woken(self, agent: ScriptedAgent) -> None:
        await until(lambda: len(agent.questions) == 2)

    def test_a_key_that_is_written_down_is_not_shown(self) -> None:
        with pytest.raises(ValueError, match="never the key itself") as caught:
            HttpTrigger.create({"listen": LOOPBACK, "key": SECRET})
        assert SECRET not in str(caught.value)


# How it ends


class Slow(ScriptedAgent):
    """Answers once it is let."""

    def __init__(self) -> None:
        super().__init__(answers=self._wait)
        self.let = asyncio.Event()

    async def _wait(self, question: str) -> str:
        await self.let.wait()
        return question


Asking = list[asyncio.Task[httpx.Response]]


async def asked(runtime: AgentRuntime, agent: Slow, client: httpx.AsyncClient) -> tuple[str, Asking]:
    """Start it, and ask it in both ways."""
    trigger = HttpTrigger.create({"listen": LOOPBACK})
    runtime.add_process(AgentProcess("slow", agent=agent, triggers=[trigger]))
    await runtime.start_all()
    url, forms = f"{trigger.url}/ask", ("application/json", "text/event-stream")
    tasks = [asyncio.create_task(client.post(url, json={"question": "x"}, headers={"accept": form})) for form in forms]
    await until(lambda: len(agent.questions) == 2)
    return trigger.url, tasks


async def test_what_is_under_way_is_answered_before_the_end(runtime: AgentRuntime) -> None:
    agent = Slow()
    async with httpx.AsyncClient(timeout=30) as client:
        url, tasks = await asked(runtime, agent, client)
        stopping = asyncio.create_task(runtime.stop_all(20))
        async with httpx.AsyncClient() as other:
            refused = False
            while not refused:  # from some moment on, it takes nothing new
                try:
                    answer = await other.get(f"{url}/health")
                    refused = answer.status_code == 503
                except httpx.TransportError:
                    refused = True
        assert not any(task.done() for task in tasks)
        assert not stopping.done()
        agent.let.set()
        plain, streamed = [await task for task in tasks]
        await stopping
    assert (plain.status_code, plain.json()["answer"]) == (200, "x")
    assert 'data: {"text":"x"}' in streamed.text
    assert "event: done" in streamed.text


async def test_what_takes_too_long_is_told_that_the_agent_stops(
    runtime: AgentRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    before = asyncio.all_tasks()
    async with httpx.AsyncClient(timeout=30) as client:
        _, tasks = await asked(runtime, Slow(), client)
        await runtime.stop_all(0.1)
        plain, streamed = [await task for task in tasks]
    assert (plain.status_code, plain.json()["code"]) == (503, 503)
    assert streamed.status_code == 503 or "event: problem" in streamed.text
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]
    await until(lambda: asyncio.all_tasks() <= before)


async def test_a_broker_that_is_away_is_told_and_waited_for(own_server: NatsServer, runtime: AgentRuntime) -> None:
    trigger = HttpTrigger.create({"listen": LOOPBACK})
    runtime.add_process(AgentProcess("worker", agent=ScriptedAgent(answers="yes"), triggers=[trigger]))
    await runtime.start_all()
    async with httpx.AsyncClient(timeout=40) as client:
        await asyncio.to_thread(own_server.stop)

        async def health(status: int) -> httpx.Response | None:
            answer = await client.get(f"{trigger.url}/health")
            return answer if answer.status_code == status else None

        told = await until(lambda: health(503))
        assert told is not None
        assert told.json()["detail"].startswith("the broker is away")
        late = await client.post(f"{trigger.url}/ask", json={"question": "x", "timeout": 0.1})
        assert late.status_code == 504
        asking = asyncio.create_task(client.post(f"{trigger.url}/ask", json={"question": "x", "timeout": 30}))
        await asyncio.to_thread(own_server.start)
        assert (await asking).json()["answer"] == "yes"
        assert await until(lambda: health(200))


async def test_a_public_key_opens_the_door(runtime: AgentRuntime, tmp_path: Path) -> None:
    private = ed25519.Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_bytes(public)
    trigger = HttpTrigger.create({"listen": LOOPBACK, "key": f"file:{tmp_path}/key.pem"})
    runtime.add_process(AgentProcess("worker", agent=ScriptedAgent(answers="yes"), triggers=[trigger]))
    await runtime.start_all()
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    tokens = {Tokens(private_key=pem).mint("ann"): 200, Tokens(secret=public[27:]).mint("ann"): 401}
    async with httpx.AsyncClient(timeout=20) as client:
        for token, status in tokens.items():
            shown = {"authorization": f"Bearer {token}"}
            answer = await client.post(f"{trigger.url}/ask", json={"question": "x"}, headers=shown)
            assert answer.status_code == status


async def test_replicas_share_the_work_and_the_port(own_server: NatsServer) -> None:
    one, two = AgentRuntime(own_server.url), AgentRuntime(own_server.url)
    agents = [ScriptedAgent(answers="yes"), ScriptedAgent(answers="yes")]
    first = HttpTrigger.create({"listen": LOOPBACK, "shared": True})
    one.add_process(AgentProcess("worker", agent=agents[0], triggers=[first]))
    async with one, httpx.AsyncClient(timeout=20) as client:
        second = HttpTrigger.create({"listen": first.url.removeprefix("http://"), "shared": True})
        two.add_process(AgentProcess("worker", agent=agents[1], triggers=[second]))
        async with two:
            assert second.url == first.url
            while not all(agent.questions for agent in agents):
                assert (await client.post(f"{first.url}/ask", json={"question": "x"})).status_code == 200
        answer = await client.post(f"{first.url}/ask", json={"question": "x"}, headers={"connection": "close"})
    assert answer.status_code == 200


# The command

AGENTS = """
import asyncio

from natterjack import Agent, RunContext

class Echo(Agent):
    async def answer(self, question: str, ctx: RunContext) -> str:
        print("asked", question)
        if question == "slowly":
            await asyncio.sleep(1)
        return f"{ctx.caller}: {question}"
"""


class Run:
    """`natterjack …` in a folder, and what it printed."""

    def __init__(self, folder: Path, server: NatsServer) -> None:
        (folder / "agents.py").write_text(AGENTS)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "NATTERJACK_"))}
        self.folder, self.env = folder, {**kept, "NATS_URL": server.url, "COLUMNS": "200"}

    def __call__(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "natterjack", *args]
        return subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=40, check=False
        )

    @contextmanager
    def going(self, *args: str) -> Iterator[Path]:
        """Within the context it runs; give its log."""
        path = self.folder / "log"
        with path.open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "natterjack", *args], cwd=self.folder, env=self.env, stdout=log, stderr=log
            )
            try:
                yield path
            finally:
                process.send_signal(signal.SIGTERM)
                assert process.wait(30) == 0, path.read_text()


async def test_agent_run_opens_the_door(own_server: NatsServer, tmp_path: Path) -> None:
    run = Run(tmp_path, own_server)
    (tmp_path / "team.toml").write_text('[agents.echo]\nkind = "agents:Echo"\n')
    done = await asyncio.to_thread(run, "provision")
    assert done.returncode == 0, done.stderr
    run.env["NATTERJACK_TOKEN_KEY"] = SECRET
    with run.going("agent", "run", "echo", "--http", "0.0.0.0:0") as log:
        await until(lambda: "agent echo ready" in log.read_text(), 40)
        found = re.search(r"echo is asked at http://0\.0\.0\.0:(\d+)", log.read_text())
        assert found is not None
        async with httpx.AsyncClient(timeout=20) as client:
            url = f"http://127.0.0.1:{found[1]}/ask"
            assert (await client.post(url, json={"question": "hello"})).status_code == 401
            shown = {"authorization": f"Bearer {Tokens(secret=SECRET).mint('ann')}"}
            answer = await client.post(url, json={"question": "hello"}, headers=shown)
    assert answer.json()["answer"] == "ann: hello"
    assert "uvicorn" not in log.read_text().lower()


@pytest.mark.full
async def test_the_command_says_where_instead_of_the_team(own_server: NatsServer, tmp_path: Path) -> None:
    run = Run(tmp_path, own_server)
    door = '{ http = { listen = "127.0.0.1:1", key = "env:DOOR_KEY", audience = "echo" } }'
    (tmp_path / "team.toml").write_text(f'[agents.echo]\nkind = "agents:Echo"\non = [{door}]\n')
    run.env["DOOR_KEY"] = SECRET
    assert (await asyncio.to_thread(run, "provision")).returncode == 0
    with run.going("agent", "run", "echo", "--http", LOOPBACK) as log:
        await until(lambda: "agent echo ready" in log.read_text(), 40)
        found = re.search(r"echo is asked at (\S+)", log.read_text())
        assert found is not None
        client = httpx.AsyncClient(timeout=20)
        for audience, status in (("others", 401), ("echo", 200)):
            shown = {"authorization": f"Bearer {Tokens(secret=SECRET, audience=audience).mint('ann')}"}
            answer = await client.post(f"{found[1]}/ask", json={"question": "hello"}, headers=shown)
            assert answer.status_code == status
        asking = asyncio.create_task(client.post(f"{found[1]}/ask", json={"question": "slowly"}, headers=shown))
        await until(lambda: "asked slowly" in log.read_text(), 20)
    # It was told to end, and has, with nothing left unanswered.
    assert (await asking).json()["answer"] == "ann: slowly"
    await client.aclose()


def test_who_has_the_plugin_and_does_not_use_it_loads_no_web_server() -> None:
    code = "import sys, natterjack_http; print({'httpx', 'starlette', 'uvicorn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=40, check=True)
    assert done.stdout == "set()\n"
