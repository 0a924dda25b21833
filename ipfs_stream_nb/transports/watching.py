"""Who is told of the transfers of a conversation: plain methods that are quick, and neither wait nor raise.

They are called once or twice for each transfer, and now and then while an upload goes on; never for each chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Protocol


class Transfer(Protocol):
    """What is on its way to a client."""

    @property
    def bytes_sent(self) -> int:
        """Bytes so far; read at the end, and now and then before."""


class UploadWatch(Protocol):
    """Told of one upload."""

    def progress(self, progress: Mapping[str, Any]) -> None:
        """How far it is: upload_id, bytes_processed, total_bytes, percent. May come as often as it likes."""

    def failed(self, error: BaseException) -> None:
        """It came to nothing."""


class Watcher(Protocol):
    """Told of all transfers of a connection."""

    def download(self, transfer: Transfer, path: str, size: int) -> AbstractContextManager[object]:
        """For a `with` block around a transfer of a file of `size` bytes; left without an error it was whole."""

    def upload(self) -> UploadWatch:
        """For an upload that begins."""


class _Nobody:
    def download(self, transfer: Transfer, path: str, size: int) -> AbstractContextManager[object]:  # noqa: ARG002
        return nullcontext()

    def upload(self) -> UploadWatch:
        return self

    def progress(self, progress: Mapping[str, Any]) -> None:
        pass

    def failed(self, error: BaseException) -> None:
        pass


NOBODY: Final[Watcher] = _Nobody()
"""For conversations that nobody watches."""
