"""What all commands share: help, errors, exit codes, where the broker is found, and what is printed."""

import io
import json
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import natterjack.errors
from natterjack.cli import options, output
from natterjack.cli.broker import _listen
from natterjack.cli.exits import ExitCode, exit_code
from natterjack.cli.main import app
from natterjack.cli.run import _Clean
from natterjack.cli.up import example_command
from natterjack.errors import (
    BrokerStartError,
    ConflictError,
    CredentialsError,
    DisconnectedError,
    NatterjackError,
    NotProvisionedError,
    PayloadError,
    PluginError,
    RefusedError,
    UnknownAgentError,
)
from natterjack.server import Server
from natterjack.team import Team
from natterjack.testing import NatsServer
from natterjack.testing.command import Cli

COMMANDS = (
    *("init", "doctor", "demo", "bench", "plugins", "up", "provision", "agent", "broker", "token"),
    *("emit", "publish", "ask", "broadcast", "agents", "events", "context", "runs", "journal", "dead"),
)


def test_a_log_has_no_line_that_a_stranger_wrote() -> None:
    told = {"msg": "a message of %s", "args": ("x\n23:59:59 INFO let in  operator\x1b[2J\r",), "levelname": "INFO"}
    first, *further = _Clean("%(levelname)s %(message)s").format(logging.makeLogRecord(told)).split("\n")
    assert first == "INFO a message of x"
    assert further == ["  23:59:59 INFO let in  operator\\x1b[2J\\r"]


def test_help_tells_commands_and_exit_codes() -> None:
    done = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100"})
    assert done.exit_code == 0
    assert all(f"│ {name} " in done.output for name in COMMANDS)
    words = " ".join(done.output.split())
    assert all(f"{code} " in words[words.index("Exit codes:") :] for code in map(int, ExitCode))


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str) -> None:
    done = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "100"})
    assert done.exit_code == 0
    assert "Usage:" in done.output


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["emitt"], "Did you mean 'emit'?"),
        (["context", "gett", "x"], "Did you mean 'get'"),
        (["ask", "greeter"], "Missing argument 'QUESTION'"),
        (["ask", "greeter", "x", "--tiemout", "3"], "No such option: --tiemout"),
        (["ask", "greeter", "x", "--timeout", "0"], "0.001"),
        (["emit", "a.b", "--wait"], "add --to AGENT"),
        (["broker", "run", "--listen", "127.0.0.1:http"], "--listen"),
        (["dead", "show", "one"], "Invalid value for 'NUMBER'"),
    ],
)
def test_wrong_usage(args: list[str], text: str) -> None:
    done = CliRunner().invoke(app, args, env={"COLUMNS": "200"})
    assert done.exit_code == ExitCode.USAGE
    assert text in done.output


def test_version(cli: Cli) -> None:
    assert cli.text("--version").startswith("natterjack 0.")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CredentialsError("no"), 3),
        (DisconnectedError("gone"), 3),
        (BrokerStartError("port"), 3),
        (NotProvisionedError("a team"), 4),
        (UnknownAgentError("t", "a", ["b"]), 4),
        (PayloadError("bad"), 2),
        (PluginError("none"), 2),
        (RefusedError("no"), 1),
        (ConflictError("late"), 1),
    ],
)
def test_exit_code_of_errors(error: NatterjackError, code: int) -> None:
    assert exit_code(error) == code


def test_every_error_has_an_exit_code() -> None:
    kinds = [kind for kind in vars(natterjack.errors).values() if isinstance(kind, type)]
    errors = [kind.__new__(kind) for kind in kinds if issubclass(kind, NatterjackError)]
    assert {exit_code(error) for error in errors} == {1, 2, 3, 4}


# Where the broker is


def test_without_a_broker_it_says_what_to_do(cli: Cli) -> None:
    error = cli.error("agents", code=3)
    assert "natterjack up team.toml" in error
    assert "NATS_URL" in error
    assert list(cli.folder.iterdir()) == []


def test_broker_that_does_not_answer(quick: Cli) -> None:
    assert "no NATS server answers at nats://127.0.0.1:1" in quick.error("agents", "--server", "127.0.0.1:1", code=3)
    quick.env["NATS_URL"] = "nats://127.0.0.1:1"
    assert "The address is from NATS_URL: unset it" in quick.error("agents", code=3)
    del quick.env["NATS_URL"]


def test_names_of_brokers_are_checked(quick: Cli) -> None:
    for url in ("http://x", "nats://x:abc", "nats://x:70000", "nats://:4222", "nats://[x"):
        assert f"{url!r} is no server URL" in quick.error("agents", "--server", url, code=2)
    assert "there is no nats context 'home'" in quick.error("agents", "--nats-context", "home", code=2)


def test_order_of_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = tmp_path / "config" / "nats" / "context"
    contexts.mkdir(parents=True)
    (contexts / "there.json").write_text('{"url": "nats://context:4222"}')
    (tmp_path / "team.toml").write_text('[team]\nserver = "nats://file:4222"\n[agents.a]\nkind = "x:Y"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("NATS_URL", raising=False)
    assert options.find_server(None, None).url == "nats://file:4222"
    monkeypatch.setenv("NATS_URL", "nats://environment:4222")
    assert options.find_server(None, None).url == "nats://environment:4222"
    assert options.find_server(None, "there").url == "nats://context:4222"
    assert options.find_server("nats://option:4222", "there").url == "nats://option:4222"


def test_credentials_that_are_refused(quick: Cli) -> None:
    with NatsServer("authorization { token: right }") as server:
        error = quick.error("agents", "--server", server.url.replace("//", "//wrong@"), code=3)
        assert "refuses these credentials" in error
        assert "wrong" not in error
        assert quick.json("agents", "--server", server.url.replace("//", "//right@")) == []


def test_server_without_a_team(quick: Cli, own_server: NatsServer) -> None:
    quick.env["NATS_URL"] = own_server.url
    for args in (["events", "tail"], ["emit", "a.b"], ["context", "list"], ["journal", "tail"], ["dead", "list"]):
        assert "Run `natterjack provision team.toml` first" in quick.error(*args, code=4)
    assert "nobody serves that name" in quick.error("ask", "greeter", "x", code=1)
    assert "natterjack provision" in quick.error("agent", "run", "greeter", code=4)
    assert "no agent runs" in quick.run("agents").stderr


# Errors


def test_unexpected_error_is_one_line(quick: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        msg = "oh \x1b[31mno"
        raise ZeroDivisionError(msg)

    monkeypatch.setattr("natterjack.cli.plugins.Plugins.load", fail)
    error = quick.error("plugins", "list", code=1)
    assert error.startswith(r"unexpected ZeroDivisionError: oh \x1b[31mno; NATTERJACK_DEBUG=1 shows where")


def test_debug_shows_the_traceback(cli: Cli) -> None:
    command = [sys.executable, "-m", "natterjack", "--debug", "agents"]
    done = subprocess.run(
        command, cwd=cli.folder, env=cli.environment, capture_output=True, text=True, timeout=40, check=False
    )
    assert done.returncode == ExitCode.UNREACHABLE
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: no broker is named")


def test_each_problem_of_a_team_file_is_a_line(quick: Cli) -> None:
    quick.write(team_toml='[agents.a]\nkind = "x:Y"\nonn = []\n[agents.B]\nkind = "x:Y"\n')
    done = quick.run("provision", code=2)
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == ["error", "error"]


def test_reader_that_has_gone_ends_it_quietly(cli: Cli) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "natterjack", "plugins", "list"]
    done = subprocess.run(
        command, cwd=cli.folder, env=cli.environment, stdout=writer, stderr=subprocess.PIPE, timeout=40, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


# Data in and out


def test_data_is_json_or_text() -> None:
    assert options.read_payload('{"a": 1}') == {"a": 1}
    assert options.read_payload("[1") == "[1"
    assert options.read_payload("NaN") == "NaN"
    assert options.read_payload(None) is None
    with pytest.raises(PayloadError, match="not UTF-8"):
        options.read_payload(os.fsdecode(b"\xff"))


def test_data_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    for data, value in ((b"two\nlines\n", "two\nlines"), (b"[1,\n2]\n", [1, 2]), (b"", None)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert options.read_payload("-") == value


def test_strangers_data_cannot_move_the_cursor() -> None:
    assert output.text_of("a\x1b[2Jb\n\tc\r") == "a\\x1b[2Jb\n\tc\\r"
    assert output.one_line({"a": "x\ny"}) == '{"a":"x\\ny"}'
    assert output.text_of(b"\xff") == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_the_terminal(cli: Cli, width: int) -> None:
    main, terminal = pty.openpty()
    command = [sys.executable, "-m", "natterjack", "plugins", "list"]
    environment = {**cli.environment, "COLUMNS": str(width), "TERM": "xterm"}
    with subprocess.Popen(command, cwd=cli.folder, env=environment, stdout=terminal, stderr=terminal) as process:
        assert process.wait(40) == 0
    os.close(terminal)
    lines = os.read(main, 100_000).decode().splitlines()
    os.close(main)
    assert "package" in lines[0]
    assert "─" in lines[1]
    assert all(len(line.replace("\x1b[1m", "").replace("\x1b[0m", "")) <= width for line in lines)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, ("127.0.0.1", None)),
        ("0.0.0.0", ("0.0.0.0", None)),
        (":4300", ("127.0.0.1", 4300)),
        ("localhost:-1", ("localhost", -1)),
        ("[::1]:4300", ("::1", 4300)),
    ],
)
def test_listen(text: str | None, found: tuple[str, int | None]) -> None:
    assert _listen(text) == found


def test_example_command_is_copyable_and_has_no_secret() -> None:
    agents = {"a": {"kind": "x:Y", "on": ["made.inside", "asked.*"], "result_event": "made.inside"}}
    team = Team.model_validate({"agents": agents})
    server = Server("nats://127.0.0.1:4222")
    assert example_command(team, server) == "nats --server nats://127.0.0.1:4222 pub events.asked.example '{}'"
    external = Team.model_validate({"agents": agents, "external": ["visitor.>"]})
    assert "pub events.visitor.example '{}'" in example_command(external, server)
    assert example_command(team, Server("nats://secret@h:1")).startswith('nats --server "$NATS_URL" pub ')
    assert example_command(team, server, "home").startswith("nats --context home pub ")
    assert example_command(Team(), server) == ""
    secured = Server("nats://h:1", keys="keys")
    assert example_command(team, secured) == "natterjack emit asked.example '{}' --server nats://h:1"


def test_the_schema_of_team_files_is_json(quick: Cli) -> None:
    schema = json.loads(quick.text("schema"))
    assert {"team", "agents", "context", "tools"} <= set(schema["properties"])


@pytest.mark.parametrize(("width", "head"), [(40, "name     a"), (80, "name  ")])
def test_a_narrow_terminal_gets_a_block_for_each_row(
    width: int, head: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    columns, cells = ["name", "subject", "cause", "state"], ["a", "b" * 12, "c" * 60, "absent"]
    output._write_rich(columns, [cells, cells])
    told = capsys.readouterr().out
    assert told.startswith(head)
    assert ("c" * 60 in told) is (width == 40), told
