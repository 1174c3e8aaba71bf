"""Orchestration from outside: a web application drives the team, and is no agent itself.

It holds one connection for its whole life, asks, starts work, and waits for results. Needs starlette and httpx; to
serve it for real, hand `web()` to uvicorn, with NATS_URL set.

Prints:
    200 Toads? Gladly.
    503 nobody serves that name; is it running?
    200 {'chapters': ['All about toads', 'All about frogs']}
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from httpx import ASGITransport, AsyncClient
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import natterjack
from natterjack import Agent, AgentProcess, AgentRuntime, Event, PeerUnavailableError, RunContext, Server


async def ask(request: Request) -> Response:
    """Hand a question to an agent."""
    try:
        answer = await request.app.state.team.ask_peer(request.path_params["agent"], await request.json(), timeout=30)
    except PeerUnavailableError as error:
        return PlainTextResponse(error.message, 503)
    return PlainTextResponse(answer)


async def book(request: Request) -> Response:
    """A workflow: one event for each chapter, stored before any of them is awaited."""
    orders = [{"type": "chapter.ordered", "topic": topic} for topic in await request.json()]
    runs = [await request.app.state.team.inject_event("writer", order) for order in orders]
    return JSONResponse({"chapters": [await run.result(timeout=60) for run in runs]})


def web(server: Server | None = None) -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with natterjack.connect(server) as app.state.team:
            yield

    routes = [Route("/ask/{agent}", ask, methods=["POST"]), Route("/books", book, methods=["POST"])]
    return Starlette(routes=routes, lifespan=lifespan)


class Writer(Agent):
    """Writes."""

    async def handle(self, event: Event, ctx: RunContext) -> str:
        return f"All about {event.data['topic']}"

    async def answer(self, question: str, ctx: RunContext) -> str:
        return f"{question} Gladly."


async def main() -> None:
    runtime = AgentRuntime()
    runtime.add_process(AgentProcess(name="writer", agent=Writer()))
    async with runtime:
        app = web(runtime.server)
        async with app.router.lifespan_context(app), AsyncClient(transport=ASGITransport(app)) as browser:
            for path, data in (("ask/writer", "Toads?"), ("ask/nobody", "Toads?"), ("books", ["toads", "frogs"])):
                reply = await browser.post(f"http://team/{path}", json=data)
                print(reply.status_code, reply.json() if path == "books" else reply.text)


asyncio.run(main())
