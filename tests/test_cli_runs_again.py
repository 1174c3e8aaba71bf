"""`runs cancel|resume|rerun|export`, against a team that runs."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from natterjack import Agent, Entry, NondeterminismError
from natterjack.bus import Bus
from natterjack.server import Server
from natterjack.subjects import OPERATOR
from natterjack.testing import NatsServer, Recording, replay
from natterjack.testing.command import Cli

TEAM = """\
[team]
name = "shop"
external = ["order.placed", "nap.taken"]

[agents.seller]
kind = "shop:Seller"
on = ["order.placed"]
emits = ["order.priced"]
max_attempts = 1

[agents.sleeper]
kind = "shop:Sleeper"
on = ["nap.taken"]
"""

SHOP = '''\
"""Agents whose steps are counted, one line each."""

from pathlib import Path

from natterjack import Agent


def do(what, result=None):
    with Path(__file__).with_name("did").open("a") as did:
        did.write(f"{what}\\n")
    return result


def pay():
    if not Path(__file__).with_name("mended").exists():
        raise ValueError("no money")
    return do("pay", "paid")


class Seller(Agent):
    """Prices orders, and has them paid."""

    async def handle(self, event, ctx):
        items = event.data["items"]
        price = await ctx.step("price", do, "price", 3 * items)
        await ctx.emit("order.priced", {"price": price})
        await ctx.step("note", do, "note")
        paid = await ctx.step("pay", pay)
        return [price, paid]


class Sleeper(Agent):
    """Sleeps."""

    async def handle(self, event, ctx):
        await ctx.step("before", do, "before")
        await ctx.sleep(event.data["seconds"])
        return await ctx.step("after", do, "after", "there")
'''


@pytest.fixture
def shop(
    tmp_path: Path, quick_in: Callable[[Path], Cli], served_team: Callable[[Cli], AbstractContextManager[None]]
) -> Iterator[Cli]:
    cli = quick_in(tmp_path)
    cli.write(team_toml=TEAM, shop_py=SHOP)
    with served_team(cli):
        yield cli


def run(shop: Cli, agent: str, state: str, run: str | None = None) -> dict[str, Any]:
    """The run of an agent that is in a state, once there is one."""

    def found(listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [each for each in listed if run in (None, each["run"])]

    (only,) = found(shop.until_json(found, "runs", "list", agent, "--state", state))
    return only


def shown(shop: Cli, run: str) -> list[dict[str, Any]]:
    return list(shop.json("runs", "show", run)["timeline"])


def kinds(found: dict[str, Any]) -> list[str]:
    return [entry["kind"] for entry in found["timeline"]]


def did(shop: Cli) -> list[str]:
    return (shop.folder / "did").read_text().split()


def test_a_dead_run_goes_on_in_a_new_one_once_its_fault_is_mended(shop: Cli) -> None:
    shop.run("emit", "order.placed", '{"items": 2}')
    dead = run(shop, "seller", "dead")
    (shop.folder / "mended").touch()
    begun = shop.json("runs", "rerun", dead["run"][:8])
    assert begun["agent"] == "seller"
    assert begun["run"] != dead["run"]
    run(shop, "seller", "done", begun["run"])
    assert did(shop) == ["price", "note", "pay"]
    entries = shown(shop, begun["run"])
    assert [entry["kind"] for entry in entries] == ["begun", "step", "step", "started", "step", "done"]
    assert entries[-1]["data"]["result"] == [6, "paid"]
    assert f"begun by rerun of {dead['run'][:12]}" in shop.text("runs", "show", begun["run"])
    seeds = {shown(shop, each)[0]["data"]["seed"] for each in (dead["run"], begun["run"])}
    assert len(seeds) == 2


def test_a_run_is_done_again_from_a_step(shop: Cli) -> None:
    (shop.folder / "mended").touch()
    shop.run("emit", "order.placed", '{"items": 2}')
    done = run(shop, "seller", "done")
    said = shop.text("runs", "rerun", done["run"], "--from", "note")
    again = said.split()[1]
    assert said == f"begun: {again} of seller"
    run(shop, "seller", "done", again)
    assert did(shop) == ["price", "note", "pay", "note", "pay"]
    error = shop.error("runs", "rerun", done["run"], code=2)
    assert error == f"run {done['run']} is done; say from which step to repeat it: price, note, pay"
    error = shop.error("runs", "rerun", done["run"], "--from", "prize", code=2)
    assert error == f"run {done['run']} has finished no step 'prize'; it has price, note, pay"
    assert "is done; `natterjack runs rerun`" in shop.error("runs", "resume", done["run"], code=2)
    assert "has ended (done)" in shop.error("runs", "cancel", done["run"], code=2)


def test_a_dead_run_goes_on_itself(shop: Cli) -> None:
    shop.run("emit", "order.placed", '{"items": 2}')
    dead = run(shop, "seller", "dead")["run"]
    (shop.folder / "mended").touch()
    assert shop.text("runs", "resume", dead) == f"resumed: {dead} of seller"
    run(shop, "seller", "done", dead)
    assert did(shop) == ["price", "note", "pay"]
    assert shop.json("dead", "list") == []


def test_a_parked_run_is_resumed_and_looks_whether_it_can_go_on(shop: Cli) -> None:
    shop.run("emit", "nap.taken", '{"seconds": 3600}')
    parked = run(shop, "sleeper", "parked")["run"]
    shop.run("runs", "resume", parked)
    shop.until_json(lambda found: kinds(found)[-2:] == ["started", "interrupted"], "runs", "show", parked)
    assert run(shop, "sleeper", "parked")["run"] == parked
    assert "sleeps until" in shop.text("runs", "show", parked)
    assert shop.json("runs", "cancel", parked[:8], "--reason", "no need") == {"agent": "sleeper", "run": parked}
    assert run(shop, "sleeper", "cancelled")["run"] == parked
    assert did(shop) == ["before"]


async def lose_tickets(url: str) -> None:
    bus = await Bus.connect(Server(url), principal=OPERATOR)
    try:
        await bus.api("STREAM.PURGE.WAKES")
    finally:
        await bus.close()


def test_a_run_that_lost_its_ticket_is_resumed(shop: Cli) -> None:
    shop.run("emit", "nap.taken", '{"seconds": 3}')
    parked = run(shop, "sleeper", "parked")["run"]
    asyncio.run(lose_tickets(shop.env["NATS_URL"]))
    assert shop.text("runs", "resume", parked[:12]) == f"resumed: {parked} of sleeper"
    run(shop, "sleeper", "done", parked)
    assert did(shop) == ["before", "after"]


def pytest_in(shop: Cli, test: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", test],
        cwd=shop.folder,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_run_becomes_a_test_that_fails_when_its_agent_does_other_things(shop: Cli) -> None:
    (shop.folder / "mended").touch()
    shop.run("emit", "order.placed", '{"items": 2}')
    done = run(shop, "seller", "done")["run"]
    test, recording = shop.json("runs", "export", done, "--as-test")
    assert test == f"tests/test_run_seller_{done[:12]}.py"
    assert recording == test.replace(".py", ".json")
    assert "exists; move it away first" in shop.error("runs", "export", done, "--as-test", code=2)
    passed = pytest_in(shop, test)
    assert "1 passed" in passed.stdout, passed.stdout + passed.stderr
    assert did(shop) == ["price", "note", "pay"]
    shop.write(shop_py=SHOP.replace('ctx.step("note"', 'ctx.step("remark"'))
    failed = pytest_in(shop, test)
    assert "1 failed" in failed.stdout, failed.stdout + failed.stderr
    assert "step remark" in failed.stdout
    assert did(shop) == ["price", "note", "pay"]


def seller(folder: Path, name: str, old: str, new: str) -> Agent:
    """The agent after a change of its code."""
    path = folder / f"{name}.py"
    path.write_text(SHOP.replace(old, new))
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Agent = module.Seller()
    return made


async def test_a_replay_tells_what_has_changed_and_does_no_step(tmp_path: Path) -> None:
    def entry(index: int, kind: str, **data: Any) -> Entry:
        return Entry("seller", "abc", index, kind, data, 1_700_000_000.0 + index)

    event = {"subject": "stored.events.anyone.order.placed", "payload": '{"items":2}', "headers": {}}
    place = {"trigger": "event-order", "stream": "EVENTS", "sequence": 1, "stored": 1}
    steps = {"price": 6, "note": None, "pay": "paid"}
    entries = [
        entry(1, "begun", seed="00" * 16, version=1, depth=0, **event, **place),
        *(
            entry(index + 1, "step", position=str(index), name=name, result=result, seconds=0.0)
            for index, (name, result) in enumerate(steps.items(), 1)
        ),
        entry(5, "done", result=[6, "paid"]),
    ]
    recording = Recording("seller", "abc", {"kind": "shop:Seller"}, entries)
    note = '        await ctx.step("note", do, "note")\n'
    result = "        return [price, paid]"
    changes = [("", ""), (note, ""), (result, note + result), ("[price, paid]", "[paid, price]")]
    replays = []
    for number, (old, new) in enumerate(changes):
        with NatsServer() as server:
            replays.append(await replay(server, recording, seller(tmp_path, f"shop{number}", old, new)))
    same, fewer, more, other = replays
    assert (same.calls, same.result, same.error) == (recording.calls, recording.result, None)
    assert recording.calls == ["step price", "step note", "step pay"]
    assert fewer.calls == ["step price", "step pay"]
    assert isinstance(fewer.error, NondeterminismError)
    assert more.calls == [*recording.calls, "step note"]
    assert str(more.error) == "the recorded run had no step 'note' here"
    assert (other.calls, other.result) == (recording.calls, ["paid", 6])
    assert not (tmp_path / "did").exists()


def test_what_cannot_be_exported_is_said(shop: Cli) -> None:
    shop.run("emit", "order.placed", '{"items": 2}')
    dead = run(shop, "seller", "dead")["run"]
    assert "is not done, so there is no result" in shop.error("runs", "export", dead, "--as-test", code=1)
    assert "say as what: --as-test" in shop.error("runs", "export", dead, code=2)
    assert not (shop.folder / "tests").exists()
