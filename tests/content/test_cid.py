"""CIDs: text in every multibase, the policy on hashes, and what is refused."""

from __future__ import annotations

import hashlib
import pickle
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from format_strategies import cids
from ipfs_stream_nb.content.cid import (
    CID,
    DAG_CBOR,
    DAG_PB,
    IDENTITY,
    MAX_IDENTITY_BYTES,
    MAX_TEXT,
    RAW,
    SHA2_256,
    read_varint,
    varint,
)
from ipfs_stream_nb.errors import BadCIDError, CorruptContentError, IPFSStreamError

HELLO = "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4"
HELLO_V0 = "QmT78zSuBmuS4z925WZfrqQ1qHaJ56DQaTfyMUF7F8ff5o"
HELLO_BYTES = b"hello world\n"
BASES = "079fFvVtTbBcChkKzZmMuU🚀"


def of(code: int, digest: bytes, codec: int = RAW) -> bytes:
    """The bytes of a CIDv1 with any multihash."""
    return b"\x01" + varint(codec) + varint(code) + varint(len(digest)) + digest


def test_known_cids():
    """The texts that `ipfs add` gives for a small file name its bytes."""
    cid = CID.parse(HELLO)
    assert (cid.version, cid.codec, cid.hash_code) == (1, RAW, SHA2_256)
    assert cid == CID.of(HELLO_BYTES)
    assert cid.digest == hashlib.sha256(HELLO_BYTES).digest()
    assert str(cid) == HELLO
    assert repr(cid) == f"CID('{HELLO}')"
    assert cid.codec_name == "raw"
    old = CID.parse(HELLO_V0)
    assert (old.version, old.codec) == (0, DAG_PB)
    assert str(old) == HELLO_V0
    assert str(old.v1()).startswith("bafybei")
    assert old.v1().multihash == old.multihash
    assert old.v1() != old


@pytest.mark.parametrize("base", BASES)
def test_every_multibase(base):
    """A CIDv1 is the same in each multibase, and is written in it again."""
    cid = CID.parse(HELLO)
    text = cid.encode(base)
    assert text.startswith(base)
    assert CID.parse(text) == cid
    assert str(CID.parse(text)) == HELLO


@given(cids)
def test_bytes_and_text_name_the_same(cid):
    """Bytes and text give the CID that they were made from."""
    assert CID.parse(bytes(cid)) == cid
    assert CID.parse(str(cid)) == cid
    assert CID.parse(cid) is cid
    assert CID.read(bytes(cid) + b"rest") == (cid, len(bytes(cid)))
    assert pickle.loads(pickle.dumps(cid)) == cid  # noqa: S301 - our own bytes


@given(st.text(max_size=200))
def test_any_text_is_a_cid_or_refused(text):
    """No text does anything but give a CID that writes itself as this text, or BadCIDError."""
    try:
        cid = CID.parse(text)
    except BadCIDError:
        return
    assert CID.parse(str(cid)) == cid


@given(st.sampled_from(BASES), st.binary(max_size=60))
def test_any_bytes_in_any_base_are_a_cid_or_refused(base, raw):
    """Well-formed multibase around anything is a CID or BadCIDError."""
    alphabet = list("abcdefgh2345670ABCDEF-_+/=zZ🚀🪐")
    text = base + "".join(random.Random(raw).choices(alphabet, k=len(raw)))
    for value in (raw, of(SHA2_256, raw), text):
        try:
            CID.parse(value)
        except BadCIDError:
            continue


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("hello", "not a CID"),
        ("/ipfs/" + HELLO, "path"),
        (HELLO + "/name", "not a CID"),
        (" " + HELLO, "not a CID"),
        (HELLO + "\n", "not a CID"),
        (HELLO[:-1], "not a"),
        (HELLO + "a", "not a"),
        ("b" + HELLO[1:].upper(), "not a CID"),
        (HELLO_V0[:-1], "not a"),
        (HELLO_V0[:-1] + "0", "not a CID"),
        ("z" + HELLO_V0, "no multibase prefix"),
        ("Qm" + "1" * 44, "not a"),
        ("b" + "a" * 5000, f"none has over {MAX_TEXT}"),
        ("bafkreif\ud800", "not a CID"),
    ],
)
def test_malformed_text_is_named(text, why):
    """Each wrong text gives BadCIDError, which says what is wrong with it."""
    with pytest.raises(BadCIDError, match=why):
        CID.parse(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (HELLO[:-1], "begins with bafkrei has 59 characters, and this has 58; 1 missing"),
        (HELLO + "a", "has 59 characters, and this has 60; 1 too many"),
        (HELLO_V0[:-2], "begins with Qm has 46 characters, and this has 44; 2 missing"),
        (HELLO_V0[:-1] + "0", "character 46, '0', cannot be in one; it is mistyped"),
        (HELLO[:9] + "8" + HELLO[10:], "character 10, '8', cannot be in one; it is mistyped"),
        ("clip", "bafk and has 59 characters, or begins with Qm and has 46"),
        ("bafy", "bafk and has 59 characters, or begins with Qm and has 46"),
        ("hello", "bafk and has 59 characters, or begins with Qm and has 46"),
    ],
)
def test_a_mistyped_text_is_told_in_plain_words(text, why):
    """What is missing, too much or mistyped is said without the words of the encoding."""
    with pytest.raises(BadCIDError, match=why) as caught:
        CID.parse(text)
    for word in ("multibase", "varint", "decode", "digest"):
        assert word not in str(caught.value)


def test_only_the_canonical_text():
    """Base32 with upper-case letters or base32pad without its padding is another text, so it is refused."""
    with pytest.raises(BadCIDError):
        CID.parse("f" + CID.parse(HELLO).encode("f")[1:].upper())
    with pytest.raises(BadCIDError):
        CID.parse(CID.parse(HELLO).encode("c").rstrip("="))


@pytest.mark.parametrize(
    ("code", "digest", "why"),
    [
        (0x11, bytes(20), "sha1"),
        (0xD5, bytes(16), "md5"),
        (0x1012, bytes(32), "truncated"),
        (0x22, bytes(8), "murmur3"),
        (SHA2_256, bytes(20), "cut or padded"),
        (SHA2_256, b"", "cut or padded"),
        (SHA2_256, bytes(33), "cut or padded"),
        (0xB220, bytes(20), "cut or padded"),
        (0x7777, bytes(32), "not supported"),
        (IDENTITY, bytes(MAX_IDENTITY_BYTES + 1), "129"),
    ],
)
def test_unsafe_hashes_are_refused(code, digest, why):
    """Broken, truncated and unknown hash functions give BadCIDError, in bytes and in text."""
    raw = of(code, digest)
    with pytest.raises(BadCIDError, match=why):
        CID.parse(raw)
    with pytest.raises(BadCIDError, match=why):
        CID.parse("f" + raw.hex())


@pytest.mark.parametrize(
    ("code", "digest"),
    [
        (0x13, hashlib.sha512(HELLO_BYTES).digest()),
        (0x14, hashlib.sha3_512(HELLO_BYTES).digest()),
        (0x16, hashlib.sha3_256(HELLO_BYTES).digest()),
        (0xB220, hashlib.blake2b(HELLO_BYTES, digest_size=32).digest()),
        (0xB260, hashlib.blake2s(HELLO_BYTES).digest()),
        (IDENTITY, HELLO_BYTES),
    ],
)
def test_other_full_hashes_are_verified(code, digest):
    """The other functions of full strength check their bytes as sha2-256 does."""
    cid = CID.parse(of(code, digest))
    cid.verify(HELLO_BYTES)
    cid.verify(memoryview(HELLO_BYTES))
    with pytest.raises(CorruptContentError, match="do not hash"):
        cid.verify(HELLO_BYTES + b"!")


def test_identity_limit():
    """128 bytes may stand in a CID itself, 129 may not: the two examples of the UnixFS specification."""
    longest = CID.parse("f" + of(IDENTITY, b"B" * 128).hex())
    assert longest.is_identity
    assert longest.hashes(b"B" * 128)
    assert str(longest).startswith("bafkqbaabijbeeqscijbeeqscijbeeqsc")
    with pytest.raises(BadCIDError, match="128"):
        CID.parse("f" + of(IDENTITY, b"A" * 129).hex())
    assert CID.parse("bafkqaaa").digest == b""


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x01",
        b"\x00" + of(SHA2_256, bytes(32))[1:],
        b"\x02" + of(SHA2_256, bytes(32))[1:],
        b"\x81\x00" + of(SHA2_256, bytes(32))[1:],
        of(SHA2_256, bytes(32)) + b"\0",
        of(SHA2_256, bytes(32))[:-1],
        b"\x12\x20" + bytes(31),
        b"\x12\x20" + bytes(33),
        b"\xff" * 12,
        b"\x01" + b"\xff" * 8 + b"\x7f",
    ],
)
def test_malformed_bytes(raw):
    """Other versions, trailing or missing bytes and varints that are not minimal are refused."""
    with pytest.raises(BadCIDError):
        CID.parse(raw)


@pytest.mark.parametrize("base", ["", "\0", "r", "bb", "\ud800"])
def test_bases_that_are_not_for_text(base):
    """The identity base, unknown prefixes and longer texts are no bases."""
    with pytest.raises(BadCIDError, match="multibase"):
        CID.parse(HELLO).encode(base)
    with pytest.raises(BadCIDError):
        CID.parse(base + bytes(CID.parse(HELLO)).decode("latin-1"))


def test_version_0_has_one_text():
    """CIDv0 is base58 only, and says how to get another base."""
    with pytest.raises(BadCIDError, match=r"\.v1\(\)"):
        CID.parse(HELLO_V0).encode("b")


@given(st.integers(0, 2**63 - 1))
def test_varints_round_trip(value):
    """A number is what its varint says, and nothing after it is touched."""
    data = varint(value)
    assert read_varint(data + b"\xff", 0) == (value, len(data))


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80\x00", b"\xff" * 10, b"\x80" * 9 + b"\x01"])
def test_bad_varints(data):
    """A varint that is cut, not minimal or over 9 bytes is refused."""
    with pytest.raises(BadCIDError):
        read_varint(data, 0)


def test_codec_names():
    """The known codecs have names, others their number."""
    assert CID.of(b"", DAG_CBOR).codec_name == "dag-cbor"
    assert CID.of(b"", 0x300).codec_name == "0x300"
    assert issubclass(BadCIDError, IPFSStreamError)
