"""Conditions: what they say, what is refused at once, and that nothing makes them slow or dangerous."""

import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natterjack.errors import ConfigError, PayloadError
from natterjack.expressions import EVENT_VARIABLES, MAX_LENGTH, RESULT_VARIABLES, Condition

NOW = datetime(2026, 11, 22, tzinfo=UTC)
DATA = {"total": 150, "rate": 2.5, "tags": ["x"], "none": None, "ship": {"to": {"city": "Ulm"}}, "big": 2**63, "k-v": 1}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ('data.total > 100 && source == "shop"', True),
        ('data.total > 100.5 && source != "shop"', False),
        ('"x" in data.tags', True),
        ('"total" in data', True),
        ("has(data.total) && !has(data.discount)", True),
        ('data.ship.to.city == "Ulm"', True),
        ('data["k-v"] == 1', True),
        ("data.rate >= 2", True),
        ("data.big > 1", True),
        ("data.none == null", True),
        ("size(data.tags) == 1", True),
        ('type.startsWith("order.") && type.endsWith("placed")', True),
        ('time > timestamp("2026-01-01T00:00:00Z")', True),
        ("data.total > 1000 ? false : true", True),
        ("data.missing == 1 || data.total == 150", True),  # what decides need not be the first
        ("data.total == 150 || data.missing == 1", True),
    ],
)
def test_conditions_hold_or_not(text: str, holds: bool) -> None:
    values = {
        "data": DATA,
        "source": "shop",
        "type": "order.placed",
        "id": "1",
        "time": datetime(2026, 11, 22, tzinfo=UTC),
    }
    assert Condition(text, EVENT_VARIABLES).holds(**values) is holds


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("data.total >", "mismatched input '<EOF>' \\(character 13\\); write e.g."),
        ("data.total = 3", "\\(character 12\\)"),
        ("data.total > 1 and data.x", "mismatched input 'and' \\(character 16\\)"),
        ("", "is no valid condition"),
        ("dat.total > 3", "unknown name 'dat'. Did you mean 'data'\\?"),
        ("True", "unknown name 'True'. Did you mean 'true'\\?"),
        ("result.quality > 3", "unknown name 'result'. There are: data, type, source, id, time"),
        ("sise(data) > 1", "unknown function 'sise'. Did you mean 'size'\\?"),
        ("__import__('os')", "unknown function '__import__'"),
        ("open('/etc/passwd')", "unknown function 'open'"),
        ("data.name.matches('(a+)+')", "unknown function 'matches'"),
        ("data.items.exists(i, i > 1)", "walks a list by `exists`"),
        ("[1].map ( data, data) == 1", "walks a list by `map`"),
        ("data\n== 1", "one line of 500 characters"),
        ("data == " + "1" * MAX_LENGTH, "one line of 500 characters"),
        ("(" * 17 + "true" + ")" * 17, "16 brackets deep"),
        ("1", "neither true nor false"),
        ("1 / 0 == 1", "division by zero"),
    ],
)
def test_what_is_wrong_is_said_at_once(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as raised:
        Condition(text, EVENT_VARIABLES)
    assert "\n" not in str(raised.value)


def test_a_missing_field_does_not_hold_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    condition = Condition("data.total > 100", EVENT_VARIABLES)
    assert not condition.holds(data={})
    assert not condition.holds(data={"totl": 200})
    assert [record.message for record in caplog.records] == [
        "the condition 'data.total > 100' does not hold where 'total' is missing (said once);"
        " `has(…)` asks without this line"
    ]
    assert not Condition("data.tags[3] == 1", EVENT_VARIABLES).holds(data=DATA)


@pytest.mark.parametrize("data", [{"total": "a lot"}, {"total": None}, {"total": True}, "text", None, 3, [1]])
def test_what_cannot_be_decided_is_an_error(data: Any) -> None:
    with pytest.raises(PayloadError, match=r"'data.total > 100' cannot be decided"):
        Condition("data.total > 100", EVENT_VARIABLES).holds(data=data)


def test_what_is_no_truth_value_is_an_error() -> None:
    with pytest.raises(PayloadError, match="gives 150, which is neither true nor false"):
        Condition("data.total", EVENT_VARIABLES).holds(data=DATA)


def test_results_have_one_name_more() -> None:
    condition = Condition("result.quality >= 3 && data.round < 2", RESULT_VARIABLES)
    assert condition.holds(result={"quality": 3.5}, data={"round": 1})


HOSTILE = [
    *("(" * 16 + "1" + ")" * 16 + " == 1", "[" * 16 + "]" * 16 + " == 1", "{1:" * 16 + "1" + "}" * 16 + " == 1"),
    *("!" * 490 + "data", "-" * 490 + "1 == 1", "data" + ".a" * 240, "data == " + "+".join("1" * 240)),
    *("&&".join(["data"] * 80), "||".join(["data.x"] * 60), "data" + "?true:true" * 40, "((((((((((((((((", "'" * 499),
]


def test_hostile_conditions_end_soon_even_on_a_small_stack() -> None:
    ended = []

    def attempt() -> None:
        for text in HOSTILE:
            try:
                Condition(text, EVENT_VARIABLES).holds(data=True)
            except (ConfigError, PayloadError):
                ended.append(text)
                continue
            ended.append(text)

    Condition("data", EVENT_VARIABLES)  # the import takes its time
    size = threading.stack_size(512 * 1024)
    try:
        thread = threading.Thread(target=attempt, daemon=True)
    finally:
        threading.stack_size(size)
    begun = time.perf_counter()
    thread.start()
    thread.join(20)
    assert ended == HOSTILE
    assert time.perf_counter() - begun < 5


def test_large_data_take_time_in_proportion() -> None:
    condition = Condition(" || ".join(['"x" in data.many'] * 20), EVENT_VARIABLES)
    begun = time.perf_counter()
    assert not condition.holds(data={"many": [f"y{n}" for n in range(50_000)]})
    assert time.perf_counter() - begun < 5


@given(
    st.text(alphabet="datype.()[]{}!=<>&|?:+-*/%'\" 0123456789,inhs", max_size=60),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=8,
    ),
)
@settings(max_examples=300, deadline=None)
def test_any_text_and_any_data_give_true_false_or_an_error_of_ours(text: str, data: Any) -> None:
    with suppress(ConfigError, PayloadError):
        assert Condition(text, EVENT_VARIABLES).holds(data=data, type="x", source="", id="1") in (True, False)


def test_the_language_is_loaded_only_where_it_is_used() -> None:
    code = "import sys, natterjack; natterjack.EventTrigger('a'); print('cel' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
