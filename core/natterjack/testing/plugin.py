"""The pytest plugin: fixtures for whoever has Natterjack installed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from natterjack.runtime import AgentRuntime
    from natterjack.testing.clock import ScriptedClock
    from natterjack.testing.servers import NatsServer

pytest.register_assert_rewrite("natterjack.testing.contracts")


@pytest.fixture(scope="session")
def nats_server() -> Iterator[NatsServer]:
    """A real nats-server with JetStream, shared by the session; use names of your own in it."""
    from natterjack.testing.servers import NatsServer  # lazy: a pytest plugin is imported in every session

    with NatsServer() as server:
        yield server


@pytest.fixture
def own_server() -> Iterator[NatsServer]:
    """A real nats-server with JetStream for this test alone, which may stop, kill and restart it."""
    from natterjack.testing.servers import NatsServer

    with NatsServer() as server:
        yield server


@pytest.fixture
def clock() -> ScriptedClock:
    """A clock that stands still until the test says `await clock.advance(seconds)`."""
    from natterjack.testing.clock import ScriptedClock

    return ScriptedClock()


async def _runtime(own_server: NatsServer, request: pytest.FixtureRequest) -> AsyncIterator[AgentRuntime]:
    """A runtime on this test's own server, stopped after it; with the test's `clock`, if the test asks for one.

    Add processes, then `await runtime.start_all()`, or use `async with runtime:`.
    """
    from natterjack.runtime import AgentRuntime

    scripted = request.getfixturevalue("clock") if "clock" in request.fixturenames else None
    runtime = AgentRuntime(own_server.url, clock=scripted)
    yield runtime
    await runtime.stop_all()


if find_spec("pytest_asyncio"):  # who tests without it still has the servers
    import pytest_asyncio

    runtime = pytest_asyncio.fixture(_runtime, name="runtime")
