"""`asyncapi`: a team's events, messages and asks as an AsyncAPI 3.0 document, for catalogues and code generators."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any, Final

import orjson

from natterjack import subjects
from natterjack.cli.graph import TeamNameArgument
from natterjack.cli.options import TEAM_FILE
from natterjack.cli.output import write
from natterjack.cli.wiring import followed, named_team
from natterjack.server import Server
from natterjack.service import QUEUE
from natterjack.team import AgentSpec, Team

Document = dict[str, Any]

BINDING: Final = "0.1.0"
"""Version of the NATS binding."""
ASK_REPLY: Final = "reply"

_HEADERS: Final = {
    "type": "object",
    "properties": {
        "Natterjack": {"type": "string", "description": "Source, cause, depth and deadline; optional."},
        "Nats-Msg-Id": {"type": "string", "description": "Deduplication id; optional."},
    },
}
_MESSAGES: Final[Document] = {
    "event": {"title": "An event", "contentType": "application/json", "headers": _HEADERS, "payload": {}},
    "message": {"title": "A message", "contentType": "application/json", "headers": _HEADERS, "payload": {}},
    "question": {"title": "A question", "contentType": "text/plain", "payload": {"type": "string"}},
    "answer": {
        "title": "An answer; an error has the header Nats-Service-Error",
        "contentType": "text/plain",
        "headers": {"type": "object", "properties": {"Nats-Service-Error-Code": {"type": "string"}}},
        "payload": {"type": "string"},
    },
}


def asyncapi(team: TeamNameArgument = str(TEAM_FILE)) -> None:
    """Print an AsyncAPI 3.0 document of a team's events, messages and asks: JSON, which is YAML, too."""
    indent = orjson.OPT_INDENT_2 if sys.stdout.isatty() else 0
    write(orjson.dumps(document(named_team(team)), option=indent).decode())


def document(team: Team) -> Document:
    """Return the document."""
    made: Document = {
        "asyncapi": "3.0.0",
        "info": {
            "title": f"Team {team.name}",
            "version": "1.0.0",
            "description": "Agents that coordinate over NATS; made by `natterjack asyncapi`.",
        },
        "defaultContentType": "application/json",
        "channels": {ASK_REPLY: _channel(None, "answer", "The inbox of whoever asks.")},
        "operations": {},
        "components": {"messages": _MESSAGES},
    }
    if team.server:
        hosts = [url.partition("://")[2].rpartition("@")[2] for url in Server(team.server).urls]
        made["servers"] = {f"nats{n}": {"host": host, "protocol": "nats"} for n, host in enumerate(hosts, 1)}
    for name in team.agents:
        ask = _add_channel(made, subjects.ask(name), "question", f"What {name} is asked.")
        _add_operation(made, name, "receive", "answers", ask, reply=True, queue=QUEUE)
        inbox = _add_channel(made, subjects.inbox(name, ">"), "event", f"Events for {name} alone.")
        _add_operation(made, name, "receive", "is-given", inbox)
    for name, spec in team.agents.items():
        _add_traffic(made, name, spec)
    for pattern in team.outside:
        _add_channel(made, subjects.event(pattern), "event", "It comes from outside the team.")
    return made


def _add_traffic(made: Document, name: str, spec: AgentSpec) -> None:
    for action, verb, subject, message in _traffic(spec):
        _add_operation(made, name, action, verb, _add_channel(made, subject, message))
    for peer in spec.asks or ():
        address = spec.cross_agents.get(peer, peer)
        if "://" not in address:
            channel = _add_channel(made, subjects.ask(address), "question", f"What {address} is asked.")
            _add_operation(made, name, "send", "asks", channel, reply=True)


def _traffic(spec: AgentSpec) -> Iterator[tuple[str, str, str, str]]:
    yield from (("receive", "waits-for", subjects.event(each), "event") for each in spec.heard)
    yield from (("send", "emits", subjects.event(each), "event") for each in spec.emitted)
    yield from (("send", "publishes", subjects.message(each), "message") for each in spec.publishes or ())
    for trigger in spec.on:
        what = followed(trigger)
        if trigger.kind == "message":
            yield "receive", "reads", subjects.message(what), "message"
        elif trigger.kind == "subject":
            yield "receive", "hears", what, "message"
        elif trigger.kind == "context":
            bucket, keys = subjects.split_keys(what)
            yield "receive", "follows", subjects.key(subjects.context_bucket(bucket), keys), "message"


def _add_channel(made: Document, subject: str, message: str, description: str = "") -> str:
    """Add the channel of a subject, and return its id, which is unique: no token of ours begins with `_`."""
    id = subject.replace("*", "_").replace(">", "__")
    made["channels"].setdefault(id, _channel(subject, message, description))
    return id


def _channel(subject: str | None, message: str, description: str = "") -> Document:
    names = (f"part{number}" for number in range(1, 1 + (subject or "").count("*")))
    address = None if subject is None else re.sub(r"\*", lambda _: f"{{{next(names)}}}", subject).replace(">", "{rest}")
    channel: Document = {"address": address, "messages": {message: {"$ref": f"#/components/messages/{message}"}}}
    parameters = re.findall(r"{(\w+)}", address or "")
    if parameters:
        several = "One token, or several joined by dots."
        channel["parameters"] = {
            each: {"description": several if each == "rest" else "One token."} for each in parameters
        }
    return channel | ({"description": description} if description else {})


def _add_operation(
    made: Document, agent: str, action: str, verb: str, channel: str, *, reply: bool = False, queue: str = ""
) -> None:
    (message,) = made["channels"][channel]["messages"]
    binding = {"queue": queue, "bindingVersion": BINDING} if queue else {"bindingVersion": BINDING}
    operation: Document = {
        "action": action,
        "title": f"{agent} {verb.replace('-', ' ')} {channel}",
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{message}"}],
        "tags": [{"name": agent}],
        "bindings": {"nats": binding},
    }
    if reply:
        answer = {"$ref": f"#/channels/{ASK_REPLY}/messages/answer"}
        operation["reply"] = {"channel": {"$ref": f"#/channels/{ASK_REPLY}"}, "messages": [answer]}
    made["operations"][f"{agent}.{verb}.{channel}"] = operation
