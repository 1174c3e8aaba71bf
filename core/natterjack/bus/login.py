"""How a connection begins: what nats-py must be told, and what a failure means."""

from __future__ import annotations

import ssl
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from natterjack.bus.lapse import advice, read_token, unverified
from natterjack.errors import ConfigError, ConnectError, CredentialsError
from natterjack.server import OLDEST_SERVER, Server
from natterjack.subjects import OPERATOR

PING_INTERVAL: Final = 8
"""Seconds between signs of life; the third one while two have no answer ends the connection: after 16 to 24 s."""

_LOGIN: Final = 4_096
"""Bytes that a server reads of a login, unless its `max_control_line` says another number."""

_ADVICE: Final = {
    "offers no tls": "Have it do, or name no authorities: NATS_CA, and `ca.crt` in the folder that NATS_KEYS names.",
    "certificate required": "Name a certificate by NATS_CERT, or by NATS_KEYS a folder that has one of each principal.",
    "mismatch": "Its certificate is for other hosts: use one of them, or have another by `natterjack secure --host`.",
    "expired": "A certificate has ended: `natterjack secure` makes another.",
    "verify failed": "Its certificate is of no authority that is known here: name another by NATS_CA or NATS_KEYS.",
}
"""What to do about a failed handshake, by what is said of it."""
_REFUSALS: Final = ("authorization", "authentication", "nkey", "jwt", "seed", "signature", "credentials")


def login_options(server: Server, principal: str) -> dict[str, Any]:
    """Return nats-py's options for a first connection, credentials included.

    Raises:
        OSError: A file of credentials or certificates cannot be read.
        ConfigError: The token is somebody else's.
    """
    _check_bearer(server, principal)
    seed = server.nkey is not None and server.nkey.startswith("SU")
    for path in (server.creds, None if seed else server.nkey, server.token_file):
        if path:
            Path(path).open("rb").close()  # nats-py would look only where the server asks for them
    options: dict[str, Any] = {
        "servers": server.urls,
        "name": f"natterjack {principal}",
        "inbox_prefix": f"_INBOX.{principal}",
        "allow_reconnect": False,  # the first time: fail at once instead of retrying for two minutes
        "max_reconnect_attempts": 1,
        "reconnect_time_wait": 0.05,
        "ping_interval": PING_INTERVAL,
        "tls": server.tls(),
        "token": partial(read_token, server.token) if server.token else None,
        "user": server.user,
        "password": server.password,
        "user_credentials": server.creds,
    }
    if server.nkey:
        options["nkeys_seed_str" if seed else "nkeys_seed"] = server.nkey
    return {key: value for key, value in options.items() if value is not None}


def _check_bearer(server: Server, principal: str) -> None:
    """Check that a token is for who comes: the broker lets in whom it names, to refuse all that another may."""
    who = unverified(read_token(server.token)).get("sub") if server.token and server.attests else None
    if not isinstance(who, str) or who == principal:
        return
    own = f"put one of `natterjack token mint {principal}` there"
    advice = f"add --as {who}" if principal == OPERATOR else own
    msg = f"the token in {server.token_file or 'NATS_TOKEN'} is for {who!r}, and this acts as {principal!r}: {advice}"
    raise ConfigError(msg)


def login_error(server: Server, error: BaseException, told: BaseException | None = None) -> ConnectError:
    """Return what a failed first connection means.

    Args:
        server: Where.
        error: What ended it.
        told: What the server or the socket had said before.
    """
    text = f"{type(error).__module__} {error} {told or ''}".lower()
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        made = "" if server.token or not server.attests else ". `natterjack secure` makes them for who is in the team"
        return CredentialsError(f"the credentials for {server} cannot be read: {error}{made}")
    cause = own_words(told or error)
    if size := _too_long(server, error, text):
        told_so = f"{size:,} characters of token are more than it reads of a login: {_LOGIN:,} bytes by default"
        return CredentialsError(f"{server} refuses these credentials ({told_so}). {advice(server)}")
    for problem in filter(None, (told, error)):
        # It may hang up before it was read why: with TLS 1.3 it looks at a certificate after the handshake.
        hung_up = isinstance(problem, ConnectionResetError | BrokenPipeError) or "hung up" in str(problem)
        if isinstance(problem, ssl.SSLError) or (hung_up and (server.ca or server.cert)) or "no TLS" in str(problem):
            return _tls_error(server, own_words(problem))
    if any(word in text for word in _REFUSALS):
        return CredentialsError(f"{server} refuses these credentials ({own_words(error)}). {advice(server)}")
    if "connections exceeded" in text:
        return ConnectError(f"{server} takes no more connections ({own_words(error)}). End some, or raise its limit.")
    named = f" The address is from {server.origin}: unset it to do without." if server.origin else ""
    return ConnectError(f"no NATS server answers at {server} ({cause}). Start one with `natterjack broker run`.{named}")


def _too_long(server: Server, error: BaseException, text: str) -> int:
    """Return how many characters of token the server has hung up on, or 0: it may not even say so."""
    hung_up = isinstance(error, ConnectionError) or "control line" in text or "hung up" in text
    if server.token and hung_up:
        with suppress(OSError, ValueError):
            return size if (size := len(read_token(server.token))) > _LOGIN - 512 else 0
    return 0


def _tls_error(server: Server, cause: str) -> ConnectError:
    said = cause.lower()
    refused = f"It takes no such certificate as {server.cert}: it is of another authority, or has ended."
    unknown = refused if server.cert else _ADVICE["certificate required"]
    advice = next((advice for words, advice in _ADVICE.items() if words in said), unknown)
    return ConnectError(f"no TLS connection to {server} ({cause}). {advice}")


def check_server_version(server: Server, major: int, minor: int) -> None:
    """Refuse a server that lacks what the kernel needs.

    Raises:
        ConnectError: It is too old.
    """
    oldest = OLDEST_SERVER[:2]
    if (major, minor) < oldest:
        wanted = ".".join(str(part) for part in oldest)
        msg = f"{server} runs nats-server {major}.{minor}, but {wanted} or newer is needed."
        raise ConnectError(msg)


def own_words(error: BaseException) -> str:
    """Return an error's own words: without nats-py's prefix, never empty."""
    return str(error).removeprefix("nats: ").strip("'\" ") or type(error).__name__
