"""The team: its models, its rules and warnings, the checks on it, and reading it from a file."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from natterjack.cli.advice import warnings
from natterjack.components import Agent, Entry, Journal, PeerScheme, Trigger, TriggerContext
from natterjack.errors import ConfigError, NatterjackError, PluginError
from natterjack.messages import Answer
from natterjack.plugins import Plugins
from natterjack.rights import Rule
from natterjack.settings import Settings
from natterjack.specs import ConsumerSpec
from natterjack.team.check import check_team, make_trigger, trigger_settings
from natterjack.team.file import MAX_BYTES, key_lines, read_team, team_schema
from natterjack.team.model import AgentSpec, Team
from natterjack.team.triggers import TriggerSpec
from natterjack.team.values import plain
from natterjack.toolserver import ToolServer, ToolServerContext

NEWSROOM = """\
[team]
name = "newsroom"
external = ["research.start"]      # from outside

[context]
project = "report"

[agents.researcher]
kind = "llm"
model = "openai:small"
instructions = '''
[agents.fake]
kind = 3
'''
on = ["research.start"]
emits = ["research.*"]
result_event = "research.complete"
asks = ["writer"]
writes = ["findings", "sources"]

[agents.writer]
kind = "my_package.agents:Writer"
on = ["research.complete", { message = "reports.*" }, { cron = "0 7 * * *" }, { tick = { every = 2 } }]
publishes = "reports.done"
journal = "file"
style = { tone = "dry", since = 2020-01-31 }
"""


class EventTrigger(Trigger):
    """Fires for events."""

    config: Any
    name: ClassVar[str] = "event"

    class Config(Settings):
        event_type: str

    @property
    def label(self) -> str:
        return str(self.config.event_type).replace(".", "-")

    def consumers(self, agent: str) -> list[ConsumerSpec]:
        return [ConsumerSpec("EVENTS", f"{agent}={self.label}", f"stored.events.*.{self.config.event_type}")]

    async def run(self, ctx: TriggerContext) -> None:
        raise NotImplementedError


class MessageTrigger(EventTrigger):
    """Fires for messages."""

    name: ClassVar[str] = "message"

    class Config(Settings):
        topic: str

    @property
    def label(self) -> str:
        return "message"

    def consumers(self, agent: str) -> list[ConsumerSpec]:
        return []


class Tick(MessageTrigger):
    """A stranger's trigger: its model ignores keys that it does not know."""

    name: ClassVar[str] = "tick"

    class Config(BaseModel):
        every: float = Field(gt=0)

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        if self.config.every > 3600:
            raise ZeroDivisionError("too slow")


class Cron(MessageTrigger):
    """Fires by the clock."""

    name: ClassVar[str] = "cron"

    class Config(Settings):
        when: str


class Now(MessageTrigger):
    """Fires once."""

    name: ClassVar[str] = "now"

    class Config(Settings):
        pass


class Secret(Settings):
    """Settings with a secret."""

    model_config = ConfigDict(hide_input_in_errors=True)

    key: Annotated[str, Field(pattern="^env:")]
    size: int = 0


class Vault(Agent):
    """Keeps a secret."""

    name: ClassVar[str] = "vault"

    class Config(Secret):
        """Of a vault."""


class Safe(MessageTrigger):
    """Keeps a secret, too."""

    name: ClassVar[str] = "safe"

    class Config(Secret):
        """Of a safe."""


class Llm(Agent):
    """Works with a model."""

    name: ClassVar[str] = "llm"

    class Config(BaseModel):
        model: str
        instructions: str = ""
        skills: list[str] = []
        top_k: int = Field(1, alias="k")


class FileJournal(Journal):
    """Keeps nothing."""

    async def write(self, entry: Entry) -> None:
        raise NotImplementedError


class Echo(ToolServer):
    """Serves nothing."""

    name: ClassVar[str] = "echo"

    class Config(BaseModel):
        port: int = 1

    async def serve(self, ctx: ToolServerContext) -> None:
        raise NotImplementedError


class Http(PeerScheme):
    """Asks nobody."""

    async def ask(self, address: str, question: str, timeout: float) -> Answer:
        raise NotImplementedError


class Installed(Plugins):
    """Some components, without the built-in ones."""

    def __init__(self) -> None:
        super().__init__()
        self.agents["llm"] = Llm
        self.agents["vault"] = Vault
        self.triggers.update({kind.name: kind for kind in (EventTrigger, MessageTrigger, Tick, Cron, Now, Safe)})
        self.journals["file"] = FileJournal
        self.peers["http"] = Http


Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write `team.toml` into the current folder and return its path."""
    monkeypatch.chdir(tmp_path)

    def written(text: str) -> Path:
        path = Path("team.toml")
        path.write_text(text, encoding="utf-8")
        return path

    return written


def problems(write: Write, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_team(write(text))
    return str(caught.value).splitlines()


def check_problems(team: Team, kind: type[NatterjackError] = ConfigError) -> list[str]:
    with pytest.raises(kind) as caught:
        check_team(team, Installed())
    return str(caught.value).splitlines()


# The models


def test_file_becomes_a_team(write: Write) -> None:
    team = read_team(write(NEWSROOM))
    assert (team.name, team.external, team.context) == ("newsroom", ("research.start",), {"project": "report"})
    researcher, writer = team.agents["researcher"], team.agents["writer"]
    assert researcher.options == {"model": "openai:small", "instructions": "[agents.fake]\nkind = 3\n"}
    assert (researcher.result_event, researcher.publishes, researcher.writes) == (
        *("research.complete", None),
        ("findings", "sources"),
    )
    assert (writer.publishes, writer.journal, writer.imported) == (("reports.done",), ("file",), True)
    assert writer.options == {"style": {"tone": "dry", "since": "2020-01-31"}}
    assert [(trigger.kind, trigger.settings) for trigger in writer.on] == [
        ("event", {"event_type": "research.complete"}),
        ("message", {"topic": "reports.*"}),
        ("cron", {"": "0 7 * * *"}),
        ("tick", {"every": 2}),
    ]
    check_team(team, Installed())


def test_team_comes_back_from_json_as_it_was(write: Write) -> None:
    team = read_team(write(NEWSROOM))
    again = Team.model_validate_json(team.model_dump_json())
    assert again == team
    assert again.model_dump_json() == team.model_dump_json()
    assert "team.toml" not in team.model_dump_json()


def test_team_file_with_options_named_as_in_json(write: Write) -> None:
    team = read_team(write('[agents.a]\nkind = "llm"\nk = 2\n[agents.a.options]\nmodel = "m"\n'))
    assert team.agents["a"].options == {"model": "m", "k": 2}


def test_agent_from_python() -> None:
    spec = AgentSpec.model_validate({"kind": "llm", "on": "a.b", "servers": {"tools": Cron.Config(when="now")}})
    assert spec.on == (TriggerSpec(kind="event", settings={"event_type": "a.b"}),)
    assert spec.options == {"servers": {"tools": {"when": "now"}}}
    assert AgentSpec(kind="llm", on=spec.on) == AgentSpec(kind="llm", on=(spec.on[0],))


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**64, -(2**63) - 1, b"x", {1: 2}, object()])
def test_value_that_json_cannot_hold(value: object) -> None:
    with pytest.raises(ValueError, match=r"JSON|no text"):
        plain({"a": [value]})


def test_value_too_deep() -> None:
    deep: Any = 1
    for _ in range(1000):
        deep = [deep]
    with pytest.raises(ValidationError, match="64 levels"):
        AgentSpec(kind="llm", options={"a": deep})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab.\n", max_size=2), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(options=st.dictionaries(st.text("abc_", min_size=1), json_values, max_size=4), lone=json_values)
def test_any_options_come_back(options: dict[str, Any], lone: Any) -> None:
    spec = AgentSpec.model_validate({"kind": "llm", "on": [{"cron": lone}], **options})
    assert AgentSpec.model_validate_json(spec.model_dump_json()) == spec
    assert json.loads(spec.model_dump_json())["options"] == spec.options


# Rules and warnings


def test_rules_say_where_they_are_written(write: Write) -> None:
    rules = read_team(write(NEWSROOM)).rules()
    assert rules[:5] == [
        Rule("researcher", "emit", "research.*", "team.toml:16"),
        Rule("researcher", "ask", "writer", "team.toml:18"),
        Rule("researcher", "write", "findings", "team.toml:19"),
        Rule("researcher", "write", "sources", "team.toml:19"),
        Rule("writer", "publish", "reports.done", "team.toml:24"),
    ]
    assert {(rule.principal, rule.verb, rule.pattern) for rule in rules[5:]} == {
        ("operator", verb, ">") for verb in ("emit", "replay", "publish", "ask", "write")
    }


def test_rules_of_a_team_from_python_have_no_origin() -> None:
    team = Team(agents={"a": AgentSpec(kind="llm", writes=("x",))})
    assert team.rules()[0] == Rule("a", "write", "x", "")
    assert team.place("a", "writes") == "[agents.a]"


def test_governed(write: Write) -> None:
    assert read_team(write(NEWSROOM)).governed() == {
        ("*", "write"),
        ("researcher", "emit"),
        ("researcher", "ask"),
        ("writer", "publish"),
    }
    assert Team(agents={"a": AgentSpec(kind="llm")}).governed() == frozenset()
    reader = Team(agents={"a": AgentSpec(kind="llm", reads=("x",))})
    assert reader.governed() == frozenset()  # contexts see to it: nobody needs a guard for that
    assert reader.reading() == [Rule("a", "read", "x"), Rule("operator", "read", ">")]
    assert Team(agents={"a": AgentSpec(kind="llm", emits=(), writes=())}).governed() == {("a", "emit"), ("*", "write")}


def test_sound_team_has_no_warnings(write: Write) -> None:
    assert warnings(read_team(write(NEWSROOM))) == []


@pytest.mark.parametrize(
    ("lines", "warning"),
    [
        (
            ['on = ["research.complet"]', 'emits = ["research.complete"]'],
            "team.toml:3: [agents.a] waits for 'research.complet', which nobody in the team emits. Did you mean"
            " 'research.complete'? If it comes from outside, add it to `external` of [team].",
        ),
        (
            ['waits = ["payment.recieved"]', 'emits = ["payment.received"]'],
            "team.toml:3: [agents.a] waits for 'payment.recieved', which nobody in the team emits. Did you mean"
            " 'payment.received'? If it comes from outside, add it to `external` of [team].",
        ),
        (['emits = ["x.*"]'], "team.toml:3: [agents.a] emits 'x.*', which no agent of the team waits for"),
        (['result_event = "x"'], "team.toml:3: [agents.a] emits 'x', which no agent of the team waits for"),
        (
            ['on = ["x.*"]', 'result_event = "x.y"'],
            "team.toml:3: [agents.a] waits for 'x.*' and emits 'x.y' itself: that may never end",
        ),
        (
            ['on = ["x.*", "x.y"]'],
            "team.toml:3: [agents.a] waits for both 'x.*' and 'x.y': an event that both match is handled twice",
        ),
    ],
)
def test_warnings(write: Write, lines: list[str], warning: str) -> None:
    team = read_team(write("\n".join(["[agents.a]", 'kind = "m:C"', *lines])))
    assert warning in warnings(team)


def test_what_humans_are_asked_and_answer_is_no_warning() -> None:
    shop = AgentSpec(kind="m:C", emits=(), waits=("approval.answered",))
    assert warnings(Team(agents={"shop": shop})) == []


def test_warnings_of_a_large_team_are_quick() -> None:
    agents = {
        f"a{i}": AgentSpec(kind="m:C", on=(TriggerSpec.model_validate(f"e.{i}"),), emits=(f"e.{i + 1}",))
        for i in range(3000)
    }
    begin = time.perf_counter()
    assert len(warnings(Team(agents=agents))) == 2
    assert time.perf_counter() - begin < 5


# Checks against what is installed


def agent(**table: Any) -> Team:
    return Team(agents={"a": AgentSpec.model_validate({"kind": "m:C", **table}), "writer": AgentSpec(kind="m:C")})


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"kind": "llm"}, "'model' is missing"),
        ({"kind": "llm", "model": 3}, "'model' is 3: it must be text"),
        ({"kind": "llm", "modle": "m", "model": "m"}, "unknown key 'modle'. Did you mean 'model'?"),
        ({"kind": "llm", "emit": "x", "model": "m"}, "unknown key 'emit'. Did you mean 'emits'?"),
        ({"kind": "llm", "model": "m", "skills": [1]}, "'skills[0]' is 1: it must be text"),
        ({"asks": ["writter"]}, "'writter' is no agent of the team. Did you mean 'writer'?"),
        (
            {"cross_agents": {"x": "agents://echo/alice"}},
            "'agents://echo/alice' is no valid address: write it like agents://<agent>/<owner>/<session>, "
            "as `natterjack agents` lists it.",
        ),
        ({"cross_agents": {"x": "writr"}}, "'writr' is no agent of the team. Did you mean 'writer'?"),
        (
            {"result_event": "a.b", "emits": ["a.c"]},
            "the result_event 'a.b' is not among what it emits; add it to `emits`",
        ),
        ({"on": ["x.y", "x.y"]}, "the trigger 'event' is there twice with the same settings; remove one"),
        ({"on": ["x.y", "x-y"]}, "two triggers need one durable consumer, 'a=x-y'; write them as one"),
        ({"on": [{"now": 3}]}, "the trigger 'now' takes no settings; write { now = {} }"),
        (
            {"on": [{"event": {"evnt_type": "x"}}]},
            "the trigger 'event' has no setting 'evnt_type'. Did you mean 'event_type'?",
        ),
        (
            {"on": [{"tick": {"every": 1, "evry": 2}}]},
            "the trigger 'tick' has no setting 'evry'. Did you mean 'every'?",
        ),
        ({"on": [{"tick": 0}]}, "tick: 'every' is 0: Input should be greater than 0"),
        ({"on": [{"tick": {}}]}, "tick: 'every' is missing"),
    ],
)  # fmt: skip
def test_what_is_written_wrongly(table: dict[str, Any], problem: str) -> None:
    assert check_problems(agent(**table)) == [f"[agents.a] {problem}"]


@pytest.mark.parametrize(
    "table",
    [
        {"kind": "vault", "key": {"hunter2": 7}},
        {"kind": "vault", "key": "hunter2"},
        {"kind": "vault", "key": "env:x", "size": "hunter2"},
        {"on": [{"safe": {"key": ["hunter2"]}}]},
        {"on": [{"safe": {"key": "hunter2"}}]},
        {"on": [{"safe": "hunter2"}]},
    ],
)
def test_settings_that_hide_their_values_are_not_shown(table: dict[str, Any]) -> None:
    (problem,) = check_problems(agent(**table))
    assert "hunter2" not in problem
    assert re.search("key|size", problem)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"kind": "lln"}, "no installed plugin brings the kind of agent 'lln'. Did you mean 'llm'?"),
        ({"on": [{"tik": 1}]}, "no installed plugin brings the trigger 'tik'. Did you mean 'tick'?"),
        ({"journal": "fil"}, "no installed plugin brings the journal 'fil'. Did you mean 'file'?"),
        (
            {"cross_agents": {"x": "htp://host"}},
            "no installed plugin brings the address scheme 'htp'. Did you mean 'http'?",
        ),
        ({"on": [{"tick": 7200}]}, "the trigger 'tick' cannot be made: ZeroDivisionError: too slow"),
    ],
)
def test_what_is_not_installed(table: dict[str, Any], problem: str) -> None:
    assert check_problems(agent(**table), PluginError) == [f"[agents.a] {problem}"]


@pytest.mark.parametrize(
    "table",
    [
        {"on": [{"now": {}}, "x", "y.*"]},
        {"kind": "llm", "model": "m", "k": 3},
        {"cross_agents": {"x": "writer", "y": "nats://host", "z": "http://host"}, "asks": ["x", "a", "writer"]},
        {"cross_agents": {"x": "agents://echo/alice/main"}, "asks": ["x"]},
        {"result_event": "a.b", "emits": ["a.*"]},
        {"anything": "for a class"},
    ],
)
def test_what_is_right(table: dict[str, Any]) -> None:
    team = agent(**table)
    check_team(team, Installed())
    assert team.agents["a"].kind


def test_all_problems_are_told_with_their_lines(write: Write) -> None:
    text = '[agents.a]\nkind = "llm"\nmodle = "m"\nreplicas = 2\nasks = ["b"]\non = [{ tik = 1 }]\n[tools.t]\nx = 1\n'
    assert check_problems(read_team(write(text))) == [
        "team.toml:3: [agents.a] unknown key 'modle'. Did you mean 'model'?",
        "team.toml:1: [agents.a] 'model' is missing",
        "team.toml:6: [agents.a] no installed plugin brings the trigger 'tik'. Did you mean 'tick'?",
        "team.toml:5: [agents.a] 'b' is no agent of the team.",
        "team.toml:7: [tools.t] no installed plugin brings the tool server 'mcp'. Perhaps a plugin does: `natterjack"
        " install natterjack-mcp`.",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "[tools.a]\nkind = 'echo'",
            "team.toml:4: [tools.a] the team has an agent 'a', too; give one of them another name",
        ),
        ("[tools.t]\nkind = 'ecko'", "no installed plugin brings the tool server 'ecko'. Did you mean 'echo'?"),
        ("[tools.t]\nkind = 'echo'\nprot = 1", "team.toml:6: [tools.t] unknown key 'prot'. Did you mean 'port'?"),
        ("[tools.t]\nkind = 'echo'\nport = 'x'", "team.toml:6: [tools.t] 'port' is 'x'"),
        (
            "[tools.t]\nkind = 'echo'\nroles = { say = ['wrter'] }",
            "'wrter' is no agent or user, or role of one, of the team.",
        ),
        ("[tools.t]\nkind = 'echo'\nreplicas = 0", "team.toml:6: [tools.t] 'replicas' is 0"),
        ("[tools.tt]\nkind = 'echo'", "team.toml:3: [agents.a] 't' is no tool server of the team. Did you mean 'tt'?"),
    ],
)
def test_what_is_wrong_with_tool_servers(write: Write, text: str, problem: str) -> None:
    plugins = Plugins.load()
    plugins.tool_servers["echo"] = Echo
    with pytest.raises(NatterjackError) as caught:
        check_team(read_team(write(f"[agents.a]\nkind = 'm:A'\ntools = 't'\n{text}\n")), plugins)
    assert problem in str(caught.value)


def test_who_may_call_which_tool() -> None:
    agents = {name: {"kind": "m:A", "tools": ["t", "u"]} for name in ("ann", "ben")}
    agents["eve"] = {"kind": "m:A", "tools": "t", "roles": ["writer", "editor"]}
    tools = {"t": {"kind": "echo", "roles": {"say": ["ann", "editor"], "shout": ["ann"]}}, "u": {"kind": "echo"}}
    team = Team.model_validate({"agents": agents, "tools": tools})
    called = {name: [right.what for right in team.calls(name)] for name in agents}
    assert called == {"ann": ["t/say", "t/shout", "u/*"], "ben": ["u/*"], "eve": ["t/say"]}
    assert team.roles_of("ann") == {"ann"}
    assert team.roles_of("eve") == {"writer", "editor"}
    assert team.roles_of("nobody") == frozenset()
    assert team.tools["u"].admits("anything", "nobody", ())
    assert not team.tools["t"].admits("whisper", "ann", ())


def test_pattern_whose_durable_consumer_would_have_too_long_a_name(write: Write) -> None:
    most = 255 - len("a=event-")
    for length, wild in ((most, ""), (most - 2, ".*"), (most - 3, ".>")):  # `>` becomes two characters
        check_team(read_team(write(f"[agents.a]\nkind = 'm:A'\non = '{'x' * length}{wild}'")), Plugins.load())
        team = read_team(write(f"[agents.a]\nkind = 'm:A'\non = '{'x' * (length + 1)}{wild}'"))
        with pytest.raises(
            ConfigError, match=r"^team\.toml:3: \[agents\.a\] 'a=event-x.* it has 256 characters of at most 255"
        ):
            check_team(team, Plugins.load())


def test_problems_that_plugins_tell() -> None:
    with pytest.raises(PluginError, match=r"\[agents\.a\] .*'lln'"):
        check_team(Team(agents={"a": AgentSpec(kind="lln")}), Plugins())


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("on = [{ inbox = {} }]", "two triggers need one durable consumer, 'a=inbox'; write them as one"),
        ("on = ['x.*', { mesage = 'y' }]", "no installed plugin brings the trigger 'mesage'. Did you mean 'message'?"),
        ("on = [{ event = { event_type = 'x', y = 1 } }]", "the trigger 'event' has no setting 'y'."),
        ("journal = 'fil'", "no installed plugin brings the journal 'fil'. Did you mean 'file'?"),
        ("journal = 'file'", ""),
        ("reads = ['x', 'y.*']", ""),
        ("writes = ['fin/x']", "'fin/x' is in no bucket of the team. A table [buckets.fin] makes one."),
        ("on = ['x.*', { message = 'y.>' }]\njournal = 'stream'", ""),
    ],
)
def test_check_against_the_built_in_components(write: Write, line: str, problem: str) -> None:
    team, plugins = read_team(write(f"[agents.a]\nkind = 'm:C'\n{line}\n")), Plugins.load()
    try:
        check_team(team, plugins)
        found = ""
    except (ConfigError, PluginError) as error:
        found = str(error)
    assert found == (problem and f"team.toml:3: [agents.a] {problem}")


def test_trigger_settings() -> None:
    assert trigger_settings(Tick, TriggerSpec.model_validate({"tick": 2})) == {"every": 2}
    assert trigger_settings(Tick, TriggerSpec.model_validate({"tick": {"every": 2}})) == {"every": 2}
    assert trigger_settings(EventTrigger, TriggerSpec.model_validate("a.b")) == {"event_type": "a.b"}
    made = make_trigger(Cron, TriggerSpec.model_validate({"cron": "x"}))
    assert isinstance(made, Cron)
    assert made.config.when == "x"


# Reading a file


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("agents = 3", "team.toml:1: 'agents' is 3: it must be a table"),
        ("", "team.toml: there are no agents; add a table [agents.NAME] with the `kind` of one"),
        ("[agents]\n", "team.toml:1: there are no agents; add a table [agents.NAME] with the `kind` of one"),
        ("[agents]\na = 3", "team.toml:2: 'agents.a' is 3: it must be a table"),
        ("[agents.a]\n", "team.toml:1: [agents.a] 'kind' is missing"),
        ('\n[[agents]]\nkind = "x"', "team.toml:2: 'agents' is [{'kind': 'x'}]: it must be a table"),
        ("[agents.a]\nkind = [", "team.toml:2: not valid TOML: Invalid value"),
        ("a = 1\na = 2", "team.toml:2: not valid TOML: Cannot overwrite a value"),
        ("a =\n", "team.toml:1: not valid TOML: Invalid value (column 4)"),
        ("a = " + "1" * 5000, "team.toml: not valid TOML: Exceeds the limit (4300 digits)"),
        ("a = " + "[" * 1000 + "]" * 1000, "team.toml: nests too deeply to be read; write it flatter"),
        ("\n[agents." + "a." * 1000 + "b]", "team.toml:2: a key of more than 64 parts; write it flatter"),
        ("[context]\na = " + "[" * 70 + "]" * 70, "team.toml:2: [context.a] nests deeper than 64 levels"),
        ("x" * (MAX_BYTES + 1), "team.toml is larger than 1,000,000 bytes; move long texts into files of their own"),
    ],
)  # fmt: skip
def test_file_that_is_no_team(write: Write, text: str, problem: str) -> None:
    (found,) = problems(write, text)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("emit = []", "unknown key 'emit'. Did you mean 'emits'?"),
        ("result_evens = {}", "unknown key 'result_evens'. Did you mean 'result_events'?"),
        ("replica = 2", "unknown key 'replica'. Did you mean 'replicas'?"),
        ("replicas = 0", "'replicas' is 0: it must be greater than or equal to 1"),
        ("replicas = true", "'replicas' is True: it must be a valid integer"),
        ("replicas = 1.0", "'replicas' is 1.0: it must be a valid integer"),
        ('concurrency = "4"', "'concurrency' is '4': it must be a valid integer"),
        ("max_attempts = 99999999999999999999", "'max_attempts' is 99999999999999999999: it must be less than or"),
        ("timeout = nan", "'timeout' is nan: it must be a finite number"),
        ("timeout = true", "'timeout' is True: it must be a valid number"),
        ("retry_delay = 0", "'retry_delay' is 0: it must be greater than 0"),
        ("emits = [3]", "'emits[0]' is 3: it must be text"),
        ('emits = ["a..b"]', "emits[0]: 'a..b' is no valid pattern: use letters"),
        ("asks = 5", "'asks' is 5: it must be a list"),
        ("asks = ['operator']", "asks[0]: 'operator' is no valid agent name: this name is reserved; choose another."),
        ("result_event = 'a.*'", "result_event: 'a.*' is no valid event type: use letters"),
        ("cross_agents = { x = 1 }", "'cross_agents.x' is 1: it must be text"),
        ("on = 5", "'on' is 5: it must be a list"),
        ("on = ['x', 'a.>.b']", "on[1]: 'a.>.b' is no valid pattern: '>' may only stand last."),
        ("on = [{ event = 5 }]", "on[0]: 5 is no pattern; write text such as \"research.*\""),
        ("on = [{ '' = 5 }]", "on[0].kind: '' is no valid trigger: use lower-case letters"),
        ("on = [{ kind = 'event', setting = 1 }]", "unknown key 'on[0].setting'. Did you mean 'settings'?"),
        ("custom = nan", "custom: nan has no form in JSON; use text"),
        ("custom = [18446744073709551616]", "custom: 18446744073709551616 has no form in JSON; use text"),
        ("options = 3", "'options' is 3: it must be a table"),
    ],
)  # fmt: skip
def test_agent_that_is_wrong(write: Write, line: str, problem: str) -> None:
    text = f'# a comment with "\n[agents.b]\nkind = "x"\n[agents.a]\nkind = "m:C"\n\n{line}\n'
    (found,) = problems(write, text)
    assert found.startswith(f"team.toml:7: [agents.a] {problem}")


@pytest.mark.parametrize("form", ["[]", "5", "{}", "{ a = 1, b = 2 }", "1979-05-27", "nan"])
def test_trigger_that_is_none(write: Write, form: str) -> None:
    (problem,) = problems(write, f'[agents.a]\nkind = "m:C"\non = [{form}]')
    assert problem.startswith("team.toml:3: [agents.a] on[0]: a trigger is an event pattern such as")


@pytest.mark.parametrize("kind", ["Counter", "my.Counter", "m:", ":C", "m:C:D", "m.:C", "", "é ü"])
def test_kind_that_is_none(write: Write, kind: str) -> None:
    (problem,) = problems(write, f'[agents.a]\nkind = "{kind}"')
    assert problem.startswith(f"team.toml:2: [agents.a] kind: {kind!r} is no valid kind")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[agent.a]", "team.toml:3: unknown key 'agent'. Did you mean 'agents'?"),
        ("[team]\nnames = 'x'", "team.toml:4: [team] unknown key 'names'. Did you mean 'name'?"),
        ("[team]\nname = 'Käse'", "team.toml:4: [team] name: 'Käse' is no valid team name: use lower-case letters"),
        ("[team]\nserver = ''", "team.toml:4: [team] 'server' is '': String should have at least 1 character"),
        ("[context]\n'a b' = 1", "team.toml:4: [context] a b: 'a b' is no valid context key: use letters"),
        ("[context]\na = inf", "team.toml:4: [context] a: inf has no form in JSON; use text"),
        ("[agents.'b.c']\nkind = 'llm'", "team.toml:3: agents.b.c: 'b.c' is no valid agent name: use lower-case"),
    ],
)  # fmt: skip
def test_table_that_is_wrong(write: Write, text: str, problem: str) -> None:
    (found,) = problems(write, f'[agents.a]\nkind = "m:C"\n{text}')
    assert found.startswith(problem)


def test_no_more_than_twenty_problems_in_order_of_lines(write: Write) -> None:
    found = problems(write, "[agents.a]\nkind = 'm:C'\n" + "".join(f"emit{i} = 1\n" for i in range(10)))
    assert [line.partition(" ")[0] for line in found] == [f"team.toml:{i}:" for i in range(3, 13)]
    found = problems(write, "".join(f"[agents.a{i}]\n" for i in range(30)))
    assert (len(found), found[-1]) == (20, "… and 11 more")


def test_long_value_is_cut(write: Write) -> None:
    (problem,) = problems(write, f"[agents.a]\nkind = '{'x' * 900_000}'")
    assert len(problem) < 500
    assert problem.startswith("team.toml:2: [agents.a] kind: 'xxx")


def test_windows_line_ends_and_byte_order_mark(write: Write) -> None:
    assert problems(write, "\ufeff[agents.a]\r\nkind='m:C'\r\nreplicas = 0\r\n") == [
        "team.toml:3: [agents.a] 'replicas' is 0: it must be greater than or equal to 1"
    ]


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path, words in [
        (tmp_path / "none.toml", "does not exist"),
        (tmp_path, "is not a file"),
        (Path("a\0b"), "does not exist"),
        (tmp_path / ("x" * 300), "cannot be read"),
    ]:
        with pytest.raises(ConfigError, match=words):
            read_team(path)
    (tmp_path / "latin.toml").write_bytes(b"# one\n# Stra\xdfe\n")
    with pytest.raises(ConfigError, match=r"latin\.toml:2: not UTF-8 \(byte 0xdf\).*natterjack init"):
        read_team(tmp_path / "latin.toml")


def test_schema_is_of_the_file_as_it_is_written() -> None:
    schema = team_schema()
    table = schema["$defs"]["AgentSpec"]
    assert set(schema["properties"]) == {"team", "context", "buckets", "agents", "tools", "users"}
    assert "options" not in table["properties"]
    assert table["additionalProperties"] is True
    assert table["properties"]["replicas"]["maximum"] == 1000
    assert "Failed handlings" in table["properties"]["max_attempts"]["description"]
    jsonschema = pytest.importorskip("jsonschema", reason="comes with other tools, not by itself")
    good = {"agents": {"a": {"kind": "llm", "on": ["x", {"tick": {"every": 1}}], "emits": "x", "model": "m"}}}
    jsonschema.validate(good, schema)
    wrong: list[object] = [{"agents": {"a": {}}}, {"agents": {"a": {"kind": "x", "on": [3]}}}, {"agent": {}}]
    for bad in wrong:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema)


# Whatever is in the file


def toml(value: Any) -> str:
    """A value as TOML; each table is written inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if isinstance(value, date) else repr(value)


words = st.sampled_from(
    [
        "team",
        "agents",
        "tools",
        "context",
        "a",
        "kind",
        "m:C",
        "llm",
        "x.*",
        "event",
        "settings",
        *AgentSpec.model_fields,
    ]
)
texts = words | st.text(st.characters(codec="utf-8"), max_size=8)
leaves = st.booleans() | st.integers() | st.floats() | texts | st.dates()
anything = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)
kinds = st.sampled_from(["m:C", "llm"]) | anything
keys = [key for key in AgentSpec.model_fields if key != "kind"]
agents = st.fixed_dictionaries({"kind": kinds}, optional=dict.fromkeys(keys, anything))
documents = st.dictionaries(texts, anything, max_size=4) | st.fixed_dictionaries(
    {"agents": st.dictionaries(texts, agents | anything, max_size=3)},
    optional={"team": anything, "context": anything, "tools": anything},
)
fuzz = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def read_and_check(path: Path) -> bool:
    """Whether it is a team; whatever it is, nothing but a readable error comes of it."""
    try:
        team = read_team(path)
        assert Team.model_validate_json(team.model_dump_json()) == team
        assert isinstance(warnings(team) + team.rules(), list)
        check_team(team, Installed())
    except (ConfigError, PluginError) as error:
        lines = str(error).splitlines()
        assert 0 < len(lines) <= 20
        assert all(line and len(line) < 500 for line in lines)
        return False
    return True


@given(document=documents)
@example(document={"agents": {"a": {"kind": "m:C", "on": [[]]}}})
@example(document={"agents": {"a": {"kind": "m:C", "options": {"": {"": 1}}}}})
@example(document={"agents": {"a\nb": 3}})
@fuzz
def test_any_document_is_a_team_or_a_clear_error(document: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text(
        "".join(f"{toml(key)} = {toml(value)}\n" for key, value in document.items()), encoding="utf-8", newline=""
    )
    assert read_and_check(path) in (True, False)


@given(data=st.binary(max_size=60) | st.text("a.=[]{}\"'#\\\n, 1", max_size=40).map(str.encode))
@fuzz
def test_any_bytes_are_a_clear_error(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(data)
    assert not read_and_check(tmp_path / "t")


multiline = st.sampled_from(
    [
        '"""\n[x]\na = 1\n"""',
        "'''\n''\"\n'''",
        '"# [x]"',
        "[\n 1, # ]\n 2,\n]",
        '"""a\\"""\n"""""',
        "{ a = '=' }",
        '"\\""',
        "''",
    ]
)
names = st.sampled_from(["a", "b.c", '"x.y"', "' # '", '"\\u00e9"', '"]"', '"[="'])


@given(
    rows=st.lists(
        st.tuples(st.booleans(), names, multiline, st.sampled_from(["", " # [x", "\n\n# a = '"])), max_size=12
    )
)
@fuzz
def test_lines_of_keys(rows: list[tuple[bool, str, str, str]]) -> None:
    text, wanted, table = "", [], "t0"
    for index, (header, name, value, rest) in enumerate(rows):
        wanted.append(text.count("\n") + 1)
        text += f"[t{index}.{name}]{rest}\n" if header else f" k{index}.{name} = {value}{rest}\n"
    lines = key_lines(text)
    found = [
        next(line for path, line in lines.items() if path[-1] == f"{'t' if header else 'k'}{index}")
        for index, (header, *_) in enumerate(rows)
    ]
    assert found == wanted, table
