"""The usual digests of a file, in one pass."""

from __future__ import annotations

import hashlib
import zlib
from typing import Any, Final

from ipfs_stream_nb.content.file import ContentFile
from ipfs_stream_nb.processing.job import Job

BLOCK: Final = 1024 * 1024
"""Bytes that are read and hashed at once; hashlib and zlib let other threads run meanwhile."""


def checksums(file: ContentFile, job: Job) -> dict[str, Any]:
    """{"sha256", "sha1", "md5", "blake2b", "crc32": lower-case hexadecimal, "size": bytes}, of the file's own bytes.

    blake2b has 64 bytes, as that of coreutils' b2sum; crc32 is that of zip and gzip.
    """
    names = "sha256", "sha1", "md5", "blake2b"
    digests = [hashlib.new(name, usedforsecurity=False) for name in names]
    crc, size = 0, 0
    while block := file.read(BLOCK):
        for digest in digests:
            digest.update(block)
        crc = zlib.crc32(block, crc)
        size += len(block)
        job.report(size, file.size, bytes_processed=size)
    return {digest.name: digest.hexdigest() for digest in digests} | {"crc32": f"{crc:08x}", "size": size}
