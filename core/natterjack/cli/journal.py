"""Journals: `journal tail`."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Final

import typer

from natterjack import subjects
from natterjack.bus import Bus, Message
from natterjack.cli.options import JsonOption, NatsContextOption, ServerOption, check_agent, joined
from natterjack.cli.output import note, one_line, write, write_json
from natterjack.cli.run import run
from natterjack.components import Entry
from natterjack.errors import BrokerError
from natterjack.journal import live_entry, read_entry

app = typer.Typer(no_args_is_help=True, help="See what agents did.")

MAX_LAG: Final = 100_000
"""Live entries that may wait to be printed."""


@app.command()
def tail(
    agent: Annotated[str | None, typer.Argument(metavar="AGENT", help="Of one agent; all by default.")] = None,
    *,
    run_id: Annotated[str | None, typer.Option("--run", metavar="ID", help="Of one run.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last entries.")] = 50,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the last journal entries, one line each."""

    async def show() -> None:
        async with joined(server, nats_context) as client:
            if agent:
                await check_agent(client, agent)
            scope = agent or "*", subjects.check_type(run_id, "run id") if run_id else "*"
            if follow:
                await _follow(client.bus, *scope, lines, as_json=as_json)
                return
            entries = await _last(client.bus, *scope, lines)
            for entry in entries:
                _show(entry, as_json=as_json)
            if not entries and not as_json:
                note("no journal entries")

    run(show())


async def _last(bus: Bus, agent: str, run_id: str, count: int) -> list[Entry]:
    pattern = subjects.journal(agent, run_id, "*")
    last = deque([message async for message in bus.read(subjects.JOURNAL, pattern)], maxlen=count)
    # A message that is read directly comes on a reply subject; its own stands in a header.
    return [read_entry((message.headers or {})["Nats-Subject"], message.data) for message in last]


async def _follow(bus: Bus, agent: str, run_id: str, count: int, *, as_json: bool) -> None:
    """Print what is stored, then what comes; the feed begins first, so that nothing falls between."""
    feed = _Feed()
    subscription = await bus.subscribe(subjects.feed_journal(agent, run_id), feed.receive, on_lost=feed.lose)
    try:
        shown = set()
        for entry in await _last(bus, agent, run_id, count):
            _show(entry, as_json=as_json)
            shown.add((entry.agent, entry.run, entry.index))
        note("watching the journal; Ctrl-C ends it")
        while True:
            entry = await feed.next()
            if (entry.agent, entry.run, entry.index) not in shown:
                _show(entry, as_json=as_json)
    finally:
        await subscription.unsubscribe()


class _Feed:
    """Live entries, waiting to be printed; None stands for those that were lost."""

    def __init__(self) -> None:
        self._entries: asyncio.Queue[Entry | None] = asyncio.Queue()

    async def receive(self, message: Message) -> None:
        if self._entries.qsize() < MAX_LAG:
            self._entries.put_nowait(live_entry(message))
        else:
            self.lose()

    def lose(self) -> None:
        self._entries.put_nowait(None)

    async def next(self) -> Entry:
        entry = await self._entries.get()
        if entry is None:
            msg = "this tail fell behind and missed entries; start it again, with an AGENT or --run to see less"
            raise BrokerError(msg)
        return entry


def _show(entry: Entry, *, as_json: bool) -> None:
    time = datetime.fromtimestamp(entry.time, UTC)
    if as_json:
        write_json({**asdict(entry), "time": time})
    else:
        data = "" if entry.data is None else f"  {one_line(entry.data)}"
        write(f"{time.astimezone():%H:%M:%S}  {entry.agent}  {entry.run}  {entry.index}  {entry.kind}{data}")
