"""`docker-compose.yml`: what it names is there, and what it describes runs."""

from __future__ import annotations

import asyncio
import json
import shlex
from functools import partial
from pathlib import Path

import pytest

from natterjack.testing import until

from .compose import ROOT, Compose, read
from .conftest import Quick

VARIABLES = {"NATTERJACK_SECRET": "1e5" + "0" * 29}
"""One that looks like a number: it is none."""
CONTENT = read()
SERVICES = CONTENT["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_whole(name: str) -> None:
    service = SERVICES[name]
    assert service.get("restart") == "no" or "test" in service["healthcheck"]
    assert service["image"].startswith("nats:2.") or service["build"]["dockerfile_inline"].startswith(
        "FROM python:3.11"
    )
    assert service["command"]
    assert "ports" not in service
    for mount in service["volumes"]:
        source = mount.partition(":")[0]
        assert source in CONTENT["volumes"] or (ROOT / source).exists()
    for config in service.get("configs", ()):
        assert config["source"] in CONTENT["configs"]
    for other, how in service.get("depends_on", {}).items():
        ends = how["condition"] == "service_completed_successfully"
        assert ends == (SERVICES[other].get("restart") == "no")


def test_what_its_image_is_made_of_is_there() -> None:
    lines = SERVICES["secure"]["build"]["dockerfile_inline"].splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in shlex.split(line)[1:-1]]
    assert copied
    assert all((ROOT / path).exists() for path in copied)


def test_servers_are_given_what_their_configuration_takes() -> None:
    configuration = (ROOT / "brokerconf/cluster.conf").read_text()
    taken = {
        word.strip("[],")[1:]
        for line in configuration.splitlines()
        if not line.lstrip().startswith("#")
        for word in line.split()
        if word.startswith("$")
    }
    for name in ("one", "two", "three"):
        assert SERVICES[name]["environment"].keys() == taken
        assert SERVICES[name]["environment"]["NAME"] == name


def test_its_team_is_one(quick: Quick) -> None:
    quick.write(team_toml=CONTENT["configs"]["team"]["content"])
    agents = {name for name, service in SERVICES.items() if service["command"][:3] == ["natterjack", "agent", "run"]}
    assert agents == {"researcher", "analyst", "writer"}
    assert {SERVICES[name]["command"][3] for name in agents} == agents
    written = quick.json("secure", "--tls")["written"]
    assert {f"keys/{name}.pem" for name in agents} <= set(written)


@pytest.mark.full
@pytest.mark.timeout(240)
async def test_what_it_describes_runs_and_does_a_job(tmp_path: Path) -> None:
    compose = Compose(tmp_path, VARIABLES)
    with compose.until_the_end():
        for name, service in compose.services.items():
            assert all(other in compose.done for other in service.get("depends_on", {})), f"{name} comes too early"
            if service.get("profiles"):
                continue
            if service.get("restart") == "no":
                await asyncio.to_thread(compose.run, name)
            else:
                compose.start(name)
            if name == "three":
                for server in ("one", "two", "three"):
                    await until(partial(compose.healthy, server), timeout=60)
            compose.done.add(name)
        for name in ("storage", "researcher", "analyst", "writer"):
            await until(partial(compose.healthy, name), timeout=60)
        cli = partial(asyncio.to_thread, compose.run, "cli")
        await cli("emit", "research.start", json.dumps({"question": "How does the with statement work?"}))

        async def complete() -> bool:
            return "complete" in await cli("context", "list")

        await until(complete, timeout=60)
        assert "with" in await cli("context", "get", "draft")
        compose.rewrite("team", CONTENT["configs"]["team"]["content"] + '\n[users.guest]\nreads = ["draft"]\n')
        for name in ("secure", "provision"):  # which is what `up` does again
            await asyncio.to_thread(compose.run, name)
        assert "with" in await cli("--as", "guest", "context", "get", "draft")
