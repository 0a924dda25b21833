"""Capability tokens."""

import base64
import json
import time

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_stream_nb.content.cid import CID, DAG_PB
from ipfs_stream_nb.errors import BadRequestError, UnauthorizedError
from ipfs_stream_nb.notifications.events import EVENT_TYPES
from ipfs_stream_nb.security import tokens
from ipfs_stream_nb.security.access import Action
from ipfs_stream_nb.security.tokens import TokenSigner, looks_like_token

SECRET = bytes(range(32))
A, B = CID.of(b"a"), CID.of(b"b")


@pytest.fixture
def signer():
    """A signer with a fixed secret."""
    return TokenSigner(SECRET)


def claims(**changes):
    """A valid token's claims, with changes; None takes a claim out."""
    base = {
        "iss": tokens.ISSUER,
        "aud": tokens.AUDIENCE,
        "sub": "ann",
        "act": "read",
        "cid": str(A),
        "exp": int(time.time()) + 60,
    }
    return {key: value for key, value in (base | changes).items() if value is not None}


def signed(secret=SECRET, algorithm="HS256", **changes):
    """A token over such claims."""
    return jwt.encode(claims(**changes), secret, algorithm=algorithm)


def test_round_trip(signer):
    """What was issued is read back: user, action, CID and the end of its life."""
    token, granted = signer.issue("ann", Action.READ, A, 60)
    assert signer.read(token) == granted == signer.check(token, Action.READ, A)
    assert granted.user == "ann"
    assert time.time() + 50 < granted.expires <= time.time() + 60
    assert looks_like_token(token)


def test_default_lifetime_is_minutes(signer):
    """Without a ttl a token lives ten minutes."""
    before = time.time()
    _, granted = signer.issue("ann", Action.READ, A)
    assert before - 1 <= granted.expires - tokens.DEFAULT_TTL <= time.time() + 1


@pytest.mark.parametrize("ttl", [0, -1, 0.5, tokens.MAX_TTL + 1, float("nan"), float("inf")])
def test_ttl_out_of_range(signer, ttl):
    """A ttl that is no positive number of seconds below the maximum is refused."""
    with pytest.raises(BadRequestError, match="ttl"):
        signer.issue("ann", Action.READ, A, ttl)


@pytest.mark.parametrize("user", ["", "x" * (tokens.MAX_USER + 1)])
def test_user_out_of_range(signer, user):
    """A user without a name, or with a name that would burst the token, gets none."""
    with pytest.raises(BadRequestError, match="username"):
        signer.issue(user, Action.READ, A)


def test_other_action_or_cid_is_refused(signer):
    """A token to read A neither pins A nor reads B, nor does anything that names no CID."""
    token, _ = signer.issue("ann", Action.READ, A)
    for action, cid in [(Action.PIN, A), (Action.READ, B), (Action.READ, None), (Action.GC, None)]:
        with pytest.raises(UnauthorizedError, match="another action or CID"):
            signer.check(token, action, cid)


@pytest.mark.parametrize(
    "types", [None, frozenset(), frozenset({"pin_added"}), frozenset(map(str, EVENT_TYPES))]
)
def test_a_token_to_subscribe_keeps_its_types(signer, types):
    """A token to subscribe names types or none, is read back with them, and is for nothing else."""
    token, granted = signer.issue("x" * tokens.MAX_USER, Action.SUBSCRIBE, None, 60, types)
    assert signer.read(token) == granted == signer.check(token, Action.SUBSCRIBE, None)
    assert granted.types == types
    for action, cid in [(Action.EMIT, None), (Action.ADD, None), (Action.SUBSCRIBE, A), (Action.READ, A)]:
        with pytest.raises(UnauthorizedError, match="another action or CID"):
            signer.check(token, action, cid)


def test_types_are_for_subscribing_only(signer):
    """No other token is made with notification types."""
    with pytest.raises(BadRequestError, match="token to read names no notification types"):
        signer.issue("ann", Action.READ, A, types=frozenset({"pin_added"}))


def test_tokens_without_types_are_good_for_all(signer):
    """A token that was made before there were types has no such limit."""
    assert signer.read(signed(act="subscribe", cid="")).types is None


def test_no_token_is_made_that_would_not_be_read(signer):
    """A name whose token would be longer than what is read gets none; a shorter one beyond ASCII is read back."""
    for user in ("é" * tokens.MAX_USER, "😀" * 200):
        with pytest.raises(BadRequestError, match="username is too long"):
            signer.issue(user, Action.READ, A)
    token, granted = signer.issue("é" * 100, Action.READ, A)
    assert signer.read(token) == granted


def test_cid_versions_are_the_same_content(signer):
    """A token for a CIDv0 covers the same block's CIDv1, and not the same bytes under another codec."""
    v0 = CID.of(b"x", DAG_PB, version=0)
    token, _ = signer.issue("ann", Action.READ, v0)
    signer.check(token, Action.READ, v0.v1())
    with pytest.raises(UnauthorizedError):
        signer.check(token, Action.READ, CID.of(b"x"))


def test_expired(signer):
    """An expired token says that it is expired."""
    with pytest.raises(UnauthorizedError, match="expired"):
        signer.read(signed(exp=int(time.time()) - 1))


@pytest.mark.parametrize("missing", ["iss", "aud", "sub", "act", "cid", "exp"])
def test_missing_claim(signer, missing):
    """Each claim is required, so a token without an end is refused too."""
    with pytest.raises(UnauthorizedError, match="not a valid"):
        signer.read(signed(**{missing: None}))


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "somebody"},
        {"aud": "other"},
        {"aud": [tokens.AUDIENCE, "other"]},
        {"act": "fly"},
        {"act": 7},
        {"cid": "not-a-cid"},
        {"cid": 5},
        {"sub": 5},
        {"exp": "soon"},
        {"types": "pin_added"},
        {"types": [1]},
        {"types": [["pin_added"]]},
        {"types": {"pin_added": 1}},
        {"types": False},
    ],
)
def test_wrong_claims(signer, changes):
    """Signed claims of another issuer, audience, action or shape are refused."""
    with pytest.raises(UnauthorizedError, match="not a valid"):
        signer.read(signed(**changes))


def test_other_secret_and_algorithms(signer):
    """Only HS256 under this secret counts: not `none`, not HS512, not another server's secret."""
    for token in (
        signed(secret=bytes(32)),
        signed(secret=SECRET * 2, algorithm="HS512"),
        jwt.encode(claims(), None, algorithm="none"),
    ):
        with pytest.raises(UnauthorizedError, match="not a valid"):
            signer.read(token)


def test_algorithm_none_with_the_old_signature(signer):
    """Swapping the header for `alg: none` gains nothing, with or without the signature."""
    _, body, signature = signed().split(".")
    header = (
        base64.urlsafe_b64encode(json.dumps({"alg": "none", "typ": "JWT"}).encode()).rstrip(b"=").decode()
    )
    for token in (f"{header}.{body}.{signature}", f"{header}.{body}."):
        with pytest.raises(UnauthorizedError):
            signer.read(token)


@given(st.data())
def test_any_changed_character_is_refused(data):
    """Changing any one character of a token makes it worthless (or leaves its bytes the same)."""
    signer = TokenSigner(SECRET)
    token = signed()
    at = data.draw(st.integers(0, len(token) - 1))
    new = data.draw(st.sampled_from("ABCabc019-_.=").filter(lambda c: c != token[at]))
    changed = token[:at] + new + token[at + 1 :]
    try:
        read = signer.read(changed)
    except UnauthorizedError:
        return
    # base64's unused last bits: the same signature in another spelling
    assert at == len(token) - 1
    assert read == signer.read(token)


def test_huge_tokens_are_not_decoded(signer, monkeypatch):
    """A text over the limit is refused before the JWT library sees it."""
    monkeypatch.setattr(jwt, "decode", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(UnauthorizedError, match="2048"):
        signer.read("eyJ" + "a" * 10_000_000 + ".b.c")


@given(st.text(max_size=300))
def test_garbage_never_raises_anything_else(text):
    """Any text at all gives UnauthorizedError."""
    with pytest.raises(UnauthorizedError):
        TokenSigner(SECRET).read(text)


def test_short_secret_and_bad_lifetimes():
    """A signer with a guessable secret or with a default over its maximum is not built."""
    with pytest.raises(ValueError, match="31 bytes"):
        TokenSigner(bytes(31))
    with pytest.raises(ValueError, match="between 0"):
        TokenSigner(SECRET, default_ttl=100, max_ttl=10)
