"""Runs that wait, in tests: none of their agents' processes holds one."""

from __future__ import annotations

from natterjack.bus import Bus
from natterjack.testing.waiting import until


async def waiting(bus: Bus) -> int:
    """Return how many tickets there are."""
    return int((await bus.api("STREAM.INFO.WAKES"))["state"]["messages"])


async def until_parked(bus: Bus, agent: str, count: int = 1) -> None:
    """Return once so many runs of an agent, and no others, wait, and their tickets are delivered."""

    async def parked() -> bool:
        info = await bus.api(f"CONSUMER.INFO.WAKES.{agent}=wake")
        return await waiting(bus) == count and info["num_ack_pending"] == count

    await until(parked)
