"""The small parts: messages, the heads of packets, blocks that are shared."""

import threading
from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_stream_nb.errors import RetrievalError
from ipfs_stream_nb.media.encoded import EncodedPacket
from ipfs_stream_nb.media.worker.protocol import pack, unpack
from ipfs_stream_nb.media.worker.remote import BLOCK, Blocks, RemoteFile, StoppedError
from ipfs_stream_nb.media.worker.sound import BLOCK as SOUND_BLOCK
from ipfs_stream_nb.media.worker.sound import DELAY, _blocks
from ipfs_stream_nb.media.worker.through import nal_types, opus_ticks

seconds = st.floats(min_value=0, max_value=1e6)
packets = st.builds(EncodedPacket, st.binary(max_size=64), seconds, seconds, st.booleans())


@given(st.lists(packets, max_size=8))
def test_packets_come_out_as_they_went_in(sent):
    """Packing loses nothing."""
    assert list(unpack(pack(sent))) == sent


@given(st.lists(packets, min_size=1, max_size=3), st.integers(0, 500), st.integers(0, 255))
def test_spoilt_packets_are_values_or_a_value_error(sent, place, byte):
    """Whatever a worker sends, its parent gets packets or a ValueError."""
    body = bytearray(pack(sent))
    body[place % len(body)] = byte
    try:
        for packet in unpack(bytes(body[: place + 1])):
            assert packet.time >= 0
    except ValueError:
        pass


@given(st.binary(max_size=40))
def test_nal_types_of_anything(data):
    """Any bytes have some types, each below 32."""
    assert all(0 <= kind < 32 for kind in nal_types(data))


@pytest.mark.parametrize(
    ("head", "milliseconds"),
    [(b"\xfc", 20), (b"\x08", 20), (b"\x18", 60), (b"\xe0", 2.5), (b"\x63\x03", 30), (b"\x60", 10), (b"", 0),
     (b"\x1b\x3f", 0), (b"\x1b", 0)],
)  # fmt: skip
def test_length_of_opus_packets(head, milliseconds):
    """By the table of RFC 6716, section 3.1; what is over 120 ms is no packet."""
    assert opus_ticks(head) == milliseconds * 90


class Far:
    """Content whose reads are answered by hand."""

    def __init__(self, size):
        self.data = bytes(index * 7 % 251 for index in range(size))
        self.asked = []
        self.blocks = Blocks(self.fetch, size, 4 * BLOCK)

    def fetch(self, offset, length):
        self.asked.append((offset, length, Future()))
        return self.asked[-1][2]

    def answer(self):
        for offset, length, future in self.asked:
            if not future.done():
                future.set_result(self.data[offset : offset + length])


def test_blocks_are_fetched_once():
    """Two readers of the same bytes at the same time ask for them once, and get them."""
    far, got = Far(3 * BLOCK + 5), []

    def read():
        got.append(RemoteFile(far.blocks, threading.Event()).read(2 * BLOCK))

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    while not far.asked:
        pass
    far.answer()
    for thread in threads:
        thread.join()
    assert got == [far.data[: 2 * BLOCK]] * 2
    assert [ask[:2] for ask in far.asked] == [(0, 2 * BLOCK)]


def test_failed_blocks_are_asked_for_again():
    """A block that could not be had is no block for ever."""
    far = Far(10)
    future = far.blocks._futures(0, 0)[0]
    far.asked[0][2].set_exception(RetrievalError("far"))
    assert isinstance(future.exception(), RetrievalError)
    future = far.blocks._futures(0, 0)[0]
    far.answer()
    assert future.result() == far.data


def test_stopped_file_lets_go():
    """Who waits for bytes ends when the cursor is stopped."""
    far, stopped = Far(10), threading.Event()
    stopped.set()
    with pytest.raises(StoppedError):
        RemoteFile(far.blocks, stopped).read(5)


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 3000)), min_size=1, max_size=10))
def test_blocks_of_sound_keep_their_place(steps):
    """However sound is cut, with short gaps: each sample stands in its block at its time, and blocks follow one another."""
    import numpy as np  # noqa: PLC0415

    pieces, at = [], DELAY
    for gap, length in steps:
        at += gap
        pieces.append((at, np.arange(at, at + length, dtype=np.float32)[:, None].repeat(2, axis=1) + 1))
        at += length
    blocks = list(_blocks(iter(pieces), 0))
    assert [number for number, _ in blocks] == list(range(len(blocks)))
    for number, samples in blocks:
        places = number * SOUND_BLOCK + DELAY + np.arange(SOUND_BLOCK) + 1
        assert samples.shape == (SOUND_BLOCK, 2)
        assert ((samples[:, 0] == places) | (samples[:, 0] == 0)).all()
    assert sum(int((samples[:, 0] != 0).sum()) for _, samples in blocks) == sum(n for _, n in steps)
