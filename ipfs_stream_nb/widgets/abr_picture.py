"""A still picture of samples, as SVG: what stands for the chart where no widget runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Final

from ipfs_stream_nb.widgets.abr_samples import Sample

WIDTH: Final = 720
LEFT: Final = 52
RIGHT: Final = 12
GAP: Final = 2.0
"""Seconds without a sample beyond which a line is broken."""
MAX_POINTS: Final = 360
"""Points of a line; of more samples every n-th is drawn, so that a notebook stays small."""
SMALLEST: Final = 1e-12
"""The smallest top of a scale."""
HEADROOM: Final = 1.08
"""Of a scale, or what lies at its top would lie on the edge."""
LOOSE: Final = 2.5
"""Times the highest of the other figures that the scale of a loose one has at the most."""
_FONT: Final = 'font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif"'
_INK, _FAINT, _GRID, _FREEZE = "#1f2933", "#66727f", "#e7eaee", "#e53935"


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of a panel."""

    name: str
    label: str
    colour: str
    dash: str = ""
    fill: bool = False
    stepped: bool = False
    loose: bool = False
    """Whether it may go out at the top where it is far above the others."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Figures with one scale; values are multiplied by `factor` to be in `unit`."""

    title: str
    unit: str
    factor: float
    height: int
    lines: tuple[Line, ...]


PANELS: Final = (
    Panel(
        "Bit rate",
        "Mbit/s",
        1e-6,
        110,
        (
            Line("bandwidth_estimate", "estimate", "#e07b00", loose=True),
            Line("target_bitrate", "target", "#6b7785", "5 4"),
            Line("throughput", "throughput", "#00897b", fill=True),
            Line("sent_bitrate", "sent", "#1e78d6"),
            Line("received_bitrate", "received", "#2f9e2f"),
        ),
    ),
    Panel(
        "Delay",
        "ms",
        1e3,
        76,
        (
            Line("rtt", "round trip", "#8e44c8"),
            Line("queue_delay", "queue", "#e07b00"),
            Line("jitter", "jitter", "#00897b"),
        ),
    ),
    Panel("Loss", "%", 100, 48, (Line("packet_loss", "packets lost", "#d32f2f", fill=True),)),
    Panel("Picture", "lines", 1, 64, (Line("height", "height", "#1e78d6", fill=True, stepped=True),)),
    Panel("Buffer", "s", 1, 56, (Line("buffer", "ahead", "#2e8b3d", fill=True),)),
)


def picture(title: str, samples: Sequence[Sample], seconds: float) -> str:
    """An SVG of the samples of one connection, which lie in a window of `seconds`; a note where there are
    none."""
    panels = [panel for panel in PANELS if any(line.name in one for one in samples for line in panel.lines)]
    if not panels:
        return _svg(
            64, [_text(WIDTH / 2, 37, "A live chart. Run the cell, and play, to see it.", _FAINT, "middle")]
        )
    end = float(samples[-1]["time"])
    start = max(end - seconds, float(samples[0]["time"]))
    if end <= start:
        start = end - 1
    parts = [
        _text(12, 24, title, _INK, weight=600),
        _text(WIDTH - RIGHT, 24, _summary(samples), _FAINT, "end"),
    ]
    top = 38.0
    for panel in panels:
        parts += _panel(panel, samples, top, start, end)
        top += panel.height + 30
    for share in (0.0, 0.5, 1.0):
        x = LEFT + share * (WIDTH - LEFT - RIGHT)
        label = f"{(share - 1) * (end - start):.3g} s".replace("-", "−") if share < 1 else "latest"
        parts.append(_text(x, top + 4, label, _FAINT, ("start", "middle", "end")[int(share * 2)]))
    return _svg(top + 16, parts)


def _summary(samples: Sequence[Sample]) -> str:
    last = samples[-1]
    facts = []
    if "height" in last:
        facts.append(f"{last['height']:.0f}p")
    if "level" in last:
        facts.append(str(last["level"]).replace("_", " "))
    begun, frozen = (
        next((float(one["freeze_seconds"]) for one in way if "freeze_seconds" in one), 0.0)
        for way in (samples, reversed(samples))
    )
    facts.append(f"frozen {max(frozen - begun, 0.0):.1f} s")
    return " · ".join(facts)


def _panel(panel: Panel, samples: Sequence[Sample], top: float, start: float, end: float) -> list[str]:
    lines = [line for line in panel.lines if any(line.name in one for one in samples)]
    ceiling = nice(_highest(lines, samples) * panel.factor)
    base = top + 20 + panel.height

    def x(time: float) -> float:
        return LEFT + (time - start) / (end - start) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return base - min(value * panel.factor / ceiling / HEADROOM, 1.0) * panel.height

    parts = [_text(12, top + 12, panel.title, _INK, weight=600)]
    at = 12.0 + 8 * len(panel.title) + 10
    for line in lines:
        parts.append(
            f'<line x1="{at:.0f}" y1="{top + 8:.0f}" x2="{at + 14:.0f}" y2="{top + 8:.0f}" stroke="{line.colour}" '
            f'stroke-width="2"{_dashed(line)}/>'
        )
        parts.append(_text(at + 19, top + 12, line.label, _FAINT))
        at += 19 + 6.4 * len(line.label) + 14
    for share in (0.0, 0.5, 1.0):
        level = base - share / HEADROOM * panel.height
        parts.append(
            f'<line x1="{LEFT}" y1="{level:.1f}" x2="{WIDTH - RIGHT}" y2="{level:.1f}" stroke="{_GRID}"/>'
        )
        parts.append(_text(LEFT - 7, level + 4, f"{share * ceiling:g}", _FAINT, "end", size=10))
    parts.append(_text(WIDTH - RIGHT, top + 12, panel.unit, _FAINT, "end"))
    for begin, stop in freezes(samples):
        width = max(x(stop) - x(max(begin, start)), 1.5)
        parts.append(
            f'<rect x="{x(stop) - width:.1f}" y="{base - panel.height:.1f}" width="{width:.1f}" '
            f'height="{panel.height}" fill="{_FREEZE}" fill-opacity="0.18"/>'
        )
    for line in lines:
        for run in _runs(line.name, samples):
            parts += _drawn(line, run, x, y, base)
    return parts


def _highest(lines: Sequence[Line], samples: Sequence[Sample]) -> float:
    """What a scale has to show."""

    def most(loose: bool) -> float:
        values = (one.get(line.name, 0.0) for line in lines if line.loose is loose for one in samples)
        return max(map(float, values), default=0.0)

    firm, loose = most(loose=False), most(loose=True)
    return max(firm, min(loose, firm * LOOSE if firm else math.inf))


def freezes(samples: Sequence[Sample]) -> list[tuple[float, float]]:
    """From when to when (s) the picture stood still, by how `freeze_seconds` grew; what touches is one."""
    found: list[tuple[float, float]] = []
    known = [(float(one["time"]), float(one["freeze_seconds"])) for one in samples if "freeze_seconds" in one]
    for (_, before), (time, after) in pairwise(known):
        if after <= before:
            continue
        begin = time - (after - before)
        if found and begin <= found[-1][1] + 0.05:
            found[-1] = (found[-1][0], time)
        else:
            found.append((begin, time))
    return found


def nice(highest: float) -> float:
    """The next number up that is easy to halve: 1, 2, 3, 4, 5, 6, 8 or 10 times a power of ten. Of next to
    nothing it is 1."""
    if highest < SMALLEST:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    return next(step * power for step in (1, 2, 3, 4, 5, 6, 8, 10) if highest <= step * power * (1 + 1e-9))


def _runs(name: str, samples: Sequence[Sample]) -> list[list[tuple[float, float]]]:
    """The points of a figure, parted where it is missing."""
    runs: list[list[tuple[float, float]]] = [[]]
    every = max(1, math.ceil(len(samples) / MAX_POINTS))
    last = -math.inf
    for number, one in enumerate(samples):
        time = float(one["time"])
        if (name not in one or time - last > GAP) and runs[-1]:
            runs.append([])
        if name in one and (number % every == 0 or not runs[-1]):
            runs[-1].append((time, float(one[name])))
        last = time
    return [run for run in runs if run]


def _drawn(
    line: Line,
    run: list[tuple[float, float]],
    x: Callable[[float], float],
    y: Callable[[float], float],
    base: float,
) -> list[str]:
    points = [(x(time), y(value)) for time, value in run]
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for right, level in points[1:]:
        path += f"H{right:.1f}V{level:.1f}" if line.stepped else f"L{right:.1f} {level:.1f}"
    if len(points) == 1:
        path += "h1"
    parts = []
    if line.fill:
        parts.append(
            f'<path d="{path}V{base:.1f}H{points[0][0]:.1f}Z" fill="{line.colour}" fill-opacity="0.13"/>'
        )
    parts.append(
        f'<path d="{path}" fill="none" stroke="{line.colour}" stroke-width="1.6" stroke-linejoin="round"{_dashed(line)}/>'
    )
    return parts


def _dashed(line: Line) -> str:
    return f' stroke-dasharray="{line.dash}"' if line.dash else ""


def _text(
    x: float, y: float, text: str, colour: str, anchor: str = "start", *, weight: int = 400, size: int = 12
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )


def _svg(height: float, parts: Sequence[str]) -> str:
    size = f'width="{WIDTH}" height="{height:.0f}" viewBox="0 0 {WIDTH} {height:.0f}"'
    frame = f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:.0f}" rx="8" fill="#fff" stroke="#d8dde3"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="Chart of adaptive quality" {_FONT}>'
        f"{frame}{''.join(parts)}</svg>"
    )
