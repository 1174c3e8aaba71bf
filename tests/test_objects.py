"""Large values: complete or refused, standard clients read them, and an agent reads only its own."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import nats
import pytest

from natterjack import objects, subjects
from natterjack.bus import Bus
from natterjack.errors import PayloadError, RefusedError
from natterjack.objects import CHUNK, MAX_SIZE, Reference
from natterjack.rights import Right, permissions
from natterjack.server import Server
from natterjack.stores import STREAMS
from natterjack.testing import NatsServer

STREAM = "OBJ_journal"
DATA = os.urandom(3 * CHUNK + 7)


async def provide(bus: Bus) -> None:
    await bus.api(f"STREAM.CREATE.{STREAM}", {"name": STREAM, **STREAMS[STREAM]})


@pytest.fixture
async def bus(own_server: NatsServer) -> AsyncIterator[Bus]:
    bus = await Bus.connect(Server(own_server.url), principal="worker")
    await provide(bus)
    yield bus
    await bus.close()


async def stored(bus: Bus) -> int:
    return int((await bus.api(f"STREAM.INFO.{STREAM}"))["state"]["messages"])


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 20 * CHUNK])
async def test_what_is_put_is_got(bus: Bus, size: int) -> None:
    data = os.urandom(size)
    reference = await objects.put(bus, data, bucket="journal")
    assert (reference.size, reference.chunks) == (size, -(-size // CHUNK))
    again = Reference.parse(json.loads(reference.model_dump_json()))
    assert await objects.get(bus, again) == data


async def test_the_same_again_is_stored_once_and_other_data_under_the_same_name_apart(bus: Bus) -> None:
    one = await objects.put(bus, DATA, bucket="journal", name="run.1")
    count = await stored(bus)
    assert await objects.put(bus, DATA, bucket="journal", name="run.1") == one
    assert await stored(bus) == count + 1  # its meta entry, which clients read last
    other = await objects.put(bus, DATA[::-1], bucket="journal", name="run.1")
    unnamed = await objects.put(bus, DATA, bucket="journal")
    assert len({one.id, other.id, unnamed.id}) == 3
    assert [await objects.get(bus, each) for each in (one, other, unnamed)] == [DATA, DATA[::-1], DATA]


async def test_two_that_put_the_same_at_once_share_it(bus: Bus) -> None:
    found = await asyncio.gather(*(objects.put(bus, DATA, bucket="journal", name="x") for _ in range(5)))
    assert len(set(found)) == 1
    assert await objects.get(bus, found[0]) == DATA


async def test_a_put_that_was_cut_off_is_finished_by_the_next(bus: Bus) -> None:
    task = asyncio.create_task(objects.put(bus, DATA, bucket="journal", name="x"))
    while not await stored(bus):
        assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await objects.get(bus, await objects.put(bus, DATA, bucket="journal", name="x")) == DATA


async def test_too_large_is_refused_before_anything_is_sent(bus: Bus) -> None:
    with pytest.raises(PayloadError, match="larger than 67,108,864; store it elsewhere"):
        await objects.put(bus, bytes(MAX_SIZE + 1), bucket="journal")
    assert await stored(bus) == 0


async def test_what_is_gone_or_damaged_is_said_and_never_returned(bus: Bus) -> None:
    reference = await objects.put(bus, DATA, bucket="journal")
    for wrong in ({"size": 5}, {"digest": "SHA-256="}, {"chunks": 2}):
        with pytest.raises(PayloadError, match="is damaged"):
            await objects.get(bus, reference.model_copy(update=wrong))
    with pytest.raises(PayloadError, match="is not there any more"):
        await objects.get(bus, reference.model_copy(update={"chunks": 5}))


@pytest.mark.parametrize(
    "wrong",
    [
        None, "text", [], {}, {"bucket": "*"}, {"owner": ">"}, {"owner": "a.b"}, {"id": ""}, {"size": -1},
        {"size": "many"}, {"size": MAX_SIZE + 1}, {"more": 1},
    ],
)  # fmt: skip
def test_a_reference_from_a_stranger_is_checked(wrong: Any) -> None:
    right = {"bucket": "journal", "owner": "worker", "id": "1", "size": 1, "chunks": 1, "digest": "SHA-256=x"}
    assert Reference.parse(right).name == "worker.1"
    with pytest.raises(PayloadError, match="is no reference to a large value"):
        Reference.parse({**right, **wrong} if wrong and isinstance(wrong, dict) else wrong)


async def test_a_server_with_small_messages() -> None:
    with NatsServer("max_payload: 1024") as server:
        bus = await Bus.connect(Server(server.url), principal="worker")
        try:
            await provide(bus)
            assert (objects.is_large(bus, bytes(512)), objects.is_large(bus, bytes(513))) == (False, True)
            assert await objects.get(bus, await objects.put(bus, DATA[:5000], bucket="journal")) == DATA[:5000]
        finally:
            await bus.close()


# Other clients


@pytest.fixture
async def reference(bus: Bus) -> Reference:
    await objects.put(bus, b"another", bucket="journal")
    return await objects.put(bus, DATA, bucket="journal", name="mine")


@pytest.mark.open_mode(reason="it reads by a push consumer, which reaches no other account")
async def test_the_standard_python_client_reads_it(bus: Bus, reference: Reference) -> None:
    client = await nats.connect(bus.server.url)
    try:
        store = await client.jetstream().object_store("journal")
        assert (await store.get(reference.name)).data == DATA
        assert {info.size for info in await store.list()} == {7, len(DATA)}
    finally:
        await client.close()


@pytest.mark.skipif(shutil.which("nats") is None, reason="the nats command line is not installed")
@pytest.mark.open_mode(reason="it has no key")
async def test_the_nats_command_line_reads_it(bus: Bus, reference: Reference, tmp_path: Any) -> None:
    async def cli(*arguments: str) -> str:
        command = ["nats", "--server", bus.server.url, "object", *arguments]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        assert process.returncode == 0, output
        return output.decode()

    assert reference.name in await cli("ls", "journal")
    await cli("get", "journal", reference.name, "--output", str(tmp_path / "got"), "--force", "--no-progress")
    assert (tmp_path / "got").read_bytes() == DATA


# Narrow rights


@dataclass
class Two:
    """Two principals with nothing but the right to their own journals."""

    worker: Bus
    spy: Bus


@pytest.fixture
async def two() -> AsyncIterator[Two]:
    def user(name: str) -> dict[str, Any]:
        granted = permissions(name, [Right("journal", name)])
        allowed = {"publish": {"allow": granted.publish}, "subscribe": {"allow": granted.subscribe}}
        return {"user": name, "password": name, "permissions": allowed}

    users = [user("worker"), user("spy"), {"user": "admin", "password": "admin"}]
    with NatsServer(json.dumps({"authorization": {"users": users}})) as server:
        buses = {
            name: await Bus.connect(Server(server.url, user=name, password=name), principal=name)
            for name in ("admin", "worker", "spy")
        }
        await provide(buses["admin"])
        yield Two(buses["worker"], buses["spy"])
        for bus in buses.values():
            await bus.close()


async def test_an_agent_keeps_and_reads_its_own_and_nobody_elses(two: Two) -> None:
    reference = await objects.put(two.worker, DATA, bucket="journal")
    assert await objects.get(two.worker, reference) == DATA
    with pytest.raises(RefusedError):
        await objects.get(two.spy, reference)
    with pytest.raises(RefusedError):
        await two.spy.store(subjects.object_chunk("journal", "worker", reference.id, 9), b"forged")
    with pytest.raises(RefusedError):
        await two.spy.at(STREAM, 1)
