"""Bytes over HTTP: whole, in one range or in several; and blocks as they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Final

from ipfs_stream_nb.content import ranges
from ipfs_stream_nb.content.cid import CID, DAG_CBOR, DAG_JSON
from ipfs_stream_nb.content.gateway.messages import Answer, GatewayResponse
from ipfs_stream_nb.content.gateway.negotiation import FORMATS, ContentPath
from ipfs_stream_nb.content.ipns.resolver import ResolvedName
from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.errors import BadRequestError, CorruptContentError, NotFoundError, error_json

BLOCK_FORMATS: Final = {0x0200: "json", 0x51: "cbor", DAG_JSON: "dag-json", DAG_CBOR: "dag-cbor"}
"""Codecs whose blocks are served as they are, under a media type of their own."""

ReadRange = Callable[[int, int], AsyncGenerator[bytes, None]]
"""(offset, length) -> exactly those bytes."""


def serve_bytes(answer: Answer, size: int, mime_type: str, read: ReadRange) -> GatewayResponse:
    """The representation or its ranges. The answer's ETag must be set and its preconditions be met.

    Range counts for GET alone (RFC 9110, section 14.2): HEAD is told of the whole.
    """
    headers = answer.request.headers
    answer.set(Accept_Ranges="bytes", Content_Type=mime_type, Content_Length=size)
    parts = None
    if not answer.is_head and ranges.range_applies(headers.get("If-Range"), answer.headers["ETag"]):
        parts = ranges.parse_range(headers.get("Range"), size)
    if parts is None:
        return answer.respond(200, _exactly(read(0, size), size))
    if not parts:
        return _not_satisfiable(answer, size)
    if len(parts) == 1:
        (part,) = parts
        answer.set(Content_Range=part.content_range(size), Content_Length=part.length)
        return answer.respond(206, _exactly(read(part.start, part.length), part.length))
    framed = ranges.multipart(parts, size, mime_type)
    answer.set(Content_Type=framed.content_type, Content_Length=framed.length)
    return answer.respond(206, _multipart_body(framed, read))


def _not_satisfiable(answer: Answer, size: int) -> GatewayResponse:
    text = f"the Range names no byte of the {size} that there are"
    body = json.dumps(error_json("bad_request", text)).encode()
    for name in ("ETag", "Content-Disposition"):
        answer.headers.pop(name, None)
    answer.set(
        Content_Range=ranges.unsatisfied(size),
        Content_Type="application/json",
        Content_Length=len(body),
        Cache_Control="no-store",
    )
    return answer.respond(416, whole(body))


async def whole(body: bytes) -> AsyncGenerator[bytes, None]:
    """A body that is in memory."""
    yield body


async def _exactly(pieces: AsyncGenerator[bytes, None], length: int) -> AsyncGenerator[bytes, None]:
    """The pieces, which must be `length` bytes: no answer is ever longer or silently shorter than announced."""
    left = length
    async with aclosing(pieces):
        async for piece in pieces:
            left -= len(piece)
            if left < 0:
                break
            yield piece
    if left != 0:
        raise CorruptContentError(f"the content is not the {length} bytes long that its root says")


async def _multipart_body(framed: ranges.Multipart, read: ReadRange) -> AsyncGenerator[bytes, None]:
    for head, part in framed.parts:
        yield head
        async with aclosing(_exactly(read(part.start, part.length), part.length)) as pieces:
            async for piece in pieces:
                yield piece
    yield framed.tail


def slices(data: bytes) -> ReadRange:
    """Ranges of bytes that are in memory."""

    async def read(offset: int, length: int) -> AsyncGenerator[bytes, None]:
        yield data[offset : offset + length]

    return read


async def serve_block(
    node: Node, answer: Answer, cid: CID, roots: Sequence[CID], format_name: str
) -> GatewayResponse:
    """One block as it is. Raw blocks are `<cid>.bin` for a browser, and never shown."""
    early = answer.precondition(f'"{cid}.{format_name}"')
    if early is not None:
        return early
    data = await node.block_get(cid)
    answer.set_roots(roots)
    suffix = "bin" if format_name == "raw" else format_name.rpartition("-")[2]
    mime_type = FORMATS[format_name]
    answer.set_disposition(mime_type, f"{cid}.{suffix}", attachment=format_name == "raw")
    return serve_bytes(answer, len(data), mime_type, slices(data))


def serve_record(answer: Answer, path: ContentPath, resolved: ResolvedName | None) -> GatewayResponse:
    """The signed record of a name, as it was received and verified."""
    if resolved is None:
        raise BadRequestError("IPNS records are under /ipns/<name>")
    if path.names:
        raise BadRequestError(f"only a name has an IPNS record; ask for /ipns/{path.root}")
    if resolved.record is None:
        raise NotFoundError(f"no signed record of /ipns/{path.root} is at hand: a domain has none")
    early = answer.precondition(f'"{hashlib.sha256(resolved.record).hexdigest()[:32]}"')
    if early is not None:
        return early
    mime_type = FORMATS["ipns-record"]
    answer.set_disposition(mime_type, f"{path.root}.ipns-record", attachment=True)
    return serve_bytes(answer, len(resolved.record), mime_type, slices(resolved.record))
