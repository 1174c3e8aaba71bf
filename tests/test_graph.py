"""`natterjack graph`: every connection is there, in a tree that fits a terminal, and in Mermaid that Mermaid reads."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natterjack.cli.graph import mermaid
from natterjack.cli.wiring import Edge, Wiring, wiring
from natterjack.team import Team
from natterjack.testing.command import Cli

NODE_MODULES = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "natterjack" / "node" / "node_modules"
TEAM = """\
[team]
name = "newsroom"
external = ["research.start"]

[agents.researcher]
kind = "llm"
tools = ["team-tools"]
on = ["research.start", { message = "hints.*" }, { cron = "0 7 * * *" }]
emits = ["research.*"]
result_event = "research.complete"
asks = ["checker"]
writes = ["findings"]
publishes = ["reports.daily"]

[agents.analyst]
kind = "agents:Analyst"
on = [{ event = "research.complete", where = "data.quality > 2" }, "nobody.emits"]
waits = ["research.start", "approval.answered"]
result_events = { "analysis.approved" = "result.quality >= 3", "research.start" = "result.quality < 3" }
reads = ["findings"]
cross_agents = { translator = "nats://other:4222/translator", critic = "checker" }
asks = ["translator", "critic"]

[agents.checker]
kind = "agents:Checker"

[tools.team-tools]
command = ["python", "-m", "team_tools"]
roles = { web_search = ["researcher"], publish = ["writer"] }
"""
EDGES = {
    "outside -emits-> research.start",
    "research.start -wakes-> researcher",
    "hints.* -wakes-> researcher",
    "cron 0 7 * * * -wakes-> researcher",
    "research.complete -wakes-> analyst: where data.quality > 2",
    "nobody.emits -wakes-> analyst",
    "research.start -waits-> analyst",
    "approval.answered -waits-> analyst",
    "researcher -emits-> research.start: within research.*",
    "researcher -emits-> research.complete: within research.*",
    "researcher -emits-> research.complete: its result",
    "researcher -publishes-> reports.daily",
    "researcher -asks-> checker",
    "researcher -writes-> findings",
    "researcher -tools-> team-tools: web_search",
    "analyst -emits-> analysis.approved: when result.quality >= 3",
    "analyst -emits-> research.start: when result.quality < 3",
    "analyst -asks-> nats://other:4222/translator: as translator",
    "analyst -asks-> checker: as critic",
    "findings -reads-> analyst",
}
LOST = {
    "nobody.emits": "nobody in the team emits it",
    "analysis.approved": "no agent waits for it",
    "reports.daily": "no agent reads it",
}


@pytest.fixture
def newsroom(quick: Cli) -> Cli:
    quick.env["COLUMNS"] = "80"
    quick.write(team_toml=TEAM)
    return quick


def told(edge: dict[str, str]) -> str:
    source, target = (edge[key].partition(":")[2] for key in ("source", "target"))
    return f"{source} -{edge['kind']}-> {target}" + (f": {edge['label']}" if edge["label"] else "")


def test_json_has_all_connections_and_what_is_probably_wrong(newsroom: Cli) -> None:
    told_all = newsroom.text("graph", "--json")
    graph = json.loads(told_all)
    assert graph["team"] == "newsroom"
    assert {told(edge) for edge in graph["edges"]} == EDGES
    assert len(graph["edges"]) == len(EDGES)
    assert {node["name"]: node["note"] for node in graph["nodes"] if node["note"]} == LOST
    ids = {node["id"] for node in graph["nodes"]}
    assert {edge[end] for edge in graph["edges"] for end in ("source", "target")} <= ids


def test_what_a_wider_pattern_hears_keeps_its_name(quick: Cli) -> None:
    quick.write(
        team_toml="""
[team]
name = "t"

[agents.gate]
kind = "agents:Gate"
emits = ["check.seen", "check.passed"]
result_events = { "check.passed" = "result.n > 5", "check.failed" = "result.n <= 5" }

[agents.log]
kind = "agents:Log"
on = ["check.>"]
"""
    )
    edges = quick.json("graph")["edges"]
    assert {told(edge) for edge in edges if edge["kind"] == "emits"} == {
        "gate -emits-> check.>: check.seen",
        "gate -emits-> check.>: check.passed: when result.n > 5",
        "gate -emits-> check.>: check.failed: when result.n <= 5",
    }


def test_the_tree_fits_a_terminal_and_tells_the_same(newsroom: Cli) -> None:
    text = newsroom.text("graph", "team.toml")
    assert max(map(len, text.splitlines())) <= 80
    plain = re.sub(r"\s*\n[│ ]*", " ", text)
    for part in (
        "on research.start from outside, researcher, analyst",
        "on message hints.*",
        "on cron 0 7 * * *",
        "on nobody.emits nobody in the team emits it",
        "waits for approval.answered",
        "on research.complete (where data.quality > 2) from researcher",
        "emits research.start (within research.*) to researcher",
        "emits research.complete (its result) to analyst",
        "emits analysis.approved (when result.quality >= 3) no agent waits for it",
        "asks checker",
        "asks nats://other:4222/translator (as translator)",
        "writes findings",
        "reads findings",
        "tools team-tools (web_search)",
    ):
        assert part in re.sub(r" +", " ", plain)


def test_a_runtime_is_drawn_too(cli: Cli) -> None:
    cli.write(
        program_py="""\
        from natterjack import AgentProcess, AgentRuntime, EventTrigger

        async def echo(question: str) -> str:
            return question

        runtime = AgentRuntime(name="echoes")
        runtime.add_process(AgentProcess("echo", agent=echo, triggers=[EventTrigger("said")], result_event="heard"))
        """
    )
    graph = json.loads(cli.text("graph", "program:runtime", "--json"))
    assert {told(edge) for edge in graph["edges"]} == {"said -wakes-> echo", "echo -emits-> heard: its result"}
    assert "no module" in cli.error("graph", "nothing:runtime", code=2).lower()


# Mermaid

CHECK = """
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { readFileSync } from "node:fs";
const require = createRequire(process.argv[1] + "/");
const { JSDOM } = require("jsdom");
globalThis.window = new JSDOM("").window;
globalThis.document = window.document;
const { default: mermaid } = await import(pathToFileURL(process.argv[1] + "/mermaid/dist/mermaid.core.mjs"));
for (const text of JSON.parse(readFileSync(0, "utf8"))) {
    const { diagramType } = await mermaid.parse(text);
    if (diagramType !== "flowchart-v2") throw new Error(diagramType);
}
console.log("valid");
"""
LINE = re.compile(
    r'n\d+(\["T"\]|\(\["T"\]\)|>"T"\]|\[\("T"\)\]|\[/"T"/\]|\{\{"T"\}\}|\[\["T"\]\]|\(\("T"\)\))'
    r'|n\d+ (-->|-\.->|==>)(\|"T"\|)? n\d+|classDef lost [\w:#,-]+ 3|class n\d+(,n\d+)* lost'.replace(
        "T", r"(?:\w|[ .,*:/()=!+-]|#\d+;)+"
    )
)
HOSTILE = ('"]; click n0 "x', "`code`", "<b>&lt;", "a#quot;b", "x|y", "%%{init}%%", "ünï\ncode", "end", "]]))}}")


def made_of(names: tuple[str, ...] | list[str]) -> Wiring:
    made = Wiring("any")
    for name in names:
        made.join(made.add("agent", name, "odd"), made.add("trigger", name), "asks", name)
    return made


def documents() -> list[str]:
    import tomllib

    from natterjack.team.file import TeamFile

    team: Team = TeamFile.model_validate(tomllib.loads(TEAM)).as_team()
    return [mermaid(wiring(team)), mermaid(made_of(HOSTILE)), mermaid(Wiring("empty"))]


def check_lines(document: str) -> None:
    first, *lines = document.splitlines()
    assert first == "flowchart LR"
    assert [line for line in lines if not LINE.fullmatch(line.strip())] == []


def test_mermaid_keeps_to_its_grammar() -> None:
    for document in documents():
        check_lines(document)


@given(st.lists(st.text(min_size=1), max_size=5))
def test_no_name_breaks_out_of_its_label(names: list[str]) -> None:
    check_lines(mermaid(made_of(names)))


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node here")
@pytest.mark.skipif(not (NODE_MODULES / "mermaid").exists(), reason=f"mermaid is not installed in {NODE_MODULES}")
def test_mermaid_itself_reads_it() -> None:
    command = ["node", "--input-type=module", "-e", CHECK, str(NODE_MODULES)]
    done = subprocess.run(
        command, input=json.dumps(documents()), capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.stdout, done.returncode) == ("valid\n", 0), done.stderr


def test_the_same_edge_is_drawn_once() -> None:
    made: Any = made_of(["a", "a"])
    assert made.edges == [Edge("agent:a", "trigger:a", "asks", "a")]
