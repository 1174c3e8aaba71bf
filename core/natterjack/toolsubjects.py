"""The subjects of a tool server [R16]: a tool is a subject, so that who may call it is a permission."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from natterjack.errors import InvalidNameError
from natterjack.subjects import MAX_SUBJECT, check_name

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]")
_BYTES: Final = re.compile(r"(?:~[0-9a-f]{2})+")


@dataclass(frozen=True, slots=True)
class ToolSubjects:
    """Spells the subjects of one tool server. Names stand there as they are, other characters by their bytes.

    So `a/b` is `a~2fb`: no two names are one subject, and none is case folded.

    Attributes:
        server: Its name.
    """

    server: str

    def __post_init__(self) -> None:
        check_name(self.server, "tool server name")

    def call(self, tool: str) -> str:
        """`tools.<server>.call.<tool>`.

        Raises:
            InvalidNameError: The tool's name is empty or too long.
        """
        return self._bounded(f"{self._root}.call.{_token(tool)}", tool)

    def method(self, method: str) -> str:
        """`tools.<server>.<method>`: a request that calls no tool.

        Raises:
            InvalidNameError: The method's name is empty or too long.
        """
        return self._bounded(f"{self._root}.{_token(method)}", method)

    def cancel(self, request: str) -> str:
        """`tools.<server>.cancel.<request>`: ends a request; all replicas hear it."""
        return f"{self._root}.cancel.{request}"

    @property
    def calls(self) -> str:
        """`tools.<server>.call.*`."""
        return f"{self._root}.call.*"

    @property
    def methods(self) -> str:
        """`tools.<server>.*`."""
        return f"{self._root}.*"

    @property
    def cancels(self) -> str:
        """`tools.<server>.cancel.*`."""
        return f"{self._root}.cancel.*"

    @property
    def changes(self) -> str:
        """`tools.<server>.feed.changes`: what its replicas tell one another."""
        return f"{self._root}.feed.changes"

    def named(self, subject: str) -> str | None:
        """Return the tool or method in the last token of a subject; None: no name is spelt so."""
        token = subject.rpartition(".")[2]
        try:
            name = _BYTES.sub(lambda found: bytes.fromhex(found[0].replace("~", "")).decode(), token)
        except UnicodeDecodeError:
            return None
        return name if name and _token(name) == token else None

    @property
    def _root(self) -> str:
        return f"tools.{self.server}"

    def _bounded(self, subject: str, name: str) -> str:
        if name and len(subject) <= MAX_SUBJECT:
            return subject
        rule = (
            f"its subject has {len(subject)} characters of at most {MAX_SUBJECT}; shorten it" if name else "it is empty"
        )
        kind = "name of a tool or method"
        raise InvalidNameError(kind, name, rule)


def _token(name: str) -> str:
    return _UNSAFE.sub(lambda found: "".join(f"~{byte:02x}" for byte in found[0].encode(errors="replace")), name)
