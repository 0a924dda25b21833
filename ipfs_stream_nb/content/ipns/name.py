"""IPNS names (https://specs.ipfs.tech/ipns/ipns-record/#ipns-name): keys, and domains by DNSLink (https://dnslink.dev/)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final, Self

import libipld

from ipfs_stream_nb.content.cid import CID, IDENTITY, LIBP2P_KEY, MULTIBASES, SHA2_256
from ipfs_stream_nb.content.ipns.keys import PublicKey
from ipfs_stream_nb.errors import BadCIDError, BadRequestError, CorruptContentError

MAX_TEXT: Final = 256
"""Characters: a domain has at most 253, a key in base 2 some more, which nobody writes."""
LOOKS: Final = (
    "one begins with k51 (62 characters), bafz, 12D3Koo or Qm, or is a domain with a dot, like docs.ipfs.tech"
)
_LEGACY: Final = ("12D3Koo", "16Uiu2", "Qm", "1")
"""How peer ids in base58btc begin: ed25519, secp256k1, hashes, other keys."""
_DOMAIN: Final = re.compile(
    r"(?=.{4,253}$)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]"
)
_SHORT_MULTIHASHES: Final = {IDENTITY, SHA2_256}
"""What names may hash by: keys of up to 42 bytes stand in the name itself, others as their sha2-256."""


@dataclass(frozen=True, slots=True)
class Name:
    """A name that is a key: only who has the private key can say what it stands for."""

    hash_code: int
    digest: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read it from a CID of the codec libp2p-key in any multibase, or from a peer id in base58btc.

        Raises BadRequestError.
        """
        shown = repr(text if len(text) <= 80 else f"{text[:77]}…")
        if not text or len(text) > MAX_TEXT:
            raise BadRequestError(f"{shown} is not an IPNS name; {LOOKS}")
        try:
            cid = CID.parse(_to_cid_text(text))
        except (BadCIDError, ValueError, IndexError):
            raise BadRequestError(f"{shown} is not an IPNS name; {LOOKS}") from None
        if cid.codec != LIBP2P_KEY:
            raise BadRequestError(
                f"{shown} is the CID of {cid.codec_name} content, not of a key: ask for it under /ipfs/"
            )
        if cid.hash_code not in _SHORT_MULTIHASHES:
            raise BadRequestError(
                f"{shown} is not an IPNS name: its key is hashed by another function than sha2-256"
            )
        name = cls(cid.hash_code, cid.digest)
        if name.inline_key is not None:
            try:
                PublicKey.parse(name.inline_key)
            except CorruptContentError as error:
                raise BadRequestError(f"{shown} is not an IPNS name: {error}") from None
        return name

    @property
    def inline_key(self) -> bytes | None:
        """The public key (libp2p's protobuf) where the name holds it; None where it holds the key's hash."""
        return self.digest if self.hash_code == IDENTITY else None

    def is_of(self, key: bytes) -> bool:
        """Whether it is the name of this public key."""
        return self.digest == (key if self.hash_code == IDENTITY else hashlib.sha256(key).digest())

    def __str__(self) -> str:
        """The usual text: a CID in base 36, which fits a DNS label."""
        return CID(1, LIBP2P_KEY, self.hash_code, self.digest).encode("k")


def _to_cid_text(text: str) -> str:
    """A peer id as the CID that it stands for."""
    if not text.startswith(_LEGACY):
        if text[0] not in MULTIBASES:
            raise BadCIDError("no multibase")
        return text
    _, multihash = libipld.decode_multibase(f"z{text}")
    if libipld.encode_multibase("z", multihash) != f"z{text}":
        raise BadCIDError("not canonical")
    return libipld.encode_multibase("k", b"\x01\x72" + multihash)


def parse_name(text: str) -> Name | str:
    """What stands after /ipns/: a key, or a domain (a text with a dot), in lower case.

    Raises BadRequestError, which says what names look like.
    """
    if "." not in text:
        return Name.parse(text)
    domain = text.lower().removesuffix(".")
    if _DOMAIN.fullmatch(domain) is None:
        raise BadRequestError(
            f"{text[:80]!r} is not a domain name: labels of letters, digits and hyphens with dots between them,"
            " others than ASCII letters in their xn-- form"
        )
    return domain
