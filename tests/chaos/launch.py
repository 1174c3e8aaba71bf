"""The command `natterjack`, in less of a hurry to give up: `python launch.py up team.toml …`.

A replica that is silent loses its work after `CHAOS_LEASE` seconds instead of 30, so that a thousand faults pass in
minutes; and what is killed once in a few seconds is started again as quickly as what is killed once in a minute.
"""

import os

from natterjack import provision
from natterjack.cli import child, main

provision.ACK_WAIT = int(float(os.environ["CHAOS_LEASE"]) * 1e9)  # type: ignore[misc]
child.MAX_PAUSE = 1.0  # type: ignore[misc]

if __name__ == "__main__":
    main()
