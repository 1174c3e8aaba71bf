"""What a model is offered to call: exactly what its agent may do, which is checked again when it does it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from pydantic_core import from_json

from natterjack import ConfigError
from natterjack_llm.turn import Turn, TurnContext

Arguments = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Offer:
    """Something that a model may call.

    Attributes:
        name: Unique in its turn.
        description: What it does.
        schema: JSON Schema of its arguments.
        call: Does it, and returns JSON; of a tool that a human must allow, `approval` says where one did.
        is_step: Whether it is a step of the run; not, if it consists of calls that are.
    """

    name: str
    description: str
    schema: Mapping[str, Any]
    call: Callable[..., Awaitable[Any]]
    is_step: bool = True


async def offers(turn: Turn) -> list[Offer]:
    """Return what the model of a turn may call; a tool that is called like ours has its server's name before it."""
    ctx = turn.ctx
    own = [*_peers(ctx), *_events(ctx), *_messages(ctx), *_context(ctx), *_humans(turn)]
    names = {offer.name for offer in own}
    found = []
    for tool in await ctx.tools.list():
        name = f"{tool.server}_{tool.tool}" if tool.name in names else tool.name
        call = partial(_call_tool, ctx, f"{tool.server}.{tool.tool}")
        found.append(Offer(name, tool.description, tool.schema, call))
    return [*own, *found]


async def _call_tool(ctx: TurnContext, address: str, arguments: Arguments, approval: str = "") -> Any:
    return await ctx.tools.call_with(address, arguments, approval=approval)


def _object(**properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name, schema in properties.items() if "default" not in schema],
        "additionalProperties": False,
    }


def _text(description: str, choices: Sequence[str] = ()) -> dict[str, Any]:
    return {"type": "string", "description": description, **({"enum": list(choices)} if choices else {})}


# Peers


def _peers(ctx: TurnContext) -> list[Offer]:
    names = list(dict.fromkeys([*(ctx.spec.asks or ()), *ctx.spec.cross_agents]))
    if not names:
        return []
    several = {
        "type": "array",
        "items": _text("An agent.", names),
        "minItems": 1,
        "maxItems": len(names),
        "uniqueItems": True,
    }

    async def ask_peer(given: Arguments) -> Any:
        name = _one_of(given["name"], names, "agent")
        return {"agent": name, "answer": str(await ctx.ask_peer(name, given["question"]))}

    async def broadcast(given: Arguments) -> Any:
        asked = [_one_of(name, names, "agent") for name in given["names"]]
        answers = await ctx.broadcast(asked, given["question"])
        failures = {name: str(error) for name, error in answers.failures.items()}
        return {"answers": {name: str(answer) for name, answer in answers.items()}, "failures": failures}

    return [
        Offer(
            "ask_peer",
            "Ask another agent, and get its answer.",
            _object(name=_text("Whom.", names), question=_text("The question, with all that it must know.")),
            ask_peer,
        ),
        Offer(
            "broadcast",
            "Ask several agents the same at once, and get the answers of those that answer.",
            _object(names=several, question=_text("The question.")),
            broadcast,
        ),
    ]


def _one_of(name: str, names: Sequence[str], what: str) -> str:
    if name not in names:
        msg = f"{name!r} is no {what} that you may use; it is one of {', '.join(names)}"
        raise ConfigError(msg)
    return name


# Events and messages


_DATA: Final = {"description": "What there is to know of it, as JSON.", "default": None}


def _events(ctx: TurnContext) -> list[Offer]:
    allowed = ctx.spec.emits
    if allowed == ():
        return []
    types = ", ".join(ctx.heard("emit") if allowed is None else allowed) or "any"
    description = f"Tell the team that something happened. Types of events (`*` is any word, `>` any words): {types}."

    async def emit(given: Arguments) -> Any:
        return {"emitted": given["type"], "sequence": await ctx.emit(given["type"], _parsed(given.get("data")))}

    return [Offer("emit", description, _object(type=_text("Type of the event."), data=_DATA), emit)]


def _messages(ctx: TurnContext) -> list[Offer]:
    allowed = ctx.spec.publishes
    topics = ctx.heard("publish") if allowed is None else allowed
    if not topics:
        return []

    async def publish(given: Arguments) -> Any:
        return {"published": given["topic"], "sequence": await ctx.publish(given["topic"], _parsed(given.get("data")))}

    description = f"Send a message to a topic. Topics (`*` is any word, `>` any words): {', '.join(topics)}."
    return [Offer("publish", description, _object(topic=_text("The topic."), data=_DATA), publish)]


def _parsed(data: Any) -> Any:
    """Return JSON that a model wrote as text as what it means."""
    if isinstance(data, str) and data[:1] in ("{", "["):
        try:
            return from_json(data)
        except ValueError:  # also of what is nested too deep
            return data
    return data


# The shared context


def _context(ctx: TurnContext) -> list[Offer]:
    readable = ctx.spec.keys_in("", "read")
    found = []
    if readable != ():
        keys = "any" if readable is None else ", ".join(readable)

        async def get_context(given: Arguments) -> Any:
            return {"key": given["key"], "value": ctx.shared.get(given["key"])}

        description = f"Read a value that the team shares. Keys: {keys}."
        found.append(Offer("get_context", description, _object(key=_text("The key.")), get_context))
    if writable := ctx.spec.keys_in("", "write"):

        async def set_context(given: Arguments) -> Any:
            return {"key": given["key"], "revision": await ctx.shared.set(given["key"], _parsed(given["value"]))}

        description = f"Write a value that the team shares. Keys: {', '.join(writable)}."
        value = {"description": "The value, as JSON."}
        found.append(Offer("set_context", description, _object(key=_text("The key."), value=value), set_context))
    return found


# Humans


def _humans(turn: Turn) -> list[Offer]:
    if not turn.ctx.spec.asks_humans:
        return []

    async def ask_human(given: Arguments) -> Any:
        return {"answer": await turn.ask_human(given["question"], tuple(given.get("choices") or ()))}

    choices = {"type": "array", "items": _text("An answer."), "description": "What may be answered.", "default": None}
    schema = _object(question=_text("The question, with all that it must know."), choices=choices)
    description = "Ask a human of the team; it may take days. Only for what nobody else can decide."
    return [Offer("ask_human", description, schema, ask_human, is_step=False)]
