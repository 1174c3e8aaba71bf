"""What a tool is given beside its arguments: `ctx`."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from natterjack import ConfigError
from natterjack_mcp.caller import Caller

Report = Callable[[float, float | None, str | None], Coroutine[Any, Any, None]]


@dataclass(slots=True)
class Notes:
    """What a tool writes down about one call; the audit keeps it with the call.

    Attributes:
        entries: Pairs of kind and data.
    """

    entries: list[tuple[str, Any]] = field(default_factory=list)

    def append(self, kind: str, data: Any = None) -> None:
        """Write something down; the data is JSON."""
        self.entries.append((kind, data))


@dataclass(slots=True)
class ToolContext:
    """One request, as a tool, a resource, a prompt or a guard sees it.

    Attributes:
        server: The server's name.
        method: `tools/call`, `resources/read`, `tools/list`, ….
        target: The tool, resource or prompt; empty in lists.
        caller: Who calls.
        request_id: Unique among all requests.
        journal: Takes what the audit shall keep with the call.
        log: A logger.
        cancelled: Whether nobody waits for the result any more; a tool in a thread is not stopped, and should look.
    """

    server: str
    method: str
    target: str
    caller: Caller
    report: Report = field(repr=False)
    request_id: str = field(default_factory=lambda: secrets.token_hex(8))
    journal: Notes = field(default_factory=Notes)
    cancelled: bool = False
    _thread: int = field(default_factory=threading.get_ident, repr=False)

    @property
    def roles(self) -> frozenset[str]:
        """The caller's roles."""
        return self.caller.roles

    @property
    def claims(self) -> Mapping[str, Any]:
        """What the caller's token says."""
        return self.caller.claims

    @property
    def log(self) -> logging.Logger:
        """The logger of this tool."""
        return logging.getLogger(f"natterjack.tools.{self.server}.{self.target}")

    def progress(self, done: float, total: float | None = None, message: str | None = None) -> Awaitable[None]:
        """Tell the caller how far it is, if it wants to know: `await ctx.progress(1, 3)`; without `await` in a `def`.

        Args:
            done: How much.
            total: Of how much.
            message: A word about it.
        """
        if threading.get_ident() == self._thread:
            return self.report(done, total, message)
        if not self.cancelled:
            from anyio import from_thread  # lazy: as all that the SDK brings, see server.py

            from_thread.run(self.report, done, total, message)
        return _Sent()


class _Sent:
    """What `progress` returns in a thread: done already, and unlike a coroutine it may be left alone."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


_current: ContextVar[ToolContext] = ContextVar("tool_context")


def current() -> ToolContext:
    """Return the context of the request that is worked on.

    Raises:
        ConfigError: None is.
    """
    found = _current.get(None)
    if found is None:
        msg = "this works only while a request of the server is worked on; in a test, use `await server.call(…)`"
        raise ConfigError(msg)
    return found


@contextmanager
def working(ctx: ToolContext) -> Iterator[None]:
    """Within the context, `ctx` is the current one."""
    token = _current.set(ctx)
    try:
        yield
    finally:
        ctx.cancelled = True  # of no use to a thread that goes on
        _current.reset(token)
