"""The receiver of posts: its URL, and the connections to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

import httpx

from natterjack_webhook.errors import PostError

MAX_ANSWER: Final = 64 * 1024
"""Bytes of an answer that are read, so that its connection can be used again."""


def read_url(text: str) -> httpx.URL:
    """Read a URL.

    Raises:
        ValueError: It is none, or not of HTTP.
    """
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        msg = "it is no URL; write e.g. 'https://example.com/hook', or where it is: 'env:NAME' or 'file:PATH'"
        raise ValueError(msg)
    return url


class Receiver:
    """Takes posts.

    Args:
        url: Where.
        timeout: Seconds a post may take.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._url, self._timeout = read_url(url), timeout
        self._client = httpx.AsyncClient(timeout=timeout, follow_redirects=False)
        logging.getLogger("httpx").addFilter(self._hides_url)

    async def close(self) -> None:
        """Close connections."""
        logging.getLogger("httpx").removeFilter(self._hides_url)
        await self._client.aclose()

    def _hides_url(self, record: logging.LogRecord) -> bool:
        """Keep from the log what httpx says about each request: a URL may be a secret, Slack's are."""
        return not isinstance(record.args, tuple) or self._url not in record.args

    def __str__(self) -> str:
        """Return it as errors may name it: without path, query or password."""
        return f"{self._url.scheme}://{self._url.netloc.decode()}"

    async def post(self, content: bytes, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str]]:
        """Post once; return the status and the headers of the answer.

        Raises:
            PostError: It did not answer.
        """
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._client.stream("POST", self._url, content=content, headers=headers) as response,
            ):
                size = 0
                async for chunk in response.aiter_raw():
                    size += len(chunk)
                    if size > MAX_ANSWER:
                        break
                return response.status_code, response.headers
        except (httpx.HTTPError, TimeoutError) as error:
            msg = f"{self} did not answer: {type(error).__name__}"
            raise PostError(msg) from None  # whatever stands in it, the URL does not
