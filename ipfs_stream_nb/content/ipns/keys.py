"""libp2p's public keys (https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md#keys) and their signatures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from ipfs_stream_nb.content.protobuf import BYTES, VARINT, fields
from ipfs_stream_nb.errors import CorruptContentError

RSA, ED25519, SECP256K1, ECDSA = range(4)
KEY_TYPES: Final = {RSA: "RSA", ED25519: "Ed25519", SECP256K1: "Secp256k1", ECDSA: "ECDSA"}
_ED25519_BYTES: Final = 32
_SECP256K1_BYTES: Final = 33
MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192
"""As go-libp2p has them: shorter keys are not safe, longer ones cost too much time."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """`type` is a key of KEY_TYPES; `data` the raw key, or its SubjectPublicKeyInfo in DER (RSA, ECDSA)."""

    type: int
    data: bytes

    @classmethod
    def parse(cls, encoded: bytes) -> Self:
        """Read libp2p's protobuf of a key. Raises CorruptContentError."""
        found: dict[int, int | bytes] = {}
        for number, wire_type, first, stop in fields(encoded, 0, len(encoded)):
            if (number, wire_type) not in {(1, VARINT), (2, BYTES)} or number in found:
                raise CorruptContentError("its public key is malformed")
            found[number] = first if wire_type == VARINT else encoded[first:stop]
        kind, data = found.get(1), found.get(2)
        if not isinstance(kind, int) or not isinstance(data, bytes):
            raise CorruptContentError("its public key is incomplete")
        if kind not in KEY_TYPES:
            raise CorruptContentError(f"its public key is of the type {kind}, which is not known")
        wanted = {ED25519: _ED25519_BYTES, SECP256K1: _SECP256K1_BYTES}.get(kind, len(data))
        if len(data) != wanted:
            raise CorruptContentError(
                f"an {KEY_TYPES[kind]} key has {wanted} bytes, this one has {len(data)}"
            )
        return cls(kind, data)

    def signed(self, signature: bytes, message: bytes) -> bool:
        """Whether the signature is this key's for the message; False for a key that is none, too."""
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm  # noqa: PLC0415  # only names of keys need it

        try:
            self._verify(signature, message)
        except (InvalidSignature, UnsupportedAlgorithm, ValueError):
            return False
        return True

    def _verify(self, signature: bytes, message: bytes) -> None:
        from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa  # noqa: PLC0415

        if self.type == ED25519:
            ed25519.Ed25519PublicKey.from_public_bytes(self.data).verify(signature, message)
            return
        if self.type == SECP256K1:
            point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), self.data)
            point.verify(signature, message, ec.ECDSA(hashes.SHA256()))
            return
        key = serialization.load_der_public_key(self.data)
        if self.type == RSA and isinstance(key, rsa.RSAPublicKey):
            if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
                raise ValueError("an RSA key of a size that is not accepted")
            key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
        elif self.type == ECDSA and isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        else:
            raise ValueError("a key of another type than it says")
