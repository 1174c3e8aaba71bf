"""The broker's configuration of a star, as text that nats-server reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from natterjack import matches, widest
from natterjack_permissions.star import CORE, JETSTREAM, PAGES, Account

SILENCE: Final = "1h"
"""How long who is asked may be silent: of an answer that takes longer, the broker has forgotten the way back [R1]."""
MOST_CONNECTIONS: Final = 1_000
"""Of one principal at once, all its replicas together: who opens more takes no room from others."""
MOST_SUBSCRIPTIONS: Final = 100_000
"""The same for subscriptions."""
_ONE: Final = (
    *JETSTREAM,
    *(f"{root}.>" for root in ("agents.hb", "dead", "delay", "journal", "schedule", "stored", "wake")),
    "tools.*.changes",
)
"""What `CORE` takes, and answers once, if at all."""
_HEARD: Final = ("agents.hb.>", "feed.>", "tools.*.changes")
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

include "accounts.conf"
"""


def server(url: str) -> str:
    """Return the rest of a server's configuration: a small one, to begin with.

    Args:
        url: Where clients reach it.
    """
    return _SERVER.format(port=urlsplit(url).port or 4222)


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
    accounts = list(accounts)
    yield f"  {CORE}: {{"
    yield "    jetstream: enabled"
    yield f"    users: [ {{ nkey: {key} }} ]"
    yield from _list("exports", [*map(_service, [*_ONE, *PAGES]), *_streams(accounts)])
    yield "  }"


def _streams(accounts: Iterable[Account]) -> list[str]:
    heard = widest([*_HEARD, *sorted({subject for account in accounts for subject in account.hears})])
    return [f"{{ stream: {json.dumps(subject)} }}" for subject in heard]


def _account(account: Account, key: str) -> Iterator[str]:
    yield f'  "{account.name}": {{'
    yield f"    users: [ {{ nkey: {key}, permissions: {{"
    yield from _list("publish", map(json.dumps, account.publish))
    yield from _list("subscribe", map(json.dumps, account.subscribe))
    yield "    } } ]"
    yield f"    limits: {{ max_connections: {MOST_CONNECTIONS}, max_subscriptions: {MOST_SUBSCRIPTIONS} }}"
    yield from _list("exports", map(_service, account.serves))
    calls = [_import("service", *call) for call in account.calls]
    yield from _list("imports", [*calls, *(_import("stream", CORE, subject) for subject in account.hears)])
    yield "  }"


def _service(subject: str) -> str:
    many = ', response_type: "stream"' if _within(subject, _MANY) else ""
    late = f', threshold: "{SILENCE}"' if _within(subject, _LATE) else ""
    return f"{{ service: {json.dumps(subject)}{many}{late} }}"


def _within(subject: str, patterns: Iterable[str]) -> bool:
    return any(matches(pattern, subject) for pattern in patterns)


def _import(kind: str, account: str, subject: str, to: str = "") -> str:
    named = f", to: {json.dumps(to)}" if to and to != subject else ""
    return f"{{ {kind}: {{ account: {json.dumps(account)}, subject: {json.dumps(subject)} }}{named} }}"


def _list(name: str, items: Iterable[str]) -> Iterator[str]:
    yield f"    {name}: ["
    yield from (f"      {item}" for item in items)
    yield "    ]"
