"""Every error that this package raises on purpose, with the protocol's code and the HTTP status for it.

    IPFSStreamError
    ├── BadRequestError (ValueError)            bad_request
    │   └── BadCIDError                         bad_cid
    ├── NotFoundError (FileNotFoundError)       not_found
    ├── IsDirectoryError (IsADirectoryError)    is_directory
    ├── NotDirectoryError (NotADirectoryError)  not_a_directory
    ├── UnauthorizedError (PermissionError)     unauthorized
    ├── TooLargeError                           too_large
    ├── QuotaExceededError                      quota_exceeded
    │   └── DiskFullError
    ├── UnsupportedMediaError                   unsupported_media
    ├── CorruptContentError                     corrupt_content
    ├── RetrievalError                          retrieval_failed
    │   └── StoreError
    ├── RetrievalTimeoutError (TimeoutError)    timeout
    └── BusyError                               busy

The text of each is made for the user: it names what was wrong and what would be right, and holds no secret.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar


class IPFSStreamError(Exception):
    """The base of all: `code` is the protocol's stable word, `status` the HTTP status that goes with it."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def to_json(self) -> dict[str, Any]:
        """The error message of the wire protocol, with `timestamp` in seconds since the epoch."""
        return error_json(self.code, str(self))


def error_json(code: str, text: str) -> dict[str, Any]:
    """The protocol's one shape for errors; `error` and `message` carry the same text."""
    return {"type": "error", "error": text, "message": text, "code": code, "timestamp": time.time()}


class BadRequestError(IPFSStreamError, ValueError):
    """The request, message or argument is malformed."""

    code = "bad_request"
    status = 400


class BadCIDError(BadRequestError):
    """Not a CID, or one whose version, codec or hash function is not supported."""

    code = "bad_cid"


class NotFoundError(IPFSStreamError, FileNotFoundError):
    """This node does not have the content, or the directory has no such entry."""

    code = "not_found"
    status = 404


class IsDirectoryError(IPFSStreamError, IsADirectoryError):
    """A directory where a file is meant."""

    code = "is_directory"
    status = 400


class NotDirectoryError(IPFSStreamError, NotADirectoryError):
    """A file where a directory is meant."""

    code = "not_a_directory"
    status = 404


class UnauthorizedError(IPFSStreamError, PermissionError):
    """No credential, a wrong one, or one that does not allow this."""

    code = "unauthorized"
    status = 403


class TooLargeError(IPFSStreamError):
    """Over a documented limit of size, count or depth."""

    code = "too_large"
    status = 413


class QuotaExceededError(IPFSStreamError):
    """The store's quota would be passed."""

    code = "quota_exceeded"
    status = 507


class DiskFullError(QuotaExceededError):
    """The disk under the store is full, or fuller than the low-disk limit allows."""


class UnsupportedMediaError(IPFSStreamError):
    """Not media, or media of a kind that is not decoded here."""

    code = "unsupported_media"
    status = 415


class CorruptContentError(IPFSStreamError):
    """Bytes that do not hash to their CID, or blocks that are not what their links say."""

    code = "corrupt_content"
    status = 502


class RetrievalError(IPFSStreamError):
    """A block that belongs to known content could not be had."""

    code = "retrieval_failed"
    status = 504


class StoreError(RetrievalError):
    """The block store cannot be used: damaged, from a newer version, locked, or on an unsuitable filesystem."""

    status = 503


class RetrievalTimeoutError(IPFSStreamError, TimeoutError):
    """It took longer than the limit that the text names."""

    code = "timeout"
    status = 504


class BusyError(IPFSStreamError):
    """A limit of things at once is reached; trying again later helps."""

    code = "busy"
    status = 503
