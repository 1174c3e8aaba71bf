"""Peers: `ask`, `broadcast`, `agents`."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Annotated, NoReturn

import typer

from natterjack.cli.exits import ExitCode
from natterjack.cli.options import (
    JsonOption,
    NatsContextOption,
    ServerOption,
    TimeoutOption,
    check_agent,
    joined,
    read_text,
)
from natterjack.cli.output import note, text_of, write, write_json, write_part, write_table
from natterjack.cli.run import run
from natterjack.client import TeamClient
from natterjack.errors import NotProvisionedError, PeerUnavailableError, UnknownAgentError
from natterjack.messages import Answer, Answers, Query
from natterjack.peers import ASK_TIMEOUT

QuestionArgument = Annotated[str, typer.Argument(metavar="QUESTION", help="Text; `-` reads standard input.")]


def ask(
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="Whom.")],
    question: QuestionArgument,
    *,
    timeout: TimeoutOption = ASK_TIMEOUT,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Print the answer as it comes.")] = True,
    conversation: Annotated[
        str | None, typer.Option("--conversation", metavar="ID", help="Go on with a conversation, or begin one.")
    ] = None,
) -> None:
    """Ask an agent, and print its answer. What it asks back is put to you, on a terminal."""
    text = read_text(question)

    async def send() -> None:
        async with joined(server, nats_context) as client:
            try:
                if stream:
                    await _ask_stream(client, agent, text, timeout, conversation, as_json=as_json)
                else:
                    answer = await client.ask_peer(agent, text, timeout=timeout, conversation_id=conversation)
                    _write_answer(answer, as_json=as_json)
            except PeerUnavailableError as error:
                await _explain(client, agent, error)

    run(send())


async def _ask_stream(
    client: TeamClient, agent: str, question: str, timeout: float, conversation: str | None, *, as_json: bool
) -> None:
    on_query = _ask_user if sys.stdin.isatty() and not as_json else None
    chunks = []
    try:
        asked = client.ask_stream(agent, question, timeout=timeout, on_query=on_query, conversation_id=conversation)
        async with asked as stream:
            async for chunk in stream:
                chunks.append(chunk)
                if not as_json:
                    write_part(text_of(chunk))
    finally:
        if chunks and not as_json:  # what follows, an error perhaps, begins a line
            write("")
    if as_json:
        _write_answer(Answer("".join(chunks), agent=agent, run_id=stream.run_id), as_json=True)


def _write_answer(answer: Answer, *, as_json: bool) -> None:
    if as_json:
        about = {"messages": list(answer.messages), "usage": dict(answer.usage)}
        write_json({"agent": answer.agent, "answer": str(answer), "run": answer.run_id, **about})
    else:
        write(text_of(str(answer)))


async def _ask_user(query: Query) -> str:
    """Put a question to whoever sits at the terminal; a thread reads, because Ctrl-C must not wait for it."""
    note(f"\n? {text_of(query.prompt)}")
    loop = asyncio.get_running_loop()
    line: asyncio.Future[str] = loop.create_future()

    def read() -> None:
        text = sys.stdin.readline().removesuffix("\n")
        loop.call_soon_threadsafe(lambda: None if line.done() else line.set_result(text))

    threading.Thread(target=read, name="natterjack-query", daemon=True).start()
    return await line


async def _explain(client: TeamClient, agent: str, error: PeerUnavailableError) -> NoReturn:
    """Tell a name that nobody has from an agent that does not run."""
    if "://" in agent:
        raise error
    try:
        await check_agent(client, agent)
    except NotProvisionedError:
        raise error from None
    except UnknownAgentError as unknown:
        raise unknown from error
    raise error


def broadcast(
    question: QuestionArgument,
    *,
    to: Annotated[list[str], typer.Option("--to", metavar="AGENT", help="Whom; several by commas, or once for each.")],
    timeout: TimeoutOption = ASK_TIMEOUT,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask several agents at once; fails if none of them answers."""
    text = read_text(question)
    names = [name.strip() for given in to for name in given.split(",")]

    async def send() -> Answers:
        async with joined(server, nats_context) as client:
            return await client.broadcast(names, text, timeout=timeout)

    answers = run(send())
    if as_json:
        failures = {name: {"code": error.code, "error": error.message} for name, error in answers.failures.items()}
        write_json({"answers": answers, "failures": failures})
    else:
        write_table(["agent", "answer"], [*answers.items()], empty="nobody answered")
        for error in answers.failures.values():
            note(f"no answer from {text_of(str(error))}")
    if not answers:
        raise typer.Exit(ExitCode.FAILED)
