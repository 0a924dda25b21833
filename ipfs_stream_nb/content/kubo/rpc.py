"""`KuboRPC`: what is asked of a Kubo daemon, with its units and shapes turned into plain ones."""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import time
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing
from typing import Any, Final

from ipfs_stream_nb.content.cid import CID, BytesLike
from ipfs_stream_nb.content.dag_pb import MAX_BLOCK
from ipfs_stream_nb.content.kubo.answers import Answer, parse_pins
from ipfs_stream_nb.content.kubo.transport import (
    ANSWER_TIMEOUT,
    MIN_VERSION,
    SLOW_TIMEOUT,
    KuboTransport,
    Options,
    within,
)
from ipfs_stream_nb.errors import NotFoundError, RetrievalError, RetrievalTimeoutError

BLOCK_TIMEOUT: Final = 30.0
"""Seconds that a daemon may look for a block on its network."""
MARGIN: Final = 5.0
"""Seconds that it may take beside that."""
BLOCK_TRANSFER: Final = 20.0
"""Seconds that a block may be on its way, beside both."""
ADD_TIMEOUT: Final = 120.0
"""Seconds from the end of a file that is added to its CID: the daemon has taken the file in by then."""
PIN_STALL = 120.0
"""Seconds in which a pin must find a further block."""
PING_TIMEOUT: Final = 10.0
"""Seconds without an answer to a ping."""
MAX_LIST: Final = 4 * 1024 * 1024
"""Bytes of a list of peers: some 15,000 of them."""
MAX_PINS: Final = 64 * 1024 * 1024
"""Bytes of a list of pins: some 750,000 of them."""
MAX_DURATION: Final = 64
"""Characters of a duration."""
QUERY_ERROR: Final = 3
PROVIDER: Final = 4
VALUE: Final = 5
"""Kinds of events in the answers of routing commands."""
_GO_UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6, "us": 1e-6, "ns": 1e-9}
_GO_PART: Final = re.compile(r"([0-9]*\.?[0-9]+)(h|ms|m|s|µs|us|ns)")


def go_seconds(text: str) -> float | None:
    """Seconds of a duration as Go prints it ("1m2.5s", "12.3ms"); None for what is none ("n/a")."""
    parts = _GO_PART.findall(text[:MAX_DURATION])
    if not parts or "".join(number + unit for number, unit in parts) != text.lstrip("-+"):
        return None
    return sum(float(number) * _GO_UNITS[unit] for number, unit in parts)


class KuboRPC(KuboTransport):
    """Commands of the RPC. Errors are those of KuboTransport.request."""

    async def version(self) -> str:
        """The daemon's version, such as "0.43.1"."""
        return (await self.json("version")).text("Version")

    async def check(self) -> str:
        """The version. Raises RetrievalError for a daemon that is too old."""
        version = await self.version()
        numbers = re.match(r"([0-9]{1,6})\.([0-9]{1,6})(?:\.|$)", version)
        if numbers is None:
            raise RetrievalError(
                f"{self.address.name} is no Kubo: it says that its version is {version[:40]!r}"
            )
        if (int(numbers[1]), int(numbers[2])) < MIN_VERSION:
            oldest = ".".join(str(part) for part in MIN_VERSION)
            raise RetrievalError(
                f"{self.address.name} has version {version[:40]}, and {oldest} or newer is needed"
            )
        return version

    async def id(self) -> str:
        """The daemon's own peer id."""
        return (await self.json("id")).text("ID")

    # -- blocks

    async def block_get(self, cid: CID, *, offline: bool = False, patience: float = BLOCK_TIMEOUT) -> bytes:
        """A block, not verified: with `offline` only where the daemon has it, else after at most `patience` seconds.

        Raises NotFoundError and RetrievalTimeoutError.
        """
        name, silence = self.address.name, patience + MARGIN
        options: Options = {"offline": True} if offline else {"timeout": f"{patience:g}s"}
        limit = silence + BLOCK_TRANSFER
        pieces, size = [], 0
        async with (
            within(limit, f"{name} had not given the whole of block {cid} after {limit:g} s"),
            self.request("block/get", str(cid), options=options, silence=silence) as response,
        ):
            if (response.content_length or 0) > MAX_BLOCK:
                raise RetrievalError(f"{name} gives {response.content_length:,} bytes for a block")
            async for piece in response.content.iter_any():
                pieces.append(piece)
                size += len(piece)
                if size > MAX_BLOCK:
                    break  # enough to see that it is none
        return b"".join(pieces)

    async def block_put(self, data: BytesLike, *, codec: str) -> CID:
        """Store a block; its CIDv1 with sha2-256."""

        async def source() -> AsyncGenerator[BytesLike, None]:
            yield data

        options: Options = {"cid-codec": codec, "mhtype": "sha2-256", "allow-big-block": True}
        lines = self.upload("block/put", source=source(), options=options, silence=ANSWER_TIMEOUT)
        async with aclosing(lines):
            async for line in lines:
                return line.cid("Key")
        raise RetrievalError(f"{self.address.name} did not say that it has stored the block")

    async def block_size(self, cid: CID) -> int:
        """Bytes of a block that the daemon holds itself. Raises NotFoundError."""
        return (await self.json("block/stat", str(cid), offline=True)).number("Size")

    async def block_has(self, cid: CID) -> bool:
        """Whether the daemon holds the block itself."""
        try:
            await self.block_size(cid)
        except NotFoundError:
            return False
        return True

    # -- files

    async def add(self, source: AsyncIterable[BytesLike], *, options: Options) -> tuple[CID, int]:
        """Add a file: its CID and the bytes of its blocks. `options` are those of `ipfs add`."""
        last: Answer | None = None
        lines = self.upload("add", source=source, options=options, silence=ADD_TIMEOUT)
        async with aclosing(lines):
            async for line in lines:
                last = line
        if last is None:
            raise RetrievalError(f"{self.address.name} stopped in the middle of add: it told no CID")
        return last.cid("Hash"), last.number("Size", 0)

    # -- pins and the repo

    async def pin_add(self, cid: CID, name: str) -> AsyncGenerator[int, None]:
        """Pin recursively: the number of blocks that were gone through, growing. Ends once it is pinned."""
        pinned, found, since = False, -1, time.monotonic()
        options: Options = {"recursive": True, "progress": True, "name": name or None}
        async with aclosing(self.lines("pin/add", str(cid), options=options, silence=PIN_STALL)) as lines:
            async for line in lines:
                pinned = pinned or line.has("Pins")
                blocks = line.number("Progress", 0)
                if blocks > found:
                    found, since = blocks, time.monotonic()
                    yield blocks
                if not pinned and time.monotonic() - since > PIN_STALL:
                    raise RetrievalTimeoutError(
                        f"{self.address.name} found no further block of {cid} in {PIN_STALL:g} s, after {found}"
                    )
        if not pinned:
            raise RetrievalError(f"{self.address.name} could not pin {cid}: a part of it cannot be found")

    async def pin_rm(self, cid: CID) -> None:
        """Unpin. Raises NotFoundError."""
        await self.json("pin/rm", str(cid))

    async def is_pinned(self, cid: CID) -> bool:
        """Whether the CID is itself pinned recursively."""
        try:
            return bool((await self.json("pin/ls", str(cid), type="recursive")).part("Keys").plain)
        except NotFoundError:
            return False

    async def pin_ls(self) -> dict[CID, str]:
        """The recursive pins and their names, in one answer: a list in lines could end early without an error."""
        options: Options = {"type": "recursive", "names": True}
        data = await self.body("pin/ls", options=options, limit=MAX_PINS, transfer=SLOW_TIMEOUT)
        return await asyncio.to_thread(parse_pins, data, self.source("pin/ls"))

    async def repo_stat(self) -> dict[str, Any]:
        """RepoSize, StorageMax (bytes), NumObjects, RepoPath, Version."""
        found = await self.json("repo/stat")
        return found.plain | {
            "RepoPath": found.text("RepoPath"),
            **{key: found.number(key) for key in ("RepoSize", "StorageMax", "NumObjects")},
        }

    async def repo_gc(self) -> int:
        """Collect garbage: how many blocks went."""
        count = 0
        lines = self.lines("repo/gc", options={"stream-errors": True}, silence=SLOW_TIMEOUT)
        async with aclosing(lines):
            async for line in lines:
                if error := line.words("Error"):
                    raise RetrievalError(f"{self.address.name}, repo/gc: {error}")
                line.part("Key").cid("/")
                count += 1
        return count

    # -- peers

    async def swarm_peers(self) -> list[dict[str, Any]]:
        """Connected peers: `peer` id, `address`, `latency` in seconds (None where it is not known)."""
        found = await self.json("swarm/peers", latency=True, limit=MAX_LIST)
        return [
            {
                "peer": entry.text("Peer"),
                "address": entry.text("Addr"),
                "latency": go_seconds(entry.text("Latency", "")),
            }
            for entry in found.parts("Peers")
        ]

    async def ping(self, peer: str, *, count: int = 1, silence: float = PING_TIMEOUT) -> float:
        """Seconds to a peer and back: the median of `count` pings. Raises RetrievalError for one that is not there."""
        times = []
        async with aclosing(self.pings(peer, count=count, silence=silence)) as answers:
            async for seconds, text in answers:
                if seconds is None:
                    raise RetrievalError(f"{self.address.name} cannot ping {peer}: {text}")
                times.append(seconds)
        if not times:
            raise RetrievalError(f"{peer} did not answer a ping")
        return float(statistics.median(times))

    async def pings(
        self, peer: str, *, count: int, silence: float = PING_TIMEOUT
    ) -> AsyncGenerator[tuple[float | None, str], None]:
        """Of each ping, seconds to the peer and back; None for one that failed, and why."""
        lines = self.lines("ping", peer, options={"count": count}, silence=silence)
        async with aclosing(lines):
            async for line in lines:
                if not line.flag("Success"):
                    yield None, line.words("Text") or "the ping failed"
                elif nanoseconds := line.number("Time", 0):  # its other lines are for people
                    yield nanoseconds / 1e9, ""

    async def peering_add(self, address: str) -> None:
        """Keep a connection to a peer (a multiaddr with /p2p/…), until the daemon ends."""
        await self.json("swarm/peering/add", address)

    async def peering_rm(self, peer: str) -> None:
        """Undo peering_add."""
        await self.json("swarm/peering/rm", peer)

    async def peering_ls(self) -> list[str]:
        """The ids of the peers that are kept."""
        return [entry.text("ID") for entry in (await self.json("swarm/peering/ls")).parts("Peers")]

    # -- configuration

    async def config(self, key: str | None = None) -> Any:
        """The configuration, or one value of it ("Peering.Peers")."""
        if key is None:
            return (await self.json("config/show")).plain
        return (await self.json("config", key)).any("Value")

    async def set_config(self, key: str, value: Any) -> None:
        """Set one value, for good; it holds from the daemon's next start on."""
        await self.json("config", key, json.dumps(value), json=True)

    # -- routing and names

    async def provide(self, cid: CID) -> None:
        """Announce that this daemon has a root. Raises RetrievalError where it has no routing or no peers."""
        async with aclosing(self.lines("routing/provide", str(cid), silence=SLOW_TIMEOUT)) as lines:
            async for line in lines:
                if line.number("Type", 0) == QUERY_ERROR and line.has("Extra"):
                    raise RetrievalError(f"{self.address.name}, routing/provide: {line.words('Extra')}")

    async def find_providers(self, cid: CID, *, count: int = 20) -> list[str]:
        """Ids of peers that say they have a root."""
        found: dict[str, None] = {}
        lines = self.lines("routing/findprovs", str(cid), options={"num-providers": count})
        async with aclosing(lines):
            async for line in lines:
                if line.number("Type", 0) == PROVIDER:
                    found.update({entry.text("ID"): None for entry in line.parts("Responses")})
        return list(found)

    async def bitswap_stat(self) -> dict[str, Any]:
        """Counters of the exchange: BlocksReceived, DataReceived, DupDataReceived, BlocksSent, …"""
        return (await self.json("bitswap/stat", limit=MAX_LIST)).plain

    async def name_resolve(self, name: str) -> str:
        """What an IPNS or DNSLink name stands for: "/ipfs/…". Raises NotFoundError."""
        return (await self.json("name/resolve", name, recursive=True)).text("Path")

    async def routing_get(self, key: str) -> bytes:
        """The value of a routing key: an IPNS record for "/ipns/…"."""
        async with aclosing(self.lines("routing/get", key)) as lines:
            async for line in lines:
                if line.number("Type", 0) == VALUE:
                    return line.base64("Extra")
        raise NotFoundError(f"{self.address.name} finds nothing at {key}")

    # -- DAGs

    async def dag_import(self, source: AsyncIterable[BytesLike], *, pin: bool) -> None:
        """Store a CAR, and pin its roots; those are to be whole."""
        done = False
        options: Options = {"pin-roots": pin, "stats": True, "allow-big-block": True}
        lines = self.upload("dag/import", source=source, options=options, silence=SLOW_TIMEOUT)
        async with aclosing(lines):
            async for line in lines:
                if line.has("Root") and (reason := line.part("Root").words("PinErrorMsg")):
                    root = line.part("Root").part("Cid").cid("/")
                    raise RetrievalError(f"{self.address.name} could not pin {root}: {reason}")
                done = done or line.has("Stats")
        if not done:
            raise RetrievalError(f"{self.address.name} stopped in the middle of dag/import")

    async def dag_stat(self, cid: CID) -> tuple[int, int]:
        """Blocks and bytes of a whole DAG that the daemon holds, each block once. Raises NotFoundError."""
        found = await self.json("dag/stat", str(cid), progress=False, offline=True, silence=SLOW_TIMEOUT)
        if not found.plain:
            return 1, 0  # one empty block: Kubo's ratio of nothing to nothing is no JSON, so it says nothing
        return sum(one.number("NumBlocks") for one in found.parts("DagStats")), found.number("TotalSize")

    async def dag_export(self, cid: CID) -> AsyncGenerator[bytes, None]:
        """A CARv1 of a whole DAG that the daemon holds, not verified.

        It ends early where the daemon cannot read a block, and Kubo says so only in an HTTP trailer: the daemon is
        asked afterwards whether it has all of it. Raises NotFoundError where it has not.
        """
        options: Options = {"progress": False, "offline": True}
        car = self.stream("dag/export", str(cid), options=options, silence=SLOW_TIMEOUT)
        async with aclosing(car):
            async for piece in car:
                yield piece
        await self.dag_stat(cid)
