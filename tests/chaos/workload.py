"""The agents of the chaos suite, each in a process of its own: everything they do can be counted.

An event carries a number, and perhaps where the process that handles it shall die: at `weigh`, `journal`,
`emit` or `ack`, so many turns of the event loop later. It dies once for each event.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import Mapping
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

import orjson

from natterjack import Agent, Clock, Event, RunContext, WaitTimeoutError

FOLDER = "CHAOS_FOLDER"
"""Environment variable: where effects are written, and who died where."""
EFFECTS = "effects"
WORK = 0.01
"""Seconds that a step takes."""
REST = 1.2
"""Seconds that a slow run sleeps: more than it would wait out in its process."""
PATIENCE = 8.0
"""Seconds that it then waits for its bell."""

clock = Clock()
"""Load and faults are paced by it; what is waited for is asked for."""


def wisdom(number: int) -> str:
    """Return what the oracle says about a number."""
    return blake2b(str(number).encode(), digest_size=8).hexdigest()


def digest(state: Mapping[str, Any]) -> str:
    """Return a digest of a context, to compare replicas by."""
    return blake2b(orjson.dumps(dict(state), option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


class Replica(Agent):
    """Tells about the replica of the shared context that its process has."""

    async def answer(self, question: str, ctx: RunContext) -> str:
        """Return this process's id, and the digest of its context."""
        known = ctx.shared.keys()
        return f"{os.getpid()} {digest({key: ctx.shared.get(key) for key in known})}"


class Mortal(Replica):
    """Does what can be counted, and dies where an event wants it."""

    @cached_property
    def _folder(self) -> Path:
        return Path(os.environ[FOLDER])

    def effect(self, *what: object) -> str:
        """Do something outside that is seen by a line; returns what tells it from every repetition."""
        token = secrets.token_hex(8)
        file = os.open(self._folder / EFFECTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(file, " ".join(map(str, (*what, token, "\n"))).encode())
        finally:
            os.close(file)
        return token

    def die(self, event: Event, place: str) -> None:
        """Die here, or some turns of the event loop later, if the event wants it and nobody died of it yet."""
        order = event.data.get("die", {})
        if order.get("at") != place:
            return
        try:
            os.close(os.open(self._folder / f"died-{event.data['n']}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        self._die_in(int(order["turns"]))

    def _die_in(self, turns: int) -> None:
        if turns <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        asyncio.get_running_loop().call_soon(self._die_in, turns - 1)


class Ledger(Mortal):
    """Handles an event in steps: an effect outside, an ask, an event; then it writes to the shared context.

    Or slowly: it sleeps between two steps, and waits for a bell, which holds no process.
    """

    async def handle(self, event: Event, ctx: RunContext) -> dict[str, Any]:
        """Do one or the other, as the event's type says."""
        return await (self._slowly if event.type == "work.slow" else self._at_once)(event, ctx)

    async def _slowly(self, event: Event, ctx: RunContext) -> dict[str, Any]:
        number = int(event.data["n"])
        first = await ctx.step("begin", self.effect, "begin", number)
        await ctx.sleep(REST)
        try:
            await ctx.wait_for("work.bell", where=f"data.n == {number}", timeout=PATIENCE)
        except WaitTimeoutError:
            rang = False
        else:
            rang = True
        last = await ctx.step("end", self.effect, "end", number)
        return {"n": number, "first": first, "rang": rang, "last": last}

    async def _at_once(self, event: Event, ctx: RunContext) -> dict[str, Any]:
        number = int(event.data["n"])

        async def weigh() -> str:
            await clock.sleep(WORK)
            token = self.effect("weigh", number)
            self.die(event, "weigh")
            return token

        async def consult() -> str:
            said = await ctx.ask_peer("oracle", str(number), timeout=5.0)
            self.die(event, "journal")
            return str(said)

        async def tell() -> int:
            self.die(event, "emit")
            return await ctx.emit("work.told", {"n": number})

        weight = await ctx.step("weigh", weigh)
        said = await ctx.step("consult", consult)
        sequence = await ctx.step("tell", tell)
        await ctx.shared.set(f"weight.{number}", weight)
        self.die(event, "ack")
        return {"n": number, "weight": weight, "said": said, "told": sequence}


class Clerk(Mortal):
    """Notes what was told."""

    async def handle(self, event: Event, ctx: RunContext) -> int:
        number = int(event.data["n"])
        self.effect("note", number)
        await ctx.shared.set(f"noted.{number}", True)
        return number


class Oracle(Replica):
    """Knows something about every number."""

    async def answer(self, question: str, ctx: RunContext) -> str:
        return wisdom(int(question)) if question.isdecimal() else await super().answer(question, ctx)


class Victim(Mortal):
    """Handles what is fine, fails on what is bad, and dies of what is deadly."""

    deadly: ClassVar[str] = "deadly"

    async def handle(self, event: Event, ctx: RunContext) -> str:
        if event.data == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if event.data == "bad":
            msg = "nobody can handle this"
            raise ValueError(msg)
        return str(event.data)
