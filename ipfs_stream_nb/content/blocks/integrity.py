"""Which blocks this process knows to be what their hash says, and which it knows not to be."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Final

from ipfs_stream_nb.content.cid import CID, BytesLike
from ipfs_stream_nb.errors import CorruptContentError

MAX_SOUND: Final = 131_072
"""Keys remembered as verified, some 15 MB: 128 GiB in 1 MiB blocks. The oldest is forgotten, and hashed again."""
MAX_BAD: Final = 65_536
"""Keys remembered as corrupt."""


class Integrity:
    """What was hashed since the store was opened: written by this process, or read for the first time."""

    def __init__(self) -> None:
        self._sound: dict[bytes, None] = {}
        self._bad: dict[bytes, None] = {}
        self._lock = threading.Lock()

    def is_sound(self, key: bytes) -> bool:
        """Whether the block was hashed already and was right."""
        return key in self._sound

    def is_bad(self, key: bytes) -> bool:
        """Whether the block was hashed and was wrong: to be treated as missing, and written anew when it comes."""
        return key in self._bad

    def add(self, keys: Iterable[bytes]) -> None:
        """Take these as verified."""
        with self._lock:
            for key in keys:
                self._bad.pop(key, None)
                self._sound[key] = None
            while len(self._sound) > MAX_SOUND:
                del self._sound[next(iter(self._sound))]

    def check(self, cid: CID, data: BytesLike) -> None:
        """Hash a block as it was read. Raises CorruptContentError where it is not what the CID names."""
        if cid.hashes(data):
            self.add([cid.multihash])
            return
        with self._lock:
            self._sound.pop(cid.multihash, None)
            if len(self._bad) < MAX_BAD:
                self._bad[cid.multihash] = None
        raise corrupt(cid)

    def clear(self) -> None:
        """Trust nothing again: the file was exchanged."""
        with self._lock:
            self._sound.clear()
            self._bad.clear()


def corrupt(cid: CID) -> CorruptContentError:
    """The error for a block that does not hash to its CID."""
    return CorruptContentError(
        f"the stored block {cid} is damaged: its bytes do not hash to it. Add the content again to mend it"
    )
