"""The test pattern of the samples: pleasant to look at, and readable by people and by machines."""

from __future__ import annotations

import math
import zlib
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Picture = npt.NDArray[np.uint8]

MIN_SIDE = 64
"""Shortest side in pixels: below it, the blocks would not survive lossy coding."""
MAX_NUMBER = 2**24 - 1
"""Largest frame number that the blocks can carry."""

# The code: 24 bits of number and 8 of checksum in two rows at the lower edge, each a twentieth of the height. All
# measures are fractions of the picture, so that it reads the same at any scale.
_COLUMNS, _ROWS, _ROW_HEIGHT = 16, 2, 1 / 20
_BLACK, _WHITE = 16, 235
_CONTRAST = (
    60  # a cell must lie this far from the middle between the darkest and the brightest, in per cent of half
)

# Stops of the cyclic palette (RGB): night blue, teal, violet, amber.
_STOPS = ((18, 24, 62), (20, 92, 110), (84, 50, 128), (196, 116, 52), (74, 30, 84), (18, 24, 62))


class FramePainter:
    """Draws the frames of one clip; what does not move is drawn once."""

    def __init__(self, width: int, height: int, frame_rate: Fraction) -> None:
        self.width, self.height, self.frame_rate = width, height, frame_rate
        self._phase = _phase_map(width, height)
        self._palette = _palette()
        self.code_top = height - math.ceil(_ROWS * height * _ROW_HEIGHT)
        panel_width = min(round(width * 0.62), round(height * 1.4))
        self._time_glyphs = _glyphs((*"0123456789:.",), panel_width / 11)
        self._number_glyphs = _glyphs((*"0123456789", "frame "), panel_width / 24)
        self._ball, self._ball_alpha = _ball(max(5, round(min(width, height) / 8)))

    def paint(self, number: int) -> Picture:
        """Frame `number` as (height, width, 4) uint8 RGBA, fully opaque."""
        time = number / self.frame_rate
        shift = np.uint8(int(time * 24) & 255)
        canvas: Picture = (
            self._palette[self._phase + shift].view(np.uint8).reshape(self.height, self.width, 4)
        )
        self._draw_ball(canvas, float(time))
        self._draw_text(canvas, (*timecode(time),), ("frame ", *str(number)))
        self._draw_code(canvas, number)
        return canvas

    def _draw_ball(self, canvas: Picture, time: float) -> None:
        size = len(self._ball)
        top = round((self.code_top - size) * (1 - 0.8 * abs(math.sin(math.pi * time))))
        span = self.width - size
        left = round(span * (0.5 - 0.5 * math.cos(2 * math.pi * time / 9)))
        patch = canvas[top : top + size, left : left + size, :3]
        patch += ((self._ball - patch) * self._ball_alpha).astype(np.int16).astype(np.uint8)

    def _draw_text(self, canvas: Picture, time: tuple[str, ...], number: tuple[str, ...]) -> None:
        large = np.concatenate([self._time_glyphs[mark] for mark in time], axis=1)
        small = np.concatenate([self._number_glyphs[mark] for mark in number], axis=1)
        pad = len(large) // 3
        height, width = len(large) + len(small) + 2 * pad + pad // 2, large.shape[1] + 2 * pad
        top, left = max(0, (self.code_top - height) // 2), max(0, (self.width - width) // 2)
        canvas[top : top + height, left : left + width, :3] //= 4
        _blit(canvas, large, top + pad)
        _blit(canvas, small, top + pad + pad // 2 + len(large))

    def _draw_code(self, canvas: Picture, number: int) -> None:
        rows = np.linspace(self.code_top, self.height, _ROWS + 1).round().astype(int)
        columns = np.linspace(0, self.width, _COLUMNS + 1).round().astype(int)
        heights, widths = np.diff(rows), np.diff(columns)
        blocks = np.where(_code_bits(number), _WHITE, _BLACK).astype(np.uint8)
        strip = blocks.repeat(heights, axis=0).repeat(widths, axis=1)
        canvas[self.code_top :, :, :3] = strip[:, :, None]


def read_frame_number(picture: npt.ArrayLike) -> int | None:
    """The number that a FramePainter drew into `picture` (height, width[, channels]) uint8; None if there is none.

    Scaling and lossy coding are no harm. A turned, cropped or unrelated picture gives None: the blocks must all be
    clearly black or white, and agree with their checksum.
    """
    pixels = np.asarray(picture)
    if pixels.ndim not in (2, 3) or min(pixels.shape[:2]) < MIN_SIDE // 4:
        return None
    height = pixels.shape[0]
    top = height - math.ceil(_ROWS * height * _ROW_HEIGHT)
    strip = pixels[top:].astype(np.float32)
    if strip.ndim == 3:
        strip = strip[..., :3].mean(axis=2)
    cells = np.array(
        [[_cell_mean(strip, row, column) for column in range(_COLUMNS)] for row in range(_ROWS)],
        dtype=np.float32,
    )
    middle, half = (cells.max() + cells.min()) / 2, (cells.max() - cells.min()) / 2
    if half < 64 or np.abs(cells - middle).min() < half * _CONTRAST / 100:
        return None
    bits = (cells > middle).reshape(-1)
    value = int.from_bytes(np.packbits(bits).tobytes(), "big")
    number, checksum = value >> 8, value & 255
    return number if checksum == _checksum(number) else None


def timecode(time: float | Fraction) -> str:
    """Seconds as hh:mm:ss.mmm, cut (not rounded) to the millisecond."""
    milliseconds = math.floor(Fraction(time) * 1000)
    seconds, milliseconds = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{milliseconds:03}"


def _cell_mean(strip: npt.NDArray[np.float32], row: int, column: int) -> float:
    """The mean of a cell's inner half, away from what its neighbours bleed into it."""

    def inner(index: int, cells: int, length: int) -> slice:
        first = round((index + 0.3) * length / cells)
        return slice(first, max(first + 1, round((index + 0.7) * length / cells)))

    return float(strip[inner(row, _ROWS, strip.shape[0]), inner(column, _COLUMNS, strip.shape[1])].mean())


def _checksum(number: int) -> int:
    return zlib.crc32(number.to_bytes(3, "big")) & 255


def _code_bits(number: int) -> npt.NDArray[np.bool_]:
    value = number.to_bytes(3, "big") + bytes([_checksum(number)])
    return np.unpackbits(np.frombuffer(value, np.uint8)).reshape(_ROWS, _COLUMNS).astype(np.bool_)


def _phase_map(width: int, height: int) -> npt.NDArray[np.uint8]:
    """Where in the palette each pixel stands, as soft waves that have no seam when the palette turns."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / max(width, height)
    waves: npt.NDArray[np.float32] = (
        np.sin(5.1 * x + 2.2 * y) + np.sin(7.3 * y - 2.9 * x) + np.sin(6 * np.hypot(x - 0.35, y - 0.2))
    )
    phase: npt.NDArray[np.uint8] = (waves * 38 + 128 + 30 * y).astype(np.int32).astype(np.uint8)
    return phase


def _palette() -> npt.NDArray[np.uint32]:
    """256 RGBA colours, each as the uint32 whose bytes in memory are R, G, B, A."""
    places = np.linspace(0, 256, len(_STOPS))
    stops = np.array(_STOPS, dtype=np.float64)
    colours = np.full((256, 4), 255, dtype=np.uint8)
    for channel in range(3):
        colours[:, channel] = np.interp(np.arange(256), places, stops[:, channel])
    return colours.view(np.uint32).reshape(256)


def _ball(size: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float32]]:
    """A shaded ball as (size, size, 3) colour, and its coverage (size, size, 1) from 0 to 1."""
    y, x = (np.mgrid[0:size, 0:size].astype(np.float32) + 0.5) * 2 / size - 1
    coverage = np.clip((1 - np.hypot(x, y)) * size / 2, 0, 1)
    light = np.clip(1.1 - 0.75 * np.hypot(x + 0.35, y + 0.4), 0.25, 1)
    colour = light[..., None] * np.array([255, 214, 120], dtype=np.float32)
    return colour.astype(np.int16), coverage[..., None].astype(np.float32)


@lru_cache(maxsize=8)
def _glyphs(marks: tuple[str, ...], width: float) -> dict[str, npt.NDArray[np.float32]]:
    """Coverage (height, width, 1) from 0 to 1 of each mark, a character or a word.

    `width` is that of a figure; all figures have the same, so that they keep their place from frame to frame.
    """
    font = ImageFont.load_default(size=max(6, width * 1.6))
    boxes = [font.getbbox(mark, anchor="ls") for mark in marks]
    above = math.ceil(max(-box[1] for box in boxes))
    below = math.ceil(max(box[3] for box in boxes))
    glyphs: dict[str, npt.NDArray[np.float32]] = {}
    for mark in marks:
        cell = max(4, round(width if mark.isdigit() else font.getlength(mark) + width / 6))
        tile = Image.new("L", (cell, above + below))
        ImageDraw.Draw(tile).text((cell / 2, above), mark, fill=255, font=font, anchor="ms")
        glyphs[mark] = np.asarray(tile, dtype=np.float32)[..., None] / np.float32(255)
    return glyphs


def _blit(canvas: Picture, line: npt.NDArray[np.float32], top: int) -> None:
    """Set a line of text in near-white, centred; what hangs over the edge is left out."""
    left = max(0, (canvas.shape[1] - line.shape[1]) // 2)
    patch = canvas[top : top + line.shape[0], left : left + line.shape[1], :3]
    patch += ((245 - patch.astype(np.float32)) * line[: patch.shape[0], : patch.shape[1]]).astype(np.uint8)
