"""What sends in the benchmark of adaptive quality: `ours` or stock `aiortc`, one clip, over WHEP, in a process of its own.

`python adaptive_server.py ours|aiortc <file> <port> <folder for a store>`: POST /whep answers an offer, GET /samples gives what was measured of ours.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.contrib.media import MediaPlayer
from tornado.web import Application, RequestHandler

from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.media.worker.pool import WorkerPool
from ipfs_stream_nb.webrtc.manager import WebRTCStreamingManager

PAGE = """<!doctype html><meta charset="utf-8"><video muted autoplay playsinline width="640"></video><script>
const video = document.querySelector("video"), frames = [], samples = [];
function shown(_now, facts) {
  frames.push([performance.timeOrigin + facts.presentationTime, facts.width, facts.height]);
  video.requestVideoFrameCallback(shown);
}
async function play() {
  const pc = new RTCPeerConnection({});
  const stream = new MediaStream();
  video.srcObject = stream;
  pc.ontrack = ({track}) => { stream.addTrack(track); video.play(); };
  pc.addTransceiver("video", {direction: "recvonly"});
  pc.addTransceiver("audio", {direction: "recvonly"});
  video.requestVideoFrameCallback(shown);
  await pc.setLocalDescription();
  while (pc.iceGatheringState !== "complete") await new Promise((go) => { pc.onicegatheringstatechange = go; });
  const answer = await fetch("/whep", {method: "POST", body: pc.localDescription.sdp});
  await pc.setRemoteDescription({type: "answer", sdp: await answer.text()});
  setInterval(async () => {
    for (const one of (await pc.getStats()).values())
      if (one.type === "inbound-rtp" && one.kind === "video")
        samples.push([Date.now(), one.bytesReceived, one.freezeCount, one.totalFreezesDuration, one.framesDecoded,
                      one.packetsLost, one.jitterBufferDelay / Math.max(one.jitterBufferEmittedCount, 1)]);
  }, 200);
}
play();
</script>"""
"""What the browser shows: when each frame was shown, in milliseconds since the epoch, and its size."""


class Ours:
    """Our manager, over an embedded node that holds the file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._samples: list[list[dict[str, Any]]] = []

    async def open(self) -> None:
        self._node = await EmbeddedNode.open(Path(sys.argv[4]))
        self._cid = str((await self._node.add_path(str(self._file))).cid)
        pool = WorkerPool()
        await pool.warm()
        self._manager = WebRTCStreamingManager(self._node, sources=pool.open)

    async def answer(self, sdp: str) -> str:
        pc_id, answer = await self._manager.answer_offer(self._cid, sdp, loop=True)
        self._task = asyncio.create_task(self._watch(pc_id))
        return answer

    async def _watch(self, pc_id: str) -> None:
        samples: list[dict[str, Any]] = []
        self._samples.append(samples)
        peer = self._manager.peer(pc_id)
        while True:
            await asyncio.sleep(0.1)
            if (sample := peer._quality_message()) is not None:
                samples.append(sample | {"at": asyncio.get_running_loop().time()})

    def samples(self) -> Any:
        return self._samples


class Stock:
    """aiortc as it comes."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._peers: list[RTCPeerConnection] = []

    async def open(self) -> None:
        """Nothing to prepare."""

    async def answer(self, sdp: str) -> str:
        pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._peers.append(pc)
        player = MediaPlayer(str(self._file), loop=False)
        await pc.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
        pc.addTrack(player.video)
        pc.addTrack(player.audio)
        await pc.setLocalDescription()
        return pc.localDescription.sdp

    def samples(self) -> Any:
        return []


class Handler(RequestHandler):
    """GET / and /samples, POST /whep."""

    def initialize(self, sender: Ours | Stock) -> None:
        self.sender = sender

    async def get(self, what: str) -> None:
        self.finish(json.dumps(self.sender.samples()) if what == "samples" else PAGE)

    async def post(self, _what: str) -> None:
        self.set_status(201)
        self.finish(await self.sender.answer(self.request.body.decode()))


async def main() -> None:
    """Serve until it is killed."""
    kind, file, port = sys.argv[1:4]
    sender = Ours(Path(file)) if kind == "ours" else Stock(Path(file))
    await sender.open()
    Application([(r"/(\w*)", Handler, {"sender": sender})]).listen(int(port), "0.0.0.0")
    print("ready", flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
