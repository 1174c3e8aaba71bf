"""`natterjack schedule`: what it lists, previews and cancels."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from typer.testing import CliRunner, Result

from natterjack import (
    AgentProcess,
    AgentRuntime,
    ConfigError,
    Firing,
    InvalidNameError,
    NotProvisionedError,
    Schedule,
    connect,
)
from natterjack.testing import NatsServer, ScriptedAgent, until
from natterjack_schedule import AtTrigger, CronTrigger, EveryTrigger
from natterjack_schedule.commands import app, next_of

NOW = datetime(2026, 12, 1, 12, 0, 30, tzinfo=UTC)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


async def run(server: NatsServer, *arguments: str) -> Result:
    return await asyncio.to_thread(call, *arguments, "--server", server.url)


@pytest.fixture
async def team(own_server: NatsServer, runtime: AgentRuntime) -> None:
    """A team with one of each, and an event that is held; nobody runs."""
    hour = (datetime.now(ZoneInfo("Europe/Amsterdam")) + timedelta(hours=12)).hour  # behind the hourly one, at any hour
    triggers = [
        CronTrigger(f"0 {hour} * * *", zone="Europe/Amsterdam"),
        EveryTrigger(3600),
        AtTrigger("2099-01-01T00:00:00Z"),
    ]
    runtime.add_process(AgentProcess("bell", agent=ScriptedAgent(), triggers=triggers))
    async with runtime:
        await runtime.event_bus.emit("tea.ready", delay=60)


@pytest.mark.usefixtures("team")
async def test_list_shows_what_comes_first_first(own_server: NatsServer) -> None:
    done = await run(own_server, "list")
    header, *lines = done.output.splitlines()
    assert header.split() == ["name", "what", "when", "next"]
    assert [line.split("  ")[0].split(".")[0] for line in lines] == ["operator", "bell", "bell", "bell"]
    assert "event tea.ready" in lines[0]
    assert "bell.every-3600" in lines[1]
    assert "(in 59 min" in lines[1] or "(in 1 h" in lines[1]
    assert re.search(r"0 0 \d+ \* \* \* Europe/Amsterdam", lines[2])
    told = json.loads((await run(own_server, "list", "--json")).output)
    assert [each["event"] for each in told] == ["tea.ready", None, None, None]
    assert told[3] | {"since": ""} == {
        "name": "bell.at-2099-01-01T00-00-00Z",
        "owner": "bell",
        "event": None,
        "when": "@at 2099-01-01T00:00:00Z",
        "zone": None,
        "since": "",
        "last": None,
        "next": "2099-01-01T00:00:00+00:00",
    }


@pytest.mark.usefixtures("team")
async def test_what_is_cancelled_does_not_come(own_server: NatsServer) -> None:
    for each in json.loads((await run(own_server, "list", "--json")).output):
        assert (await run(own_server, "cancel", each["name"])).output == f"cancelled {each['name']}\n"
    assert json.loads((await run(own_server, "list", "--json")).output) == []
    assert (await run(own_server, "list")).output == "nothing is scheduled\n"
    async with connect(own_server.url) as client:
        await client.event_bus.emit("last")

        async def happened() -> list[str]:
            return [event.type async for event in client.event_bus.replay()]

        assert await until(happened) == ["last"]


@pytest.mark.usefixtures("team")
@pytest.mark.parametrize("name", ["bell.cron", "nobody", "bell", "*.*", "bell.>", "", ".", "bell.every-3600.fired"])
async def test_cancelling_what_is_not_there_is_an_error_and_cancels_nothing(own_server: NatsServer, name: str) -> None:
    done = await run(own_server, "cancel", name)
    assert isinstance(done.exception, NotProvisionedError | InvalidNameError)
    assert "`natterjack schedule list` shows" in str(done.exception)
    assert len(json.loads((await run(own_server, "list", "--json")).output)) == 4


@pytest.mark.parametrize(
    ("arguments", "times"),
    [
        (["0 9 * * 1-5", "--from", "2026-12-03", "-n", "3"], ["2026-12-03T09", "2026-12-04T09", "2026-12-07T09"]),
        (
            ["30 2 * * *", "--zone", "Europe/Amsterdam", "--from", "2026-10-24", "-n", "3"],
            ["24T02:30:00+02:00", "25T02:30:00+02:00", "25T02:30:00+01:00"],
        ),
        (["*/30 * * * * *", "--from", "2026-12-03T10:00:00", "-n", "2"], ["10:00:30+00:00", "10:01:00+00:00"]),
    ],
)
def test_preview(arguments: list[str], times: list[str]) -> None:
    told = json.loads(call("next", *arguments, "--json").output)
    assert len(told) == len(times)
    assert all(part in whole for part, whole in zip(times, told, strict=True)), told
    assert len(call("next", *arguments).output.splitlines()) == len(times)


def test_preview_begins_now() -> None:
    before = datetime.now(UTC)
    (told,) = json.loads(call("next", "* * * * *", "-n", "1", "--json").output)
    assert before < datetime.fromisoformat(told) <= datetime.now(UTC) + timedelta(minutes=1)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [(["never"], "is no cron expression"), (["* * * * *", "--zone", "Mars"], "is no time zone")],
)
def test_wrong_expression_is_one_clear_error(arguments: list[str], problem: str) -> None:
    error = call("next", *arguments).exception
    assert isinstance(error, ConfigError)
    assert problem in str(error)


@pytest.mark.parametrize(
    ("schedule", "due"),
    [
        ({"when": "@at 2026-12-24T18:00:00Z"}, "2026-12-24T18:00:00"),
        ({"when": "@every 60s", "since": NOW - timedelta(seconds=150)}, "2026-12-01T12:01:00"),
        ({"when": "@every 60s", "since": NOW + timedelta(seconds=1)}, "2026-12-01T12:01:31"),
        ({"when": "@every 60s", "last": Firing(1, NOW, NOW + timedelta(seconds=7))}, "2026-12-01T12:00:37"),
        ({"when": "@every 60s", "last": Firing(1, NOW, NOW - timedelta(hours=1))}, "2026-12-01T12:01:30"),
        ({"when": "0 0 9 * * *"}, "2026-12-02T09:00:00"),
        ({"when": "0 0 9 * * *", "zone": "Asia/Tokyo"}, "2026-12-02T00:00:00"),
        ({"when": "0 0 9 * * *", "last": Firing(1, NOW, datetime(2026, 12, 3, 9, tzinfo=UTC))}, "2026-12-03T09:00:00"),
    ],
)
def test_next_is_what_the_broker_said_or_will(schedule: dict[str, Any], due: str) -> None:
    given: dict[str, Any] = {"owner": "a", "name": "b", "zone": "", "since": NOW} | schedule
    found = next_of(Schedule(**given), NOW)
    assert found is not None
    assert found.astimezone(UTC) == datetime.fromisoformat(due).replace(tzinfo=UTC)
