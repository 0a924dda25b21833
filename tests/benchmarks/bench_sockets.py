"""Streams over WebSockets: a download beside the guide's own design, an upload beside the least that an add must do.

The download's peer is the guide's server as it would be written today: Starlette under uvicorn, 64 KiB read from a file
and sent as a frame, with the faster of uvicorn's WebSocket implementations. The same client reads from both: a raw
socket into one reused buffer. The upload's client masks with zeros, so that masking costs the server alone.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path

from bench_add import hash_and_append
from http_servers import TOKEN, Served, add_file, free_port, jupyter
from measure import MIB, AnonymousMemory, Result, random_file, report, settle

FRAME = 65_536
HEADER = 10
"""Bytes before a frame of 65,536 (RFC 6455, section 5.2)."""

GUIDE = """
import sys, uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

async def stream(websocket):
    await websocket.accept()
    await websocket.send_json({"size": 0})
    with open(sys.argv[1], "rb") as file:
        while chunk := file.read(65536):
            await websocket.send_bytes(chunk)
    await websocket.close()

app = Starlette(routes=[WebSocketRoute("/stream", stream)])
uvicorn.run(app, port=int(sys.argv[2]), ws=sys.argv[3], ws_per_message_deflate=False, log_level="warning")
"""
IMPLEMENTATIONS = ("websockets", "websockets-sansio", "wsproto")


def guide(file: Path, implementation: str) -> Served:
    """The guide's /ws/stream."""
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-c", GUIDE, str(file), str(port), implementation]
    return Served(f"Starlette, {implementation}", port, "/stream", command)


def connect(served: Served, path: str) -> socket.socket:
    """A WebSocket, open; nothing behind the handshake is read."""
    connection = socket.create_connection(("127.0.0.1", served.port))
    headers = "".join(f"{name}: {value}\r\n" for name, value in served.headers.items())
    connection.sendall(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {'A' * 22}==\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n".encode()
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        assert byte, head
        head += byte
    assert head.startswith(b"HTTP/1.1 101"), head
    return connection


def download(served: Served, path: str, size: int, buffer: bytearray) -> float:
    """Seconds until all frames are there."""
    wanted = size + -(-size // FRAME) * HEADER
    with connect(served, path) as connection:
        start = time.perf_counter()
        while wanted > 0:
            count = connection.recv_into(buffer)
            assert count, f"{served.name} broke off with {wanted} bytes to come"
            wanted -= count
        return time.perf_counter() - start


def frame(data: bytes, opcode: int) -> list[bytes]:
    """A client's frame, masked with zeros."""
    size = len(data)
    if size < 126:
        head = struct.pack(">BB4x", 0x80 | opcode, 0x80 | size)
    elif size < 65_536:
        head = struct.pack(">BBH4x", 0x80 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack(">BBQ4x", 0x80 | opcode, 0x80 | 127, size)
    return [head, data]


def upload(served: Served, file: Path, frame_size: int) -> float:
    """Seconds until the result, progress read beside the sending."""
    with connect(served, "/ws/upload") as connection, file.open("rb", buffering=0) as source:
        start = time.perf_counter()
        connection.sendmsg(frame(b'{"filename": "upload.bin"}', 1))
        done = threading.Event()
        seen = bytearray()

        def read() -> None:
            while b'"result"' not in seen:
                data = connection.recv(65_536)
                assert data, "the server broke off"
                seen.extend(data)
            done.set()

        reader = threading.Thread(target=read)
        reader.start()
        while data := source.read(frame_size):
            for part in frame(data, 2):
                connection.sendall(part)
        connection.sendmsg(frame(b"", 2))
        assert done.wait(120)
        reader.join()
        return time.perf_counter() - start


async def many(served: Served, path: str, size: int, count: int) -> list[float]:
    """The rates of downloads at once, in bytes a second."""
    return await asyncio.gather(
        *(
            asyncio.to_thread(lambda: size / download(served, path, size, bytearray(MIB)))
            for _ in range(count)
        )
    )


def fastest(file: Path, size: int, buffer: bytearray) -> str:
    """Which of uvicorn's implementations is the quickest here."""
    seconds = {}
    for implementation in IMPLEMENTATIONS:
        try:
            with guide(file, implementation) as served:
                download(served, served.path, size, buffer)
                seconds[implementation] = download(served, served.path, size, buffer)
        except RuntimeError:
            print(f"uvicorn has no {implementation} here")
    print(", ".join(f"{name}: {size / took / 1e6:,.0f} MB/s" for name, took in seconds.items()), flush=True)
    return min(seconds, key=lambda name: seconds[name])


def main(size: int = 1024 * MIB, rounds: int = 5) -> None:
    """Print the ratios, the growth of memory and how fair many transfers are."""
    buffer = bytearray(MIB)
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
        folder = Path(name)
        file = random_file(folder / "file.bin", size)
        implementation = fastest(file, size, buffer)
        with guide(file, implementation) as peer, jupyter(file) as ours:
            add_file(ours, file)
            path = f"/ws/stream/{ours.path.removeprefix('/ipfs/')}?progress=0"
            download(ours, path, size, buffer)
            streams = Result("/ws/stream", peer.name, "MB/s", 1.2)
            for _ in range(rounds):
                took = download(ours, path, size, buffer)
                streams.add(size / took / 1e6, size / download(peer, peer.path, size, buffer) / 1e6)
            report(streams)
            ours.headers = {"Authorization": f"token {TOKEN}"}
            for frame_size in (FRAME, MIB):
                uploads = Result(
                    f"/ws/upload, frames of {frame_size // 1024} KiB",
                    "hash and append in one thread",
                    "MB/s",
                    0.7,
                )
                for _ in range(rounds):
                    fresh = random_file(folder / f"{secrets.token_hex(4)}.bin", size)
                    (folder / "peer").mkdir(exist_ok=True)
                    settle()
                    start = time.perf_counter()
                    hash_and_append(fresh, folder / "peer")
                    least = time.perf_counter() - start
                    settle()
                    uploads.add(size / upload(ours, fresh, frame_size) / 1e6, size / least / 1e6)
                    fresh.unlink()
                report(uploads)
            with AnonymousMemory(ours.pid) as memory:
                rates = asyncio.run(many(ours, path, size, 10))
            fair = min(rates) / statistics.mean(rates)
            print(
                f"10 downloads at once: memory grew by {memory.growth / MIB:.0f} MiB (goal: under 100); "
                f"the slowest has {fair:.2f} of the mean rate (goal: 0.7)"
            )


if __name__ == "__main__":
    main(*(int(value) * MIB if at == 0 else int(value) for at, value in enumerate(sys.argv[1:])))
