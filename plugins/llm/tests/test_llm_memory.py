"""What model agents take that have nothing to do."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from natterjack.testing import NatsServer

AGENTS = 20
WORKER = f"""
import asyncio
import psutil
from natterjack import AgentProcess, AgentRuntime

async def main() -> None:
    runtime = AgentRuntime()
    for n in range({AGENTS}):
        config = {{"model": "openai:gpt-5-mini", "instructions": "Answer in one sentence."}}
        runtime.add_process(AgentProcess(f"agent-{{n}}", agent_config=config))
    async with runtime:
        assert len(await runtime.agents()) == {AGENTS}
        print(psutil.Process().memory_info().rss)

asyncio.run(main())
"""


@pytest.mark.full
def test_twenty_idle_model_agents_share_a_worker(own_server: NatsServer) -> None:
    env = os.environ | {"NATS_URL": own_server.url, "OPENAI_API_KEY": "none"}
    done = subprocess.run([sys.executable, "-c", WORKER], env=env, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 250e6
