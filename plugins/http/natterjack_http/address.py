"""Where it listens; apart from the listener, whose libraries only those need who listen."""

from __future__ import annotations

import ipaddress
from typing import Final, NamedTuple

_PORTS: Final = range(2**16)


class Address(NamedTuple):
    """An IP address, and a port, 0 for one that is free."""

    host: str
    port: int

    @classmethod
    def read(cls, text: str) -> Address:
        """Read `HOST:PORT`.

        Raises:
            ValueError: It is none.
        """
        host, _, port = text.rpartition(":")
        try:
            address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host.strip("[]"))
            return cls(str(address), _PORTS.index(int(port)))
        except ValueError:
            msg = f"{text!r} is no address; write an IP address and a port, e.g. '127.0.0.1:9001' or '[::1]:9001'"
            raise ValueError(msg) from None

    @property
    def local(self) -> bool:
        """Whether only this machine reaches it."""
        return ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
