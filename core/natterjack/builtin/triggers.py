"""The built-in triggers: the inbox, events, messages."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator

from natterjack import subjects
from natterjack.components import ConsumerSpec, Settings, StreamTrigger, read_settings
from natterjack.expressions import EVENT_VARIABLES, Condition, about, check_filter
from natterjack.rights import Right

Pattern = Annotated[str, AfterValidator(subjects.check_pattern)]
Where = Annotated[str, AfterValidator(check_filter)]


class InboxTrigger(StreamTrigger):
    """Fires for what is addressed to this agent alone: `inject_event`, other triggers, retried dead letters.

    Every agent has it; it is not written anywhere.
    """

    name: ClassVar[str] = "inbox"

    def consumers(self, agent: str) -> list[ConsumerSpec]:
        """One durable on INBOX."""
        return [ConsumerSpec(subjects.INBOX, subjects.durable(agent, self.label), subjects.stored_inbox(agent))]

    def needs(self, agent: str) -> list[Right]:
        """Its consumer, and to put something into it: that is how triggers fire."""
        return [*super().needs(agent), Right("inject", f"{agent}.>")]


class FilteredTrigger(StreamTrigger):
    """Base of triggers that handle only the events for which a condition holds.

    What it does not hold for is acked without a run; so is an event that lacks a field of it (said once in the log).
    One for which it cannot be decided, e.g. text where it wants a number, becomes a dead letter.
    """

    class Config(Settings):
        """Settings of all of them: `where`, the condition."""

        where: Where | None = None

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.where is not None:
            condition = Condition(config.where, EVENT_VARIABLES)
            self.accepts = lambda event: condition.holds(**about(event))


def _given(**settings: str | None) -> dict[str, str]:
    return {name: value for name, value in settings.items() if value is not None}


class EventTrigger(FilteredTrigger):
    """Fires for each event of a type, or of a pattern of types.

    Example::

        EventTrigger("research.*")
        EventTrigger("order.*", where='data.total > 100 && source == "shop"')

    In a team file: `on = ["research.*"]`, `on = [{ event = "order.*", where = "data.total > 100" }]`.
    """

    name: ClassVar[str] = "event"

    class Config(FilteredTrigger.Config):
        """Settings of an event trigger."""

        event_type: Pattern

    config: Config

    def __init__(self, event_type: str | Config, *, where: str | None = None) -> None:
        if isinstance(event_type, str):
            subjects.check_pattern(event_type)
            event_type = read_settings(self.Config, _given(event_type=event_type, where=where), "EventTrigger")
        super().__init__(event_type)

    @property
    def label(self) -> str:
        """`event-<pattern>`."""
        return subjects.label(self.name, self.config.event_type)

    def consumers(self, agent: str) -> list[ConsumerSpec]:
        """One durable on EVENTS."""
        stored = subjects.stored_events(self.config.event_type)
        return [ConsumerSpec(subjects.EVENTS, subjects.durable(agent, self.label), stored)]


class MessageTrigger(FilteredTrigger):
    """Fires for each message to a topic, or to a pattern of topics.

    Example::

        MessageTrigger(topic="reports.*")

    In a team file: `on = [{ message = "reports.*" }]`.
    """

    name: ClassVar[str] = "message"

    class Config(FilteredTrigger.Config):
        """Settings of a message trigger."""

        topic: Pattern

    config: Config

    def __init__(self, topic: str | Config, *, where: str | None = None) -> None:
        if isinstance(topic, str):
            subjects.check_pattern(topic)
            topic = read_settings(self.Config, _given(topic=topic, where=where), "MessageTrigger")
        super().__init__(topic)

    @property
    def label(self) -> str:
        """`message-<pattern>`."""
        return subjects.label(self.name, self.config.topic)

    def consumers(self, agent: str) -> list[ConsumerSpec]:
        """One durable on MESSAGES."""
        stored = subjects.stored_messages(self.config.topic)
        return [ConsumerSpec(subjects.MESSAGES, subjects.durable(agent, self.label), stored)]
