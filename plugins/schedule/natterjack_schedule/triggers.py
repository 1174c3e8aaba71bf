"""The triggers `cron`, `every` and `at`: the broker's own clock fires them, whoever is there by then."""

from __future__ import annotations

import asyncio
import hashlib
from abc import abstractmethod
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, Field

from natterjack import Firing, NatterjackError, ScheduleSpec, Settings, Trigger, TriggerContext
from natterjack_schedule.cron import before, firings, six_fields, zone_of

LATE: Final = 60.0
"""Seconds after which `missed = "skip"` lets a firing go."""
GRACE: Final = 10.0
"""Seconds the broker has to fire before it is suspected to have forgotten: it may be electing a leader."""
LOOK: Final = 15.0
"""Seconds between two looks, at least."""

_DAY: Final = 86_400.0
_LONGEST: Final = 80
_IN_LABELS: Final = str.maketrans({" ": "_", "*": "x", "/": "~", ",": "+", ".": "_", ":": "-"})


def label(name: str, text: str) -> str:
    """Return a trigger's label: one token of a subject, not too long."""
    safe = text.translate(_IN_LABELS)
    return f"{name}-{safe if len(safe) <= _LONGEST else hashlib.blake2b(text.encode(), digest_size=12).hexdigest()}"


class TimedTrigger(Trigger):
    """Base of the triggers that the broker's clock fires: they say when."""

    class Config(Settings):
        """What all have: what becomes of a firing that was missed."""

        missed: Literal["once", "skip"] = "once"

    config: Config

    @property
    @abstractmethod
    def when(self) -> str:
        """The schedule as the broker reads it."""

    @property
    def zone(self) -> str:
        """Time zone of the schedule; empty where it has none."""
        return ""

    @abstractmethod
    def due(self, firing: Firing) -> datetime:
        """Return when a firing was due."""

    @abstractmethod
    def after(self, moment: datetime) -> datetime | None:
        """Return when one is due next after a moment."""

    def schedules(self, agent: str) -> list[ScheduleSpec]:
        """One schedule."""
        return [ScheduleSpec(agent, self.label, self.when, self.zone)]

    async def run(self, ctx: TriggerContext) -> None:
        """Fire until cancelled."""
        (spec,) = self.schedules(ctx.agent)
        looking = asyncio.create_task(self._make_up(ctx, spec)) if self.config.missed == "once" else None
        try:
            await ctx.follow(spec, partial(self._take, ctx))
        finally:
            if looking is not None:
                looking.cancel()
                await asyncio.gather(looking, return_exceptions=True)

    async def _take(self, ctx: TriggerContext, firing: Firing) -> None:
        due = self.due(firing)
        if firing.missed:
            ctx.log.info("%s was missed while no process ran, and a later one takes its place", due.isoformat())
        elif self.config.missed == "skip" and (late := ctx.clock.now() - due.timestamp()) > LATE:
            ctx.log.warning("%s is %.0f s late, and skipped", due.isoformat(), late)
        else:
            await self._fire(ctx, due)

    async def _fire(self, ctx: TriggerContext, due: datetime) -> None:
        """Wake the agent for a time, once and for all."""
        next = self.after(due)
        data = {"scheduled": due.isoformat(), "next": None if next is None else next.isoformat()}
        await ctx.fire(data, id=due.astimezone(UTC).isoformat(), lasting=True)

    async def _make_up(self, ctx: TriggerContext, spec: ScheduleSpec) -> None:
        """Fire once for what the broker has forgotten: one that was killed may not know what fell due meanwhile."""
        suspected = made = datetime.fromtimestamp(0, UTC)
        while True:
            wait = LOOK
            try:
                due = await self._expected(ctx, spec, made)
                if due is None:
                    wait = _DAY
                elif (early := due.timestamp() + GRACE - ctx.clock.now()) > 0:
                    wait = min(max(early, LOOK), _DAY)
                elif due == suspected:
                    ctx.log.warning("the broker has not fired for %s; that is made up for", due.isoformat())
                    await self._fire(ctx, due)
                    made = datetime.fromtimestamp(ctx.clock.now(), UTC)
                suspected = due or suspected
            except NatterjackError as error:
                ctx.log.debug("cannot look whether the broker has fired, trying again: %s", error)
            await ctx.clock.sleep(wait)

    async def _expected(self, ctx: TriggerContext, spec: ScheduleSpec, made: datetime) -> datetime | None:
        """Return when the broker should fire, or should have fired, after its last time; None: never."""
        stands = await ctx.schedule(spec)
        if stands is None:
            return None
        last = stands.since if stands.last is None else self.due(stands.last)
        return self.after(max(last, made))


def _checked(expression: str) -> str:
    six_fields(expression)
    return " ".join(expression.split())


def _known(zone: str) -> str:
    zone_of(zone)
    return zone


class CronTrigger(TimedTrigger):
    """Fires at times of the clock, once however many replicas the agent has.

    The event's type is `cron`, its data `{"scheduled": "2026-12-01T09:00:00+01:00", "next": …}`.

    Example::

        CronTrigger("0 9 * * 1-5", zone="Europe/Amsterdam")

    In a team file: `on = [{ cron = "0 9 * * 1-5" }]`, or
    `on = [{ cron = { expression = "*/15 * * * *", zone = "Europe/Amsterdam", missed = "skip" } }]`.
    """

    name: ClassVar[str] = "cron"

    class Config(TimedTrigger.Config):
        """Settings: five fields, or six with seconds first; their time zone."""

        expression: Annotated[str, AfterValidator(_checked)]
        zone: Annotated[str, AfterValidator(_known)] = "UTC"

    config: Config

    def __init__(
        self, expression: str | Config, *, zone: str = "UTC", missed: Literal["once", "skip"] = "once"
    ) -> None:
        if isinstance(expression, str):
            expression = type(self).create({"expression": expression, "zone": zone, "missed": missed}).config
        super().__init__(expression)
        self._fields, self._zone = six_fields(expression.expression), zone_of(expression.zone)

    @property
    def label(self) -> str:
        """`cron-<expression>`, with the zone if it is not UTC."""
        zone = "" if self.config.zone == "UTC" else f"@{self.config.zone}"
        return label(self.name, self.config.expression + zone)

    @property
    def when(self) -> str:
        """Six fields."""
        return self._fields

    @property
    def zone(self) -> str:
        """Their time zone."""
        return "" if self.config.zone == "UTC" else self.config.zone

    def due(self, firing: Firing) -> datetime:
        """The time before the next."""
        return before(self._fields, self._zone, firing.next or firing.time)

    def after(self, moment: datetime) -> datetime | None:
        """The next time."""
        return next(firings(self._fields, self._zone, moment), None)


class EveryTrigger(TimedTrigger):
    """Fires every so many seconds, once however many replicas the agent has.

    The event's type is `every`, its data `{"scheduled": "2026-12-01T09:00:00+00:00", "next": …}`. The rhythm begins
    when the team is provisioned with it, and stays however often that is repeated.

    Example::

        EveryTrigger(60)

    In a team file: `on = [{ every = 60 }]`, or `on = [{ every = { seconds = 60, missed = "skip" } }]`.
    """

    name: ClassVar[str] = "every"

    class Config(TimedTrigger.Config):
        """Settings: whole seconds, 1 to a year."""

        seconds: int = Field(ge=1, le=366 * 86_400, strict=True)

    config: Config

    def __init__(self, seconds: int | timedelta | Config, *, missed: Literal["once", "skip"] = "once") -> None:
        if not isinstance(seconds, self.Config):
            seconds = type(self).create({"seconds": _whole(seconds), "missed": missed}).config
        super().__init__(seconds)

    @property
    def label(self) -> str:
        """`every-<seconds>`."""
        return label(self.name, str(self.config.seconds))

    @property
    def when(self) -> str:
        """`@every <n>s`."""
        return f"@every {self.config.seconds}s"

    def due(self, firing: Firing) -> datetime:
        """One interval before the next."""
        return firing.time if firing.next is None else firing.next - timedelta(seconds=self.config.seconds)

    def after(self, moment: datetime) -> datetime | None:
        """One interval later, on a whole second, as the broker counts."""
        whole = (moment + timedelta(milliseconds=500)).replace(microsecond=0)
        return whole + timedelta(seconds=self.config.seconds)


def _whole(seconds: Any) -> Any:
    """Return a timedelta of whole seconds as their number; all else as it is, to be checked."""
    if not isinstance(seconds, timedelta):
        return seconds
    return seconds // timedelta(seconds=1) if not seconds % timedelta(seconds=1) else seconds.total_seconds()


def _aware(time: datetime) -> datetime:
    if time.tzinfo is None:
        msg = "it has no time zone; write e.g. 2026-12-01T09:00:00Z or 2026-12-01T10:00:00+01:00"
        raise ValueError(msg)
    return time


class AtTrigger(TimedTrigger):
    """Fires once, at a moment. Provisioning again does not bring it again.

    The event's type is `at`, its data `{"scheduled": "2026-12-01T09:00:00+00:00", "next": None}`.

    Example::

        AtTrigger(datetime(2026, 12, 1, 9, tzinfo=UTC))

    In a team file: `on = [{ at = "2026-12-01T09:00:00Z" }]`.
    """

    name: ClassVar[str] = "at"

    class Config(TimedTrigger.Config):
        """Settings: the moment, with its zone."""

        time: Annotated[datetime, AfterValidator(_aware)]

    config: Config

    def __init__(self, time: datetime | str | Config, *, missed: Literal["once", "skip"] = "once") -> None:
        if not isinstance(time, self.Config):
            time = type(self).create({"time": time, "missed": missed}).config
        super().__init__(time)

    @property
    def _moment(self) -> str:
        return self.config.time.astimezone(UTC).isoformat().replace("+00:00", "Z")

    @property
    def label(self) -> str:
        """`at-<moment>`."""
        return label(self.name, self._moment)

    @property
    def when(self) -> str:
        """`@at <moment>`."""
        return f"@at {self._moment}"

    def due(self, firing: Firing) -> datetime:
        """The moment."""
        del firing
        return self.config.time

    def after(self, moment: datetime) -> datetime | None:
        """The moment, until it has come."""
        return self.config.time if self.config.time > moment else None
