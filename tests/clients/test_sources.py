"""What add takes."""

import io
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

from ipfs_stream_nb.clients.sources import Source, bytes_of, open_source
from ipfs_stream_nb.errors import BadRequestError, IPFSStreamError, NotFoundError


def opened(source, name=None, *, hidden=False, sized=True) -> Source:
    return open_source(source, name, hidden=hidden, sized=sized)


async def read(source: Source) -> bytes:
    return b"".join([bytes(piece) async for piece in bytes_of(source)])


async def numbers():
    for number in range(3):
        yield bytes([number])


@pytest.mark.parametrize(
    ("source", "content", "size"),
    [
        (b"abc", b"abc", 3),
        (bytearray(b"abc"), b"abc", 3),
        (memoryview(b"abcdef")[::2], b"ace", 3),
        (memoryview(np.arange(4, dtype="<u2")), bytes([0, 0, 1, 0, 2, 0, 3, 0]), 8),
        (b"", b"", 0),
        (io.BytesIO(b"abc"), b"abc", 3),
        ([b"a", bytearray(b"b"), memoryview(b"c")], b"abc", None),
        ((bytes([n]) for n in range(3)), b"\x00\x01\x02", None),
    ],
)
async def test_reads_every_kind_of_bytes(source, content, size):
    """Buffers, files and iterables give their bytes, and their size where they know it."""
    taken = opened(source)
    assert taken.size == size
    assert await read(taken) == content


async def test_reads_async_iterables():
    """An async generator gives its bytes."""
    assert await read(opened(numbers())) == b"\x00\x01\x02"


async def test_a_file_is_read_from_where_it_stands():
    """An open file gives what is left of it, as copying it would."""
    file = io.BytesIO(b"abcdef")
    file.seek(4)
    taken = opened(file)
    assert taken.size == 2
    assert await read(taken) == b"ef"


@pytest.mark.parametrize("source", [io.StringIO("text"), ["text"], [1, 2]])
async def test_text_is_refused_with_a_hint(source):
    """A file in text mode, or an iterable of anything but bytes, is told what would be right."""
    with pytest.raises(BadRequestError, match=r"bytes|binary"):
        await read(opened(source))


@pytest.mark.parametrize("source", [None, 42, 1.5, object()])
def test_other_things_are_refused(source):
    """What cannot be added is named by its type, with what can."""
    with pytest.raises(
        BadRequestError, match=rf"cannot add (an? )?{type(source).__name__.removesuffix('Type')}; give a path"
    ):
        opened(source)


@pytest.mark.parametrize("source", ["", " ", Path(), PurePosixPath("")])
def test_an_empty_name_is_not_the_current_directory(source, tmp_path, monkeypatch):
    """A variable that is empty by mistake does not add, and publish, all of the current directory."""
    (tmp_path / "secret").write_text("x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadRequestError, match=r"names no file.*Path\.cwd"):
        opened(source)
    assert opened(".").name == tmp_path.name


def closed_file() -> io.BytesIO:
    file = io.BytesIO(b"x")
    file.close()
    return file


class Table:
    """As a DataFrame: it is iterated by its columns."""

    def to_parquet(self):
        return b""

    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ({}, "cannot add a dict.*json"),
        ({"a": b"x"}, "cannot add a dict.*json"),
        (["a.txt", "b.txt"], "cannot add a list of paths"),
        ((Path("a.txt"),), "cannot add a tuple of paths"),
        (Table(), "to_parquet"),
        (closed_file(), "the file is closed"),
        (5, "cannot add an int"),
    ],
)
def test_what_holds_no_bytes_of_a_file_is_told_how_to_be_added(source, hint):
    """Nothing is added silently as an empty file, and each mistake has the call that would be right."""
    with pytest.raises(BadRequestError, match=hint):
        opened(source)


@pytest.mark.parametrize("name", [3, b"x", "a\0b", "a\nb", "\x1b[31m"])
def test_a_name_is_text_that_can_be_shown(name):
    """A name that is no text, or would disturb a terminal, is refused and shown escaped."""
    with pytest.raises(BadRequestError, match="name=") as caught:
        opened(b"x", name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("hello world", "pass bytes"),
        ("a\0b", "pass bytes"),
        ("x" * 5000, "pass bytes"),
        ("bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy", "has a CID"),
        ("ipfs://bafy", "has a CID"),
        ("https://example.org/clip.mp4", "local files"),
        (Path("nowhere.bin"), "no file or directory"),
    ],
)
def test_a_path_that_is_not_there_is_a_clear_error(source, hint):
    """A text that is no existing path gets a hint for what it looks like."""
    with pytest.raises(NotFoundError, match=hint) as caught:
        opened(source)
    assert len(str(caught.value)) < 250


def test_a_tree_knows_its_size(tmp_path):
    """The total of a directory counts what will be added: hidden files only when asked for, symlinks not."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"12345")
    (tmp_path / ".hidden").write_bytes(b"123")
    (tmp_path / "link").symlink_to("sub/a")
    assert opened(tmp_path).size == 5
    assert opened(tmp_path, hidden=True).size == 8
    assert opened(tmp_path).name == tmp_path.name


@pytest.mark.parametrize("array", [np.arange(6).reshape(2, 3), np.array(1.5), np.asfortranarray(np.eye(3))])
async def test_an_array_becomes_a_npy_file(array):
    """np.load gives the same array back, 0-dimensional and Fortran-ordered ones too."""
    back = np.load(io.BytesIO(await read(opened(array))))
    assert back.shape == array.shape
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


async def test_equal_arrays_are_equal_files():
    """The order in memory does not change the file, and so not the CID."""
    array = np.arange(12.0).reshape(3, 4)
    assert await read(opened(array)) == await read(opened(np.asfortranarray(array)))


async def test_an_array_becomes_the_image_that_the_name_asks_for():
    """With an image's name an array of pixels becomes that image."""
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[1, 2] = 255
    image = Image.open(io.BytesIO(await read(opened(pixels, "dot.PNG"))))
    assert image.format == "PNG"
    np.testing.assert_array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize(
    ("array", "name", "message"),
    [
        (np.zeros((2, 2, 2, 2)), "a.png", "not an image"),
        (np.zeros((2, 2, 3), np.complex64), "a.png", "not an image"),
        (np.zeros(3), "a.mp4", "ends otherwise"),
        (np.array([object()]), None, "Python objects"),
        (np.zeros((2, 2, 4), np.uint8), "a.jpg", "cannot be written as .jpg"),
    ],
)
def test_arrays_that_cannot_be_the_file_are_refused(array, name, message):
    """Each reason is told, with what would be right."""
    with pytest.raises(BadRequestError, match=message):
        opened(array, name)


@pytest.mark.parametrize(
    ("name", "kind"), [(None, "PNG"), ("x.png", "PNG"), ("x.jpg", "JPEG"), ("x.webp", "WEBP")]
)
async def test_an_image_becomes_a_file(name, kind):
    """A PIL image is a PNG unless its name says otherwise."""
    taken = opened(Image.new("RGB", (8, 8), "red"), name)
    assert Image.open(io.BytesIO(await read(taken))).format == kind


def test_an_image_of_no_known_format_is_refused():
    """A suffix that no image has is an error, not a PNG with a wrong name."""
    with pytest.raises(BadRequestError, match=r"\.xyz"):
        opened(Image.new("RGB", (8, 8)), "x.xyz")


async def test_what_a_source_raises_comes_through():
    """An error of the source's own is not turned into another."""

    def broken():
        yield b"abc"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await read(opened(broken()))


async def test_a_directory_is_no_stream(tmp_path):
    """Where one file is meant, a directory is refused."""
    with pytest.raises(IPFSStreamError, match="directory"):
        await read(opened(tmp_path))
