"""Operator mode on a cluster: all servers take what is pushed, and one that was away takes it when it is back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from natterjack import Bus, ConnectError, CredentialsError, NoRespondersError, Permissions, RefusedError, Server
from natterjack.testing import until
from natterjack_permissions.authority import BESIDE
from natterjack_permissions.mint import KEYS, Mint
from natterjack_permissions.pushes import push
from natterjack_permissions.star import star
from natterjack_permissions.tls import Certificates

from .test_brokerconf import Cluster

pytestmark = pytest.mark.full
ANN = Permissions((), ("_INBOX.ann.>",))
MORE = Permissions(("events.x",), ("_INBOX.ann.>",))
BOB = Permissions((), ("_INBOX.bob.>",))


def mint(folder: Path, granted: dict[str, Permissions], rotate: tuple[str, ...] = ()) -> Mint:
    """Write the accounts of these."""
    found = Mint(folder)
    found.team(star(granted), rotate)
    found.write()
    return found


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    mint(tmp_path, {"ann": ANN})
    Certificates(tmp_path, ["ann", "bob", *BESIDE]).write()
    with Cluster(tmp_path).running() as servers:
        yield servers


async def may(cluster: Cluster, at: int, who: str, subject: str) -> bool | None:
    """Tell whether somebody may publish on a subject at this server; None: it does not let it in, or is away."""
    server = Server(f"nats://127.0.0.1:{cluster.ports['LISTEN'][at]}", keys=str(cluster.folder / KEYS), patience=0)
    try:
        bus = await Bus.connect(server, principal=who)
    except (ConnectError, CredentialsError):
        return None
    try:
        await bus.request(subject, timeout=5)
    except RefusedError:
        return False
    except NoRespondersError:  # no stream is there
        return True
    finally:
        await bus.close()
    return True


async def test_all_take_it_and_one_that_was_away_when_it_is_back(cluster: Cluster) -> None:
    async def each(who: str, wanted: bool | None, at: tuple[int, ...] = (0, 1, 2)) -> None:
        async def is_so() -> bool:
            return [await may(cluster, one, who, "events.x") for one in at] == [wanted] * len(at)

        assert await until(is_so, timeout=30)

    await each("ann", wanted=False)
    servers, names = await push(cluster.url, mint(cluster.folder, {"ann": MORE}))
    assert (servers, names) == (["n0", "n1", "n2"], ["P-ann"])
    await each("ann", wanted=True)
    cluster.processes[2].kill()
    cluster.processes[2].wait(20)
    configuration = (cluster.folder / "accounts.conf").read_text()
    left = ",".join(cluster.url.split(",")[:2])
    servers, names = await push(left, mint(cluster.folder, {"ann": ANN, "bob": BOB}))
    assert (servers, names) == (["n0", "n1"], ["P-ann", "P-bob"])
    await each("ann", False, (0, 1))
    (cluster.folder / "accounts.conf").write_text(configuration)  # its machine has got no other
    cluster.processes[2] = cluster.start(2)
    await each("bob", wanted=False)
    await each("ann", wanted=False)
