"""What a team file says of processes: those of agents, and those of tool servers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ConfigDict, Field, model_validator

from natterjack.settings import Settings
from natterjack.team.values import MemorySize, Names, Plain, ToolKind


class ProcessSpec(Settings):
    """What holds for the processes of an agent or a tool server; see `AgentSpec`."""

    replicas: int = Field(1, strict=True, ge=1, le=1000)
    drain_timeout: float = Field(10.0, strict=True, ge=0, le=86_400, allow_inf_nan=False)
    hang_timeout: float = Field(60.0, strict=True, ge=0, le=86_400, allow_inf_nan=False)
    memory: MemorySize | None = None
    memory_max: MemorySize | None = None
    options: dict[str, Plain] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, value: object) -> object:
        """Move unknown keys to the options."""
        if not isinstance(value, Mapping):
            return value
        own = cls._own_keys(value)
        given, more = value.get("options", {}), {key: item for key, item in value.items() if key not in own}
        known = {key: item for key, item in value.items() if key in own}
        return {**known, "options": {**given, **more} if isinstance(given, Mapping) else given}

    @classmethod
    def _own_keys(cls, table: Mapping[Any, Any]) -> set[str]:
        """Return the keys that are no options of its kind."""
        del table
        return set(cls.model_fields)

    @model_validator(mode="after")
    def _check_memory(self) -> ProcessSpec:
        if self.memory is not None and self.memory_max is not None and self.memory_max < self.memory:
            msg = f"`memory_max` ({self.memory_max:d} bytes) is less than `memory` ({self.memory:d}); make it more"
            raise ValueError(msg)
        return self

    @property
    def most_memory(self) -> int | None:
        """Bytes beyond which a process is killed; None: it is not."""
        return self.memory_max or (None if self.memory is None else self.memory * 3 // 2)


def open_schema(schema: dict[str, Any]) -> None:
    """Let a table's JSON Schema have the settings of its kind."""
    schema["properties"].pop("options")
    schema["additionalProperties"] = True


class ToolSpec(ProcessSpec):
    """One tool server, as it is written, provisioned and stored.

    Attributes:
        kind: What a plugin brings.
        roles: By tool, the agents that may call it, or roles of agents; others may not, and a tool that is not named
            here nobody may. None: only the server itself decides.
        replicas: Processes that share its work.
        drain_timeout: Seconds that calls under way have when its process is told to end.
        hang_timeout: Seconds for which the event loop of a supervised process may stand still; 0: for ever.
        memory: Bytes, or text such as "500MB": a supervised process that has more in memory drains and starts again.
        memory_max: The same, for one that is killed; by default half as much again as `memory`.
        options: All other keys of its table: the settings of its kind.
    """

    model_config = ConfigDict(json_schema_extra=open_schema)

    kind: ToolKind = "mcp"
    roles: dict[str, Names] | None = None

    def admits(self, tool: str, caller: str, roles: Iterable[str]) -> bool:
        """Tell whether a caller of this name and these roles may call a tool."""
        return self.roles is None or not {caller, *roles}.isdisjoint(self.roles.get(tool, ()))
