"""What several tool servers have for one caller, under names of which each is unique and any client takes it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Final

from natterjack_mcp.wire import Message

MAX_NAME: Final = 64
"""Characters; the APIs of language models take no longer names of tools."""
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True, slots=True)
class Item:
    """A tool, resource or prompt of a server.

    Attributes:
        server: Whose.
        told: As its server tells it.
    """

    server: str
    told: Message


def by_name(items: Sequence[Item], taken: Collection[str] = ()) -> dict[str, Item]:
    """Return items by name: each by its own, or `server_name` where two have one, as `ctx.tools.list()` has it.

    Args:
        items: In an order that stays: of names that are equal even so, the later ones are numbered.
        taken: Names that none may have.
    """
    counts = Counter([*taken, *(_plain(each.told["name"]) for each in items)])
    found: dict[str, Item] = {}
    for each in items:
        name = _plain(each.told["name"])
        if counts[name] > 1:
            name = _plain(f"{each.server}_{each.told['name']}")
        numbered = (f"{name[: MAX_NAME - 4]}_{number}" for number in count(2))
        found[next(free for free in chain([name], numbered) if free not in found and free not in taken)] = each
    return found


def by_uri(items: Sequence[Item], key: str) -> dict[str, Item]:
    """Return items by URI, which no gateway can change: of two servers that have one, the first is read."""
    return {each.told[key]: each for each in reversed(items)}


def _plain(name: str) -> str:
    return _UNSAFE.sub("_", name)[:MAX_NAME]
