"""The bus reads headers as nats-py does, only faster."""

import string

from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from natterjack.bus.rawclient import RawClient

NAMES = st.text(string.ascii_letters + string.digits + "-_", min_size=1)
VALUES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n")).map(str.strip)
SPACES = st.sampled_from(["", " ", "\t", "  "])


@given(st.lists(st.tuples(NAMES, SPACES, VALUES, SPACES)))
def test_headers_are_read_as_nats_py_reads_them(headers: list[tuple[str, str, str, str]]) -> None:
    lines = [f"{name}:{before}{value}{after}\r\n" for name, before, value, after in headers]
    raw = ("".join(lines) + "\r\n").encode()
    assert RawClient._parse_header_lines(raw) == {name: value for name, _, value, _ in headers}


def test_nats_py_still_calls_it() -> None:
    raw = b"Name: value\r\nBad line\r\nOther:x:y\r\n\r\n"
    assert RawClient._parse_header_lines(raw) == Client._parse_header_lines(raw) == {"Name": "value", "Other": "x:y"}


@given(st.binary())
def test_no_bytes_are_too_bad(raw: bytes) -> None:
    assert all(isinstance(value, str) for value in RawClient._parse_header_lines(raw).values())
