"""WebRTC: what viewers cost the server beside aiortc's own MediaPlayer, what they cost the notebooks on that server, and
how soon the first picture comes.

The server is a real Jupyter server with the extension. The time of its processor is that of all its processes, media
workers included. Viewers are in another process, and ask by WHEP; the peer answers the same request with a MediaPlayer
of the same file, in the codec that aiortc prefers (VP8, at half a Mbit/s). The clip has 2.7 Mbit/s. It wants an idle
machine.
"""

# ruff: noqa: S310  # the URLs are those of servers that were started here

from __future__ import annotations

import json
import os
import statistics
import struct
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
from http_servers import TOKEN, Served, add_file, free_port, jupyter
from measure import Result, report
from webrtc_viewers import Crowd
from websockets.sync.client import ClientConnection, connect

from ipfs_stream_nb import samples
from long_video import looped

WINDOW = 8.0
"""Seconds over which the processor's time is taken."""
SETTLE = 4.0
"""Seconds before it, in which a spare worker starts and what was read ahead is made."""
PROBES, PROBE_EVERY = 300, 0.025
MAX_FIRST = 0.3
BUSY = "the machine is too busy to measure anything"
NICE = 10
"""By how much viewers give way: they would be on other machines."""

MEDIA_PLAYER = """
import asyncio, sys
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.contrib.media import MediaPlayer
from tornado.web import Application, RequestHandler
connections = []
class Offer(RequestHandler):
    async def post(self):
        connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        connections.append(connection)
        player = MediaPlayer(sys.argv[1])
        await connection.setRemoteDescription(RTCSessionDescription(self.request.body.decode(), "offer"))
        connection.addTrack(player.video)
        connection.addTrack(player.audio)
        await connection.setLocalDescription()
        self.set_status(201)
        self.finish(connection.localDescription.sdp)
async def main():
    Application([("/", Offer)]).listen(int(sys.argv[2]), "127.0.0.1")
    await asyncio.Event().wait()
asyncio.run(main())
"""


def media_player(file: Path) -> Served:
    """aiortc's MediaPlayer: each viewer has its own decoder and encoder."""
    port = free_port()
    command = [sys.executable, "-c", MEDIA_PLAYER, str(file), str(port)]
    return Served("one of aiortc's MediaPlayer", port, "/", command)


def server(file: Path) -> Served:
    """The extension, for as many viewers as come here."""
    served = jupyter(file)
    served.command += [f"--IPFSStreamExtension.max_peers{whose}=64" for whose in ("", "_per_user")]
    return served


class Clips:
    """One clip under ever new CIDs: what a server has made ready of one helps with no other."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._count = 0

    def add(self, served: Served) -> str:
        """Put the clip into the server's store; the WHEP address."""
        self._count += 1
        with self.file.open("ab") as file:
            file.write(struct.pack(">I4sQ", 16, b"free", self._count))  # a box that players skip
        add_file(served, self.file)
        return f"{served.url}/whep/{served.path.removeprefix('/ipfs/')}"


def clips(folder: Path, name: str, *, megabytes: float, seconds: int, b_frames: int, front: bool) -> Clips:
    """720p30 with sound; of so many megabytes and seconds."""
    short = folder / "short.mp4"
    length = 10
    samples.video(
        short, width=1280, height=720, duration=length, frame_rate=30, b_frames=b_frames, grain=12,
        bit_rate=round(megabytes * 8e6 / seconds),
    )  # fmt: skip
    options = {"movflags": "faststart"} if front else {}
    return Clips(looped(folder / f"{name}.mp4", short.read_bytes(), length, seconds // length, **options))


def cpu_seconds(pid: int) -> float:
    """The processor time that a process and all below it have had, those that have ended included."""
    process = psutil.Process(pid)
    return sum(sum(one.cpu_times()[:4]) for one in (process, *process.children(recursive=True)))


def load(served: Served, url: str, count: int) -> float:
    """Percent of a core that a server works with so many viewers."""
    with Crowd(url, TOKEN, count, NICE) as crowd:
        time.sleep(SETTLE)
        packets, cpu, begun = crowd.packets(), cpu_seconds(served.pid), time.perf_counter()
        time.sleep(WINDOW)
        cpu, taken = cpu_seconds(served.pid) - cpu, time.perf_counter() - begun
        for before, after in zip(packets, crowd.packets(), strict=True):
            pictures, sound = after["video"] - before["video"], after["audio"] - before["audio"]
            assert pictures > 20 * WINDOW, f"a viewer had {pictures} packets of video: {BUSY}"
            assert sound > 40 * WINDOW, f"a viewer had {sound} packets of sound: {BUSY}"
    return 100 * cpu / taken


def viewers(ours: Served, through: Clips, anew: Clips, rounds: int) -> None:
    """Twenty viewers beside MediaPlayer's one; ten of what is transcoded beside one."""
    result = Result("20 viewers, passthrough", "one of aiortc's MediaPlayer", "% of a core", 1.0)
    with media_player(through.file) as peer:
        for _ in range(rounds):
            result.add(load(ours, through.add(ours), 20), load(peer, peer.url, 1))
    report(result)
    result = Result("10 viewers, transcoded", "one", "% of a core", 1.5)
    for _ in range(rounds):
        result.add(load(ours, anew.add(ours), 10), load(ours, anew.add(ours), 1))
    report(result)


class Notebook:
    """A kernel on the server, by the socket that a front end uses."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._session = uuid.uuid4().hex
        self.kernel = json.loads(self.request("/api/kernels", b"{}"))["id"]
        url = f"ws://127.0.0.1:{served.port}/api/kernels/{self.kernel}/channels?session_id={self._session}"
        self._socket: ClientConnection = connect(
            url, additional_headers={"Authorization": f"token {TOKEN}"}, max_size=None
        )

    def request(self, path: str, body: bytes | None = None, method: str | None = None) -> bytes:
        """One request to the server."""
        request = urllib.request.Request(f"{self._served.url}{path}", body, method=method)
        request.add_header("Authorization", f"token {TOKEN}")
        with urllib.request.urlopen(request) as answer:
            return bytes(answer.read())

    def status(self) -> None:
        """GET /api/status."""
        self.request("/api/status")

    def execute(self) -> None:
        """Have a cell executed."""
        number = uuid.uuid4().hex
        header = {
            "msg_id": number,
            "msg_type": "execute_request",
            "session": self._session,
            "username": "",
            "version": "5.3",
        }
        content = {
            "code": "1",
            "silent": False,
            "store_history": False,
            "user_expressions": {},
            "allow_stdin": False,
        }
        message = {
            "header": header,
            "parent_header": {},
            "metadata": {},
            "content": content,
            "channel": "shell",
        }
        self._socket.send(json.dumps(message))
        while True:
            got = json.loads(self._socket.recv(30))
            if got["parent_header"].get("msg_id") == number and got["msg_type"] == "execute_reply":
                return

    def close(self) -> None:
        """End the kernel."""
        self._socket.close()
        self.request(f"/api/kernels/{self.kernel}", method="DELETE")


def probe(notebook: Notebook, probes: int) -> dict[str, list[float]]:
    """Milliseconds of requests and executions, at an even pace."""
    found: dict[str, list[float]] = {"/api/status": [], "a kernel's execution": []}
    work: list[Callable[[], None]] = [notebook.status, notebook.execute]
    begun = time.perf_counter()
    for number in range(probes):
        time.sleep(max(0.0, begun + number * PROBE_EVERY - time.perf_counter()))
        for times, call in zip(found.values(), work, strict=True):
            start = time.perf_counter()
            call()
            times.append(1000 * (time.perf_counter() - start))
    return found


def p99(times: list[float]) -> float:
    """Of 100 the one that is slower than 98."""
    return statistics.quantiles(times, n=100)[98]


def beside(ours: Served, what: str, content: Clips, rounds: int, probes: int) -> None:
    """What eight viewers cost a notebook on the same server."""
    notebook = Notebook(ours)
    probe(notebook, 20)
    idle: dict[str, list[float]] = {}
    playing: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, times in probe(notebook, probes).items():
            idle.setdefault(name, []).extend(times)
        with Crowd(content.add(ours), TOKEN, 8, NICE):
            time.sleep(SETTLE)
            for name, times in probe(notebook, probes).items():
                playing.setdefault(name, []).extend(times)
    notebook.close()
    for name, times in playing.items():
        before, now = p99(idle[name]), p99(times)
        print(
            f"{name} while 8 watch {what}: p99 {now:.1f} ms; idle: {before:.1f} ms; {now - before:+.1f} ms, goal 10;"
            f" medians {statistics.median(times):.1f} and {statistics.median(idle[name]):.1f} ms",
            flush=True,
        )


def first_picture(ours: Served, what: str, content: Clips, rounds: int) -> None:
    """Milliseconds from the request to the first picture of content that the server has not opened yet."""
    firsts = []
    for _ in range(rounds):
        url = content.add(ours)
        time.sleep(SETTLE)  # until a spare worker stands ready
        with Crowd(url, TOKEN) as crowd:
            firsts += crowd.first
    pictures = [1000 * one["picture"] for one in firsts]
    packets = [1000 * one["packet"] for one in firsts]
    size = content.file.stat().st_size / 1e6
    print(
        f"first picture of {size:.0f} MB, {what}: {statistics.median(pictures):.0f} ms ({min(pictures):.0f} to"
        f" {max(pictures):.0f}), its first packet {statistics.median(packets):.0f} ms; goal {1000 * MAX_FIRST:.0f}",
        flush=True,
    )


def main(rounds: int = 3, probes: int = PROBES) -> None:
    """Print all figures."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
        folder = Path(name)
        through = clips(folder, "through", megabytes=20, seconds=60, b_frames=0, front=True)
        anew = clips(folder, "anew", megabytes=20, seconds=60, b_frames=2, front=True)
        with server(through.file) as ours:
            viewers(ours, through, anew, rounds)
            beside(ours, "what is passed through", through, rounds, probes)
            beside(ours, "what is transcoded", anew, rounds, probes)
            for way, b_frames in (("passed through", 0), ("transcoded", 2)):
                for place, front in (("in front", True), ("at the end", False)):
                    big = clips(
                        folder,
                        f"big-{b_frames}-{place[-3:]}",
                        megabytes=50,
                        seconds=120,
                        b_frames=b_frames,
                        front=front,
                    )
                    first_picture(ours, f"{way}, index {place}", big, rounds)


if __name__ == "__main__":
    main(*(int(value) for value in sys.argv[1:]))
