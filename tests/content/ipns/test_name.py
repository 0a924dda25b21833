"""IPNS names: keys in all their texts, and domains."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_stream_nb.content.ipns.name import Name, parse_name
from ipfs_stream_nb.errors import BadRequestError
from ipns_records import Owner, protobuf

# made by Kubo 0.43.1: ipfs key gen, ipfs key list --ipns-base=…
ED25519 = "k51qzi5uqu5dlac91fzwye6w6elypby6y7xy8g69a4yqkqs377jch7hhudrdm8"
ED25519_BASE58 = "12D3KooWPbnQy8wvD8s6SE8jVB71TWn3SPMtpQvbNe5S8yXt5oUB"
RSA = "k2k4r8n1wic7oq7x509062m743ke71520syva0z6vqk18o2sfkqnljbd"
RSA_BASE58 = "QmYA6248CR9eGkVZtJHnvEFWZn1LxxJysTvTKCZ7iE6PrY"


@pytest.mark.parametrize(("text", "base58"), [(ED25519, ED25519_BASE58), (RSA, RSA_BASE58)])
def test_one_name_in_all_texts(text, base58):
    """A CID in any multibase and the old base58 are the same name, written in base 36."""
    name = Name.parse(text)
    assert Name.parse(base58) == parse_name(text) == name
    assert str(name) == text


def test_every_encoding_that_kubo_writes(publisher):
    """Kubo's base36, base32 and base58 texts of one key are one name."""
    publisher.run("key", "gen", "encodings")
    texts = [
        publisher.run("key", "list", "-l", f"--ipns-base={base}") for base in ("base36", "base32", "b58mh")
    ]
    names = {
        Name.parse(line.split()[0]) for text in texts for line in text.splitlines() if "encodings" in line
    }
    assert len(names) == 1


def test_an_ed25519_name_holds_its_key():
    """A small key stands in the name, a large one is hashed."""
    assert Name.parse(ED25519).inline_key is not None
    assert Name.parse(RSA).inline_key is None


@pytest.mark.parametrize("kind", ["ed25519", "secp256k1", "rsa2048"])
def test_a_name_knows_its_key(kind):
    """A name is of one key only."""
    owner = Owner(kind)
    assert owner.name.is_of(owner.key)
    assert not owner.name.is_of(Owner(kind).key)
    assert Name.parse(str(owner.name)) == owner.name


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "begins with k51"),
        ("self", "begins with k51"),
        (ED25519[:-1], "begins with k51"),
        (RSA_BASE58[:-1], "begins with k51"),
        ("1", "begins with k51"),
        ("k" * 1000, "begins with k51"),
        ("bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am", "content, not of a key"),
        (str(Name(0x13, bytes(64))), "another function"),
        (str(Name(0, protobuf({1: 9, 2: bytes(32)}))), "type 9"),
        (str(Name(0, protobuf({1: 1, 2: bytes(31)}))), "32 bytes"),
        (str(Name(0, protobuf({1: 1}))), "incomplete"),
        (str(Name(0, protobuf({2: bytes(32), 3: 1}))), "malformed"),
        ("a..b", "domain name"),
        (".", "domain name"),
        ("müller.example", "xn--"),
        ("-a.example", "domain name"),
        (f"{'a' * 64}.example", "domain name"),
        ("127.0.0.1", "domain name"),
    ],
)
def test_other_texts_are_refused(text, reason):
    """The error says what names look like, or what is wrong with this one."""
    with pytest.raises(BadRequestError, match=reason):
        parse_name(text)


@pytest.mark.parametrize("text", ["docs.ipfs.tech", "DOCS.ipfs.TECH", "docs.ipfs.tech."])
def test_domains_are_one_text(text):
    """Case and the root's dot do not count."""
    assert parse_name(text) == "docs.ipfs.tech"


@given(st.text(max_size=80) | st.text("kbz1Qm25", max_size=70))
def test_any_text_is_a_name_or_a_bad_request(text):
    """No text brings anything else about."""
    try:
        name = parse_name(text)
    except BadRequestError:
        return
    assert isinstance(name, str) or Name.parse(str(name)) == name
