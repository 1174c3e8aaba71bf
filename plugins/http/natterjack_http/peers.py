"""The address schemes `http` and `https`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, ClassVar

from natterjack import Answer, PeerScheme, Query, hookimpl

if TYPE_CHECKING:
    from natterjack_http.asker import Asker


class HttpPeers(PeerScheme):
    """Asks agents that are served over HTTP; connections are kept.

    Example in a team file::

        cross_agents = { researcher = "http://localhost:9001" }

    The token in the environment variable NATTERJACK_TOKEN is shown, or the one that the address names:
    `http://localhost:9001?token=file:/run/secrets/researcher`.
    """

    name: ClassVar[str] = "http"

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._made: Asker | None = None

    @property
    def _asker(self) -> Asker:
        if self._made is None:
            from natterjack_http.asker import Asker  # lazy: all agents have this scheme, and few an HTTP client

            self._made = Asker()
        return self._made

    async def ask(self, address: str, question: str, timeout: float) -> Answer:
        """Ask the agent at an address."""
        return await self._asker.ask(address, question, timeout)

    async def stream(
        self, address: str, question: str, timeout: float, on_query: Callable[[Query], Awaitable[str]] | None
    ) -> AsyncGenerator[str, None]:
        """Ask, and yield the chunks of the answer as they come; over HTTP, agents ask nothing back."""
        del on_query
        async with aclosing(self._asker.stream(address, question, timeout)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def close(self) -> None:
        """Close all connections."""
        made, self._made = self._made, None
        if made is not None:
            await made.close()


class HttpsPeers(HttpPeers):
    """Asks agents that are served over HTTPS, behind whatever ends TLS there.

    Example in a team file::

        cross_agents = { researcher = "https://agents.example.com/researcher" }
    """

    name: ClassVar[str] = "https"


@hookimpl
def natterjack_peers() -> list[type[PeerScheme]]:
    """Bring the schemes."""
    return [HttpPeers, HttpsPeers]
