"""The node's values as JSON."""

from __future__ import annotations

import asyncio
import json
from dataclasses import fields, is_dataclass
from typing import Any

from ipfs_stream_nb.content.cid import CID


def wire(value: Any) -> Any:
    """A node's dataclass as a dictionary of its fields, CIDs as text, also inside of lists and dictionaries; other
    values as they are."""
    if isinstance(value, CID):
        return str(value)
    if is_dataclass(value):
        return {field.name: wire(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, (list, tuple)):
        return [wire(item) for item in value]
    if isinstance(value, dict):
        return {key: wire(item) for key, item in value.items()}
    return value


async def json_text(value: object) -> bytes:
    """JSON of what may be large, made on a thread, and in steps: `json.dumps` would keep all other threads,
    the event loop's too, waiting until it is done."""
    return await asyncio.to_thread(lambda: "".join(json.JSONEncoder().iterencode(wire(value))).encode())


def json_line(value: object) -> bytes:
    """One line of JSON (NDJSON)."""
    return json.dumps(value).encode() + b"\n"
