"""Cron expressions: what is taken, how the broker reads it, and when it comes, also when clocks change."""

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natterjack_schedule.cron import before, firings, six_fields, zone_of


@pytest.mark.parametrize(
    ("expression", "fields"),
    [
        ("0 9 * * 1-5", "0 0 9 * * 1,2,3,4,5"),
        ("* * * * *", "0 * * * * *"),
        ("*/15 * * * * *", "0,15,30,45 * * * * *"),
        ("0 9 * * MON,fri", "0 0 9 * * 1,5"),
        ("0 9 * * 0,7", "0 0 9 * * 0"),
        ("0 9 * * 5-7", "0 0 9 * * 0,5,6"),
        ("30 6 1 jan-mar *", "0 30 6 1 1,2,3 *"),
        ("50/5 * * * *", "0 50,55 * * * *"),
        ("0 9 13 * 5", "0 0 9 13 * 5"),  # the 13th, and Fridays
        ("0 9 1-31 * 5", "0 0 9 " + ",".join(map(str, range(1, 32))) + " * 5"),  # a star would mean Fridays
        ("0 9 */2 * *", "0 0 9 " + ",".join(map(str, range(1, 32, 2))) + " * *"),
        ("0 0 29 2 *", "0 0 0 29 2 *"),
    ],
)
def test_expression_becomes_six_fields_of_numbers(expression: str, fields: str) -> None:
    assert six_fields(expression) == fields
    assert six_fields(fields) == fields


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("", "Wrong number of fields"),
        ("* * * *", "Wrong number of fields"),
        ("* * * * * * *", "Wrong number of fields"),
        ("60 * * * *", "Bad minute"),
        ("0 24 * * *", "Bad hour"),
        ("0 9 * * fry", "Bad day-of-week"),
        ("@daily", "Wrong number of fields"),
        ("0 9 L * *", "neither 'L' nor '#'"),
        ("0 9 * * 5L", "neither 'L' nor '#'"),
        ("0 9 * * 5#2", "neither 'L' nor '#'"),
        ("0 9 */2 * 1", "the broker knows no such days"),
        ("0 9 30 2 *", "Bad day-of-month"),
        ("0 9 31 4,6 *", "Bad day-of-month"),
    ],
)
def test_what_the_broker_cannot_do_is_told(expression: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        six_fields(expression)


@pytest.mark.parametrize("name", ["Europe/Atlantis", "", "..", "/etc/passwd", "CEST", "Europe"])
def test_unknown_zone_is_told(name: str) -> None:
    with pytest.raises(ValueError, match=r"is no time zone; write e\.g\."):
        zone_of(name)


@pytest.mark.parametrize("name", ["Africa/Cairo", "America/Santiago", "Australia/Lord_Howe", "Pacific/Chatham"])
def test_zone_in_which_the_broker_would_miss_times_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="around that day the broker would miss times"):
        zone_of(name)


# Computed by nats-server's own code (`parseCron` of server/cron.go, 2.15.2), at the changes of clocks of 2026 and 2027.
SERVER = [
    ("30 2 * * *", "Europe/Amsterdam", "2026-03-28", "28T02:30+0100 30T02:30+0200 31T02:30+0200 01T02:30+0200"),
    ("0 3 * * *", "Europe/Amsterdam", "2026-03-28", "28T03:00+0100 29T03:00+0200 30T03:00+0200 31T03:00+0200"),
    ("*/30 * * * *", "Europe/Amsterdam", "2026-03-29T01:20", "29T01:30+0100 29T03:00+0200 29T03:30+0200 29T04:00+0200"),
    ("30 2 * * *", "Europe/Amsterdam", "2026-10-24", "24T02:30+0200 25T02:30+0200 25T02:30+0100 26T02:30+0100"),
    (
        "15,45 1-3 * * *",
        "Europe/Amsterdam",
        "2026-10-25T01:50",
        "25T02:15+0200 25T02:45+0200 25T02:15+0100 25T02:45+0100",
    ),
    ("0 0 * * 0", "Europe/Amsterdam", "2026-10-20", "25T00:00+0200 01T00:00+0100 08T00:00+0100 15T00:00+0100"),
    ("30 2 * * *", "America/New_York", "2027-03-13", "13T02:30-0500 15T02:30-0400 16T02:30-0400 17T02:30-0400"),
    ("30 1 * * *", "America/New_York", "2026-10-31", "31T01:30-0400 01T01:30-0400 01T01:30-0500 02T01:30-0500"),
    ("0 9 1 * *", "America/New_York", "2026-10-15", "01T09:00-0500 01T09:00-0500 01T09:00-0500 01T09:00-0500"),
    ("0 2 * * *", "Antarctica/Troll", "2027-03-27", "27T02:00+0000 29T02:00+0200 30T02:00+0200 31T02:00+0200"),
    ("30 1 * * *", "Antarctica/Troll", "2026-10-24", "24T01:30+0200 25T01:30+0200 25T01:30+0000 26T01:30+0000"),
    ("30 1 * * *", "Europe/London", "2026-10-24", "24T01:30+0100 25T01:30+0100 25T01:30+0000 26T01:30+0000"),
    ("0 12 13 * 5", "UTC", "2026-01-01", "02T12:00+0000 09T12:00+0000 13T12:00+0000 16T12:00+0000"),
]


@pytest.mark.parametrize(("expression", "zone", "start", "times"), SERVER)
def test_times_are_those_of_the_server(expression: str, zone: str, start: str, times: str) -> None:
    there = zone_of(zone)
    begin = datetime.fromisoformat(start).replace(tzinfo=there)
    found = list(islice(firings(six_fields(expression), there, begin), 4))
    assert [f"{time:%dT%H:%M%z}" for time in found] == times.split()


EXPRESSIONS = [
    "30 2 * * *",
    "*/30 * * * *",
    "15,45 1-3 * * *",
    "0 0 * * 0",
    "0 9 1 * *",
    "0 */2 * * *",
    "*/20 * 2 * * *",
]
ZONES = ["UTC", "Europe/Amsterdam", "America/New_York", "Antarctica/Troll", "Asia/Kolkata", "Australia/Sydney"]
MOMENTS = st.datetimes(datetime(2026, 1, 1), datetime(2028, 1, 1), timezones=st.just(UTC))


@given(st.sampled_from(EXPRESSIONS), st.sampled_from(ZONES), MOMENTS)
@settings(max_examples=200, deadline=None)
def test_the_time_before_the_next_is_the_one_that_came(expression: str, zone: str, moment: datetime) -> None:
    fields, there = six_fields(expression), zone_of(zone)
    found = list(islice(firings(fields, there, moment), 10))
    assert [before(fields, there, later).astimezone(UTC) for _, later in pairwise(found)] == [
        earlier.astimezone(UTC) for earlier, _ in pairwise(found)
    ]
    assert all(earlier.astimezone(UTC) < later.astimezone(UTC) for earlier, later in pairwise(found))
    assert moment < found[0]
    assert found[0].astimezone(UTC) - moment <= timedelta(days=32)
    assert all(time.tzinfo == (ZoneInfo(zone) if zone != "UTC" else UTC) for time in found)
