"""The trigger `webhook`."""

from __future__ import annotations

import os
from typing import Annotated, ClassVar, Final, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from natterjack import ConfigError, Settings, Trigger, TriggerContext, hookimpl
from natterjack_webhook.address import HEALTH, Address
from natterjack_webhook.references import References, read_references
from natterjack_webhook.senders import is_type
from natterjack_webhook.signatures import HeaderName, Hmac, Name, Verifier

LISTEN: Final = "NATTERJACK_WEBHOOK_LISTEN"
"""Environment variable that says where a process listens, unless a trigger says it itself."""
DEFAULT: Final = "127.0.0.1:8080"
_OURS: Final = ("nats-", "natterjack")


def _check_path(path: str) -> str:
    if path == HEALTH:
        msg = f"{HEALTH!r} is where the listener tells that it is well; choose another path"
        raise ValueError(msg)
    return path


def _check_listen(text: str) -> str:
    Address.read(text)
    return text


def _check_type(name: str) -> str:
    if not is_type(name):
        msg = f"{name!r} is no type of events; use e.g. 'order.paid'"
        raise ValueError(msg)
    return name


def _check_kept(name: str) -> str:
    if name.lower().startswith(_OURS):
        msg = f"{name!r} cannot be kept: headers that begin with 'Nats-' or 'Natterjack' have a meaning of their own"
        raise ValueError(msg)
    return name


class WebhookTrigger(Trigger):
    """Fires for each HTTP request to a path, once it has proved who sent it.

    Example in a team file::

        on = [{ webhook = { path = "/github", signature = "github", secret = "env:GITHUB_SECRET" } }]

    The request is answered 202 when the event is stored. Its data is the body; its type is what GitHub, Stripe and
    Slack call it, or `type`, or `webhook`. A delivery that is repeated within two minutes is the same event.
    """

    name: ClassVar[str] = "webhook"
    tells_ready = True

    class Config(Settings):
        """Settings, as a team file gives them.

        Attributes:
            path: Where requests come, e.g. `/github`.
            signature: `github`, `stripe`, `slack`, `standard` (Standard Webhooks), or `{ header = …, algorithm = …,
                encoding = …, prefix = … }`; None only where nobody but this machine can send.
            secret: Where it is, `env:NAME` or `file:PATH`; several while they are exchanged.
            tolerance: Seconds that a signed time may differ from ours.
            type: Type of all its events; by default what the sender calls them.
            id: Header with the id of a delivery, where the scheme has none.
            headers: Headers that the event keeps.
            max_body: Bytes that a body may have; the broker's limit (1 MiB by default) counts as well.
            listen: `HOST:PORT`; by default NATTERJACK_WEBHOOK_LISTEN, or 127.0.0.1:8080.
            shared: Whether several processes, replicas of this agent, share the port; the system spreads connections.
        """

        model_config = ConfigDict(hide_input_in_errors=True)

        path: Annotated[str, Field(pattern=r"^/[A-Za-z0-9._/-]{0,120}$"), AfterValidator(_check_path)]
        signature: Name | Hmac | None = None
        secret: References = ()
        tolerance: float = Field(120.0, gt=0, le=3600)
        type: Annotated[str, AfterValidator(_check_type)] | None = None
        id: Annotated[str, HeaderName] | None = None
        headers: tuple[Annotated[str, HeaderName, AfterValidator(_check_kept)], ...] = ()
        max_body: int = Field(1_000_000, ge=1, le=64_000_000)
        listen: Annotated[str, AfterValidator(_check_listen)] | None = None
        shared: bool = False

        @model_validator(mode="after")
        def _check_secret(self) -> Self:
            if (self.signature is None) != (not self.secret):
                wanted = "`secret`, e.g. secret = 'env:GITHUB_SECRET'" if self.signature else "`signature`"
                msg = f"signature and secret go together: add the {wanted}"
                raise ValueError(msg)
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.url = ""
        """Where requests go, once it runs; for programs that leave the port to the system (port 0)."""

    @property
    def label(self) -> str:
        """`webhook-<path>`."""
        return f"webhook-{self.config.path[1:].replace('/', '+').replace('.', '~2e')}"

    async def run(self, ctx: TriggerContext) -> None:
        """Take requests until cancelled; then answer those under way."""
        from natterjack_webhook.hook import Hook, HookSettings  # lazy: all processes of a team load this plugin, and
        from natterjack_webhook.listener import served  # few of them need a web server

        config, address = self.config, self._address()
        settings = HookSettings(config.path, config.signature, config.type, config.id, config.headers, config.max_body)
        verifier = None
        if config.signature is not None:
            verifier = Verifier(config.signature, read_references(config.secret), config.tolerance)
        async with served(Hook(settings, verifier, ctx), address) as listener:
            self.url = f"{listener.url}{config.path}"
            ctx.ready()
            raise await listener.ended()

    def _address(self) -> Address:
        try:
            address = Address.read(self.config.listen or os.environ.get(LISTEN, DEFAULT), shared=self.config.shared)
        except ValueError as error:
            msg = f"{LISTEN}: {error}"
            raise ConfigError(msg) from error
        if self.config.signature is None and not address.local:
            msg = (
                f"at {address} anybody on the network could send to {self.config.path!r}, because it has no "
                f"`signature`; add one with its `secret`, or listen on 127.0.0.1"
            )
            raise ConfigError(msg)
        return address


@hookimpl
def natterjack_triggers() -> list[type[Trigger]]:
    """Bring the trigger."""
    return [WebhookTrigger]
