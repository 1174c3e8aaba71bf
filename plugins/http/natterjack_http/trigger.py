"""The trigger `http`: an agent's door to HTTP."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from natterjack import ConfigError, Settings, StartError, Tokens, Trigger, TriggerContext, hookimpl
from natterjack_http.address import Address

if TYPE_CHECKING:
    from natterjack_http.door import Door
    from natterjack_http.listener import Server

KEY: Final = "NATTERJACK_TOKEN_KEY"
"""Environment variable with the key of tokens, unless the settings name another."""
LAST: Final = 1.0
"""Seconds in which the last answers must be sent, once the agent's time to drain is over."""


def _check_listen(text: str) -> str:
    Address.read(text)
    return text


def _check_key(text: str) -> str:
    if not text.startswith(("env:", "file:")):
        msg = "write where the key of tokens is, as 'env:NAME' or 'file:/path/to/it', and never the key itself"
        raise ValueError(msg)
    return text


class HttpTrigger(Trigger):
    """Has an agent asked over HTTP, by whoever shows a token.

    Example in a team file::

        on = [{ http = { listen = "0.0.0.0:9001", key = "env:TOKEN_KEY", audience = "researcher" } }]

    `POST /ask` asks, and streams the answer to who accepts `text/event-stream`; `DELETE /ask/<id>` cancels;
    `GET /health` tells whether it takes questions.
    """

    name: ClassVar[str] = "http"
    tells_ready = True
    drains = True

    class Config(Settings):
        """Settings, as a team file gives them.

        Attributes:
            listen: `HOST:PORT`.
            key: Where the key of tokens is, `env:NAME` or `file:PATH`: a secret, a PEM or a JWK set; by default
                NATTERJACK_TOKEN_KEY, where that is set. Without any key, only this machine can ask.
            jwks: URL of a JWK set, instead.
            audience: What tokens must have as `aud`; None: they must have none.
            issuer: What they must have as `iss`; None: any.
            leeway: Seconds that clocks may differ.
            roles: Tokens must have one of these; empty: none.
            max_body: Bytes of a question; the broker's limit (1 MiB by default) counts as well.
            shared: Whether several processes, replicas of this agent, share the port; the system spreads connections.
        """

        model_config = ConfigDict(hide_input_in_errors=True)

        listen: Annotated[str, AfterValidator(_check_listen)]
        key: Annotated[str, AfterValidator(_check_key)] | None = None
        jwks: Annotated[str, Field(pattern=r"^https?://")] | None = None
        audience: Annotated[str, Field(min_length=1)] | None = None
        issuer: Annotated[str, Field(min_length=1)] | None = None
        leeway: float = Field(30.0, ge=0, le=3600)
        roles: tuple[str, ...] = ()
        max_body: int = Field(1_000_000, ge=1, le=64_000_000)
        shared: bool = False

        @model_validator(mode="after")
        def _check_keys(self) -> Self:
            if self.key and self.jwks:
                msg = "`key` and `jwks` are both given; one of them says how tokens are verified"
                raise ValueError(msg)
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.url = ""
        """Where it is reached, once it runs; for programs that leave the port to the system (port 0)."""

    async def run(self, ctx: TriggerContext) -> None:
        """Take requests until cancelled; then answer those under way."""
        # Lazy: all processes of a team load this plugin, and few of them a web server.
        from natterjack_http.callers import Callers
        from natterjack_http.door import Door
        from natterjack_http.listener import Server, bind

        address, config = Address.read(self.config.listen), self.config
        tokens = self._tokens(address)
        door = Door(ctx, Callers(ctx.agent, ctx.admission, tokens, config.roles), config.max_body)
        await ctx.admission.prepare()
        listening = bind(address, shared=config.shared)
        bound = Address(*listening.getsockname()[:2])
        self.url = f"http://{bound}"
        server = Server(door)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        if tokens is None:
            ctx.log.warning("any program of this machine may ask %s, because there is no key; set %s", ctx.agent, KEY)
        ctx.log.info("%s is asked at %s", ctx.agent, self.url)
        ctx.ready()
        try:
            await asyncio.wait([serving])
        finally:
            await _close(door, server, serving)
        msg = f"the HTTP server at {bound} ended by itself"
        raise StartError(msg)

    def _tokens(self, address: Address) -> Tokens | None:
        """Return what verifies tokens; None where none are asked for."""
        config = self.config
        settings: dict[str, Any] = {"audience": config.audience, "issuer": config.issuer, "leeway": config.leeway}
        if config.jwks:
            return Tokens(jwks=config.jwks, **settings)
        key = config.key or (f"env:{KEY}" if os.environ.get(KEY) else None)
        if key:
            tokens = Tokens.of(key, **settings)
            if not address.local:
                tokens.check_exposed()
            return tokens
        if not address.local or config.audience or config.issuer or config.roles:
            reason = f"{address} can be reached from other machines" if not address.local else "tokens are wanted"
            msg = (
                f"{reason}, and there is no key to know callers by: set {KEY}, e.g. to what `openssl rand -base64 32` "
                "prints, or name another with `key` or `jwks`; without one, listen on 127.0.0.1"
            )
            raise ConfigError(msg)
        return None


async def _close(door: Door, server: Server, serving: asyncio.Task[None]) -> None:
    """Return once all requests are answered; cancelled, cancel what they ask, and return soon."""
    door.draining = server.should_exit = True
    try:
        await door.idle.wait()
    finally:
        door.end_all()
        await asyncio.wait([serving], timeout=LAST)
        server.abort()
        await asyncio.gather(serving, return_exceptions=True)


@hookimpl
def natterjack_triggers() -> list[type[Trigger]]:
    """Bring the trigger."""
    return [HttpTrigger]
