"""Authority: who may do what in a team, and the files that say it to the broker and to the `nats` command line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from natterjack import ConfigError, Right, Server, Team, agent_rights, permissions
from natterjack_permissions.broker import accounts, server
from natterjack_permissions.keys import path_of
from natterjack_permissions.mint import creds_file
from natterjack_permissions.star import API, OPERATOR, Account, star

BESIDE: Final = ("core", OPERATOR, "sys")
"""Principals that are no agents: who may touch what is stored, who looks after the team, who looks after the server."""
URL: Final = "nats://127.0.0.1:4222"
_SCHEMES: Final = ("nats", "tls", "ws", "wss")
TABLE: Final = "AUTHORITY.md"
"""Who may do what, for people."""
_SHOWN: Final = ("emit", "publish", "ask", "call", "write", "read", "hear", "replay", "inject", "provide")
"""What a table shows of it; the rest is each one's own affair, such as its journal."""


@dataclass(frozen=True, slots=True)
class Authority:
    """Who may do what in a team.

    Attributes:
        rights: Of each agent, tool server and user.
        operators: Users who may all that the operator may.
        accounts: The same, as accounts of the broker.
    """

    rights: Mapping[str, tuple[Right, ...]]
    operators: tuple[str, ...]
    accounts: tuple[Account, ...]

    @property
    def principals(self) -> list[str]:
        """All that have a key."""
        return sorted({*self.rights, *self.operators, *BESIDE})

    def files(self, folder: Path, url: str, keys: Mapping[str, str] | None, *, tls: bool = False) -> dict[str, str]:
        """Return the files beside the keys, by their names below the folder.

        Args:
            folder: Where they go.
            url: Where clients reach the broker.
            keys: The public key of each principal; None: in operator mode, where `Mint` has the accounts.
            tls: Whether there are certificates beside the keys.
        """
        found = {"nats-server.conf": server(url, tls=tls), TABLE: self.table()}
        if keys is not None:
            found["accounts.conf"] = accounts(self.accounts, keys)
        for name in self.principals:
            login = path_of(folder / "keys", name) if keys is not None else folder / creds_file(name)
            found[f"contexts/{name}.json"] = _context(name, url, login, tls=tls)
        return found

    def table(self) -> str:
        """Return who may do what, as Markdown."""
        lines = ["# Who may do what", "", "| who | may |", "|---|---|"]
        for name, rights in sorted(self.rights.items()):
            told = (_told(verb, rights) for verb in _SHOWN)
            lines.append(f"| `{name}` | {'; '.join(filter(None, told)) or 'nothing'} |")
        all_may = "all, in its own name: it provisions the team, and looks after it"
        lines += [f"| `{name}` | {all_may} |" for name in (OPERATOR, *self.operators)]
        lines.append("| `core` | all that is stored, in anybody's name: keep its key as you keep the server |")
        lines.append("| `sys` | look after the server: reload its configuration, disconnect clients |")
        return "\n".join([*lines, ""])


def authority(team: Team) -> Authority:
    """Return who may do what in a team: what is not declared is denied.

    Raises:
        ConfigError: The team is wrong.
        PluginError: A plugin that it needs is not installed.
    """
    rights = {name: tuple(sorted(set(each))) for name, each in agent_rights(team.closed()).items()}
    granted = {name: permissions(name, each, attested=True) for name, each in rights.items()}
    operators = tuple(sorted(team.operators))
    return Authority(rights, operators, tuple(star(granted, operators)))


def checked(url: str) -> str:
    """Return a URL, or several joined by commas, that says where clients reach the broker.

    Raises:
        ConfigError: It does not, or has a password, which all who read the files that are written would have.
    """
    for each in url.split(","):
        try:
            parts = urlsplit(each.strip())
            port = parts.port
        except ValueError as error:
            msg = f"{each!r} is no URL of a broker ({error}); write e.g. {URL}"
            raise ConfigError(msg) from error
        if parts.scheme not in _SCHEMES or not parts.hostname or port == 0:
            msg = f"{each!r} is no URL of a broker; write e.g. {URL}"
            raise ConfigError(msg)
        if "@" in parts.netloc:
            msg = f"the URL of {parts.hostname} has a name or a password in it; leave it out: principals log in by keys"
            raise ConfigError(msg)
    return url


def known_url(folder: Path) -> str:
    """Return where clients reach the broker, as a folder says that was written before; else where it usually is."""
    path = folder / "contexts/sys.json"
    try:
        return str(json.loads(path.read_text())["url"]) if path.exists() else URL
    except (ValueError, LookupError, TypeError) as error:
        msg = f"{path} does not say where the broker is ({error}); say it by --url, which writes it anew"
        raise ConfigError(msg) from error


def _told(verb: str, rights: Iterable[Right]) -> str:
    patterns = ", ".join(f"`{right.what}`" for right in rights if right.verb == verb)
    return f"{verb} {patterns}" if patterns else ""


def _context(name: str, url: str, login: Path, *, tls: bool) -> str:
    """Return a context of the `nats` command line."""
    pem = str(login.with_suffix(".pem"))
    certificates = {"ca": str(login.with_name(Server.AUTHORITIES)), "cert": pem, "key": pem} if tls else {}
    prefix = {} if name in ("core", "sys") else {"jetstream_api_prefix": API}
    kind = "creds" if login.suffix == ".creds" else "nkey"
    found = {"description": f"Natterjack: {name}", "url": url, kind: str(login), "inbox_prefix": f"_INBOX.{name}"}
    return json.dumps(found | certificates | prefix, indent=2) + "\n"
