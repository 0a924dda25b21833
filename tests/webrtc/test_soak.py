"""Viewers that come, seek, leave and vanish, for as long as one likes: what the server holds stays the same.

IPFS_STREAM_SOAK_SECONDS=7200 pytest -s tests/webrtc/test_soak.py
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import statistics
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

import psutil
import pytest

from ipfs_stream_nb import samples
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.errors import UnsupportedMediaError
from ipfs_stream_nb.media.worker.limits import WorkerLimits
from ipfs_stream_nb.media.worker.pool import WorkerPool
from ipfs_stream_nb.webrtc.manager import WebRTCStreamingManager
from ipfs_stream_nb.webrtc.slots import PeerLimits
from webrtc.viewer import Viewer, wait_until

SECONDS = float(os.environ.get("IPFS_STREAM_SOAK_SECONDS", "3"))
VIEWERS = 3
"""At once."""
PATIENCE = 30.0
"""Seconds for anything: on a busy machine nothing is quick."""
MAX_GROWTH = 16 * 2**20
"""Bytes by which memory may differ between the first half of the rounds and the second. In 150 rounds it rose by 25 MiB, ever
more slowly; the objects that Python's collector knows stayed as many."""
ENDS = ("leaves", "vanishes", "is closed", "never answers")
DURATION = 6.0


@dataclass
class Held:
    """What the server holds between two rounds. The viewers, who live in the same process, are gone by then."""

    tasks: int
    processes: int
    files: int
    memory: int

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        process = psutil.Process()
        return cls(
            len(asyncio.all_tasks()), len(process.children()), process.num_fds(), process.memory_info().rss
        )

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.tasks, self.processes, self.files


class Soak:
    """Rounds of viewers."""

    def __init__(self, manager: WebRTCStreamingManager, cids: dict[str, str]) -> None:
        self.manager, self.cids = manager, cids
        self.done: Counter[str] = Counter()
        self._random = random.Random(6)

    async def round(self) -> None:
        """As many viewers as there are at once, each with another end, and one who asks for what is no media."""
        ends = self._random.sample(ENDS, VIEWERS)
        async with asyncio.TaskGroup() as group:
            for end in ends:
                group.create_task(self._visit(end, self._random.choice(("webm", "mp4", "silent"))))
            group.create_task(self._refused())
        await wait_until(lambda: not self.manager.peer_connections, PATIENCE)

    async def _visit(self, end: str, cid: str) -> None:
        self.done[end] += 1
        viewer = Viewer()
        try:
            start = self._random.uniform(0, DURATION)
            offer = await self.manager.create_offer(self.cids[cid], start=start, loop=True)
            pc_id = offer["pc_id"]
            if end != "never answers":
                await self.manager.handle_answer(pc_id, await viewer.answer(offer["sdp"]))
                await self._watch(viewer, pc_id)
            if end == "vanishes":
                transport = viewer.pc.getTransceivers()[0].receiver.transport.transport
                for protocol in transport._connection._protocols:
                    protocol.datagram_received = lambda *_args: None
                await wait_until(lambda: pc_id not in self.manager.peer_connections, PATIENCE)
            elif end != "leaves":
                await self.manager.close_peer_connection(pc_id)
        finally:
            await viewer.close()

    async def _watch(self, viewer: Viewer, pc_id: str) -> None:
        for _ in range(3):
            count = len(viewer.pictures)
            await viewer.until(lambda least=count + 5: len(viewer.pictures) >= least, PATIENCE)
            self.manager.seek(pc_id, self._random.uniform(0, DURATION))
            self.done["seeks"] += 1
        self.manager.set_quality(pc_id, self._random.choice(("very_low", "low", "auto")))
        self.manager.pause(pc_id)
        self.manager.resume(pc_id)
        await self.manager.get_stats(pc_id)

    async def _refused(self) -> None:
        with pytest.raises(UnsupportedMediaError):
            await self.manager.create_offer(self.cids["text"])


@pytest.mark.timeout(SECONDS + 120)
async def test_nothing_piles_up(tmp_path, monkeypatch):
    """Between rounds of joins, seeks and all kinds of ends there are as many tasks, processes and open files as before the
    first one, and memory does not grow."""
    monkeypatch.setattr("aioice.ice.CONSENT_INTERVAL", 0.1)
    monkeypatch.setattr("aioice.stun.RETRY_RTO", 0.3)
    clips = {
        "webm": samples.video(kind="webm", width=160, height=120, duration=DURATION),
        "mp4": samples.video(kind="mp4", width=160, height=120, duration=DURATION, faststart=False),
        "silent": samples.video(
            kind="mp4", width=160, height=120, duration=DURATION, audio=False, b_frames=0
        ),
        "text": b"Dear reader, this is a letter, not a film.\n" * 400,
    }
    before = set(psutil.Process().children())
    async with await EmbeddedNode.open(tmp_path / "repo") as node:
        pool = WorkerPool(WorkerLimits(linger_seconds=0.1))
        manager = WebRTCStreamingManager(node, sources=pool.open, limits=PeerLimits(allow_loopback=True))
        soak = Soak(manager, {name: await add(node, data) for name, data in clips.items()})
        try:
            held = await soaked(soak, pool)
        finally:
            await manager.close_all_connections()
            await pool.close()
    # other tests of this process keep a Kubo, which may end meanwhile
    assert set(psutil.Process().children()) <= before
    memory = [one.memory for one in held]
    middle = len(memory) // 2
    early, late = statistics.median(memory[:middle]), statistics.median(memory[middle:])
    print(
        f"{len(held) - 1} rounds in {SECONDS:g} s ({dict(soak.done)}); (tasks, processes, files): "
        f"{held[0].counts} to {held[-1].counts}; memory: {early / 2**20:.1f} to {late / 2**20:.1f} MiB"
    )
    assert late - early < MAX_GROWTH


async def soaked(soak: Soak, pool: WorkerPool) -> list[Held]:
    """Rounds until the time is over; what was held before and after each."""
    await soak.round()  # imports, caches
    held: list[Held] = []
    end = time.monotonic() + SECONDS
    while len(held) < 2 or time.monotonic() < end:
        if held:
            await soak.round()
        await wait_until(lambda: len(pool.opened) == 0, PATIENCE)
        await pool.warm()
        if held:
            with suppress(TimeoutError):
                await wait_until(lambda: Held.now().counts == held[0].counts)
        else:
            await settled()
        held.append(Held.now())
        assert held[-1].counts == held[0].counts, "tasks, processes, files"
    return held


async def settled() -> None:
    """Wait until two looks see the same: nothing that still ends is to be taken for what stays."""
    async with asyncio.timeout(PATIENCE):
        before = None
        while before != (before := Held.now().counts):  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.5)


async def add(node: EmbeddedNode, data: bytes) -> str:
    async def pieces():
        yield data

    return str((await node.add(pieces())).cid)
