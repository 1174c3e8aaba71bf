"""The servers under the team: one, or three that form a cluster, which are killed, stopped and started again."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from natterjack.testing import NatsServer, free_ports

SIGNS_OF_LIFE = 'ping_interval: "5s"\nping_max: 2\nmax_pending: 8MB\n'
"""A client that is silent is gone after 15 s at most, one that does not read sooner: asks do not go to either."""


class Broker:
    """One nats-server, or a cluster of them, each with its store and its page for monitoring.

    Args:
        folder: Where they keep their stores.
        size: How many.
        limits: More of a server's configuration.
    """

    def __init__(self, folder: Path, size: int = 1, limits: str = "") -> None:
        self.size = size
        ports = free_ports(3 * size)
        self._monitoring, routes = ports[:size], ports[size : 2 * size]
        self.nodes = [
            NatsServer(
                f"server_name: node{number}\nhttp: 127.0.0.1:{monitoring}\n{SIGNS_OF_LIFE}{limits}\n"
                + (cluster(routes[number], routes) if size > 1 else ""),
                store=folder / f"node{number}",
                port=port,
            )
            for number, (monitoring, port) in enumerate(zip(self._monitoring, ports[2 * size :], strict=True))
        ]

    @property
    def url(self) -> str:
        """All of its servers, without a proxy between."""
        return ",".join(node.url for node in self.nodes)

    def start(self) -> None:
        """Start all."""
        for node in self.nodes:
            node.start()

    def kill(self) -> None:
        """Kill all."""
        for node in self.nodes:
            node.kill()

    def stop(self) -> None:
        """Stop all in order."""
        for node in self.nodes:
            node.stop()

    def connections(self) -> list[dict[str, Any]]:
        """Return what the servers tell about their clients, subscriptions included.

        Raises:
            OSError: One does not answer.
        """
        return [found for port in self._monitoring for found in connections(port)]


def connections(port: int) -> Iterable[dict[str, Any]]:
    """Return the clients of the server that is monitored on a port."""
    url = f"http://127.0.0.1:{port}/connz?subs=1&limit=4096"
    with urllib.request.urlopen(url, timeout=2.0) as answer:
        return list(orjson.loads(answer.read())["connections"])


def cluster(port: int, routes: list[int]) -> str:
    """Return the configuration of one server of a cluster; clients hear of no other address than theirs."""
    listed = ", ".join(f"nats://127.0.0.1:{route}" for route in routes)
    return f'cluster {{ name: chaos, listen: "127.0.0.1:{port}", no_advertise: true, routes: [{listed}] }}\n'
