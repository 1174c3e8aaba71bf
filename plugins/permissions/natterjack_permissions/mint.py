"""Operator mode: keys, accounts and credentials that an operator mints, each a file below a folder.

The same `star` as in the static mode, as tokens that servers store, instead of configuration that they read. So
principals come, go, expire and are revoked while servers run.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import nkeys

from natterjack import ConfigError
from natterjack_permissions import claims
from natterjack_permissions.claims import ALL_USERS, CALLOUT, Claims
from natterjack_permissions.keys import pair, store
from natterjack_permissions.sealed import CurveKey, new_seed
from natterjack_permissions.star import CORE, PREFIX, Account

SYS: Final = "SYS"
KEYS: Final = "keys"
"""Folder of what principals log in with, as `NATS_KEYS` names it."""
SIGNER, SEAL, SERVICE = "callout/signer.nk", "callout/xkey.nk", "callout/callout.creds"
"""What a callout service has: what signs for it, what opens tokens, and what it logs in with."""
NEXT_SIGNER, NEXT_SEAL = "callout/next/signer.nk", "callout/next/xkey.nk"
"""What it signs and opens by next, between the two steps of `secure --rotate callout`."""
ROTATED: Final = "callout"
"""What `secure --rotate` calls it."""
_SENTINEL: Final = "callout/sentinel.creds"
_SECRET: Final = ("seeds/", f"{KEYS}/", "callout/")
_OPERATOR: Final = "operator.jwt"
_CONFIGURATION: Final = """\
# Written anew by `natterjack secure`. What runs has taken what came after it was started from `secure --apply`.
operator: "{operator}"
system_account: {system}
resolver: {{ type: full, dir: "{resolver}", interval: "5s", timeout: "1s" }}
resolver_preload: {{
{accounts}
}}
"""


class Mint:
    """What is below a folder, and what would be; nothing is written before `write`.

    Args:
        out: The folder.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.changed: dict[str, str | None] = {}
        """What would be written, by the names of files below the folder; None: removed."""
        self.renewed: set[str] = set()
        """Accounts that were written: a server that was reloaded since has them, and acts by the former ones."""
        self._there: dict[str, str | None] = {}  # what was read, or written
        self._pairs: dict[str, nkeys.KeyPair] = {}  # by their seeds

    @property
    def exists(self) -> bool:
        """Whether the folder is of operator mode."""
        return (self.out / _OPERATOR).exists() or (self.out / _seed_file("operator")).exists()

    def check_complete(self) -> None:
        """Check that a folder of operator mode has what signs: it may be kept elsewhere.

        Raises:
            ConfigError: It has not; another operator would be unknown to all servers and credentials.
        """
        if self.exists and not (self.out / _seed_file("operator")).exists():
            msg = f"{self.out} is of operator mode, and its `seeds`, which sign, are not here; do this where they are"
            raise ConfigError(msg)

    # Files

    def text(self, name: str) -> str | None:
        """Return what a file has, or would have; None: it is not there."""
        if name in self.changed:
            return self.changed[name]
        if name not in self._there:
            self._there[name] = _read(f"{self.out}/{name}")
        return self._there[name]

    def put(self, name: str, text: str | None) -> None:
        """Have a file say this; None: be no more."""
        if self.text(name) != text:
            self.changed[name] = text

    def write(self) -> None:
        """Write what would change, secrets readable by their owner alone."""
        for name, text in self.changed.items():
            if text is None:
                (self.out / name).unlink(missing_ok=True)
            else:
                store(f"{self.out}/{name}", text.encode(), 0o600 if name.startswith(_SECRET) else 0o644)
        self.renewed |= set(filter(None, map(_account_in, self.changed)))
        self._there |= self.changed
        self.changed = {}

    def differences(self) -> dict[str, tuple[str, str]]:
        """Return what would change, for people: what there is and what there would be; of secrets, nothing."""
        found = {}
        for name, text in self.changed.items():
            before = self._there.get(name) or ""
            told = before and not name.startswith(_SECRET) and name != "accounts.conf"
            found[name] = (_shown(name, before), _shown(name, text or "")) if told else (before and "…", "")
        return found

    # What a team needs

    def team(
        self,
        star: Sequence[Account],
        rotate: Collection[str] = (),
        resolver: str = "resolver",
        by_token: Collection[str] = (),
    ) -> None:
        """Mint what the accounts of a star need: what is as it shall be stays, and who is in it no more may nothing.

        Args:
            star: The principals' accounts.
            rotate: Principals who get other credentials, and whose former ones are revoked.
            resolver: Where a server keeps what it was told, seen from where it runs.
            by_token: Principals who are let in by a token of the team, too.
        """
        names = [SYS, CORE, *(account.name for account in star), *([CALLOUT] if by_token else ())]
        keys = {name: self.account(name) for name in names}
        if by_token and ROTATED in rotate:
            self._step()
        signers = self._signers() if by_token else []
        self._sign(_OPERATOR, claims.operator(_public(self._operator), keys[SYS]))
        said = {SYS: claims.system(keys[SYS]), CORE: claims.core(list(star), keys[CORE])}
        for account in star:
            by = signers if account.principal in by_token else ()
            said[account.name] = claims.principal(account, keys, by)
        if signers:
            said[CALLOUT] = self._callout(keys, signers, sorted(keys[account_of(who)] for who in by_token))
        for name in names:
            self._sign(_file(name), self._with_revocations(name, said[name]))
        for name in sorted(self.accounts() - set(names)):
            self._end(name)
        for who in ("core", "sys", *(account.principal for account in star)):
            if who in rotate:
                self.revoke(who)
            if who in rotate or not self._fits(who):
                self.issue(who)
        self.configure(resolver)

    def _signers(self) -> list[str]:
        """Return the public keys by which callout services sign, made if there is none."""
        own = [SIGNER] if self.text(NEXT_SIGNER) is None else [SIGNER, NEXT_SIGNER]
        return [_public(self._seed(file, nkeys.PREFIX_BYTE_ACCOUNT)) for file in own]

    def _step(self) -> None:
        """Have callout services get other keys beside theirs; the second time, have these in force, and no others."""
        if self.text(NEXT_SIGNER) is None:
            self._seed(NEXT_SIGNER, nkeys.PREFIX_BYTE_ACCOUNT)
            self.put(NEXT_SEAL, new_seed() + "\n")
            self.put(SERVICE, None)
        else:
            for file, following in ((SIGNER, NEXT_SIGNER), (SEAL, NEXT_SEAL)):
                self.put(file, self.text(following))
                self.put(following, None)

    def _callout(self, keys: Mapping[str, str], signers: list[str], accounts: list[str]) -> Claims:
        """Mint what a callout service needs, beside its signing keys, and return the claims of its account."""
        self._user(SERVICE, keys[CALLOUT], lambda public: claims.user("callout", public))
        self._user(_SENTINEL, keys[CALLOUT], claims.sentinel)
        seal = self.text(SEAL)
        if seal is None:
            seal = new_seed() + "\n"
            self.put(SEAL, seal)
        service = str(self._credentials(SERVICE)["sub"])
        before = self.claims(CALLOUT)["nats"]["authorization"]["auth_users"] if self.text(_file(CALLOUT)) else []
        former = [user for user in before if user != service]
        in_turn = len(signers) > 1  # until the second step, who runs with the former credentials goes on
        said = claims.callout(
            keys, [service, *former] if in_turn else [service], signers, CurveKey(seal.strip()).public, accounts
        )
        if former and not in_turn:
            said["nats"]["revocations"] = dict.fromkeys(former, int(time.time()))
        return said

    def _user(self, file: str, account: str, said: Callable[[str], Claims]) -> None:
        """Mint a user of the account of the callout, unless it is there."""
        found = self._credentials(file)
        if not found or found["iss"] != account:
            self._write_creds(file, CALLOUT, said)

    def takes(self, who: str) -> bool:
        """Tell whether a principal is let in by a token."""
        account = account_of(who)
        return account in self.accounts() and bool(self.claims(account)["nats"].get("signing_keys"))

    @property
    def takes_tokens(self) -> bool:
        """Whether principals are let in by a token, too."""
        return self.text(SIGNER) is not None

    def configure(self, resolver: str = "resolver") -> None:
        """Write the servers' part: whom they trust, and all accounts, so that they begin with these."""
        tokens = {self.account(name): self.text(_file(name)) or "" for name in sorted(self.accounts())}
        lines = "\n".join(f'  {key}: "{token.strip()}"' for key, token in tokens.items())
        operator, system = (self.text(_OPERATOR) or "").strip(), self.account(SYS)
        text = _CONFIGURATION.format(operator=operator, system=system, resolver=resolver, accounts=lines)
        if self.takes_tokens:
            text += f'default_sentinel: "{_token_in(self.text(_SENTINEL))}"\n'
        self.put("accounts.conf", text)

    def _end(self, name: str) -> None:
        """Have an account be nobody's, and remove what its principal had."""
        nats = self.claims(name)["nats"]
        at = nats["revocations"][ALL_USERS] if nats["limits"]["conn"] == 0 else int(time.time())
        self._sign(_file(name), claims.gone(name, self.account(name), at))
        who = name.removeprefix(PREFIX)
        for file in (creds_file(who), f"contexts/{who}.json"):
            if self.text(file) is not None:
                self.put(file, None)

    def _with_revocations(self, name: str, said: Claims) -> Claims:
        """Return claims of an account with the revocations that it has."""
        if self.text(_file(name)) is not None and (revoked := self.claims(name)["nats"].get("revocations")):
            said["nats"]["revocations"] = revoked | said["nats"].get("revocations", {})
        return said

    # Accounts

    def accounts(self) -> set[str]:
        """Return the names of all accounts, of those who are gone, too."""
        there = (f"accounts/{path.name}" for path in (self.out / "accounts").glob("*.jwt"))
        return set(filter(None, map(_account_in, {*there, *self.changed})))

    def account(self, name: str) -> str:
        """Return the public key of an account; made, if there is none."""
        return _public(self._seed(_seed_file(name), nkeys.PREFIX_BYTE_ACCOUNT))

    def token(self, name: str) -> str:
        """Return what the operator says of an account."""
        return (self.text(_file(name)) or "").strip()

    def claims(self, name: str) -> Claims:
        """Return the same, to be read."""
        return claims.read(self.token(name), self.out / _file(name))

    def sign(self, said: Claims, at: int) -> str:
        """Return claims, signed by the operator as of a moment: of two, servers keep the later."""
        return claims.sign(said, self._operator, at)

    @property
    def _operator(self) -> nkeys.KeyPair:
        return self._seed(_seed_file("operator"), nkeys.PREFIX_BYTE_OPERATOR)

    def _seed(self, file: str, kind: int) -> nkeys.KeyPair:
        seed = self.text(file)
        if seed is None:
            seed = nkeys.encode_seed(os.urandom(32), kind).decode() + "\n"
            self.put(file, seed)
        return self._pairs.get(seed) or self._pairs.setdefault(seed, pair(seed.encode(), self.out / file))

    def _sign(self, file: str, said: Claims) -> None:
        """Have a file say this, signed by the operator; if it does, it stays as it is."""
        before, signer = (self.text(file) or "").strip(), self._operator
        found = claims.read(before, self.out / file) if before else None
        if found and claims.says(found, said, _public(signer)):
            return
        at = max(int(time.time()), found["iat"] + 1) if found else None  # servers keep the newest
        self.put(file, claims.sign(said, signer, at) + "\n")

    # Credentials

    def principals(self) -> list[str]:
        """Return who has credentials, or had ones that are revoked."""
        there = (name for name in self.accounts() if name != CALLOUT and self.claims(name)["nats"]["limits"]["conn"])
        return sorted(map(principal_of, there))

    def issue(self, who: str, expires: float | None = None) -> None:
        """Give a principal new credentials, with another key; the former ones stay as they are.

        Args:
            who: The principal.
            expires: Unix seconds when they end; None: never.
        """
        at = max(int(time.time()), self.revoked(who) + 1)
        self._write_creds(creds_file(who), account_of(who), lambda key: claims.user(who, key, expires), at)

    def _write_creds(self, file: str, account: str, said: Callable[[str], Claims], at: int | None = None) -> None:
        key = nkeys.from_seed(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER))
        signer = self._seed(_seed_file(account), nkeys.PREFIX_BYTE_ACCOUNT)
        token = claims.sign(said(_public(key)), signer, at)
        self.put(file, _CREDS.format(token=token, seed=key.seed.decode()))

    def revoke(self, who: str) -> None:
        """End all credentials that a principal was given up to now."""
        said = {
            name: value for name, value in self.claims(account_of(who)).items() if name not in ("iat", "jti", "iss")
        }
        until = max(int(time.time()), self.revoked(who) + 1)  # as `issue` may date them, after it was revoked just now
        said["nats"]["revocations"] = {ALL_USERS: until}
        self._sign(_file(account_of(who)), said)

    def revoked(self, who: str) -> int:
        """Return until when issued credentials are revoked, in Unix seconds; 0: none is."""
        return int(self.claims(account_of(who))["nats"].get("revocations", {}).get(ALL_USERS, 0))

    def revocations(self) -> dict[str, int]:
        """Return the same for everybody in the team of whom some are."""
        return {who: at for who in self.principals() if (at := self.revoked(who))}

    def credentials(self, who: str) -> Claims | None:
        """Return the claims of a principal's credentials, if there are any, and are not malformed."""
        return self._credentials(creds_file(who)) or None

    def _credentials(self, file: str) -> Claims:
        with suppress(ConfigError, IndexError):
            return claims.read(_token_in(self.text(file)))
        return {}

    def check(self, who: str) -> None:
        """Check that there is a principal of that name.

        Raises:
            ConfigError: There is none.
        """
        if who not in self.principals():
            msg = f"{who!r} has no account here, so no credentials; there are {', '.join(self.principals())}"
            raise ConfigError(msg)

    def _fits(self, who: str) -> bool:
        found = self.credentials(who)
        return found is not None and found["iss"] == self.account(account_of(who))


_CREDS: Final = """\
-----BEGIN NATS USER JWT-----
{token}
------END NATS USER JWT------

-----BEGIN USER NKEY SEED-----
{seed}
------END USER NKEY SEED------
"""


def _read(path: str) -> str | None:
    try:
        with open(path, errors="replace") as file:  # what is broken is told by who reads it
            return file.read()
    except FileNotFoundError:
        return None


def account_of(who: str) -> str:
    """Return the name of a principal's account."""
    return {"core": CORE, "sys": SYS}.get(who, f"{PREFIX}{who}")


def principal_of(account: str) -> str:
    """Return whose account it is."""
    return account.removeprefix(PREFIX) if account.startswith(PREFIX) else account.lower()


def creds_file(who: str) -> str:
    """Return where a principal's credentials are, below the folder."""
    return f"{KEYS}/{who}.creds"


def _seed_file(name: str) -> str:
    return f"seeds/{name}.nk"


def _token_in(creds: str | None) -> str:
    """Return the token in a file of credentials."""
    return (creds or "").splitlines()[1]


def _file(account: str) -> str:
    return f"accounts/{account}.jwt"


def _account_in(file: str) -> str | None:
    """Return whose account a file has."""
    return file[9:-4] if file.startswith("accounts/") else None


def _public(key: nkeys.KeyPair) -> str:
    return str(key.public_key.decode())


def _shown(name: str, text: str) -> str:
    if not name.endswith(".jwt") or not text:
        return text
    said: dict[str, Any] = claims.read(text.strip())
    return json.dumps({key: value for key, value in said.items() if key not in ("iat", "jti")}, indent=2)
