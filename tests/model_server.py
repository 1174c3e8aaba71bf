"""A model server that does what a test wrote down, over real HTTP: what `openai:` and `openai-chat:` models ask."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

Reply = Any
"""Text; a dict that `call` returns, or a list of both; or a starlette response."""
CUT = object()
"""In a list: the connection is cut there, if the reply is streamed."""


def call(name: str, /, **arguments: Any) -> Reply:
    """Return a reply that calls a tool."""
    return {"call": name, "arguments": arguments}


def results(body: dict[str, Any]) -> list[Any]:
    """Return what came of the calls of tools, as a request tells it."""
    if "messages" in body:
        return [item["content"] for item in body["messages"] if item["role"] == "tool"]
    return [item["output"] for item in body["input"] if item.get("type") == "function_call_output"]


def offered(body: dict[str, Any]) -> set[str]:
    """Return the tools that a request offers."""
    return {tool["name"] for tool in body.get("tools", [])}


def problem(status: int, **headers: str) -> JSONResponse:
    """Return a reply that says what is wrong, as the provider does."""
    return JSONResponse({"error": {"message": f"it is {status}", "type": "t", "code": "c"}}, status, headers)


class Cut(Response):
    """The connection ends: before there is any response, or after a part of its body."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.body:
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % (2 * len(self.body)))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": self.body, "more_body": True})
        send.__self__.transport.close()  # type: ignore[attr-defined]  # the server's own


@dataclass
class ModelServer:
    """What it is asked, and what it answers.

    Attributes:
        url: Its base URL.
        script: Returns the reply to a request, which is the body; in a thread of the server's own.
        asked: All requests so far.
        headers: Those of each.
    """

    url: str
    script: Callable[[dict[str, Any]], Reply] = lambda body: "so"
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    ids: Iterator[int] = field(default_factory=itertools.count)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = json.loads(await request.body())
        self.headers.append(dict(request.headers))
        self.asked.append(body)
        reply = self.script(body)
        if inspect.isawaitable(reply):
            reply = await reply
        await self._rendered(request.url.path, body, reply)(scope, receive, send)

    def _rendered(self, path: str, body: dict[str, Any], reply: Reply) -> Response:
        if isinstance(reply, Response):
            return reply
        if path == "/v1/chat/completions":
            return JSONResponse(self._completion(_listed(reply)))
        if path != "/v1/responses":
            return problem(404)
        if body.get("stream"):
            return StreamingResponse(self._events(reply), media_type="text/event-stream")
        return JSONResponse(self._response("completed", [self._item(each) for each in _listed(reply)]))

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
        details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
        about = {"id": "resp_1", "object": "response", "created_at": 1, "model": "gpt-5-mini", "tool_choice": "auto"}
        more = {"parallel_tool_calls": True, "tools": [], "status": status, "output": output}
        return {**about, **more, "usage": usage | details}

    def _item(self, reply: Reply) -> dict[str, Any]:
        number = next(self.ids)
        if isinstance(reply, str):
            content = [{"type": "output_text", "text": reply, "annotations": []}]
            about = {"id": f"m{number}", "role": "assistant", "status": "completed"}
            return {"type": "message", **about, "content": content}
        told = {"call_id": reply.get("id", f"call_{number}"), "name": reply["call"], "arguments": _arguments(reply)}
        return {"type": "function_call", "id": f"f{number}", **told, "status": "completed"}

    def _completion(self, replies: list[Reply]) -> dict[str, Any]:
        text = " ".join(each for each in replies if isinstance(each, str)) or None
        calls = [
            {
                "id": f"call_{next(self.ids)}",
                "type": "function",
                "function": {"name": each["call"], "arguments": _arguments(each)},
            }
            for each in replies
            if not isinstance(each, str)
        ]
        message = {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        about = {"id": "chat_1", "object": "chat.completion", "created": 1, "model": "gpt-5-mini"}
        return {**about, "choices": [choice], "usage": usage}

    async def _events(self, reply: Reply) -> AsyncIterator[bytes]:
        sequence = itertools.count()

        def event(kind: str, **data: Any) -> bytes:
            body = {"type": kind, "sequence_number": next(sequence), **data}
            return f"event: {kind}\ndata: {json.dumps(body)}\n\n".encode()

        yield event("response.created", response=self._response("in_progress", []))
        items = []
        for index, each in enumerate(_listed(reply)):
            if each is CUT:
                raise ConnectionResetError
            item = self._item(each)
            items.append(item)
            place = {"output_index": index, "item_id": item["id"]}
            empty: dict[str, Any] = {"content": []} if isinstance(each, str) else {"arguments": ""}
            begun = {**item, "status": "in_progress", **empty}
            yield event("response.output_item.added", output_index=index, item=begun)
            if isinstance(each, str):
                for word in each.split(" "):
                    yield event("response.output_text.delta", content_index=0, delta=f"{word} ", logprobs=[], **place)
            else:
                yield event("response.function_call_arguments.delta", delta=item["arguments"], **place)
            yield event("response.output_item.done", output_index=index, item=item)
        yield event("response.completed", response=self._response("completed", items))


def _listed(reply: Reply) -> list[Reply]:
    return reply if isinstance(reply, list) else [reply]


def _arguments(reply: Reply) -> str:
    arguments = reply["arguments"]
    return arguments if isinstance(arguments, str) else json.dumps(arguments)


@contextmanager
def serving() -> Iterator[ModelServer]:
    """Serve one in a thread of its own, so that a test may have an event loop, or the sample that it runs."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        model = ModelServer(f"http://127.0.0.1:{listening.getsockname()[1]}/v1")
        # Idle connections stay: a request that meets the end of one is not heard, and a test counts what was.
        config = uvicorn.Config(model, log_level="critical", lifespan="off", timeout_keep_alive=600)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=asyncio.run, args=[server.serve([listening])])
        thread.start()
        try:
            yield model
        finally:
            server.should_exit = server.force_exit = True  # without waiting for what a script never answers
            thread.join()
