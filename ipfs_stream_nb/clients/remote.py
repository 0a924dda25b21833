"""`RemoteNode`: the node interface over the HTTP surface of our own server.

The server verifies every block before it answers, and the connection to it is authenticated, so that what it
sends of files is taken as it is; single blocks are hashed here once more, since that costs next to nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import aclosing
from dataclasses import MISSING, fields
from typing import Any, Final, TypeVar, cast

from cachetools import TTLCache

from ipfs_stream_nb.clients.http import SLOW_TIMEOUT, BrokenOffError, ServerHTTP
from ipfs_stream_nb.clients.reading import file_at
from ipfs_stream_nb.clients.remote_writers import RemoteFileWriter, RemoteTreeWriter
from ipfs_stream_nb.clients.server import ServerInfo
from ipfs_stream_nb.clients.uploads import directory_parts, file_chunks, multipart_type
from ipfs_stream_nb.content.car import encode_header, encode_section
from ipfs_stream_nb.content.cid import CID, BytesLike
from ipfs_stream_nb.content.node import (
    Added,
    ByteProgress,
    CarInfo,
    DagScope,
    Entry,
    GCResult,
    Origin,
    Origins,
    Path,
    Pin,
    PinProgress,
    RepoStat,
    Stat,
)
from ipfs_stream_nb.content.resolver import ipns_name_of, parse_path
from ipfs_stream_nb.errors import BadRequestError, NotFoundError, RetrievalError

T = TypeVar("T")

PIECE_BYTES: Final = 1024 * 1024
"""The largest piece that `cat` and `export_car` hand out."""
STAT_CACHE_SECONDS: Final = 5.0
"""How long a path's stat is remembered, as long as the embedded node does."""
STAT_CACHE_ENTRIES: Final = 1024
CAR_TYPE: Final = "application/vnd.ipld.car"
_FLAG: Final = {False: "0", True: "1"}


class RemoteNode:
    """A node behind the HTTP surface of an ipfs_stream_nb server. It belongs to the event loop that uses it."""

    kind = "remote"

    def __init__(self, server: ServerInfo, *, fetches: bool = False) -> None:
        """`fetches`: whether the server's node asks anybody for what it does not hold."""
        self.http = ServerHTTP(server)
        self.fetches = fetches
        self._stats: TTLCache[str, Stat] = TTLCache(STAT_CACHE_ENTRIES, STAT_CACHE_SECONDS)

    # -- reading

    async def fixed(self, path: Path) -> Path:
        """The path below a CID that a path below an IPNS name stands for at this time; other paths as they are."""
        name = ipns_name_of(path)
        if name is None:
            return path
        answer = await self.http.json("GET", "ipfs-stream/names", name)
        return str(answer["path"]) + str(path).split(name, 1)[1]

    async def stat(self, path: Path) -> Stat:
        """What stands at the end of a path."""
        where = _where(await self.fixed(path))
        cached = self._stats.get(where)
        if cached is None:
            cached = self._stats[where] = _read(Stat, await self.http.json("GET", "ipfs-stream/stat", where))
        return cached

    async def get_metadata(self, path: Path) -> dict[str, Any]:
        """The guide's metadata: see Stat.metadata."""
        return (await self.stat(path)).metadata(path)

    async def cat(
        self, path: Path, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """A file's bytes from `offset`, at most `length`, in pieces of up to 1 MiB."""
        if offset < 0 or (length is not None and length < 0):
            raise BadRequestError(f"offset and length are not negative; got {offset} and {length}")
        where, stat = await file_at(self, await self.fixed(path))
        if length == 0 or offset >= stat.size:
            return
        headers = {}
        if offset or length is not None:
            headers["Range"] = f"bytes={offset}-{'' if length is None else offset + length - 1}"
        try:
            async with self.http.request("GET", "ipfs", _where(where), headers=headers) as response:
                if headers and response.status != 206:
                    raise RetrievalError(f"{self.http.server.url} ignored the range that was asked for")
                async for piece in response.content.iter_chunked(PIECE_BYTES):
                    offset += len(piece)
                    yield piece
        except BrokenOffError:
            # an answer that has begun cannot say why it ends; asked for the next byte alone, the server does
            async with self.http.request(
                "GET", "ipfs", _where(where), headers={"Range": f"bytes={offset}-{offset}"}
            ):
                pass
            raise

    def cat_range(self, path: Path, start: int, length: int) -> AsyncGenerator[bytes, None]:
        """The guide's name for `cat` with an offset and a length (item 40)."""
        return self.cat(path, start, length)

    async def read(self, path: Path, offset: int, length: int) -> bytes:
        """`length` bytes at `offset` in one piece, fewer at the end of the file."""
        async with aclosing(self.cat(path, offset, length)) as pieces:
            return b"".join([piece async for piece in pieces])

    async def ls(self, path: Path, *, kinds: bool = False) -> AsyncGenerator[Entry, None]:
        """A directory's entries, in the order of the directory; `kinds` looks each one up."""
        where = _where(await self.fixed(path))
        params = {"kinds": _FLAG[kinds]}
        async with aclosing(self.http.lines("GET", "ipfs-stream/ls", where, params=params)) as lines:
            async for line in lines:
                yield _read(Entry, line)

    async def block_get(self, cid: CID) -> bytes:
        """One verified block."""
        async with self.http.request("GET", "ipfs", str(cid), params={"format": "raw"}) as response:
            block = await response.read()
        cid.verify(block)
        return block

    async def block_has(self, cid: CID) -> bool:
        """Whether the server's node has the block, and need not fetch it (RFC 9111, only-if-cached)."""
        headers = {"Cache-Control": "only-if-cached"}
        try:
            async with self.http.request("HEAD", "ipfs", str(cid), params={"format": "raw"}, headers=headers):
                return True
        except NotFoundError:
            return False

    async def sources(self, cid: CID) -> Origins:
        """Where the blocks below `cid` came from, of those that the server has."""
        answer = await self.http.json("GET", "ipfs-stream/sources", str(cid))
        origins = tuple(_read(Origin, record) for record in answer.get("origins", ()))
        return Origins(cid, origins, int(answer.get("missing", 0)))

    # -- writing

    async def block_put(self, data: BytesLike, *, codec: int, version: int = 1) -> CID:
        """Store one block under its sha2-256 CID, unpinned: as a CAR of one block."""
        cid = CID.of(data, codec, version)

        async def car() -> AsyncGenerator[bytes, None]:
            yield encode_header([cid])
            yield encode_section(cid, data)

        async with aclosing(car()) as source:
            await self.import_car(source, pin=False)
        return cid

    def writer(self, *, profile: str | None = None) -> RemoteFileWriter:
        """Begin a file; it is sent as it is written."""
        return RemoteFileWriter(self, profile)

    def tree_writer(self, *, profile: str | None = None) -> RemoteTreeWriter:
        """Begin a directory tree; each file is sent as it is added."""
        return RemoteTreeWriter(self, profile)

    async def add(
        self,
        source: AsyncIterable[BytesLike],
        *,
        profile: str | None = None,
        pin: bool = True,
        name: str = "",
        progress: ByteProgress | None = None,
    ) -> Added:
        """Add a file from a stream of bytes; progress counts what has been sent."""
        return await self._post(_pieces(source, progress), profile=profile, pin=pin, name=name)

    async def add_path(
        self,
        path: str,
        *,
        profile: str | None = None,
        pin: bool = True,
        name: str = "",
        hidden: bool = False,
        progress: ByteProgress | None = None,
    ) -> Added:
        """Add a local file or directory tree, sent as one request; symlinks stay symlinks."""
        chunks = await file_chunks(path)
        if chunks is not None:
            async with aclosing(chunks):
                return await self.add(chunks, profile=profile, pin=pin, name=name, progress=progress)
        boundary, content_type = multipart_type()
        parts = directory_parts(path, boundary, hidden=hidden, progress=progress)
        async with aclosing(parts):
            return await self._post(
                parts, profile=profile, pin=pin, name=name, content_type=content_type, wrap=True
            )

    async def add_directory(
        self, entries: dict[str, CID], *, profile: str | None = None, pin: bool = True, name: str = ""
    ) -> Added:
        """Make a directory of things that the server's node holds; names with `/` make sub-directories."""
        body = {name: str(cid) for name, cid in entries.items()}
        params = _add_params(profile, pin=pin, name=name)
        return _read(
            Added,
            await self.http.json(
                "POST", "ipfs-stream/directories", params=params, json_body={"entries": body}
            ),
        )

    async def _post(
        self,
        body: AsyncIterable[bytes],
        *,
        profile: str | None,
        pin: bool,
        name: str,
        content_type: str = "application/octet-stream",
        wrap: bool = False,
    ) -> Added:
        answer = await self.http.json(
            "POST",
            "ipfs",
            data=body,
            params=_add_params(profile, pin=pin, name=name) | {"wrap": _FLAG[wrap]},
            headers={"Content-Type": content_type},
            silence=SLOW_TIMEOUT,
        )
        return _read(Added, answer)

    async def import_car(
        self, source: AsyncIterable[BytesLike], *, pin: bool = True, progress: ByteProgress | None = None
    ) -> CarInfo:
        """Store a CAR's blocks (v1 or v2), every one verified by the server, and pin its roots."""
        answer = await self.http.json(
            "POST",
            "ipfs",
            data=_pieces(source, progress),
            params={"pin": _FLAG[pin]},
            headers={"Content-Type": CAR_TYPE},
            silence=SLOW_TIMEOUT,
        )
        return _read(CarInfo, answer)

    async def export_car(
        self, path: Path, *, scope: DagScope = "all", entity_bytes: tuple[int, int | None] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """A CARv1, depth first: the blocks on the way to the path's end, then what `scope` asks for."""
        where = _where(await self.fixed(path))
        params = {"format": "car", "dag-scope": scope}
        if entity_bytes is not None:
            start, stop = entity_bytes
            params["entity-bytes"] = f"{start}:{'*' if stop is None else stop}"
        async with self.http.request("GET", "ipfs", where, params=params) as response:
            async for piece in response.content.iter_chunked(PIECE_BYTES):
                yield piece

    # -- keeping

    async def pin(
        self, cid: CID, *, name: str = "", progress: Callable[[PinProgress], None] | None = None
    ) -> Pin:
        """Keep a root and everything below it. Raises RetrievalError naming the first missing block."""
        result = None
        lines = self.http.lines(
            "PUT", "ipfs-stream/pins", str(cid), params={"name": name}, silence=SLOW_TIMEOUT
        )
        async with aclosing(lines):
            async for line in lines:
                if line.get("type") == "result":
                    result = _read(Pin, line)
                elif progress is not None:
                    progress(_read(PinProgress, line))
        if result is None:
            raise RetrievalError(f"{self.http.server.url} broke off before {cid} was pinned")
        return result

    async def unpin(self, cid: CID) -> None:
        """Let garbage collection have it. Raises NotFoundError where there is no such pin."""
        async with self.http.request("DELETE", "ipfs-stream/pins", str(cid)):
            pass

    async def pins(self) -> list[Pin]:
        """All pins, oldest first."""
        answer = await self.http.json("GET", "ipfs-stream/pins")
        return [_read(Pin, record) for record in answer.get("pins", ())]

    async def remove(self, path: Path) -> GCResult:
        """Unpin a root and take away its blocks that nothing else needs."""
        self._stats.clear()
        return _read(GCResult, await self.http.json("DELETE", "ipfs", _where(path), silence=SLOW_TIMEOUT))

    async def gc(self) -> GCResult:
        """Take away every block that no pin and no running transfer needs."""
        self._stats.clear()
        return _read(GCResult, await self.http.json("POST", "ipfs-stream/gc", silence=SLOW_TIMEOUT))

    async def repo_stat(self) -> RepoStat:
        """The size and place of the server's store."""
        about = (await self.http.json("GET", "ipfs-stream/health")).get("node") or {}
        if about.get("state") not in {"ok", None}:
            raise RetrievalError(f"what the store holds cannot be told: {about['state']}")
        return _read(RepoStat, about | {"path": about.get("repo"), "size": about.get("repo_size")})

    async def swarm_peers(self) -> list[dict[str, Any]]:
        """None: a server tells how many its node has (health), and not which."""
        return []

    async def ping(self, peer: str) -> float:
        """Raise NotFoundError: a server pings nobody for its clients."""
        raise NotFoundError(f"a server pings no peers for its clients; open a KuboNode to ping {peer!r}")

    async def close(self) -> None:
        """End the session with the server. Idempotent."""
        await self.http.close()


def _where(path: Path) -> str:
    cid, names = parse_path(path)
    return "/".join([str(cid), *names])


def _add_params(profile: str | None, *, pin: bool, name: str) -> dict[str, str]:
    params = {"pin": _FLAG[pin], "name": name, "profile": profile}
    return {key: value for key, value in params.items() if value}


async def _pieces(
    source: AsyncIterable[BytesLike], progress: ByteProgress | None
) -> AsyncGenerator[bytes, None]:
    async for data in source:
        view = memoryview(data).cast("B")
        for at in range(0, len(view), PIECE_BYTES):
            piece = bytes(view[at : at + PIECE_BYTES])
            yield piece
            if progress is not None:
                progress(len(piece))


def _read(kind: type[T], record: dict[str, Any]) -> T:
    """A result dataclass out of its JSON; fields that are not known here are passed over."""
    values: dict[str, Any] = {}
    for field in fields(cast("Any", kind)):
        if field.name in record:
            values[field.name] = _value(field.name, record[field.name])
        elif field.default is MISSING:
            raise RetrievalError(f"the server's answer has no {field.name!r}; is it of another version?")
    return kind(**values)


def _value(name: str, value: Any) -> Any:
    if name == "cid":
        return CID.parse(value)
    if name in {"roots", "missing", "unpinned"}:
        return tuple(CID.parse(text) for text in value)
    return value
