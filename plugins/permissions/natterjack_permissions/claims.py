"""Claims: what an operator signs, so that servers need no list of accounts and users (JSON Web Tokens of nkeys)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import nkeys
import orjson

from natterjack import ConfigError, Server
from natterjack_permissions.broker import CORE_EXPORTS, MOST_CONNECTIONS, MOST_SUBSCRIPTIONS, answers, heard
from natterjack_permissions.star import CORE, Account, Import

Claims = dict[str, Any]

CALLOUT: Final = "CALLOUT"
"""The account where tokens are looked at."""
AUDITED: Final = "audit.callout.*.*"
"""Where it is written down whom the service refused."""
ALL_USERS: Final = "*"
"""Stands for all users of an account in its `revocations`."""
_HEADER: Final = {"typ": "JWT", "alg": "ed25519-nkey"}
_UNLIMITED: Final = {"subs": -1, "data": -1, "payload": -1}
_LIMITS: Final = {**_UNLIMITED, "imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}
_STORAGE: Final = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
_NANOSECONDS: Final = 1_000_000_000


# Tokens


def sign(claims: Claims, signer: nkeys.KeyPair, at: int | None = None) -> str:
    """Return a token of claims.

    Args:
        claims: What it says.
        signer: The key of who says so.
        at: Unix seconds when it does; by default now.
    """
    issuer = signer.public_key.decode()
    said = claims | {"iat": int(time.time()) if at is None else at, "iss": issuer, "jti": ""}
    digest = hashlib.sha512(orjson.dumps(said)).digest()[:32]
    said["jti"] = base64.b32encode(digest).rstrip(b"=").decode()
    body = b".".join(base64.urlsafe_b64encode(orjson.dumps(part)).rstrip(b"=") for part in (_HEADER, said))
    return (body + b"." + base64.urlsafe_b64encode(signer.sign(body)).rstrip(b"=")).decode()


def read(token: str, where: object = "a token of nkeys") -> Claims:
    """Return the claims of a token, which are not verified: servers do that.

    Args:
        token: The token.
        where: Where it was, for the message.

    Raises:
        ConfigError: It is none.
    """
    try:
        body = token.split(".")[1]
        found = orjson.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (IndexError, ValueError, binascii.Error) as error:
        msg = f"{where} is malformed; have `natterjack secure` write that file anew: remove it"
        raise ConfigError(msg) from error
    return dict(found)


def says(found: Claims, claims: Claims, issuer: str) -> bool:
    """Tell whether the claims of a token say the same, whenever that was."""
    return {name: value for name, value in found.items() if name not in ("iat", "jti")} == claims | {"iss": issuer}


# What they say


def operator(key: str, system: str) -> Claims:
    """Return the claims of an operator: which account looks after the servers."""
    return {"name": "natterjack", "sub": key, "nats": {"type": "operator", "version": 2, "system_account": system}}


def user(name: str, key: str, expires: float | None = None, account: str | None = None) -> Claims:
    """Return the claims of a user, who may what its account says.

    Args:
        name: The principal, which answering ones are told.
        key: Its public key.
        expires: Unix seconds when it is let in no more.
        account: The public key of its account, if another key signs for it.
    """
    end = {} if expires is None else {"exp": int(expires)}
    issuer = {"issuer_account": account} if account else {}
    return {"name": name, "sub": key, "nats": {"type": "user", "version": 2, **_UNLIMITED, **issuer}} | end


def sentinel(key: str) -> Claims:
    """Return the claims of who shows no credentials of its own: it may nothing but have a token looked at."""
    nothing = {"pub": {"deny": [">"]}, "sub": {"deny": [">"]}, "bearer_token": True}
    said = user(Server.ANYBODY, key)
    return said | {"nats": said["nats"] | nothing}


def callout(keys: Mapping[str, str], services: list[str], signers: list[str], seal: str, accounts: list[str]) -> Claims:
    """Return the claims of the account where tokens are looked at, and whom it refuses is written down.

    Args:
        keys: Its public key and that of `CORE`, by their names.
        services: Those of the service's user: the present one, and a former one for a while.
        signers: Those by which the service signs.
        seal: That for which servers seal tokens.
        accounts: Public keys of the accounts that it may let somebody into.
    """
    authorization = {"auth_users": services, "allowed_accounts": accounts, "xkey": seal}
    imports = [_import(Import(CORE, AUDITED, AUDITED), keys)]
    said = {"authorization": authorization, "signing_keys": signers, "imports": imports}
    return _account(CALLOUT, keys[CALLOUT], said)


def verdict(request: Claims, token: str = "", problem: str = "") -> Claims:
    """Return the claims that answer a server: the token of the user that it shall let in, or why not.

    Args:
        request: The server's claims.
        token: Of the user.
        problem: Why not.
    """
    asked = request["nats"]
    said = {"type": "authorization_response", "version": 2, **({"jwt": token} if token else {"error": problem})}
    return {"sub": asked["user_nkey"], "aud": asked["server_id"]["id"], "nats": said}


def system(key: str) -> Claims:
    """Return the claims of the account that looks after the servers."""
    return _account("SYS", key, {})


def core(star: list[Account], key: str) -> Claims:
    """Return the claims of `CORE`, which has all that is stored."""
    exports = [*map(_service, CORE_EXPORTS), *map(_stream, heard(star))]
    return _account(CORE, key, {"limits": _LIMITS | _STORAGE, "exports": exports})


def principal(account: Account, keys: Mapping[str, str], signers: Sequence[str] = ()) -> Claims:
    """Return the claims of a principal's account.

    Args:
        account: What it may.
        keys: The public key of each account, by its name.
        signers: The public keys of who lets it in by its token.
    """
    streams = [{"account": keys[CORE], **_stream(subject)} for subject in account.hears]
    streams += [{"account": keys[each.account], **_stream(each.subject)} for each in account.listens]
    rights = {"pub": {"allow": list(account.publish)}, "sub": {"allow": list(account.subscribe)}}
    said = {
        "limits": _LIMITS | {"conn": MOST_CONNECTIONS, "subs": MOST_SUBSCRIPTIONS},
        "exports": [*map(_service, account.serves), *map(_stream, account.tells)],
        "imports": [*(_import(call, keys) for call in account.calls), *streams],
        "signing_keys": list(signers),
        "default_permissions": rights,  # here, and not in users' tokens: so they change on connections that stay
    }
    return _account(account.name, keys[account.name], said)


def gone(name: str, key: str, at: int) -> Claims:
    """Return the claims of an account that nobody may use any more.

    It is not deleted: a server that is away would bring it back, as the others know nothing that is newer.

    Args:
        name: Its name.
        key: Its public key.
        at: Unix seconds since when.
    """
    return _account(name, key, {"limits": _LIMITS | {"conn": 0, "subs": 0}, "revocations": {ALL_USERS: at}})


def _account(name: str, key: str, said: Claims) -> Claims:
    given = {"limits": _LIMITS, "default_permissions": {"pub": {}, "sub": {}}} | said
    return {"name": name, "sub": key, "nats": {"type": "account", "version": 2} | given}


def _stream(subject: str) -> Claims:
    return {"subject": subject, "type": "stream"}


def _service(subject: str) -> Claims:
    many, silence = answers(subject)
    late = {"response_threshold": silence * _NANOSECONDS} if silence else {}
    return {"subject": subject, "type": "service", **({"response_type": "Stream"} if many else {}), **late}


def _import(call: Import, keys: Mapping[str, str]) -> Claims:
    """Return the claims of an import; who answers is told who asks, by the name that its token has."""
    renamed = {"local_subject": call.to} if call.to != call.subject else {}
    told = {} if call.account == CORE else {"share": True}
    return {"account": keys[call.account], "subject": call.subject, "type": "service", **renamed, **told}
