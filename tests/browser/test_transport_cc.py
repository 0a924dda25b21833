"""Transport-wide feedback by a real browser: of sound and pictures on one transport."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from statistics import median
from typing import Any

import aioice.ice
import pytest
from aiortc import (
    AudioStreamTrack,
    RTCConfiguration,
    RTCPeerConnection,
    RTCSessionDescription,
    VideoStreamTrack,
)
from playwright.sync_api import Page

from ipfs_stream_nb.webrtc import transport_cc
from ipfs_stream_nb.webrtc.congestion.feedback import PacketResult, ProbeCluster
from ipfs_stream_nb.webrtc.pacing import TransportController
from ipfs_stream_nb.webrtc.stats import RtcpWatch

pytestmark = pytest.mark.browser

ANSWER = """async (sdp) => {
  window.pc = new RTCPeerConnection();
  pc.ontrack = (event) => {
    const video = document.body.appendChild(document.createElement('video'));
    video.muted = true;
    video.srcObject = new MediaStream([event.track]);
    video.play();
  };
  await pc.setRemoteDescription({ type: 'offer', sdp });
  await pc.setLocalDescription();
  while (pc.iceGatheringState !== 'complete') await new Promise((done) => setTimeout(done, 10));
  return pc.localDescription.sdp;
}"""
DECODED = """async () => [...(await pc.getStats()).values()].filter((one) => one.type === 'inbound-rtp')
  .map((one) => [one.kind, one.packetsLost, one.framesDecoded, one.freezeCount, one.retransmittedPacketsReceived])"""

KEPT = """async ([least, most]) => {
  // seconds that pictures of the last while were kept before they were shown, once that is enough and not
  // too much; after 20 s whatever it is
  const look = async () => {
    const video = [...(await pc.getStats()).values()].find((one) => one.type === 'inbound-rtp' && one.kind === 'video');
    return [video.jitterBufferDelay, video.jitterBufferEmittedCount];
  };
  for (let [delay, count] = await look(), tries = 40; ;) {
    await new Promise((done) => setTimeout(done, 500));
    const [later, more] = await look();
    const kept = (later - delay) / (more - count);
    if ((kept >= least && kept < most) || !--tries) return kept;
    [delay, count] = [later, more];
  }
}"""


class Sender:
    """A peer in a loop of its own, in a thread, since the browser's driver has the test's."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.results: list[tuple[float, list[PacketResult]]] = []
        self.enough = threading.Event()

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    async def offer(self) -> str:
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.negotiation = transport_cc.enable(self.pc)
        for track in (VideoStreamTrack(), AudioStreamTrack()):
            self.pc.addTransceiver(track, "sendonly")
        self.watch = RtcpWatch(self.pc.getSenders()[0], lambda: None)
        await self.pc.setLocalDescription()
        return self.pc.localDescription.sdp

    async def answer(self, sdp: str) -> None:
        sdp = re.sub(r"a=candidate:.*\r\n", "", sdp)  # names of mDNS; the browser finds the way by itself
        await self.pc.setRemoteDescription(RTCSessionDescription(sdp, "answer"))
        video, self.audio = self.pc.getSenders()
        self.controller = TransportController(video.transport, self.negotiation, self.told)
        self.controller.set_rate(2_000_000)

    def told(self, results: list[PacketResult]) -> None:
        self.results.append((self.loop.time(), results))
        if len(self.results) == 10:
            assert self.controller.probe(ProbeCluster(3, 3_000_000, 0.03))
        if len(self.results) >= 40:
            self.enough.set()

    async def close(self) -> None:
        await self.controller.close()
        await self.pc.close()
        await asyncio.sleep(0)


@pytest.fixture
def sender(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sender]:
    """Of a picture that stands still, and of silence."""
    monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda use_ipv4, use_ipv6: ["127.0.0.1"])
    sender = Sender()
    yield sender
    sender.run(sender.close())
    sender.loop.call_soon_threadsafe(sender.loop.stop)
    sender.thread.join(10)
    sender.loop.close()


def test_a_browser_tells_of_each_packet(page: Page, sender: Sender) -> None:
    """Several times a second, of all that was sent on the transport, probes included; no REMB comes instead."""
    answer = page.evaluate(ANSWER, sender.run(sender.offer()))
    assert answer.count(transport_cc.EXTENSION) == 2
    sender.run(sender.answer(answer))
    assert sender.enough.wait(20)
    streams = {one[0]: one for one in page.evaluate(DECODED)}
    for _ in range(100):  # feedback comes before pictures are decoded
        if streams["video"][2] > 30:
            break
        page.wait_for_timeout(100)
        streams = {one[0]: one for one in page.evaluate(DECODED)}
    told = list(sender.results)
    page.evaluate("() => pc.close()")
    results = [one for _, some in told for one in some]
    gaps = [after - before for (before, _), (after, _) in pairwise(told)]
    assert 0.03 < median(gaps) < 0.5, gaps
    counted = Counter(one.received_at is not None for one in results)
    assert counted[True] > 100
    assert counted[False] < 5  # a loaded machine drops one now and then
    history, feedback = sender.controller.history, sender.controller.feedback
    assert (history.unreported, history.feedback_lost, feedback.invalid) == (0, 0, 0)
    assert [one.sent_at for one in results] == sorted(one.sent_at for one in results)
    assert sum(one.probe == 3 for one in results) >= 5
    assert set(streams) == {"video", "audio"}
    assert streams["video"][2] > 30
    assert sender.watch.bandwidth_estimate is None
    print(f"feedback every {median(gaps) * 1000:.0f} ms, at most {max(gaps) * 1000:.0f} ms; {streams}")


def test_a_browser_keeps_pictures_as_long_as_it_is_asked(page: Page, sender: Sender) -> None:
    """The header extension playout-delay: no longer than it must be before it is asked, 0.4 s and not for ever afterwards."""
    sender.run(sender.answer(page.evaluate(ANSWER, sender.run(sender.offer()))))
    assert sender.enough.wait(20)
    assert page.evaluate(KEPT, [0, 0.2]) < 0.2  # the first pictures of a busy browser may wait longer
    sender.controller.stamper.playout_delay = 0.4
    assert 0.3 <= page.evaluate(KEPT, [0.3, 100]) < 1
    page.evaluate("() => pc.close()")
