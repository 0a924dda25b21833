"""What users put in events and filters, as JSON."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Final

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.display import a_kind
from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.notifications.events import MAX_DEPTH

TAKEN: Final = (
    "JSON has text, finite numbers, True, False, None, lists and dictionaries;"
    " numpy's numbers, dates, paths and CIDs are converted"
)


def plain(value: object, where: str, depth: int = MAX_DEPTH) -> Any:
    """A copy of what JSON has: numpy's scalars by `item()`, dates in ISO 8601, paths and CIDs as text, also the `cid` of a
    result such as Added. Raises BadRequestError for anything else; `where` it stands is named by it."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadRequestError(f"{where} is {value}; {TAKEN}")
        return value
    if depth == 0 and isinstance(value, Mapping | list | tuple):
        raise BadRequestError(f"{where[:80]}… is nested more than {MAX_DEPTH} lists and dictionaries deep")
    if isinstance(value, Mapping):
        return {_key(key, where): plain(each, f"{where}[{key!r}]", depth - 1) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each, f"{where}[{place}]", depth - 1) for place, each in enumerate(value)]
    return _converted(value, where, depth)


def _converted(value: Any, where: str, depth: int) -> Any:
    if isinstance(value, dt.date):  # a datetime is one
        return value.isoformat()
    if isinstance(value, PurePath | CID):
        return str(value)
    cid = getattr(value, "cid", None)
    if isinstance(cid, CID | str):
        return str(cid)
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if getattr(value, "ndim", None) == 0 and depth > 0 and kind != "m":  # of which some give nanoseconds
        if kind == "M":
            return str(value)
        if callable(getattr(value, "item", None)):
            return plain(value.item(), where, depth - 1)
    raise BadRequestError(f"{where} is {a_kind(value)}; {TAKEN}")


def _key(key: object, where: str) -> Any:
    """A key, which JSON has as text; numbers become that by themselves."""
    name = plain(key, f"the key {key!r} of {where}")
    if isinstance(name, list | dict):
        raise BadRequestError(f"the key {key!r} of {where} is {a_kind(key)}; a key is text")
    return name
