"""The callout: principals log in by tokens of the team, and each may what it may by its own key."""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import httpx2
import jwt
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from natterjack import (
    Bus,
    ConfigError,
    ConnectError,
    CredentialsError,
    Message,
    Permissions,
    RefusedError,
    Server,
    Team,
    Tokens,
    agent_rights,
    codec,
    connect,
    permissions,
)
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.runtime import start_agent
from natterjack.subjects import AUDIT, audit
from natterjack.testing import ScriptedAgent, until
from natterjack_http import HttpTrigger
from natterjack_mcp import AuthMiddleware, HasRole, JWTAuth, MCPServer, ToolContext
from natterjack_mcp.http import Address, serve_http
from natterjack_permissions.callout import Callout
from natterjack_permissions.mint import SEAL, SERVICE, SIGNER, Mint
from natterjack_permissions.pushes import push
from natterjack_permissions.sealed import CurveKey, new_seed
from natterjack_permissions.star import star
from natterjack_permissions.testing import secured_broker

SECRET = "a secret of thirty-two bytes, or more"
TOKENS = Tokens(secret=SECRET, audience="team")
GRANTED = {
    "ann": Permissions(("agents.ask.bob",), ("_INBOX.ann.>",)),
    "bob": Permissions(("events.x",), ("_INBOX.bob.>",), ("agents.ask.bob",)),
}


class Door:
    """A broker that takes tokens, where a callout service runs."""

    def __init__(self, folder: Path, login: Server) -> None:
        self.folder, self.login = folder, login

    def by(self, token: str, patience: float = 300.0) -> Server:
        return Server(self.login.url, token=token, prefix=Server.SECURED_PREFIX, patience=patience)

    @asynccontextmanager
    async def joined(self, who: str, server: Server | None = None) -> AsyncIterator[Bus]:
        bus = await Bus.connect(server or self.by(TOKENS.mint(who)), principal=who)
        try:
            yield bus
        finally:
            await bus.close()

    @asynccontextmanager
    async def callout(self) -> AsyncIterator[Callout]:
        service = Callout(self.folder, TOKENS)
        await service.start(self.login.url)
        try:
            yield service
        finally:
            await service.stop()


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("door")
    with secured_broker(GRANTED, folder, operator_mode=True, by_token=GRANTED) as (_, login):
        yield Door(folder, login)


async def test_who_shows_a_token_may_what_its_key_may_and_is_known(door: Door) -> None:
    askers: list[str] = []
    async with door.callout(), door.joined("ann") as ann, door.joined("bob") as bob:

        async def answer(message: Message) -> None:
            askers.append(bob.envelope_of(message).source)
            await bob.publish(message.reply, b"hello")

        await bob.subscribe("agents.ask.bob", answer)
        forged = {"Nats-Request-Info": '{"acc": "P-operator", "name_tag": "operator"}', "Natterjack": "s=operator"}
        assert (await ann.request("agents.ask.bob", b"?", timeout=5, headers=forged)).data == b"hello"
        async with door.joined("ann", door.login) as keyed:
            await keyed.request("agents.ask.bob", b"?", timeout=5)
        assert askers == ["ann", "ann"]
        for bus, subject in (
            (ann, "events.x"),
            (bob, "agents.ask.ann"),
            (bob, "events.y"),
            (bob, "$SYS.REQ.USER.AUTH"),
        ):
            with pytest.raises(RefusedError):
                await bus.request(subject, b"", timeout=5)
        async with door.joined("ann", replace(door.by(TOKENS.mint("ann")), prefix="$JS.API")) as misled:
            with pytest.raises(RefusedError, match=r"'\$JS.API.INFO'. .* set NATS_PREFIX=CORE.API"):
                await misled.api("INFO", timeout=5)


@pytest.mark.parametrize(
    ("who", "token", "why"),
    [
        *(
            (who, TOKENS.mint(who), f"{who!r} is not let in by a token")
            for who in ("operator", "core", "sys", "../P-ann", "nobody")
        ),
        ("ann", Tokens(secret=SECRET[::-1], audience="team").mint("ann"), "its signature does not fit the key"),
        ("ann", Tokens(secret=SECRET, audience="other").mint("ann"), "it is for another audience"),
        ("ann", "garbage", "it is malformed"),
        ("ann", "or.gar.bage", "it is malformed"),
        ("ann", jwt.encode({"sub": "ann", "aud": "team", "exp": 2**70}, SECRET), "its claim `exp` is no time"),
    ],
)
async def test_who_shows_another_one_is_kept_out(
    door: Door, caplog: pytest.LogCaptureFixture, who: str, token: str, why: str
) -> None:
    async with door.callout():
        with pytest.raises(CredentialsError, match=r"refuses these credentials .*Put another token into NATS_TOKEN"):
            await Bus.connect(door.by(token), principal=who)
    (told,) = (record.message for record in caplog.records if record.name == "natterjack.callout")
    assert told.startswith(f"refused  'natterjack {who}' from 127.0.0.1")
    assert why in told
    assert token not in caplog.text


@pytest.mark.parametrize("kept", ["in the environment", "in a file"])
async def test_whose_token_is_for_another_is_told_before_it_connects(door: Door, tmp_path: Path, kept: str) -> None:
    token, where = TOKENS.mint("bob"), "NATS_TOKEN"
    if kept == "in a file":
        (tmp_path / "token").write_text(f"{token}\n")
        token, where = f"file:{tmp_path / 'token'}", str(tmp_path / "token")
    for who, todo in (("operator", "add --as bob"), ("ann", "put one of `natterjack token mint ann` there")):
        told = f"the token in {where} is for 'bob', and this acts as {who!r}: {todo}"
        with pytest.raises(ConfigError, match=f"^{re.escape(told)}$"):
            await Bus.connect(door.by(token), principal=who)


@pytest.mark.parametrize("size", [5_000, 20_000])
async def test_a_token_that_is_longer_than_a_login_is_told_as_that(door: Door, size: int) -> None:
    told = rf"refuses these credentials \({size:,} characters of token are more .*Put another token into NATS_TOKEN"
    with pytest.raises(CredentialsError, match=told):
        await Bus.connect(door.by("x" * size), principal="ann")


async def test_what_a_client_calls_itself_is_no_line_of_the_log(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    forged = "x\n23:59:59 INFO let in  operator from 10.0.0.1"
    async with door.callout():
        with pytest.raises(CredentialsError):
            await Bus.connect(door.by("garbage"), principal=forged)
    (told,) = (record.message for record in caplog.records if record.name == "natterjack.callout")
    assert told.startswith(f"refused  {'natterjack ' + forged!r} from 127.0.0.1: the token is not valid")


async def test_what_nobody_thought_of_is_refused_too(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    async with door.callout() as service:
        monkeypatch.setattr(service, "_user", lambda *_: 1 // 0)
        with pytest.raises(CredentialsError, match="refuses these credentials"):
            await Bus.connect(door.by(TOKENS.mint("ann")), principal="ann")


async def test_who_shows_nothing_is_kept_out(door: Door) -> None:
    async with door.callout():
        with pytest.raises(CredentialsError):
            await Bus.connect(Server(door.login.url), principal="ann")


async def test_a_connection_ends_with_its_token_and_goes_on_with_another(door: Door, tmp_path: Path) -> None:
    file = tmp_path / "token"
    again: list[bool] = []
    async with door.callout():
        file.write_text(TOKENS.mint("ann", expires=5))
        async with (
            door.joined("ann", door.by(f"file:{file}")) as ann,
            ann.reconnects(lambda: again.append(True)),
        ):
            await until(lambda: not ann.connected)
            file.write_text(TOKENS.mint("ann"))
            await until(lambda: again)
            await ann.flush()
            assert ann.connected
    assert again == [True]  # by the token that is valid, and not by one that ends at once


async def test_who_has_an_ended_token_is_told(door: Door) -> None:
    async with door.callout():
        token = TOKENS.mint("ann", expires=5)
        async with door.joined("ann", door.by(token, patience=0.5)) as ann:
            assert await until(ann.closed.is_set)
            assert "(user authentication expired). It ended at 20" in ann.reason
            assert "Put another token into NATS_TOKEN, e.g. of `natterjack token mint`" in ann.reason
        with pytest.raises(CredentialsError, match="It ended at 20"):
            await Bus.connect(door.by(token), principal="ann")


async def test_whose_tokens_are_revoked_is_closed_out_at_once(door: Door) -> None:
    old = TOKENS.mint("ann")
    async with door.callout(), door.joined("ann", door.by(old, patience=0.5)) as ann, door.joined("bob") as bob:
        mint = Mint(door.folder)
        mint.revoke("ann")
        mint.write()
        await push(door.login.url, mint)
        assert await until(ann.closed.is_set)
        with pytest.raises(CredentialsError):
            await Bus.connect(door.by(old), principal="ann")
        await bob.flush()
        await until(lambda: time.time() > mint.revoked("ann") + 1)
        async with door.joined("ann") as back:
            await back.flush()


async def test_who_is_known_and_refused_stands_in_the_audit(door: Door) -> None:
    async with door.joined("operator", door.login) as operator, door.callout() as service:
        await provision(operator, Team(), Plugins.load())
        forged = Tokens(secret="b" * 32, audience="team").mint("ann")
        for who, token in (
            ("ann", forged),
            ("operator", TOKENS.mint("operator")),
            ("eve", TOKENS.mint("eve")),
            ("ann", TOKENS.mint("ann", scopes=["read"])),
        ):
            with pytest.raises(ConnectError):
                await Bus.connect(door.by(token, patience=0), principal=who)

        async def written() -> list[tuple[str, str, str]]:
            found = [message async for message in operator.read(AUDIT, audit("callout", "*", "*"))]
            facts = [codec.decode(message.data) for message in found]
            return [(each["who"], each["wanted"], each["reason"].split(": ")[1]) for each in facts]

        refused = [(who, "enter", f"{who!r} is not let in by a token") for who in ("operator", "eve")]
        narrow = "its scopes are for other doors; `natterjack token mint ann --scope nats`, or without scopes"
        async with door.joined("ann", door.by(TOKENS.mint("ann", scopes=["read", "nats"]))) as ann:
            await ann.flush()
        await service.stop()  # what is to be written down is stored then
        assert await written() == [*refused, ("ann", "enter", narrow)]


async def test_without_a_service_nobody_new_comes_in_and_all_others_stay(door: Door) -> None:
    async with door.callout(), door.joined("bob") as bob:
        assert bob.connected
    async with door.callout() as service, door.joined("bob") as bob:
        await service.stop()
        with pytest.raises(ConnectError):
            await Bus.connect(replace(door.by(TOKENS.mint("ann")), patience=0), principal="ann")
        await bob.flush()
        async with door.callout(), door.joined("ann") as ann:
            await ann.flush()


def test_what_a_key_seals_only_the_other_opens() -> None:
    one, other, third = (CurveKey(new_seed()) for _ in range(3))
    sealed = one.seal(b"a token", other.public)
    assert other.open(sealed, one.public) == b"a token"
    for key, sender, data in (
        (third, one, sealed),
        (other, third, sealed),
        (other, one, sealed[:20]),
        (other, one, b""),
    ):
        with pytest.raises(ConfigError, match="not sealed for this key"):
            key.open(data, sender.public)
    with pytest.raises(ConfigError, match="malformed"):
        CurveKey("SXAA")


KIND = "natterjack.testing.agents:ScriptedAgent"


async def test_one_token_is_good_for_nats_for_mcp_and_for_http(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TEAM_KEY", SECRET)
    caplog.set_level("INFO", "natterjack.tools")
    http = {"http": {"listen": "127.0.0.1:0", "key": "env:TEAM_KEY", "audience": "team"}}
    agents = {"researcher": {"kind": KIND, "on": [http]}}
    team = Team.model_validate({"name": "desk", "agents": agents, "users": {"ann": {"asks": ["researcher"]}}})
    plugins = Plugins.load()
    granted = {
        name: permissions(name, rights, attested=True) for name, rights in agent_rights(team.closed(), plugins).items()
    }
    tools = MCPServer("desk")
    tools.middleware = [AuthMiddleware(JWTAuth(SECRET, audience="team"))]

    @tools.tool(guards=[HasRole("reader")])
    async def whoami(ctx: ToolContext) -> str:
        return ctx.caller.name

    token = TOKENS.mint("ann", roles=["reader"])
    with secured_broker(granted, tmp_path, operator_mode=True, by_token=granted) as (_, login):
        door = Door(tmp_path, login)
        async with AsyncExitStack() as stack:
            await provision(await stack.enter_async_context(door.joined("operator", login)), team, plugins)
            await stack.enter_async_context(door.callout())
            host, context = await start_agent("researcher", login, plugins=plugins)
            stack.push_async_callback(context.close)
            stack.push_async_callback(host.stop, 5.0)
            (url,) = (trigger.url for trigger in host._triggers if isinstance(trigger, HttpTrigger))
            serving = asyncio.create_task(serve_http(tools, Address("127.0.0.1", 0)))
            stack.callback(serving.cancel)

            ann = await stack.enter_async_context(connect(door.by(token), name="ann"))
            assert await ann.ask_peer("researcher", "What is new?") == ""

            headers = {"Authorization": f"Bearer {token}"}
            answer = await (await stack.enter_async_context(httpx.AsyncClient(headers=headers))).post(
                f"{url}/ask", json={"question": "What is new?"}
            )
            assert answer.json()["answer"] == ""
            agent = host._agent
            assert isinstance(agent, ScriptedAgent)
            assert [each.caller for each in agent.contexts] == ["ann", "ann"]

            (served,) = await until(lambda: [each for each in caplog.messages if "is served at" in each])
            http_client = await stack.enter_async_context(httpx2.AsyncClient(headers=headers))
            transport = streamable_http_client(served.rpartition(" ")[2], http_client=http_client)
            client = await stack.enter_async_context(Client(transport))
            assert (await client.call_tool("whoami", {})).structured_content == {"result": "ann"}


async def test_its_keys_are_replaced_while_principals_come_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two steps, as there may be services elsewhere: one has only the folder as it is between them."""
    caplog.set_level("INFO", "natterjack.callout")
    monkeypatch.setattr("natterjack_permissions.callout.FOLLOWS", 0.05)
    with secured_broker(GRANTED, tmp_path / "here", operator_mode=True, by_token=GRANTED) as (_, login):
        door = Door(tmp_path / "here", login)

        async def rotate() -> list[str]:
            mint = Mint(door.folder)
            mint.team(star(GRANTED), ["callout"], str(door.folder / "resolver"), GRANTED)
            mint.write()
            return (await push(login.url, mint))[1]

        async def come() -> None:
            for who in GRANTED:
                async with door.joined(who) as bus:
                    await bus.flush()

        before = {file: (door.folder / file).read_bytes() for file in (SIGNER, SEAL, SERVICE)}
        async with door.callout(), door.joined("ann") as ann:
            assert await rotate() == ["CALLOUT", "P-ann", "P-bob"]
            await come()
            await until(lambda: "goes by the next credentials" in caplog.messages)
            shutil.copytree(door.folder, tmp_path / "there")
            assert await rotate() == ["CALLOUT", "P-ann", "P-bob"]
            await come()
            await until(lambda: ann.connected)
        after = {file: (door.folder / file).read_bytes() for file in (SIGNER, SEAL, SERVICE)}
        assert [file for file in before if before[file] == after[file]] == []
        assert not list((door.folder / "callout/next").iterdir())
        for folder in ("there", "here"):
            async with Door(tmp_path / folder, login).callout():
                await come()
        (tmp_path / "former.creds").write_bytes(before[SERVICE])
        with pytest.raises(ConnectError):
            await Bus.connect(Server(login.url, creds=str(tmp_path / "former.creds")), principal="callout")
