"""Decoded frames to upright 8-bit RGB arrays of the wanted size."""

from __future__ import annotations

import io
import math
import operator
from fractions import Fraction
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from av.buffer import Buffer
from av.sidedata.sidedata import SideDataContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.media.reader import MediaLimits
from ipfs_stream_nb.media.source import MediaSource

Picture = npt.NDArray[np.uint8]
Size = int | tuple[int, int] | None

MAX_PIXEL_ASPECT = Fraction(10)
"""Pixels that are wider or higher than that are an error in the file; those of anamorphic films stay under 3."""
_UNSPECIFIED = 2  # of matrix coefficients, in ITU-T H.273
_HD_LINES = 720


class Orientation(NamedTuple):
    """How a stored picture is turned to be shown: transposed first, then mirrored."""

    transpose: bool = False
    flip_columns: bool = False
    flip_rows: bool = False

    @property
    def rotation(self) -> int:
        """Clockwise degrees, 0, 90, 180 or 270; a mirrored picture gives the turn before it is mirrored."""
        if self.transpose:
            return 90 if not self.flip_rows else 270
        return 180 if self.flip_rows else 0

    def apply(self, picture: Picture) -> Picture:
        """A view of `picture` (height, width, channels), turned."""
        if self.transpose:
            picture = picture.transpose(1, 0, 2)
        return picture[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


_EXIF = {  # EXIF 2.32, 4.6.4 A, tag 0x0112
    2: Orientation(flip_columns=True),
    3: Orientation(flip_columns=True, flip_rows=True),
    4: Orientation(flip_rows=True),
    5: Orientation(transpose=True),
    6: Orientation(transpose=True, flip_columns=True),
    7: Orientation(transpose=True, flip_columns=True, flip_rows=True),
    8: Orientation(transpose=True, flip_rows=True),
}
_QUARTERS = {0: 1, 90: 8, 180: 3, 270: 6}  # counter-clockwise degrees to EXIF's orientation


def orientation_of(frame: VideoFrame, exif: int = 1) -> Orientation:
    """The turn that a picture's EXIF orientation or a frame's display matrix (ISO 14496-12, 6.2.2) asks for.

    A matrix is taken to the nearest quarter turn.
    """
    if exif in _EXIF:
        return _EXIF[exif]
    try:
        # frame.side_data would tie the frame to itself, so that its memory waits for the garbage collector
        side_data = cast("Any", SideDataContainer)(frame)
        matrix = cast("Buffer | None", side_data.get("DISPLAYMATRIX"))
    except ValueError:  # PyAV gives up all side data for one kind that it does not know
        quarter = round(getattr(frame, "rotation", 0) / 90) * 90 % 360
        return _EXIF.get(_QUARTERS[quarter], Orientation())
    if matrix is None:
        return Orientation()
    (a, b, _, c, d) = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(flip_columns=a < 0, flip_rows=d < 0)
    return Orientation(transpose=True, flip_columns=c < 0, flip_rows=b < 0)


def check_size(size: Size) -> Size:
    """The `size` argument with plain integers; BadRequestError if it is not a width or (width, height) from 1."""
    try:
        checked = tuple(operator.index(side) for side in size) if isinstance(size, tuple | list) else size
        if checked is None:
            return None
        sides = checked if isinstance(checked, tuple) else (operator.index(checked),)
    except TypeError:
        sides = ()
    if len(sides) not in (1, 2) or min(sides) < 1 or (isinstance(size, tuple | list) and len(sides) == 1):
        raise BadRequestError(f"size={size!r}: expected a width or (width, height) in pixels, from 1.")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def fit(width: int, height: int, pixel_aspect: Fraction, size: Size, limits: MediaLimits) -> tuple[int, int]:
    """The (width, height) of a picture in `size`, which is a width, or a box that it just fits in; None keeps it.

    The aspect of the picture as it is shown is kept, to the nearest pixel; any size is possible, odd ones too.
    """
    if size is None:
        return width, height
    aspect = width * pixel_aspect / height
    if isinstance(size, int):
        fitted = size, max(1, round(size / aspect))
    elif aspect * size[1] > size[0]:
        fitted = size[0], max(1, round(size[0] / aspect))
    else:
        fitted = max(1, round(size[1] * aspect)), size[1]
    if fitted[0] * fitted[1] > limits.max_pixels:
        raise BadRequestError(
            f"size={size!r} would give {fitted[0]}×{fitted[1]}: more than {limits.max_pixels:,} pixels (max_pixels)."
        )
    return fitted


def pixel_aspect(stream: VideoStream) -> Fraction:
    """Width of a pixel by its height; 1 where the file does not tell, or tells what no display has."""
    aspect = stream.sample_aspect_ratio
    return aspect if aspect and 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT else Fraction(1)


class RGBConverter:
    """Turns the frames of one video into RGB of one size: that of the first frame, or what `size` makes of it."""

    def __init__(self, first: VideoFrame, source: MediaSource, size: Size) -> None:
        self._reformatter = VideoReformatter()
        self._exif = source.exif_orientation
        aspect = pixel_aspect(source.video)
        if orientation_of(first, self._exif).transpose:
            self.width, self.height = fit(first.height, first.width, 1 / aspect, size, source.limits)
        else:
            self.width, self.height = fit(first.width, first.height, aspect, size, source.limits)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, 3) of every picture."""
        return self.height, self.width, 3

    def write(self, frame: VideoFrame, out: Picture) -> None:
        """Put `frame` into `out` (height, width, 3) uint8. Alpha is dropped; HDR is not tone-mapped."""
        orientation = orientation_of(frame, self._exif)
        width, height = (self.height, self.width) if orientation.transpose else (self.width, self.height)
        rgb = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", src_colorspace=_colorspace(frame)
        )
        np.copyto(out, orientation.apply(cast("Picture", rgb.to_ndarray())))

    def array(self, frame: VideoFrame) -> Picture:
        """A new array with `frame`."""
        out = np.empty(self.shape, dtype=np.uint8)
        self.write(frame, out)
        return out


def png(picture: Picture | Image.Image) -> bytes:
    """A picture as PNG, for a notebook."""
    buffer = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(buffer, "PNG")
    return buffer.getvalue()


def strip(pictures: list[Picture], height: int) -> Image.Image:
    """Some pictures side by side at one height, for a preview."""
    scaled = []
    for picture in pictures:
        image = Image.fromarray(picture)
        scaled.append(image.resize((max(1, round(image.width * height / image.height)), height)))
    joined = Image.new(
        "RGB", (sum(image.width for image in scaled) + 4 * (len(scaled) - 1), height), "#808080"
    )
    left = 0
    for image in scaled:
        joined.paste(image, (left, 0))
        left += image.width + 4
    return joined


def _colorspace(frame: VideoFrame) -> Colorspace | None:
    """BT.709 for high-definition video that does not say, as browsers take it; None lets the frame decide."""
    unsaid = (
        frame.colorspace == _UNSPECIFIED and not frame.format.is_rgb and len(frame.format.components) >= 3
    )
    return Colorspace.ITU709 if unsaid and min(frame.width, frame.height) >= _HD_LINES else None


def clock(seconds: float) -> str:
    """Seconds as m:ss.mmm, with hours where there are any, cut to the millisecond: for captions."""
    milliseconds = math.floor(abs(seconds) * 1000 + 1e-3)  # but 0.57 is not 569.999…
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    head = f"{hours}:{minutes:02}" if hours else str(minutes)
    return f"{'-' if seconds < 0 and milliseconds else ''}{head}:{rest // 1000:02}.{rest % 1000:03}"
