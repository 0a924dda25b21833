"""A contact sheet: pictures of a video at even distances, with their times."""

from __future__ import annotations

import math

from PIL import Image, ImageDraw, ImageFont

from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.media.decode import VideoDecoder
from ipfs_stream_nb.media.frames import at_times, content_end
from ipfs_stream_nb.media.picture import RGBConverter, clock
from ipfs_stream_nb.media.reader import DEFAULT_LIMITS, BinaryFile, MediaLimits
from ipfs_stream_nb.media.source import open_media

MAX_TILES = 400
"""Pictures on one sheet."""
MAX_WIDTH = 8192
"""Widest sheet, in pixels."""
MIN_TILE = 16
"""Narrowest picture on a sheet, in pixels."""
_GAP = 8
_BACKGROUND, _TEXT = "#18181b", "#f4f4f5"


def contact_sheet(
    file: BinaryFile,
    *,
    columns: int = 4,
    rows: int | None = None,
    count: int = 12,
    width: int = 960,
    timestamps: bool = True,
    limits: MediaLimits = DEFAULT_LIMITS,
) -> Image.Image:
    """A picture, `width` pixels wide, of `count` frames in `columns`, each from the middle of its part of the video.

    rows         instead of count: that many rows of pictures
    timestamps   sets under each picture its time in the content

    A frame is shown once: a picture file, or a video of few frames, gives fewer. Raises BadRequestError for numbers
    out of range, and what open_media raises.
    """
    count = columns * rows if rows is not None else count
    tile_width = _check(columns, count, width)
    converter: RGBConverter | None = None
    tiles: list[tuple[float, Image.Image]] = []
    with open_media(file, limits) as source:
        decoder = VideoDecoder(source)
        length = content_end(decoder)
        shown: int | None = None
        for pts, frame in at_times(decoder, (length * (index + 0.5) / count for index in range(count))):
            converter = converter or RGBConverter(frame, source, tile_width)
            if pts != shown:
                time = float((pts - decoder.first) * decoder.time_base)
                tiles.append((time, Image.fromarray(converter.array(frame))))
            shown = pts
            source.reader.progress()
    return _arrange(tiles, min(columns, max(1, len(tiles))), timestamps)


def _check(columns: int, count: int, width: int) -> int:
    """The width of one picture; BadRequestError if the numbers make no sheet."""
    if not 1 <= count <= MAX_TILES:
        raise BadRequestError(f"{count} pictures: expected 1 to {MAX_TILES} (count, or columns × rows).")
    if columns < 1 or width > MAX_WIDTH or (tile := (width - _GAP * (columns + 1)) // columns) < MIN_TILE:
        raise BadRequestError(
            f"columns={columns}, width={width}: expected a width to {MAX_WIDTH} pixels, {MIN_TILE} or more a picture."
        )
    return tile


def _arrange(tiles: list[tuple[float, Image.Image]], columns: int, timestamps: bool) -> Image.Image:
    tile_width, tile_height = tiles[0][1].size if tiles else (MIN_TILE, MIN_TILE)
    text_size = max(11, min(22, round(tile_width / 12)))
    caption = round(text_size * 1.5) if timestamps else 0
    rows = max(1, math.ceil(len(tiles) / columns))
    step_x, step_y = tile_width + _GAP, tile_height + caption + _GAP
    sheet = Image.new("RGB", (columns * step_x + _GAP, rows * step_y + _GAP), _BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=text_size)
    for index, (time, tile) in enumerate(tiles):
        row, column = divmod(index, columns)
        left, top = _GAP + column * step_x, _GAP + row * step_y
        sheet.paste(tile, (left, top))
        if timestamps:
            place = (left + tile_width / 2, top + tile_height + caption / 2)
            draw.text(place, clock(time), fill=_TEXT, font=font, anchor="mm")
    return sheet
