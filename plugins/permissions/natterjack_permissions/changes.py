"""Have changes of what may be done written down in the audit of the team."""

from __future__ import annotations

from natterjack import Bus, Server


async def note_change(server: Server, verb: str, **facts: object) -> None:
    """Write down a change as the operator, who made it.

    Args:
        server: Where, with a folder of keys that has the operator's.
        verb: What was done: `secure`, `issue` or `revoke`.
        facts: To whom, and the like; no secrets.

    Raises:
        ConnectError: The server does not answer, or does not know the operator.
    """
    bus = await Bus.connect(server, principal="operator")
    try:
        bus.audit.note("authority", verb, **facts)
    finally:
        await bus.close()
