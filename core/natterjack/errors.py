"""Every error that Natterjack raises, in one tree.

::

    NatterjackError
    ├── UsageError                      your call or your team file is wrong
    │   ├── InvalidNameError (ValueError)
    │   ├── PatternError (ValueError)
    │   ├── PayloadError (ValueError)
    │   ├── ConfigError (ValueError)
    │   │   └── UnknownAgentError       the team has no agent of that name
    │   ├── LoopError                   causation too deep, or one run emitted too much
    │   └── NondeterminismError         a durable run is repeated by code that does something else
    ├── PluginError                     a plugin is missing, broken or ambiguous
    ├── RefusedError (PermissionError)  a guard or the broker said no
    ├── TokenError (PermissionError)    a token is not valid
    ├── ConflictError                   somebody else wrote first
    ├── FencedError                     another replica took the run over
    ├── PeerError                       an agent that was asked did not answer well
    │   ├── PeerTimeoutError (TimeoutError)
    │   │   └── PeerUnavailableError    nobody serves that name
    │   ├── PeerBusyError
    │   └── PeerRefusedError (PermissionError)
    ├── QueryError                      the asker did not answer a question of the agent
    │   └── QueryTimeoutError (TimeoutError)
    ├── WaitTimeoutError (TimeoutError)   what a run waited for did not happen in time
    ├── ApprovalDeniedError (PermissionError)   a human said no
    ├── ApprovalRequiredError (PermissionError)   a human has not been asked yet
    ├── RunFailedError                  a run ended in a dead letter, or was cancelled
    ├── StartError                      a runtime or an agent could not start
    └── BrokerError                     the wire and the server
        ├── ConnectError (ConnectionError)
        │   └── CredentialsError
        ├── DisconnectedError (ConnectionError)
        ├── NoRespondersError
        ├── RequestTimeoutError (TimeoutError)
        ├── StreamError                 JetStream refused; carries its code
        ├── ShareError (PermissionError)    more was stored than one may, for now
        ├── NotProvisionedError         a stream, bucket or consumer is missing
        ├── BrokerNotFoundError
        └── BrokerStartError
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the closest known name, or an empty string."""
    found = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {found[0]!r}?" if found else ""


def described(error: BaseException) -> str:
    """Return an error's text; before a stranger's stands its class, which says more."""
    return str(error) if isinstance(error, NatterjackError) else f"{type(error).__name__}: {error}"


class NatterjackError(Exception):
    """Base of all. Its text may be shown to a user as it is."""

    retry: ClassVar[bool] = True
    """Whether handling the same event again could help; if not, it is dead-lettered at once."""

    retry_after: float = 0.0
    """Seconds before which handling the same event again is in vain; it waits so long, up to an hour."""


# Faults of the caller


class UsageError(NatterjackError):
    """What was asked for cannot be done as written."""

    retry = False


class InvalidNameError(UsageError, ValueError):
    """A name of an agent, tool, team, event type or key is malformed."""

    def __init__(self, kind: str, name: object, rule: str) -> None:
        self.kind, self.name = kind, name
        super().__init__(f"{name!r} is no valid {kind}: {rule}.")


class PatternError(UsageError, ValueError):
    """A subject pattern is malformed."""

    def __init__(self, pattern: object, reason: str) -> None:
        self.pattern = pattern
        super().__init__(f"{pattern!r} is no valid pattern: {reason}.")


class PayloadError(UsageError, ValueError):
    """A payload or header cannot be sent, or was received and cannot be read."""


class ConfigError(UsageError, ValueError):
    """A team file, a component's configuration or an option is wrong."""


class UnknownAgentError(ConfigError):
    """A team has no agent of that name."""

    def __init__(self, team: str, name: str, known: Iterable[str]) -> None:
        self.name, self.known = name, tuple(known)
        agents = ", ".join(self.known[:20]) + (", …" if len(self.known) > 20 else "")
        super().__init__(f"team {team!r} has no agent {name!r}.{nearest(name, self.known)} It has: {agents}.")


class LoopError(UsageError):
    """An event caused an event caused an event …, too many times; or one run emitted too many."""

    @classmethod
    def of(cls, what: str, depth: int, limit: int) -> Self:
        """Make it of what would come next in a chain that is as long as it may be."""
        chain = f"{what!r} would be number {depth} in a chain of events and asks that led to one another"
        return cls(f"{chain}, and {limit} is the limit: this looks like a loop")


class NondeterminismError(UsageError):
    """A handler that is repeated does not make the calls that its run has journaled.

    Attributes:
        run_id: The run.
        position: Which call.
        journaled: What the run has journaled there.
        called: What the handler calls there now.
    """

    def __init__(self, run_id: str, position: str, journaled: str, called: str) -> None:
        self.run_id, self.position, self.journaled, self.called = run_id, position, journaled, called
        super().__init__(
            f"run {run_id} has journaled {journaled} as its call {position}, and the handler calls {called} there now. "
            "A run goes on only with the calls that it began with: raise `version` of the agent's class, keep the old "
            "calls under `if ctx.version < …`, and resume the run"
        )


# Plugins


class PluginError(NatterjackError):
    """A plugin is missing, broken, or two of them claim one name."""

    retry = False


# Refusals and races


class RefusedError(NatterjackError, PermissionError):
    """A guard or the broker refused: who wanted what, and who may."""

    retry = False


class TokenError(NatterjackError, PermissionError):
    """A token is not valid: expired, forged, for somebody else, or none at all.

    Attributes:
        reason: Why; it may be shown to whoever sent it.
    """

    retry = False

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the token is not valid: {reason}")


class ConflictError(NatterjackError):
    """A compare-and-set lost: somebody else wrote first. Read again, then retry."""


class FencedError(NatterjackError):
    """Another replica took this run over; this one stops quietly."""

    retry = False


# Faults of a peer


class PeerError(NatterjackError):
    """A peer answered with an error.

    Attributes:
        agent: The peer's name.
        code: The HTTP-like code of the `Nats-Service-Error-Code` header (ADR-32).
    """

    def __init__(self, agent: str, code: int, message: str) -> None:
        self.agent, self.code, self.message = agent, code, message
        super().__init__(f"{agent}: {message}" if message else f"{agent} failed with code {code}")


class PeerTimeoutError(PeerError, TimeoutError):
    """No answer came within the deadline."""


class PeerUnavailableError(PeerTimeoutError):
    """Nobody serves that name at the moment. Known within milliseconds."""


class PeerBusyError(PeerError):
    """The peer is at its limit of concurrent work. Try later or start a replica."""


class PeerRefusedError(PeerError, PermissionError):
    """The asker may not ask this peer."""


def peer_error(agent: str, code: int, message: str) -> PeerError:
    """Return the error class that stands for a service error code."""
    kinds: dict[int, type[PeerError]] = {
        401: PeerRefusedError,
        403: PeerRefusedError,
        408: PeerTimeoutError,
        429: PeerBusyError,
        503: PeerUnavailableError,
    }
    return kinds.get(code, PeerError)(agent, code, message)


class QueryError(NatterjackError):
    """Nobody answers a question that an agent put to its asker. The asker may see this text."""

    retry = False


class QueryTimeoutError(QueryError, TimeoutError):
    """The asker did not answer in time."""


# Runs and start


class WaitTimeoutError(NatterjackError, TimeoutError):
    """The event that a run waited for did not come in time.

    Attributes:
        type: Its type.
    """

    retry = False

    def __init__(self, run_id: str, type: str) -> None:
        self.run_id, self.type = run_id, type
        super().__init__(f"run {run_id} waited for {type!r} in vain: no such event came in time")


class ApprovalDeniedError(NatterjackError, PermissionError):
    """A human was asked, and said no.

    Attributes:
        question: What was asked.
        reason: Why not, if that was said.
    """

    retry = False

    def __init__(self, question: str, by: str, reason: str) -> None:
        self.question, self.by, self.reason = question, by, reason
        super().__init__(f"{by or 'somebody'} said no to {question!r}" + (f": {reason}" if reason else ""))


class ApprovalRequiredError(NatterjackError, PermissionError):
    """A human must allow this first; `ctx.tools` asks one, other callers cannot.

    Attributes:
        question: What to ask.
    """

    def __init__(self, message: str, question: str = "") -> None:
        self.question = question
        super().__init__(message)


class RunFailedError(NatterjackError):
    """A run ended in a dead letter, or was cancelled.

    Attributes:
        run_id: The run.
        cause: What the last attempt failed with.
    """

    def __init__(self, run_id: str, cause: str) -> None:
        self.run_id, self.cause = run_id, cause
        super().__init__(f"run {run_id} failed: {cause}. See `natterjack dead list`.")


class StartError(NatterjackError):
    """A runtime or an agent could not start; nothing is left half-started."""

    retry = False


# Faults of the wire


class BrokerError(NatterjackError):
    """The broker, or the way to it, failed.

    Attributes:
        transient: Whether that may pass by itself; then it counts as no attempt of the handler it stopped.
    """

    transient: bool = True


class ConnectError(BrokerError, ConnectionError):
    """No connection could be made."""


class CredentialsError(ConnectError):
    """The server does not accept these credentials."""

    retry = False


class DisconnectedError(BrokerError, ConnectionError):
    """The connection went while a reply was outstanding, or is closed for good."""


class NoRespondersError(BrokerError):
    """Nobody listens on the subject of a request."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        super().__init__(f"nobody answers on {subject!r}")


class RequestTimeoutError(BrokerError, TimeoutError):
    """No reply came in time.

    Attributes:
        subject: What was asked.
        timeout: Seconds that were waited.
    """

    def __init__(self, subject: str, timeout: float, message: str = "") -> None:
        self.subject, self.timeout = subject, timeout
        super().__init__(message or f"no reply on {subject!r} within {timeout:g} s")


class StreamError(BrokerError):
    """JetStream refused a request.

    Attributes:
        code: JetStream's `err_code`, e.g. 10071 for a wrong last sequence.
    """

    def __init__(self, code: int, description: str, what: str = "", *, transient: bool = True) -> None:
        self.code, self.description, self.transient = code, description, transient
        super().__init__(f"{what}: {description} (JetStream error {code})" if what else f"{description} ({code})")

    @classmethod
    def read(cls, problem: Mapping[str, Any], what: str) -> Self:
        """Make it of the error in an answer of JetStream; a bad request is one whenever it is sent."""
        code, text = problem.get("err_code", 0), problem.get("description", "")
        return cls(code, text, what, transient=problem.get("code") != 400)


class ShareError(BrokerError, PermissionError):
    """This principal has stored more than its share, and is refused for a while: what it works on waits.

    Attributes:
        retry_after: Seconds after which it makes sense to try again.
    """

    retry_after = 30.0


class NotProvisionedError(BrokerError):
    """A stream, bucket or consumer that running needs does not exist."""

    retry = False

    def __init__(self, what: str, then: str = "Run `natterjack provision team.toml` first.") -> None:
        self.what = what
        super().__init__(f"{what} does not exist on this server. {then}")


class BrokerNotFoundError(BrokerError):
    """No nats-server can be found on this machine."""

    retry = False


class BrokerStartError(BrokerError):
    """The embedded nats-server did not start."""

    retry = False
