"""Any sound to Opus: 48 kHz, stereo, 20 ms a packet."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Final, cast

import av
import numpy as np
import numpy.typing as npt
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.packet import Packet

from ipfs_stream_nb.errors import CorruptContentError
from ipfs_stream_nb.media.decode import AudioDecoder
from ipfs_stream_nb.media.encoded import EncodedPacket
from ipfs_stream_nb.media.source import MediaSource
from ipfs_stream_nb.media.worker.order import CLOCK, Alive, Order

RATE: Final = 48_000
"""Samples a second: Opus has no other."""
BLOCK: Final = 960
"""Samples of a packet: 20 ms."""
BITRATE: Final = 96_000
"""bit/s, of both channels."""
DELAY: Final = 312
"""Samples by which libopus is late: what it gives for a block begins so much before the block."""
SETTLE: Final = 4
"""Packets that are made and dropped before the first: a coder needs 80 ms to settle (RFC 7845, section 4.6)."""
MAX_DRIFT: Final = RATE // 20
"""Samples by which a time stamp may miss the end of the sound before it; beyond, there is a gap or an overlap."""
MAX_SILENCE: Final = RATE
"""Samples of a gap that are filled with silence; in a longer one there are no packets."""
MAX_DAMAGED: Final = 2000
"""Packets in a row that cannot be decoded, after which the content counts as damaged."""

Samples = npt.NDArray[np.float32]


class Sound(AudioDecoder):
    """The sound of a file; goes on behind what cannot be decoded."""

    def __init__(self, source: MediaSource, alive: Alive) -> None:
        self.damaged = 0
        """Packets that could not be decoded."""
        self._alive, self._failed = alive, 0
        super().__init__(source)

    def _decode_packet(self, packet: Packet[Any]) -> list[AudioFrame]:
        self._alive()
        try:
            frames = super()._decode_packet(packet)
        except CorruptContentError:
            self.damaged += 1
            self._failed += 1
            if self._failed > MAX_DAMAGED:
                raise
            return []
        self._failed = 0
        return frames


def transcode(decoder: Sound, zero: Fraction, order: Order) -> Iterator[EncodedPacket]:
    """Opus from the packet that holds the position on, or from the one after it. Packet n begins at n × 20 ms."""
    first = int(Fraction(order.ticks * RATE, CLOCK * BLOCK) + Fraction(1, 1000)) + order.after
    context: AudioCodecContext | None = None
    last = first
    for number, samples in _blocks(_pieces(decoder, zero, first), first - SETTLE):
        if context is None or number != last + 1:  # a new coder after a gap: the old one would fill it
            context = _coder()
        last = number
        frame = AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = RATE, number * BLOCK, Fraction(1, RATE)
        decoder.source.reader.progress()
        for packet in context.encode(frame):
            if number >= first:
                yield EncodedPacket(bytes(packet), number * BLOCK / RATE, BLOCK / RATE, keyframe=True)


def _coder() -> AudioCodecContext:
    context = av.CodecContext.create("libopus", "w")
    context.sample_rate, context.layout, context.format = RATE, "stereo", "flt"
    context.bit_rate = BITRATE
    context.time_base = Fraction(1, RATE)
    context.options = {"frame_duration": "20", "application": "audio"}
    return context


def _pieces(decoder: Sound, zero: Fraction, first: int) -> Iterator[tuple[int, Samples]]:
    """(n, 2) float32 at RATE, each with the sample of the timeline at which it begins, in order, without small gaps."""
    wanted = Fraction((first - SETTLE) * BLOCK, RATE)
    target = int((wanted + zero) / decoder.time_base) if first > SETTLE else None
    end: int | None = None
    for _, frames in itertools.groupby(decoder.frames(target), lambda one: _shape(one[1])):
        resampler, time = AudioResampler("flt", "stereo", RATE), 0
        for pts, frame in frames:
            time = round((pts * decoder.time_base - zero) * RATE)
            if end is None or abs(time - end) > MAX_DRIFT:
                end = time
            for piece in resampler.resample(frame):
                yield end, _samples(piece)
                end += piece.samples
        for last in resampler.resample(None):
            if last is not None and end is not None:
                yield end, _samples(last)
                end += last.samples


def _samples(frame: AudioFrame) -> Samples:
    return cast("Samples", frame.to_ndarray().reshape(-1, 2))


def _blocks(pieces: Iterator[tuple[int, Samples]], first: int) -> Iterator[tuple[int, Samples]]:
    """What the coder takes: (number, (BLOCK, 2)) from number `first` on. Numbers jump where there is a long gap."""
    number = first
    parts: list[Samples] = []
    have = 0  # samples in parts; they begin where block `number` does
    for piece_start, piece in pieces:
        start, samples = piece_start, piece
        edge = number * BLOCK + DELAY + have
        if start - edge > MAX_SILENCE:
            if have:
                yield number, _filled(parts, have)
            number = max(number, (start - DELAY) // BLOCK)
            parts, have = [], 0
            edge = number * BLOCK + DELAY
        if start > edge:
            parts.append(np.zeros((start - edge, 2), np.float32))
            have += start - edge
        else:
            samples = samples[edge - start :]
        parts.append(samples)
        have += len(samples)
        if have >= BLOCK:
            joined = np.concatenate(parts)
            for place in range(0, have - BLOCK + 1, BLOCK):
                yield number, joined[place : place + BLOCK]
                number += 1
            have %= BLOCK
            parts = [joined[len(joined) - have :]]
    if have:
        yield number, _filled(parts, have)


def _filled(parts: list[Samples], have: int) -> Samples:
    return np.concatenate([*parts, np.zeros((BLOCK - have, 2), np.float32)])


def _shape(frame: AudioFrame) -> tuple[int, str, str]:
    """What a resampler is made for; it can change within a stream."""
    return frame.sample_rate, frame.layout.name, frame.format.name
