"""Stores for the tests of the block store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import small_disks
from ipfs_stream_nb.content.blocks import BlockStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a store may be made."""
    return tmp_path / "store"


@pytest.fixture
def store(path: Path) -> Iterator[BlockStore]:
    """A new store without limits."""
    with BlockStore.open(path, min_free=0) as opened:
        yield opened


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 16 MiB."""
    with small_disks.small_disk(tmp_path / "disk") as disk:
        yield disk
