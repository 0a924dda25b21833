"""A hundred uploads that were interrupted, each resumed to the right CID without sending durable bytes again."""

import asyncio
import os
import random
import sys
from contextlib import asynccontextmanager, suppress

import pytest

from cutting_proxy import Cut, CuttingProxy
from ipfs_stream_nb.clients import transfer_socket
from ipfs_stream_nb.clients.content import AsyncClient
from ipfs_stream_nb.clients.remote import RemoteNode
from ipfs_stream_nb.clients.server import ServerInfo
from ipfs_stream_nb.content.importer import import_bytes

SOCKETS, CLIENTS, SERVERS = 84, 8, 8
"""Interruptions of each kind: 100 in all."""
FRAME = 64 * 1024


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """A client that comes again at once, as often as it takes a server to start."""
    monkeypatch.setattr(transfer_socket, "FIRST_DELAY", 0.02)
    monkeypatch.setattr(transfer_socket, "MAX_DELAY", 0.2)
    monkeypatch.setattr(transfer_socket, "TRIES", 300)


SERVER = """
import sys
from functools import partial
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb_server.standalone import StandaloneServer
server = StandaloneServer(partial(EmbeddedNode.open, sys.argv[1]))
server.token = sys.argv[2]
server.start()
print(server.url, flush=True)
sys.stdin.read()
"""
CLIENT = """
import asyncio, sys
from ipfs_stream_nb.clients.content import AsyncClient
from ipfs_stream_nb.clients.remote import RemoteNode
from ipfs_stream_nb.clients.server import ServerInfo
url, token, path, upload_id = sys.argv[1:]
async def main():
    info = ServerInfo.at(url, token)
    async with AsyncClient(RemoteNode(info), info) as client:
        added = await client.upload(
            path, upload_id=upload_id or None, frame_size=65536, progress=False,
            on_upload_id=lambda id: print(id, flush=True),
        )
        print(added.cid, flush=True)
asyncio.run(main())
"""


@asynccontextmanager
async def started(script, *arguments):
    """A Python process, killed at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, *map(str, arguments), stdin=-1, stdout=-1, env=dict(os.environ)
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def line(process):
    """The next line that it prints."""
    return (await process.stdout.readline()).decode().strip()


def check_resumed(passed, size):
    """Each connection began at or behind what was told to be durable before it, and sent little but the rest."""
    told = 0
    for one in passed:
        if one.offset is not None:
            assert one.offset >= told
            told = one.offset
        told = max(told, one.durable)
        assert one.up <= size - (one.offset or 0) + 40_000


@pytest.mark.slow
async def test_cut_sockets(server):
    """84 sockets cut at random bytes: every upload goes on by itself."""
    rng = random.Random(11)
    async with CuttingProxy(server.url) as proxy:
        info = ServerInfo.at(proxy.url, server.token)
        async with AsyncClient(RemoteNode(info), info) as client:
            for number in range(SOCKETS // 12):
                data = rng.randbytes(6 << 20)
                proxy.passed.clear()
                cuts = [rng.choice([rng.randrange(500), rng.randrange(450_000)]) for _ in range(10)]
                proxy.cuts.extend(Cut(up=cut) for cut in cuts)
                proxy.cuts.extend(Cut(down=rng.randrange(100, 600)) for _ in range(2))
                source = (
                    data if number % 2 else (data[at : at + 99_999] for at in range(0, len(data), 99_999))
                )
                added = await client.upload(source, frame_size=FRAME, progress=False)
                assert added.cid == import_bytes(data).root
                assert not proxy.cuts
                check_resumed(proxy.passed, len(data))


@pytest.mark.slow
async def test_killed_clients(server, tmp_path):
    """8 clients killed by SIGKILL at random bytes: another process goes on by the upload_id."""
    rng = random.Random(12)

    async def one_upload(number):
        path = tmp_path / f"{number}.bin"
        data = rng.randbytes(4 << 20)
        path.write_bytes(data)
        async with CuttingProxy(server.url) as proxy:
            upload_id = ""
            for _ in range(CLIENTS // 2):
                async with started(CLIENT, proxy.url, server.token, path, upload_id) as process:
                    proxy.cuts.append(Cut(up=rng.randrange(100_000, 900_000), act=process.kill))
                    upload_id = await line(process) or upload_id
                    assert await process.wait() == -9
            async with started(CLIENT, proxy.url, server.token, path, upload_id) as process:
                assert await line(process) == upload_id
                assert await line(process) == str(import_bytes(data).root)
            assert len(proxy.passed) == CLIENTS // 2 + 1
            assert proxy.passed[-1].offset > 0
            check_resumed(proxy.passed, len(data))

    await asyncio.gather(one_upload(1), one_upload(2))


@pytest.mark.slow
async def test_killed_servers(repo):
    """8 servers killed by SIGKILL at random bytes, the next one started on the same store: the client just goes on."""
    rng = random.Random(13)
    data = rng.randbytes(5 << 20)
    async with CuttingProxy("http://127.0.0.1:1/") as proxy:
        info = ServerInfo.at(proxy.url, "a token")
        died = asyncio.Event()

        async def serve():
            for number in range(SERVERS + 1):
                async with started(SERVER, repo, "a token") as process:
                    if number < SERVERS:
                        hold = rng.randrange(50_000, 250_000)
                        proxy.cuts.append(Cut(up=hold + rng.randrange(300_000), act=process.kill, hold=hold))
                    proxy.upstream = await line(process)
                    died.set()
                    await process.wait()

        serving = asyncio.create_task(serve())
        await died.wait()
        try:
            async with AsyncClient(RemoteNode(info), info) as client:
                added = await client.upload(data, frame_size=FRAME, progress=False)
            assert added.cid == import_bytes(data).root
            began = [one for one in proxy.passed if one.offset is not None]
            assert len(began) == SERVERS + 1
            assert began[-1].offset > 0
            check_resumed(proxy.passed, len(data))
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
