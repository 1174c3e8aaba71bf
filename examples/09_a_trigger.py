"""A trigger of one's own: each new file in a folder wakes an agent.

What a trigger fires is stored in its agent's inbox, and handled with attempts and dead letters like any event. Put the
class into a package with one hook, `natterjack_triggers`, and team files can say `on = [{ newfiles = "letters" }]`.

Prints:
    hello.txt: Dear toad!
    a folder must be named: newfiles: 'folder' is missing
"""

import asyncio
from pathlib import Path
from typing import ClassVar

from natterjack import (
    Agent,
    AgentProcess,
    AgentRuntime,
    ConfigError,
    Event,
    RunContext,
    Settings,
    Trigger,
    TriggerContext,
)


class NewFiles(Trigger):
    """Fires for each file in a folder: `on = [{ newfiles = { folder = "letters", every = 5.0 } }]`."""

    name: ClassVar = "newfiles"

    class Config(Settings):
        folder: Path
        every: float = 1.0  # seconds

    async def run(self, ctx: TriggerContext) -> None:
        while True:
            for path in sorted(self.config.folder.glob("*.txt")):
                text = path.read_text()
                await ctx.fire({"name": path.name, "text": text}, type="file.new", id=path.name)  # stored, once
                path.unlink()
            await asyncio.sleep(self.config.every)


class Reader(Agent):
    """Reads letters, and says so."""

    async def handle(self, event: Event, ctx: RunContext) -> None:
        print(f"{event.data['name']}: {event.data['text']}")
        await ctx.emit("letter.read", event.data["name"])


async def main(letters: Path) -> None:
    trigger = NewFiles.create({"folder": letters, "every": 0.1})
    runtime = AgentRuntime()
    runtime.add_process(AgentProcess(name="reader", agent=Reader(), triggers=[trigger]))
    async with runtime, runtime.event_bus.subscribe("letter.read") as read:
        (letters / "hello.txt").write_text("Dear toad!")
        await anext(read)
    try:
        NewFiles.create({})
    except ConfigError as error:
        print("a folder must be named:", error)


Path("letters").mkdir(exist_ok=True)
asyncio.run(main(Path("letters")))
