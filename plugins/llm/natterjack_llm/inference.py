"""A model file in this process: loaded once, for all that use it, and run in a thread of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from secrets import token_hex
from typing import Any, Final, Self

from natterjack import ConfigError

CONTEXT: Final = 4096
"""Tokens of a prompt and its answer together: 90 MB of memory with the smallest model."""
_BATCH: Final = 256
"""Tokens of a prompt that are read before it is seen that nobody waits any more: about a second on a slow core."""

_loaded: dict[Path, Inference] = {}
_lock = threading.Lock()


class Inference:
    """A model file that is loaded; it answers one request after another.

    Do not make one: `open` returns the one of a file, and `close` unloads it after its last use.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._uses = path, 0
        self._thread = ThreadPoolExecutor(1, "natterjack-local")
        self._server: Future[Any] | None = self._thread.submit(_load, path)

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Return what a file is loaded as, once it is.

        Raises:
            ConfigError: It cannot be loaded.
        """
        with _lock:
            found = _loaded.get(path)
            inference = found if isinstance(found, cls) else cls(path)
            _loaded[path] = inference
            inference._uses += 1
            loading = inference._server
        try:
            if loading is not None:
                await _end_of(loading)
                loading.result()
        except BaseException:
            await inference.close()
            raise
        return inference

    async def close(self) -> None:
        """End one use; after the last one its threads have ended, and its memory is free."""
        with _lock:
            self._uses -= 1
            if self._uses:
                return
            del _loaded[self._path]
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._server = None  # whose threads end with it

    async def chunks(self, request: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield what comes of a chat completion, as llama.cpp's server streams it; who leaves, ends it."""
        loop, came, left = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any] | None](), threading.Event()

        def tell(chunk: dict[str, Any] | None) -> bool:
            if not left.is_set():
                loop.call_soon_threadsafe(came.put_nowait, chunk)
            return left.is_set()

        def complete() -> None:
            if self._server is not None and not left.is_set():
                self._server.result().handle_chat_completions({**request, "stream": True}, tell)

        job = self._thread.submit(complete)
        job.add_done_callback(lambda _: tell(None))
        try:
            while (chunk := await came.get()) is not None:
                yield chunk
            job.result()
        finally:
            left.set()
            job.cancel()
            await _end_of(job)


async def _end_of(job: Future[Any]) -> None:
    """Wait until a job has ended, in whatever way; who is cancelled meanwhile, does not cancel it."""
    waiting = asyncio.wrap_future(job)
    waiting.add_done_callback(lambda done: done.cancelled() or done.exception())  # it is seen, whoever still waits
    await asyncio.wait([waiting])


def _load(path: Path) -> Any:
    """Return llama.cpp's server of a file. It listens, too: on a port of its own, to nobody, as nobody has the key."""
    from xllamacpp import CommonParams, Server

    parameters = CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.n_parallel, parameters.n_batch = CONTEXT, 1, _BATCH
    # Its threads wait for one another by spinning: with one for each core, a busy machine makes it 50 times slower.
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = max(1, min(8, (os.cpu_count() or 2) - 1))
    parameters.cache_ram_mib = 0
    parameters.verbosity, parameters.warmup = -1, False
    parameters.port, parameters.ui, parameters.endpoint_slots = 0, False, False
    parameters.api_keys = [token_hex()]
    try:
        return Server(parameters)
    except RuntimeError as error:
        msg = f"the model file {str(path)!r} cannot be loaded; it must be a GGUF file that llama.cpp can run"
        raise ConfigError(msg) from error
