"""ipfs-webrtc.js in a real browser on another host, which no UDP packet reaches: media comes through a real coturn."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import BASE, Harness
from playwright.sync_api import Browser, Page
from rtc_server import CLIP, Signaling, frame_number

from turn_server import Firewalled, firewalled
from two_hosts import Relay

pytestmark = pytest.mark.browser

OPEN = """
async ([base, clip]) => {
  const { WebRTCPlayer } = await import(`${base}ipfs-webrtc.js`);
  const video = document.body.appendChild(document.createElement('video'));
  video.muted = true;
  window.pcs = []; // the connections that the page makes
  window.RTCPeerConnection = class extends RTCPeerConnection {
    constructor(configuration) { super(configuration); pcs.push(this); }
  };
  Object.assign(window, { clip, player: new WebRTCPlayer({ base, token: null, element: video }) });
}
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firewalled]:
    """This host, the browser's, and a coturn that both of them reach."""
    with firewalled(tmp_path_factory.mktemp("turn")) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def browser(
    browser: Browser,
    hosts: Firewalled,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Browser]:
    """The same browser, run on the other host."""
    conftest: Any = request.config.pluginmanager.get_plugin(str(Path(__file__).with_name("conftest.py")))
    kind = browser.browser_type
    program = tmp_path_factory.mktemp("bin") / "browser"
    command = [*hosts.prefix, str(conftest.find_browser(kind.executable_path))]
    program.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    program.chmod(0o755)
    process = kind.launch(executable_path=program, args=conftest.FLAGS)
    yield process
    process.close()


@pytest.fixture
def run(
    hosts: Firewalled, served: tuple[Harness, Signaling], signaling: Signaling, page: Page
) -> Iterator[Any]:
    """Evaluate the body of an async function in a page that has a player."""
    signaling.ice_servers = hosts.turn.ice_servers
    server = Relay(hosts.near, ("127.0.0.1", int(served[0].origin.rpartition(":")[2])))
    url = f"http://{hosts.near}:{server.port}{BASE}"
    page.goto(url)
    page.evaluate(OPEN, [url, CLIP])
    yield lambda body: page.evaluate(f"async () => {{ {body} }}")
    page.evaluate("() => player.close()")
    server.close()


def assert_plays(run: Any, page: Page) -> None:
    """The clip's pictures in order, with its sound, by way of the relay."""
    numbers = []
    for _ in range(8):
        run("await new Promise((shown) => document.querySelector('video').requestVideoFrameCallback(shown))")
        numbers.append(frame_number(page.locator("video")))
    assert None not in numbers
    assert numbers == sorted(numbers)
    assert len(set(numbers)) >= 4  # a busy machine does not show all of them
    assert run("return await player.relayed()")
    assert run("return (await player.stats()).received.audio.packets > 5")


def test_through_the_relay(run: Any, page: Page, hosts: Firewalled) -> None:
    """Packets that find no direct way come through the relay, over the first connection."""
    before = hosts.turn.allocations
    run("await player.play(clip)")
    assert_plays(run, page)
    assert run("return pcs.length") == 1
    assert hosts.turn.allocations > before


def test_relay_only(run: Any, page: Page, signaling: Signaling) -> None:
    """A connection that takes nothing but the relay, after one that was not made at all."""

    class First:
        def __bool__(self) -> bool:
            return signaling.count("offer_request") == 1

    signaling.blocked = First()
    run(
        """const playing = player.play(clip, { patience: 5000 });
        while (!pcs.length) await new Promise((done) => setTimeout(done, 20));
        player.wish.patience = 30000; // for the relay's way alone
        await playing;"""
    )
    assert_plays(run, page)
    assert run("return pcs.map((pc) => pc.getConfiguration().iceTransportPolicy)") == ["all", "relay"]
    local = run("return [...(await pcs[1].getStats()).values()].filter((r) => r.type === 'local-candidate')")
    assert {one["candidateType"] for one in local} == {"relay"}
