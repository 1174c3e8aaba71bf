"""Where a process listens; apart from the listener, whose libraries only those need who listen."""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple

HEALTH: Final = "/health"
"""Where a listener tells whether it takes requests."""
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:]+\]|localhost|[0-9.]+):([0-9]{1,5})")


class Address(NamedTuple):
    """Where a process listens.

    Attributes:
        host: IP address.
        port: TCP port; 0: any that is free.
        shared: Whether other processes may listen there, too.
    """

    host: str
    port: int
    shared: bool = False

    @classmethod
    def read(cls, text: str, *, shared: bool = False) -> Address:
        """Read `HOST:PORT`.

        Raises:
            ValueError: It is none.
        """
        found = _ADDRESS.fullmatch(text)
        if found is None or int(found[2]) > 65535:
            msg = f"{text!r} is no address; write an IP address and a port, e.g. '127.0.0.1:8080' or '[::1]:8080'"
            raise ValueError(msg)
        host = "127.0.0.1" if found[1] == "localhost" else str(ipaddress.ip_address(found[1].strip("[]")))
        return cls(host, int(found[2]), shared)

    @property
    def local(self) -> bool:
        """Whether only this machine reaches it."""
        return ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
