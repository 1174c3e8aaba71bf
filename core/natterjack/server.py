"""Which server to connect to, and with which credentials."""

from __future__ import annotations

import math
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from natterjack.errors import ConfigError

API_PREFIX: Final = "$JS.API"
OLDEST_SERVER: Final = (2, 12, 0)
"""The oldest usable nats-server: counters, schedules and atomic batches came with it."""
PATIENCE: Final = 300.0
SETTINGS: Final = ("token", "user", "password", "nkey", "creds", "ca", "cert", "key", "prefix", "keys")
"""Fields of `Server` that the environment may give, as `NATS_<NAME>`."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server, or several of a cluster, and how to log in. Secrets stay out of its `repr`.

    Attributes:
        url: `nats://host:port`, or several joined by commas.
        token: Bearer token, or `file:PATH` of one, which is read whenever it connects.
        user: User name, with `password`.
        password: Password.
        nkey: Path of a file with an nkey seed, or the seed itself (`SU…`).
        creds: Path of a `.creds` file: user JWT and seed.
        ca: Path of the authorities that sign the server's certificate.
        cert: Path of this client's certificate, with `key`.
        key: Path of its private key.
        prefix: Prefix of the JetStream API, e.g. `CORE.API`.
        keys: Folder with the credentials of each principal, `<name>.creds`, or else its nkey seed, `<name>.nk`, as
            `natterjack secure` writes it; where it has a `ca.crt`, with TLS also their certificates, each with its
            private key, `<name>.pem`.
        patience: Seconds that a connection waits for renewed credentials, once the server has let it in no more.
        origin: Who named it, where the user may not know: `NATS_URL`.
        SECURED_PREFIX: What the JetStream API is called in the accounts of principals.
        ACCOUNT: What the name of a principal's account begins with; its principal's name follows.
        ANYBODY: Name of the user in operator mode as whom all begin who are let in by a token of the team.
        AUTHORITIES: File in the folder of keys with the authorities that sign the server's certificate.
    """

    SECURED_PREFIX: ClassVar[str] = "CORE.API"
    ACCOUNT: ClassVar[str] = "P-"
    ANYBODY: ClassVar[str] = "*"
    AUTHORITIES: ClassVar[str] = "ca.crt"

    url: str
    token: str | None = field(default=None, repr=False)
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    nkey: str | None = field(default=None, repr=False)
    creds: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    prefix: str = API_PREFIX
    keys: str | None = None
    patience: float = PATIENCE
    origin: str = field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        for url in self.urls:
            if not _is_url(url):
                msg = f"{hidden(url)!r} is no server URL; write it like nats://127.0.0.1:4222"
                raise ConfigError(msg)
        if self.token and self.keys:  # one of them would be left out in silence, and with it perhaps who is meant
            msg = "NATS_TOKEN and NATS_KEYS both say who you are; unset one"
            raise ConfigError(msg)

    @property
    def attests(self) -> bool:
        """Whether each principal has an account of its own, so that the broker says who sends."""
        return self.prefix == self.SECURED_PREFIX

    @property
    def token_file(self) -> str | None:
        """Path of the file with the token, if it is in one."""
        return self.token[5:] if self.token and self.token.startswith("file:") else None

    def of(self, principal: str) -> Server:
        """Return how a principal logs in: with its own key and certificate, if there is a folder of them."""
        if self.keys is None:
            return self
        folder = Path(self.keys)
        creds, authorities, own = folder / f"{principal}.creds", folder / self.AUTHORITIES, self
        if authorities.exists():
            own = replace(own, ca=self.ca or str(authorities), cert=str(folder / f"{principal}.pem"), key=None)
        if creds.exists():
            return replace(own, creds=str(creds), prefix=self.SECURED_PREFIX)
        return replace(own, nkey=str(folder / f"{principal}.nk"), prefix=self.SECURED_PREFIX)

    @classmethod
    def principal_of(cls, told: Mapping[str, Any]) -> str:
        """Return whose account a request came from.

        Args:
            told: What the server says of it in `Nats-Request-Info`. In operator mode the account is only a key there,
                and the name is that of the user, as its token has it, or as the callout service says of who shows
                a token of the team. A client chooses neither.
        """
        account = str(told["acc"])
        if account.startswith(cls.ACCOUNT):
            return account.removeprefix(cls.ACCOUNT)
        name = told.get("name_tag")
        return str((told.get("user") if name == cls.ANYBODY else name) or account)

    @property
    def urls(self) -> list[str]:
        """Each URL on its own; a bare `host:port` means `nats://`."""
        parts = [part.strip() for part in self.url.split(",") if part.strip()]
        return [part if "://" in part else f"nats://{part}" for part in parts] or [self.url]

    def __str__(self) -> str:
        return ",".join(hidden(url) for url in self.urls)

    def environment(self) -> dict[str, str]:
        """Return the variables by which a child process finds the same server; empty ones, so that it inherits none."""
        settings = {f"NATS_{name.upper()}": getattr(self, name) or "" for name in SETTINGS}
        return {"NATS_URL": self.url, "NATS_PATIENCE": f"{self.patience:g}", **settings}

    def tls(self) -> ssl.SSLContext | None:
        """Return the TLS context, or None where nothing asks for TLS.

        Raises:
            OSError: A file of certificates or of the key cannot be read.
        """
        if not (self.ca or self.cert):
            return None
        for path in filter(None, (self.ca, self.cert, self.key)):
            Path(path).open("rb").close()  # whose error says which of them it is; that of ssl does not
        context = ssl.create_default_context(cafile=self.ca)
        if self.cert:
            context.load_cert_chain(self.cert, self.key)
        return context


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("nats", "tls", "ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is no number, or too large
        return False


def hidden(url: str) -> str:
    """Return a URL with its user, password or token replaced by `***`."""
    scheme, sep, rest = url.rpartition("://")
    _, at, host = rest.rpartition("@")
    return f"{scheme}{sep}{'***@' if at else ''}{host}"


def named_server(url: str | None = None, default: str | None = None) -> Server | None:
    """Return the server that the user named, or None: then an embedded one is started.

    Looked for in this order: `url`, the environment's `NATS_URL` (with `NATS_TOKEN`, `NATS_USER`, `NATS_PASSWORD`,
    `NATS_CREDS`, `NATS_NKEY`, `NATS_CA`, `NATS_CERT`, `NATS_KEY`, `NATS_PREFIX`, `NATS_KEYS`, `NATS_PATIENCE`),
    `default`.

    Raises:
        ConfigError: The URL is none, or there are both a token and a folder of keys.
    """
    from_environment = None if url else os.environ.get("NATS_URL")
    found = url or from_environment or default
    if not found:
        return None
    given: dict[str, Any] = {name: os.environ.get(f"NATS_{name.upper()}") for name in SETTINGS}
    origin = "NATS_URL" if from_environment else ""
    server = Server(found, origin=origin, patience=_patience(os.environ.get("NATS_PATIENCE")))
    return replace(server, **{name: value for name, value in given.items() if value})


def _patience(text: str | None) -> float:
    try:
        patience = float(text or PATIENCE)
    except ValueError:
        patience = -1.0
    if not 0 <= patience < math.inf:
        msg = (
            f"NATS_PATIENCE is {text!r}, but must be seconds that a connection waits for renewed credentials, e.g. 300"
        )
        raise ConfigError(msg)
    return patience
