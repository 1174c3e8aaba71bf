"""For the tests of those who build on Natterjack: a real broker, and waiting without sleeping.

Importing this package is cheap; the fixtures are in `natterjack.testing.plugin`.
"""

from natterjack.testing.servers import NatsServer
from natterjack.testing.waiting import until

__all__ = ["NatsServer", "until"]
