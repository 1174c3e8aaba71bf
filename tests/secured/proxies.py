"""A proxy in front of a secured broker: who connects to it gets a key as at the broker itself."""

from __future__ import annotations

import os
from pathlib import Path

from tests.chaos.proxy import Proxy
from tests.secured.accounts import FOLDER

_listen = Proxy.__aenter__


async def listen(self: Proxy) -> Proxy:
    """Listen, and be taken for the server behind."""
    await _listen(self)
    behind, here = (Path(os.environ[FOLDER], str(port)) for port in (self._target(), self.port))
    here.unlink(missing_ok=True)
    if behind.exists():
        here.symlink_to(behind.resolve())
    return self
