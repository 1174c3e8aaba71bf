"""What the kernel relies on in an address scheme."""

from __future__ import annotations

import asyncio
import time
from typing import ClassVar, cast

import pytest

from natterjack.components import Component, Kind, PeerScheme
from natterjack.errors import PeerError, PeerTimeoutError
from natterjack.messages import Answer
from natterjack.testing.contracts.component import PROMPTLY, ComponentContract, assert_nothing_left, ends


class PeerContract(ComponentContract):
    """What the kernel relies on in an address scheme.

    Attributes:
        address: Address of an agent that answers.
        absent: Address where nobody is.
    """

    kind: ClassVar[Kind] = "peer"
    base: ClassVar[type[Component]] = PeerScheme
    address: str
    absent: str

    def _scheme(self) -> PeerScheme:
        return cast("PeerScheme", self.component.create(self.settings))

    @pytest.mark.asyncio
    async def test_asks_the_agent_at_an_address(self) -> None:
        """The answer says whose it is, and `close` leaves nothing behind."""
        before = asyncio.all_tasks()
        scheme = self._scheme()
        answers = await asyncio.gather(*(scheme.ask(self.address, "hello?", 10.0) for _ in range(8)))
        assert all(isinstance(answer, Answer) for answer in answers)
        await scheme.close()
        await scheme.close()
        await assert_nothing_left(before)

    @pytest.mark.asyncio
    async def test_nobody_there_is_an_error_in_time(self) -> None:
        """Where nobody answers, a `PeerTimeoutError` or its kind says so, within the time."""
        scheme, began = self._scheme(), time.monotonic()
        with pytest.raises(PeerError) as caught:
            await scheme.ask(self.absent, "hello?", 1.0)
        assert isinstance(caught.value, PeerTimeoutError)
        assert time.monotonic() - began < 1.0 + PROMPTLY
        await scheme.close()

    @pytest.mark.asyncio
    async def test_giving_up_leaves_no_task(self) -> None:
        """An ask that is cancelled ends promptly."""
        before = asyncio.all_tasks()
        scheme = self._scheme()
        asking = asyncio.create_task(scheme.ask(self.address, "hello?", 10.0))
        await asyncio.sleep(0)
        assert await ends(asking)
        await scheme.close()
        await assert_nothing_left(before)
