"""The embedded broker: a real nats-server that starts and ends with the first process that needs it."""

from natterjack.broker.embedded import DEFAULT_STORE, Broker, embed, running_url
from natterjack.broker.natsserver import find_server, server_version

__all__ = [
    "DEFAULT_STORE",
    "Broker",
    "embed",
    "find_server",
    "running_url",
    "server_version",
]
