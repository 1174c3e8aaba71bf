"""The kind of agent `webhook`: posts the events that wake it to a URL."""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal, cast

import orjson
from pydantic import AfterValidator, ConfigDict, Field

from natterjack import Agent, ConfigError, Event, RunContext, Settings, hookimpl
from natterjack_webhook.errors import PostError, PostRefusedError
from natterjack_webhook.references import References, is_reference, read_reference, read_references
from natterjack_webhook.signatures import HeaderName, sign_standard, standard_key

if TYPE_CHECKING:
    from natterjack_webhook.receiver import Receiver

_AGAIN: Final = (408, 429)
"""What is answered to a request that is right, but comes at the wrong time; as 5xx."""


_CONFIDENTIAL: Final = re.compile("auth|cookie|key|token|secret|password", re.IGNORECASE)
"""Names of headers whose values are secrets."""


def _check_url(url: str) -> str:
    if is_reference(url):
        return url
    from natterjack_webhook.receiver import (
        read_url,  # lazy: all processes of a team load this plugin, few an HTTP client
    )

    if read_url(url).userinfo:
        msg = "it has a password in it; write where the URL is, as 'env:NAME' or 'file:PATH'"
        raise ValueError(msg)
    return url


def _check_headers(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if _CONFIDENTIAL.search(name) and not is_reference(value):
            msg = f"{name!r} looks like a secret; write where it is, as 'env:NAME' or 'file:PATH'"
            raise ValueError(msg)
    return headers


class WebhookAgent(Agent):
    """Posts each event that wakes it to a URL, signed by Standard Webhooks, until the receiver has it.

    Example in a team file::

        [agents.notify]
        kind = "webhook"
        on = ["report.done"]
        url = "https://example.com/hook"
        secret = "env:HOOK_SECRET"
        max_attempts = 12

    An answer 2xx is the end; 4xx but 408 and 429, and a redirect, make a dead letter at once; all else is tried again
    as any failed event is, and not before the time that a header `Retry-After` says.
    """

    name: ClassVar[str] = "webhook"

    class Config(Settings):
        """Settings, as a team file gives them.

        Attributes:
            url: Where to post; or `env:NAME`, `file:PATH`, for one that is itself a secret.
            secret: Where the secret of the signature is, `env:NAME` or `file:PATH`; several: a signature of each.
            headers: Headers beside; a value may be `env:NAME` or `file:PATH`, too, and must where it is a secret.
            body: `event`: id, type, time, source and data; `data`: the data alone.
            request_timeout: Seconds an attempt may take.
        """

        model_config = ConfigDict(hide_input_in_errors=True)

        url: Annotated[str, AfterValidator(_check_url)]
        secret: References = ()
        headers: Annotated[dict[Annotated[str, HeaderName], str], AfterValidator(_check_headers)] = Field(
            default_factory=dict
        )
        body: Literal["event", "data"] = "event"
        request_timeout: float = Field(10.0, gt=0, le=600)

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._receiver: Receiver | None = None
        self._secrets: list[str] = []
        self._headers: dict[str, str] = {}

    async def start(self) -> None:
        """Look up what is secret.

        Raises:
            ConfigError: It is not there, or is none.
        """
        from natterjack_webhook.receiver import Receiver  # lazy, see above

        config = self.config
        url = read_reference(config.url) if is_reference(config.url) else config.url
        self._secrets = read_references(config.secret)
        for secret in self._secrets:
            standard_key(secret)
        self._headers = {
            name: read_reference(value) if is_reference(value) else value for name, value in config.headers.items()
        }
        try:
            self._receiver = Receiver(url, config.request_timeout)
        except ValueError as error:
            msg = f"what stands at {config.url!r}: {error}"
            raise ConfigError(msg) from None

    async def stop(self) -> None:
        """Close connections."""
        if self._receiver is not None:
            await self._receiver.close()

    async def handle(self, event: Event, ctx: RunContext) -> dict[str, int]:
        """Post one event.

        Raises:
            PostError: The receiver is away, or cannot take it now.
            PostRefusedError: It will never take it.
        """
        content = self._content(event)
        headers = {"user-agent": "natterjack-webhook", **self._headers, "content-type": "application/json"}
        signed = sign_standard(self._secrets, ctx.run_id, int(time.time()), content)
        headers |= signed if self._secrets else {"webhook-id": ctx.run_id}
        receiver = cast("Receiver", self._receiver)
        status, answer = await receiver.post(content, headers)
        if 200 <= status < 300:
            return {"status": status}
        told = f"{receiver} answered {status}{'; write the URL to which it leads' if 300 <= status < 400 else ''}"
        if status < 500 and status not in _AGAIN:
            raise PostRefusedError(told)
        error = PostError(told)
        error.retry_after = retry_after(answer.get("retry-after", ""), time.time())
        raise error

    def _content(self, event: Event) -> bytes:
        if self.config.body == "data":
            return orjson.dumps(event.data)
        shown = {"id": event.id, "type": event.type, "time": event.time, "source": event.source, "data": event.data}
        return orjson.dumps(shown)


def retry_after(value: str, now: float) -> float:
    """Return the seconds that a header `Retry-After` means (RFC 9110, 10.2.3), 0 where it means none."""
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return 0.0


@hookimpl
def natterjack_agents() -> list[type[Agent]]:
    """Bring the kind of agent."""
    return [WebhookAgent]
