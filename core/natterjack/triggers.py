"""The built-in triggers: events, messages, and every agent's own inbox."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator

from natterjack import subjects
from natterjack.components import ConsumerSpec, Settings, Trigger, TriggerContext
from natterjack.rights import Right

Pattern = Annotated[str, AfterValidator(subjects.check_pattern)]


class StreamTrigger(Trigger):
    """Base of triggers that handle what a durable consumer delivers."""

    async def run(self, ctx: TriggerContext) -> None:
        """Handle until cancelled."""
        (spec,) = self.consumers(ctx.agent)
        await ctx.consume(spec)


class EventTrigger(StreamTrigger):
    """Fires for each event of a type, or of a pattern of types.

    Example::

        EventTrigger("research.*")

    In a team file: `on = ["research.*"]`.
    """

    name: ClassVar[str] = "event"

    class Config(Settings):
        """Settings of an event trigger."""

        event_type: Pattern

    config: Config

    def __init__(self, event_type: str | Config) -> None:
        given = event_type if isinstance(event_type, self.Config) else None
        super().__init__(given or self.Config(event_type=subjects.check_pattern(event_type)))

    @property
    def label(self) -> str:
        """`event-<pattern>`."""
        return subjects.label(self.name, self.config.event_type)

    def consumers(self, agent: str) -> list[ConsumerSpec]:
        """One durable on EVENTS."""
        stored = subjects.stored_events(self.config.event_type)
        return [ConsumerSpec(subjects.EVENTS, subjects.durable(agent, self.label), stored)]


class MessageTrigger(StreamTrigger):
    """Fires for each message to a topic, or to a pattern of topics.

    Example::

        MessageTrigger(topic="reports.*")

    In a team file: `on = [{ message = "reports.*" }]`.
    """

    name: ClassVar[str] = "message"

    class Config(Settings):
        """Settings of a message trigger."""

        topic: Pattern

    config: Config

    def __init__(self, topic: str | Config) -> None:
        given = topic if isinstance(topic, self.Config) else None
        super().__init__(given or self.Config(topic=subjects.check_pattern(topic)))

    @property
    def label(self) -> str:
        """`message-<pattern>`."""
        return subjects.label(self.name, self.config.topic)

    def consumers(self, agent: str) -> list[ConsumerSpec]:
        """One durable on MESSAGES."""
        stored = subjects.stored_messages(self.config.topic)
        return [ConsumerSpec(subjects.MESSAGES, subjects.durable(agent, self.label), stored)]


class InboxTrigger(StreamTrigger):
    """Fires for what is addressed to this agent alone: `inject_event`, other triggers, retried dead letters.

    Every agent has it; it is not written anywhere.
    """

    name: ClassVar[str] = "inbox"

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)

    def consumers(self, agent: str) -> list[ConsumerSpec]:
        """One durable on INBOX."""
        return [ConsumerSpec(subjects.INBOX, subjects.durable(agent, self.label), subjects.stored_inbox(agent))]

    def needs(self, agent: str) -> list[Right]:
        """Its consumer, and to put something into it: that is how triggers fire."""
        return [*super().needs(agent), Right("inject", f"{agent}.>")]
