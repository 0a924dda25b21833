"""Content identifiers: CIDv0 and CIDv1 (https://github.com/multiformats/cid), parsed strictly.

The policy on hash functions is the one of verified reading: sha2-256 is what IPFS content uses; a few further
functions of full strength are read too, an identity "hash" holds at most 128 bytes, and what is broken (sha1,
md5) or truncated is refused, since a block could not be trusted to be the one that was named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self

import libipld

from ipfs_stream_nb.errors import BadCIDError, CorruptContentError

BytesLike = bytes | bytearray | memoryview

RAW: Final = 0x55
DAG_PB: Final = 0x70
DAG_CBOR: Final = 0x71
LIBP2P_KEY: Final = 0x72
DAG_JSON: Final = 0x0129
CODEC_NAMES: Final = {
    RAW: "raw",
    DAG_PB: "dag-pb",
    DAG_CBOR: "dag-cbor",
    LIBP2P_KEY: "libp2p-key",
    DAG_JSON: "dag-json",
}

IDENTITY: Final = 0x00
SHA2_256: Final = 0x12
MAX_IDENTITY_BYTES: Final = 128
MULTIBASES: Final = frozenset("079fFvVtTbBcChkKzZmMuU🚀")
"""The prefixes of the multibases for text: not the identity base, which is raw bytes, and with which libipld ends
the whole process where they are not UTF-8."""
MAX_TEXT: Final = 2048
"""Characters: the longest text of any CID that this policy lets through is 1,089 (identity, base 2)."""

LOOKS: Final = "one begins with bafy or bafk and has 59 characters, or begins with Qm and has 46"
"""What the usual CIDs look like."""
_LENGTHS: Final = {"bafybei": 59, "bafkrei": 59, "bafyrei": 59, "Qm": 46}
"""Characters of a text that begins so, where it is a CID: its first bytes say codec, sha2-256 and 32 bytes."""
_ALPHABETS: Final = {
    "b": frozenset("abcdefghijklmnopqrstuvwxyz234567"),
    "Q": frozenset("123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"),
}
"""By first character: RFC 4648 base32 in lower case, and base58btc, which lacks 0, O, I and l."""

# multicodec code -> (name, digest bytes, hash)
_HASHES: Final[dict[int, tuple[str, int, Callable[[BytesLike], bytes]]]] = {
    SHA2_256: ("sha2-256", 32, lambda data: hashlib.sha256(data).digest()),
    0x13: ("sha2-512", 64, lambda data: hashlib.sha512(data).digest()),
    0x14: ("sha3-512", 64, lambda data: hashlib.sha3_512(data).digest()),
    0x16: ("sha3-256", 32, lambda data: hashlib.sha3_256(data).digest()),
    0xB220: ("blake2b-256", 32, lambda data: hashlib.blake2b(data, digest_size=32).digest()),
    0xB260: ("blake2s-256", 32, lambda data: hashlib.blake2s(data).digest()),
}
_USUAL: Final = {b"\x01\x55\x12\x20", b"\x01\x70\x12\x20"}  # CIDv1, raw or dag-pb, sha2-256, 32 bytes
_V0: Final = b"\x12\x20"
_REFUSED: Final = {0x11: "sha1", 0xD5: "md5", 0x1012: "truncated sha2-256", 0x22: "murmur3"}


@dataclass(frozen=True, slots=True)
class CID:
    """A content identifier. Equal CIDs name equal bytes read with the same codec; `str()` gives the usual text."""

    version: int
    codec: int
    hash_code: int
    digest: bytes

    @classmethod
    def parse(cls, value: str | bytes | CID) -> CID:
        """Read a CID from its text in any multibase, or from its bytes.

        Raises BadCIDError for text or bytes that are not exactly one CID in canonical form, and for hash
        functions outside the policy.
        """
        if isinstance(value, CID):
            return value
        if isinstance(value, str):
            return _parse_text(value)
        return _from_bytes(bytes(value))

    @classmethod
    def read(cls, data: bytes) -> tuple[CID, int]:
        """The binary CID that `data` begins with, and how many bytes it takes. Raises BadCIDError."""
        if data[:2] == _V0 and len(data) >= 34:
            return CID(0, DAG_PB, SHA2_256, data[2:34]), 34
        return _read(data)

    @classmethod
    def of(cls, data: BytesLike, codec: int = RAW, version: int = 1) -> Self:
        """The sha2-256 CID of a block."""
        return cls(version, codec, SHA2_256, hashlib.sha256(data).digest())

    @property
    def multihash(self) -> bytes:
        """The hash function's code, the digest's length, the digest: what names the bytes whatever the codec."""
        if self.hash_code == SHA2_256:
            return b"\x12\x20" + self.digest
        return varint(self.hash_code) + varint(len(self.digest)) + self.digest

    @property
    def is_identity(self) -> bool:
        """Whether the digest is the block itself."""
        return self.hash_code == IDENTITY

    @property
    def codec_name(self) -> str:
        """The codec's multicodec name, or its number in hex."""
        return CODEC_NAMES.get(self.codec, hex(self.codec))

    def __bytes__(self) -> bytes:
        """The binary form: the bare multihash for version 0."""
        if self.version == 0:
            return self.multihash
        return b"\x01" + varint(self.codec) + self.multihash

    def __str__(self) -> str:
        """Base58 for version 0, base32 for version 1."""
        return _text(self)

    def __repr__(self) -> str:
        return f"CID('{self}')"

    def encode(self, base: str) -> str:
        """The text in the multibase whose prefix character is given (version 1 only)."""
        if self.version == 0:
            raise BadCIDError(f"CIDv0 {self} has base58 text only; convert it with .v1() for other bases")
        if base not in MULTIBASES:
            raise BadCIDError(
                f"{base!r} is not a multibase for text; one of {''.join(sorted(MULTIBASES))} is"
            )
        return libipld.encode_multibase(base, bytes(self))

    def v1(self) -> CID:
        """The same content as CIDv1."""
        return CID(1, self.codec, self.hash_code, self.digest)

    def hashes(self, data: BytesLike) -> bool:
        """Whether these bytes are the block that this CID names."""
        if self.hash_code == IDENTITY:
            return bytes(data) == self.digest
        return _HASHES[self.hash_code][2](data) == self.digest

    def verify(self, data: BytesLike) -> None:
        """Raise CorruptContentError unless these bytes are the block that this CID names."""
        if not self.hashes(data):
            raise CorruptContentError(f"the bytes received for block {self} do not hash to it")


def varint(value: int) -> bytes:
    """Unsigned LEB128 (https://github.com/multiformats/unsigned-varint)."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


@lru_cache(maxsize=4096)
def _text(cid: CID) -> str:
    raw = bytes(cid)
    return libipld.encode_multibase("z", raw)[1:] if cid.version == 0 else libipld.encode_multibase("b", raw)


@lru_cache(maxsize=4096)
def _parse_text(text: str) -> CID:
    shown = repr(text if len(text) <= 80 else text[:77] + "…")
    _check_looks(text, shown)
    try:
        if len(text) == 46 and text.startswith("Qm"):
            base, raw = "z", libipld.decode_multibase("z" + text)[1]
            canonical = libipld.encode_multibase(base, raw)[1:]
        else:
            base, raw = libipld.decode_multibase(text)
            canonical = libipld.encode_multibase(base, raw)
            if raw[:1] == b"\x12":
                raise BadCIDError(f"{shown} is not a CID: version 0 has no multibase prefix")
    except (ValueError, IndexError) as error:
        if isinstance(error, BadCIDError):
            raise
        begins = next((begin for begin in _LENGTHS if text.startswith(begin)), None)
        why = LOOKS if begins is None else "it looks like one, but a character of it is mistyped"
        raise BadCIDError(f"{shown} is not a CID; {why}") from error
    if canonical != text:
        raise BadCIDError(f"{shown} is not a CID in canonical form; did you mean {canonical}?")
    try:
        return _from_bytes(raw)
    except BadCIDError as error:
        raise BadCIDError(f"{shown} is not a usable CID: {error}") from None


def _check_looks(text: str, shown: str) -> None:
    if not text:
        raise BadCIDError(f"an empty text is not a CID; {LOOKS}")
    if len(text) > MAX_TEXT:
        raise BadCIDError(f"{shown} is not a CID: {len(text)} characters, and none has over {MAX_TEXT}")
    if text.startswith("/"):
        raise BadCIDError(f"{shown} is a path, not a CID: give the CID alone, without /ipfs/ before it")
    if text[0] not in MULTIBASES and not text.startswith("Qm"):
        raise BadCIDError(f"{shown} is not a CID; {LOOKS}")
    _check_typing(text, shown)


def _check_typing(text: str, shown: str) -> None:
    """Raise BadCIDError for a character that was mistyped, lost or doubled, where the beginning tells."""
    if not text.startswith(("bafy", "bafk", "Qm")):
        return
    wrong = next((at for at, char in enumerate(text) if char not in _ALPHABETS[text[0]]), None)
    if wrong is not None and text[wrong] == "/":
        raise BadCIDError(f"{shown} is a path, not a CID: give the CID alone, without what follows the slash")
    if wrong is not None:
        raise BadCIDError(
            f"{shown} is not a CID: character {wrong + 1}, {text[wrong]!r}, cannot be in one; it is mistyped"
        )
    begins = next((begin for begin in _LENGTHS if text.startswith(begin)), None)
    if begins is not None and len(text) != _LENGTHS[begins]:
        what = "missing" if len(text) < _LENGTHS[begins] else "too many"
        raise BadCIDError(
            f"{shown} is not a CID: one that begins with {begins} has {_LENGTHS[begins]} characters, and this has"
            f" {len(text)}; {abs(len(text) - _LENGTHS[begins])} {what}"
        )


def _from_bytes(raw: bytes) -> CID:
    if len(raw) == 36 and raw[:4] in _USUAL:  # nearly every link of nearly every block
        return CID(1, raw[1], SHA2_256, raw[4:])
    if len(raw) == 34 and raw[:2] == _V0:
        return CID(0, DAG_PB, SHA2_256, raw[2:])
    cid, size = _read(raw)
    if size != len(raw):
        raise BadCIDError(
            f"the digest is declared as {len(cid.digest)} bytes, and {len(raw) - size} more follow"
        )
    return cid


def _read(raw: bytes) -> tuple[CID, int]:
    version, at = read_varint(raw, 0)
    if version != 1:
        raise BadCIDError(f"CID version {version} is not known; versions 0 and 1 are")
    codec, at = read_varint(raw, at)
    code, at = read_varint(raw, at)
    length, at = read_varint(raw, at)
    digest = raw[at : at + length]
    if len(digest) != length:
        raise BadCIDError(f"the digest is declared as {length} bytes, and {len(digest)} follow")
    _check_hash(code, length)
    return CID(1, codec, code, digest), at + length


def _check_hash(code: int, length: int) -> None:
    if code == IDENTITY:
        if length > MAX_IDENTITY_BYTES:
            raise BadCIDError(f"an identity CID may hold {MAX_IDENTITY_BYTES} bytes, this one holds {length}")
        return
    if code in _REFUSED:
        raise BadCIDError(f"the hash function {_REFUSED[code]} is not safe and is refused; sha2-256 is usual")
    if code not in _HASHES:
        raise BadCIDError(f"the hash function {code:#x} is not supported; sha2-256 is usual")
    name, size, _ = _HASHES[code]
    if length != size:
        raise BadCIDError(f"a {name} digest has {size} bytes, this one is cut or padded to {length}")


def read_varint(data: BytesLike, at: int) -> tuple[int, int]:
    """The number at `at` and the position after it; BadCIDError where it is cut, over 9 bytes or not minimal."""
    value = shift = 0
    for position in range(at, min(at + 9, len(data))):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and position > at:
                raise BadCIDError("a varint is not in its shortest form")
            return value, position + 1
        shift += 7
    raise BadCIDError("a varint is cut short or too long")
