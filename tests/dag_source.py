"""A block source over a dict, which counts what is asked of it: the reader's other side in its tests."""

from __future__ import annotations

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.importer import Block
from ipfs_stream_nb.errors import NotFoundError


class DictSource:
    """Blocks by CID, with the number of bytes and blocks handed out."""

    def __init__(self, blocks: list[Block] = ()) -> None:
        self.blocks = {block.cid: bytes(block.data) for block in blocks}
        self.gets: list[CID] = []
        self.bytes = 0

    async def get(self, cid: CID, start: int = 0, stop: int | None = None) -> bytes:
        """A block or a slice of it."""
        self.gets.append(cid)
        if cid not in self.blocks:
            raise NotFoundError(f"no {cid}")
        data = self.blocks[cid][start:stop]
        self.bytes += len(data)
        return data

    async def size(self, cid: CID) -> int:
        """A block's length."""
        if cid not in self.blocks:
            raise NotFoundError(f"no {cid}")
        return len(self.blocks[cid])
