"""CAR answers of the trustless gateway (https://specs.ipfs.tech/http-gateways/trustless-gateway/)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final, cast

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.gateway.messages import Answer, GatewayResponse
from ipfs_stream_nb.content.gateway.negotiation import Choice, ContentPath
from ipfs_stream_nb.content.node import DagScope, Node
from ipfs_stream_nb.errors import BadRequestError, NotFoundError

CONTENT_TYPE: Final = "application/vnd.ipld.car; version=1; order=dfs; dups=n"
"""What is sent, whatever was asked for. Duplicates are never repeated (`dups=y` asks for that): a DAG of ten blocks
can name each of them 1e19 times over. The specification has clients look here for what they got."""

_OFFSET: Final = re.compile(r"-?[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class CarParams:
    """The part of the DAG that is wanted."""

    scope: DagScope
    entity_bytes: tuple[int, int | None] | None


def parse_params(query: dict[str, str], choice: Choice) -> CarParams:
    """Check all parameters; those of the URL win over those in Accept (IPIP-523).

    `entity-bytes` implies `dag-scope=entity`. Raises BadRequestError naming the parameter and what it may be.
    """
    for name, allowed in (("version", ("1",)), ("order", ("dfs", "unk")), ("dups", ("y", "n"))):
        value = query.get(f"car-{name}") or choice.params.get(name) or allowed[0]
        if value not in allowed:
            raise BadRequestError(f"CAR {name} {value[:40]!r} is not supported; {' and '.join(allowed)} are")
    scope = query.get("dag-scope", "all")
    if scope not in {"block", "entity", "all"}:
        raise BadRequestError(f"dag-scope is block, entity or all, not {scope[:40]!r}")
    entity_bytes = None
    if "entity-bytes" in query:
        entity_bytes = _entity_bytes(query["entity-bytes"])
        scope = "block" if scope == "block" else "entity"
    return CarParams(cast("DagScope", scope), entity_bytes)


def _entity_bytes(text: str) -> tuple[int, int | None]:
    """`from:to`, both counted in; negative from the end; `*` for the end."""
    first, colon, last = text.partition(":")
    if not colon or not _OFFSET.fullmatch(first) or not (last == "*" or _OFFSET.fullmatch(last)):
        raise BadRequestError(
            f"entity-bytes is from:to in bytes, like 0:1023, -1024:* or 0:-1; not {text[:40]!r}"
        )
    start, stop = int(first), None if last == "*" else int(last)
    if stop is not None and (start < 0) == (stop < 0) and start > stop:
        raise BadRequestError(f"entity-bytes {text} ends before it begins")
    return start, stop


async def serve_car(
    node: Node, answer: Answer, path: ContentPath, cid: CID, choice: Choice
) -> GatewayResponse:
    """A CAR of the path, streamed: there is no Content-Length, and no ranges.

    A bare CID is not resolved first, so that any DAG can be had, UnixFS or not; that its blocks are missing then
    shows in the body's first piece.
    """
    params = parse_params(answer.request.query, choice)
    early = answer.precondition(_etag(path, cid, params))
    if early is not None:
        return early
    roots: tuple[CID, ...] = (cid,)
    if not path.is_root:
        roots = (await node.stat(path.node_path)).roots
    elif answer.is_head and not cid.is_identity and not await node.block_has(cid):
        raise NotFoundError(f"this node does not have {cid}; add it, or import a CAR that holds it")
    answer.set_roots(roots)
    answer.set(Content_Type=CONTENT_TYPE, Accept_Ranges="none")
    name = "_".join([str(cid), *path.names[-1:]])
    answer.set_disposition(CONTENT_TYPE, f"{name}.car", attachment=True)
    if answer.is_head:
        return answer.respond(200)
    body = node.export_car(path.node_path, scope=params.scope, entity_bytes=params.entity_bytes)
    return answer.respond(200, body)


def _etag(path: ContentPath, cid: CID, params: CarParams) -> str:
    """Weak: the blocks and their order are settled, their bytes in the CAR may change with the version."""
    key = "\0".join([path.node_path, params.scope, str(params.entity_bytes)])
    return f'W/"{cid}.car.{hashlib.sha256(key.encode()).hexdigest()[:16]}"'
