"""The star: an account for each principal, around one for all that is stored; a principal's authority is its imports.

Permissions inside one account do not protect what JetStream stores: a reply subject makes the server publish where its
client may not. Across accounts nothing reaches further than what was imported. So each principal has an account of its
own, and `CORE` has the streams; what a principal publishes, asks or hears passes through `CORE`, by an import each.
Users' permissions repeat the list, so that what is refused is refused aloud.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from natterjack import Permissions, matches, widest

CORE: Final = "CORE"
API: Final = "CORE.API"
"""Prefix of the JetStream API in a principal's account: `$JS.API` is its own, where nothing is stored."""
PREFIX: Final = "P-"
"""Before a principal's name, in that of its account: no principal is called `CORE` or `SYS` so."""
OPERATOR: Final = Permissions(
    publish=(
        "$JS.ACK.>",
        *(f"$JS.API.CONSUMER.{verb}.>" for verb in ("CREATE", "DELETE", "DURABLE", "INFO", "LIST", "NAMES", "PAUSE")),
        "$JS.API.CONSUMER.MSG.NEXT.>",
        "$JS.API.DIRECT.GET.*",
        "$JS.API.DIRECT.GET.*.>",
        "$JS.API.INFO",
        "$JS.API.STREAM.>",
        "$JS.FC.>",
        "$KV.>",
        "$O.>",
        "$SRV.>",
        "agents.answer.>",
        "agents.ask.>",
        "agents.cancel.>",
        "agents.prompt.>",
        "agents.status.>",
        "dead.>",
        "delay.operator.>",
        "events.>",
        "inbox.*.>",
        "journal.>",
        "messages.>",
        "schedule.>",
        "tools.>",
        "wake.>",
    ),
    subscribe=("_INBOX.operator.>", "agents.hb.>", "feed.>", "tools.*.changes"),
)
"""What the operator may, who provisions and looks after the team: all but to be somebody else."""
_JETSTREAM: Final = "$JS.API."
_KEYS: Final = ("$KV.context", "$KV.>")
"""Keys of the shared context; the `nats` command line puts the API's prefix before them."""
_STORED: Final = ("events", "messages")
_ENDPOINTS: Final = ("agents.ask", "agents.prompt", "agents.cancel", "agents.answer", "agents.status", "tools", "$SRV")
"""What is answered by another principal, and not by the server."""


class Import(NamedTuple):
    """What an account may do in another, and how it calls that itself."""

    subject: str
    to: str


@dataclass(frozen=True, slots=True)
class Account:
    """The account of a principal.

    Attributes:
        principal: Whose it is.
        calls: What it may publish into `CORE`.
        hears: What it hears of `CORE`.
        serves: What `CORE` passes on to it.
        publish: Where its user may publish.
        subscribe: What its user may subscribe to.
    """

    principal: str
    calls: tuple[Import, ...]
    hears: tuple[str, ...]
    serves: tuple[str, ...]
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its name on the server."""
        return f"{PREFIX}{self.principal}"


def star(granted: Mapping[str, Permissions]) -> list[Account]:
    """Return the accounts that grant each principal exactly this.

    Args:
        granted: What each may do, as it would be said in one account.
    """
    return [_account(name, permissions, granted) for name, permissions in sorted(granted.items())]


def _account(name: str, permissions: Permissions, granted: Mapping[str, Permissions]) -> Account:
    others = [subject for other, each in granted.items() if other != name for subject in each.serve]
    local = [subject for subject in permissions.publish if any(matches(each, subject) for each in permissions.serve)]
    sent = [subject for subject in permissions.publish if subject not in local]
    calls = _widest(call for subject in sent for call in _calls(name, subject, others))
    own = {each for each in permissions.subscribe if each.startswith("_INBOX.") or each in permissions.publish}
    return Account(
        name,
        tuple(calls),
        tuple(widest(sorted(set(permissions.subscribe) - own))),
        permissions.serve,
        tuple(sorted({*(call.to for call in calls), *local, "_R_.>", "_INBOX.>"})),
        tuple(sorted({*permissions.subscribe, *permissions.serve})),
    )


def _calls(name: str, subject: str, others: Sequence[str]) -> Iterator[Import]:
    """Yield what an account imports, so that its principal may publish on a subject."""
    root, _, rest = subject.partition(".")
    if subject.startswith("_INBOX."):
        return  # replies go the way that the question came
    if subject.startswith(_JETSTREAM):
        yield Import(subject, f"{API}.{subject.removeprefix(_JETSTREAM)}")
    elif root in _STORED:
        yield Import(f"stored.{root}.{name}.{rest}", subject)
    elif root == "inbox":
        agent, _, kind = rest.partition(".")
        yield Import(f"stored.inbox.{agent}.{name}.{kind}", subject)
    elif subject.startswith(_ENDPOINTS):
        yield from _served(subject, others)
    else:
        yield Import(subject, subject)
    if subject.startswith(_KEYS):
        yield Import(subject, f"{API}.{subject}")


def _served(subject: str, others: Sequence[str]) -> Iterator[Import]:
    """Yield what others answer of a pattern, and never more: what one serves itself would come back to it for ever."""
    found = {both for each in others if (both := common(subject, each)) is not None}
    if not found and "*" not in subject and ">" not in subject:
        found = {subject}
    for each in sorted(found):
        yield Import(each, each)


def common(one: str, other: str) -> str | None:
    """Return the pattern of all subjects that match both patterns, or None."""
    left, right = one.split("."), other.split(".")
    both: list[str] = []
    for at in range(max(len(left), len(right))):
        a, b = (tokens[at] if at < len(tokens) else None for tokens in (left, right))
        if ">" in (a, b):
            rest = right if a == ">" else left
            return ".".join([*both, *rest[at:]]) if len(rest) > at else None
        if a is None or b is None or ("*" not in (a, b) and a != b):
            return None
        both.append(b if a == "*" else a)
    return ".".join(both)


def _widest(calls: Iterable[Import]) -> list[Import]:
    """Leave out what others cover: imports of one account must not overlap."""
    given = {call.to: call for call in calls}
    return [given[to] for to in sorted(widest(given))]
