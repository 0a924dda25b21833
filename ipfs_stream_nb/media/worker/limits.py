"""What media workers may cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MEBI: Final = 2**20


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """Each limit has a default for a notebook server, and can be set by whoever runs it."""

    workers: int = 8
    """Workers at once, beside the spare one; one more source raises BusyError."""
    spare: bool = True
    """Whether a worker stands ready for the next source: to start one takes longer than the first picture may."""
    memory_bytes: int = 2048 * MEBI
    """Address space of a worker (RLIMIT_AS)."""
    cpu_seconds: int = 12 * 3600
    """Processor time of a worker in all (RLIMIT_CPU)."""
    stall_seconds: float = 8.0
    """Seconds without an answer, waiting for bytes of the content not counted, after which a worker is killed."""
    start_seconds: float = 30.0
    """Seconds in which a new worker must be ready."""
    linger_seconds: float = 5.0
    """Seconds that a worker is kept after its last reader has left."""
    read_ahead_seconds: float = 2.0
    """Seconds that are made ready ahead of each reader,"""
    read_ahead_bytes: int = 8 * MEBI
    """but no more than so many bytes."""
    cache_bytes: int = 64 * MEBI
    """Bytes of packets that are kept of each rendition."""
    cursors: int = 8
    """Places of the content that a worker reads from at once; each has its own demuxer, decoder and encoder."""
    block_cache_bytes: int = 16 * MEBI
    """Bytes of the content that a worker keeps, for all its cursors."""
    max_video_pixels: int = 2**24
    """Width × height of video; 4K has 9 million."""
    threads: int = 2
    """Threads of each decoder and each encoder."""
    nice: int = 5
    """By how much a worker gives way to the server and to kernels."""


DEFAULT_WORKER_LIMITS: Final = WorkerLimits()
