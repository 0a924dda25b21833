"""GET through the extension in a real Jupyter server, against nginx with sendfile and Starlette's FileResponse.

The same file, one connection for the whole of it and eight for random 64 KiB ranges, in turns in the same run.
The load comes from this process: raw sockets, read into one reused buffer. Requests to the extension carry a
Jupyter cookie, as a browser's do, and pass authentication, authorizer and access policy.

Memory is the server's own (RssAnon): what it maps of the block store is page cache, as nginx's file is.
"""

# ruff: noqa: S310  # the URLs are those of servers that were started here

from __future__ import annotations

import os
import random
import select
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from http_servers import Served, add_file, jupyter, nginx, starlette
from measure import MIB, AnonymousMemory, Result, random_file, report

RANGE_BYTES = 64 * 1024
CONNECTIONS = 8
PROBE_INTERVAL = 0.01


def request_bytes(served: Served, extra: str = "") -> bytes:
    """A GET of the served file."""
    headers = "".join(f"{name}: {value}\r\n" for name, value in served.headers.items())
    return f"GET {served.path} HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n{headers}{extra}\r\n".encode()


def download(served: Served, size: int, buffer: bytearray) -> float:
    """Seconds to read the whole file."""
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        start = time.perf_counter()
        connection.sendall(request_bytes(served))
        head, body = read_head(connection, buffer)
        assert head.startswith(b"HTTP/1.1 200"), head
        while body < size:
            count = connection.recv_into(buffer)
            assert count, f"{served.name} broke off at {body}"
            body += count
        return time.perf_counter() - start


def read_head(connection: socket.socket, buffer: bytearray) -> tuple[bytes, int]:
    """The answer's head, and how much of the body came with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        count = connection.recv_into(buffer)
        assert count, data
        data += buffer[:count]
    head, _, body = data.partition(b"\r\n\r\n")
    return head, len(body)


class RangeLoad:
    """Eight connections that each ask for one random range after the other."""

    def __init__(self, served: Served, size: int) -> None:
        self.served = served
        self.size = size
        self.done = 0
        self._buffer = bytearray(2 * RANGE_BYTES)
        self._left: dict[socket.socket, int] = {}

    def _ask(self, connection: socket.socket) -> None:
        start = random.randrange(self.size - RANGE_BYTES)
        connection.sendall(request_bytes(self.served, f"Range: bytes={start}-{start + RANGE_BYTES - 1}\r\n"))
        self._left[connection] = -1

    def _read(self, connection: socket.socket) -> None:
        count = connection.recv_into(self._buffer)
        assert count, f"{self.served.name} closed a connection"
        if self._left[connection] < 0:
            end = self._buffer.index(b"\r\n\r\n", 0, count) + 4
            assert self._buffer.startswith(b"HTTP/1.1 206"), bytes(self._buffer[:end])
            self._left[connection] = RANGE_BYTES - (count - end)
        else:
            self._left[connection] -= count
        if self._left[connection] == 0:
            self.done += 1
            self._ask(connection)

    def run(self, seconds: float) -> float:
        """Requests per second."""
        with selectors.DefaultSelector() as selector:
            for _ in range(CONNECTIONS):
                connection = socket.create_connection(("127.0.0.1", self.served.port))
                selector.register(connection, selectors.EVENT_READ)
                self._ask(connection)
            start = time.perf_counter()
            while (now := time.perf_counter()) < start + seconds:
                for key, _ in selector.select(1):
                    self._read(key.fileobj)
            for connection in list(self._left):
                connection.close()
            return self.done / (now - start)


def probe(url: str, cookie: str) -> None:
    """Run as a process of its own: ask for /api/status again and again until stdin ends, print each one's seconds."""
    request = urllib.request.Request(f"{url}/api/status", headers={"Cookie": cookie})
    while not select.select([sys.stdin], [], [], PROBE_INTERVAL)[0]:
        start = time.perf_counter()
        with urllib.request.urlopen(request) as answer:
            answer.read()
        print(time.perf_counter() - start)


class StatusProbe:
    """How long /api/status takes during a `with` block, as another process sees it."""

    def __init__(self, what: str, served: Served) -> None:
        self._what = what
        self._command = [sys.executable, __file__, "probe", served.url, served.headers["Cookie"]]

    def __enter__(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __exit__(self, *_exc: object) -> None:
        seconds = [float(line) for line in self._process.communicate("end")[0].split()]
        p50, p99 = statistics.median(seconds), statistics.quantiles(seconds, n=100)[98]
        print(
            f"/api/status during {self._what}: median {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms"
            f" of {len(seconds)} (goal: under 20)"
        )


def add_and_report(ours: Served, file: Path, size: int) -> None:
    """POST the file; its speed, the growth of memory, and the latency of everything else meanwhile."""
    add_file(ours, random_file(file.parent / "small", MIB))  # what a first add needs once is not counted
    added = AnonymousMemory(ours.pid)
    with added, StatusProbe("POST", ours):
        took = add_file(ours, file)
    print(f"POST /ipfs: {size / took / 1e6:,.0f} MB/s; private memory grew by {added.growth / MIB:.0f} MiB")


def main(size: int = 1024 * MIB, rounds: int = 5, seconds: float = 3.0) -> None:
    """Print the ratios, the growth of memory and the latency of /api/status."""
    buffer = bytearray(MIB)
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
        Path(name).chmod(0o755)
        file = random_file(Path(name) / "file.bin", size)
        with nginx(file) as peer, starlette(file) as slow, jupyter(file) as ours:
            add_and_report(ours, file, size)
            for served in (peer, slow, ours):
                download(served, size, buffer)
            whole = [
                Result("GET of the whole file", peer.name, "MB/s", 1.0),
                Result("GET of the whole file", slow.name, "MB/s", 4.0),
            ]
            ranges = Result("64 KiB random ranges", slow.name, "requests/s", 1.0)
            memory = AnonymousMemory(ours.pid)
            for _ in range(rounds):
                speeds = {}
                for served in (ours, peer, slow):
                    with memory:
                        speeds[served.name] = size / download(served, size, buffer) / 1e6
                whole[0].add(speeds[ours.name], speeds[peer.name])
                whole[1].add(speeds[ours.name], speeds[slow.name])
                rates = [RangeLoad(served, size).run(seconds) for served in (ours, slow)]
                ranges.add(rates[0], rates[1])
            for result in (*whole, ranges):
                report(result)
            print(f"private memory grew by {memory.growth / MIB:.0f} MiB in the downloads (goal: at most 32)")
            with StatusProbe("GET", ours):
                end = time.perf_counter() + seconds
                while time.perf_counter() < end:
                    download(ours, size, buffer)


if __name__ == "__main__":
    if sys.argv[1:2] == ["probe"]:
        probe(*sys.argv[2:])
    else:
        main(*(int(value) * MIB if at == 0 else int(value) for at, value in enumerate(sys.argv[1:])))
