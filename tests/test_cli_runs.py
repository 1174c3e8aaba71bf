"""`runs list|show|tail`, against a team that runs."""

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from natterjack import AgentRuntime, Entry
from natterjack.bus import Bus
from natterjack.journal import StreamJournal
from natterjack.testing import NatsServer
from natterjack.testing.command import Cli

TEAM = """\
[team]
name = "shop"
external = ["order.placed", "gate.reached"]

[agents.seller]
kind = "shop:Seller"
on = ["order.placed"]
emits = ["order.priced"]
asks = ["critic"]

[agents.critic]
kind = "shop:Critic"

[agents.shipper]
kind = "shop:Shipper"
on = ["order.priced"]

[agents.clumsy]
kind = "shop:Clumsy"
on = ["order.priced"]
max_attempts = 1

[agents.waiter]
kind = "shop:Waiter"
on = ["gate.reached"]
"""

SHOP = '''\
"""Agents whose runs are looked at."""

import asyncio
from pathlib import Path

from natterjack import Agent


class Seller(Agent):
    """Prices orders."""

    async def handle(self, event, ctx):
        price = await ctx.step("price", self.price, event.data["items"], ctx)
        verdict = await ctx.step("review", ctx.ask_peer, "critic", f"Is {price} fair?")
        await ctx.emit("order.priced", {"price": price})
        await ctx.step("note", lambda: None)
        ctx.spent(usd=0.0001)
        return f"{price}: {verdict}"

    def price(self, items, ctx):
        ctx.spent(tokens=1200, usd=0.0031)
        return 3 * items


class Critic(Agent):
    """Judges."""

    async def answer(self, question, ctx):
        ctx.spent(tokens=7)
        return await ctx.step("judge", lambda: "yes")


class Shipper(Agent):
    """Ships, without steps."""

    async def handle(self, event, ctx):
        await ctx.emit("order.shipped")
        return "shipped"


class Clumsy(Agent):
    """Fails."""

    async def handle(self, event, ctx):
        raise ValueError("it fell down")


class Waiter(Agent):
    """Waits in its process."""

    async def handle(self, event, ctx):
        await ctx.step("before", lambda: "here")
        while not Path(event.data["gate"]).exists():
            await asyncio.sleep(0.02)
        return await ctx.step("after", lambda: "there")
'''


@pytest.fixture(scope="module")
def shop(
    tmp_path_factory: pytest.TempPathFactory,
    quick_in: Callable[[Path], Cli],
    served_team: Callable[[Cli], AbstractContextManager[None]],
) -> Iterator[Cli]:
    cli = quick_in(tmp_path_factory.mktemp("shop"))
    cli.write(team_toml=TEAM, shop_py=SHOP)
    with served_team(cli):
        yield cli


def emit(shop: Cli, type: str, data: object) -> None:
    shop.run("emit", type, json.dumps(data))


def runs(shop: Cli, count: int, *args: str) -> Any:
    """The runs that `list` tells, once there are so many."""
    deadline = time.monotonic() + 20
    while len(found := shop.json("runs", "list", *args)) < count:
        assert time.monotonic() < deadline, found
    return found


@pytest.fixture(scope="module")
def sold(shop: Cli) -> Any:
    """The run of an order that was priced, after all that it led to."""
    emit(shop, "order.placed", {"items": 4})
    runs(shop, 1, "clumsy", "--state", "dead")
    runs(shop, 1, "shipper", "--state", "done")
    (run,) = runs(shop, 1, "seller", "--state", "done")
    return run


def test_runs_are_listed_with_their_states(shop: Cli, sold: Any) -> None:
    assert (sold["agent"], sold["event"], sold["steps"]) == ("seller", "order.placed", 3)
    assert sold["began"] <= sold["last"]
    (asked,) = shop.json("runs", "list", "critic")
    assert (asked["event"], asked["state"], asked["parent"]) == ("ask", "done", sold["run"])
    table = shop.text("runs", "list").splitlines()
    assert table[0].split() == ["run", "agent", "state", "event", "steps", "began", "age"]
    assert any(line.split()[:5] == [sold["run"][:12], "seller", "done", "order.placed", "3"] for line in table)
    newest = shop.json("runs", "list", "--lines", "1")
    assert newest == shop.json("runs", "list")[-1:]


def test_a_timeline_goes_on_in_other_agents(shop: Cli, sold: Any) -> None:
    found = shop.json("runs", "show", sold["run"])
    assert [entry["kind"] for entry in found["timeline"]] == ["begun", "step", "step", "step", "done"]
    (asked,), (emitted,) = found["timeline"][2]["did"], found["timeline"][3]["did"]
    assert (asked["verb"], asked["what"]) == ("ask", "critic")
    assert [run["agent"] for run in asked["led_to"]] == ["critic"]
    assert (emitted["verb"], emitted["what"]) == ("emit", "order.priced")
    assert {run["agent"]: run["state"] for run in emitted["led_to"]} == {"shipper": "done", "clumsy": "dead"}
    assert found["spent"] == {"tokens": 1200, "usd": pytest.approx(0.0032)}
    assert [run["spent"] for run in asked["led_to"]] == [{"tokens": 7}]


def test_a_timeline_can_be_read(shop: Cli, sold: Any) -> None:
    lines = shop.text("runs", "show", sold["run"][:10]).splitlines()
    assert lines[0] == f"run {sold['run']} of seller: done"
    assert lines[1].startswith("order.placed, ")
    assert lines[2] == "cost 1,200 tokens, 0.0032 usd"
    told = "\n".join(lines[3:])
    pattern = (
        r"begun by event-order\+placed, EVENTS \d+: {\"items\":4}\n"
        r".* step price, .*: 12\n +cost 1,200 tokens, 0.0031 usd\n"
        r".* step review, .*: yes\n +asked critic answered in .*\n +→ run \w{12} of critic: done, cost 7 tokens\n"
        r" +emitted order.priced \d+\n +→ run \w{12} of \w+: \w+\n +→ run \w{12} of \w+: \w+\n"
        r".* step note, .*\n +cost 0.0001 usd\n.* done: 12: yes$"
    )
    assert re.search(pattern, told), told


def test_a_run_without_steps_tells_what_it_emitted(shop: Cli, sold: Any) -> None:
    (shipped,) = shop.json("runs", "list", "shipper")
    (entry,) = shop.json("runs", "show", shipped["run"])["timeline"]
    assert [(note["verb"], note["what"]) for note in entry["did"]] == [("emit", "order.shipped")]
    (failed,) = shop.json("runs", "list", "clumsy")
    assert "dead after attempt 1: ValueError: it fell down" in shop.text("runs", "show", failed["run"])


def test_a_run_is_followed_to_its_end(shop: Cli, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    emit(shop, "gate.reached", {"gate": str(gate)})
    (run,) = runs(shop, 1, "waiter", "--state", "running")
    with shop.start("runs", "tail", run["run"]) as tail:
        tail.wait_line("step before")
        gate.touch()
        tail.wait_line("step after, .*: there")
        assert tail.wait() == 0
    assert tail.lines[-1].endswith("done: there")
    kinds = [json.loads(line)["kind"] for line in shop.run("runs", "tail", run["run"], "--json").stdout.splitlines()]
    assert kinds == ["begun", "step", "step", "done"]


def test_what_is_no_run_is_said(shop: Cli, sold: Any) -> None:
    assert "the journals have no run 'zz'; `natterjack runs list` shows them" in shop.error(
        "runs", "show", "zz", code=4
    )
    assert "'a b' is no valid run id" in shop.run("runs", "show", "a b", code=2).stderr
    assert "'sold' is no state of a run; it is one of running, parked" in shop.error(
        "runs", "list", "--state", "sold", code=2
    )
    assert shop.run("runs", "list", "--since", "2099-01-01").stderr.startswith("no runs since 2099-01-01")


async def test_a_beginning_of_several_ids_is_refused(
    runtime: AgentRuntime, own_server: NatsServer, bus: Bus, cli: Cli
) -> None:
    cli.env["NATS_URL"] = own_server.url
    async with runtime:
        journal = StreamJournal().attach(bus)
        for run in ("abc1", "abc2", "de"):
            await journal.write(Entry("seller", run, 1, "done", {"result": run}, 1.0))
        error = await asyncio.to_thread(cli.error, "runs", "show", "abc", code=2)
        assert error == "'abc' begins the ids of 2 runs (abc1 of seller, abc2 of seller); write more of it"
        assert (await asyncio.to_thread(cli.json, "runs", "show", "abc2"))["run"] == "abc2"
        assert (await asyncio.to_thread(cli.json, "runs", "show", "d"))["run"] == "de"
