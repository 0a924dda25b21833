"""Clients in a browser that were written from the guide alone, at a real Jupyter server: its video player, and its component
in React. They know nothing of what we added: no candidates are sent, no subscription is asked for, nothing is closed in words."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lab import Lab
from playwright.sync_api import Page
from rtc_server import frame_number

import ipfs_stream_nb as ipfs
from ipfs_stream_nb import samples
from npm_package import npm_package

pytestmark = pytest.mark.browser

RATE, SECONDS = 25, 12
REACT_VERSION = "18"
"""The last with files for a page without a bundler."""
PATIENCE = 30.0

PLAYER = """
window.Player = class {
  constructor(video, server) {
    this.video = video;
    this.peer = new RTCPeerConnection();
    this.peer.ontrack = ({ track }) => {
      if (track.kind !== 'video') return;
      video.srcObject = new MediaStream([track]);
      video.play();
    };
    this.socket = new WebSocket(`ws://${new URL(server).host}/ws/webrtc`);
    this.socket.onmessage = ({ data }) => this.heard(JSON.parse(data));
  }
  play(request) {
    const send = () => this.socket.send(JSON.stringify({ type: 'offer_request', ...request }));
    if (this.socket.readyState === WebSocket.OPEN) send(); // the guide's own throws before that
    else this.socket.onopen = send;
  }
  async heard(message) {
    if (message.type === 'candidate') await this.peer.addIceCandidate(message);
    if (message.type !== 'offer') return;
    await this.peer.setRemoteDescription({ type: message.sdpType, sdp: message.sdp });
    await this.peer.setLocalDescription(await this.peer.createAnswer());
    const { sdp, type: sdpType } = this.peer.localDescription;
    this.socket.send(JSON.stringify({ type: 'answer', pc_id: message.pc_id, sdp, sdpType }));
  }
};
"""

COMPONENT = """
const { createElement } = React;
class Streaming extends React.Component {
  state = { streaming: false, count: 0, notifications: [] };
  video = React.createRef();
  player = null;
  constructor(props) {
    super(props);
    this.socket = new WebSocket(`ws://${location.host}/ws/notifications`);
    this.socket.onmessage = ({ data }) =>
      this.setState(({ count, notifications }) => ({
        count: count + 1,
        notifications: [JSON.parse(data), ...notifications].slice(0, 20),
      }));
  }
  start = () => {
    this.player = new Player(this.video.current, location.href);
    this.player.play({ cid: this.props.cid }); // and nothing beside it
    this.setState({ streaming: true });
  };
  stop = () => {
    this.player.peer.close();
    this.player = null;
    this.setState({ streaming: false });
  };
  render() {
    const { streaming, count, notifications } = this.state;
    return createElement('div', {},
      createElement('video', { ref: this.video, muted: true }),
      createElement('button', { onClick: streaming ? this.stop : this.start }, streaming ? 'Stop' : 'Start'),
      createElement('output', {}, `${count} ${notifications.map(({ type }) => type).join(' ')}`));
  }
}
window.root = ReactDOM.createRoot(document.body.appendChild(document.createElement('main')));
root.render(createElement(Streaming, { cid: CID }));
"""

LISTEN = """() => new Promise((done) => {
  window.events = [];
  const socket = new WebSocket(`ws://${location.host}/ws/notifications`);
  socket.onopen = () => socket.send(JSON.stringify({ action: 'subscribe', notification_types: ['all_events'] }));
  socket.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    if (message.type === 'subscription_confirmed') done();
    if (message.type === 'notification') events.push(message.notification_type);
  };
})"""


@pytest.fixture
def inside(page: Page, start_lab: Callable[[str], Lab], tmp_path: Path) -> str:
    """A plain page of a Jupyter server at the root, where the guide's clients look for it: logged in, it hears of all events.
    Gives the CID of a clip that the server has."""
    lab = start_lab("/")
    clip = samples.video(tmp_path / "clip.mp4", width=320, height=180, duration=SECONDS, frame_rate=RATE)
    with ipfs.connect(lab.url, token=lab.token) as client:
        cid = str(client.add(clip).cid)
    lab.log_in(page)
    page.goto(f"{lab.url}no/such/page")  # one without JupyterLab in it
    page.evaluate("document.body.replaceChildren()")
    page.evaluate(LISTEN)
    page.add_script_tag(content=PLAYER)
    return cid


def until_it_plays(page: Page) -> None:
    """Wait for two pictures with numbers of the clip, the second one after the first."""
    page.wait_for_function("document.querySelector('video').readyState >= HTMLMediaElement.HAVE_CURRENT_DATA")
    video, deadline = page.locator("video"), time.monotonic() + PATIENCE
    seen: list[int] = []
    while len(seen) < 2:
        assert time.monotonic() < deadline, seen
        number = frame_number(video)
        if number is not None and number not in seen:
            seen.append(number)
        page.wait_for_timeout(20)
    assert 0 <= seen[0] < seen[1] < SECONDS * RATE


def test_the_video_player(inside: str, page: Page) -> None:
    """It plays, without a candidate of its own; once its page has gone, so has the connection."""
    request: dict[str, Any] = {"cid": inside, "kind": "video", "frameRate": 30}
    page.evaluate(
        """(request) => {
        const video = document.body.appendChild(document.createElement('video'));
        video.muted = true;
        window.player = new Player(video, location.href);
        player.play(request);
    }""",
        request,
    )
    until_it_plays(page)
    page.wait_for_function("events.includes('webrtc_stream_started')")
    page.evaluate("player.socket.close()")
    page.wait_for_function("events.includes('webrtc_connection_closed')")


def test_the_react_component(inside: str, page: Page, shoot: Callable[..., Path]) -> None:
    """It plays on demand, by a CID alone; it hears the welcome and no events, as it asks for none; it stops by closing the peer."""
    react, dom = npm_package("react", REACT_VERSION), npm_package("react-dom", REACT_VERSION)
    for script in (react / "umd/react.production.min.js", dom / "umd/react-dom.production.min.js"):
        page.add_script_tag(path=script)
    page.add_script_tag(content=f"{{ const CID = '{inside}'; {COMPONENT} }}")
    page.wait_for_function("document.querySelector('output')?.textContent.startsWith('1 welcome')")
    for _ in range(2):
        page.get_by_role("button", name="Start").click()
        until_it_plays(page)
        shoot(page, "plays")
        page.get_by_role("button", name="Stop").click()
        page.wait_for_function("events.includes('webrtc_connection_closed')")
        page.evaluate("events.length = 0; document.querySelector('video').srcObject = null")
    heard = page.locator("output").inner_text().split()
    assert set(heard[1:]) <= {"welcome", "ping"}, heard
