"""Boxes that only one key opens: curve keys (xkeys) of nkeys, which its Python library has not."""

from __future__ import annotations

import base64
import binascii
import os
from typing import Final

from nacl.exceptions import CryptoError
from nacl.public import Box, PrivateKey, PublicKey
from nkeys import crc16

from natterjack import ConfigError

_SEED, _CURVE = 18 << 3, 23 << 3
_VERSION: Final = b"xkv1"
_SHORTEST: Final = 35
"""Bytes of a public key with its kind and its check."""


def new_seed() -> str:
    """Return the seed of a new key, `SX…`."""
    return _encoded(bytes((_SEED | _CURVE >> 5, (_CURVE & 31) << 3)) + os.urandom(32))


class CurveKey:
    """A key that seals and opens.

    Args:
        seed: `SX…`.

    Raises:
        ConfigError: It is none.
    """

    def __init__(self, seed: str) -> None:
        self._private = PrivateKey(_decoded(seed)[2:])

    @property
    def public(self) -> str:
        """The half that others seal for, `X…`."""
        return _encoded(bytes((_CURVE,)) + bytes(self._private.public_key))

    def seal(self, data: bytes, other: str) -> bytes:
        """Return what only the other key opens.

        Args:
            data: What to seal.
            other: Its public half.
        """
        return _VERSION + bytes(self._box(other).encrypt(data))

    def open(self, sealed: bytes, other: str) -> bytes:
        """Return what the other key has sealed for this one.

        Raises:
            ConfigError: It has not.
        """
        try:
            return bytes(self._box(other).decrypt(sealed.removeprefix(_VERSION)))
        except (CryptoError, ValueError) as error:  # the latter: too short
            msg = "it is not sealed for this key; does the server have the account CALLOUT as it is here?"
            raise ConfigError(msg) from error

    def _box(self, other: str) -> Box:
        return Box(self._private, PublicKey(_decoded(other)[1:]))


def _encoded(raw: bytes) -> str:
    return base64.b32encode(raw + crc16(raw).to_bytes(2, "little")).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except binascii.Error:
        raw = b""
    if len(raw) < _SHORTEST or crc16(raw[:-2]).to_bytes(2, "little") != raw[-2:]:
        msg = "a curve key is malformed; remove callout/xkey.nk, and have `natterjack secure` write another"
        raise ConfigError(msg)
    return raw[:-2]
