"""What the chart costs a browser: the share of a core that its page works at ten samples a second.

The browser's own account is taken (Performance.getMetrics) over ten seconds: the processor time of the page's
main thread, then how long its tasks took, which is more where they had to wait for a core. Its peer is the
same page without a chart; figures come from a source in the page, as a player's do. Once with the five
figures of the bit rate, once with all panels.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import ipywidgets.comm
from bench_feed import Wire, shares, told
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "browser"))
from harness import serve

import ipfs_stream_nb as ipfs
from conftest import FLAGS, find_browser  # found by the line above
from ipfs_stream_nb import samples

GOAL = 10.0
"""Percent of a core."""
FIVE = ("bandwidth_estimate", "target_bitrate", "sent_bitrate", "received_bitrate", "throughput")
MORE = (
    "rtt",
    "queue_delay",
    "jitter",
    "packet_loss",
    "height",
    "frames_per_second",
    "frames_dropped",
    "buffer",
    "freeze_seconds",
)

SHOW = """async ([module, style, state, names]) => {
  const {default: widget} = await import(module);
  const {offer} = await import('./sample-channels.js');
  const sheet = Object.assign(document.createElement('style'), {textContent: style});
  document.head.append(sheet);
  const scale = {packet_loss: 0.05, rtt: 0.2, queue_delay: 0.1, jitter: 0.02, height: 720, frames_per_second: 30, buffer: 0.3};
  const sample = (at) => Object.fromEntries(names.map((name, n) => [name, /dropped|freeze/.test(name) ? Math.floor(at / 7)
    : (scale[name] ?? 2e6) * (0.6 + 0.3 * Math.sin(at / 3 + n) + 0.1 * Math.sin(at * 7 + n))]));
  const model = new Model(state);
  let timer;
  offer(Object.values(state._keys)[0], {
    start(tell) {
      const began = Date.now() / 1000 - 60; // a full window at once
      for (let at = 0; at < 60; at += 0.1) tell({time: began + at, ...sample(at)});
      timer = setInterval(() => tell({time: Date.now() / 1000, ...sample(Date.now() / 1000 - began)}), 100);
    },
    stop: () => clearInterval(timer),
  });
  const parts = widget();
  window.stop = await parts.initialize({model});
  window.end = await parts.render({model, el: document.getElementById('views')});
}"""


def main() -> None:
    """Print the share of a core with and without a chart."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        harness, close = serve(Path(folder))
        browser = playwright.chromium.launch(
            executable_path=find_browser(playwright.chromium.executable_path), args=FLAGS
        )
        clip = samples.video(Path(folder) / "clip.mp4", width=64, height=64, duration=1)
        with ipfs.connect(repo=Path(folder) / "repo") as client:
            ipywidgets.comm.create_comm = Wire
            chart = client.chart(client.play(client.add(clip)))
        state = {name: chart.get_state()[name] for name in chart.keys if name not in {"_esm", "_css"}}
        (Path(folder) / "joined.mjs").write_text(chart._esm)
        for names in ((), FIVE, FIVE + MORE):
            page = browser.new_page(viewport={"width": 1100, "height": 800})
            wire = page.context.new_cdp_session(page)
            wire.send("Performance.enable")
            page.goto(harness.url)
            page.wait_for_function("window.ready")
            if names:
                page.evaluate(SHOW, [f"{harness.url}ipfs/joined.mjs", chart._css, state, names])
                page.wait_for_selector(".ipfs-abr[data-state=live] canvas")
            page.wait_for_timeout(3000)  # until its functions are compiled
            panels = page.locator(".ipfs-abr-panel:visible").count()
            what = (
                f"{len(names)} figures in {panels} panels (goal: under {GOAL:g})"
                if names
                else "a page without a chart"
            )
            told(what, shares(wire))
            page.close()
        browser.close()
        close()


if __name__ == "__main__":
    main()
