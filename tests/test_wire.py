"""The bus finds messages and their headers as nats-py does, only faster, and writes headers as it does."""

import asyncio
import string
from collections.abc import Awaitable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from natterjack.bus.headers import decode, encode
from natterjack.bus.rawclient import RawParser
from natterjack.errors import PayloadError

NAMES = st.text(string.ascii_letters + string.digits + "-_", min_size=1)
VALUES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n")).map(str.strip)
SPACES = st.sampled_from(["", " ", "\t", "  "])


@given(st.lists(st.tuples(NAMES, SPACES, VALUES, SPACES)))
def test_headers_are_read_as_nats_py_reads_them(headers: list[tuple[str, str, str, str]]) -> None:
    lines = [f"{name}:{before}{value}{after}\r\n" for name, before, value, after in headers]
    read = decode(("NATS/1.0\r\n" + "".join(lines) + "\r\n").encode())
    assert (read or {}) == {name: value for name, _, value, _ in headers}
    assert (read or {}) == Client._parse_header_lines("".join(lines).encode())


@pytest.mark.parametrize(
    "block",
    [
        b"NATS/1.0 503\r\n\r\n",
        b"NATS/1.0 404 No Messages\r\n\r\n",
        b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1016\r\nNats-Last-Stream: 1024\r\n\r\n",
        b"NATS/1.0 409 Message Size Exceeds MaxBytes\r\nNats-Pending-Messages: 1\r\n\r\n",
        b"NATS/1.0\r\nStatus: 503\r\nx:y\r\n\r\n",
        b"NATS/1.0\r\n\r\n",
    ],
)
async def test_a_status_is_read_as_nats_py_reads_it(block: bytes) -> None:
    assert decode(block) == await Client()._process_headers(block)


@given(st.binary())
def test_no_bytes_are_too_bad(raw: bytes) -> None:
    assert all(isinstance(value, str) for value in (decode(b"NATS/1.0" + raw) or {}).values())


@given(st.dictionaries(NAMES, st.text(), max_size=5))
def test_what_is_written_is_one_line_for_each_header(headers: dict[str, str]) -> None:
    block = encode(headers)
    read = decode(block) or {}
    assert set(read) == set(headers)
    for name, value in headers.items():
        if value.isprintable():
            assert read[name] == value.strip()
    assert block.count(b"\r") == block.count(b"\n") == (len(headers) + 2 if headers else 0)


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\r\nb", "é"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(PayloadError, match="cannot be the name of a header"):
        encode({name: "x"})


# What was read from the server

SUBJECTS = st.text(string.ascii_letters + "._$*", min_size=1, max_size=20).map(str.encode)
PAYLOADS = st.one_of(st.binary(max_size=40), st.sampled_from([b"\r\n", b"MSG a 1 5\r\n", b"x" * 5000]))


class Taker:
    """Takes what a parser finds."""

    def __init__(self) -> None:
        self.found: list[tuple[Any, ...]] = []

    def take(self, words: list[bytes], block: bytes, data: bytes) -> Awaitable[None]:
        reply = words[3] if len(words) == (6 if block else 5) else b""
        return self._process_msg(int(words[2]), words[1], reply, data, block)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, block: bytes | None) -> None:
        self.found.append((sid, subject, reply, data, block or b""))

    async def _process_ping(self) -> None:
        self.found.append(("ping",))

    async def _process_pong(self) -> None:
        self.found.append(("pong",))

    async def _process_err(self, error: str) -> None:
        self.found.append(("error", error))

    async def _process_info(self, info: dict[str, Any]) -> None:
        self.found.append(("info", info))


@st.composite
def operations(draw: st.DrawFn) -> bytes:
    """One operation of the server, as bytes."""
    plain = [b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'Permissions Violation'\r\n", b'INFO {"a":1}\r\n']
    kind = draw(st.sampled_from(["MSG", "HMSG", "other"]))
    if kind == "other":
        return draw(st.sampled_from(plain))
    subject, reply, data = draw(SUBJECTS), draw(st.one_of(st.just(b""), SUBJECTS)), draw(PAYLOADS)
    to = b"%s %d %s" % (subject, draw(st.integers(1, 99)), reply + b" " if reply else b"")
    if kind == "MSG":
        return b"MSG %s%d\r\n%s\r\n" % (to, len(data), data)
    block = encode(draw(st.dictionaries(NAMES, VALUES, min_size=1, max_size=3)))
    return b"HMSG %s%d %d\r\n%s%s\r\n" % (to, len(block), len(block) + len(data), block, data)


@given(st.lists(operations(), max_size=8), st.lists(st.integers(1, 300), min_size=1))
def test_messages_are_found_as_nats_py_finds_them(sent: list[bytes], cuts: list[int]) -> None:
    """However what was sent is cut into pieces."""

    async def parse(parser: Parser) -> None:
        rest, number = b"".join(sent), 0
        while rest:
            size = cuts[number % len(cuts)]
            await parser.parse(rest[:size])
            rest, number = rest[size:], number + 1

    ours, theirs = Taker(), Taker()
    asyncio.run(parse(RawParser(ours)))
    asyncio.run(parse(Parser(theirs)))
    assert ours.found == theirs.found


@pytest.mark.parametrize("line", [b"MSG a 1 x\r\n", b"MSG\r\n", b"junk\r\n", b"\r\n"])
async def test_what_is_no_operation_ends_the_connection(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        await RawParser(Taker()).parse(line)


async def test_a_new_connection_begins_anew() -> None:
    taker = Taker()
    parser = RawParser(taker)
    await parser.parse(b"MSG a 1 100\r\ncut off")
    parser.reset()
    await parser.parse(b"PING\r\n")
    assert taker.found == [("ping",)]
