"""The pytest plugin: fixtures for whoever has Natterjack installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from natterjack.testing.servers import NatsServer


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
