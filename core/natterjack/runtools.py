"""The tools of an agent, as its run calls them: through middleware, and where it must be, after a human allowed it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from natterjack.approvals import approved
from natterjack.coroutines import through
from natterjack.errors import ApprovalRequiredError
from natterjack.tools import CALL_TIMEOUT, Tools
from natterjack.toolserver import ToolInfo

if TYPE_CHECKING:
    from natterjack.runs import RunContext


class RunTools:
    """The tools of an agent, as its run calls them.

    Args:
        run: The run.
        tools: The agent's.
    """

    def __init__(self, run: RunContext, tools: Tools) -> None:
        self._run, self._tools = run, tools

    async def call(self, tool: str, /, *, timeout: float = CALL_TIMEOUT, **arguments: Any) -> Any:
        """Call a tool and return its result; cancelled with the run.

        Example::

            pages = await ctx.tools.call("team-tools.web_search", query="toads")

        Args:
            tool: `server.tool`.
            timeout: Seconds; the run's own deadline bounds them. A tool with an argument of this name is called by
                `call_with`.
            arguments: The tool's.

        Raises:
            ConfigError: The agent has no such server.
            RefusedError: A guard of the team refuses. What the server raises, its plugin says.
            ApprovalDeniedError: A human must allow this call, was asked as by `ask_human`, and said no.
            LoopError: Too many events and asks led to one another.
        """
        return await self.call_with(tool, arguments, timeout=timeout)

    async def call_with(
        self,
        tool: str,
        arguments: Mapping[str, Any],
        *,
        timeout: float = CALL_TIMEOUT,
        approval: str | None = None,
    ) -> Any:
        """Call a tool with arguments as a mapping; see `call`.

        Args:
            tool: `server.tool`.
            arguments: The tool's.
            timeout: Seconds.
            approval: What `approve` returned; empty: a human is not asked, but `ApprovalRequiredError` is raised. So a
                call that is a step of its own need not wait inside it.
        """
        around = [middleware.call_tool for middleware in self._run._facilities.middleware]
        call = partial(self._call, timeout) if approval is None else partial(self._call_once, timeout, approval)
        return await through(around, call, self._run)(tool, arguments)

    async def approve(self, question: str) -> str:
        """Have a human allow what an `ApprovalRequiredError` asks; no process is needed meanwhile, as for `ask_human`.

        Raises:
            ApprovalDeniedError: The human said no.
            ConfigError: The agent's `waits` lack `approval.answered`, or this is called inside a step.
        """
        return await approved(self._run, question)

    async def _call(self, timeout: float, tool: str, arguments: Mapping[str, Any]) -> Any:
        try:
            return await self._call_once(timeout, "", tool, arguments)
        except ApprovalRequiredError as error:
            approval = await self.approve(error.question)
        return await self._call_once(timeout, approval, tool, arguments)

    async def _call_once(self, timeout: float, approval: str, tool: str, arguments: Mapping[str, Any]) -> Any:
        began, left = time.perf_counter(), min(timeout, self._run.deadline - time.time())
        envelope = self._run._next(tool)._replace(approval=approval)
        result = await self._tools.call(tool, arguments, timeout=left, envelope=envelope)
        self._run._note({"verb": "call", "what": tool, "seconds": round(time.perf_counter() - began, 6)})
        return result

    async def list(self) -> Sequence[ToolInfo]:
        """Return the tools that this agent may call, of all its servers."""
        return await self._tools.list()
