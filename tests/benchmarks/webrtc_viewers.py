"""Viewers over WHEP in a process of their own: they take what comes and throw it away.

    python webrtc_viewers.py URL TOKEN COUNT

Prints one line of JSON when each has had its first picture, and another one when its input ends.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, Self

from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpReceiver, RTCSessionDescription
from aiortc.rtcrtpreceiver import StreamStatistics
from aiortc.rtp import RtpPacket

START_SECONDS = 60.0
CLOCK_RATES = {"video": 90_000, "audio": 48_000}


class Viewer:
    """One peer. Its packets are decrypted and counted, so that it sends reports, and no more is done with them."""

    def __init__(self) -> None:
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.packets = {"video": 0, "audio": 0}
        self.first_packet = self.first_picture = 0.0
        """Seconds from the request on."""
        self._asked = 0.0
        self._shown = asyncio.Event()
        for kind in self.packets:
            receiver = self.pc.addTransceiver(kind, direction="recvonly").receiver
            receiver._handle_rtp_packet = self._take(kind, receiver)

    def _take(self, kind: str, receiver: RTCRtpReceiver) -> Any:
        reported: dict[int, StreamStatistics] = receiver._RTCRtpReceiver__remote_streams

        async def take(packet: RtpPacket, **_arrival: int) -> None:
            if packet.ssrc not in reported:
                reported[packet.ssrc] = StreamStatistics(CLOCK_RATES[kind])
            reported[packet.ssrc].add(packet)
            self.packets[kind] += 1
            if kind == "video" and not self._shown.is_set():
                seconds = time.perf_counter() - self._asked
                self.first_packet = self.first_packet or seconds
                if packet.marker:
                    self.first_picture = seconds
                    self._shown.set()

        return take

    async def join(self, url: str, token: str) -> None:
        """Ask for content, and wait for the first picture."""
        await self.pc.setLocalDescription()
        request = urllib.request.Request(url, self.pc.localDescription.sdp.encode())  # noqa: S310  # ours
        request.add_header("Content-Type", "application/sdp")
        request.add_header("Authorization", f"token {token}")
        self._asked = time.perf_counter()
        answer = await asyncio.to_thread(lambda: urllib.request.urlopen(request).read().decode())  # noqa: S310
        await self.pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        await self._shown.wait()


class Crowd:
    """So many viewers of one address in another process, which gives way to the server; `with Crowd(…) as crowd`."""

    def __init__(self, url: str, token: str, count: int = 1, nice: int = 0) -> None:
        self._command = ["nice", f"-n{nice}", sys.executable, str(Path(__file__)), url, token, str(count)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.first: list[dict[str, float]] = self._line()
        """Of each viewer: seconds from its request to the first packet, and to the first whole picture."""
        return self

    def _line(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the viewers broke off"
        return json.loads(line)

    def packets(self) -> list[dict[str, int]]:
        """What each viewer has had so far, by kind."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return self._line()

    def __exit__(self, *_exc: object) -> None:
        self._process.communicate()
        assert self._process.returncode == 0


async def main(url: str, token: str, count: int) -> None:
    """Join, play, tell."""
    viewers = [Viewer() for _ in range(count)]
    async with asyncio.timeout(START_SECONDS):
        await asyncio.gather(*(viewer.join(url, token) for viewer in viewers))
    print(
        json.dumps([{"packet": one.first_packet, "picture": one.first_picture} for one in viewers]),
        flush=True,
    )
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps([one.packets for one in viewers]), flush=True)
    await asyncio.gather(*(viewer.pc.close() for viewer in viewers))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
