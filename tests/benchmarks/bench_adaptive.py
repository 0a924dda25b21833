"""Quality that follows the network: what a browser sees over emulated links, sent by us and by aiortc as it comes.

Each run is a real Chromium in one network namespace and a sender in another, with a link between them whose rate, delay and
loss follow a scenario of tests/link. The content takes 3 Mbit/s at 720p30, so that it fills every link. Needs root, Linux and a browser.

With `tests` on PYTHONPATH, as root: `bench_adaptive.py [--runs N] [--only name,…] [--kinds ours,aiortc] [--receiver chromium|gstreamer]`; five runs of everything take two hours.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from link.namespaces import LinkUnavailableError
from link.playing import Played, play
from link.scenarios import SCENARIOS
from rich_clip import rich_clip

CLIP_SECONDS = 70.0
Figures = dict[str, float]


def rate_in_time(played: Played, at: float, rate: float) -> float:
    """Seconds after a step until half a second's sending stays within a rate."""
    sent = played.records.down.series(0.1, at, at + 10)["sent"]
    means = np.convolve(sent, np.ones(5) / 5, "valid")
    within = np.flatnonzero(means <= rate)
    return float(within[0] * 0.1) if len(within) else math.inf


def step_down(played: Played) -> Figures:
    down, viewer = played.records.down, played.viewers[0]
    return {
        "s until the rate is below the link [1]": rate_in_time(played, 10, 0.6e6),
        "s frozen [0.5]": viewer.frozen(10, 30),
        "s of queue, p95 after 2 s [0.15]": down.queue_delay(95, 12, 30),
        "% lost [1]": 100 * down.loss_ratio(0, 30),
    }


def step_up(played: Played) -> Figures:
    sent = played.records.down.series(1.0, 10, 30)["sent"]
    enough = np.flatnonzero(sent >= 0.8 * 2e6)
    return {
        "s until a second's sending is 80 % of the link [10]": float(enough[0] + 1)
        if len(enough)
        else math.inf,
        "% of the link used, 10 to 20 s after the step": 100 * played.records.down.utilisation(20, 30),
    }


def steady(played: Played) -> Figures:
    end = played.scenario.duration
    return {
        "% of the link used [80]": 100 * played.records.down.utilisation(0, end),
        "s frozen [0]": played.viewers[0].frozen(0, end),
    }


def random_loss(played: Played) -> Figures:
    end = played.scenario.duration
    return {
        "Mbit/s [0.85 × steady's]": played.records.down.bitrate(5, end) / 1e6,
        "% of the time frozen [1]": 100 * played.viewers[0].frozen(0, end) / end,
    }


def long_rtt(played: Played) -> Figures:
    sent = played.records.down.series(1.0, 5, played.scenario.duration)["sent"]
    return {
        "% by which a second's sending is above 2 Mbit/s at the most [20]": 100 * (sent.max() / 2e6 - 1),
        "s frozen": played.viewers[0].frozen(0, played.scenario.duration),
    }


def beside_tcp(played: Played) -> Figures:
    down, end = played.records.down, played.scenario.duration
    return {
        "% of the link [25]": 100 * (down.bitrate(10, end) - played.tcp_bitrate) / 3e6,
        "% of the link for TCP [25]": 100 * played.tcp_bitrate / 3e6,
    }


def two_flows(played: Played) -> Figures:
    flows = [
        rate for rate in played.records.down.flows(10, played.scenario.duration).values() if rate > 50_000
    ]
    return {"Jain's index [0.9]": sum(flows) ** 2 / (len(flows) * sum(rate**2 for rate in flows))}


def outage(played: Played) -> Figures:
    frames = played.viewers[0].frames
    after = frames[frames > 13]
    return {
        "s from the outage's end to a picture [1]": float(after[0] - 13)
        + played.viewers[0].frozen(after[0], 30)
    }


def path_change(played: Played) -> Figures:
    down, viewer, end = played.records.down, played.viewers[0], played.scenario.duration
    return {
        "% of the link used": 100 * down.utilisation(0, end),
        "s frozen": viewer.frozen(0, end),
        "% lost": 100 * down.loss_ratio(0, end),
    }


BEST_IS_MOST = ("% of the link", "Jain", "Mbit/s")
FIGURES: dict[str, Callable[[Played], Figures]] = {
    "step_down": step_down, "step_up": step_up, "random_loss": random_loss, "outage": outage, "long_rtt": long_rtt,
    "beside_tcp": beside_tcp, "two_flows": two_flows, "path_change": path_change, "mobile": path_change, "steady": steady,
}  # fmt: skip
RECEIVERS = {"chromium": "adaptive_viewer.py", "gstreamer": "adaptive_gstreamer.py"}


async def measure(names: list[str], kinds: list[str], runs: int, receiver: str) -> None:
    """Print the median and the worst of each figure."""
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        clip.write_bytes(rich_clip(CLIP_SECONDS))
        for name in names:
            for kind in kinds:
                found: dict[str, list[float]] = {}
                for run in range(runs):
                    store = Path(folder) / f"{name}-{kind}-{run}"
                    played = await play(SCENARIOS[name], kind, clip, store, RECEIVERS[receiver])
                    for what, figure in FIGURES[name](played).items():
                        found.setdefault(what, []).append(figure)
                for what, figures in found.items():
                    worst = min(figures) if what.startswith(BEST_IS_MOST) else max(figures)
                    middle = statistics.median(figures)
                    each = " ".join(f"{one:.3g}" for one in figures)
                    print(
                        f"{name:12} {kind:7} {what}: median {middle:.3g}, worst {worst:.3g} ({each})",
                        flush=True,
                    )


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1, help="of each scenario (1)")
    parser.add_argument("--only", default=",".join(FIGURES), help="scenarios, by default all: %(default)s")
    parser.add_argument("--kinds", default="ours,aiortc", help="who sends, by default both: %(default)s")
    parser.add_argument("--receiver", choices=RECEIVERS, default="chromium")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := [name for name in names if name not in FIGURES]:
        parser.error(f"no scenario {', '.join(unknown)}; there are {', '.join(FIGURES)}")
    kinds = options.kinds.split(",")
    if unknown := set(kinds) - {"ours", "aiortc"}:
        parser.error(f"ours or aiortc sends, not {', '.join(unknown)}")
    try:
        asyncio.run(measure(names, kinds, options.runs, options.receiver))
    except LinkUnavailableError as error:
        print(f"could not run: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
