"""`natterjack explain`: whether somebody may do something, and which line says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final, get_args

import typer

from natterjack import ConfigError, Right, Team, Verb, agent_rights, read_team
from natterjack_permissions.guard import PermissionGuard, covers
from natterjack_permissions.star import CORE, OPERATOR

app = typer.Typer(name="explain")

_SETTINGS: Final = {
    "emit": "emits",
    "publish": "publishes",
    "ask": "asks",
    "write": "writes",
    "read": "reads",
    "replay": "replays",
}
_BESIDE: Final = {
    "core": "'core' reaches all that is stored, whoever's it is; nobody in the team has its key",
    "sys": "'sys' looks after the server, and reaches nothing of the team",
}
_ANSWERS: Final = ("serve", "provide")
"""What nobody does in another's name."""
_TALKS: Final = ("ask", "call", *_ANSWERS)
"""What is not stored."""
_READS_ALL: Final = (
    "The broker cannot narrow what somebody reads of the past: who replays or waits for any events can read all that"
    " are stored, past Natterjack"
)
_USERS: Final = {**_SETTINGS, "hear": "hears", "inject": "injects"}


@app.command()
def explain(
    who: Annotated[str, typer.Argument(metavar="WHO", help="An agent, a tool server or a user.")],
    verb: Annotated[str, typer.Argument(metavar="VERB", help="emit, publish, ask, write, read, replay, call, …")],
    what: Annotated[str, typer.Argument(metavar="WHAT", help="An event type, topic, agent, key, or SERVER/TOOL.")],
    *,
    team_file: Annotated[Path, typer.Option("--team", metavar="FILE", help="The team file.")] = Path("team.toml"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Say whether somebody may do something in secured mode, and which line decides; exit with 1 if not."""
    allowed, reason = explained(read_team(team_file), who, verb, what)
    if as_json:
        typer.echo(json.dumps({"allowed": allowed, "reason": reason}))
    else:
        typer.echo(f"{'yes' if allowed else 'no'}: {reason}")
    raise typer.Exit(0 if allowed else 1)


def explained(team: Team, who: str, verb: str, what: str) -> tuple[bool, str]:
    """Return whether somebody may do something in secured mode, and why.

    Args:
        team: The team.
        who: Agent, tool server, user or `operator`.
        verb: See `natterjack.Right`.
        what: Of what.

    Raises:
        ConfigError: There is no such principal or verb.
        InvalidNameError: There can be nothing that is called so, e.g. no event type.
        PatternError: The same of what may be a pattern.
    """
    closed = team.closed()
    rights = agent_rights(closed)
    operators = [OPERATOR, *team.operators]
    if who not in (*_BESIDE, *operators) and who not in rights:
        msg = f"the team has no {who!r}; there are {', '.join(sorted([*rights, *operators]))}"
        raise ConfigError(msg)
    known = get_args(Verb)
    if verb not in known:
        msg = f"{verb!r} is nothing that is allowed or refused; these are: {', '.join(known)}"
        raise ConfigError(msg)
    wanted = Right(verb, what)  # type: ignore[arg-type]
    wanted.check()
    if who in _BESIDE:
        return who == CORE.lower() and verb not in _TALKS, _BESIDE[who]
    bucket, slash, _ = what.partition("/")
    if slash and verb in ("read", "write") and bucket not in team.buckets:
        return False, f"the team has no bucket {bucket!r}"
    if who in operators:
        return _of_operator(team, who, verb)
    if who == what and verb == "ask" and who in team.agents:
        return True, f"{who!r} asks itself, for who comes by a door of its own, such as HTTP"
    own = [right for right in rights[who] if right.verb == verb]
    if verb == "delay" and who in team.agents:  # its right says whose stream holds them, its table which ones
        own = [wanted._replace(what=pattern) for pattern in team.agents[who].delays]
    holding = next((right for right in own if covers(right.what, what)), None)
    if holding is not None:
        return True, f"{who!r} may {verb} {holding.what!r}{_origin(closed, who, holding)}"
    return False, f"{who!r} may not {verb} {what!r}: {_refusal(closed, own, who, verb, what)}"


def _of_operator(team: Team, who: str, verb: str) -> tuple[bool, str]:
    if verb in _ANSWERS:
        return False, f"{who!r} answers for nobody else"
    origin = team.origin(who, "operator", table="users") if who in team.operators else ""
    return True, f"{who!r} may do all, in its own name{_stated(origin)}"


def _origin(team: Team, who: str, right: Right) -> str:
    """Return the line that gives it; or why it has it without one."""
    if right.verb == "read" and who in team.agents and team.agents[who].reads is None:
        return ": its table says nothing else"
    for rule in (*team.rules(), *team.reading()):
        if (rule.principal, rule.verb, rule.pattern) == (who, *right) and rule.origin:
            return _stated(rule.origin)
    key = {"call": "tools", "delay": "delays"}.get(right.verb)
    if key is not None:
        return _stated(team.origin(who, key, table="users" if who in team.users else "agents"))
    return ", which it needs to run"


def _stated(origin: str) -> str:
    return f" ({origin})" if origin else ""


def _refusal(team: Team, own: list[Right], who: str, verb: str, what: str) -> str:
    table, settings = ("users", _USERS) if who in team.users else ("agents", _SETTINGS)
    if verb not in settings:
        found = ", ".join(repr(right.what) for right in own)
        told = f"it may {verb} {found or 'nothing'}"
        is_delay = verb == "delay" and who in team.agents
        return f"{told}. To allow it, add {what!r} to `delays` of [agents.{who}]" if is_delay else told
    guard = PermissionGuard()
    guard.load([*team.rules(), *team.reading()], frozenset({("*", verb)}))  # type: ignore[arg-type]
    reason = guard.refuse(who, verb, what)  # type: ignore[arg-type]
    if who in team.tools:
        return f"{reason}. It is a tool server"
    adds = repr(what)
    if verb == "read" and who in team.agents and team.agents[who].reads is None:  # who has a list reads nothing else
        adds = f"'>' and {adds}"
    told = f"{reason}. To allow it, add {adds} to `{settings[verb]}` of [{table}.{who}]"
    return f"{told}. {_READS_ALL}" if verb == "replay" and own else told
