"""A small site in blocks, for the gateway's tests: files of every kind, directories, symlinks, and what is broken."""

from __future__ import annotations

import json

from ipfs_stream_nb.content import unixfs
from ipfs_stream_nb.content.cid import CID, DAG_CBOR, DAG_PB, RAW
from ipfs_stream_nb.content.dag_pb import PBLink
from ipfs_stream_nb.content.directory import build_directory, build_symlink
from ipfs_stream_nb.content.importer import Block, Profile, import_bytes
from ipfs_stream_nb.content.unixfs import UnixFSNode, UnixFSType

PROFILE = Profile("small", chunk_size=1000, max_links=5, sharding_threshold=4000)
"""Deep trees and sharded directories from little data."""

CLIP = b"\0\0\0\x18ftypisom\0\0\2\0isommp41" + bytes(i % 251 for i in range(20_000))
HTML = b"<!DOCTYPE html><title>x</title><script>document.title = 'ran'</script>"
SVG = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
JSON_CODEC, CBOR_CODEC, DAG_JSON_CODEC = 0x0200, 0x51, 0x0129
MANY = [f"entry-{number:05}" for number in range(250)]
ODD_NAMES = [
    "ünï côde #?%&.txt",
    "<img src=x onerror=alert(1)>.txt",
    "a\"quote'.txt",
    "tab\there.txt",
    "\u202etxt.exe",
    "a:b",
]


class Site:
    """`blocks` by CID, `cids` by name, and the missing blocks of what is broken."""

    def __init__(self) -> None:
        self.blocks: dict[CID, bytes] = {}
        self.cids: dict[str, CID] = {}
        self.sizes: dict[CID, int] = {}
        self.missing: CID | None = None
        hello = self.file("hello", b"hello world\n")
        files = {
            "clip.mp4": self.file("clip", CLIP),
            "empty": self.file("empty", b""),
            "hello.txt": hello,
            "link": self.symlink("link", "sub/deep/data.json"),
            "loop": self.symlink("loop", "loop"),
            "out": self.symlink("out", "../../etc/passwd"),
            "page.html": self.file("page", HTML),
            "picture.svg": self.file("svg", SVG),
            "sneaky.mp4": self.cids["page"],
            "subway": self.symlink("subway", "sub/deep"),
        } | dict.fromkeys(ODD_NAMES, hello)
        deep = self.directory("deep", {"data.json": self.file("data", json.dumps({"a": 1}).encode())})
        files["sub"] = self.directory("sub", {"deep": deep})
        files["site"] = self.directory("site", {"index.html": self.cids["page"], "a.txt": hello})
        files["odd-site"] = self.directory("odd-site", {"index.html": deep})
        files["http:"] = files["sub"]
        files["bare"] = self.directory("bare", {})
        files["many"] = self.directory("many", dict.fromkeys(MANY, hello))
        self.directory("root", files, Profile("plain"))
        self.directory("hostile", {})
        self.block(
            "hostile",
            unixfs.encode(
                UnixFSNode(
                    UnixFSType.DIRECTORY,
                    links=tuple(PBLink(hello, name, 1) for name in ("..", "a/b", "ok", "\udcff", "")),
                )
            ),
            DAG_PB,
        )
        self.broken()
        link = b"\xd8\x2a\x58\x25\x00" + bytes(hello)  # tag 42 over a byte string of 37
        self.block("cbor", b"\xa1\x61a" + link, DAG_CBOR)
        self.block("dag-json", b'{"a":1}', DAG_JSON_CODEC)
        self.block("json", b'{"a":1}', JSON_CODEC)
        self.block("plain-cbor", b"\x01", CBOR_CODEC)
        self.block("not-unixfs", b"", DAG_PB)
        self.block("unknown-codec", b"data", 0x70FF)

    def add(self, block: Block) -> CID:
        self.blocks[block.cid] = bytes(block.data)
        return block.cid

    def block(self, name: str, data: bytes, codec: int) -> CID:
        self.cids[name] = self.add(Block(CID.of(data, codec), data))
        return self.cids[name]

    def file(self, name: str, data: bytes) -> CID:
        imported = import_bytes(data, PROFILE)
        for block in imported.blocks:
            self.add(block)
        self.cids[name] = imported.root
        self.sizes[imported.root] = imported.dag_size
        return imported.root

    def symlink(self, name: str, target: str) -> CID:
        self.cids[name] = self.add(build_symlink(target, PROFILE))
        return self.cids[name]

    def directory(self, name: str, entries: dict[str, CID], profile: Profile = PROFILE) -> CID:
        links = [(entry, cid, self.sizes.get(cid, 10)) for entry, cid in entries.items()]
        root, size, blocks = build_directory(links, profile)
        for block in blocks:
            self.add(block)
        self.cids[name] = root
        self.sizes[root] = size
        return root

    def broken(self) -> None:
        """A file whose sixth leaf nobody has, and one whose root is nowhere."""
        data = bytes((i * 7) % 253 for i in range(10_000))
        self.file("broken", data)
        self.missing = CID.of(data[5000:6000], RAW)
        del self.blocks[self.missing]
        self.cids["absent"] = CID.of(b"nobody has this", RAW)
        self.directory("holey", {"gone.txt": self.cids["absent"]})
