"""An upload in a process of its own, to be killed: `python upload_child.py <repo> <seed> <size> <frame> <profile> [upload_id]`.

Prints `id <upload_id> <durable at the beginning>`, then a number for each time that more is durable, then `cid <cid>`. It goes on
with a byte of its input after each number, so that it is never done before it is killed.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys

from ipfs_stream_nb.content import uploads, writer
from ipfs_stream_nb.content.embedded import EmbeddedNode


def say(*words: object) -> None:
    """Print a line in one write: none is lost in a buffer when this process is killed."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def upload(repo: str, seed: str, *rest: str) -> None:
    """Begin or resume it, and write it to its end."""
    size, frame, profile, *ids = rest
    writer.BATCH_BYTES = uploads.BATCH_BYTES = 1 << 20
    uploads.CHECKPOINT_SECONDS = 0.01
    data = random.Random(int(seed)).randbytes(int(size))
    async with await EmbeddedNode.open(repo, min_free=0) as node:
        if ids:
            file = await node.uploads.resume(ids[0])
        else:
            file = await node.uploads.begin(size=len(data), profile=profile)
        told = file.durable
        say("id", file.id, told)
        for at in range(told, len(data), int(frame)):
            await file.write(data[at : at + int(frame)])
            if file.durable > told:
                told = file.durable
                say(told)
                os.read(0, 1)
        say("cid", (await file.finish()).cid)


if __name__ == "__main__":
    asyncio.run(upload(*sys.argv[1:]))
