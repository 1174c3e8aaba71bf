"""The agents of team.toml."""

from natterjack import Agent, Event, RunContext, Settings


class Clerk(Agent):
    """Takes orders."""

    async def handle(self, event: Event, ctx: RunContext) -> str:
        what = event.data["what"]
        orders = await ctx.shared.update("orders", lambda orders: [*orders, what])
        await ctx.emit("order.accepted", what)
        return f"order {len(orders)}: {what}"

    async def answer(self, question: str, ctx: RunContext) -> str:
        return ", ".join(ctx.shared.get("orders"))


class Packer(Agent):
    """Packs what was ordered, with a greeting."""

    class Config(Settings):
        greeting: str = "Yours"

    config: Config

    async def handle(self, event: Event, ctx: RunContext) -> str:
        return f"{event.data}. {self.config.greeting}"


class Door(Agent):
    """Notes who is there."""

    async def handle(self, event: Event, ctx: RunContext) -> None:
        ctx.log.info("%s: %s", event.type, event.data)
