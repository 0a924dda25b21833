"""Coverage-guided fuzzing of the parsers with atheris, by hand: `python tests/fuzz/fuzz_formats.py -max_total_time=60`.

Not part of the test run, which fuzzes the same parsers with Hypothesis. Needs `pip install atheris`. Anything
but a result or an error of ours ends the run, with the input in a crash-… file.
"""

from __future__ import annotations

import sys
from contextlib import suppress

import atheris

with atheris.instrument_imports(include=["ipfs_stream_nb"]):
    from ipfs_stream_nb.content import dag_pb, unixfs
    from ipfs_stream_nb.content.car import CarDecoder
    from ipfs_stream_nb.content.cid import CID, DAG_CBOR, DAG_PB
    from ipfs_stream_nb.content.hamt import HamtLookup, read_shard
    from ipfs_stream_nb.content.links import links_of
    from ipfs_stream_nb.errors import IPFSStreamError

CBOR, PB = CID.of(b"", DAG_CBOR), CID.of(b"", DAG_PB)


def fuzz_cid(data: bytes) -> None:
    """CIDs as bytes and as text."""
    CID.parse(data.decode("utf-8", "surrogateescape"))
    CID.parse(data)


def fuzz_unixfs(data: bytes) -> None:
    """A block as UnixFS, and as a shard if it is one; what was read must be written and read again."""
    node = unixfs.decode(data)
    assert unixfs.decode(unixfs.encode(node)) == node
    HamtLookup("name").step(node)
    read_shard(node)


def fuzz_car(data: bytes) -> None:
    """A CAR in two pieces."""
    decoder = CarDecoder()
    decoder.feed(data[: len(data) // 2])
    decoder.feed(data[len(data) // 2 :])
    decoder.finish()


TARGETS = [
    fuzz_cid,
    dag_pb.decode,
    fuzz_unixfs,
    fuzz_car,
    lambda data: links_of(CBOR, data),
    lambda data: links_of(PB, data),
]


def one_input(data: bytes) -> None:
    """The first byte says which parser gets the rest."""
    if not data:
        return
    with suppress(IPFSStreamError):
        TARGETS[data[0] % len(TARGETS)](data[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
