"""Media info as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from ipfs_stream_nb.content.file import ContentFile
from ipfs_stream_nb.media.info import AudioStreamInfo, StreamInfo, VideoStreamInfo, probe

MAX_TEXT: Final = 100
"""Characters of a text that the file itself gives: the facts must fit into an event."""


def facts_of(file: ContentFile) -> dict[str, Any]:
    """{"kind", "format", "duration": s, "size": bytes, "bit_rate": bit/s, "streams": [{"type", "index", "codec", …}]}.

    The fields are those of MediaInfo and its streams.
    """
    info = probe(file)
    return asdict(info) | {"streams": [_stream(stream) for stream in info.streams]}


def _stream(stream: StreamInfo) -> dict[str, Any]:
    kind = {VideoStreamInfo: "video", AudioStreamInfo: "audio"}.get(type(stream))
    facts = {"type": kind} | asdict(stream)
    return {name: value[:MAX_TEXT] if isinstance(value, str) else value for name, value in facts.items()}
