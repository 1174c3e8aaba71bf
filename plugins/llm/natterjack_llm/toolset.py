"""The tools of one turn, as the library around the model calls them: each call is a step of the run."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Any, Final

from pydantic_ai import ModelRetry, RunContext, ToolDefinition
from pydantic_ai.toolsets import AbstractToolset, ToolsetTool
from pydantic_core import SchemaValidator, core_schema

from natterjack import (
    ApprovalDeniedError,
    ApprovalRequiredError,
    BrokerError,
    ConfigError,
    FencedError,
    NatterjackError,
)
from natterjack_llm.budgets import Budgets
from natterjack_llm.offers import Offer
from natterjack_llm.schemas import misfit
from natterjack_llm.turn import Turn

RETRIES: Final = 3
"""How often a model may correct the arguments of a call."""
_ASKS: Final = "natterjack.approval"
"""What a step returns whose call a human must allow; no tool can return that."""
_OBJECT: Final = SchemaValidator(core_schema.dict_schema(core_schema.str_schema(), core_schema.any_schema()))


class TurnToolset(AbstractToolset[None]):
    """What a model may call in one turn.

    Args:
        turn: The turn.
        offers: What it may call.
        budgets: What it may use.
        approve: Names of those that wait for a human's yes.

    Raises:
        ConfigError: One that must wait is not among them, as its name is another than somebody thought.
    """

    def __init__(self, turn: Turn, offers: Iterable[Offer], budgets: Budgets, approve: Collection[str] = ()) -> None:
        self._turn, self._budgets, self._approve = turn, budgets, approve
        self._offers = {offer.name: offer for offer in offers}
        for name in approve:
            if name not in self._offers:
                offered = ", ".join(self._offers) or "nothing"
                msg = f"'approve' has {name!r}, which the model is not offered; it is offered {offered}"
                raise ConfigError(msg)

    @property
    def id(self) -> str:
        """As the library wants it."""
        return "natterjack"

    async def get_tools(self, ctx: RunContext[None]) -> dict[str, ToolsetTool[None]]:
        """Return the tools."""
        del ctx
        return {
            offer.name: ToolsetTool(
                toolset=self,
                tool_def=ToolDefinition(
                    name=offer.name, description=offer.description, parameters_json_schema=dict(offer.schema)
                ),
                max_retries=RETRIES,
                args_validator=_OBJECT,
            )
            for offer in self._offers.values()
        }

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[None], tool: ToolsetTool[None]
    ) -> Any:
        """Call one; what it fails with is told to the model."""
        del ctx, tool
        offer = self._offers[name]
        if told := misfit(tool_args, offer.schema):
            raise ModelRetry(told)
        try:
            if name in self._approve:
                answer = await self._turn.ask_human(self._question(name, tool_args), ("yes", "no"))
                if answer == "no":
                    return {"error": "a human said no"}
            if not offer.is_step:
                return await offer.call(tool_args)
        except ApprovalDeniedError as denied:
            return {"error": str(denied)}
        result = await self._turn.step(f"tool {name}", lambda: self._do(offer, tool_args))
        if not isinstance(result, dict) or result.keys() != {_ASKS}:
            return result
        try:
            approval = await self._turn.approve(result[_ASKS])
        except ApprovalDeniedError as denied:
            return {"error": str(denied)}
        return await self._turn.step(f"tool {name}", lambda: _told(offer, tool_args, approval=approval))

    async def _do(self, offer: Offer, given: dict[str, Any]) -> Any:
        await self._budgets.call(self._turn.ctx)
        return await _told(offer, given)

    def _question(self, name: str, given: dict[str, Any]) -> str:
        arguments = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items())
        return f"May {self._turn.ctx.agent} call {name}({arguments})?"


async def _told(offer: Offer, given: dict[str, Any], **shown: str) -> Any:
    """Return what a call came to, as the model is told; what another attempt could mend is raised."""
    try:
        result = await offer.call(given, **shown)
    except FencedError:
        raise
    except ApprovalRequiredError as error:
        return {"error": str(error)} if shown else {_ASKS: error.question}
    except NatterjackError as error:
        if isinstance(error, BrokerError) and error.retry:
            raise
        return {"error": str(error)}
    return {"result": result} if isinstance(result, dict) and _ASKS in result else result
