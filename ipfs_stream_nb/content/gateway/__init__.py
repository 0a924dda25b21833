"""The IPFS path gateway and trustless gateway, free of any HTTP framework: `await respond(node, request, …)`.

To https://specs.ipfs.tech/http-gateways/ over RFC 9110, with the choices that the specifications leave open, or that
a notebook server's origin calls for:

- Only passive types are inline; HTML, SVG, XML, PDF and all else are attachments, and everything carries a sandbox
  without scripts (the specification has `inline` as the default for all).
- A directory with an index.html answers with that file, as the specification has it, as an attachment therefore;
  `?listing=1`, `?format=json` and `Accept: application/json` give the listing in any case.
- A symlink at a path's end is answered with its target as text (inode/symlink), as boxo's gateway does; symlinks on
  the way are followed inside of their root.
- The ETag of a range is that of the whole, so that If-Range works (RFC 9110, section 14.2; the specification's text
  suggests one of its own, which would break it).
- CARs are depth first without duplicates, whatever was asked for, and say so in their Content-Type.
- What cannot be had in the wanted format is a 406; conversions between codecs and TAR are not offered.
- What is below a name (/ipns/) is answered as what is below a CID, in every format, and may be kept as long as the
  name's record says. A base58 name is not redirected to its CID.
- No service worker script is served at all (the specification refuses those of a whole root).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ipfs_stream_nb.content import mime, ranges
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.gateway.car import serve_car
from ipfs_stream_nb.content.gateway.directory import find_index, redirect_to_slash, serve_listing
from ipfs_stream_nb.content.gateway.messages import (
    Answer,
    GatewayRequest,
    GatewayResponse,
    GatewaySettings,
    NotAcceptableError,
    PreconditionFailedError,
    requested_filename,
)
from ipfs_stream_nb.content.gateway.negotiation import (
    FORMATS,
    Choice,
    ContentPath,
    choose_format,
    content_location,
    parse_path,
)
from ipfs_stream_nb.content.gateway.representation import (
    BLOCK_FORMATS,
    serve_block,
    serve_bytes,
    serve_record,
    slices,
)
from ipfs_stream_nb.content.ipns.resolver import ResolvedName
from ipfs_stream_nb.content.node import Node, Stat
from ipfs_stream_nb.errors import BadRequestError, NotFoundError, RetrievalError, StoreError

__all__ = [
    "GatewayRequest",
    "GatewayResponse",
    "GatewaySettings",
    "NotAcceptableError",
    "PreconditionFailedError",
    "respond",
]


async def respond(
    node: Node, request: GatewayRequest, *, settings: GatewaySettings, resolved: ResolvedName | None = None
) -> GatewayResponse:
    """Answer GET or HEAD of /ipfs/{cid}[/path] and /ipns/{name}[/path].

    `resolved` is what the name stands for, which whoever asks about rights must know before.
    Raises subclasses of IPFSStreamError, whose `status` and `to_json()` make the error's answer. Errors that show
    first when content is read come from the body, in its first piece where possible.
    """
    if request.method not in {"GET", "HEAD"}:
        return GatewayResponse(405, [("Allow", "GET, HEAD")])
    if (request.headers.get("Service-Worker") or "").strip().lower() == "script":
        raise BadRequestError("service workers cannot be registered from content")
    path = _below_cid(parse_path(request.path), resolved)
    choice = choose_format(request)
    cid = path.cid
    answer = Answer(request, settings, path.text, None if resolved is None else int(resolved.ttl))
    if choice.by_accept:
        answer.set(Content_Location=content_location(request, path, choice))
    if choice.format == "ipns-record":
        return serve_record(answer, path, resolved)
    if not _only_if_cached(request):
        return await _respond(node, answer, path, cid, choice)
    if not cid.is_identity and not await node.block_has(cid):
        raise PreconditionFailedError(f"{cid} is not here, and only-if-cached was asked for")
    try:
        # a node without providers has no other view of itself
        offline: Callable[[], Node] = getattr(node, "offline", lambda: node)
        return await _respond(offline(), answer, path, cid, choice)
    except StoreError:
        raise
    except (NotFoundError, RetrievalError) as error:
        raise PreconditionFailedError(
            f"not all of it is here, and only-if-cached was asked for: {error}"
        ) from error


def _below_cid(path: ContentPath, resolved: ResolvedName | None) -> ContentPath:
    """The path with what its name stands for."""
    if path.namespace == "ipfs":
        return path
    if resolved is None:
        raise BadRequestError(f"{path.text} is below a name, and names are not resolved here")
    return replace(path, target=resolved.path.removeprefix("/ipfs/"))


def _only_if_cached(request: GatewayRequest) -> bool:
    directives = (request.headers.get("Cache-Control") or "").split(",")
    return "only-if-cached" in [directive.strip().lower() for directive in directives]


async def _respond(
    node: Node, answer: Answer, path: ContentPath, cid: CID, choice: Choice
) -> GatewayResponse:
    if choice.format == "car":
        return await serve_car(node, answer, path, cid, choice)
    own = BLOCK_FORMATS.get(cid.codec)
    if choice.format == "raw" or own is not None:
        return await _respond_block(node, answer, path, cid, choice)
    if choice.format:
        raise NotAcceptableError(
            f"{cid} cannot be had as {FORMATS[choice.format]}; ask for format=raw or format=car and convert it"
        )
    return await _respond_content(node, answer, path, cid, choice)


async def _respond_block(
    node: Node, answer: Answer, path: ContentPath, cid: CID, choice: Choice
) -> GatewayResponse:
    """A block as it is: a raw one was asked for, or the root is of a codec that is not UnixFS."""
    roots: tuple[CID, ...] = (cid,)
    if not path.is_root:
        stat = await node.stat(path.node_path)
        cid, roots = stat.cid, stat.roots
    own = BLOCK_FORMATS.get(cid.codec, "raw")
    if choice.format not in {"", "raw", own}:
        raise NotAcceptableError(f"{cid} is {own}, and codecs are not converted here; ask for format=raw")
    return await serve_block(node, answer, cid, roots, choice.format or own)


async def _respond_content(
    node: Node, answer: Answer, path: ContentPath, cid: CID, choice: Choice
) -> GatewayResponse:
    """Files, directories and symlinks."""
    if path.is_root and _is_known_to_client(answer.request, f'"{cid}"'):
        answer.set(ETag=f'"{cid}"')
        return answer.respond(304)  # with no work done, and even if it is not here any more
    stat = await node.stat(path.node_path)
    answer.set_roots(stat.roots)
    if stat.kind == "directory":
        if not path.slash:
            return redirect_to_slash(answer, path)
        index = await find_index(node, path, choice, answer.request.query)
        if index is None:
            return await serve_listing(node, answer, path, stat, choice)
        stat, path = index, replace(path, names=(*path.names, index.name), slash=False)
    early = answer.precondition(f'"{stat.cid}"')
    if early is not None:
        return early
    if stat.kind == "symlink":
        target = (stat.target or "").encode("utf-8", "surrogateescape")
        answer.set_disposition(stat.mime_type, stat.name or str(stat.cid))
        return serve_bytes(answer, len(target), "inode/symlink", slices(target))
    mime_type = await _mime_type(node, answer.request, path, stat)
    answer.set_disposition(mime_type, stat.name or str(stat.cid))
    cat = getattr(node, "cat_stored", node.cat) if answer.settings.stored_ranges else node.cat
    return serve_bytes(answer, stat.size, mime_type, partial(cat, path.node_path))


def _is_known_to_client(request: GatewayRequest, etag: str) -> bool:
    known = request.headers.get("If-None-Match")
    if known is None or known.strip() == "*" or request.headers.get("If-Match") is not None:
        return False
    return ranges.matches_weakly(known, etag)


async def _mime_type(node: Node, request: GatewayRequest, path: ContentPath, stat: Stat) -> str:
    """By content and `?filename=`, or else as the node told it by content and the path's last name."""
    filename = requested_filename(request)
    if not filename:
        return stat.mime_type
    return mime.guess(await node.read(path.node_path, 0, mime.SNIFF_BYTES), filename)
