"""What the README shows is run."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import orjson
import pytest

from natterjack.testing import NatsServer, free_port, until
from natterjack_webhook import WebhookAgent, WebhookTrigger
from natterjack_webhook.signatures import Verifier

README = (Path(__file__).parents[1] / "README.md").read_text()
BODY = b'{"action": "opened", "number": 7}'


def block(language: str) -> str:
    """The one block of a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return str(found)


def environment(server: NatsServer, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "NATTERJACK_"))}
    return {**kept, "NATS_URL": server.url, **more}


@contextmanager
def up(folder: Path, env: dict[str, str]) -> Iterator[None]:
    """Within the context, the team runs."""
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", "natterjack", "up", "team.toml"]
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            assert process.wait(30) == 0, (folder / "log").read_text()


async def test_the_team_does_what_the_readme_says(own_server: NatsServer, tmp_path: Path) -> None:
    (tmp_path / "team.toml").write_text(block("toml"))
    (tmp_path / "agents.py").write_text(block("python"))
    posted: asyncio.Future[tuple[dict[str, str], bytes]] = asyncio.get_running_loop().create_future()

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:] if line)
        exact = dict(line.split(": ", 1) for line in head.splitlines()[1:] if line)
        headers["webhook-signature"] = exact["webhook-signature"]
        posted.set_result((headers, await reader.readexactly(int(headers["content-length"]))))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(receive, "127.0.0.1", 0) as receiver:
        to, port = receiver.sockets[0].getsockname()[1], free_port()
        env = environment(
            own_server,
            GITHUB_SECRET="github's secret",
            NOTIFY_URL=f"http://127.0.0.1:{to}/hook",
            NOTIFY_SECRET="notify's secret",
            NATTERJACK_WEBHOOK_LISTEN=f"127.0.0.1:{port}",
        )
        with up(tmp_path, env):
            await until(lambda: "\nready" in (tmp_path / "log").read_text(), 40)
            digest = hmac.new(b"github's secret", BODY, hashlib.sha256).hexdigest()
            headers = {"X-Hub-Signature-256": f"sha256={digest}", "X-GitHub-Event": "pull_request"}
            async with httpx.AsyncClient() as client:
                url = f"http://127.0.0.1:{port}"
                json = {"content-type": "application/json"}
                answer = await client.post(f"{url}/github", content=BODY, headers=headers | json)
                assert (answer.status_code, answer.json()) == (202, {"event": 1})
                assert (await client.get(f"{url}/health")).status_code == 200
                headers, body = await asyncio.wait_for(posted, 20)
    assert orjson.loads(body)["data"] == {"number": 7, "verdict": "looks good"}
    given = (verifier := Verifier("standard", ["notify's secret"], 60)).read(headers)
    assert given is not None
    assert verifier.refusal(given, body, int(headers["webhook-timestamp"])) is None
    printed = (tmp_path / "log").read_text()
    assert f"webhooks are taken at http://127.0.0.1:{port}" in printed
    assert "'s secret" not in printed
    assert "uvicorn" not in printed.lower()
    assert "HTTP Request" not in printed


@pytest.mark.parametrize("component", [WebhookTrigger, WebhookAgent])
def test_all_settings_are_told(component: type[WebhookTrigger | WebhookAgent]) -> None:
    told = set(re.findall(r"`(\w+)`", README))
    assert set(component.Config.model_fields) - told == set()


def test_defaults_are_told() -> None:
    fields = WebhookTrigger.Config.model_fields
    assert f"| `max_body` | {fields['max_body'].default:,} |" in README
    assert f"| `tolerance` | {fields['tolerance'].default:g} |" in README
    assert f"| `request_timeout` | {WebhookAgent.Config.model_fields['request_timeout'].default:g} |" in README
