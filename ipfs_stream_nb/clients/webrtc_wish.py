"""What is asked of a WebRTC stream, checked before anything is connected."""

from __future__ import annotations

from typing import Any

from ipfs_stream_nb.clients.naming import Content, path_of
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.resolver import ipns_name_of, parse_path
from ipfs_stream_nb.errors import BadRequestError


def read_wish(
    content: Content, kind: str, frame_rate: float, quality: str, *, audio: bool, start: float, loop: bool
) -> dict[str, Any]:
    """An `offer_request`. Raises BadRequestError, BadCIDError."""
    if kind not in {"video", "audio"}:
        raise BadRequestError(f"kind is video or audio, not {kind!r}")
    if isinstance(frame_rate, bool) or not isinstance(frame_rate, int | float) or not frame_rate > 0:
        raise BadRequestError(
            f"frame_rate={frame_rate!r}: a number of frames a second, above 0, was expected"
        )
    return {
        "type": "offer_request",
        "cid": _text_of(content),
        "kind": kind,
        "frameRate": frame_rate,
        "quality": str(quality),
        "audio": bool(audio),
        "start": position_of(start, "start"),
        "loop": bool(loop),
    }


def position_of(value: object, name: str = "position") -> float:
    """Seconds, from 0. Raises BadRequestError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise BadRequestError(f"{name}={value!r}: a number of seconds, from 0, was expected")
    return float(value)


def _text_of(content: Content) -> str:
    path = path_of(content)
    if isinstance(path, CID) or ipns_name_of(path) is not None:
        return str(path)
    cid, names = parse_path(path)
    return "/".join([str(cid), *names])
