"""IPNS records: what Kubo and libraries sign is read, and nothing else."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_stream_nb.content.ipns.name import Name
from ipfs_stream_nb.content.ipns.record import MAX_RECORD, SIGNATURE_PREFIX, ExpiredRecordError, verify
from ipfs_stream_nb.errors import CorruptContentError
from ipns_records import Owner, encode, in_hours

VALUE = "/ipfs/bafkqaddwgevxmmraojswg33smq"
OWNER = Owner()
RECORD = OWNER.record(v1=True)
ENTRY = OWNER.entry(v1=True)


@pytest.mark.parametrize("key_type", ["ed25519", "rsa", "secp256k1"])
def test_a_record_of_kubo(publisher, publish, key_type):
    """Every field is what Kubo's own inspection says."""
    text = publish(VALUE, "--ttl=7s", "--lifetime=1h", "--sequence=5", type=key_type)
    encoded = publisher.run_binary("name", "get", text)
    inspected = json.loads(publisher.run("name", "inspect", "--enc=json", data=encoded))["Entry"]
    record = verify(Name.parse(text), encoded)
    assert (record.value, record.sequence, record.ttl) == (VALUE, 5, 7)
    assert (inspected["Value"], inspected["Sequence"], inspected["TTL"]) == (VALUE, 5, 7_000_000_000)
    assert 3500 < record.remaining <= 3600


@pytest.mark.parametrize("kind", ["ed25519", "secp256k1", "rsa2048", "ecdsa"])
@pytest.mark.parametrize("v1", [False, True])
def test_a_record_by_each_kind_of_key(kind, v1):
    """libp2p's four kinds of keys sign records, with and without the fields for old readers."""
    owner = Owner(kind)
    record = verify(owner.name, owner.record(VALUE, sequence=3, v1=v1))
    assert (record.value, record.sequence, record.ttl) == (VALUE, 3, 60)
    with pytest.raises(CorruptContentError):
        verify(Owner(kind).name, owner.record(VALUE))


def test_kubo_takes_the_records_made_here(publisher):
    """The tests' own maker of records writes what Kubo reads."""
    results = json.loads(
        publisher.run("name", "inspect", "--enc=json", f"--verify={OWNER.name}", data=RECORD)
    )["Validation"]
    assert results["Valid"], results


@given(st.data())
def test_no_change_of_what_is_signed_gets_through(data):
    """Another byte anywhere in the signed part, its signature or the fields that repeat it makes a record useless."""
    name = data.draw(st.sampled_from([name for name in ENTRY if name != "signatureV1"]))
    value = ENTRY[name]
    if isinstance(value, int):
        changed = data.draw(st.integers(0, 2**63).filter(lambda other: other != value))
    else:
        at = data.draw(st.integers(0, len(value) - 1))
        change = data.draw(st.integers(1, 255))
        changed = data.draw(
            st.sampled_from([value[:at] + bytes([value[at] ^ change]) + value[at + 1 :], value[:at]])
        )
    with pytest.raises(CorruptContentError):
        verify(OWNER.name, encode(ENTRY | {name: changed}))


@given(st.integers(0, len(RECORD) - 1), st.integers(1, 255))
def test_a_changed_byte_changes_no_answer(at, change):
    """A record that still passes with a byte changed says what it said before: only old signatures are ignored."""
    changed = RECORD[:at] + bytes([RECORD[at] ^ change]) + RECORD[at + 1 :]
    try:
        record = verify(OWNER.name, changed)
    except CorruptContentError:
        return
    assert dataclasses.replace(record, encoded=RECORD) == verify(OWNER.name, RECORD)


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_as_corrupt(encoded):
    """No bytes bring anything else about."""
    with pytest.raises(CorruptContentError):
        verify(OWNER.name, encoded)


@given(st.binary(max_size=200))
def test_any_signed_bytes_are_read_or_refused(data):
    """An owner can sign anything: what is no map of the right fields is refused."""
    entry = {"signatureV2": OWNER.sign(SIGNATURE_PREFIX + data), "data": data}
    with pytest.raises(CorruptContentError):
        verify(OWNER.name, encode(entry))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"Value": 5}, "no Value"),
        ({"Value": "/ipfs/text"}, "no Value"),
        ({"value": b"\xff"}, "not a path"),
        ({"value": "bafkqaddwgevxmmraojswg33smq"}, "not a path"),
        ({"ValidityType": 1}, "type 1"),
        ({"Sequence": -1}, "64 bits"),
        ({"Sequence": True}, "no Sequence"),
        ({"ttl": -1}, "64 bits"),
        ({"TTL": b"60"}, "64 bits"),
        ({"validity": b"tomorrow"}, "RFC 3339"),
        ({"validity": b"2099-13-01T00:00:00Z"}, "RFC 3339"),
        ({"validity": b"2099-01-01 00:00:00Z"}, "RFC 3339"),
        ({"validity": b"2099-01-01T00:00:00"}, "RFC 3339"),
        ({"validity": b"2099-01-01T00:00:00Z\n"}, "RFC 3339"),
        ({"validity": b"0001-01-01T00:00:00+23:59"}, "RFC 3339"),
    ],
)
def test_signed_nonsense_is_refused(fields, reason):
    """The owner's signature does not make a wrong field right."""
    with pytest.raises(CorruptContentError, match=reason):
        verify(OWNER.name, OWNER.record(**fields))


@pytest.mark.parametrize(
    "data",
    [
        b"\x81" * 9000 + b"\x00",
        b"\x9b\x00\x00\x01" + bytes(5),
        b"\xbb\x00\x00\x01" + bytes(5),
        b"\x7b" + b"\x7f" * 8,
    ],
)
def test_what_signed_data_declares_is_not_believed(data):
    """Thousands of arrays in each other, and lengths of terabytes, end as every malformed record does."""
    entry = {"signatureV2": OWNER.sign(SIGNATURE_PREFIX + data), "data": data}
    with pytest.raises(CorruptContentError, match="DAG-CBOR"):
        verify(OWNER.name, encode(entry))


def test_further_signed_fields_are_passed_over():
    """Implementations may add fields of their own."""
    assert (
        verify(OWNER.name, OWNER.record(_mine={"a": [1, b"2"]})).value == "/ipfs/bafkqaddwgevxmmraojswg33smq"
    )
    assert verify(OWNER.name, RECORD + b"\x7a\x01x").sequence == 1


@pytest.mark.parametrize("missing", ["signatureV2", "data"])
def test_a_record_without_its_new_signature_is_refused(missing):
    """Records of before 2021 have a signature that is not safe."""
    with pytest.raises(CorruptContentError, match=f"no {missing}"):
        verify(OWNER.name, encode({name: value for name, value in ENTRY.items() if name != missing}))


def test_what_is_signed_twice_over_is_refused():
    """A field that is there twice could be read in two ways."""
    with pytest.raises(CorruptContentError, match="twice"):
        verify(OWNER.name, RECORD + encode({"data": ENTRY["data"]}))


def test_the_limit_of_the_size():
    """10 KiB pass, and a byte more does not."""
    room = MAX_RECORD - len(OWNER.record(_=b"")) - 3
    assert len(OWNER.record(_=bytes(room))) == MAX_RECORD
    assert verify(OWNER.name, OWNER.record(_=bytes(room)))
    with pytest.raises(CorruptContentError, match="bytes"):
        verify(OWNER.name, OWNER.record(_=bytes(room + 1)))


def test_a_hashed_name_needs_its_key_in_the_record():
    """The right key, and none other."""
    owner = Owner("rsa2048")
    entry = owner.entry()
    with pytest.raises(CorruptContentError, match="lacks the public key"):
        verify(owner.name, encode({name: value for name, value in entry.items() if name != "pubKey"}))
    with pytest.raises(CorruptContentError, match="not the one of the name"):
        verify(owner.name, encode(entry | {"pubKey": OWNER.key}))


def test_an_rsa_key_that_is_too_short_signs_nothing():
    """1,024 bits can be broken."""
    owner = Owner("rsa1024")
    with pytest.raises(CorruptContentError, match="not by the owner"):
        verify(owner.name, owner.record())


def test_a_key_may_stand_in_the_record_as_well():
    """An ed25519 key beside its own name is the same key, and another is refused."""
    assert verify(OWNER.name, encode(ENTRY | {"pubKey": OWNER.key}))
    with pytest.raises(CorruptContentError, match="not the one of the name"):
        verify(OWNER.name, encode(ENTRY | {"pubKey": Owner().key}))


def test_an_expired_record_is_not_found():
    """Its owner does not stand by it any more, which is not forgery."""
    with pytest.raises(ExpiredRecordError, match="valid until"):
        verify(OWNER.name, OWNER.record(validity=in_hours(-0.001)))


def test_validity_has_nanoseconds_and_zones():
    """RFC 3339 in all its forms."""

    def expires(validity: bytes) -> int:
        return verify(OWNER.name, OWNER.record(validity=validity)).expires

    base = expires(b"2099-01-01T00:00:00Z")
    assert expires(b"2099-01-01T00:00:00.000000001Z") == base + 1
    assert expires(b"2099-01-01T00:00:00.5Z") == base + 500_000_000
    assert expires(b"2099-01-01T02:00:00+02:00") == base


def test_without_a_ttl():
    """An old record may lack it."""
    assert verify(OWNER.name, OWNER.record(ttl=None)).ttl is None


def test_the_better_of_several_records():
    """The higher sequence counts, then the longer validity."""

    def rank(sequence: int, hours: float) -> tuple:
        return verify(OWNER.name, OWNER.record(sequence=sequence, validity=in_hours(hours))).rank

    assert rank(2, 1) > rank(1, 48) > rank(1, 24)
    assert rank(2**64 - 1, 1) > rank(2**63, 1)


def test_a_copy_for_old_readers_may_not_be_missing():
    """Where one of them is there, all must be, and say what is signed."""
    with pytest.raises(CorruptContentError, match="ttl is not"):
        verify(OWNER.name, encode({name: value for name, value in ENTRY.items() if name != "ttl"}))
