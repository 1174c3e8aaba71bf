"""The team's record: who runs a process reads its settings, which may be secret, and nobody else's."""

from typing import Any

import pytest

from natterjack.bus import Bus
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.record import stored_team
from natterjack.server import Server
from natterjack.team import Team
from natterjack.testing import NatsServer

KIND = "natterjack.testing.agents:ScriptedAgent"
WRITTEN: dict[str, Any] = {
    "context": {"mood": "secret-1"},
    "buckets": {"finance": {"budget": "secret-2"}},
    "agents": {
        "ann": {"kind": KIND, "on": ["work.due", {"cron": {"expression": "0 8 * * *"}}], "plan": "secret-3"},
        "ben": {"kind": KIND, "on": [{"event": "work.done", "where": "data.n > 1"}], "plan": "secret-4"},
    },
    "tools": {"desk": {"kind": "mcp", "command": ["true"], "env": {"TOKEN": "secret-5"}}},
    "users": {"ada": {"operator": True}, "eve": {}},
}
TEAM = Team.model_validate(WRITTEN)
PLUGINS = Plugins.load()
OPEN = pytest.mark.open_mode(reason="anybody comes by any name")


@pytest.fixture
async def provisioned(bus: Bus) -> Bus:
    await provision(bus, TEAM, PLUGINS)
    return bus


async def seen(server: NatsServer, principal: str) -> Team:
    """What somebody finds."""
    bus = await Bus.connect(Server(server.url), principal=principal)
    try:
        return await stored_team(bus)
    finally:
        await bus.close()


@OPEN
@pytest.mark.parametrize("name", ["operator", "ada"])
async def test_operators_find_all_settings(provisioned: Bus, own_server: NatsServer, name: str) -> None:
    found = await seen(own_server, name)
    assert (found.agents, found.tools, found.users) == (TEAM.agents, TEAM.tools, TEAM.users)
    assert (found.context, found.buckets) == ({}, {"finance": {}})


@OPEN
async def test_who_runs_a_process_finds_its_own(provisioned: Bus, own_server: NatsServer) -> None:
    found = await seen(own_server, "ann")
    assert found.agents["ann"] == TEAM.agents["ann"]
    assert found.agents["ben"] == TEAM.agents["ben"].model_copy(update={"options": {}})
    assert found.tools["desk"].options == {}
    assert (await seen(own_server, "desk")).tools["desk"] == TEAM.tools["desk"]
    assert (await seen(own_server, "ben")).agents["ann"].on[1].settings == {}
    assert "secret" not in (await seen(own_server, "eve")).model_dump_json()


async def test_what_all_may_read_has_no_settings_and_no_state(provisioned: Bus) -> None:
    for key in ("team", "origins"):
        _, data = await provisioned.value("team", key)
        assert data
        assert b"secret" not in data


async def test_settings_of_who_left_are_gone_and_equal_ones_stay(provisioned: Bus) -> None:
    kept, _ = await provisioned.value("team", "settings.ann")
    fewer = {name: spec for name, spec in WRITTEN["agents"].items() if name != "ben"}
    await provision(provisioned, Team.model_validate(WRITTEN | {"agents": fewer}), PLUGINS)
    assert await provisioned.value("team", "settings.ann") == (
        kept,
        (await provisioned.value("team", "settings.ann"))[1],
    )
    assert (await provisioned.value("team", "settings.ben"))[1] == b""
    assert list((await stored_team(provisioned)).agents) == ["ann"]
    await provision(provisioned, TEAM, PLUGINS)
    assert (await stored_team(provisioned)).agents == TEAM.agents
