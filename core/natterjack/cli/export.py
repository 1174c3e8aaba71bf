"""What `runs export --as-test` writes: a recorded run, and a test that it still goes as it did."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from natterjack.cli.exits import CommandError, ExitCode
from natterjack.components import Entry
from natterjack.journal import BEGUN
from natterjack.team import AgentSpec

_TEST: Final = '''\
"""Run {run} of {agent}: its handler must still make the same calls, and come to the same result."""

from pathlib import Path

import pytest

from natterjack.testing import NatsServer, Recording, replay

RECORDING = Recording.load(Path(__file__).with_suffix(".json"))


@pytest.mark.asyncio
async def test_{agent_name}_does_as_in_run_{short}(own_server: NatsServer) -> None:
    replayed = await replay(own_server, RECORDING)
    assert replayed.calls == RECORDING.calls
    assert replayed.error is None
    assert replayed.result == RECORDING.result
'''


def write_test(folder: Path, spec: AgentSpec, entries: Sequence[Entry]) -> list[Path]:
    """Write a run's test and its recording, and return where.

    Raises:
        CommandError: The run cannot be replayed, or one of the files is there.
    """
    _check(entries)
    agent, run = entries[0].agent, entries[0].run
    name = agent.replace("-", "_")
    test = folder / f"test_run_{name}_{run[:12]}.py"
    paths = [test, test.with_suffix(".json")]
    for path in paths:
        if path.exists():
            msg = f"{path} exists; move it away first, or give another folder by --into"
            raise CommandError(msg, ExitCode.USAGE)
    kept = [{"index": each.index, "kind": each.kind, "data": each.data, "time": each.time} for each in entries]
    made_by = {"kind": spec.kind, "options": spec.options}
    recording = {"agent": agent, "run": run, "made_by": made_by, "entries": kept}
    folder.mkdir(parents=True, exist_ok=True)
    paths[1].write_text(json.dumps(recording, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    test.write_text(_TEST.format(run=run, agent=agent, agent_name=name, short=run[:12]), encoding="utf-8")
    return paths


def _check(entries: Sequence[Entry]) -> None:
    """Raise for a run that cannot be replayed."""
    run = entries[0].run
    begun = next((entry.data for entry in entries if entry.kind == BEGUN), None)
    if not isinstance(begun, dict):
        msg = f"run {run} has no steps, so there is nothing to replay; what is done in `ctx.step` is journaled"
    elif "payload" not in begun:
        msg = f"run {run} is an answer; only what handles an event can be replayed"
    elif entries[-1].kind != "done":
        msg = f"run {run} is not done, so there is no result to come to; `natterjack runs show {run[:12]}` has more"
    else:
        return
    raise CommandError(msg, ExitCode.FAILED)
