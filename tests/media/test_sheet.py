"""Contact sheets."""

import io

import numpy as np
import pytest
from PIL import Image

from ipfs_stream_nb import samples
from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.media.sheet import contact_sheet


def tiles(sheet, columns, width, height, caption):
    """The pictures of a sheet, cut out of it."""
    pixels = np.asarray(sheet)
    for row in range((sheet.height - 8) // (height + caption + 8)):
        for column in range(columns):
            top, left = 8 + row * (height + caption + 8), 8 + column * (width + 8)
            yield pixels[top : top + height, left : left + width]


def test_tiles_come_from_the_middle_of_each_part(clip):
    """Twelve frames of a clip, each from the middle of its twelfth, in reading order."""
    sheet = contact_sheet(io.BytesIO(clip()), width=4 * 160 + 5 * 8)
    assert sheet.width == 680
    found = [samples.read_frame_number(tile) for tile in tiles(sheet, 4, 160, 120, 20)]
    assert found == [int(75 * (index + 0.5) / 12) for index in range(12)]


def test_captions_are_set_under_the_pictures(clip):
    """Each time stands in bright letters under its picture, and is left out on demand."""
    sheet = contact_sheet(io.BytesIO(clip()), count=1, columns=1, width=176)
    caption = np.asarray(sheet)[8 + 120 : -8]
    assert caption.max() > 200
    assert caption.min() < 40
    bare = contact_sheet(io.BytesIO(clip()), count=1, columns=1, width=176, timestamps=False)
    assert bare.height == 8 + 120 + 8


def test_rows_set_the_count(clip):
    """rows and columns together say how many pictures there are."""
    sheet = contact_sheet(io.BytesIO(clip()), columns=3, rows=2, width=3 * 160 + 4 * 8)
    assert (
        len([tile for tile in tiles(sheet, 3, 160, 120, 20) if samples.read_frame_number(tile) is not None])
        == 6
    )


def test_picture_makes_a_sheet_of_one():
    """A still picture is shown once, not twelve times."""
    sheet = contact_sheet(io.BytesIO(samples.image(width=160, height=120)), width=4 * 160 + 5 * 8)
    assert sheet.size == (160 + 16, 120 + 20 + 16)
    assert isinstance(sheet, Image.Image)


def test_turned_video_is_upright_on_the_sheet(clip):
    """Tiles have the displayed aspect."""
    sheet = contact_sheet(io.BytesIO(clip(rotation=90)), count=4, columns=2, width=2 * 160 + 3 * 8)
    assert [samples.read_frame_number(tile) for tile in tiles(sheet, 2, 160, 120, 20)] == [9, 28, 46, 65]


@pytest.mark.parametrize(
    "arguments", [{"columns": 0}, {"count": 0}, {"count": 401}, {"rows": 0}, {"width": 20}, {"width": 9000}]
)
def test_numbers_that_make_no_sheet_are_refused(clip, arguments):
    """The error says what is expected."""
    with pytest.raises(BadRequestError, match="expected"):
        contact_sheet(io.BytesIO(clip()), **arguments)
