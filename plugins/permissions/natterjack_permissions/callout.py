"""`natterjack callout`: servers ask it whether who shows a token of the team may come in, and as whom."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Final

import nkeys
import typer

from natterjack import Bus, Claims, ConfigError, Message, Server, TokenError, Tokens
from natterjack_permissions import claims
from natterjack_permissions.authority import URL
from natterjack_permissions.mint import SEAL, SERVICE, SIGNER, Mint, account_of
from natterjack_permissions.sealed import CurveKey

log = logging.getLogger("natterjack.callout")
app = typer.Typer(name="callout")

SUBJECT: Final = "$SYS.REQ.USER.AUTH"
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
    bus = await service.start(url)
    typer.echo(f"ready  {url} lets in who shows a token")
    ends = [asyncio.create_task(each.wait()) for each in (stop, bus.closed)]
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in ends:
            each.cancel()
        await service.stop()
    if not stop.is_set():
        raise ConfigError(bus.reason)


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
        try:
            self._signer = nkeys.from_seed((folder / SIGNER).read_bytes().strip())
            self._seal = CurveKey((folder / SEAL).read_text().strip())
        except FileNotFoundError as error:
            msg = f"there is no {error.filename}: `natterjack secure --mode operator --tokens` makes it"
            raise ConfigError(msg) from error
        self._bus: Bus | None = None
        self._answering: set[asyncio.Task[None]] = set()

    async def start(self, url: str) -> Bus:
        """Begin, and return its connection."""
        certificates = {name: os.environ.get(f"NATS_{name.upper()}") or None for name in ("ca", "cert", "key")}
        server = Server(url, creds=str(self._folder / SERVICE), **certificates)  # type: ignore[arg-type]
        self._bus = bus = await Bus.connect(server, principal="callout")

        async def asked(message: Message) -> None:
            task = asyncio.create_task(self._answer(bus, message))  # keys may have to be fetched, and others wait
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

        await bus.subscribe(SUBJECT, asked, queue="callout")
        return bus

    async def stop(self) -> None:
        """End; what is being answered is answered."""
        if self._answering:
            await asyncio.wait(self._answering, timeout=2.0)
        if self._bus is not None:
            await self._bus.close()

    async def _answer(self, bus: Bus, message: Message) -> None:
        server = (message.headers or {}).get(_SERVER_KEY, "")
        try:
            request = claims.read(self._seal.open(message.data, server).decode())
        except (ConfigError, ValueError) as error:
            log.warning("a server's question cannot be read: %s", error)
            return
        said = await self.verdict(request)
        await bus.publish(message.reply, self._seal.seal(claims.sign(said, self._signer).encode(), server))

    async def verdict(self, request: claims.Claims) -> claims.Claims:
        """Return the claims that answer a server's question."""
        options = request["nats"]["connect_opts"]
        host = request["nats"]["client_info"].get("host", "?")
        try:
            shown = await self._tokens.verify(options.get("auth_token") or "")
            token = claims.sign(self._user(shown, request["nats"]["user_nkey"]), self._signer)
        except (TokenError, ConfigError) as error:
            log.warning("refused  %s from %s: %s", options.get("name", "a client"), host, error)
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
        revoked = mint.revoked(who)
        if revoked and shown.values.get("iat", 0) <= revoked:
            msg = f"all tokens of {who!r} that were made by then are revoked; make another"
            raise TokenError(msg)
        return claims.user(who, key, shown.expires, str(mint.claims(account)["sub"]))
