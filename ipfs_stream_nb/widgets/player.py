"""The player widget: video, audio or an image by its CID, in the notebook."""

from __future__ import annotations

import base64
import difflib
import math
import numbers
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anywidget
import traitlets as t

from ipfs_stream_nb.clients.results import hinted
from ipfs_stream_nb.content.resolver import parse_path
from ipfs_stream_nb.display import size_text
from ipfs_stream_nb.errors import BadRequestError, IPFSStreamError, IsDirectoryError
from ipfs_stream_nb.widgets.modules import join_modules, themed
from ipfs_stream_nb.widgets.poster import make_poster

if TYPE_CHECKING:
    from ipfs_stream_nb.clients.sync import Client
    from ipfs_stream_nb.content.cid import CID

_STATIC = Path(__file__).parent / "static"

MIN_RATE: Final = 0.0625
MAX_RATE: Final = 16.0
"""The playback rates that Chromium takes; Firefox is silent outside of 0.25 to 4."""
STATES: Final = ("loading", "ready", "playing", "paused", "buffering", "ended", "error")
TRANSPORTS: Final = ("http", "webrtc", "auto")
QUALITIES: Final = ("auto", "very_low", "low", "medium", "high", "very_high")
_KINDS: Final = ("video", "audio", "image", "other")
_PLAYLISTS: Final = frozenset({"audio/mpegurl", "audio/x-mpegurl", "audio/x-scpls"})
_CSS_LENGTH: Final = re.compile(r"\d{1,5}(\.\d{1,4})?(px|%|em|rem|ch|vw|vh)")


class Player(anywidget.AnyWidget):
    """Plays video, audio or an image by content, in the notebook.

    Set from either side, and observable:
        current_time    position in seconds; set beyond the end, it goes to the end
        paused, muted, volume (0 to 1), playback_rate (0.0625 to 16), loop, autoplay, controls
        width           pixels as an int, or a CSS length such as "100%"
        quality         over WebRTC: auto, very_low (240p), low (360p), medium (480p), high (720p), very_high (1080p)
    Told by the browser, up to four times a second:
        duration        in seconds, None while it is not known
        state           loading, ready, playing, paused, buffering, ended or error
        error           why it does not play, in words; empty while all is well
        connection      how the content comes, in words, where it is to come over WebRTC
    And fixed: path, mime_type, size (bytes), kind (video, audio, image or other), transport (http, webrtc or auto).

    Several views of one player share all of this: the one that was used last is the one that plays.

    `close()` takes it out of every view; play, pause and seek raise BadRequestError from then on.
    """

    _esm = join_modules(_STATIC / "player.js")
    _css = themed(_STATIC / "player.css")

    path = t.Unicode(read_only=True, help="<cid>[/name…]").tag(sync=True)
    mime_type = t.Unicode(read_only=True).tag(sync=True)
    size = t.Int(read_only=True, help="bytes").tag(sync=True)
    kind = t.Enum(_KINDS, "other", read_only=True).tag(sync=True)

    current_time = t.Float(0.0, min=0, help="seconds").tag(sync=True, echo_update=False)
    duration = t.Float(None, allow_none=True, read_only=True, help="seconds").tag(
        sync=True, echo_update=False
    )
    paused = t.Bool(True).tag(sync=True, echo_update=False)
    muted = t.Bool(False).tag(sync=True)
    volume = t.Float(1.0, min=0, max=1).tag(sync=True)
    playback_rate = t.Float(1.0, min=MIN_RATE, max=MAX_RATE).tag(sync=True)
    state = t.Enum(STATES, "loading", read_only=True).tag(sync=True, echo_update=False)
    error = t.Unicode(read_only=True).tag(sync=True, echo_update=False)
    connection = t.Unicode(read_only=True).tag(sync=True, echo_update=False)

    transport = t.Enum(TRANSPORTS, "http", read_only=True).tag(sync=True)
    quality = t.Enum(QUALITIES, "auto").tag(sync=True)
    loop = t.Bool(False).tag(sync=True)
    autoplay = t.Bool(False).tag(sync=True)
    controls = t.Bool(True).tag(sync=True)
    width = t.Union([t.Int(min=1), t.Unicode()], default_value=640).tag(sync=True)

    base_url = t.Unicode("/", read_only=True).tag(sync=True)
    same_origin = t.Bool(False, read_only=True).tag(sync=True)
    poster = t.Unicode(read_only=True, help="a still picture as a data: URL").tag(sync=True)
    frame_rate = t.Float(None, allow_none=True, read_only=True, help="frames a second").tag(sync=True)

    _samples_key = t.Unicode(read_only=True, help="where a chart in the page finds its samples").tag(
        sync=True
    )

    @hinted
    def __init__(
        self,
        client: Client,
        path: str | CID,
        *,
        current_time: float = 0.0,
        muted: bool = False,
        volume: float = 1.0,
        playback_rate: float = 1.0,
        loop: bool = False,
        autoplay: bool = False,
        controls: bool = True,
        width: int | str = 640,
        transport: str = "http",
        quality: str = "auto",
    ) -> None:
        """Show what `path` leads to. Raises BadCIDError, NotFoundError, IsDirectoryError, and TraitError for a
        value that is out of range. Content that is not media is shown as a note that says so."""
        self.set_trait("transport", transport)
        self.set_trait("_samples_key", secrets.token_hex(8))
        cid, names = parse_path(path)
        self._client = client
        self._path = "/".join([str(cid), *names])
        self._commands: dict[str, dict[str, Any]] = {}
        self._numbers = count(1)
        self._from_browser = False
        self._poster_tried = False
        for name, value in self._look_up().items():
            self.set_trait(name, value)
        super().__init__(
            current_time=current_time,
            muted=muted,
            volume=volume,
            playback_rate=playback_rate,
            loop=loop,
            autoplay=autoplay,
            controls=controls,
            width=width,
            quality=quality,
        )
        self.on_msg(self._receive)
        self.observe(self._pause_or_play, "paused")

    def _look_up(self) -> dict[str, Any]:
        """The fixed traits, by what the node knows of the path."""
        stat = self._client.stat(self._path)
        if stat.kind == "directory":
            raise IsDirectoryError(
                f"{self._path} is a directory; play a file in it (client.ls shows which there are)"
            )
        if stat.kind == "symlink":
            raise BadRequestError(f"{self._path} is a symlink; play what it points to: {stat.target}")
        server = self._client.server
        kind = kind_of(stat.mime_type)
        fixed = {"path": self._path, "mime_type": stat.mime_type, "size": stat.size, "kind": kind}
        if kind == "other":
            essence = stat.mime_type.partition(";")[0]
            what = "empty" if not stat.size else f"{essence} ({size_text(stat.size)})"
            fixed |= {
                "state": "error",
                "error": f"This is {what}, not video, audio or an image. "
                f'Its bytes can be had with `client.open("{self._path}")`.',
            }
        return fixed | {"base_url": server.base_url, "same_origin": server.same_origin}

    @property
    def _closed(self) -> bool:
        return self.comm is None

    def __repr__(self) -> str:
        return f"Player({self._path!r}, {self.mime_type}{', closed' * self._closed})"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The widget, and a still picture for where no widget runs: GitHub, nbval, a closed notebook."""
        bundle: tuple[dict[str, Any], dict[str, Any]] | None = super()._repr_mimebundle_(**kwargs)
        if bundle is not None and (poster := self._still()):
            bundle[0]["image/jpeg"] = poster
        return bundle

    def _still(self) -> str:
        """The poster in base64, made when it is first asked for; empty where there is none."""
        if not self._poster_tried and self.kind in {"video", "image"}:
            self._poster_tried = True
            made = make_poster(lambda: self._client.open(self._path))
            if made is not None:
                self.set_trait("poster", f"data:image/jpeg;base64,{base64.b64encode(made.jpeg).decode()}")
                self.set_trait("frame_rate", made.frame_rate)
        return self.poster.partition(",")[2]

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a trait. A public name that no player has is refused: Python would take a mistyped one in silence."""
        if not name.startswith("_") and not hasattr(type(self), name):
            close = difflib.get_close_matches(name, _SETTABLE, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"what can be set is {', '.join(_SETTABLE)}"
            raise AttributeError(f"a player has no {name!r}; {hint}")
        super().__setattr__(name, value)

    # ---- what Python may ask for

    def play(self) -> None:
        """Play; where no view is there yet, as soon as one is. A browser may refuse sound before a click.
        Raises BadRequestError where the player is closed."""
        self._command("play")

    def pause(self) -> None:
        """Pause. Raises BadRequestError where the player is closed."""
        self._command("pause")

    def seek(self, time: float) -> None:
        """Go to `time` in seconds from the start, or to the end if that comes first. Raises BadRequestError for
        what is no such time, and where the player is closed."""
        if isinstance(time, bool) or not isinstance(time, numbers.Real):
            raise BadRequestError(f"seek({time!r}): expected a time in seconds, as a number such as 7.5")
        seconds = float(time)
        if not (math.isfinite(seconds) and seconds >= 0):
            raise BadRequestError(f"seek({time!r}): expected a finite time of 0 seconds or more")
        self._command("seek", time=seconds)

    def _command(self, kind: str, **fields: Any) -> None:
        """Send a command, and keep it until a view has done it: there may be none yet, or its page be gone.

        What is kept is bounded by what a later command replaces: there is one wish to play or pause, and one place.
        """
        self._refuse_closed(kind)
        command = {"type": kind, "id": next(self._numbers), **fields}
        self._commands["place" if kind == "seek" else "motion"] = command
        self.send(command)

    def _refuse_closed(self, wish: str) -> None:
        if self._closed:
            raise BadRequestError(f"{wish}: this player is closed; client.play({self._path!r}) makes another")

    # ---- what comes from the browser

    def _receive(self, _widget: Player, message: dict[str, Any], _buffers: list[memoryview]) -> None:
        match message:
            case {"event": "ready"}:
                for command in list(self._commands.values()):
                    self.send(command)
            case {"event": "ack", "id": done}:
                self._commands = {k: c for k, c in self._commands.items() if c["id"] != done}
            case {"event": "url" | "codecs" | "height" as event, "request": str(request)}:
                try:
                    answer = {"url": self._url, "codecs": self._codecs, "height": self._height}[event]()
                except (IPFSStreamError, OSError) as error:
                    answer = {"error": str(error)}
                self.send({"request": request, **answer})

    def _url(self) -> dict[str, str]:
        """A URL with a capability token. It goes to the view that asked and nowhere else: traits are saved."""
        url = self._client.url(self._path)
        return {"url": url, "relative": url.removeprefix(self._client.server.url)}

    def _codecs(self) -> dict[str, Any]:
        """The names of the codecs inside, for a browser that could not decode them."""
        streams = self._client.info(self._path).streams
        return {"text": ", ".join(stream.codec or "unknown" for stream in streams)}

    def _height(self) -> dict[str, Any]:
        """Of the video in lines, 0 where there is none: above it there are no levels of quality."""
        streams = self._client.info(self._path).streams
        return {"height": max((getattr(one, "height", 0) for one in streams), default=0)}

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """Take what the browser reports (ipywidgets calls this)."""
        with self._reported():
            super().set_state(sync_data)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        self._from_browser = True
        try:
            yield
        finally:
            self._from_browser = False

    def _pause_or_play(self, change: Any) -> None:
        if not self._from_browser:
            self._command("pause" if change.new else "play")

    # ---- checks

    @t.validate("current_time", "volume", "playback_rate")
    def _check_number(self, proposal: Any) -> float:
        name, value = proposal.trait.name, float(proposal.value)
        if not math.isfinite(value):
            raise t.TraitError(f"{name}={value}: expected a finite number")
        if name == "current_time" and self.duration is not None:
            return min(value, self.duration)
        return value

    @t.validate("paused")
    def _check_open(self, proposal: Any) -> bool:
        wish: bool = proposal.value
        self._refuse_closed("pause" if wish else "play")
        return wish

    @t.validate("width")
    def _check_width(self, proposal: Any) -> int | str:
        value: int | str = proposal.value
        if isinstance(value, str) and not _CSS_LENGTH.fullmatch(value):
            raise t.TraitError(
                f'width={value!r}: expected pixels such as 640, or a CSS length such as "80%" or "40em"'
            )
        return value


_SETTABLE: Final = [name for name, trait in Player.class_own_traits().items() if not trait.read_only]


def kind_of(mime_type: str) -> str:
    """Which element shows it: "video", "audio", "image", or "other" for what is not media."""
    essence = mime_type.partition(";")[0].strip().lower()
    if essence in _PLAYLISTS:
        return "other"
    if essence == "application/ogg":
        return "video"
    family = essence.partition("/")[0]
    return family if family in _KINDS else "other"
