"""The built-in triggers: the inbox, events, messages, changes of the shared context, and plain subjects."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, ClassVar

from pydantic import AfterValidator

from natterjack import subjects
from natterjack.codec import decode
from natterjack.components import StreamTrigger, Trigger, TriggerContext
from natterjack.expressions import EVENT_VARIABLES, Condition, about, check_filter
from natterjack.listener import check_plain, type_of
from natterjack.messages import Event, PlainMessage
from natterjack.rights import Right
from natterjack.settings import Settings, read_settings
from natterjack.specs import ConsumerSpec

Pattern = Annotated[str, AfterValidator(subjects.check_pattern)]
Keys = Annotated[str, AfterValidator(subjects.check_keys)]
Plain = Annotated[str, AfterValidator(check_plain)]
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


class FilteredTrigger(Trigger):
    """Base of triggers that handle only the events for which a condition holds.

    What it does not hold for is acked without a run; so is an event that lacks a field of it (said once in the log).
    One for which it cannot be decided, e.g. text where it wants a number, becomes a dead letter.
    """

    class Config(Settings):
        """Settings of all of them: `where`, the condition."""

        where: Where | None = None

    config: Config
    _follows: ClassVar[str]
    """The setting that says what it follows."""
    _check: ClassVar[staticmethod[[object], str]] = staticmethod(subjects.check_pattern)
    """Returns what may be followed as it is, or raises."""

    def __init__(self, config: str | Config, **settings: object) -> None:
        if isinstance(config, str):
            given = {name: value for name, value in settings.items() if value is not None}
            config = read_settings(self.Config, {self._follows: self._check(config), **given}, type(self).__name__)
        super().__init__(config)
        self._condition = Condition(config.where, EVENT_VARIABLES) if config.where is not None else None

    @property
    def _followed(self) -> str:
        """The pattern of what it follows."""
        return str(getattr(self.config, self._follows))

    @property
    def label(self) -> str:
        """`<name>-<pattern>`."""
        return subjects.label(self.name, self._followed)

    def accepts(self, event: Event, agent: str) -> bool:
        """Tell whether the condition holds."""
        del agent
        return self._condition is None or self._condition.holds(**about(event))


class EventTrigger(FilteredTrigger, StreamTrigger):
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

    _follows: ClassVar[str] = "event_type"

    def __init__(self, event_type: str | Config, *, where: str | None = None) -> None:
        super().__init__(event_type, where=where)

    def consumers(self, agent: str) -> list[ConsumerSpec]:
        """One durable on EVENTS."""
        stored = subjects.stored_events(self._followed)
        return [ConsumerSpec(subjects.EVENTS, subjects.durable(agent, self.label), stored)]


class MessageTrigger(FilteredTrigger, StreamTrigger):
    """Fires for each message to a topic, or to a pattern of topics.

    Example::

        MessageTrigger(topic="reports.*")

    In a team file: `on = [{ message = "reports.*" }]`.
    """

    name: ClassVar[str] = "message"

    class Config(FilteredTrigger.Config):
        """Settings of a message trigger."""

        topic: Pattern

    _follows: ClassVar[str] = "topic"

    def __init__(self, topic: str | Config, *, where: str | None = None) -> None:
        super().__init__(topic, where=where)

    def consumers(self, agent: str) -> list[ConsumerSpec]:
        """One durable on MESSAGES."""
        stored = subjects.stored_messages(self._followed)
        return [ConsumerSpec(subjects.MESSAGES, subjects.durable(agent, self.label), stored)]


class ContextTrigger(FilteredTrigger, StreamTrigger):
    """Fires for each change of a key of the shared context, or of a pattern of keys, by whomever.

    The event's type is the key, its source is who wrote, and its data is `{"key": …, "value": …, "revision": …,
    "writer": …, "deleted": …}`. The agent's own changes do not wake it, unless `own`; who it was, is the writer's own
    claim. A team's first provisioning brings the newest value of each key, the initial state among them; a trigger that
    is added later begins with what comes. Of one key that changes often, an agent that is away finds the newest 16
    values. `ordered_by = "key"` handles the changes of each key in their order.

    Whoever has this trigger learns the values, whatever its `reads` say.

    Example::

        ContextTrigger("findings.*")
        ContextTrigger("finance/budget", where="data.value > 1000.0")  # a key of the bucket `finance`

    In a team file: `on = [{ context = "findings.*" }]`, or `{ context = { keys = "findings.*", own = true } }`.
    """

    name: ClassVar[str] = "context"

    class Config(FilteredTrigger.Config):
        """Settings of a context trigger: keys, and whether its own changes wake the agent, too."""

        keys: Keys
        own: bool = False

    config: Config
    _follows: ClassVar[str] = "keys"
    _check = staticmethod(subjects.check_keys)

    def __init__(self, keys: str | Config, *, where: str | None = None, own: bool = False) -> None:
        super().__init__(keys, where=where, own=own)

    def consumers(self, agent: str) -> list[ConsumerSpec]:
        """One durable on the stream behind the bucket."""
        name, keys = subjects.split_keys(self._followed)
        bucket = subjects.context_bucket(name)
        stream, changes = subjects.bucket_stream(bucket), subjects.key(bucket, keys)
        return [ConsumerSpec(stream, subjects.durable(agent, self.label), changes, first="last_per_subject")]

    def accepts(self, event: Event, agent: str) -> bool:
        """Tell whether somebody else wrote, and the condition holds."""
        return (self.config.own or event.source != agent) and super().accepts(event, agent)


class SubjectTrigger(FilteredTrigger):
    """Fires for each message that any program publishes on a plain subject: sensors, other services, `nats pub`.

    Each goes to the agent's inbox at once, as it is, and is then as safe as any event; of the agent's replicas one
    takes it. The event's type is the subject, or `subject` where that is none (then it is in the header
    `Natterjack-Subject`); its data is the JSON value or the text. What is neither, or is too large, becomes a dead
    letter. While the inbox is full, messages wait.

    A plain message is stored nowhere until then: what is published while no replica listens is lost. Where that matters
    publish an event.

    Example::

        SubjectTrigger("sensors.*.temperature", where="data > 30.0")

    In a team file: `on = [{ subject = "sensors.*.temperature" }]`.
    """

    name: ClassVar[str] = "subject"

    class Config(FilteredTrigger.Config):
        """Settings of a subject trigger."""

        subject: Plain

    _follows: ClassVar[str] = "subject"
    _check = staticmethod(check_plain)

    def __init__(self, subject: str | Config, *, where: str | None = None) -> None:
        super().__init__(subject, where=where)

    def needs(self, agent: str) -> list[Right]:
        """To listen."""
        return [*super().needs(agent), Right("listen", self._followed)]

    async def run(self, ctx: TriggerContext) -> None:
        """Put what comes into the inbox."""

        async def take(message: PlainMessage) -> None:
            if self._condition is None or self.accepts(self._event(message), ctx.agent):
                await ctx.fire(message)

        await ctx.listen(self._followed, take)

    def _event(self, message: PlainMessage) -> Event:
        kind, data = type_of(message, self.name), decode(message.data)
        return Event("", kind, data, "", datetime.now(UTC), headers=message.headers)
