"""IPNS names and records made here: keys by `cryptography`, protobuf and DAG-CBOR written out by hand."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import libipld
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ipfs_stream_nb.content.cid import IDENTITY, SHA2_256, varint
from ipfs_stream_nb.content.ipns.name import Name
from ipfs_stream_nb.content.ipns.record import SIGNATURE_PREFIX

NUMBERS = {
    "value": 1,
    "signatureV1": 2,
    "validityType": 3,
    "validity": 4,
    "sequence": 5,
    "ttl": 6,
    "pubKey": 7,
    "signatureV2": 8,
    "data": 9,
}


def protobuf(entry: dict[int, Any]) -> bytes:
    """A message of varints and byte strings."""
    out = b""
    for number, value in entry.items():
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def in_hours(hours: float) -> bytes:
    """A time from now, as records write it."""
    return f"{datetime.now(UTC) + timedelta(hours=hours):%Y-%m-%dT%H:%M:%S.%f}123Z".encode()


class Owner:
    """Somebody with a key, who signs records for its name."""

    def __init__(self, kind: str = "ed25519") -> None:
        if kind == "ed25519":
            self.private: Any = ed25519.Ed25519PrivateKey.generate()
            raw = self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
            self.key = protobuf({1: 1, 2: raw})
        elif kind == "secp256k1":
            self.private = ec.generate_private_key(ec.SECP256K1())
            raw = self.private.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
            self.key = protobuf({1: 2, 2: raw})
        else:
            self.private = (
                rsa.generate_private_key(65537, int(kind.removeprefix("rsa")))
                if kind.startswith("rsa")
                else ec.generate_private_key(ec.SECP256R1())
            )
            info = self.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            self.key = protobuf({1: 0 if kind.startswith("rsa") else 3, 2: info})
        self.name = (
            Name(IDENTITY, self.key)
            if len(self.key) <= 42
            else Name(SHA2_256, hashlib.sha256(self.key).digest())
        )

    def sign(self, message: bytes) -> bytes:
        """As libp2p signs with this kind of key."""
        if isinstance(self.private, ed25519.Ed25519PrivateKey):
            return self.private.sign(message)
        if isinstance(self.private, rsa.RSAPrivateKey):
            return self.private.sign(message, padding.PKCS1v15(), hashes.SHA256())
        return self.private.sign(message, ec.ECDSA(hashes.SHA256()))

    def entry(
        self,
        value: str | bytes = "/ipfs/bafkqaddwgevxmmraojswg33smq",
        *,
        sequence: int = 1,
        validity: bytes | None = None,
        ttl: int | None = 60_000_000_000,
        v1: bool = False,
        **more: Any,
    ) -> dict[str, Any]:
        """The protobuf's fields; `more` goes into the signed data. `ttl` in nanoseconds."""
        data: dict[str, Any] = {
            "Value": value.encode() if isinstance(value, str) else value,
            "Validity": in_hours(24) if validity is None else validity,
            "ValidityType": 0,
            "Sequence": sequence,
        }
        if ttl is not None:
            data["TTL"] = ttl
        data |= more
        entry: dict[str, Any] = {}
        if v1:
            entry = {"value": data["Value"], "signatureV1": b"not looked at", "validityType": 0}
            entry |= {"validity": data["Validity"], "sequence": sequence, "ttl": ttl or 0}
        if self.name.inline_key is None:
            entry["pubKey"] = self.key
        encoded = libipld.encode_dag_cbor(data)
        return entry | {"signatureV2": self.sign(SIGNATURE_PREFIX + encoded), "data": encoded}

    def record(self, *args: Any, **kwargs: Any) -> bytes:
        """The record of `entry`."""
        return encode(self.entry(*args, **kwargs))


def encode(entry: dict[str, Any]) -> bytes:
    """A record of these fields."""
    return protobuf({NUMBERS[name]: value for name, value in entry.items()})
