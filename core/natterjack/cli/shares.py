"""Shares: nobody fills a stream in which all store.

No limit of the server counts by who stores. So there is somebody who looks, five times a second: within an hour nobody
may store more than a quarter of the room that a stream has left or, where the oldest make room, of its size; and where
nothing makes room, nobody may hold more than half of it. Who has stored more is refused: its subjects are taken from
the stream, until what it stored in the last hour is half of that. And of a stream that refuses all when it is full,
only half of the room that is left is open at any moment: so no flood is too quick to be seen.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, Final

from natterjack import codec, subjects
from natterjack.bus import Bus
from natterjack.cli.holdings import Look, Store, size
from natterjack.cli.places import Place, places
from natterjack.errors import DisconnectedError, NatterjackError, NotProvisionedError, UsageError
from natterjack.record import stored_team
from natterjack.schedules import delay_source
from natterjack.stores import BEAT, REFUSED, SIZE

log = logging.getLogger("natterjack.storage")

_PAUSE: Final = 0.2


class Shares:
    """Refuses who stores more than its share, and lets it in again.

    Args:
        bus: The operator's connection, to a broker that knows who stores what.
        now: Tells the time, in Unix seconds.

    Raises:
        UsageError: The broker does not know who stores what.
    """

    def __init__(self, bus: Bus, now: Callable[[], float] = time.time) -> None:
        if not bus.server.attests:
            msg = f"{bus.server} does not know who stores what: in secured mode it does (natterjack secure team.toml)"
            raise UsageError(msg)
        self._bus, self._now = bus, now
        self._looks: list[Look] = []
        self._revision = 0
        self._published: dict[str, list[str]] | None = None
        self._told = 0.0

    async def enforce(self) -> None:
        """Look for ever; in the end all room is open again.

        Raises:
            DisconnectedError: The connection has ended for good.
        """
        try:
            while not self._bus.closed.is_set():
                try:
                    await self.look()
                except NotProvisionedError as error:
                    log.debug("there is nothing to look at yet: %s", error)
                except NatterjackError as error:
                    log.warning("what is stored cannot be looked at now: %s; it is tried again", error)
                await asyncio.sleep(_PAUSE)
            raise DisconnectedError(self._bus.reason)
        finally:
            if self._bus.connected:
                await self._release()

    async def _release(self) -> None:
        """Open all the room that streams have; who is refused stays so."""
        try:
            for look in self._looks:
                store = await look.store(quick=True)
                if store.config["max_bytes"] != store.size > 0:
                    await self._bus.api(f"STREAM.UPDATE.{store.name}", store.config | {"max_bytes": store.size})
        except NatterjackError as error:
            log.warning("not all room of the team's streams could be opened: %s; `natterjack provision` does it", error)

    async def look(self) -> list[Store]:
        """Look once at each stream, refuse and admit, and return what was found."""
        await self._follow_team()
        stores = [await self._settle(look.place, await look.store(quick=True)) for look in self._looks]
        refused = zip(self._looks, stores, strict=True)
        await self._publish({look.place.begins: store.refused for look, store in refused if store.refused})
        return stores

    async def _follow_team(self) -> None:
        """Take over another team; what was seen of its streams stays."""
        revision, _ = await self._bus.value(subjects.TEAM_BUCKET, subjects.TEAM_KEY)
        if revision == self._revision and self._looks:
            return
        team = await stored_team(self._bus)
        known = {look.place.stream: look for look in self._looks}
        self._revision, self._looks = revision, []
        for place in places(team):
            look = known.get(place.stream) or Look(self._bus, place, self._now)
            look.place = place
            self._looks.append(look)

    async def _publish(self, refused: dict[str, list[str]]) -> None:
        """Tell who is refused, and that somebody looks."""
        now = time.monotonic()
        if refused != self._published or now > self._told + BEAT:
            await self._bus.store(subjects.key(subjects.TEAM_BUCKET, subjects.REFUSED_KEY), codec.encode(refused))
            self._published, self._told = refused, now

    async def _settle(self, place: Place, store: Store) -> Store:
        """Have a stream take what it is to take, from whom it is to take it."""
        config = dict(store.config)
        refused = [who for who in store.over() if place.can_refuse(who)]
        if refused or store.refused:
            config["subjects"] = place.subjects(refused)
            if place.stream == subjects.EVENTS:
                config["sources"] = await self._sources(refused)
        config["max_bytes"] = store.open
        if refused == store.refused and _is_so(config, store.config):
            return store
        told = {REFUSED: " ".join(refused), SIZE: str(store.size)}
        config["metadata"] = (config.get("metadata") or {}) | told
        await self._bus.api(f"STREAM.UPDATE.{store.name}", config)
        self._tell(store, refused)
        return replace(store, config=config)

    async def _sources(self, refused: Collection[str]) -> list[dict[str, Any]]:
        """Return from where EVENTS takes what is due, where some are refused."""
        cut = {subjects.delay_stream(who) for who in refused}
        held = sorted(await self._bus.streams(subjects.delay("*")))
        return [delay_source(name, attested=True) for name in held if name not in cut]

    def _tell(self, store: Store, refused: Sequence[str]) -> None:
        for who in sorted({*refused} - {*store.refused}):
            facts = {"who": who, "stream": store.name, "stored": store.stored[who], "allowed": int(store.allowed)}
            self._bus.audit.note("authority", "refuse", **facts)
            told = f"{size(store.stored[who])} within an hour, of {size(store.allowed)} that anybody may"
            log.warning("%r is refused in %s: it stored %s", who, store.name, told)
        for who in sorted({*store.refused} - {*refused}):
            self._bus.audit.note("authority", "admit", who=who, stream=store.name)
            log.warning("%r may store in %s again", who, store.name)


def _is_so(wanted: dict[str, Any], config: dict[str, Any]) -> bool:
    """Tell whether a stream is as it is wanted; of its sources only the names count."""
    names, current = ([each["name"] for each in of.get("sources") or ()] for of in (wanted, config))
    same = all(wanted[key] == config[key] for key in ("subjects", "max_bytes"))
    return same and names == current
