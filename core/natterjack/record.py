"""A team's record: what is stored of a team, and which of it only one principal reads."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from pydantic import ValidationError

from natterjack import codec, subjects
from natterjack.bus import Bus
from natterjack.errors import ConfigError, NoRespondersError, NotProvisionedError, PayloadError
from natterjack.team import AgentSpec, Team
from natterjack.team.origins import Origins
from natterjack.team.triggers import TriggerSpec

_A_TEAM: Final = "a team"
_STREAM: Final = subjects.bucket_stream(subjects.TEAM_BUCKET)


async def store_team(bus: Bus, team: Team) -> None:
    """Store a team, and by themselves the settings of each process, which may be secret."""
    settings = {name: codec.encode(spec) for name, spec in team.processes.items()}
    there = await _all_settings(bus)
    stores = [bus.store(_place(_settings(name)), data) for name, data in settings.items() if there.get(name) != data]
    gone = {"KV-Operation": "DEL"}
    stores += [bus.store(_place(_settings(name)), b"", headers=gone) for name in there.keys() - settings]
    await asyncio.gather(*stores)
    # Where it is written comes first: an agent that hears of the team at once says so in its messages.
    for key, value in ((subjects.ORIGINS_KEY, team.origins.stored()), (subjects.TEAM_KEY, _public(team))):
        data = codec.encode(value)
        last = await bus.last(_STREAM, _place(key))
        if last is None or last.data != data:
            await bus.store(_place(key), data)


async def known_team(bus: Bus) -> Team | None:
    """Return the team that is provisioned on a server, if there is one that can be read."""
    try:
        return await stored_team(bus)
    except (NotProvisionedError, ConfigError):  # none, or one that is about to be replaced
        return None


async def stored_team(bus: Bus) -> Team:
    """Return the team that is provisioned on a server; of its processes, only operators get all settings.

    Who runs a process gets its own; of others, what all may know.

    Raises:
        NotProvisionedError: There is none.
        ConfigError: What is stored is no team of this version.
    """
    if bus.operates and not await bus.streams(_place(">")):
        raise NotProvisionedError(_A_TEAM)  # at once: where nobody answers, one may have to wait
    try:
        message = await bus.last(_STREAM, _place(subjects.TEAM_KEY))
    except NoRespondersError as error:
        raise NotProvisionedError(_A_TEAM) from error
    if message is None:
        raise NotProvisionedError(_A_TEAM)
    written = await bus.last(_STREAM, _place(subjects.ORIGINS_KEY))
    try:
        team = Team.model_validate(await _completed(bus, codec.decode(message.data)))
        return team.written_in(Origins.of(codec.decode(written.data))) if written else team
    except (ValidationError, PayloadError) as error:
        msg = f"the team that is provisioned on {bus.server} cannot be read; run `natterjack provision team.toml` again"
        raise ConfigError(msg) from error


def _place(key: str) -> str:
    return subjects.key(subjects.TEAM_BUCKET, key)


def _settings(name: str) -> str:
    return f"{subjects.SETTINGS_KEY}.{name}"


def _public(team: Team) -> Team:
    """Return what all may know of it: no settings of its processes, and no initial state."""
    agents = {name: _public_agent(spec) for name, spec in team.agents.items()}
    tools = {name: spec.model_copy(update={"options": {}}) for name, spec in team.tools.items()}
    buckets: dict[str, dict[str, Any]] = {name: {} for name in team.buckets}
    return team.model_copy(update={"agents": agents, "tools": tools, "context": {}, "buckets": buckets})


def _public_agent(spec: AgentSpec) -> AgentSpec:
    on = [trigger if trigger.is_pattern else TriggerSpec(kind=trigger.kind) for trigger in spec.on]
    return spec.model_copy(update={"options": {}, "on": tuple(on)})


async def _completed(bus: Bus, record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with the settings that this principal may read."""
    me = bus.principal
    if bus.operates or (record.get("users") or {}).get(me, {}).get("operator"):
        settings = await _all_settings(bus)
    else:
        own = await bus.last(_STREAM, _place(_settings(me))) if _runs(record, me) else None
        settings = {me: own.data} if own is not None else {}
    for table in ("agents", "tools"):
        found = record.get(table) or {}
        found |= {name: codec.decode(data) for name, data in settings.items() if name in found}
    return record


def _runs(record: dict[str, Any], name: str) -> bool:
    return any(name in (record.get(table) or {}) for table in ("agents", "tools"))


async def _all_settings(bus: Bus) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    async for message in bus.read(_STREAM, _place(_settings("*"))):
        headers = message.headers or {}
        name = headers["Nats-Subject"].rpartition(".")[2]
        found.pop(name, None)
        if not codec.is_deletion(headers):
            found[name] = message.data
    return found
