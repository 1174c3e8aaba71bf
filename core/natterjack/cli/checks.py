"""The checks of `doctor`: each gives one finding, with what to do about a problem."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from natterjack import subjects
from natterjack.broker import find_server, server_version
from natterjack.bus import Bus
from natterjack.cli.advice import warnings
from natterjack.dead import dead_letters
from natterjack.errors import NatterjackError, NotProvisionedError
from natterjack.expiry import expired
from natterjack.needs import agent_triggers
from natterjack.plugins import Plugins
from natterjack.record import stored_team
from natterjack.service import discover
from natterjack.stores import REFUSED, SIZE, STREAMS, is_watched, noted
from natterjack.team import Team
from natterjack.team.file import read_team

OLDEST_PYTHON: Final = (3, 11)
MAX_LAG: Final = 1000
"""Events that may wait for an agent before that is a problem."""
_FULL: Final = 0.9
_ENDING_DAYS: Final = 30
"""Of a certificate; what ends sooner, `natterjack secure` makes anew."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        check: Name of the check.
        ok: Whether all is well.
        detail: What is there.
        fix: What to do about a problem.
    """

    check: str
    ok: bool
    detail: str
    fix: str = ""


def good(check: str, detail: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(check, True, detail)


def bad(check: str, detail: str, fix: str = "") -> Finding:
    """Return a problem."""
    return Finding(check, False, detail, fix)


# This machine


def check_machine() -> Iterator[Finding]:
    """Check Python, packages and the server's program."""
    version = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        yield bad("python", version, "install Python 3.11 or later")
    else:
        yield good("python", f"{version} on {platform.system()} {platform.machine()}")
    yield _check_packages()
    try:
        program = find_server()
        yield good("nats-server", f"{'.'.join(map(str, server_version(program)))} at {program}")
    except NatterjackError as error:
        yield bad("nats-server", str(error), "only an embedded broker needs it; --server names another")


def _check_packages() -> Finding:
    required = importlib.metadata.requires("natterjack") or []
    names = [re.split(r"[^A-Za-z0-9._-]", line)[0] for line in required if ";" not in line]
    missing = []
    for name in names:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return bad("packages", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return good("packages", f"natterjack {importlib.metadata.version('natterjack')}, and all that it requires")


def check_plugins(plugins: Plugins) -> Iterator[Finding]:
    """Check what is installed beside the kernel."""
    for broken in plugins.broken:
        yield bad("plugins", str(broken), f"mend or uninstall {broken.distribution}")
    names = ", ".join(plugin.name for plugin in plugins.loaded)
    if not plugins.broken:
        yield good("plugins", names)


def check_file(path: Path) -> Iterator[Finding]:
    """Check the team file, if there is one."""
    if not path.is_file():
        return
    try:
        found = warnings(read_team(path))
    except NatterjackError as error:
        for line in str(error).splitlines():
            yield bad("team file", line, "correct it")
        return
    for warning in found:
        yield good("team file", f"note: {warning}")
    if not found:
        yield good("team file", f"{path} reads well")


# The server, and the team on it


def check_certificate(bus: Bus) -> Iterator[Finding]:
    """Check for how long the server's certificate is good, if it shows one."""
    if (ends := bus.certified_until) is None:
        return
    detail = f"the server's certificate ends on {ends:%Y-%m-%d}"
    if (days := (ends - datetime.now(UTC)).days) < _ENDING_DAYS:
        yield bad(
            "tls", f"{detail}, in {days} days", "natterjack secure --apply makes it anew, and others that end soon"
        )
    else:
        yield good("tls", detail)


async def check_team(bus: Bus, team_file: Path, plugins: Plugins) -> AsyncIterator[Finding]:
    """Check JetStream, the team's streams and consumers, and its agents."""
    began = time.perf_counter()
    try:
        account = await bus.api("INFO")
    except NatterjackError as error:
        yield bad("jetstream", str(error), "start the server with -js, or let `natterjack broker run` start one")
        return
    milliseconds = (time.perf_counter() - began) * 1000
    yield good("jetstream", f"{account.get('streams', 0)} streams, answers in {milliseconds:.1f} ms")
    try:
        team = await stored_team(bus)
    except NotProvisionedError:
        yield bad("team", "none is provisioned", f"natterjack provision {team_file}")
        return
    yield _check_provisioned(team, team_file)
    async for finding in _check_streams(bus):
        yield finding
    async for finding in _check_consumers(bus, team, plugins):
        yield finding
    yield await _check_agents(bus, team)


def _check_provisioned(team: Team, team_file: Path) -> Finding:
    if team_file.is_file():
        try:
            written = read_team(team_file)
            if not any(_is_as(team, each) for each in (written, written.closed())):
                what = f"{team_file} differs from what is provisioned as {team.name!r}"
                return bad("team", what, f"natterjack provision {team_file}, then start the agents again")
        except NatterjackError:
            return good("team", f"{team.name!r} is provisioned; {team_file} cannot be compared")
    return good("team", f"{team.name!r} is provisioned, agents: {', '.join(team.agents)}")


def _is_as(stored: Team, written: Team) -> bool:
    """Tell whether a team is stored as it is written; initial state is not stored with it."""
    parts = [(team.agents, team.tools, team.users, team.external, set(team.buckets)) for team in (stored, written)]
    return parts[0] == parts[1]


async def _check_streams(bus: Bus) -> AsyncIterator[Finding]:
    states: dict[str, dict[str, Any]] = {}
    well = True
    for name in STREAMS:
        try:
            info = await bus.api(f"STREAM.INFO.{name}")
            states[name] = info["state"]
        except NatterjackError as error:
            yield bad("streams", str(error), "natterjack provision team.toml")
            well = False
            continue
        if refused := noted(info["config"], REFUSED):
            detail = f"{name} takes nothing more from {refused}: more than anybody may was stored within an hour"
            yield bad("streams", detail, "natterjack storage shows how much; see what runs there, and stop or mend it")
            well = False
        config = info["config"]  # somebody may have raised its limit; and where shares are enforced, it opens by and by
        limit = max(0, int(config["max_bytes"]), int(noted(config, SIZE) or 0))
        if limit and states[name]["bytes"] > _FULL * limit and config["discard"] == "new":
            detail = f"{name} holds {states[name]['bytes']:,} of {limit:,} bytes, and refuses more when it is full"
            fix = f"natterjack storage shows who fills it; nats stream purge {name} --keep N, or raise its limit"
            yield bad("streams", detail, fix)
            well = False
    if well and bus.server.attests and not await is_watched(bus):
        yield good("streams", "note: nobody keeps one agent from filling them for all: natterjack storage --enforce")
    if well:
        dead = states[subjects.DEAD]["messages"]
        look = " (natterjack dead list)" if dead else ""
        async for finding in _check_expired(bus):
            yield finding
        yield good("streams", f"all {len(states)} are there; dead letters: {dead}{look}")


async def _check_expired(bus: Bus) -> AsyncIterator[Finding]:
    for letter in await dead_letters(bus):
        if letter.lost:
            look = f"natterjack dead drop {letter.number} when you know of it"
            yield bad("streams", f"{letter.agent}: {letter.cause}", look)


async def _check_consumers(bus: Bus, team: Team, plugins: Plugins) -> AsyncIterator[Finding]:
    count, waiting, well = 0, 0, True
    for name, spec in team.agents.items():
        triggers = agent_triggers(spec, plugins)
        for label, consumer in ((trigger.label, one) for trigger in triggers for one in trigger.consumers(name)):
            try:
                info = await bus.api(f"CONSUMER.INFO.{consumer.stream}.{consumer.name}")
            except NatterjackError as error:
                yield bad("consumers", str(error), "natterjack provision team.toml")
                well = False
                continue
            count += 1
            if subjects.is_log(consumer.stream) and (lost := await expired(bus, name, label, consumer, info)):
                fix = "start it; if that happens again, raise the stream's limits"
                yield bad("consumers", f"{name}: {lost.told(consumer.stream)}", fix)
                well = False
            waiting += info["num_pending"] + info["num_ack_pending"]
            if info["num_pending"] > MAX_LAG:
                detail = f"{info['num_pending']:,} events wait for {name} ({consumer.name})"
                yield bad("consumers", detail, "start it, or give it `replicas` or more `concurrency`")
                well = False
    if well:
        yield good("consumers", f"all {count} are there; events that wait or are worked on: {waiting}")


async def _check_agents(bus: Bus, team: Team) -> Finding:
    running = [info.name for info in await discover(bus, team.agents)]
    missing = [name for name in team.agents if name not in running]
    if missing:
        fix = f"natterjack up, or natterjack agent run {missing[0]}"
        return bad("agents", f"not running: {', '.join(missing)}", fix)
    return good("agents", f"all run: {', '.join(running)}")
