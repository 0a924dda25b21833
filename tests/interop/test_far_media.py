"""A film of 50 MB that only a node on another host has, counted on the way."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import ipfs_stream_nb as ipfs
from fault_proxy import Fault, FaultProxy, Request
from ipfs_stream_nb import samples
from ipfs_stream_nb.clients.sync import Client
from long_video import looped

SECONDS, COPIES = 6, 38
KIB = 1024


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four minutes of 720p with the index at the end, some 50 MB."""
    folder = tmp_path_factory.mktemp("film")
    small = samples.video(
        folder / "small.mp4", width=1280, height=720, duration=SECONDS, frame_rate=25, bit_rate=1_600_000
    )
    path = looped(folder / "film.mp4", small.read_bytes(), SECONDS, COPIES)
    assert 45e6 < path.stat().st_size < 60e6
    assert path.read_bytes()[:64].count(b"moov") == 0
    return path


@pytest.fixture
async def client(two_hosts, tmp_path, monkeypatch):
    """A client whose node is the near Kubo, behind a proxy that counts; its block files are not read."""
    two_hosts.hurry()
    monkeypatch.setattr("ipfs_stream_nb.content.kubo.flatfs.FlatFS.of_daemon", lambda *_: None)
    async with FaultProxy(two_hosts.near.api) as proxy:
        monkeypatch.setenv("IPFS_API", proxy.url)
        client = await asyncio.to_thread(ipfs.connect, repo=tmp_path / "repo", node="kubo")
        client.proxy = proxy
        yield client
        await asyncio.to_thread(client.close)


def first_frame(client: Client, cid: str, at: float) -> np.ndarray:
    """The picture at a time."""
    return client.frames(cid, at, count=1).array[0]


async def test_the_first_frame_and_a_seek_cost_little(two_hosts, client, film):
    """Under 2 % of the film for the first frame, under 1 MiB for a seek: at the proxy, and between the hosts."""
    cid = two_hosts.add_far(film, "--chunker=size-262144")
    size = film.stat().st_size
    proxy, relay = client.proxy, two_hosts.far.relay
    counts = [(proxy.bytes_out, relay.from_target)]
    for at in (0.0, 120.6, 200.9, 33.3):
        await asyncio.to_thread(first_frame, client, cid, at)
        counts.append((proxy.bytes_out, relay.from_target))
    costs = [(after[0] - before[0], after[1] - before[1]) for before, after in pairwise(counts)]
    print(f"{size=} {costs=}")
    assert max(costs[0]) < 0.02 * size
    assert all(max(cost) < 1024 * KIB for cost in costs[1:])


async def test_a_far_film_is_the_same_to_the_byte(two_hosts, client, film):
    """All of it, while the connection to Kubo is cut again and again, equals the original."""
    cid = two_hosts.add_far(film, "--chunker=size-1048576")
    rng = random.Random(4)

    def rule(request: Request) -> Fault | None:
        breaks = "block/get" in request.path and rng.random() < 0.1
        return Fault(cut=rng.randrange(100_000)) if breaks else None

    client.proxy.rule = rule
    found = await asyncio.to_thread(client.cat, cid)
    assert found == film.read_bytes()
