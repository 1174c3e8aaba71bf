"""The built-in triggers: events and messages."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator

from natterjack import subjects
from natterjack.components import ConsumerSpec, Settings, StreamTrigger

Pattern = Annotated[str, AfterValidator(subjects.check_pattern)]


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
