"""What the notification feed costs a browser: the share of a core that its page works at 50 events a second.

The browser's own account is taken (Performance.getMetrics) over ten seconds: the processor time of the page's main thread,
then how long its tasks took, which is more where they had to wait for a core, and script, style and layout as parts of
them. Its peer is the same page without a feed.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

import ipywidgets.comm
from comm.base_comm import BaseComm
from playwright.sync_api import CDPSession, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "browser"))
from harness import serve

import ipfs_stream_nb as ipfs
from conftest import FLAGS, find_browser  # found by the line above

RATE = 50
SECONDS = 10.0
GOAL = 5.0
"""Percent of a core."""
PARTS = ("ThreadTime", "TaskDuration", "ScriptDuration", "RecalcStyleDuration", "LayoutDuration")
CID = "bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"

SHOW = """async ([module, css, state]) => {
  const {default: widget} = await import(module);
  document.head.append(Object.assign(document.createElement('style'), {textContent: css}));
  const model = new Model(state);
  window.kernel = async (model, message) => (await window.python(message)).forEach((content) => model.message(content));
  const parts = widget();
  await parts.initialize({model});
  await parts.render({model, el: document.getElementById('views')});
}"""


class Wire(BaseComm):
    """The wire to the browser: it keeps what goes out."""

    def publish_msg(self, msg_type: str, data: Any = None, **_rest: Any) -> None:
        self.__dict__.setdefault("sent", []).append(data or {})


class Emitter:
    """Sends events at RATE, until it is left."""

    def __init__(self, client: ipfs.Client) -> None:
        self._client = client
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sent = 0

    def _run(self) -> None:
        begun = time.perf_counter()
        for number in itertools.count():
            if self._done.wait(max(0.0, begun + number / RATE - time.perf_counter())):
                return
            data = {"event": "step", "step": number, "loss": 1 / (number + 1), "cid": CID}
            kind = ("custom_event", "content_added", "system_info")[number % 3]
            self._client.emit(data, kind, source="training")
            self.sent += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._done.set()
        self._thread.join()


def shares(wire: CDPSession) -> dict[str, float]:
    """Percent of a core over SECONDS."""

    def taken() -> dict[str, float]:
        told = {one["name"]: one["value"] for one in wire.send("Performance.getMetrics")["metrics"]}
        return {name: told[name] for name in (*PARTS, "Timestamp")}

    before = taken()
    threading.Event().wait(SECONDS)
    after = taken()
    seconds = after["Timestamp"] - before["Timestamp"]
    return {name: 100 * (after[name] - before[name]) / seconds for name in PARTS}


def told(what: str, found: dict[str, float]) -> None:
    """One row."""
    parts = ", ".join(f"{name.removesuffix('Duration').lower()} {found[name]:.2f}" for name in PARTS[1:])
    print(f"{what}: {found['ThreadTime']:.2f} % of a core ({parts})", flush=True)


def main() -> None:
    """Print the share of a core with and without a feed."""
    ipywidgets.comm.create_comm = Wire
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        harness, close = serve(Path(folder))
        browser = playwright.chromium.launch(
            executable_path=find_browser(playwright.chromium.executable_path), args=FLAGS
        )
        page = browser.new_page(viewport={"width": 1100, "height": 800})
        wire = page.context.new_cdp_session(page)
        wire.send("Performance.enable")
        page.goto(harness.url)
        page.wait_for_function("window.ready")
        with ipfs.connect(repo=Path(folder) / "repo") as client:
            feed = client.notification_feed()

            def python(message: dict[str, Any]) -> list[dict[str, Any]]:
                feed.comm.sent.clear()
                feed.comm.handle_msg(
                    {"content": {"data": {"method": "custom", "content": message}}, "buffers": []}
                )
                return [one["content"] for one in feed.comm.sent]

            page.expose_function("python", python)
            state = {name: feed.get_state()[name] for name in feed.keys if name[0] != "_"}
            (Path(folder) / "joined.mjs").write_text(feed._esm)
            told("a page without a feed", shares(wire))
            page.evaluate(SHOW, [f"{harness.url}ipfs/joined.mjs", feed._css, state])
            page.wait_for_selector(".ipfs-feed[data-state=live]")
            with Emitter(client) as emitter:
                page.wait_for_timeout(2500)  # until the list is full, and its functions are compiled
                sent = emitter.sent
                found = shares(wire)
                rate = (emitter.sent - sent) / SECONDS
            told(f"a feed with {rate:.0f} events a second (goal: under {GOAL:g})", found)
            print(page.locator(".ipfs-feed-foot").inner_text())
            feed.close()
        browser.close()
        close()


if __name__ == "__main__":
    main()
