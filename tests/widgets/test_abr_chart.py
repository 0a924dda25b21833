"""The kernel's side of the chart; the browser's end of the wire is in the test's hands."""

from __future__ import annotations

import asyncio
import builtins
import math
import re
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import ipywidgets.comm
import numpy as np
import pytest
from comm.base_comm import BaseComm
from hypothesis import example, given
from hypothesis import strategies as st
from traitlets import TraitError

import ipfs_stream_nb as ipfs
from ipfs_stream_nb import samples
from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.widgets import abr_samples
from ipfs_stream_nb.widgets.abr_chart import AbrChart
from ipfs_stream_nb.widgets.abr_picture import freezes, nice, picture
from ipfs_stream_nb.widgets.player import Player

STATIC = Path(ipfs.__file__).parent / "widgets" / "static"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ipfs.Client]:
    """A client of its own store and server."""
    with ipfs.connect(repo=tmp_path_factory.mktemp("repo")) as client:
        yield client


@pytest.fixture(scope="module")
def folder(client: ipfs.Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The CID of a folder with two clips."""
    path = tmp_path_factory.mktemp("clips")
    samples.video(path / "a.mp4", width=64, height=64, duration=0.2)
    samples.video(path / "b.mp4", width=64, height=64, duration=0.2)
    return str(client.add(path).cid)


class Wire(BaseComm):
    """The wire to the browser: it keeps what goes out."""

    def publish_msg(self, msg_type: str, data: Any = None, **_rest: Any) -> None:
        self.__dict__.setdefault("sent", []).append(data or {})
        if came := self.__dict__.get("came"):
            came.set()


@pytest.fixture(autouse=True)
def _wire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipywidgets.comm, "create_comm", Wire)


@pytest.fixture
def player(client: ipfs.Client, folder: str) -> Player:
    return client.play(f"{folder}/a.mp4")


def messages(chart: AbrChart) -> list[dict[str, Any]]:
    """What went to the pages since the last call."""
    sent = chart.comm.__dict__.setdefault("sent", [])
    found = [one["content"] for one in sent if one.get("method") == "custom"]
    sent.clear()
    return found


def say(chart: AbrChart, **message: Any) -> None:
    """A message of a page."""
    chart.comm.handle_msg({"content": {"data": {"method": "custom", "content": message}}, "buffers": []})


def drawn_in(svg: str) -> ET.Element:
    """What a picture consists of."""
    return ET.fromstring(svg)  # noqa: S314  # our own


def report(chart: AbrChart, **columns: Any) -> None:
    """A page's report of the samples of the first player."""
    say(chart, event="samples", samples={chart.connections[0]: columns})


def test_players_are_connections(client: ipfs.Client, folder: str) -> None:
    """Each player is a connection under its file's name, which a second of the same name has with a number."""
    players = [client.play(f"{folder}/{name}") for name in ("a.mp4", "b.mp4", "a.mp4")]
    chart = client.chart(*players, seconds=20)
    assert chart.connections == ["a.mp4", "b.mp4", "a.mp4 (2)"]
    assert (chart.connection, chart.seconds) == ("a.mp4", 20)
    assert len({player._samples_key for player in players}) == 3
    assert list(chart._keys.values()) == [player._samples_key for player in players]
    assert repr(chart) == "AbrChart(a.mp4, b.mp4, a.mp4 (2))"


def test_names_of_connections(client: ipfs.Client, folder: str) -> None:
    """Where the transport tells players of one name apart it is in their names; others can be given, and the
    players as a list."""
    players = [client.play(f"{folder}/a.mp4", transport=way) for way in ("webrtc", "http", "http")]
    assert client.chart(players).connections == ["a.mp4 · WebRTC", "a.mp4 · HTTP", "a.mp4 · HTTP (2)"]
    assert client.chart(*players[:2], names=["live", "file"]).connections == ["live", "file"]
    for names in (["live"], ["live", "live"], "ab"):
        with pytest.raises(BadRequestError, match="expected a list of 2 names, one for each player"):
            client.chart(*players[:2], names=names)
    with pytest.raises(BadRequestError, match="expected a name of 1 to 100 characters"):
        client.chart(*players[:2], names=["live", 7])


async def test_the_async_client_has_charts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`chart` of an async client asks nothing of the server, and is not awaited."""
    async with await ipfs.connect_async(repo=tmp_path) as client:
        assert repr(client.chart()) == "AbrChart(no connection yet)"


def test_a_bare_cid_is_shortened(client: ipfs.Client, folder: str) -> None:
    """A player of content without a name goes by a short form of its CID."""
    cid = str(client.stat(f"{folder}/a.mp4").cid)
    (name,) = client.chart(client.play(cid)).connections
    assert name == f"{cid[:12]}…{cid[-12:]}"


def test_what_is_no_player_is_refused(client: ipfs.Client, folder: str, player: Player) -> None:
    """What is no player, a closed one, and one that is there twice."""
    with pytest.raises(BadRequestError, match=r"takes players, as from client\.play\(…\), not a str"):
        client.chart("a.mp4")
    with pytest.raises(BadRequestError, match="is there twice"):
        client.chart(player, player)
    player.close()
    with pytest.raises(BadRequestError, match="as it is closed"):
        client.chart(player)
    with pytest.raises(TypeError, match="did you mean 'seconds'"):
        client.chart(second=3)


@pytest.mark.parametrize("seconds", [0, 4.9, 3601, math.nan, math.inf, -60])
def test_windows_that_are_none(seconds: float) -> None:
    """A window has 5 s to an hour."""
    with pytest.raises(TraitError, match="expected 5 to 3600"):
        AbrChart(seconds=seconds)


def test_samples_come_back(client: ipfs.Client) -> None:
    """What is added comes back as records and as a table, without what is missing, in the order of the
    connections."""
    chart = AbrChart()
    chart.add_sample({"time": 0, "rtt": 0.05, "level": "high", "packet_loss": None}, connection="one")
    chart.add_sample({"time": 1, "sent_bitrate": np.float32(1e6), "rtt": math.nan}, connection="two")
    chart.add_sample({"time": Fraction(1, 2), "height": np.int64(720)}, connection="one")
    assert chart.to_records() == [
        {"connection": "one", "time": 0.0, "rtt": 0.05, "level": "high"},
        {"connection": "one", "time": 0.5, "height": 720.0},
        {"connection": "two", "time": 1.0, "sent_bitrate": 1e6},
    ]
    assert chart.connection == "one"
    table = chart.to_pandas()
    assert list(table.columns) == ["connection", "time", "sent_bitrate", "rtt", "height", "level"]
    assert table["rtt"].isna().tolist() == [False, True, True]
    assert list(chart.to_pandas("two").columns) == ["connection", "time", "sent_bitrate"]
    assert list(AbrChart().to_pandas().columns) == ["connection", "time"]
    with pytest.raises(BadRequestError, match="no connection 'three'; there are: one, two"):
        chart.to_records("three")


def test_a_sample_without_a_time_is_of_now() -> None:
    """The time that is missing is seconds since the epoch, as the page's is."""
    chart = AbrChart()
    chart.add_sample({"rtt": 0.1})
    assert chart.to_records("samples")[0]["time"] == pytest.approx(time.time(), abs=5)


def test_a_quality_message_is_a_sample() -> None:
    """What the server sends over the data channel can be given as it came."""
    chart = AbrChart()
    chart.add_sample(
        {"type": "quality", "time": 3.5, "target_bitrate": 1e6, "state": "hold", "reason": "delay"}
    )
    assert chart.to_records() == [
        {"connection": "samples", "time": 3.5, "target_bitrate": 1e6, "state": "hold", "reason": "delay"}
    ]


@pytest.mark.parametrize(
    ("sample", "text"),
    [
        (None, "a sample is a dict such as {'rtt': 0.05}, not None"),
        ([("rtt", 1)], "not a list"),
        ({"rtt": "0.05"}, "rtt='0.05': expected a number (s, round trip), not a str"),
        ({"rtt": True}, "not a bool"),
        ({"rtt": -0.1}, "rtt=-0.1: expected a finite number from 0 on"),
        ({"sent_bitrate": math.inf}, "expected a finite number from 0 on"),
        ({"packet_loss": 5}, "packet_loss=5: expected 0 to 1"),
        ({"time": math.nan}, "time=nan: expected seconds"),
        ({"time": "12:00"}, "time='12:00': expected seconds"),
        ({"level": "720p"}, "level='720p': expected one of very_low, low"),
        ({"level": 3}, "expected a word"),
        ({"reason": "x" * 61}, "reason: expected at most 60 characters, not 61"),
        ({"bitrate": 1}, "a sample has no 'bitrate'; did you mean"),
        ({"xyzzy": 1}, "there are time, target_bitrate"),
        ({}, "an empty sample: expected figures, such as {'rtt': 0.05}, or a time for a gap"),
        ({"rtt": None}, "an empty sample"),
    ],
    ids=lambda value: re.sub(r"\W+", "-", repr(value))[:30] if not isinstance(value, str) else "",
)
def test_samples_that_are_none(sample: Any, text: str) -> None:
    """What no sample can hold is refused with what it should be, and nothing of its list is kept."""
    chart = AbrChart()
    with pytest.raises(BadRequestError, match=re.escape(text)):
        chart.add_samples([{"time": 1.0, "rtt": 0.1}, sample])
    assert chart.to_records() == []
    assert chart.connections == []


def test_times_go_on(player: Player) -> None:
    """A time that is not later is refused with all of its list, and so are samples of a player, and a name
    that is none."""
    chart = AbrChart(player)
    chart.add_samples([{"time": n} for n in range(3)], connection="run")
    with pytest.raises(BadRequestError, match="time=2 of 'run' is not later"):
        chart.add_samples([{"time": 3}, {"time": 4}, {"time": 2}], connection="run")
    assert [one["time"] for one in chart.to_records("run")] == [0, 1, 2]
    with pytest.raises(BadRequestError, match="samples come from the page"):
        chart.add_sample({"rtt": 1}, connection="a.mp4")
    for name in ("", "x" * 101, 7):
        with pytest.raises(BadRequestError, match="expected a name of 1 to 100 characters"):
            chart.add_sample({"rtt": 1}, connection=name)
    with pytest.raises(BadRequestError, match="not a dict of single figures; add_sample takes that"):
        chart.add_samples({"rtt": 1})
    with pytest.raises(BadRequestError, match="columns of different lengths: 'time' 2, 'rtt' 1"):
        chart.add_samples({"time": [1, 2], "rtt": [1]})
    chart.clear()
    chart.add_sample({"time": 0}, connection="run")
    assert len(chart.to_records()) == 1


def test_samples_in_other_shapes() -> None:
    """Records of a chart, a table and a dict of columns can be given as they are; a sample's own connection
    counts unless another is named, and where one is refused none is kept."""
    chart = AbrChart()
    chart.add_samples({"time": (0, 1), "rtt": np.array([0.1, math.nan])}, connection="one")
    chart.add_sample({"connection": "two", "time": 0, "level": "low"})
    records = chart.to_records()
    copy = AbrChart()
    copy.add_samples(records)
    assert copy.to_records() == records
    copy = AbrChart()
    copy.add_samples(chart.to_pandas())
    assert copy.to_records() == records
    copy.add_samples(chart.to_records("one"), connection="copy")
    assert len(copy.to_records("copy")) == 2
    with pytest.raises(BadRequestError, match="time=0 of 'two' is not later"):
        copy.add_samples([{"connection": "three", "time": 0}, {"connection": "two", "time": 0}])
    assert copy.connections == ["one", "two", "copy"]
    with pytest.raises(BadRequestError, match="connection=7: expected a name"):
        copy.add_sample({"connection": 7, "time": 9})


def test_all_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest samples give way, and connections are counted."""
    monkeypatch.setattr(abr_samples, "MAX_SAMPLES", 10)
    monkeypatch.setattr(abr_samples, "MAX_CONNECTIONS", 2)
    chart = AbrChart()
    chart.add_samples([{"time": n} for n in range(25)], connection="a")
    assert [one["time"] for one in chart.to_records()] == list(range(15, 25))
    chart.add_sample({"rtt": 1}, connection="b")
    with pytest.raises(BadRequestError, match="'c' is one connection too many: a chart has 2"):
        chart.add_sample({"rtt": 1}, connection="c")
    assert chart.connections == ["a", "b"]


async def test_samples_go_to_the_pages_in_time() -> None:
    """The first goes at once, and what follows within a tenth of a second together, without a further call."""
    chart = AbrChart()
    for n in range(50):
        chart.add_sample({"time": n, "rtt": 0.1}, connection="a")
    assert messages(chart) == [{"samples": {"a": {"time": [0.0], "rtt": [0.1]}}}]
    chart.comm.came = asyncio.Event()
    await asyncio.wait_for(chart.comm.came.wait(), 5)
    assert messages(chart) == [{"samples": {"a": {"time": list(range(1, 50)), "rtt": [0.1] * 49}}}]
    chart.add_sample({"time": 50}, connection="a")
    chart.close()


def test_a_page_gets_what_it_shows(player: Player) -> None:
    """A page that begins has the samples of the window, with gaps as null, and nothing twice."""
    chart = AbrChart(player, seconds=5)
    chart.add_samples([{"time": n} | ({"rtt": 0.1} if n % 2 else {}) for n in range(20)], connection="run")
    messages(chart)
    say(chart, event="ready")
    window = {"time": [14.0, 15.0, 16.0, 17.0, 18.0, 19.0], "rtt": [None, 0.1, None, 0.1, None, 0.1]}
    assert messages(chart) == [{"history": {"run": window}}]


def test_a_page_tells_of_players(player: Player) -> None:
    """What the page has of a player comes to be records; what it says that cannot be is left out, and
    harms nothing."""
    chart = AbrChart(player)
    report(chart, time=[1e9, 1e9 + 0.1], rtt=[0.1, None], level=["source", "source"])
    report(chart, time=[1e9 + 0.1, 1e9 + 0.2, "x", 1e9 + 0.3, None], rtt=[9, -1, 0, 0.2])
    report(chart, time="x")
    report(chart, rtt=[1])
    say(chart, event="samples", samples={"nobody": {"time": [1]}, "a.mp4": 7})
    say(chart, event="samples", samples=[])
    say(chart, event="else")
    assert chart.to_records() == [
        {"connection": "a.mp4", "time": 1e9, "rtt": 0.1, "level": "source"},
        {"connection": "a.mp4", "time": 1e9 + 0.1, "level": "source"},
        {"connection": "a.mp4", "time": 1e9 + 0.3, "rtt": 0.2},
    ]


def test_traits_are_checked(player: Player) -> None:
    """A connection that is not there and a mistyped trait are refused; a page can set what can be set."""
    chart = AbrChart(player)
    chart.add_sample({"rtt": 1}, connection="run")
    with pytest.raises(TraitError, match=r"connection='x': expected one of a\.mp4, run"):
        chart.connection = "x"
    with pytest.raises(AttributeError, match="did you mean 'seconds'"):
        chart.second = 10
    with pytest.raises(TraitError):
        chart.connections = ["x"]
    chart.set_state({"connection": "run", "paused": True, "seconds": 30})
    assert (chart.connection, chart.paused, chart.seconds) == ("run", True, 30)


def test_closed(player: Player) -> None:
    """A closed chart takes nothing more, keeps what it had, and says that it is closed."""
    chart = AbrChart(player)
    chart.add_sample({"time": 1}, connection="run")
    chart.close()
    chart.close()
    with pytest.raises(BadRequestError, match="this chart is closed"):
        chart.add_sample({"time": 2}, connection="run")
    assert len(chart.to_records()) == 1
    assert repr(chart) == "AbrChart(a.mp4, run, closed)"


def test_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pandas is missing the error says what to do."""
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(BadRequestError, match="pip install pandas"):
        AbrChart().to_pandas()


def test_a_still_picture() -> None:
    """Where no widget runs an SVG stands for the chart: lines with their names, gaps, freezes, and all
    text escaped."""
    chart = AbrChart(seconds=30)
    chart.add_samples(
        [
            {
                "time": n / 10,
                "sent_bitrate": 1e6 + n,
                "rtt": None if 50 < n < 60 else 0.05,
                "freeze_seconds": n // 100,
            }
            for n in range(200)
        ],
        connection="<&>",
    )
    bundle = chart._repr_mimebundle_()[0]
    assert "application/vnd.jupyter.widget-view+json" in bundle
    root = drawn_in(bundle["image/svg+xml"])
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"<&>", "Bit rate", "sent", "Mbit/s", "Delay", "round trip", "frozen 1.0 s", "−19.9 s"} <= set(
        texts
    )
    assert "Buffer" not in texts
    drawn = [node.get("stroke") for node in root.iter("{http://www.w3.org/2000/svg}path")]
    assert drawn.count("#8e44c8") == 2  # the round trip, in two parts
    assert len(root.findall(".//*[@fill-opacity='0.18']")) == 2  # a freeze in each panel
    assert len(bundle["image/svg+xml"]) < 20_000
    assert "Run the cell, and play, to see it" in AbrChart().to_svg()


def test_one_sample_is_a_picture() -> None:
    """A single sample, or a value of nothing, divides by no zero."""
    chart = AbrChart()
    chart.add_sample({"time": 5, "rtt": 0, "packet_loss": 0})
    drawn_in(chart.to_svg())


@example([5e-324], 1.0)
@given(st.lists(st.floats(0, 1e12, allow_nan=False), min_size=1, max_size=30), st.floats(1e-3, 1e3))
def test_any_figures_are_a_picture(values: list[float], step: float) -> None:
    """Whatever numbers there are, the picture is well-formed, without a NaN or an infinity in it."""
    kept = abr_samples.Samples()
    kept.open("any")
    kept.add(
        "any",
        ({"time": n * step, "target_bitrate": value, "buffer": value} for n, value in enumerate(values)),
    )
    svg = picture("any", kept.records("any"), 60)
    drawn_in(svg)
    assert not re.search(r"\b(nan|inf)\b", svg)


def test_an_estimate_leaves_room() -> None:
    """An estimate far above what is sent goes out at the top, and does not press the rest to the ground."""
    chart = AbrChart()
    chart.add_samples({"time": range(3), "sent_bitrate": [2e6] * 3, "bandwidth_estimate": [16e6] * 3})
    texts = [node.text for node in drawn_in(chart.to_svg()).iter("{http://www.w3.org/2000/svg}text")]
    assert {"0", "2.5", "5"} <= set(texts)


@given(st.floats(1e-9, 1e15))
def test_scales_are_near_above(highest: float) -> None:
    """The top of a scale is above the highest value, and less than twice as high."""
    assert highest <= nice(highest) * (1 + 1e-9) <= highest * 2 * (1 + 1e-6)


def test_freezes_are_merged() -> None:
    """How `freeze_seconds` grows says from when to when the picture stood still; a count that begins anew
    is none."""
    grown = [(0, 0.0), (1, 0.0), (2, 0.5), (2.5, 1.0), (4, 1.0), (5, 0.0), (6, 0.25)]
    rows = [{"time": time, "freeze_seconds": value} for time, value in grown]
    assert freezes(rows) == [(1.5, 2.5), (5.75, 6)]


def test_the_module_holds_all_of_it() -> None:
    """uPlot and every file of ours are in the one module that a front end takes, and nothing is left to be
    imported."""
    module, style = AbrChart._esm, AbrChart._css
    assert "var uPlot" in module
    assert "class PlayerSamples" not in module
    assert not re.search(r"^import ", module, re.MULTILINE)
    assert ".u-over" in style
    assert ".ipfs-abr" in style
    for name in STATIC.glob("abr-chart*.js"):
        assert "uPlot = (function" not in name.read_text()  # no code of others is kept here
