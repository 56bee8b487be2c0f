"""Requests to a provider: bounded in bytes and time, over TLS, following no redirect."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3

from guidehall.core.errors import Unavailable
from services.gateway.log_in.settings import is_safe

logger = logging.getLogger(__name__)

_MAX_BYTES = 512 << 10
_PIECE_BYTES = 16 << 10
_THREADS = 8


class Fetcher:
    """Asks providers, in threads of its own.

    Args:
        seconds: that one answer may take, from the connection to its last byte.
        ca_file: verifies certificates; the system's where None.
    """

    def __init__(self, seconds: float, ca_file: Path | None) -> None:
        self._seconds = seconds
        context = ssl.create_default_context(cafile=ca_file)
        # No proxy of the environment, no retry, and no second place: `redirect` is False below.
        self._pool = urllib3.PoolManager(maxsize=_THREADS, retries=False, ssl_context=context)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="log-in")

    async def __call__(
        self, url: str, form: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and JSON of the answer; None where it is no JSON.

        Args:
            url: https, or this machine.
            form: is posted; without one it is a GET.
            headers: besides the usual ones.

        Raises:
            Unavailable: there is no whole answer in time.
        """
        if not is_safe(url):
            raise Unavailable("the provider names an address without TLS", reason="PROVIDER_UNAVAILABLE")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._seconds):
                return await loop.run_in_executor(self._threads, self._ask, url, form, headers or {})
        except (urllib3.exceptions.HTTPError, TimeoutError, OSError) as error:
            logger.warning("provider not reached", extra={"url": url, "error": type(error).__name__})
            raise Unavailable(
                "the provider does not answer; try again", reason="PROVIDER_UNAVAILABLE"
            ) from None

    def _ask(self, url: str, form: Mapping[str, str] | None, headers: Mapping[str, str]) -> tuple[int, Any]:
        deadline = time.monotonic() + self._seconds
        sent = {"Accept": "application/json", "User-Agent": "guidehall", **headers}
        if form is not None:
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        answer = self._pool.request(
            "GET" if form is None else "POST",
            url,
            body=None if form is None else urlencode(form),
            headers=sent,
            redirect=False,
            preload_content=False,
            timeout=urllib3.Timeout(total=self._seconds),
        )
        try:
            body = b""
            # What has come, however little: a provider that sends byte by byte must not hold a thread.
            while piece := answer.read1(_PIECE_BYTES):
                body += piece
                if len(body) > _MAX_BYTES or time.monotonic() > deadline:
                    raise TimeoutError("too much, or too slow")
        finally:
            # Not back to the pool: it may not have been read to its end.
            answer.close()
        try:
            return answer.status, json.loads(body)
        except (ValueError, RecursionError):
            return answer.status, None

    def close(self) -> None:
        """Ends the connections; what still runs is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._pool.clear()
