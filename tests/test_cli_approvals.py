"""`approvals list|approve|deny`, against a team that runs."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from natterjack.testing.command import Cli

TEAM = """\
[team]
name = "office"
external = ["invoice.received"]

[agents.payer]
kind = "office:Payer"
on = ["invoice.received"]
waits = ["approval.answered"]
max_attempts = 1
"""

OFFICE = '''\
"""An agent that pays what a human allows."""

from natterjack import Agent


class Payer(Agent):
    """Pays."""

    async def handle(self, event, ctx):
        return await ctx.ask_human(f"Pay {event.data['sum']} EUR?", choices=event.data.get("choices", ()))
'''


@pytest.fixture
def office(
    tmp_path: Path,
    quick_in: Callable[[Path], Cli],
    served_team: Callable[[Cli], AbstractContextManager[None]],
) -> Iterator[Cli]:
    cli = quick_in(tmp_path)
    cli.write(team_toml=TEAM, office_py=OFFICE)
    with served_team(cli):
        yield cli


def asked(office: Cli, invoice: str, count: int = 1) -> list[dict[str, Any]]:
    """What waits for a human, once an invoice has come and so much waits."""
    office.run("emit", "invoice.received", invoice)
    found: list[dict[str, Any]] = office.until_json(lambda found: len(found) == count, "approvals", "list")
    return found


def ended(office: Cli, state: str, count: int = 1) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = office.until_json(lambda found: len(found) == count, "runs", "list", "--state", state)
    return found


def test_a_human_sees_what_waits_and_decides(office: Cli) -> None:
    assert office.json("approvals", "list") == []
    (first,) = asked(office, '{"sum": 100, "choices": ["yes", "half", "no"]}')
    assert (first["agent"], first["question"], first["choices"]) == ("payer", "Pay 100 EUR?", ["yes", "half", "no"])
    table = office.text("approvals", "list")
    assert "yes / half / no" in table
    assert first["id"][:12] in table
    error = office.error("approvals", "approve", first["id"], "perhaps", code=2)
    assert error == "'perhaps' is no answer to 'Pay 100 EUR?'; choose one of yes, half, no"
    assert "no question waits" in office.error("approvals", "approve", "ffff", code=2)
    said = office.text("approvals", "approve", first["id"][:8], "half", "--by", "anna")
    assert said == "answered 'half': Pay 100 EUR?"
    (done,) = ended(office, "done")
    assert office.json("runs", "show", done["run"])["timeline"][-1]["data"]["result"] == "half"
    assert office.json("approvals", "list") == []
    assert "no question waits" in office.error("approvals", "approve", first["id"], code=2)


def test_a_human_says_no_and_the_run_is_told_who_and_why(office: Cli) -> None:
    (first,) = asked(office, '{"sum": 5}')
    second = next(each for each in asked(office, '{"sum": 7}', 2) if each["id"] != first["id"])
    assert "several questions begin with ''" in office.error("approvals", "deny", "", code=2)
    office.run("approvals", "deny", first["id"], "--reason", "too much", "--by", "anna")
    (dead,) = ended(office, "dead")
    cause = office.json("runs", "show", dead["run"])["timeline"][-1]["data"]["cause"]
    assert cause == "ApprovalDeniedError: anna said no to 'Pay 5 EUR?': too much"
    assert [each["id"] for each in office.json("approvals", "list")] == [second["id"]]
    office.run("runs", "cancel", second["run"])
    assert office.json("approvals", "list") == []
