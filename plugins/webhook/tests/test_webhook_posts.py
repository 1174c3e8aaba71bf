"""The kind of agent that posts: to real receivers, with the kernel's attempts and dead letters."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any, ClassVar

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from natterjack import AgentProcess, AgentRuntime, ConfigError, EventTrigger, StartError
from natterjack.testing import ScriptedAgent, until
from natterjack.testing.contracts import AgentContract
from natterjack_webhook import WebhookAgent, WebhookTrigger
from natterjack_webhook.agent import retry_after
from natterjack_webhook.listener import _Config, _Protocol, _Server
from natterjack_webhook.signatures import STANDARD, Verifier

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Receiver:
    """Somebody's web server, which answers as the test says, and remembers."""

    def __init__(self) -> None:
        self.answers: list[Response | Callable[[], Any]] = []
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.url = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        self.requests.append((dict(request.headers), await request.body()))
        answer = self.answers.pop(0) if self.answers else Response(status_code=204)
        if not isinstance(answer, Response):
            answer = await answer()
        await answer(scope, receive, send)


@asynccontextmanager
async def receiving(port: int = 0) -> AsyncIterator[Receiver]:
    receiver = Receiver()
    sock = socket.create_server(("127.0.0.1", port))
    receiver.url = f"http://127.0.0.1:{sock.getsockname()[1]}/services/T0/hunter2"
    server = _Server(_Config(receiver, http=_Protocol, ws="none", lifespan="off", timeout_graceful_shutdown=1))
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        yield receiver
    finally:
        server.should_exit = True
        await serving


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)


class TestWebhookAgent(AgentContract):
    component = WebhookAgent
    settings: ClassVar[dict[str, Any]] = {"url": "env:CONTRACT_URL"}
    wrong_settings = (
        {"url": "example.com"},
        {"url": "ftp://example.com"},
        {"url": "https://"},
        {"url": 7},
        {"url": "https://me:hunter2@example.com"},
        {"url": "https://example.com", "secret": "hunter2"},
        {"url": "https://example.com", "headers": {"Authorization": "Bearer hunter2"}},
        {"url": "https://example.com", "headers": {"X Y": "a"}},
        {"url": "https://example.com", "body": "all"},
        {"url": "https://example.com", "request_timeout": 0},
    )

    @pytest.fixture(autouse=True)
    async def _receiver(self, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CONTRACT_URL", receiver.url)


async def start(runtime: AgentRuntime, url: str, on: str = "report.done", **settings: Any) -> None:
    limits = {name: settings.pop(name) for name in ("max_attempts", "retry_delay") if name in settings}
    config = {"kind": "webhook", "url": url, "secret": "env:HOOK_SECRET", **settings}
    limits = {"retry_delay": 0.02, **limits}
    runtime.add_process(AgentProcess("notify", agent_config=config, triggers=[EventTrigger(on)], **limits))
    await runtime.start_all()


async def result(runtime: AgentRuntime, data: Any = None) -> Any:
    run = await runtime.inject_event("notify", {"type": "report.done", "data": data})
    return await run.result(timeout=20)


async def dead(runtime: AgentRuntime) -> str:
    """Why the next event of it is dead."""
    with pytest.raises(Exception, match=r"^run \w+ failed: ") as caught:
        await result(runtime)
    return str(caught.value)


async def test_an_event_is_posted_and_signed(runtime: AgentRuntime, receiver: Receiver) -> None:
    await start(runtime, receiver.url, secret=["env:HOOK_SECRET"], headers={"X-Team": "garden"})
    await runtime.event_bus.emit("report.done", {"pages": 3}, id="r-1")
    await until(lambda: receiver.requests)
    ((headers, body),) = receiver.requests
    sent = orjson.loads(body)
    assert sent.pop("time") <= datetime.now(UTC).isoformat()
    assert sent == {"id": "r-1", "type": "report.done", "source": "operator", "data": {"pages": 3}}
    assert (headers["content-type"], headers["x-team"]) == ("application/json", "garden")
    verifier = Verifier("standard", [SECRET], 60)
    found = verifier.read(headers)
    assert found is not None
    assert verifier.refusal(found, body, datetime.now(UTC).timestamp()) is None


async def test_the_data_alone_to_a_secret_url(runtime: AgentRuntime, receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "url").write_text(receiver.url + "\n")
    await start(runtime, f"file:{tmp_path}/url", secret=(), body="data", headers={"Authorization": "env:HOOK_SECRET"})
    assert await result(runtime, {"text": "hello"}) == {"status": 204}
    ((headers, body),) = receiver.requests
    assert orjson.loads(body) == {"type": "report.done", "data": {"text": "hello"}}
    assert headers["authorization"] == SECRET
    assert set(STANDARD) & set(headers) == {"webhook-id"}


async def test_what_fails_for_now_is_tried_again_under_one_id(runtime: AgentRuntime, receiver: Receiver) -> None:
    receiver.answers = [Response(status_code=status) for status in (503, 500, 429, 408)]
    await start(runtime, receiver.url)
    assert await result(runtime) == {"status": 204}
    assert len(receiver.requests) == 5
    assert len({headers["webhook-id"] for headers, _ in receiver.requests}) == 1
    assert len({body for _, body in receiver.requests}) == 1


async def test_retry_after_is_honoured(runtime: AgentRuntime, receiver: Receiver) -> None:
    loop = asyncio.get_running_loop()
    times: list[float] = []

    async def note() -> Response:
        times.append(loop.time())
        return Response(status_code=503, headers={"retry-after": "1"}) if len(times) == 1 else Response()

    receiver.answers = [note, note]
    await start(runtime, receiver.url)
    assert await result(runtime) == {"status": 200}
    assert times[1] - times[0] > 0.95


@pytest.mark.parametrize("status", [400, 401, 404, 410, 422, 301, 307])
async def test_what_is_refused_is_dead_at_once(runtime: AgentRuntime, receiver: Receiver, status: int) -> None:
    receiver.answers = [JSONResponse({"error": "internal"}, status, headers={"location": "/elsewhere"})]
    await start(runtime, receiver.url)
    cause = await dead(runtime)
    assert f"PostRefusedError: {receiver.url.partition('/services')[0]} answered {status}" in cause
    assert ("write the URL to which it leads" in cause) == (status < 400)
    assert "hunter2" not in cause
    assert "internal" not in cause
    assert len(receiver.requests) == 1


async def test_what_fails_for_good_is_dead(
    runtime: AgentRuntime, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    receiver.answers = [Response(status_code=502) for _ in range(3)]
    await start(runtime, receiver.url, max_attempts=3)
    assert "PostError" in (cause := await dead(runtime))
    assert "answered 502" in cause
    assert len(receiver.requests) == 3
    assert await result(runtime) == {"status": 204}
    assert "hunter2" not in caplog.text
    assert SECRET not in caplog.text


async def test_a_receiver_that_is_away_comes_back(runtime: AgentRuntime, caplog: pytest.LogCaptureFixture) -> None:
    async with receiving() as gone:
        pass
    port = int(gone.url.split(":")[2].partition("/")[0])
    await start(runtime, gone.url, max_attempts=100, retry_delay=0.05)
    run = await runtime.inject_event("notify", {"type": "report.done"})
    await until(lambda: "did not answer: ConnectError" in caplog.text)
    async with receiving(port) as back:
        assert await run.result(timeout=20) == {"status": 204}
        assert len(back.requests) == 1
    assert "hunter2" not in caplog.text


async def test_a_receiver_that_takes_its_time(runtime: AgentRuntime, receiver: Receiver) -> None:
    forever = asyncio.Event()

    async def hang() -> Response:
        await forever.wait()
        return Response()

    receiver.answers = [hang]
    await start(runtime, receiver.url, request_timeout=0.2)
    assert await result(runtime) == {"status": 204}
    assert len(receiver.requests) == 2
    forever.set()


async def test_a_long_answer_is_not_read_to_its_end(runtime: AgentRuntime, receiver: Receiver) -> None:
    receiver.answers = [Response(b"x" * 5_000_000)]
    await start(runtime, receiver.url)
    assert await result(runtime) == {"status": 200}
    assert await result(runtime) == {"status": 204}


async def test_one_team_wakes_another(runtime: AgentRuntime) -> None:
    hooked = WebhookTrigger.create(
        {"path": "/in", "listen": "127.0.0.1:0", "signature": "standard", "secret": "env:HOOK_SECRET"}
    )
    taker = ScriptedAgent()
    runtime.add_process(AgentProcess("taker", agent=taker, triggers=[hooked]))
    async with receiving() as reserved:
        pass  # a port that was free a moment ago
    port = int(reserved.url.split(":")[2].partition("/")[0])
    hooked.config.__dict__["listen"] = f"127.0.0.1:{port}"
    await start(runtime, f"http://127.0.0.1:{port}/in")
    await runtime.event_bus.emit("report.done", {"pages": 3}, id="r-1")
    (event,) = await taker.handled()
    assert (event.type, event.data["data"]) == ("report.done", {"pages": 3})


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"url": "env:NO_SUCH"}, "environment variable 'NO_SUCH' is not set"),
        ({"url": "env:HOOK_SECRET"}, "what stands at 'env:HOOK_SECRET': it is no URL"),
        ({"url": "https://example.com", "secret": "file:/no/such"}, "cannot be read"),
        ({"url": "https://example.com", "headers": {"X-Key": "env:NO_SUCH"}}, "'NO_SUCH' is not set"),
    ],
)
async def test_what_keeps_it_from_starting(runtime: AgentRuntime, settings: dict[str, Any], error: str) -> None:
    with pytest.raises(StartError, match=f"agent 'notify' cannot start: .*{error}") as caught:
        await start(runtime, **settings)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("wrong", [each for each in TestWebhookAgent.wrong_settings if "hunter2" in str(each)])
def test_a_secret_in_clear_is_not_shown(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="env:NAME") as caught:
        WebhookAgent.create(wrong)
    assert "hunter2" not in f"{caught.value} {caught.value.__cause__}"


def test_when_to_try_again() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert retry_after("120", now.timestamp()) == 120
    assert retry_after(format_datetime(now.replace(second=30), usegmt=True), now.timestamp()) == 30
    assert retry_after("Wed, 01 Jan 2020 00:00:00 GMT", now.timestamp()) == 0


@given(st.text(max_size=40) | st.from_regex(r"\A\d+\Z"))
def test_any_retry_after_is_a_time_that_can_be_waited(value: str) -> None:
    assert 0 <= retry_after(value, 0.0) < 10**12
