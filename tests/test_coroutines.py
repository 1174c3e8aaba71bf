"""A coroutine that is begun by hand behaves as in a task of its own; so does work from a queue."""

import asyncio
from contextvars import ContextVar, copy_context

import pytest

from natterjack.coroutines import Begun, WorkQueue
from natterjack.testing import until

SETTING: ContextVar[str] = ContextVar("SETTING", default="none")


async def test_what_waits_for_nothing_has_ended_at_once() -> None:
    async def add() -> int:
        return 1 + 1

    begun = Begun(add())
    assert begun.begin()
    assert (begun.ended, begun.result, await begun) == (True, 2, 2)


async def test_what_waits_goes_on_where_it_is_awaited() -> None:
    gate = asyncio.Event()

    async def wait() -> str:
        await gate.wait()
        await asyncio.sleep(0)
        return "done"

    begun = Begun(wait())
    assert not begun.begin()
    asyncio.get_running_loop().call_soon(gate.set)
    assert await begun == "done"


async def test_it_has_its_own_context_variables_all_along() -> None:
    async def use() -> list[str]:
        SETTING.set("mine")
        seen = [SETTING.get()]
        await asyncio.sleep(0)
        return [*seen, SETTING.get(), await asyncio.create_task(read())]

    async def read() -> str:
        return SETTING.get()

    begun = Begun(use(), copy_context())
    begun.begin()
    assert SETTING.get() == "none"
    assert await begun == ["mine", "mine", "mine"]
    assert SETTING.get() == "none"


@pytest.mark.parametrize("waits", [False, True])
async def test_errors_come_out(waits: bool) -> None:
    async def fail() -> None:
        if waits:
            await asyncio.sleep(0)
        raise LookupError("mine")

    async def run() -> None:
        begun = Begun(fail())
        begun.begin()
        await begun

    with pytest.raises(LookupError, match="mine"):
        await run()


async def test_its_own_timeouts_hit_it() -> None:
    async def bounded() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            return "late"
        return "never"

    begun = Begun(bounded())
    assert not begun.begin()
    assert await begun == "late"


async def test_cancelling_who_awaits_it_cancels_it() -> None:
    begun, cleaned = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    async def run() -> None:
        begun = Begun(wait())
        begun.begin()
        await begun

    task = asyncio.create_task(run())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned.is_set()


# Work from a queue


async def test_work_that_waits_for_nothing_shares_a_task_and_nothing_else() -> None:
    tasks: list[asyncio.Task[None] | None] = []
    seen: list[str] = []

    async def work(item: str) -> None:
        tasks.append(asyncio.current_task())
        seen.append(SETTING.get())
        SETTING.set(item)

    queue = WorkQueue(work)
    for item in "abc":
        queue.put(item)
    await until(lambda: not queue.tasks)
    assert len(tasks) == 3
    assert len(set(tasks)) == 1
    assert seen == ["none"] * 3


async def test_work_that_waits_has_the_task_it_began_with_and_holds_nobody_up() -> None:
    gate = asyncio.Event()
    done: list[str] = []

    async def work(item: str) -> None:
        began_in = asyncio.current_task()
        if item in "ac":
            await gate.wait()
        assert asyncio.current_task() is began_in
        done.append(item)

    queue = WorkQueue(work)
    for item in "abcd":
        queue.put(item)
    await until(lambda: done == ["b", "d"])
    assert len(queue.tasks) == 2
    gate.set()
    await until(lambda: not queue.tasks)
    assert done == ["b", "d", "a", "c"]


@pytest.mark.parametrize("failure", [asyncio.CancelledError, LookupError])
async def test_work_that_fails_or_is_cancelled_takes_nobody_with_it(failure: type[BaseException]) -> None:
    done: list[str] = []
    failed: list[asyncio.Task[None] | None] = []

    async def work(item: str) -> None:
        if item == "a":
            failed.append(asyncio.current_task())
            raise failure
        if item == "b":
            failed.append(task := asyncio.current_task())
            assert task is not None
            task.cancel()
            return
        await asyncio.sleep(0)
        done.append(item)

    queue = WorkQueue(work)
    for item in "abc":
        queue.put(item)
    await until(lambda: done == ["c"])
    ends = await asyncio.gather(*filter(None, failed), return_exceptions=True)
    assert [type(end) for end in ends] == [failure, asyncio.CancelledError]


async def test_others_have_a_turn_however_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natterjack.coroutines.TURN", 0.0)
    turns: list[str] = []

    async def work(item: str) -> None:
        turns.append(item)

    queue = WorkQueue(work)
    for item in "ab":
        queue.put(item)
    asyncio.get_running_loop().call_soon(turns.append, "another")
    await until(lambda: not queue.tasks)
    assert turns == ["a", "another", "b"]
