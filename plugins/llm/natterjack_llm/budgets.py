"""Budgets: what the runs of an agent, and of a team, may use together; and how fast a provider may be asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

from natterjack import Quota
from natterjack_llm.config import Budget, ModelConfig, Rate
from natterjack_llm.errors import LimitError
from natterjack_llm.turn import TurnContext


class Budgets:
    """Those of one agent, asked before each request and each call of a tool, and told what these took.

    Args:
        config: The agent's settings.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._agent, self._team, self._rate = config.agent_limits, config.team_limits, config.rate
        self._provider = config.model[0].partition(":")[0]

    @asynccontextmanager
    async def request(self, ctx: TurnContext) -> AsyncIterator[None]:
        """Count a request, once the provider takes it; the context is the request.

        Raises:
            LimitError: The agent or the team may make no more now.
        """
        for who, budget, quota in self._budgets(ctx):
            await _check_tokens(who, budget, quota)
            await _take(who, budget, quota, "requests", budget.requests)
        async with AsyncExitStack() as place:
            if self._rate is not None:
                if self._rate.concurrency is not None:
                    held = ctx.quota(team=True).hold(f"{self._provider} at once", self._rate.concurrency)
                    await place.enter_async_context(held)
                await self._wait(self._rate, ctx.quota(team=True))
            yield

    async def call(self, ctx: TurnContext) -> None:
        """Count a call of a tool.

        Raises:
            LimitError: The agent or the team may make no more now.
        """
        for who, budget, quota in self._budgets(ctx):
            await _take(who, budget, quota, "tool_calls", budget.tool_calls)

    async def spend(self, ctx: TurnContext, tokens: float) -> None:
        """Count what a request took."""
        for _, budget, quota in self._budgets(ctx):
            if budget.tokens is not None:
                await quota.spend("tokens", budget.tokens, per=budget.per, amount=tokens)
        rate = self._rate
        if rate is not None and rate.tokens is not None:
            quota = ctx.quota(team=True)
            await quota.spend(f"{self._provider} tokens", rate.tokens, per=rate.per, amount=tokens)

    def _budgets(self, ctx: TurnContext) -> Iterator[tuple[str, Budget, Quota]]:
        if self._agent is not None:
            yield "the agent", self._agent, ctx.quota()
        if self._team is not None:
            yield "the team", self._team, ctx.quota(team=True)

    async def _wait(self, rate: Rate, quota: Quota) -> None:
        while rate.tokens is not None:
            left = await quota.left(f"{self._provider} tokens", rate.tokens, per=rate.per)
            if left > 0:
                break
            await asyncio.sleep((1 - left) * rate.per / rate.tokens)
        while rate.requests is not None:
            wait = await quota.take(f"{self._provider} requests", rate.requests, per=rate.per)
            if not wait:
                break
            await asyncio.sleep(wait)


async def _take(who: str, budget: Budget, quota: Quota, what: str, limit: int | None) -> None:
    if limit is not None and (wait := await quota.take(what, limit, per=budget.per)):
        raise _met(who, limit, what, budget.per, wait)


async def _check_tokens(who: str, budget: Budget, quota: Quota) -> None:
    if budget.tokens is not None and (left := await quota.left("tokens", budget.tokens, per=budget.per)) <= 0:
        raise _met(who, budget.tokens, "tokens", budget.per, (1 - left) * budget.per / budget.tokens)


def _met(who: str, limit: int, what: str, per: float, wait: float) -> LimitError:
    words = what.replace("_", " ")
    return LimitError(f"{who} met a limit: {limit:,} {words} in {per:g} s; there is room again in {wait:,.1f} s")
