"""Large values: what does not fit into one message stands in the object store (ADR-20), and a reference instead.

Objects never change. Each chunk has a subject of its own, `$O.<bucket>.C.<owner>.<id>.<n>`, so that a principal reads
its own objects, and no others, by direct gets; standard clients take `<owner>.<id>.*` for the nuid and read all
chunks in order: `nats object ls|get <bucket>` works. Our own reads trust nothing but the reference.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from base64 import urlsafe_b64encode
from typing import Annotated, Final

from pydantic import Field, ValidationError

from natterjack import codec, subjects
from natterjack.bus import Bus
from natterjack.errors import BrokerError, ConflictError, PayloadError, RefusedError
from natterjack.settings import Settings

log = logging.getLogger("natterjack.objects")

MAX_SIZE: Final = 64 * 1024**2
"""Bytes of a large value: it is held in memory as a whole."""
CHUNK: Final = 128 * 1024
_HEADERS: Final = 4096
"""Bytes of a message that are left to its headers."""
_WINDOW: Final = 8
_NAMED: Final = 0.5
"""Seconds to store a name, which all store in one place, and nobody needs."""

Token = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]


class Reference(Settings):
    """Where a large value stands, and what it must be.

    Attributes:
        bucket: Bucket of the object store.
        owner: The principal that stored it.
        id: Its id; nobody else's value has it.
        size: Bytes.
        chunks: Messages it is stored in.
        digest: `SHA-256=…`, as ADR-20 writes it.
    """

    bucket: Token
    owner: Token
    id: Token
    size: int = Field(ge=0, le=MAX_SIZE)
    chunks: int = Field(ge=0, le=MAX_SIZE)
    digest: str = Field(max_length=64)

    def __str__(self) -> str:
        return f"a value of {self.size:,} bytes, object {self.name!r} of bucket {self.bucket!r}"

    @property
    def name(self) -> str:
        """How the object store lists it."""
        return f"{self.owner}.{self.id}"

    @classmethod
    def parse(cls, value: object) -> Reference:
        """Read one from JSON.

        Raises:
            PayloadError: It is none.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            msg = f"{str(value)[:200]!r} is no reference to a large value"
            raise PayloadError(msg) from error


def is_large(bus: Bus, data: bytes) -> bool:
    """Tell whether a payload needs the object store, headers considered."""
    return len(data) > _room(bus)


def _room(bus: Bus) -> int:
    return max(bus.max_payload - _HEADERS, bus.max_payload // 2)


async def put(bus: Bus, data: bytes, *, bucket: str, name: str | None = None) -> Reference:
    """Store a value and return once all of it is stored.

    Args:
        bus: A connection; its principal becomes the owner.
        data: At most 64 MiB.
        bucket: A bucket that is provisioned.
        name: What the id is made from, with the data: storing the same again is no more work. By default each time
            another one.

    Raises:
        PayloadError: It is larger.
        NotProvisionedError: There is no such bucket.
        StreamError: The bucket is full.
    """
    if len(data) > MAX_SIZE:
        msg = f"a value of {len(data):,} bytes is larger than {MAX_SIZE:,}; store it elsewhere and send its address"
        raise PayloadError(msg)
    digest = hashlib.sha256(data).digest()
    text = f"SHA-256={urlsafe_b64encode(digest).decode()}"
    id = hashlib.sha256((bus.new_id() if name is None else name).encode() + b"\0" + digest).hexdigest()[:32]
    step = min(CHUNK, _room(bus))
    parts = [data[at : at + step] for at in range(0, len(data), step)]
    reference = Reference(bucket=bucket, owner=bus.principal, id=id, size=len(data), chunks=len(parts), digest=text)
    for index, part in enumerate(parts, 1):  # one after another: standard clients read in the order of storing
        await _store_once(bus, subjects.object_chunk(bucket, bus.principal, id, index), part)
    try:
        await bus.store(subjects.object_meta(bucket, reference.name), _meta(reference, step), budget=_NAMED)
    except (BrokerError, RefusedError) as error:
        log.warning("%s is stored, but `nats object ls` will not show it: %s", reference, error)
    return reference


async def _store_once(bus: Bus, subject: str, part: bytes) -> None:
    try:
        await bus.store(subject, part, expect=0)
    except ConflictError:
        return  # the id holds the digest of the data: what is there is the same


def _meta(reference: Reference, step: int) -> bytes:
    """What `nats object` shows and reads by."""
    return codec.encode(
        {
            "name": reference.name,
            "bucket": reference.bucket,
            "nuid": subjects.object_nuid(reference.owner, reference.id),
            "size": reference.size,
            "chunks": reference.chunks,
            "digest": reference.digest,
            "mtime": "0001-01-01T00:00:00Z",  # readers take the message's own time
            "options": {"max_chunk_size": step},
        }
    )


async def get(bus: Bus, reference: Reference) -> bytes:
    """Read a value back.

    Raises:
        PayloadError: It is not there any more, or not what was stored.
    """
    stream, parts = subjects.object_stream(reference.bucket), list[bytes]()
    for first in range(1, reference.chunks + 1, _WINDOW):
        last = min(first + _WINDOW, reference.chunks + 1)
        wanted = [subjects.object_chunk(reference.bucket, reference.owner, reference.id, n) for n in range(first, last)]
        found = await asyncio.gather(*(bus.last(stream, subject) for subject in wanted))
        for message in found:
            if message is None:
                msg = f"{reference} is not there any more: it was beyond the age or size that its bucket keeps"
                raise PayloadError(msg)
            parts.append(message.data)
    data = b"".join(parts)
    _check(reference, data)
    return data


def _check(reference: Reference, data: bytes) -> None:
    digest = urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
    if len(data) != reference.size or reference.digest != f"SHA-256={digest}":
        msg = f"{reference} is damaged: {len(data):,} bytes of SHA-256={digest} are there"
        raise PayloadError(msg)
