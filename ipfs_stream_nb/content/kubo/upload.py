"""What is sent to a daemon while it is made, and that nobody waits for a daemon that no longer takes it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable
from typing import Final, TypeVar

from ipfs_stream_nb.content.cid import BytesLike

T = TypeVar("T")

UPLOAD_STALL: Final = 60.0
"""Seconds in which a daemon must take a piece of what is sent to it."""
PIECE_BYTES: Final = 1024 * 1024
"""The largest piece."""


class Multipart:
    """A multipart form of one file that is sent while it is made. `error` is what its source raised.

    The source runs in the task of aiohttp's that sends the form, which may be in it still when the request has failed:
    after `close` it is not.
    """

    def __init__(self, source: AsyncIterable[BytesLike]) -> None:
        self._source = source
        self._boundary = secrets.token_hex(16)
        self._form = self._make()
        self._sender: asyncio.Task[object] | None = None
        self._clock: asyncio.Timeout | None = None
        self._silence = 0.0
        self.error: Exception | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The form's content type."""
        return {"Content-Type": f"multipart/form-data; boundary={self._boundary}"}

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._form

    async def _make(self) -> AsyncGenerator[bytes, None]:
        self._sender = asyncio.current_task()
        self._expect(UPLOAD_STALL)
        yield (
            f"--{self._boundary}\r\n"
            'Content-Disposition: form-data; name="file"; filename="file"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        try:
            self._expect(None)  # the source may take its time
            async for data in self._source:
                for at in range(0, len(data), PIECE_BYTES):
                    self._expect(UPLOAD_STALL)
                    yield bytes(data[at : at + PIECE_BYTES])
                self._expect(None)
        except Exception as error:
            self.error = error
            raise
        # aiohttp counts the silence from when its buffers are empty, which they never are where nobody reads
        self._expect(UPLOAD_STALL + self._silence)
        yield f"\r\n--{self._boundary}--\r\n".encode()

    def _expect(self, seconds: float | None) -> None:
        """The next piece is to be asked for within so many seconds."""
        if self._clock is not None and not self._clock.expired():
            loop = asyncio.get_running_loop()
            self._clock.reschedule(None if seconds is None else loop.time() + seconds)

    async def watch(self, sending: Awaitable[T], silence: float) -> T:
        """The answer to the request that sends this form, which may keep us waiting for `silence` seconds at its end.

        Raises StalledError where no piece was taken for UPLOAD_STALL seconds.
        """
        self._silence = silence
        clock = asyncio.timeout(None)
        try:
            async with clock:
                self._clock = clock
                try:
                    return await sending
                finally:
                    self._clock = None
        except TimeoutError:
            if clock.expired():
                raise StalledError from None
            raise

    async def close(self) -> None:
        """See that nobody is in the source any more. Idempotent."""
        if self._sender is not None and not self._sender.done():
            self._sender.cancel()
            await asyncio.wait([self._sender])
        await self._form.aclose()


class StalledError(Exception):
    """A daemon takes nothing more."""
