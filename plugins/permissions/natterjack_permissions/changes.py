"""Have a team hear of changes of what may be done: its doors, and its audit."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import typer

from natterjack import Admission, BrokerError, Bus, NotProvisionedError, Server


async def end_tokens(server: Server, until: Mapping[str, int]) -> bool:
    """Have the doors of the team, which the broker does not guard, refuse tokens that were made by then.

    Args:
        server: Where, with a folder of keys that has the operator's.
        until: Unix seconds, by whom the tokens speak for.

    Returns:
        Whether there is a team that could be told.

    Raises:
        BrokerError: The server does not answer, or does not know the operator.
    """
    bus = await Bus.connect(server, principal="operator")
    try:
        await Admission(bus).revoke(until)
    except NotProvisionedError:
        return False
    finally:
        await bus.close()
    return True


async def note_change(server: Server, verb: str, **facts: object) -> None:
    """Write down a change as the operator, who made it; where no team has an audit yet, say so.

    Args:
        server: Where, with a folder of keys that has the operator's.
        verb: What was done: `secure`, `issue` or `revoke`.
        facts: To whom, and the like; no secrets.

    Raises:
        ConnectError: The server does not answer, or does not know the operator.
    """
    bus = await Bus.connect(server, principal="operator")
    try:
        with suppress(BrokerError):  # it may be there all the same; what cannot be stored is in the log
            if not (await bus.api("STREAM.NAMES", {"subject": "audit.>"}, timeout=2.0)).get("streams"):
                typer.echo("note: no team is provisioned there yet, so no audit says so", err=True)
                return
        bus.audit.note("authority", verb, **facts)
    finally:
        await bus.close()
