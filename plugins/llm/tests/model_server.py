"""A model server that does what a test wrote down, over real HTTP: the Responses API of `openai:` models."""

import asyncio
import inspect
import itertools
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

Reply = Any
"""Text; a dict `{"call": name, "arguments": …}` or a list of them; or a starlette response. One that is `CUT` ends the
stream in the middle."""
CUT = object()


@dataclass
class ModelServer:
    """What it is asked, and what it answers.

    Attributes:
        url: Its base URL.
        script: Returns the reply to a request, which is the body.
        asked: All requests so far.
    """

    url: str
    script: Callable[[dict[str, Any]], Reply] = lambda body: "so"
    asked: list[dict[str, Any]] = field(default_factory=list)
    ids: Iterator[int] = field(default_factory=itertools.count)

    async def respond(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.asked.append(body)
        reply = self.script(body)
        if inspect.isawaitable(reply):
            reply = await reply
        if isinstance(reply, Response):
            return reply
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
            return {
                "type": "message",
                "id": f"m{number}",
                "role": "assistant",
                "status": "completed",
                "content": content,
            }
        arguments = reply["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        call = {"call_id": f"call_{number}", "name": reply["call"], "arguments": text, "status": "completed"}
        return {"type": "function_call", "id": f"f{number}", **call}

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
            yield event(
                "response.output_item.added", output_index=index, item={**item, "status": "in_progress", **empty}
            )
            if isinstance(each, str):
                for word in each.split(" "):
                    yield event("response.output_text.delta", content_index=0, delta=f"{word} ", logprobs=[], **place)
            else:
                yield event("response.function_call_arguments.delta", delta=item["arguments"], **place)
            yield event("response.output_item.done", output_index=index, item=item)
        yield event("response.completed", response=self._response("completed", items))


def call(name: str, /, **arguments: Any) -> Reply:
    """Return a reply that calls a tool."""
    return {"call": name, "arguments": arguments}


def _listed(reply: Reply) -> list[Reply]:
    return reply if isinstance(reply, list) else [reply]


@contextmanager
def model_server_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    """Serve one for a test that has an event loop of its own."""
    began: Future[ModelServer] = Future()
    ending = threading.Event()

    async def serve() -> None:
        async with model_server(monkeypatch) as server:
            began.set_result(server)
            await asyncio.to_thread(ending.wait)

    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    try:
        yield began.result(10)
    finally:
        ending.set()
        thread.join()


@asynccontextmanager
async def model_server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ModelServer]:
    """Serve one, to which `openai:` models go."""
    listening = socket.create_server(("127.0.0.1", 0))
    model = ModelServer(f"http://127.0.0.1:{listening.getsockname()[1]}/v1")
    app = Starlette(routes=[Route("/v1/responses", model.respond, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    serving = asyncio.create_task(server.serve([listening]))
    monkeypatch.setenv("OPENAI_BASE_URL", model.url)
    monkeypatch.setenv("OPENAI_API_KEY", "scripted")
    try:
        yield model
    finally:
        server.should_exit = True
        await serving
        listening.close()
