"""TLS of a broker: an authority of the team's own, and a certificate for the servers and for each principal.

Who a client is, its nkey says; its certificate says only that it belongs here, and keeps all others from the door.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from natterjack import Server
from natterjack_permissions.certificates import Identity, checked_host, new_authority
from natterjack_permissions.keys import differing, store

SERVER: Final = "server"
AUTHORITY: Final = "ca"
CALLOUT: Final = "callout"
"""What `--rotate` calls them."""
RENEWED_DAYS: Final = 30
"""A certificate that ends sooner than so many days from now is made anew."""
_AUTHORITY_DAYS: Final = 90
"""The same for the authority, but this is only said: to replace it takes three steps."""
_ALWAYS: Final = ("127.0.0.1", "localhost")

_TLS: Final = """\
# Written anew by `natterjack secure`. Every listener of the server has it: tls {{ include "tls.conf" }}
cert_file: "{server}"
key_file: "{server}"
ca_file: "{authorities}"
# Clients, and the other servers of a cluster, show a certificate as well.
verify: true
min_version: "1.3"
# Seconds that a handshake may take; longer than the default of 2, for machines that are busy.
timeout: 5
"""


class Certificates:
    """The certificates of a folder, and what is to be done about them.

    Args:
        out: The folder.
        principals: Who needs one.
        hosts: Where clients reach the servers, beside this machine; the ones that it had before are kept.
        callout: Whether a callout service needs one, too.
    """

    def __init__(
        self, out: Path, principals: Iterable[str], hosts: Iterable[str] = (), *, callout: bool = False
    ) -> None:
        self.out = out
        self._clients = [(name, out / "keys" / f"{name}.pem") for name in principals]
        self._folders = ["keys"]
        if callout:
            self._clients.append((CALLOUT, out / CALLOUT / f"{CALLOUT}.pem"))
            self._folders.append(CALLOUT)
        self._server = out / "tls" / "server.pem"
        self._current, self._next, self._last = (out / "ca" / name for name in ("current.pem", "next.pem", "last.crt"))
        self._hosts = frozenset([*_ALWAYS, *map(checked_host, hosts)])

    @property
    def are_there(self) -> bool:
        """Whether the folder has any."""
        return self._current.exists()

    def changes(self, rotate: Collection[str] = ()) -> dict[str, tuple[str, str]]:
        """Return what `write` would change: by name, what there is and what there would be; of keys, nothing."""
        made = [*self._authorities_due(rotate), *(path for _, path in self._stale(self._signing(rotate), rotate))]
        return differing(self.out, self._files()) | {str(path.relative_to(self.out)): ("", "") for path in made}

    def write(self, rotate: Collection[str] = ()) -> None:
        """Make what is missing, ends soon, or is to be made anew.

        The authority is replaced in three steps, one each time that `rotate` names it: all trust the next one, too; it
        signs all certificates; nobody trusts the last one any more.
        """
        if not self.are_there:
            new_authority("Natterjack").write(self._current)
        elif AUTHORITY in rotate:
            self._step()
        authority = Identity.read(self._current)
        for name, path in self._stale(authority, rotate):
            hosts = self._hosts | _hosts_in(path) if path == self._server else ()
            authority.issue(name, hosts).write(path)
        for name, (_, text) in differing(self.out, self._files()).items():
            store(self.out / name, text.encode(), 0o644)

    def _step(self) -> None:
        if self._next.exists():
            store(self._last, Identity.read(self._current).text.encode())
            self._next.replace(self._current)
        elif self._last.exists():
            self._last.unlink()
        else:
            new_authority("Natterjack").write(self._next)

    @property
    def told(self) -> str:
        """How far the replacement of the authority is, and what comes next; empty if there is none."""
        if self._next.exists():
            done, then = "1 of 3: all trust the next authority, too", "ca.crt, and the servers are reloaded"
        elif self._last.exists():
            done, then = "2 of 3: the next authority signs", "its certificates, and the servers are reloaded"
        else:
            return ""
        return f"step {done}. When each machine has {then}, go on with another `--rotate ca`"

    def _files(self) -> dict[str, str]:
        """Return the files without secrets, by their names below the folder."""
        last = [self._last.read_text()] if self._last.exists() else []
        signing = [Identity.read(path).text for path in (self._current, self._next) if path.exists()]
        authorities = "".join([*last, *signing])
        tls = self.out.resolve() / "tls"  # the server looks for them where it was started
        paths = {"server": tls / "server.pem", "authorities": tls / "ca.crt"}
        return {
            "tls.conf": _TLS.format(**paths),
            "tls/ca.crt": authorities,
            **{f"{folder}/{Server.AUTHORITIES}": authorities for folder in self._folders},
        }

    def ending(self) -> list[str]:
        """Return a line on each certificate that ends soon."""
        known = [*self._clients, ("the servers", self._server), ("the authority: --rotate ca", self._current)]
        limits = {self._current: _AUTHORITY_DAYS}
        return [
            f"the certificate of {name} ends in {days} days"
            for name, path in known
            if path.exists() and (days := _days(Identity.read(path))) < limits.get(path, RENEWED_DAYS)
        ]

    def _authorities_due(self, rotate: Collection[str]) -> list[Path]:
        if not self.are_there:
            return [self._current]
        if AUTHORITY not in rotate:
            return []
        if self._next.exists():
            return [self._current, self._next, self._last]  # who is trusted stays
        changing = self._last if self._last.exists() else self._next
        trusted = (self.out / folder / Server.AUTHORITIES for folder in ("tls", *self._folders))
        return [changing, *trusted]

    def _signing(self, rotate: Collection[str]) -> Identity | None:
        """Return the authority that would sign; None if it is not there yet."""
        if not self.are_there:
            return None
        return Identity.read(self._next if AUTHORITY in rotate and self._next.exists() else self._current)

    def _stale(self, authority: Identity | None, rotate: Collection[str]) -> Iterator[tuple[str, Path]]:
        """Yield whose certificates are not as they should be."""
        for name, path in [*self._clients, (SERVER, self._server)]:
            if name in rotate or not path.exists() or authority is None or self._is_stale(path, authority):
                yield name, path

    def _is_stale(self, path: Path, authority: Identity) -> bool:
        found = Identity.read(path)
        lacks = path == self._server and not self._hosts <= found.hosts
        ends = found.ends < authority.ends and _days(found) < RENEWED_DAYS
        return lacks or ends or not authority.signed(found)


def hosts_of(url: str) -> list[str]:
    """Return the hosts of one URL, or of several joined by commas."""
    return [host for each in url.split(",") if (host := urlsplit(each).hostname)]


def _hosts_in(path: Path) -> frozenset[str]:
    return Identity.read(path).hosts if path.exists() else frozenset()


def _days(identity: Identity) -> int:
    return (identity.ends - datetime.datetime.now(datetime.UTC)).days
