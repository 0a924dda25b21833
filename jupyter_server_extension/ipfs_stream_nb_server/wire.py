"""The node's values as JSON."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from typing import Any

from ipfs_stream_nb.content.cid import CID


def wire(value: Any) -> Any:
    """A node's dataclass as a dictionary of its fields, CIDs as text; other values as they are."""
    if isinstance(value, CID):
        return str(value)
    if is_dataclass(value):
        return {field.name: wire(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, (list, tuple)):
        return [wire(item) for item in value]
    return value


def json_line(value: object) -> bytes:
    """One line of JSON (NDJSON)."""
    return json.dumps(value).encode() + b"\n"
