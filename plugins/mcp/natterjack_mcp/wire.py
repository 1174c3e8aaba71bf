"""MCP over NATS: what both sides agree on.

A request is one JSON-RPC message on a subject that says what it wants [R16]: `tools.<server>.call.<tool>` for
`tools/call`, `tools.<server>.<method>` for all else; any replica may answer. On the reply subject come notifications
(progress, changes), and last the answer. A message without a payload only says that the replica lives; it comes every
two seconds to who can be cancelled, which is who sends an id in the `Natterjack` header. Whoever publishes on
`tools.<server>.cancel.<id>` ends the request.

This module needs nothing of the SDK: an agent that only calls tools does not pay for it.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, Final

import orjson

from natterjack import (
    Bus,
    DisconnectedError,
    Envelope,
    PayloadError,
    RequestTimeoutError,
    ToolSubjects,
)
from natterjack_mcp.errors import ToolError, ToolTimeoutError, ToolUnavailableError, call_error

Message = dict[str, Any]
"""A JSON-RPC message."""
Notify = Callable[[Message], Awaitable[None]]
"""Takes notifications that come before an answer."""

CALL: Final = "tools/call"
ALIVE: Final = b"{}"
KEEP_ALIVE: Final = 2.0
"""Seconds between two signs of life."""
PATIENCE: Final = 10.0
"""Seconds without any after which a replica is taken for dead: its event loop may stand still for a while."""
AUTHORIZATION: Final = "Authorization"
NOBODY: Final = "anyone"
"""Who calls, if nobody knows: no principal is called so, and who said nothing would be taken for its connection's."""
INVALID_REQUEST: Final = -32600
_NO_RESPONDERS: Final = "503"


def subject_of(own: ToolSubjects, message: Message) -> str:
    """Return where a request belongs.

    Raises:
        InvalidNameError: It names no tool or method that could have a subject.
    """
    method = str(message.get("method", ""))
    return own.call(_tool(message) or "") if method == CALL else own.method(method)


def misplaced(own: ToolSubjects, subject: str, message: Message) -> str | None:
    """Return why a request does not belong on its subject: who may use one tool's could else call another."""
    named, method = own.named(subject), message.get("method")
    if subject == f"{own.calls.removesuffix('*')}{subject.rpartition('.')[2]}":
        if method == CALL and named is not None and _tool(message) == named:
            return None
        return f"the subject is for {CALL!r} of {named!r}, the message is {method!r} of {_tool(message)!r}"
    if method == named and method != CALL:
        return None
    return f"the subject is for {named!r}, the message is {method!r}"


def _tool(message: Message) -> str | None:
    params = message.get("params")
    name = params.get("name") if isinstance(params, dict) else None
    return name if isinstance(name, str) else None


def failure(id: object, code: int, text: str, data: object = None) -> Message:
    """Return the answer to a request that came to nothing."""
    return {"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": text, **({"data": data} if data else {})}}


def value_of(result: Message) -> Any:
    """Return what a tool returned, from its result on the wire.

    Raises:
        ToolError: The tool says what is wrong.
    """
    texts = [each["text"] for each in result.get("content", ()) if each.get("type") == "text"]
    if result.get("isError"):
        raise ToolError("\n".join(texts))
    structured = result.get("structuredContent")
    if structured is None:
        return "\n".join(texts) if len(texts) == len(result.get("content", ())) else result["content"]
    return structured["result"] if structured.keys() == {"result"} else structured


def result_of(answer: Message) -> Message:
    """Return the result in an answer.

    Raises:
        CallError: It is an error; the kind says which.
    """
    if error := answer.get("error"):
        raise call_error(int(error["code"]), str(error["message"]), error.get("data"))
    result: Message = answer["result"]
    return result


class Line:
    """Speaks to one tool server over NATS.

    Args:
        server: Its name.
        bus: The caller's connection.
        token: What the caller shows; None: the server has only the caller's word for who it is.
        source: Who calls, as it says itself; by default whose connection it is. Empty: nobody knows.
    """

    def __init__(self, server: str, bus: Bus, token: str | None = None, *, source: str | None = None) -> None:
        self.server, self._bus, self._own = server, bus, ToolSubjects(server)
        self._source = bus.principal if source is None else source or NOBODY
        self._shown = {AUTHORIZATION: f"Bearer {token}"} if token else {}

    async def talk(
        self, message: Message, *, timeout: float, envelope: Envelope | None = None
    ) -> AsyncGenerator[Message, None]:
        """Send a request and yield what comes back, the answer last; closed early, it cancels the request.

        Args:
            message: With an `id`.
            timeout: Seconds for all of it.
            envelope: Causation to carry along.

        Raises:
            ToolUnavailableError: Nobody serves that name, or the replica that worked on it is gone.
            ToolTimeoutError: No answer in time.
            PayloadError: The message is too large, or no JSON.
            RefusedError: The broker does not allow it.
        """
        request = secrets.token_hex(16)
        sent = (envelope or Envelope())._replace(source=self._source, timeout=timeout, request=request)
        subject, data, over = subject_of(self._own, message), _encoded(message), False
        replies = self._bus.open(subject, data, timeout=timeout, headers={**self._bus.stamped(sent), **self._shown})
        try:
            while not over:
                reply = await replies.next(PATIENCE)
                if reply is None:
                    self._lost("the replica that worked on it has gone silent")
                elif reply.data and reply.data != ALIVE:
                    answer = orjson.loads(reply.data)
                    over = "method" not in answer
                    yield answer
                elif (reply.headers or {}).get("Status") == _NO_RESPONDERS:
                    over = True
                    self._lost("nobody serves it; start it, or look at `natterjack tools list`", begun=False)
        except RequestTimeoutError as error:
            msg = f"{_named(message)} of {self.server!r} did not answer within {timeout:g} s"
            raise ToolTimeoutError(msg) from error
        except DisconnectedError as error:
            msg = f"the connection to {self.server!r} went before it answered"
            raise ToolUnavailableError(msg, {"begun": True}) from error
        finally:
            replies.close()
            if not over and self._bus.connected:
                self._bus.send(self._own.cancel(request), b"")

    def _lost(self, why: str, *, begun: bool = True) -> None:
        msg = f"the tool server {self.server!r} cannot be reached: {why}"
        raise ToolUnavailableError(msg, {"begun": True} if begun else {"begun": False, "absent": True})

    async def ask(
        self,
        method: str,
        params: Mapping[str, Any],
        *,
        timeout: float,
        envelope: Envelope,
        notify: Notify | None = None,
    ) -> Message:
        """Send a request, and return its result; a replica that drains, or is full for a moment, is not the last word.

        Args:
            method: What is asked for.
            params: Its parameters.
            timeout: Seconds for all of it.
            envelope: Causation to carry along.
            notify: Takes what comes before the answer, e.g. progress.

        Raises:
            CallError: It came to nothing; the kind says why.
        """
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": dict(params)}
        answer: Message = {}
        async with aclosing(self.talk(message, timeout=timeout, envelope=envelope)) as answers:
            async for answer in answers:
                if "method" in answer and notify is not None:
                    await notify(answer)
        return result_of(answer)


def _encoded(message: Message) -> bytes:
    try:
        return orjson.dumps(message)
    except TypeError as error:
        msg = f"the arguments cannot be sent as JSON ({error}); give dicts, lists, text and numbers"
        raise PayloadError(msg) from error


def _named(message: Message) -> str:
    return f"the tool {_tool(message)!r}" if message.get("method") == CALL else repr(message.get("method"))


def arguments_of(call: Message) -> Mapping[str, Any]:
    """Return with what a tool is called; nothing, where that is malformed."""
    given = call["params"].get("arguments")
    return given if isinstance(given, dict) else {}
