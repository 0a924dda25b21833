"""Kubo's errors are texts: what each amounts to."""

from __future__ import annotations

from typing import Final

from ipfs_stream_nb.content.kubo.answers import MAX_TEXT
from ipfs_stream_nb.errors import (
    BadCIDError,
    BadRequestError,
    IPFSStreamError,
    IsDirectoryError,
    NotFoundError,
    QuotaExceededError,
    RetrievalError,
    RetrievalTimeoutError,
)

_MEANINGS: Final[tuple[tuple[str, type[IPFSStreamError]], ...]] = (
    ("not pinned", NotFoundError),
    ("block was not found locally", NotFoundError),
    ("could not find", NotFoundError),
    ("no link named", NotFoundError),
    ("not found", NotFoundError),
    ("could not resolve name", NotFoundError),
    ("unknown node type", BadRequestError),
    ("is a directory", IsDirectoryError),
    ("invalid cid", BadCIDError),
    ("invalid path", BadCIDError),
    ("invalid peer", BadRequestError),
    ("failed to parse peer", BadRequestError),
    ("failed to parse multiaddr", BadRequestError),
    ("context deadline exceeded", RetrievalTimeoutError),
    ("timed out", RetrievalTimeoutError),
    ("quota", QuotaExceededError),
    ("no space left", QuotaExceededError),
    ("unknown option", BadRequestError),
)


def error_of(name: str, command: str, message: str) -> IPFSStreamError:
    """Our error for a daemon's `message` at a command; RetrievalError where it is not known."""
    message = message.encode("utf-8", "replace").decode()[:MAX_TEXT]
    lower = message.lower()
    kind = next((kind for words, kind in _MEANINGS if words in lower), RetrievalError)
    return kind(f"{name}, {command}: {message}")
