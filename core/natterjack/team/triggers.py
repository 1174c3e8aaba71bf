"""What a team file says of one trigger, in its long form and in its short ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ConfigDict, Field, model_validator

from natterjack.settings import Settings
from natterjack.subjects import check_pattern
from natterjack.team.values import Plain, TriggerName

_PATTERN_FIELD: Final = {"event": "event_type", "message": "topic"}
WHERE: Final = "where"
"""The one key that may stand beside a trigger's own in its short form."""
_TRIGGER_FORMS: Final = (
    'a trigger is an event pattern such as "research.start", or a table of one key and perhaps `where`:'
    ' { message = "reports.*" }, { event = "order.*", where = "data.total > 100" } or { tick = { every = 2 } }'
)


def _trigger_schema(schema: dict[str, Any]) -> None:
    for key in ("properties", "required"):
        del schema[key]
    schema.update(type=["string", "object"], minProperties=1, maxProperties=2, additionalProperties=True)


class TriggerSpec(Settings):
    """One trigger of an agent.

    A team file writes `"research.start"` for an event, `{ message = "reports.*" }` or `{ cron = "0 7 * * *" }` for
    a trigger with one setting, and `{ tick = { every = 2 } }` for one with several. `where`, a condition on the event,
    may stand beside the first: `{ event = "order.*", where = "data.total > 100" }`.

    Attributes:
        kind: `event`, `message`, or what a plugin brings.
        settings: Settings of the kind; under the key `""`, a value for the first field of its `Config` that must be
            given.
    """

    model_config = ConfigDict(json_schema_extra=_trigger_schema)

    kind: TriggerName
    settings: dict[str, Plain] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _read_short_form(cls, value: object) -> object:
        if isinstance(value, str):
            return _expand("event", value)
        if isinstance(value, TriggerSpec) or (isinstance(value, Mapping) and "kind" in value):
            return value
        if isinstance(value, Mapping):
            rest = {key: item for key, item in value.items() if key != WHERE}
            if len(rest) == 1:
                return _expand(*next(iter(rest.items())), {WHERE: value[WHERE]} if WHERE in value else {})
        raise ValueError(_TRIGGER_FORMS)

    @property
    def is_pattern(self) -> bool:
        """Whether it is one of events or messages, by what all may know of them."""
        return self.kind in _PATTERN_FIELD

    @model_validator(mode="after")
    def _check_pattern(self) -> TriggerSpec:
        key = _PATTERN_FIELD.get(self.kind)
        if key in self.settings:
            pattern = self.settings[key]
            if not isinstance(pattern, str):
                msg = f'{pattern!r} is no pattern; write text such as "research.*"'
                raise ValueError(msg)
            check_pattern(pattern)
        return self

    @property
    def event(self) -> str | None:
        """The pattern of events it waits for, if it is an event trigger."""
        return self.settings.get("event_type") if self.kind == "event" else None

    @property
    def topic(self) -> str | None:
        """The pattern of topics it reads, if it is a message trigger."""
        return self.settings.get("topic") if self.kind == "message" else None


def _expand(kind: str, value: object, more: Mapping[str, object] | None = None) -> dict[str, object]:
    settings = value if isinstance(value, Mapping) else {_PATTERN_FIELD.get(kind, ""): value}
    return {"kind": kind, "settings": {**settings, **(more or {})}}
