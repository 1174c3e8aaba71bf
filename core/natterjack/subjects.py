"""The only speller of subjects: names, patterns, and every subject of the system.

Publishers use the left column of the README's table; what a stream stores has the *principal*. One account is one team.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from typing import Final

from natterjack.errors import InvalidNameError, PatternError

EVENTS: Final = "EVENTS"
MESSAGES: Final = "MESSAGES"
INBOX: Final = "INBOX"
JOURNAL: Final = "JOURNAL"
DEAD, SCHEDULES, WAKES, AUDIT = "DEAD", "SCHEDULES", "WAKES", "AUDIT"
CONTEXT_BUCKET, TEAM_BUCKET, LIMITS_BUCKET, CONVERSATIONS_BUCKET = "context", "team", "limits", "conversations"
JOURNAL_OBJECTS: Final = "journal"
"""Bucket of the object store for what is too large for one journal entry."""
TEAM_KEY, ORIGINS_KEY, SETTINGS_KEY, REFUSED_KEY, REVOKED_KEY = "team", "origins", "settings", "refused", "revoked"
"""Keys in the bucket `team`: the team, where it is written, `settings.<process>`, who fills it, whose tokens ended."""
HARNESS: Final = "natterjack"
"""What the Synadia Agent Protocol calls the kind of agent; owner and session are the team and the agent's name."""
OPERATOR: Final = "operator"
"""The principal of the runtime itself, of the command line and of outside programs."""
ANYONE: Final = "anyone"
"""What the broker stores as principal where it cannot attest one (open mode)."""

RESERVED_NAMES: Final = frozenset({OPERATOR, ANYONE, "core", "sys", "hub", "callout"})
MAX_NAME, MAX_SUBJECT = 64, 255
ROOTS: Final = frozenset(
    {"events", "messages", "inbox", "stored", "feed", "journal", "dead", "wake", "audit", "delay", "schedule", "tools"}
)
"""What all of our own subjects begin with, but for those of asks, where strangers may have theirs."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*\Z")
_TOKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\Z")
_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*+(?:\.[A-Za-z0-9][A-Za-z0-9_-]*+)*\Z")
_UNSAFE = re.compile(r"^-|[^A-Za-z0-9_.*>-]")


def check_name(name: object, kind: str = "agent name") -> str:
    """Return an agent's, tool's or team's name, or raise.

    Raises:
        InvalidNameError: Not `[a-z0-9][a-z0-9_-]*`, longer than 64, or reserved.
    """
    if not isinstance(name, str) or not _NAME.match(name):
        rule = "use lower-case letters, digits, '-' and '_', starting with a letter or digit"
        raise InvalidNameError(kind, name, rule)
    if len(name) > MAX_NAME:
        raise InvalidNameError(kind, name, f"at most {MAX_NAME} characters")
    if name in RESERVED_NAMES:
        raise InvalidNameError(kind, name, "this name is reserved; choose another")
    return name


def check_type(name: object, kind: str = "event type") -> str:
    """Return an event type, topic or context key: tokens of `[A-Za-z0-9_-]` joined by dots.

    Raises:
        InvalidNameError: Malformed or longer than 255 characters.
    """
    rule = "use letters, digits, '-' and '_' in tokens joined by '.', e.g. 'research.complete'"
    if not isinstance(name, str) or not _TYPE.match(name):
        raise InvalidNameError(kind, name, rule)
    if len(name) > MAX_SUBJECT:
        raise InvalidNameError(kind, name, f"at most {MAX_SUBJECT} characters")
    return name


def check_keys(pattern: object) -> str:
    """Return a pattern of context keys; one in a bucket has the bucket's name before it: `finance/budget.*`.

    Raises:
        PatternError: Malformed.
        InvalidNameError: The bucket's name is malformed.
    """
    if not isinstance(pattern, str):
        raise PatternError(pattern, "it is no text")
    bucket, keys = split_keys(pattern)
    if "/" in pattern:
        check_name(bucket, "bucket name")
    check_pattern(keys)
    return pattern


def split_keys(pattern: str) -> tuple[str, str]:
    """Return bucket and pattern of `finance/budget.*`; the main context has no name."""
    bucket, _, keys = pattern.rpartition("/")
    return bucket, keys


def in_bucket(bucket: str, pattern: str) -> str:
    """Return `<bucket>/<pattern>`, or the pattern alone for the main context."""
    return f"{bucket}/{pattern}" if bucket else pattern


def check_pattern(pattern: object) -> str:
    """Return a pattern: like a type, but a token may be `*`, and the last one `>`.

    Raises:
        PatternError: Malformed.
    """
    if not isinstance(pattern, str) or not pattern:
        raise PatternError(pattern, "it is empty; use e.g. 'research.complete', 'research.*' or '>'")
    *head, last = pattern.split(".")
    for part in head:
        if part == ">":
            raise PatternError(pattern, "'>' may only stand last")
        _check_pattern_part(pattern, part)
    if last != ">":
        _check_pattern_part(pattern, last)
    if len(pattern) > MAX_SUBJECT:
        raise PatternError(pattern, f"at most {MAX_SUBJECT} characters")
    return pattern


def _check_pattern_part(pattern: str, part: str) -> None:
    if part == "*" or _TOKEN.match(part):
        return
    if "*" in part or ">" in part:
        raise PatternError(pattern, "a wildcard must be a whole token between dots")
    raise PatternError(pattern, "use letters, digits, '-' and '_' in tokens joined by '.'")


def is_type(name: str) -> bool:
    """Tell whether something could be an event's type."""
    return len(name) <= MAX_SUBJECT and _TYPE.match(name) is not None


def is_wild(pattern: str) -> bool:
    """Tell whether a pattern stands for more than one subject."""
    return "*" in pattern or ">" in pattern


def matches(pattern: str, subject: str) -> bool:
    """Tell whether a NATS pattern matches a subject or covers a pattern; of context keys, within one bucket."""
    if "/" in pattern or "/" in subject:
        (bucket, pattern), (other, subject) = split_keys(pattern), split_keys(subject)
        if bucket != other:
            return False
    wanted, parts = pattern.split("."), subject.split(".")
    for index, part in enumerate(wanted):
        if part == ">":
            return len(parts) > index
        if index >= len(parts) or (part != parts[index] and (part != "*" or parts[index] == ">")):
            return False
    return len(parts) == len(wanted)


def overlap(one: str, other: str) -> bool:
    """Tell whether two patterns can match one and the same subject."""
    left, right = one.split("."), other.split(".")
    for a, b in zip(left, right, strict=False):
        if ">" in (a, b):
            return True
        if "*" not in (a, b) and a != b:
            return False
    return len(left) == len(right)


def widest(patterns: Iterable[str]) -> list[str]:
    """Return the patterns that no other of them covers: a stream's subjects must not overlap."""
    given = dict.fromkeys(patterns)
    wild = [(other, re.split("[*>]", other, maxsplit=1)[0]) for other in given if is_wild(other)]
    covered = {e for e in given for other, head in wild if e.startswith(head) and e != other and matches(other, e)}
    return [each for each in given if each not in covered]


# Events, messages, inboxes: published here …


def event(event_type: str) -> str:
    """`events.<type>`."""
    return f"events.{event_type}"


def message(topic: str) -> str:
    """`messages.<topic>`."""
    return f"messages.{topic}"


def inbox(agent: str, event_type: str) -> str:
    """`inbox.<agent>.<type>`."""
    return f"inbox.{agent}.{event_type}"


# … stored there, and seen live


def stored_events(pattern: str = ">", principal: str = "*") -> str:
    """`stored.events.<principal>.<type>`: what consumers filter by."""
    return f"stored.events.{principal}.{pattern}"


def stored_messages(pattern: str = ">", principal: str = "*") -> str:
    """`stored.messages.<principal>.<topic>`."""
    return f"stored.messages.{principal}.{pattern}"


def stored_inbox(agent: str, kind: str = "") -> str:
    """`stored.inbox.<agent>.<principal>.<type>`, all of one agent, or one that nobody is known to have sent."""
    return f"stored.inbox.{agent}.{ANYONE}.{kind}" if kind else f"stored.inbox.{agent}.>"


def feed_events(pattern: str = ">", principal: str = "*") -> str:
    """`feed.events.<principal>.<type>`: the live copy."""
    return f"feed.events.{principal}.{pattern}"


def feed_messages(pattern: str = ">", principal: str = "*") -> str:
    """`feed.messages.<principal>.<topic>`: the live copy."""
    return f"feed.messages.{principal}.{pattern}"


def schedule(agent: str, trigger: str) -> str:
    """`schedule.<agent>.<trigger>`: by which the broker wakes an agent."""
    return f"schedule.{agent}.{trigger}"


def fired(agent: str, trigger: str) -> str:
    """`schedule.<agent>.<trigger>.fired`: where it puts a message each time."""
    return f"schedule.{agent}.{trigger}.fired"


def delay(principal: str, name: str = "*") -> str:
    """`delay.<principal>.<name>`: an event that is held until it is due."""
    return f"delay.{principal}.{name}"


def due(principal: str, pattern: str) -> str:
    """`delay.<principal>.due.<type>`: where the broker puts it then, and EVENTS takes it from."""
    return f"delay.{principal}.due.{pattern}"


def delay_stream(principal: str) -> str:
    """`DELAYS_<principal>`."""
    return f"DELAYS_{principal}"


def split_stored(subject: str) -> tuple[str, str]:
    """Return (principal, type) of a stored or fed event, message or inbox subject; of a bucket's, the key."""
    tokens = subject.split(".")
    if tokens[0] == "$KV":
        return ANYONE, ".".join(tokens[2:])
    at = 3 if tokens[1] == "inbox" else 2
    return tokens[at], ".".join(tokens[at + 1 :])


def stored_as(subject: str, principal: str) -> str:
    """Return where it is stored what a principal publishes on a subject of events, messages or an inbox."""
    root, *tokens = subject.split(".")
    tokens.insert(1 if root == "inbox" else 0, principal)
    return ".".join(("stored", root, *tokens))


# Peers


def ask(agent: str) -> str:
    """`agents.ask.<agent>`."""
    return f"agents.ask.{agent}"


def cancel(agent: str, request: str) -> str:
    """`agents.cancel.<agent>.<request>`."""
    return f"agents.cancel.{agent}.{request}"


def prompt(team: str, agent: str, harness: str = HARNESS) -> str:
    """`agents.prompt.<harness>.<team>.<agent>`: streamed asks (Synadia Agent Protocol 0.3, section 2)."""
    return f"agents.prompt.{harness}.{team}.{agent}"


def status(team: str, agent: str) -> str:
    """`agents.status.natterjack.<team>.<agent>`: a heartbeat on demand."""
    return f"agents.status.{HARNESS}.{team}.{agent}"


def heartbeat(team: str, agent: str) -> str:
    """`agents.hb.natterjack.<team>.<agent>`."""
    return f"agents.hb.{HARNESS}.{team}.{agent}"


def answer(agent: str, token: str) -> str:
    """`agents.answer.<agent>.<token>`: where an asker speaks to the one who answers it."""
    return f"agents.answer.{agent}.{token}"


def service(verb: str, name: str = "", instance: str = "", *, of: str = "") -> str:
    """`$SRV.<PING|INFO|STATS>[.<name>[.<instance>]]` (ADR-32); of one principal's account: `srv.<principal>.…`."""
    return ".".join(token for token in (f"srv.{of}" if of else "$SRV", verb, name, instance) if token)


# State


def key(bucket: str, name: str) -> str:
    """`$KV.<bucket>.<key>`."""
    return f"$KV.{bucket}.{name}"


def bucket_stream(bucket: str) -> str:
    """`KV_<bucket>`: the stream behind a bucket."""
    return f"KV_{bucket}"


def context_bucket(name: str = "") -> str:
    """Name of a context's KV bucket: `context`, or `context_<name>` for a bucket of its own."""
    return f"{CONTEXT_BUCKET}_{name}" if name else CONTEXT_BUCKET


def feed_context(pattern: str = ">", bucket: str = CONTEXT_BUCKET) -> str:
    """`feed.context.<key>`: the live copy of every context write; `feed.context_<name>.<key>` of another bucket."""
    return f"feed.{bucket}.{pattern}"


def journal(agent: str, run: str, index: int | str) -> str:
    """`journal.<agent>.<run>.<n>`."""
    return f"journal.{agent}.{run}.{index}"


def feed_journal(agent: str = "*", run: str = "*", index: int | str = "*") -> str:
    """`feed.journal.<agent>.<run>.<n>`: the live copy of journal entries."""
    return f"feed.journal.{agent}.{run}.{index}"


def object_stream(bucket: str) -> str:
    """`OBJ_<bucket>`: the stream behind a bucket of the object store (ADR-20)."""
    return f"OBJ_{bucket}"


def object_chunk(bucket: str, owner: str, id: str, index: int | str = "*") -> str:
    """`$O.<bucket>.C.<owner>.<id>.<n>`: what an object store's client reads as `$O.<bucket>.C.<nuid>`."""
    return f"$O.{bucket}.C.{object_nuid(owner, id, index)}"


def object_nuid(owner: str, id: str, index: int | str = "*") -> str:
    """`<owner>.<id>.*`: a pattern for a nuid, so that each chunk can be read by its own subject."""
    return f"{owner}.{id}.{index}"


def object_meta(bucket: str, name: str) -> str:
    """`$O.<bucket>.M.<name>`, the name in URL-safe base64, or `*`."""
    return f"$O.{bucket}.M.{name if name == '*' else urlsafe_b64encode(name.encode()).decode()}"


def wake(agent: str, run: str = "*", root: str = "wake") -> str:
    """`wake.<agent>.<run>`: the ticket by which a run that waits goes on; its live copy where `root` is `feed.wake`."""
    return f"{root}.{agent}.{run}"


def audit(principal: str, area: str, verb: str) -> str:
    """`audit.<principal>.<area>.<verb>`."""
    return f"audit.{principal}.{area}.{verb}"


def dead(agent: str, trigger: str, root: str = "dead") -> str:
    """`dead.<agent>.<trigger>`; live copies have the root `feed.dead`."""
    return f"{root}.{agent}.{trigger}"


def durable(agent: str, trigger: str) -> str:
    """Name of a trigger's durable consumer; `=` cannot occur in either part [R20]."""
    return f"{agent}={trigger}"


def check_durable(name: str) -> str:
    """Return the name of a durable consumer, or raise.

    Raises:
        InvalidNameError: Longer than the server allows.
    """
    if len(name) > MAX_SUBJECT:
        kind, rule = "durable consumer", f"it has {len(name)} characters of at most {MAX_SUBJECT}; shorten the pattern"
        raise InvalidNameError(kind, name, rule)
    return name


def is_log(stream: str) -> bool:
    """Tell whether a stream keeps what it holds for a time, whoever has had it: no queue, schedule or bucket."""
    return stream not in (INBOX, WAKES, SCHEDULES) and not stream.startswith(bucket_stream(""))


def is_durable(name: str) -> bool:
    """Tell whether a consumer is one of ours."""
    return "=" in name


def label(kind: str, pattern: str) -> str:
    """Name of a trigger within its agent, e.g. `event-research+@`: injective, and one subject token.

    No pattern starts with `-` here, so that the first odd run of them ends the kind; what else a subject may hold is
    spelt by its bytes, e.g. `~2f`.
    """
    safe = _UNSAFE.sub(lambda found: "".join(f"~{byte:02x}" for byte in found[0].encode()), pattern)
    return f"{kind.replace('-', '--')}-{safe.replace('.', '+').replace('*', '@').replace('>', '@@')}"
