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
    │   ├── UnreachableError
    │   ├── RefusedError
    │   └── StoreError
    ├── RetrievalTimeoutError (TimeoutError)    timeout
    └── BusyError                               busy

The text of each is made for the user: it names what was wrong and what would be right, and holds no secret. A
notebook shows it with the user's own lines; `%tb Verbose` then shows the full traceback.
"""

from __future__ import annotations

import sys
import sysconfig
import time
import traceback
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final


class IPFSStreamError(Exception):
    """The base of all: `code` is the protocol's stable word, `status` the HTTP status that goes with it."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def to_json(self) -> dict[str, Any]:
        """The error message of the wire protocol, with `timestamp` in seconds since the epoch."""
        return error_json(self.code, str(self))

    def _render_traceback_(self) -> list[str]:
        """IPython's hook: a notebook shows what was wrong and the user's own lines, and no stack of ours.

        In any other mode than the usual one, such as by `%tb Verbose` or `%xmode Plain`, it shows all of it.
        """
        shell = _shell()
        view = getattr(shell, "InteractiveTB", None)
        if view is not None and view.mode != _SHORT_MODE:
            full: list[str] = view.structured_traceback(type(self), self, self.__traceback__)
            return full
        return [f"{type(self).__name__}: {self}", *_lines_of_user(self.__traceback__, shell)]


_SHORT_MODE = "Context"
MAX_LINES: Final = 12
"""The user's lines that a notebook shows below an error, half of them from either end."""


def _shell() -> Any:
    """The IPython shell around us, if there is one."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None else None


def _lines_of_user(trace: TracebackType | None, shell: Any) -> list[str]:
    """Where, on the way to the error, lines stand that are neither ours nor an installed package's."""
    name_of = getattr(getattr(shell, "compile", None), "format_code_name", lambda _name: None)
    found = []
    for frame in traceback.extract_tb(trace):
        path = Path(frame.filename)
        if frame.line and not any(path.is_relative_to(home) for home in _homes_of_packages()):
            cell = name_of(frame.filename)
            where = " ".join(cell) if cell else f"File {frame.filename}"
            inside = "" if frame.name == "<module>" else f", in {frame.name}"
            found.append(f"    {where}, line {frame.lineno}{inside}: {frame.line}")
    if len(found) > MAX_LINES:
        half = MAX_LINES // 2
        found[half:-half] = [f"    … {len(found) - 2 * half} more"]
    return found


@cache
def _homes_of_packages() -> list[str]:
    paths = sysconfig.get_paths()
    return [str(Path(__file__).parent), *(paths[name] for name in ("stdlib", "purelib", "platlib"))]


def error_from_json(body: dict[str, Any]) -> IPFSStreamError:
    """The error that `to_json` was made from; the base class where the code is not known here."""
    kinds: dict[str, type[IPFSStreamError]] = {"internal": IPFSStreamError}
    todo: list[type[IPFSStreamError]] = [IPFSStreamError]
    while todo:
        for kind in todo.pop().__subclasses__():
            todo.append(kind)
            if "code" in vars(kind):
                kinds[kind.code] = kind
    return kinds.get(str(body.get("code")), IPFSStreamError)(str(body.get("error") or "no reason was given"))


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


class UnreachableError(RetrievalError):
    """Somebody who might have it cannot be connected to."""


class RefusedError(RetrievalError):
    """Somebody who might have it will not give it, or not in a form that can be used; asking again does not help."""


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

    def __init__(self, text: str = "", *, retry_after: float | None = None) -> None:
        """`retry_after`: seconds after which trying again helps, where they are known."""
        super().__init__(text)
        self.retry_after = retry_after
