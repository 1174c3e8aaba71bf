"""Settings of a model agent, as they stand in a team file or in `agent_config`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from natterjack import Settings


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Limits(Settings):
    """What one run may use; a run that meets a limit ends as a dead letter that says so.

    Attributes:
        requests: Requests to the model.
        tokens: Tokens, in and out.
        tool_calls: Calls of tools.
        seconds: Seconds of wall time, of each attempt.
    """

    requests: int = Field(50, ge=1)
    tokens: int | None = Field(None, ge=1)
    tool_calls: int | None = Field(None, ge=0)
    seconds: float | None = Field(None, gt=0)


class Budget(Settings):
    """What several runs may use together; a run that meets it ends as a dead letter that says so.

    Attributes:
        requests: Requests to models.
        tokens: Tokens, in and out; what is used is known after a request only, so that the last one may go beyond.
        tool_calls: Calls of tools.
        per: In how many seconds, at most a day: what was used comes back bit by bit.
    """

    requests: int | None = Field(None, ge=1)
    tokens: int | None = Field(None, ge=1)
    tool_calls: int | None = Field(None, ge=1)
    per: float = Field(86_400, gt=0, le=86_400)


class Rate(Settings):
    """What a provider takes; a request waits until there is room.

    Attributes:
        requests: Requests.
        tokens: Tokens, in and out.
        per: In how many seconds.
        concurrency: Requests at once.
    """

    requests: int | None = Field(None, ge=1)
    tokens: int | None = Field(None, ge=1)
    per: float = Field(60, gt=0, le=86_400)
    concurrency: int | None = Field(None, ge=1)


class Kept(Settings):
    """What is kept of one conversation; what is beyond goes turn by turn, the oldest first.

    Attributes:
        messages: Messages: a question, an answer, calls of tools that were made together, or what came of these.
        bytes: Bytes, as JSON. A turn that is larger by itself is kept without its calls of tools.
        days: After which a turn is forgotten.
    """

    messages: int = Field(100, ge=2)
    bytes: int = Field(200_000, ge=1_000, le=800_000)
    days: float = Field(30, gt=0, le=30)


class ModelConfig(Settings):
    """Settings of a model agent.

    Attributes:
        model: Provider and name, e.g. `openai:gpt-5-mini`; several: the next one is used where one fails. Or `local`,
            a small one in this process, `local:FILE`, or `scripted:module:function`, for tests.
        instructions: What the agent is for; the only text that the model takes as instructions.
        output: What `handle` returns, if not text: a JSON schema of an object, or `module:Class` of a pydantic model.
        base_url: Where a compatible server is.
        settings: Settings of requests, e.g. `{ temperature = 0 }`.
        calls: Whether the model may call anything; if not, it answers from its prompt alone.
        limits: What one run may use.
        agent_limits: What all runs of this agent may use together, on whatever machine.
        team_limits: What all agents of the team may use together that have the same `team_limits`.
        rate: What the provider takes, of all agents of the team that have the same `rate` and provider.
        conversation_by: Dotted path of a field of an event's data, e.g. `ticket_id`: events with one value of it are
            one conversation. Those that lack it belong to none.
        history: What is kept of one conversation.
        approve: Tools that wait for a human's yes, by the names that the model sees.
    """

    model: Annotated[list[str], BeforeValidator(_listed), Field(min_length=1)]
    instructions: str = ""
    output: str | dict[str, Any] | None = None
    base_url: str | None = Field(None, pattern=r"^https?://[^\s/]")
    settings: dict[str, Any] = Field(default_factory=dict)
    calls: bool = True
    limits: Limits = Field(default_factory=Limits)
    agent_limits: Budget | None = None
    team_limits: Budget | None = None
    rate: Rate | None = None
    conversation_by: str | None = Field(None, pattern=r"^[^.]+(\.[^.]+)*$")
    history: Kept = Field(default_factory=Kept)
    approve: tuple[str, ...] = ()
