"""One request and its answer, without a session: what the SDK wants to know about a transport that has neither."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
from mcp.server.connection import Connection
from mcp.server.lowlevel.server import Server
from mcp.server.runner import modern_error_data, serve_one
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import MCPError, NoBackChannelError
from mcp.shared.inbound import InboundLadderRejection, classify_inbound_request
from mcp.shared.jsonrpc_dispatcher import progress_token_from_params
from mcp.shared.message import MessageMetadata
from mcp.shared.transport_context import TransportContext
from mcp_types import (
    CLIENT_CAPABILITIES_META_KEY,
    INVALID_REQUEST,
    PROTOCOL_VERSION_META_KEY,
    ErrorData,
    JSONRPCRequest,
    ProgressToken,
    RequestId,
)
from mcp_types.version import LATEST_MODERN_VERSION
from pydantic import ValidationError

from natterjack_mcp.caller import Caller, calling
from natterjack_mcp.wire import Message, Notify

_ENVELOPE: Final = {PROTOCOL_VERSION_META_KEY: LATEST_MODERN_VERSION, CLIENT_CAPABILITIES_META_KEY: {}}


@dataclass
class _Exchange:
    """The SDK's view of one request (its `DispatchContext`)."""

    request_id: RequestId
    progress_token: ProgressToken | None
    send: Notify | None
    transport: TransportContext = field(
        default_factory=lambda: TransportContext(kind="natterjack", can_send_request=False)
    )
    cancel_requested: anyio.Event = field(default_factory=anyio.Event)
    can_send_request: bool = False
    message_metadata: MessageMetadata = None

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> dict[str, Any]:
        raise NoBackChannelError(method)

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None) -> None:
        if self.send is not None:
            await self.send({"jsonrpc": "2.0", "method": method, **({"params": dict(params)} if params else {})})

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        if self.progress_token is not None:
            told = {"progressToken": self.progress_token, "progress": progress, "total": total, "message": message}
            await self.notify("notifications/progress", {name: each for name, each in told.items() if each is not None})


async def answer(server: Server[Any], message: Message, caller: Caller, notify: Notify | None) -> Message | None:
    """Return the answer to one JSON-RPC message; None to a notification, to which there is none."""
    if "id" not in message:
        return None
    try:
        request = JSONRPCRequest.model_validate(message)
    except ValidationError:
        return _error(None, ErrorData(code=INVALID_REQUEST, message="this is no JSON-RPC request"))
    params = dict(request.params or {})
    meta = params.get("_meta", {})
    if isinstance(meta, Mapping) and PROTOCOL_VERSION_META_KEY not in meta:  # written by hand
        params["_meta"] = {**_ENVELOPE, **meta}
    exchange = _Exchange(request.id, progress_token_from_params(params), notify)
    try:
        with calling(caller):
            result = await _served(server, exchange, request.method, params)
    except Exception as error:  # the SDK tells callers what they may know, and logs the rest
        return _error(request.id, modern_error_data(error))
    return {"jsonrpc": "2.0", "id": request.id, "result": result}


async def _served(server: Server[Any], exchange: _Exchange, method: str, params: Message) -> Message:
    route = classify_inbound_request({"method": method, "params": params})
    if isinstance(route, InboundLadderRejection):
        raise MCPError(code=route.code, message=route.message, data=route.data)
    connection = Connection.from_envelope(route.protocol_version, route.client_info, route.client_capabilities)
    return await serve_one(server, exchange, method, params, connection=connection, lifespan_state={})


def _error(request_id: RequestId | None, error: ErrorData) -> Message:
    return {"jsonrpc": "2.0", "id": request_id, "error": error.model_dump(mode="json", exclude_none=True)}
