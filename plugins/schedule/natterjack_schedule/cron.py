"""Cron expressions: checked and previewed by cronsim, and written as the broker reads them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

_FIELDS: Final = (range(60), range(60), range(24), range(1, 32), range(1, 13), range(7))
_DAY, _WEEKDAY = 3, 5
_YEARS: Final = 3
"""How far ahead it is looked when a zone's clocks change."""
_HOUR: Final = timedelta(hours=1)


def zone_of(name: str) -> tzinfo:
    """Return a time zone by its name.

    Raises:
        ValueError: There is none of this name, or the broker would lose its way in it.
    """
    if name == "UTC":
        return UTC
    try:
        zone = ZoneInfo(name)
    except (OSError, ValueError, LookupError) as error:  # a folder, a path, or nothing at all
        msg = f"{name!r} is no time zone; write e.g. 'Europe/Amsterdam' or 'UTC'"
        raise ValueError(msg) from error
    _check_changes(zone, datetime.now(UTC).year)
    return zone


@cache
def _check_changes(zone: ZoneInfo, year: int) -> None:
    """Refuse a zone whose clocks change other than by whole hours, at a whole hour after midnight.

    There nats-server (2.15) misses times, for weeks where it looks for a day behind a midnight that is not.
    """
    day, end = datetime(year, 1, 1, tzinfo=zone), datetime(year + _YEARS, 1, 1, tzinfo=zone)
    while day < end:
        after = day + timedelta(days=1)
        if not _is_plain(zone, day, after):
            msg = (
                f"the clocks of {zone.key} change at midnight, or not by or at a whole hour ({day:%Y-%m-%d}): around"
                " that day the broker would miss times. Write them in 'UTC', or in another zone that has the same time"
            )
            raise ValueError(msg)
        day = after


def _is_plain(zone: ZoneInfo, day: datetime, after: datetime) -> bool:
    if after.astimezone(UTC).astimezone(zone) != after:  # there is no such midnight
        return False
    shift = _offset(after) - _offset(day)
    hours = [(day.astimezone(UTC) + number * _HOUR).astimezone(zone) for number in range(24)] if shift else []
    ends = [(hour.astimezone(UTC) + _HOUR - timedelta(seconds=1)).astimezone(zone) for hour in hours]
    return not shift % _HOUR and list(map(_offset, hours)) == list(map(_offset, ends))


def _offset(moment: datetime) -> timedelta:
    return moment.utcoffset() or timedelta()


def six_fields(expression: str) -> str:
    """Return an expression of five or six fields as the broker reads it: six fields of numbers, seconds first.

    Raises:
        ValueError: It is malformed, never comes, or needs what the broker cannot do.
    """
    cron = _parsed(expression)
    weekdays = {day % 7 for day in cron.weekdays if isinstance(day, int)}  # Sunday is 0 and 7
    sets = (cron.seconds, cron.minutes, cron.hours, cron.days, cron.months, weekdays)
    if min(cron.days) < 0 or not all(isinstance(day, int) for day in cron.weekdays):
        msg = f"{expression!r}: the broker knows neither 'L' nor '#'; write days by their numbers"
        raise ValueError(msg)
    full = [set(values) == set(field) for values, field in zip(sets, _FIELDS, strict=True)]
    if cron.day_and and not (full[_DAY] or full[_WEEKDAY]):
        msg = f"{expression!r} wants days of the month that are certain weekdays, too: the broker knows no such days"
        raise ValueError(msg)
    # With a star in one, both fields of the day must match; with none, either.
    stars = [each and (at not in (_DAY, _WEEKDAY) or cron.day_and) for at, each in enumerate(full)]
    fields = ("*" if star else ",".join(map(str, sorted(values))) for star, values in zip(stars, sets, strict=True))
    found = " ".join(fields)
    if next(firings(found, UTC, datetime.now(UTC)), None) is None:
        msg = f"{expression!r} never comes: no month has such a day"
        raise ValueError(msg)
    return found


def _parsed(expression: str) -> CronSim:
    try:
        return CronSim(expression, datetime.now(UTC))
    except CronSimError as error:
        msg = f"{expression!r} is no cron expression ({error}); write e.g. '0 9 * * 1-5', or six fields, seconds first"
        raise ValueError(msg) from error


def firings(fields: str, zone: tzinfo, after: datetime) -> Iterator[datetime]:
    """Yield when six fields come after a moment, as the broker has them.

    A time that a day does not have, when clocks go forward, does not come; one that it has twice comes twice.
    """
    yield from CronSim(fields, after.astimezone(zone))


def before(fields: str, zone: tzinfo, moment: datetime) -> datetime:
    """Return when six fields last came before a moment."""
    return next(CronSim(fields, moment.astimezone(zone), reverse=True))
