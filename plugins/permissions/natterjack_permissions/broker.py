"""The broker's configuration of a star, as text that nats-server reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from natterjack import matches, widest
from natterjack_permissions.star import CORE, JETSTREAM, PAGES, Account

SILENCE: Final = 3600
"""Seconds that who is asked may be silent: the way back of a later answer is forgotten by the broker [R1]."""
MOST_CONNECTIONS: Final = 1_000
"""Of one principal at once, all its replicas together: who opens more takes no room from others."""
MOST_SUBSCRIPTIONS: Final = 100_000
"""The same for subscriptions."""
_ONE: Final = (
    *JETSTREAM,
    *(f"{root}.>" for root in ("audit", "dead", "delay", "journal", "schedule", "stored", "wake")),
)
"""What `CORE` takes, and answers once, if at all."""
CORE_EXPORTS: Final = (*_ONE, *PAGES)
"""What `CORE` takes."""
_HEARD: Final = ("feed.>",)
"""What it tells all who may hear it."""
_LATE: Final = ("agents.ask.>", "agents.prompt.>", "tools.>")
"""What principals may answer late."""
_MANY: Final = (*PAGES, "$SRV.>", "agents.prompt.>", "tools.>")
"""What they may answer with several messages."""


_SERVER: Final = """\
# Written once, and then yours: `natterjack secure` writes accounts.conf anew, and leaves this file alone.
port: {port}

jetstream {{
    store_dir: "jetstream"
    # Power loss may cost what is younger; `always` prevents that at 5 to 10 times the cost per message.
    sync_interval: "2m"
}}

# A subscriber that lags further behind than this is cut off, not buffered for until memory ends.
max_pending: 64MB

{tls}include "accounts.conf"
"""
TLS: Final = 'tls { include "tls.conf" }'
_TLS: Final = f"""\
# Clients show a certificate, and are shown one; who they are, their keys say.
{TLS}

"""


def server(url: str, *, tls: bool = False) -> str:
    """Return the rest of a server's configuration: a small one, to begin with.

    Args:
        url: Where clients reach it; of several, the first is this one.
        tls: Whether it has certificates.
    """
    return _SERVER.format(port=port_of(url.split(",", maxsplit=1)[0]), tls=_TLS if tls else "")


def port_of(url: str) -> int:
    """Return the port of one URL."""
    return urlsplit(url.strip()).port or 4222


def accounts(star: Sequence[Account], keys: Mapping[str, str]) -> str:
    """Return the accounts of a server.

    Args:
        star: The principals' accounts.
        keys: The public nkey of each principal, of `core` and of `sys`.
    """
    lines = ["accounts {", f"  SYS: {{ users: [ {{ nkey: {keys['sys']} }} ] }}", *_core(star, keys["core"])]
    for account in star:
        lines += _account(account, keys[account.principal])
    return "\n".join([*lines, "}", "system_account: SYS", ""])


def _core(accounts: Iterable[Account], key: str) -> Iterator[str]:
    yield f"  {CORE}: {{"
    yield "    jetstream: enabled"
    yield f"    users: [ {{ nkey: {key} }} ]"
    yield from _list("exports", [*map(_service, CORE_EXPORTS), *map(_stream, heard(accounts))])
    yield "  }"


def heard(star: Iterable[Account]) -> list[str]:
    """Return what `CORE` tells those who may hear it."""
    hears = {subject for account in star for subject in account.hears}
    return widest([*_HEARD, *sorted(subject for subject in hears if not _within(subject, _HEARD))])


def _account(account: Account, key: str) -> Iterator[str]:
    yield f'  "{account.name}": {{'
    yield f"    users: [ {{ nkey: {key}, permissions: {{"
    yield from _list("publish", map(json.dumps, account.publish))
    yield from _list("subscribe", map(json.dumps, account.subscribe))
    yield "    } } ]"
    yield f"    limits: {{ max_connections: {MOST_CONNECTIONS}, max_subscriptions: {MOST_SUBSCRIPTIONS} }}"
    yield from _list("exports", [*map(_service, account.serves), *map(_stream, account.tells)])
    calls = [_import("service", *call) for call in account.calls]
    hears = [*((CORE, subject) for subject in account.hears), *(each[:2] for each in account.listens)]
    yield from _list("imports", [*calls, *(_import("stream", *each) for each in hears)])
    yield "  }"


def _stream(subject: str) -> str:
    return f"{{ stream: {json.dumps(subject)} }}"


def _service(subject: str) -> str:
    many, silence = answers(subject)
    stream = ', response_type: "stream"' if many else ""
    late = f', threshold: "{silence}s"' if silence else ""
    return f"{{ service: {json.dumps(subject)}{stream}{late} }}"


def answers(subject: str) -> tuple[bool, int]:
    """Return whether a service may answer with several messages, and how many seconds it may be silent; 0: a few."""
    return _within(subject, _MANY), SILENCE if _within(subject, _LATE) else 0


def _within(subject: str, patterns: Iterable[str]) -> bool:
    return any(matches(pattern, subject) for pattern in patterns)


def _import(kind: str, account: str, subject: str, to: str = "") -> str:
    named = f", to: {json.dumps(to)}" if to and to != subject else ""
    return f"{{ {kind}: {{ account: {json.dumps(account)}, subject: {json.dumps(subject)} }}{named} }}"


def _list(name: str, items: Iterable[str]) -> Iterator[str]:
    yield f"    {name}: ["
    yield from (f"      {item}" for item in items)
    yield "    ]"
