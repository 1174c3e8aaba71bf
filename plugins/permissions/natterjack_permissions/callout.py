"""`natterjack callout`: servers ask it whether who shows a token of the team may come in, and as whom."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import nkeys
import typer

from natterjack import Bus, Claims, ConfigError, Message, NatterjackError, Server, TokenError, Tokens
from natterjack_permissions import claims
from natterjack_permissions.authority import URL
from natterjack_permissions.keys import pair
from natterjack_permissions.mint import NEXT_SEAL, NEXT_SIGNER, SEAL, SERVICE, SIGNER, Mint, account_of
from natterjack_permissions.sealed import CurveKey

log = logging.getLogger("natterjack.callout")
app = typer.Typer(name="callout")

SUBJECT: Final = "$SYS.REQ.USER.AUTH"
SCOPE: Final = "nats"
"""What a token needs that has scopes: it opens less than one without, and here is all that its principal may."""
FOLLOWS: Final = 1.0
"""Seconds between two looks for other credentials of the service."""
_LONGEST_NAME: Final = 100
"""Characters of a client's own name that are logged."""
_SERVER_KEY: Final = "Nats-Server-Xkey"


@app.command()
def callout(
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder of `secure --tokens`.")] = Path(
        "secure"
    ),
    url: Annotated[str, typer.Option("--url", metavar="URL", envvar="NATS_URL", help="Where the broker is.")] = URL,
    key: Annotated[
        str, typer.Option("--key", metavar="WHERE", help="The key of tokens: env:NAME or file:PATH.")
    ] = "env:NATTERJACK_TOKEN_KEY",
    audience: Annotated[str | None, typer.Option("--audience", metavar="NAME", help="Whom they are for.")] = None,
    issuer: Annotated[str | None, typer.Option("--issuer", metavar="NAME", help="Who made them.")] = None,
) -> None:
    """Let principals log in by tokens of the team, each with its own rights, until SIGINT or SIGTERM.

    Run two, and one may be away: servers let nobody new in by a token while there is none.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    tokens = Tokens.of(key, audience=audience, issuer=issuer)
    tokens.check_exposed()
    asyncio.run(_serve(Callout(out, tokens), url))


async def _serve(service: Callout, url: str) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    if sys.platform != "win32":  # there, Ctrl-C cancels
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
    await service.start(url)
    typer.echo(f"ready  {url} lets in who shows a token")
    stopped, ended = (asyncio.create_task(each) for each in (stop.wait(), service.ended()))
    try:
        await asyncio.wait((stopped, ended), return_when=asyncio.FIRST_COMPLETED)
    finally:
        await service.stop()
        stopped.cancel()
    reason = await ended
    if not stop.is_set():
        raise ConfigError(reason)


class Keys(NamedTuple):
    """What a callout service has at one time."""

    signer: nkeys.KeyPair
    seal: CurveKey


class Callout:
    """Looks at tokens, and says as whom their bearers come in.

    Args:
        folder: As `secure --tokens` has written it; of it, `callout/` and `accounts/` are needed.
        tokens: Verifies them.

    Raises:
        ConfigError: The folder has not what is needed.
    """

    def __init__(self, folder: Path, tokens: Tokens) -> None:
        self._folder, self._tokens = folder, tokens
        self._known: dict[str, Keys] = {}
        self._learn()
        self._joined: tuple[Bus, Callable[[], Awaitable[None]]] | None = None
        self._answering: set[asyncio.Task[None]] = set()
        self._following: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    async def start(self, url: str) -> None:
        """Begin; return once servers can ask.

        Raises:
            ConnectError: None answers, or lets the service in.
        """
        certificates = {name: os.environ.get(f"NATS_{name.upper()}") or None for name in ("ca", "cert", "key")}
        server = Server(url, keys=str((self._folder / SERVICE).parent), **certificates)  # type: ignore[arg-type]
        shown = self._credentials()
        await self._join(server)
        self._following = asyncio.create_task(self._follow(server, shown))

    async def ended(self) -> str:
        """Return why it has no connection any more, once it is so."""
        while self._joined is not None:
            bus, _ = joined = self._joined
            await bus.closed.wait()
            if joined is self._joined:
                return bus.reason
        return "it has not begun"

    async def stop(self) -> None:
        """End; what is being answered is answered."""
        self._stopping.set()
        if self._following is not None:
            await self._following
        if self._joined is not None:
            await self._leave(*self._joined)

    async def _join(self, server: Server) -> None:
        """Connect; who was connected before leaves then, so that there is always one to ask."""
        bus = await Bus.connect(server, principal="callout")

        async def asked(message: Message) -> None:
            task = asyncio.create_task(self._answer(bus, message))  # keys may have to be fetched, and others wait
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

        try:
            subscription = await bus.subscribe(SUBJECT, asked, queue="callout")
        except BaseException:
            await bus.close()
            raise
        former, self._joined = self._joined, (bus, subscription.drain)
        if former is not None:
            await self._leave(*former)

    async def _leave(self, bus: Bus, drain: Callable[[], Awaitable[None]]) -> None:
        await drain()
        if self._answering:
            await asyncio.wait(self._answering, timeout=2.0)
        await bus.close()

    async def _follow(self, server: Server, shown: str | None) -> None:
        """Go by the credentials that the folder has: there may be others, and the former ones end."""
        while not await _within(FOLLOWS, self._stopping):
            try:
                found = self._credentials()
                if found in (None, shown):
                    continue
                await self._join(server)
            except (NatterjackError, OSError) as error:  # of a file that is just being copied, too
                log.info("tries the next credentials again: %s", error)
            else:
                log.info("goes by the next credentials")
                shown = found

    def _credentials(self) -> str | None:
        return Mint(self._folder).text(SERVICE)

    def _learn(self) -> None:
        """Read the keys of the folder; the former ones are kept, as servers may go by them for a while.

        Raises:
            ConfigError: It has none.
        """
        mint = Mint(self._folder)
        for files in ((SIGNER, SEAL), (NEXT_SIGNER, NEXT_SEAL)):
            signer, seal = map(mint.text, files)
            if signer and seal and seal not in self._known:
                self._known[seal] = Keys(pair(signer.encode(), files[0]), CurveKey(seal.strip()))
        if not self._known:
            msg = f"there is no {self._folder / SIGNER}: `natterjack secure --mode operator --tokens` makes it"
            raise ConfigError(msg)

    def _opened(self, sealed: bytes, server: str) -> tuple[Keys, claims.Claims]:
        """Return what a server asks, and the keys that it goes by: those for which it has sealed.

        Raises:
            ConfigError: None of them opens it.
        """
        self._learn()
        for keys in self._known.values():
            with suppress(ConfigError):
                return keys, claims.read(keys.seal.open(sealed, server).decode())
        msg = "it is not sealed for a key of this folder; does the server have the account CALLOUT as it is here?"
        raise ConfigError(msg)

    async def _answer(self, bus: Bus, message: Message) -> None:
        server = (message.headers or {}).get(_SERVER_KEY, "")
        try:
            keys, request = self._opened(message.data, server)
        except (ConfigError, ValueError) as error:
            log.warning("a server's question cannot be read: %s", error)
            return
        try:
            said = await self.verdict(bus, request, keys.signer)
        except Exception:  # whatever it is, its bearer is not let in, and told so
            log.exception("a token could not be looked at")
            said = claims.verdict(request, problem="the callout failed")
        await bus.publish(message.reply, keys.seal.seal(claims.sign(said, keys.signer).encode(), server))

    async def verdict(self, bus: Bus, request: claims.Claims, signer: nkeys.KeyPair) -> claims.Claims:
        """Return the claims that answer a server's question.

        Args:
            bus: In its audit stands who is known and refused.
            request: What it asks.
            signer: Signs for who is let in.
        """
        options = request["nats"]["connect_opts"]
        host = request["nats"]["client_info"].get("host", "?")
        shown = None
        try:
            shown = await self._tokens.verify(options.get("auth_token") or "")
            token = claims.sign(self._user(shown, request["nats"]["user_nkey"]), signer)
        except (TokenError, ConfigError) as error:
            named = str(options.get("name", "a client"))[:_LONGEST_NAME]  # its own words, which may be anything
            log.warning("refused  %r from %s: %s", named, host, error)
            if shown is not None:  # strangers could fill the audit
                bus.audit.refused("enter", "", str(error), who=shown.subject)
            return claims.verdict(request, problem=str(error))
        log.info("let in  %s from %s", shown.subject, host)
        return claims.verdict(request, token)

    def _user(self, shown: Claims, key: str) -> claims.Claims:
        """Return the claims of a user for whom a verified token speaks.

        Raises:
            TokenError: Nobody is let in so.
        """
        who, mint = shown.subject, Mint(self._folder)  # anew: accounts may have come, and tokens be revoked
        account = account_of(who)
        if not mint.takes(who):
            msg = f"{who!r} is not let in by a token: it is no agent, tool server or user of the team, or may all"
            raise TokenError(msg)
        if shown.scopes and SCOPE not in shown.scopes:
            msg = f"its scopes are for other doors; `natterjack token mint {who} --scope {SCOPE}`, or without scopes"
            raise TokenError(msg)
        revoked = mint.revoked(who)
        if revoked and shown.values.get("iat", 0) <= revoked:
            msg = f"all tokens of {who!r} that were made by then are revoked; make another"
            raise TokenError(msg)
        return claims.user(who, key, shown.expires, str(mint.claims(account)["sub"]))


async def _within(seconds: float, event: asyncio.Event) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True
